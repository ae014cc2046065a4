"""Colors, symbols and axes of all figures. The script of the page sets light or dark colors."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from experiments.reports.metrics import Metric
from experiments.reports.results import is_numeric, value_label


class Mark(NamedTuple):
    color: str
    symbol: str
    dash: str = "solid"


# The palette of Okabe and Ito, for every kind of color vision. Norms of the batch are blue.
NORM_MARKS = {
    "none": Mark("#858585", "x"),
    "batch": Mark("#0072B2", "circle"),
    "ghost batch": Mark("#56B4E9", "circle-open"),
    "batch renorm": Mark("#8377d1", "diamond"),
    "layer": Mark("#D55E00", "square"),
    "rms": Mark("#E69F00", "square-open"),
    "group": Mark("#009E73", "triangle-up"),
    "instance": Mark("#CC79A7", "star"),
}
CYCLE = [NORM_MARKS[name] for name in ("batch", "layer", "group", "rms", "instance", "ghost batch")]
CYCLE += [NORM_MARKS["batch renorm"], NORM_MARKS["none"]]
DASHES = ("solid", "dash", "dot", "dashdot")
BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#858585"

# A logarithmic axis of the error resolves accuracies near chance and near 100 %.
ACCURACY_TICKS = (0, 30, 50, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.5)
MIN_ERROR = 0.25
LAYOUT = {
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "margin": {"l": 64, "r": 12, "t": 24, "b": 56},
    "hovermode": "closest",
}
MAX_LINEAR_RATIO = 8  # largest ratio of the ends of a linear axis


def marks(labels: Sequence[str]) -> dict[str, Mark]:
    """Return a mark for each label. A normalization always has the same mark."""
    taken = [NORM_MARKS[name] for name in labels if name in NORM_MARKS]
    free = [mark for mark in CYCLE if mark not in taken] or CYCLE
    others = [name for name in labels if name not in NORM_MARKS]
    cycled = {
        name: free[i % len(free)]._replace(dash=DASHES[i // len(free) % len(DASHES)])
        for i, name in enumerate(others)
    }
    return {name: NORM_MARKS.get(name) or cycled[name] for name in labels}


def error(accuracy: Any) -> Any:
    """Return the error in percent, at most 100 and bounded away from 0 for the logarithm."""
    return np.clip(100 - np.asarray(accuracy, dtype=float), MIN_ERROR, 100)


def accuracy_axis(title: str | None) -> dict[str, Any]:
    """Return an axis of errors whose labels are accuracies."""
    return {
        "title": {"text": title},
        "type": "log",
        "autorange": "reversed",
        "tickvals": [100 - tick for tick in ACCURACY_TICKS],
        "ticktext": [f"{tick:g}" for tick in ACCURACY_TICKS],
    }


def metric_axis(measured: Metric) -> dict[str, Any]:
    """Return the axis of a metric."""
    if measured.in_percent:
        return accuracy_axis(measured.label)
    axis = {"title": {"text": measured.label}, "exponentformat": "power"}
    if measured.of_steps:
        ticks = [digit * 10**power for power in range(8) for digit in (1, 2, 5)]
        return {**axis, "type": "log", "tickvals": ticks, "ticktext": [f"{t:,}" for t in ticks]}
    return axis


def on_metric_axis(measured: Metric, values: Any) -> np.ndarray:
    """Return the positions of numbers on the axis of a metric."""
    return error(values) if measured.in_percent else np.asarray(values, dtype=float)


class Positions(NamedTuple):
    """The positions of the values of a key on an axis, and the axis."""

    places: dict[Any, float]
    axis: dict[str, Any]
    logarithmic: bool

    def shifted(self, value: Any, side: float) -> float:
        """Return the position of a value, shifted by `side` (-1 to 1) to separate series."""
        if self.logarithmic:
            return self.places[value] * self._step() ** (0.2 * side)
        return self.places[value] + 0.2 * side * self._step()

    def _step(self) -> float:
        places = sorted(self.places.values())
        if len(places) < 2:
            return 1.0
        between = pairwise(places)
        if self.logarithmic:
            return min(b / a for a, b in between)
        return min(b - a for a, b in between)


def positions(values: Sequence[Any], title: str) -> Positions:
    """Return a numeric axis for numbers, logarithmic for a large range; else categories."""
    ticks = {"ticktext": [value_label(value) for value in values]}
    if is_numeric(values) and len(values) > 2:
        logarithmic = min(values) > 0 and max(values) / min(values) >= MAX_LINEAR_RATIO
        places = {value: float(value) for value in values}
        kind = "log" if logarithmic else "linear"
    else:
        logarithmic, kind = False, "linear"
        places = {value: float(index) for index, value in enumerate(values)}
        ticks["range"] = [-0.5, len(values) - 0.5]
    axis = {
        "title": {"text": title},
        "type": kind,
        "tickvals": list(places.values()),
        "zeroline": False,
        **ticks,
    }
    return Positions(places, axis, logarithmic)


def short(numbers: Iterable[Any]) -> list[float | None]:
    """Return numbers rounded to five digits; None for a number that is not finite."""
    return [float(f"{n:.5g}") if np.isfinite(n) else None for n in map(float, numbers)]
