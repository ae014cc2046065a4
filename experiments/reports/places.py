"""The places where the arms of a contrast are tuned and compared.

The first `TUNING_SEEDS` seeds tune the arms, and the standard deviation of their d determines how
many fresh seeds are compared (two stages, after Stein 1945). Where these decide nothing, further
seeds are compared once more, in a third stage. Each comparison tests its own seeds, with their own
standard deviation, so the t-test is exact whatever their number was determined by.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from experiments.config import Contrast
from experiments.errors import ConfigError
from experiments.launch.contrast import arms_of, form_problems
from experiments.launch.selection import overridden, picks
from experiments.reports.arms import TUNING_SEEDS, Tuned, tune
from experiments.reports.metrics import Metric
from experiments.reports.results import Point, distinct, named_value, value_label, values_at
from experiments.reports.rule import (
    CANNOT_TELL,
    CONTRASTS,
    MOST,
    bounds_of,
    differences,
    distance_to_bounds,
    fresh_seeds,
    margin_of,
    overall,
    p_value,
    verdict,
)


class Place(NamedTuple):
    """A place where the arms are tuned and compared.

    Attributes:
        contrast: the contrast of this place.
        d: the difference for each common seed.
        third: the seeds of the third stage; none if the second decides.
    """

    name: str
    contrast: Contrast
    a: Tuned
    b: Tuned
    d: dict[int, float]
    third: range = range(0)

    @property
    def spread(self) -> float | None:
        """The standard deviation of d over the tuning seeds."""
        first = [d for seed, d in self.d.items() if seed < TUNING_SEEDS]
        return float(np.std(first, ddof=1)) if len(first) > 1 else None

    @property
    def second(self) -> range:
        """The fresh seeds of the second stage."""
        return range(TUNING_SEEDS, TUNING_SEEDS + fresh_seeds(self.spread or 0.0, self._margin))

    @property
    def last(self) -> range:
        """The fresh seeds of the last stage that the rule asks for."""
        return self.third or self.second

    @property
    def seeds(self) -> list[int]:
        """The seeds that are compared: those of the last stage of which two are finished."""
        for stage in (self.third, self.second):
            if len(finished := self.finished(stage)) > 1:
                return finished
        return self.finished(range(TUNING_SEEDS))

    def finished(self, stage: range) -> list[int]:
        """Return the seeds of a stage that are finished in both arms."""
        return [seed for seed in stage if seed in self.d]

    @property
    def second_word(self) -> str | None:
        """The verdict of the second stage at the level of the correction; None before its end."""
        if len(self.finished(self.second)) < len(self.second):
            return None
        p = p_value(self._d_second, self._bounds)
        return verdict(self._d_second, self._bounds, CONTRASTS * p)

    def with_third_stage(self) -> "Place":
        """Return the place with a third stage, unless the second has the most seeds.

        The half-width of the third interval is at most half the distance between the mean of the
        second stage and the bound that d is tested against, where `MOST` seeds suffice.
        """
        if len(self.second) == MOST:
            return self
        distance = distance_to_bounds(self._d_second, self._bounds)
        number = fresh_seeds(float(np.std(self._d_second, ddof=1)), distance)
        return self._replace(third=range(self.second.stop, self.second.stop + number))

    @property
    def _margin(self) -> float:
        return margin_of(self.contrast.unit, self.contrast.delta)

    @property
    def _bounds(self) -> list[float]:
        return bounds_of(self.contrast.direction, self._margin)

    @property
    def _d_second(self) -> np.ndarray:
        return np.array([self.d[seed] for seed in self.second])


def places(contrast: Contrast, points: Sequence[Point], measured: Metric) -> list[Place]:
    """Return the places of a contrast with its tuned arms.

    There is a place for all values of `contrast.each` and every pair of arms that have runs. If the
    second stage does not decide the claim, the places that cannot tell have a third.

    Raises:
        ConfigError: the contrast is invalid, or selects no run of the study.
    """
    if problems := [*form_problems(contrast)]:
        raise ConfigError("; ".join(problems))
    found = [_place(there, own, measured, name) for there, name, own in _where(contrast, points)]
    words = [place.second_word for place in found]
    if None in words or overall(words) != CANNOT_TELL:
        return found
    return [
        place.with_third_stage() if word == CANNOT_TELL else place
        for place, word in zip(found, words, strict=True)
    ]


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
