"""Ranges of values that train, such as the highest learning rate: what of them the runs leave out.

A range is measured for each seed by the runs of one trial that have the seed. It goes beyond the
grid if a seed trains at its end, and it ends in a gap, between a value that trains and one that
does not.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from operator import neg, pos

from experiments.launch.contrast import HIGHEST
from experiments.reports.metrics import Metric, trained_values
from experiments.reports.results import Point

RESOLUTION = 1.02 / 8  # decades; values are rounded


def seeds_of(trial: Sequence[Point]) -> list[int]:
    """Return the seeds that any run of a trial has."""
    return sorted({seed for point in trial for seed in point.seeds})


def _values(measured: Metric, trial: Sequence[Point], seed: int | None = None) -> list[float]:
    """Return the values of the runs of a trial, or of those that have a seed, in order."""
    there = [point for point in trial if seed is None or seed in point.seeds]
    return sorted(point.values[str(measured.over)] for point in there)


def ends_that_train(measured: Metric, trial: Sequence[Point]) -> dict[float, list[int]]:
    """Return the ends of a grid beyond which a range may go, with the seeds that train there."""
    ends = [max(_values(measured, trial), key=out) for out in _directions(measured)]
    seeds = {
        end: [s for s in seeds_of(trial) if end in trained_values(trial, measured.over, s)]
        for end in ends
    }
    return {end: trained for end, trained in seeds.items() if trained}


def wide_gaps(measured: Metric, trial: Sequence[Point]) -> list[tuple[float, float]]:
    """Return the gaps in which the range of a seed ends, if they are wider than `RESOLUTION`."""
    gaps = [gap for seed in seeds_of(trial) for gap in _gaps(measured, trial, seed)]
    return sorted({(min(gap), max(gap)) for gap in gaps if _is_wide(*gap)})


def next_values(measured: Metric, trial: Sequence[Point], seed: int) -> list[float]:
    """Return the values at which a seed trains next, until its range is known to `RESOLUTION`.

    A gap is bisected, at a value of the other seeds if there is one in it.
    """
    own, every = _values(measured, trial, seed), _values(measured, trial)
    if not trained_values(trial, measured.over, seed):
        left = [value for value in every if value not in own]
        if measured.key == HIGHEST:
            return [value for value in left if value < min(own)][-1:]
        return left[len(left) // 2 :][:1]
    return [
        _within(gap, every) if gap[1] in own else gap[1]
        for gap in _gaps(measured, trial, seed)
        if gap[1] not in own or _is_wide(*gap)
    ]


def first_values(measured: Metric, trial: Sequence[Point]) -> list[float]:
    """Return the values at which a fresh seed begins: on both sides of the ends of all ranges."""
    every = _values(measured, trial)
    ranges = [trained_values(trial, measured.over, seed) for seed in seeds_of(trial)]
    found = set() if any(ranges) else set(every)
    for out in _directions(measured):
        ends = sorted((max(values, key=out) for values in ranges if values), key=out)
        found |= {*ends[:1], *(value for end in ends[-1:] for value in _outward(every, end, out))}
    return sorted(found)


def _gaps(measured: Metric, trial: Sequence[Point], seed: int) -> Iterator[tuple[float, float]]:
    """Yield the last value that trains and the next one of the seed, or else of the trial."""
    own, every = _values(measured, trial, seed), _values(measured, trial)
    if training := trained_values(trial, measured.over, seed):
        for out in _directions(measured):
            end = max(training, key=out)
            for beyond in _outward(own, end, out) or _outward(every, end, out):
                yield end, beyond


def _directions(measured: Metric) -> list[Callable[[float], float]]:
    """Return functions that increase towards the ends of a range that count."""
    return [pos] if measured.key == HIGHEST else [pos, neg]


def _outward(values: Sequence[float], end: float, out: Callable[[float], float]) -> list[float]:
    """Return the next value beyond an end, if there is one."""
    return sorted((value for value in values if out(value) > out(end)), key=out)[:1]


def _within(gap: tuple[float, float], every: Sequence[float]) -> float:
    """Return the value nearest to the middle of a gap; the middle if there is none in it."""
    low, high = sorted(gap)
    center = middle(low, high)
    inside = [value for value in every if low < value < high]
    return min(inside, key=lambda value: abs(math.log(value / center)), default=center)


def _is_wide(one: float, other: float) -> bool:
    low, high = sorted((one, other))
    return math.log10(high / low) > RESOLUTION and low < middle(low, high) < high


def middle(low: float, high: float) -> float:
    """Return the middle of a gap by the logarithm; an integer between integers."""
    value = math.sqrt(low * high)
    return round(value) if isinstance(low, int) and isinstance(high, int) else float(f"{value:.3g}")
