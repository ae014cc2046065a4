"""What a study without a claim found, in sentences.

Runs are compared by seed. A run differs clearly from the best one if the 95 % interval of the
paired differences excludes zero. The intervals are not corrected.
"""

from collections.abc import Sequence

import numpy as np

from experiments.reports.metrics import Metric, mean_interval
from experiments.reports.results import (
    Point,
    distinct,
    key_label,
    label,
    listed,
    swept_keys,
    value_label,
    values_at,
)


def best_runs(points: Sequence[Point], measured: Metric, x: str | None) -> str:
    """Return which run is best at every value of `x`, and which others can be told from it."""
    keys = [key for key in swept_keys(points) if key != x]
    return " ".join(_best(own, keys, measured, where) for where, own in _along(points, x))


def _along(points: Sequence[Point], x: str | None) -> list[tuple[str, list[Point]]]:
    if x is None:
        return [("", list(points))]
    return [
        (
            f"At {key_label(x)} {value_label(value)}, ",
            [point for point in points if values_at(point, [x]) == (value,)],
        )
        for (value,) in distinct(points, [x])
    ]


def _best(own: Sequence[Point], keys: Sequence[str], measured: Metric, where: str) -> str:
    """Return the best of the runs, and which others can be told from it."""
    there = [point for point in own if measured.summary(point) is not None]
    if not there:
        return f"{where or 'So far '}no seed has a result."
    names = [label(point, keys) for point in there]
    means = [measured.summary(point).mean for point in there]  # type: ignore[union-attr]
    at = int(np.argmin(means) if measured.lowest_is_best else np.argmax(means))
    told = [
        name
        for name, point in zip(names, there, strict=True)
        if point is not there[at] and _differ(there[at], point, measured)
    ]
    kind = "lowest" if measured.lowest_is_best else "highest"
    found = (
        f"{where}{names[at]} has the {kind} mean {measured.label}: "
        f"{measured.summary_text(there[at])}."
    )
    return f"{found[0].upper()}{found[1:]}{_compared(told, len(there) - 1, len(there[at].seeds))}"


def _compared(told: Sequence[str], others: int, seeds: int) -> str:
    if others == 0:
        return ""
    if not told:
        return f" The {seeds} seeds show no clear difference from any other run."
    if len(told) == others:
        return f" It differs clearly from every other run ({seeds} seeds)."
    return f" It differs clearly from {listed(told)} ({seeds} seeds), and not from the others."


def _differ(one: Point, other: Point, measured: Metric) -> bool:
    a, b = measured.values(one), measured.values(other)
    common = sorted(a.keys() & b.keys())
    if len(common) < 2:
        return False
    d = np.array([a[seed] - b[seed] for seed in common])
    _, low, high = mean_interval(d)
    return bool(low > 0 or high < 0)
