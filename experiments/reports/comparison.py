"""The primary contrast of a study, compared by seed at every place, and the verdict on its claim.

For each seed d = a - b, in points of accuracy, nats or decades, or log2(a / b) if the unit is a
ratio. `experiments.reports.places` determines the seeds, `experiments.reports.rule` the verdict.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.config import FITTED_LOSS, Contrast
from experiments.errors import ConfigError
from experiments.launch.contrast import DECADES
from experiments.launch.selection import overridden
from experiments.reports.arms import TUNING_SEEDS, Arm, Tuned, ends_text
from experiments.reports.metrics import Metric, mean_interval, metric, trained_values
from experiments.reports.places import Place, places
from experiments.reports.ranges import ends_that_train, wide_gaps
from experiments.reports.results import Point, distinct, key_label, value_label
from experiments.reports.rule import (
    DOES_NOT_HOLD,
    bounds_of,
    differences,
    margin_of,
    p_value,
    verdict,
)

UNINFORMATIVE = (
    "every seed of both arms diverged or missed its target, so there is nothing to compare"
)


@dataclass(frozen=True)
class Comparison:
    """The comparison of two arms at one place. All but the stored values follows from them.

    Attributes:
        place: the name of the place; "" if the study has one.
        delta: the difference that would matter, in the unit.
        seeds: the seeds that are compared.
        levels: the metric of each of these seeds, for "a" and "b".
        spread: the standard deviation of d over the tuning seeds; None if there are fewer than two.
        open_because: what the rule requires and is missing; None if nothing is.
        undecided: the seeds and levels of a second stage that decided nothing, if those of a third
            stage are compared.
    """

    place: str
    a: Arm
    b: Arm
    metric: str
    direction: str
    unit: str
    delta: float
    seeds: list[int]
    levels: dict[str, list[float]]
    spread: float | None
    remarks: list[str]
    open_because: str | None
    undecided: dict[str, Any] | None = None

    @property
    def d(self) -> np.ndarray:
        return differences(self.unit, self.levels["a"], self.levels["b"])

    @property
    def mean(self) -> float:
        return float(np.mean(self.d))

    @property
    def interval95(self) -> tuple[float, float]:
        return mean_interval(self.d)[1:]

    @property
    def interval90(self) -> tuple[float, float]:
        return mean_interval(self.d, 0.90)[1:]

    @property
    def margin(self) -> float:
        """Delta in the unit of d."""
        return margin_of(self.unit, self.delta)

    @property
    def bounds(self) -> list[float]:
        """The differences that d is tested against."""
        return bounds_of(self.direction, self.margin)

    @property
    def p(self) -> float:
        """The p-value of the rule, before Holm's correction."""
        return p_value(self.d, self.bounds)

    def verdict(self, adjusted_p: float) -> str:
        """Return the verdict of the rule."""
        return verdict(self.d, self.bounds, adjusted_p)

    @property
    def earlier(self) -> "Comparison | None":
        """The comparison of the second stage, if that of the third is this one."""
        if self.undecided is None:
            return None
        return replace(self, **self.undecided, undecided=None, remarks=[], open_because=None)

    @property
    def level_means(self) -> tuple[float, float]:
        """The mean of the metric in a and b, which is geometric for a ratio."""
        a, b = (np.array(self.levels[side]) for side in "ab")
        if self.unit == "ratio":
            return float(2 ** np.mean(np.log2(a))), float(2 ** np.mean(np.log2(b)))
        return float(np.mean(a)), float(np.mean(b))

    @property
    def tuned(self) -> bool:
        """Whether an arm chose among several trials."""
        return max(len(self.a.trials), len(self.b.trials)) > 1

    def at_place(self, text: str) -> str:
        """Return a text with the name of the place before it, if it has one."""
        return f"{self.place}: {text}" if self.place else text

    def text(self, value: float, *, sign: bool = True) -> str:
        """Return a difference with its unit."""
        if self.unit == "ratio":
            return f"{2**value:.3g}x"
        digits = 3 if self.unit == "nats" else 2
        return f"{value:+.{digits}f} {self.unit}" if sign else f"{value:g} {self.unit}"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Comparison":
        return cls(**{**values, "a": Arm(**values["a"]), "b": Arm(**values["b"])})


def compare(
    contrast: Contrast, points: Sequence[Point], x: str | None = None
) -> list[Comparison] | str:
    """Return the comparison at every place of a study, or the reason why there is none yet.

    Args:
        x: the key along which the study sweeps.

    Raises:
        ConfigError: the contrast is invalid, or selects no run of the study.
    """
    measured = metric(contrast.metric, points, x)
    found = places(contrast, points, measured)
    for each in (tuned for place in found for tuned in (place.a, place.b)):
        if not each.best:
            return f"no seed of {each.arm.overrides} is finished"
    fewest = min(len(place.d) for place in found)
    if fewest < 2:
        seeds = "1 seed" if fewest == 1 else f"{fewest} seeds"
        return f"finished in both arms: {seeds}, and a comparison needs two"
    return [_comparison(measured, place) for place in found]


def _comparison(measured: Metric, place: Place) -> Comparison:
    contrast, seeds = place.contrast, place.seeds
    return Comparison(
        place.name,
        place.a.arm,
        place.b.arm,
        metric=measured.label,
        direction=contrast.direction,
        unit=contrast.unit,
        delta=contrast.delta,
        **_compared(place, seeds),
        spread=place.spread,
        remarks=[*_remarks(measured, place, seeds)],
        open_because=_open_because(measured, place, seeds),
        undecided=_compared(place, list(place.second)) if seeds[0] in place.third else None,
    )


def _compared(place: Place, seeds: list[int]) -> dict[str, Any]:
    arms = {"a": place.a, "b": place.b}
    levels = {side: [tuned.values[seed] for seed in seeds] for side, tuned in arms.items()}
    return {"seeds": seeds, "levels": levels}


def along(
    contrast: Contrast, points: Sequence[Point], x: str | None
) -> list[tuple[str, Comparison]]:
    """Return the contrast at every value of a key that its arms share.

    These are secondary contrasts (except the one that the study names), which get no verdict.
    """
    compared: list[tuple[str, Comparison]] = []
    for name, contrast_there, own in _at(contrast, points, x):
        with contextlib.suppress(ConfigError):  # an arm has no run at this value
            there = compare(contrast_there, own, x)
            found = [] if isinstance(there, str) else there
            compared += [(", ".join(filter(None, [name, each.place])), each) for each in found]
    return compared


def _at(
    contrast: Contrast, points: Sequence[Point], x: str | None
) -> Iterator[tuple[str, Contrast, list[Point]]]:
    arms = [overridden(contrast.a), overridden(contrast.b)]
    if x is None or any(x not in arm for arm in arms) or arms[0][x] != arms[1][x]:
        return
    left = [
        " ".join(override for override in arm.split() if not override.startswith(f"{x}="))
        for arm in (contrast.a, contrast.b)
    ]
    for (value,) in distinct(points, [x]):
        here = [point for point in points if point.values.get(x) == value]
        yield (
            f"{key_label(x)} {value_label(value)}",
            replace(contrast, a=left[0], b=left[1]),
            here,
        )


def note(compared: Comparison, word: str) -> str:
    """Return the note beside "does not hold" of a claim of more; "" otherwise."""
    if word != DOES_NOT_HOLD or compared.direction != "greater":
        return ""
    low, high = compared.interval95
    if high < 0:
        return "reversed"
    if low > 0:
        return "real, but smaller than delta"
    low, high = compared.interval90
    within = -compared.margin <= low <= 0 <= high <= compared.margin
    return "no difference" if within else ""


def _informative(measured: Metric, place: Place, seeds: Sequence[int]) -> bool:
    """Return whether any seed measured something: neither only the budget nor only chance."""
    best = [*place.a.best, *place.b.best]
    used = [point.seeds[seed] for point in best for seed in seeds if seed in point.seeds]
    rests_on_target = measured.of_steps or measured.over is not None
    return any(seed.reached_target if rests_on_target else not seed.diverged for seed in used)


def _open_because(measured: Metric, place: Place, seeds: Sequence[int]) -> str | None:
    """Return what the rule requires and is missing."""
    if not _informative(measured, place, seeds):
        return UNINFORMATIVE
    lacking = [lack for tuned in (place.a, place.b) for lack in _lacking(measured, tuned)]
    first, fresh = len(place.finished(range(TUNING_SEEDS))), len(place.finished(place.last))
    if first < TUNING_SEEDS:
        lacking.insert(0, f"{first} of {TUNING_SEEDS} tuning seeds of both arms are there")
    elif fresh < len(place.last):
        lacking.insert(0, f"{fresh} of {len(place.last)} fresh seeds of both arms are there")
    a, b = len(place.a.asked), len(place.b.asked)
    if a != b and place.a.arm.grid.keys() == place.b.arm.grid.keys():
        lacking.append(f"the arms have unequal numbers of trials, {a} and {b}")
    return "; ".join(lacking) or None


def _lacking(measured: Metric, tuned: Tuned) -> Iterator[str]:
    """Yield what is missing in the trials of an arm."""
    overrides, asked = tuned.arm.overrides, len(tuned.asked)
    finished = sum(not any(point.missing for point in trial) for trial in tuned.asked)
    if finished < asked:
        yield f"{overrides}: {finished} of {asked} trials are finished"
    stale = sum(any(point.stale for point in trial) for trial in tuned.asked)
    if stale:
        yield f"{overrides}: {stale} of {asked} trials are stale, made by other code than today's"
    if ends := ends_text(tuned.arm):
        yield ends
    if measured.over is not None:
        over = key_label(measured.over)
        for end in ends_that_train(measured, tuned.best):
            yield f"{overrides}: seeds train at the end of the grid of the {over}, {end:g}"
        for low, high in wide_gaps(measured, tuned.best):
            yield f"{overrides}: a range of the {over} ends between {low:g} and {high:g}"


def _remarks(measured: Metric, place: Place, seeds: Sequence[int]) -> Iterator[str]:
    """Yield which seeds of an arm are counted by a convention."""
    for tuned in (place.a, place.b):
        said = tuned.arm.overrides + (f" ({place.name})" if place.name else "")
        for lost, why in _counted(measured, tuned.best, seeds):
            if lost:
                yield f"{said}: {lost} of {len(seeds)} seeds {why}."


def _counted(
    measured: Metric, best: Sequence[Point], seeds: Sequence[int]
) -> Iterator[tuple[int, str]]:
    if measured.over is not None:
        nowhere = sum(not trained_values(best, measured.over, seed) for seed in seeds)
        counts = "no decade" if measured.key == DECADES else "half a decade below the grid"
        yield nowhere, f"train at no {key_label(measured.over)} of the grid and count as {counts}"
    if not measured.together:
        used = [best[0].seeds[seed] for seed in seeds]
        lost = sum(not seed.reached_target for seed in used)
        if measured.of_steps:
            budget = f"the budget of {best[0].budget} steps"
            yield lost, f"did not reach the target and count as {budget}"
        elif best[0].config.target_of == FITTED_LOSS:
            yield lost, "did not fall to the training loss"
        yield sum(seed.diverged for seed in used), "diverged"
