"""The primary contrast of a study, compared by seed at every place, and the verdict on its claim.

For each seed d = a - b, in points of accuracy, nats or decades, or log2(a / b) if the unit is a
ratio. The first `TUNING_SEEDS` seeds tune the arms, and the standard deviation of their d
determines how many other seeds are compared (`experiments.reports.places`). The rule for each
place: a two-sided t-test of d against delta for "greater", and against -delta for "at_least";
two one-sided tests at -delta and delta for "equal" (Schuirmann 1987); Holm's correction (1979) over
the places of all studies. A claim is of all its places (an intersection-union test, Berger 1982).
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from experiments.config import FITTED_LOSS, Contrast
from experiments.errors import ConfigError
from experiments.launch.contrast import DECADES
from experiments.launch.selection import overridden
from experiments.reports.arms import TUNING_SEEDS, Arm, Tuned, ends_text
from experiments.reports.metrics import Metric, mean_interval, metric, trained_values
from experiments.reports.places import SIGNIFICANCE, Place, differences, margin_of, places
from experiments.reports.ranges import ends_that_train, wide_gaps
from experiments.reports.results import Point, distinct, key_label, value_label

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
CANNOT_TELL = "cannot tell here"
OPEN = "open"
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
        within = {"greater": [self.margin], "at_least": [-self.margin]}
        return within.get(self.direction, [-self.margin, self.margin])

    @property
    def p(self) -> float:
        """The p-value of the rule, before Holm's correction."""
        return p_value(self.d, self.bounds)

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
        return f"{fewest} seeds of both arms are finished, and a comparison needs two"
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
        seeds=seeds,
        levels={
            side: [tuned.values[seed] for seed in seeds]
            for side, tuned in (("a", place.a), ("b", place.b))
        },
        spread=place.spread,
        remarks=[*_remarks(measured, place, seeds)],
        open_because=_open_because(measured, place, seeds),
    )


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


def p_value(d: np.ndarray, bounds: Sequence[float]) -> float:
    """Return the p-value of d against one bound, or of its equality between two bounds."""
    if np.std(d) <= 1e-9 * max(1.0, float(np.max(np.abs(d)))):  # no deviation: the sign is certain
        mean = float(np.mean(d))
        if len(bounds) == 2:
            return 0.0 if bounds[0] < mean < bounds[1] else 1.0
        return 1.0 if math.isclose(mean, bounds[0]) else 0.0
    if len(bounds) == 2:
        return float(ttost_paired(d, np.zeros_like(d), *bounds)[0])
    return float(stats.ttest_1samp(d, bounds[0]).pvalue)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's correction."""
    return multipletests(p_values, method="holm")[1].tolist() if p_values else []


def verdict(compared: Comparison, adjusted_p: float) -> str:
    """Return the verdict of the rule at a place."""
    if compared.direction == "equal":
        low, high = compared.interval95
        if adjusted_p < SIGNIFICANCE:
            return HOLDS
        outside = low > compared.margin or high < -compared.margin
        return DOES_NOT_HOLD if outside else CANNOT_TELL
    if adjusted_p < SIGNIFICANCE:
        return HOLDS if compared.mean > compared.bounds[0] else DOES_NOT_HOLD
    return CANNOT_TELL


def overall(words: Sequence[str]) -> str:
    """Return the verdict on a claim from those of its places: it is a claim of all of them."""
    for word in (DOES_NOT_HOLD, OPEN, CANNOT_TELL):
        if word in words:
            return word
    return HOLDS


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
    used = [point.seeds[seed] for point in best for seed in seeds]
    rests_on_target = measured.of_steps or measured.over is not None
    return any(seed.reached_target if rests_on_target else not seed.diverged for seed in used)


def _open_because(measured: Metric, place: Place, seeds: Sequence[int]) -> str | None:
    """Return what the rule requires and is missing."""
    if not _informative(measured, place, seeds):
        return UNINFORMATIVE
    lacking = [lack for tuned in (place.a, place.b) for lack in _lacking(measured, tuned)]
    first = sum(seed < TUNING_SEEDS for seed in place.d)
    fresh = sum(seed >= TUNING_SEEDS for seed in seeds)
    if first < TUNING_SEEDS:
        lacking.insert(0, f"{first} of {TUNING_SEEDS} tuning seeds of both arms are there")
    elif fresh < place.wanted:
        lacking.insert(0, f"{fresh} of {place.wanted} fresh seeds of both arms are there")
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
