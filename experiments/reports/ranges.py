"""Ranges of values that train, such as the highest learning rate: what of them a grid leaves out.

A range is measured for each seed by the runs of one trial. It goes beyond the grid if a seed trains
at its end, and it ends in a gap, between a value that trains and the next one, which does not.
"""

import math
from collections.abc import Sequence

from experiments.launch.contrast import HIGHEST
from experiments.reports.metrics import Metric, trained_values
from experiments.reports.results import Point

RESOLUTION = 1.02 / 8  # decades; values are rounded


def common_seeds(trial: Sequence[Point]) -> list[int]:
    """Return the seeds that all runs of a trial have."""
    return sorted(set.intersection(*(set(point.seeds) for point in trial)))


def ends_that_train(measured: Metric, trial: Sequence[Point]) -> list[float]:
    """Return the ends of a grid at which seeds train, so that the range may go beyond them."""
    over = str(measured.over)
    values = sorted(point.values[over] for point in trial)
    ends = values[-1:] if measured.key == HIGHEST else [values[0], values[-1]]
    trained = [trained_values(trial, over, seed) for seed in common_seeds(trial)]
    return [end for end in ends if any(end in values for values in trained)]


def wide_gaps(measured: Metric, trial: Sequence[Point]) -> list[tuple[float, float]]:
    """Return the gaps in which the range of a seed ends, if they are wider than `RESOLUTION`."""
    over = str(measured.over)
    grid = sorted(point.values[over] for point in trial)
    gaps: set[tuple[float, float]] = set()
    for seed in common_seeds(trial):
        if training := trained_values(trial, over, seed):
            lowest, highest = training[0], training[-1]
            gaps |= {(highest, value) for value in grid[grid.index(highest) + 1 :][:1]}
            if measured.key != HIGHEST:
                gaps |= {(value, lowest) for value in grid[: grid.index(lowest)][-1:]}
    return sorted(gap for gap in gaps if _is_wide(*gap))


def _is_wide(low: float, high: float) -> bool:
    return math.log10(high / low) > RESOLUTION and low < middle(low, high) < high


def middle(low: float, high: float) -> float:
    """Return the middle of a gap by the logarithm; an integer between integers."""
    value = math.sqrt(low * high)
    return round(value) if isinstance(low, int) and isinstance(high, int) else float(f"{value:.3g}")
