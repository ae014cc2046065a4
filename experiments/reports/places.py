"""The places where the arms of a contrast are tuned and compared.

The first `TUNING_SEEDS` seeds tune the arms, and the standard deviation of their d determines how
many fresh seeds are compared (two stages, after Stein 1945). Only the fresh seeds are tested, with
their own standard deviation, so the t-test is exact whatever their number was determined by.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.config import Contrast
from experiments.errors import ConfigError
from experiments.launch.contrast import arms_of, form_problems
from experiments.launch.selection import overridden, picks
from experiments.reports.arms import TUNING_SEEDS, Tuned, tune
from experiments.reports.metrics import Metric
from experiments.reports.results import Point, distinct, named_value, value_label, values_at

SIGNIFICANCE = 0.05
CONTRASTS = 48  # the level of an interval is corrected for this number of contrasts
FEWEST, MOST = 8, 64  # fresh seeds


class Place(NamedTuple):
    """A place where the arms are tuned and compared.

    Attributes:
        contrast: the contrast of this place.
        d: the difference for each common seed.
    """

    name: str
    contrast: Contrast
    a: Tuned
    b: Tuned
    d: dict[int, float]

    @property
    def spread(self) -> float | None:
        """The standard deviation of d over the tuning seeds."""
        first = [d for seed, d in self.d.items() if seed < TUNING_SEEDS]
        return float(np.std(first, ddof=1)) if len(first) > 1 else None

    @property
    def wanted(self) -> int:
        """The number of fresh seeds that the rule compares."""
        margin = margin_of(self.contrast.unit, self.contrast.delta)
        return fresh_seeds(self.spread or 0.0, margin)

    @property
    def seeds(self) -> list[int]:
        """The fresh seeds that are finished, or the tuning seeds until two of them are."""
        asked = range(TUNING_SEEDS, TUNING_SEEDS + self.wanted)
        fresh = [seed for seed in asked if seed in self.d]
        return fresh if len(fresh) > 1 else [seed for seed in self.d if seed < TUNING_SEEDS]


def places(contrast: Contrast, points: Sequence[Point], measured: Metric) -> list[Place]:
    """Return the places of a contrast with its tuned arms.

    There is a place for all values of `contrast.each` and every pair of arms that have runs.

    Raises:
        ConfigError: the contrast is invalid, or selects no run of the study.
    """
    if problems := [*form_problems(contrast)]:
        raise ConfigError("; ".join(problems))
    return [_place(there, own, measured, name) for there, name, own in _where(contrast, points)]


def _where(
    contrast: Contrast, points: Sequence[Point]
) -> Iterator[tuple[Contrast, str, list[Point]]]:
    """Yield the contrast, the name and the runs of every place."""
    of_a, of_b = arms_of(contrast)
    found = False
    for values in distinct(points, contrast.each):
        own = [point for point in points if values_at(point, contrast.each) == values]
        for a, b in itertools.product(of_a, of_b):
            if all(any(picks(arm, p.values) for p in own) for arm in (a, b)):
                found = True
                words = [named_value(*pair) for pair in zip(contrast.each, values, strict=True)]
                if len(of_a) > 1:
                    words.append(_words(a))
                if len(of_b) > 1:
                    words.append(f"against {_words(b)}")
                yield replace(contrast, a=a, b=b), ", ".join(words), own
    if not found:
        yield replace(contrast, a=of_a[0], b=of_b[0]), "", list(points)


def _words(overrides: str) -> str:
    return ", ".join(value_label(value) for value in overridden(overrides).values())


def _place(contrast: Contrast, points: Sequence[Point], measured: Metric, name: str) -> Place:
    a, b = (
        tune(overrides, points, measured, f"study.contrast.{side}")
        for side, overrides in (("a", contrast.a), ("b", contrast.b))
    )
    seeds = sorted(a.values.keys() & b.values.keys())
    d = differences(contrast.unit, [a.values[s] for s in seeds], [b.values[s] for s in seeds])
    return Place(name, contrast, a, b, dict(zip(seeds, d.tolist(), strict=True)))


def fresh_seeds(spread: float, margin: float) -> int:
    """Return how many fresh seeds the rule compares.

    This is the smallest number from `FEWEST` to `MOST` whose interval of d, at the level of the
    correction, is expected to have a half-width of at most half the margin.
    """
    level = SIGNIFICANCE / CONTRASTS
    for n in range(FEWEST, MOST):
        if stats.t.ppf(1 - level / 2, n - 1) * spread / math.sqrt(n) <= margin / 2:
            return n
    return MOST


def differences(unit: str, of_a: Sequence[float], of_b: Sequence[float]) -> np.ndarray:
    """Return d, which is log2(a / b) if the unit is a ratio."""
    a, b = np.array(of_a), np.array(of_b)
    return np.log2(a / b) if unit == "ratio" else a - b


def margin_of(unit: str, delta: float) -> float:
    """Return delta in the unit of d."""
    return math.log2(delta) if unit == "ratio" else delta
