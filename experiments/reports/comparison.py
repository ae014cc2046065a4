"""The primary contrast of a study, compared by seed, and the verdict on its claim.

For each seed d = a - b, in points of accuracy or in decades, or log2(a / b) if the unit is a ratio.
If a study compares at several places, such as models, d is the mean over them. The rule: a
two-sided t-test of d against delta for "greater"; two one-sided tests at -delta and delta for
"equal" (Schuirmann 1987); Holm's correction (1979) over the primary contrasts of all studies. It
requires eight seeds of both arms and equal tuning of the arms. Until then the verdict is open.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from experiments.config import Contrast
from experiments.errors import ConfigError
from experiments.launch.contrast import form_problems
from experiments.launch.selection import overridden, picks
from experiments.reports.arms import Arm, Tuned, tune
from experiments.reports.metrics import Metric, mean_interval, metric
from experiments.reports.results import (
    Point,
    distinct,
    is_numeric,
    key_label,
    swept_keys,
    value_label,
    values_at,
)

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
CANNOT_TELL = "cannot tell here"
OPEN = "open"
SIGNIFICANCE = 0.05
SEEDS = 8  # the smallest number of seeds for a verdict
UNINFORMATIVE = (
    "every seed of both arms diverged or missed its target, so there is nothing to compare"
)


@dataclass(frozen=True)
class Comparison:
    """The comparison of two arms. For a ratio, d, delta, mean and the intervals are log2.

    Attributes:
        open_because: the reason why the rule gives no verdict; None if there is none.
        places: the number of places at which the arms are tuned and compared.
        levels: for each place by name, the metric of every seed of a and of b.
    """

    a: Arm
    b: Arm
    metric: str
    direction: str
    unit: str
    delta: float
    seeds: list[int]
    d: list[float]
    mean: float
    interval95: tuple[float, float]
    interval90: tuple[float, float]
    p: float
    remarks: list[str]
    open_because: str | None
    places: int = 1
    levels: dict[str, list[list[float]]] = field(default_factory=dict)

    @property
    def tuned(self) -> bool:
        """Whether an arm chose among several trials."""
        return max(len(self.a.trials), len(self.b.trials)) > self.places

    def text(self, value: float, *, sign: bool = True) -> str:
        """Return a difference with its unit."""
        if self.unit == "ratio":
            return f"{2**value:.3g}x"
        return f"{value:+.2f} {self.unit}" if sign else f"{value:g} {self.unit}"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Comparison":
        return cls(**{**values, "a": Arm(**values["a"]), "b": Arm(**values["b"])})


class _Place(NamedTuple):
    """A place where the arms are tuned and compared, with the difference for each common seed."""

    name: str
    arms: tuple[Tuned, Tuned]
    d: dict[int, float]


def compare(contrast: Contrast, points: Sequence[Point], x: str | None = None) -> Comparison | str:
    """Return the comparison of the runs of a study, or the reason why there is none yet.

    Args:
        x: the key along which the study sweeps.

    Raises:
        ConfigError: the contrast is invalid, or selects no run of the study.
    """
    if problems := [*form_problems(contrast)]:
        raise ConfigError("; ".join(problems))
    measured = metric(contrast.metric, points, x)
    places = [_place(contrast, own, measured, where) for where, own in _places(contrast, points)]
    tuned = [each for place in places for each in place.arms]
    for each in tuned:
        if not each.best:
            return f"no seed of {each.arm.overrides} is finished"
    seeds = sorted(set.intersection(*(set(place.d) for place in places)))
    if len(seeds) < 2:
        return f"{len(seeds)} seeds of both arms are finished, and a comparison needs two"
    d = np.mean([[place.d[seed] for seed in seeds] for place in places], axis=0)
    delta = math.log2(contrast.delta) if contrast.unit == "ratio" else contrast.delta
    informative = _informative(measured, tuned, seeds)
    a, b = (_merged([place.arms[side].arm for place in places]) for side in (0, 1))
    return Comparison(
        a,
        b,
        metric=measured.label,
        direction=contrast.direction,
        unit=contrast.unit,
        delta=delta,
        seeds=seeds,
        d=d.tolist(),
        mean=float(np.mean(d)),
        interval95=mean_interval(d)[1:],
        interval90=mean_interval(d, 0.90)[1:],
        p=p_value(d, delta, contrast.direction) if informative else 1.0,
        remarks=[remark for place in places for remark in _remarks(measured, place, seeds)],
        open_because=_open_because(places, seeds) if informative else UNINFORMATIVE,
        places=len(places),
        levels={
            place.name: [[arm.values[seed] for seed in seeds] for arm in place.arms]
            for place in places
        },
    )


def _places(contrast: Contrast, points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """Return the name and the runs of every place that both arms have."""
    places = []
    for values in distinct(points, contrast.each):
        own = [point for point in points if values_at(point, contrast.each) == values]
        if all(any(picks(arm, p.values) for p in own) for arm in (contrast.a, contrast.b)):
            places.append((", ".join(map(value_label, values)), own))
    return places or [("", list(points))]


def _place(contrast: Contrast, points: Sequence[Point], measured: Metric, where: str) -> _Place:
    a, b = (
        tune(overrides, points, measured, f"study.contrast.{side}")
        for side, overrides in (("a", contrast.a), ("b", contrast.b))
    )
    seeds = sorted(a.values.keys() & b.values.keys())
    d = _differences(contrast, [a.values[s] for s in seeds], [b.values[s] for s in seeds])
    named = tuple(each._replace(arm=_named(each.arm, where)) for each in (a, b))
    return _Place(where, named, dict(zip(seeds, d.tolist(), strict=True)))


def _named(arm: Arm, where: str) -> Arm:
    """Add the name of the place to every trial."""
    if not where:
        return arm
    trials = [(f"{where}: {name}", score) for name, score in arm.trials]
    return replace(arm, trials=trials, chosen=f"{where}: {arm.chosen}")


def _merged(arms: Sequence[Arm]) -> Arm:
    trials = [trial for arm in arms for trial in arm.trials]
    return replace(arms[0], trials=trials, chosen="; ".join(arm.chosen for arm in arms))


def along(
    contrast: Contrast, points: Sequence[Point], x: str | None
) -> list[tuple[str, Comparison]]:
    """Return the contrast at each of its places, and at every value of a key that its arms share.

    These are secondary contrasts (except the one that the study names), which get no verdict.
    """
    compared = []
    for name, contrast_there, own in [*_at_places(contrast, points), *_at(contrast, points, x)]:
        with contextlib.suppress(ConfigError):  # an arm has no run at this value
            compared.append((name, compare(contrast_there, own, x)))
    return [(name, each) for name, each in compared if isinstance(each, Comparison)]


def _at_places(
    contrast: Contrast, points: Sequence[Point]
) -> Iterator[tuple[str, Contrast, list[Point]]]:
    if contrast.each:
        for name, own in _places(contrast, points):
            yield name, replace(contrast, each=[]), own


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


def _differences(contrast: Contrast, of_a: Sequence[float], of_b: Sequence[float]) -> np.ndarray:
    a, b = np.array(of_a), np.array(of_b)
    return np.log2(a / b) if contrast.unit == "ratio" else a - b


def p_value(d: np.ndarray, delta: float, direction: str) -> float:
    """Return the p-value of the rule, before Holm's correction."""
    if np.std(d) <= 1e-9 * max(1.0, float(np.max(np.abs(d)))):  # no deviation: the sign is certain
        mean = float(np.mean(d))
        certain = abs(mean) < delta if direction == "equal" else not math.isclose(mean, delta)
        return 0.0 if certain else 1.0
    if direction == "equal":
        return float(ttost_paired(d, np.zeros_like(d), -delta, delta)[0])
    return float(stats.ttest_1samp(d, delta).pvalue)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's correction."""
    return multipletests(p_values, method="holm")[1].tolist() if p_values else []


def verdict(compared: Comparison, adjusted_p: float) -> str:
    """Return the verdict of the rule."""
    low, high = compared.interval95
    if compared.direction == "equal":
        if adjusted_p < SIGNIFICANCE:
            return HOLDS
        outside = low > compared.delta or high < -compared.delta
        return DOES_NOT_HOLD if outside else CANNOT_TELL
    if adjusted_p < SIGNIFICANCE:
        return HOLDS if compared.mean > compared.delta else DOES_NOT_HOLD
    return CANNOT_TELL


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
    within = -compared.delta <= low <= 0 <= high <= compared.delta
    return "no difference" if within else ""


def _informative(measured: Metric, arms: Sequence[Tuned], seeds: Sequence[int]) -> bool:
    """Return whether any seed measured something: neither only the budget nor only chance."""
    used = [point.seeds[seed] for tuned in arms for point in tuned.best for seed in seeds]
    rests_on_target = measured.of_steps or measured.over is not None
    return any(seed.reached_target if rests_on_target else not seed.diverged for seed in used)


def _open_because(places: Sequence[_Place], seeds: Sequence[int]) -> str | None:
    """Return what the rule requires and is missing, with the command for it."""
    tuned = [each for place in places for each in place.arms]
    lacking = [lack for each in tuned for lack in _lacking(each)]
    if len(seeds) < SEEDS:
        lacking.insert(0, f"{len(seeds)} of {SEEDS} seeds of both arms are there")
    cures = [_training(tuned[0].best[0])] if lacking else []
    for place in places:
        a, b = (len(each.asked) for each in place.arms)
        if a != b:
            lacking.append(f"the arms have unequal numbers of trials, {a} and {b}")
            cures.append("give both arms as many")
    return f"{'; '.join(lacking)} ({', and '.join(cures)})" if lacking else None


def _lacking(tuned: Tuned) -> Iterator[str]:
    """Yield what is missing in the trials of an arm."""
    overrides, asked = tuned.arm.overrides, len(tuned.asked)
    finished = sum(not any(point.missing for point in trial) for trial in tuned.asked)
    if finished < asked:
        yield f"{overrides}: {finished} of {asked} trials are finished"
    stale = sum(any(point.stale for point in trial) for trial in tuned.asked)
    if stale:
        yield f"{overrides}: {stale} of {asked} trials are stale, made by other code than today's"


def _training(point: Point) -> str:
    """Return the command that trains missing or stale runs of a study."""
    study, seeds = point.config.study.name, max(SEEDS, point.config.seeds)
    return f"train with: python -m experiments.train --multirun study={study} seeds={seeds}"


def _remarks(measured: Metric, place: _Place, seeds: Sequence[int]) -> Iterator[str]:
    for tuned in place.arms:
        said = tuned.arm.overrides + (f" ({place.name})" if place.name else "")
        yield from _remarks_on(measured, tuned, said, seeds)


def _remarks_on(
    measured: Metric, tuned: Tuned, overrides: str, seeds: Sequence[int]
) -> Iterator[str]:
    if measured.over is not None:
        yield from _ends(measured.over, tuned.best, overrides, seeds)
        return
    [best] = tuned.best
    yield from _at_an_end(tuned, best, overrides)
    used = [best.seeds[seed] for seed in seeds]
    lost = sum(not seed.reached_target for seed in used)
    if measured.of_steps and lost:
        yield (
            f"{overrides}: {lost} of {len(used)} seeds did not reach the target and count "
            f"as the budget of {best.budget} steps."
        )
    diverged = sum(seed.diverged for seed in used)
    if diverged:
        yield f"{overrides}: {diverged} of {len(used)} seeds diverged."


def _at_an_end(tuned: Tuned, best: Point, overrides: str) -> Iterator[str]:
    """Yield a remark for each grid whose first or last value an arm chose.

    Better values may lie beyond the end.
    """
    points = [point for trial in tuned.asked for point in trial]
    for key in swept_keys(points):
        values = [value for (value,) in distinct(points, [key])]
        chosen = best.values[key]
        if is_numeric(values) and chosen in (values[0], values[-1]):
            end = "smallest" if chosen == values[0] else "largest"
            yield (
                f"{overrides}: the {key_label(key)} chosen, {value_label(chosen)}, is the {end} of "
                "its grid."
            )


def _ends(over: str, trial: Sequence[Point], overrides: str, seeds: Sequence[int]) -> Iterator[str]:
    """Yield a remark for each end of the grid at which seeds train: the range may go further."""
    ordered = sorted(trial, key=lambda point: point.values[over])
    for end, point in (("smallest", ordered[0]), ("largest", ordered[-1])):
        training = sum(point.seeds[seed].reached_target for seed in seeds)
        if training:
            value = value_label(point.values[over])
            yield (
                f"{overrides}: {training} of {len(seeds)} seeds train at the {end} "
                f"{key_label(over)} of the grid, {value}, and may do so beyond it."
            )
