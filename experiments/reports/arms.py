"""The two arms of a contrast: the runs they choose from, and their choice.

Both arms are tuned in the same way on validation data. The metric is read from the chosen runs
only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import ConfigError
from experiments.launch.selection import overridden, picks
from experiments.reports.metrics import Metric
from experiments.reports.results import Point, label, swept_keys, value_label, values_at

GEOMETRIC = "geometric mean of the steps to the target"


@dataclass(frozen=True)
class Arm:
    """One side of a contrast.

    Attributes:
        overrides: select the runs of the arm.
        trials: the label and score of every trial that has a finished seed.
        chosen: the label of the best trial, or of the best one at every place that is compared.
        scored_by: a description of the scores.
    """

    overrides: str
    trials: list[tuple[str, float]]
    chosen: str
    scored_by: str


class Tuned(NamedTuple):
    """An arm with all its trials.

    Attributes:
        best: the chosen trial; empty if none of its runs has a finished seed.
        values: the metric of every seed of that trial.
        asked: all trials, finished or not. A trial is one run, or all runs along the key of a
            metric that needs them together.
    """

    arm: Arm
    best: list[Point]
    values: dict[int, float]
    asked: list[list[Point]]


def tune(overrides: str, points: Sequence[Point], measured: Metric, where: str) -> Tuned:
    """Return an arm whose trial has the best mean over seeds on validation data.

    Raises:
        ConfigError: the overrides select no run; `where` is the key of the overrides.
    """
    found = matching(overrides, points, where)
    asked = _trials(found, measured)
    keys = [key for key in swept_keys(found) or swept_keys(points) if key != measured.over]
    there = [trial for trial in asked if any(point.seeds for point in trial)]
    scores = [_score(trial, measured) for trial in there]
    sign = -1 if measured.of_steps else 1
    best = there[int(np.argmax(sign * np.array(scores)))] if there else []
    arm = Arm(
        overrides,
        [(_label(trial, keys), score) for trial, score in zip(there, scores, strict=True)],
        _label(best, keys) if best else "",
        _scored_by(measured),
    )
    return Tuned(arm, best, _values(best, measured) if best else {}, asked)


def _trials(points: Sequence[Point], measured: Metric) -> list[list[Point]]:
    if measured.over is None:
        return [[point] for point in points]
    keys = [key for key in swept_keys(points) if key != measured.over]
    by_values: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        by_values.setdefault(values_at(point, keys), []).append(point)
    return list(by_values.values())


def _values(trial: Sequence[Point], measured: Metric) -> dict[int, float]:
    return measured.values(trial[0]) if measured.over is None else measured.values_over(trial)


def _label(trial: Sequence[Point], keys: Sequence[str]) -> str:
    return label(trial[0], keys) if keys else "the whole grid"


def _score(trial: Sequence[Point], measured: Metric) -> float:
    """Return the score of a trial on validation data.

    The target is a validation accuracy, so a metric that uses the target is its own score.
    """
    if measured.of_steps:
        return measured.summary(trial[0]).mean
    if measured.over is not None:
        return float(np.mean([*_values(trial, measured).values()] or [-np.inf]))
    reached = [seed.result["validation_accuracy"] for seed in trial[0].seeds.values()]
    return 100 * float(np.mean(reached))


def _scored_by(measured: Metric) -> str:
    if measured.of_steps:
        return GEOMETRIC
    return "validation accuracy in %" if measured.over is None else measured.label


def matching(overrides: str, points: Sequence[Point], where: str) -> list[Point]:
    """Return the runs that overrides such as "norm=batch optimizer.learning_rate=0.1" select.

    Raises:
        ConfigError: they select none.
    """
    wanted = overridden(overrides)
    found = [point for point in points if picks(overrides, point.values)]
    if not found or len(wanted) < len(overrides.split()):
        there = "; ".join(
            f"{key}: {', '.join(dict.fromkeys(value_label(p.values.get(key)) for p in points))}"
            for key in swept_keys(points)
        )
        raise ConfigError(f"{where} is {overrides!r}, which matches no run of the study; {there}")
    return found


def trials_text(arm: Arm, places: int = 1) -> str:
    """Return the choice of an arm and its trials at `places` places."""
    trials, where = len(arm.trials) // places, f" at each of {places} places" if places > 1 else ""
    if trials == 1:
        return f"{arm.chosen} (one trial{where})"
    scores = "; ".join(f"{name}: {score:.4g}" for name, score in arm.trials)
    return f"{arm.chosen}, the best of {trials} trials{where} by {arm.scored_by} ({scores})"
