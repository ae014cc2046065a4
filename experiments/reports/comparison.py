"""The primary contrast of a study, compared by seed, and the verdict on its claim.

Per seed d = a - b, in points of accuracy, or log2(a / b) where the unit is a ratio. The rule: a
two-sided t-test of d against delta for "greater"; two one-sided tests at -delta and delta for
"equal" (Schuirmann 1987); Holm's correction (1979) over the primary contrasts of all studies. It
wants eight seeds of both arms, and the arms tuned alike; until then the verdict is open.
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

from experiments.config import Contrast
from experiments.errors import ConfigError, choice
from experiments.reports.arms import Arm, Tuned, overridden, tune
from experiments.reports.metrics import Metric, mean_interval, metric
from experiments.reports.results import Point, distinct, key_label, value_label

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
CANNOT_TELL = "cannot tell here"
SIGNIFICANCE = 0.05
SEEDS = 8  # of both arms, at least
NOTHING_TOLD = "every seed of both arms diverged or missed its target, which says nothing of it"
DIRECTIONS = ("greater", "equal")
UNITS = ("points", "ratio")


@dataclass(frozen=True)
class Comparison:
    """What the seeds say of a contrast. d, delta, mean and the intervals are log2 for a ratio.

    Attributes:
        open_because: what keeps the rule from a verdict on it; None where there is nothing.
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

    @property
    def tuned(self) -> bool:
        """Whether an arm chose among several runs."""
        return max(len(self.a.trials), len(self.b.trials)) > 1

    def shown(self, value: float, *, sign: bool = True) -> str:
        """Return a difference with its unit."""
        if self.unit == "ratio":
            return f"{2**value:.3g}x"
        return f"{value:+.2f} points" if sign else f"{value:g} points"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Comparison":
        return cls(**{**values, "a": Arm(**values["a"]), "b": Arm(**values["b"])})


def compare(contrast: Contrast, points: Sequence[Point]) -> Comparison | str:
    """Return the comparison of a study's runs, or why there is none yet.

    Raises:
        ConfigError: the contrast is not one, or picks no run of the study.
    """
    _check(contrast)
    measured = metric(contrast.metric, points)
    a, b = (
        tune(overrides, points, measured, f"study.contrast.{side}")
        for side, overrides in (("a", contrast.a), ("b", contrast.b))
    )
    for tuned in (a, b):
        if tuned.best is None:
            return f"no seed of {tuned.arm.overrides} is finished"
    of_a, of_b = measured.values(a.best), measured.values(b.best)
    seeds = sorted(of_a.keys() & of_b.keys())
    if len(seeds) < 2:
        return f"{len(seeds)} seeds of both arms are finished, and a comparison needs two"
    d = _differences(contrast, [of_a[seed] for seed in seeds], [of_b[seed] for seed in seeds])
    delta = math.log2(contrast.delta) if contrast.unit == "ratio" else contrast.delta
    told = _told(measured, (a, b), seeds)
    return Comparison(
        a.arm,
        b.arm,
        metric=measured.label,
        direction=contrast.direction,
        unit=contrast.unit,
        delta=delta,
        seeds=seeds,
        d=d.tolist(),
        mean=float(np.mean(d)),
        interval95=mean_interval(d)[1:],
        interval90=mean_interval(d, 0.90)[1:],
        p=p_value(d, delta, contrast.direction) if told else 1.0,
        remarks=_remarks(measured, (a, b), seeds),
        open_because=_open_because((a, b), seeds) if told else NOTHING_TOLD,
    )


def _check(contrast: Contrast) -> None:
    problems = [
        *choice("study.contrast.direction", contrast.direction, DIRECTIONS),
        *choice("study.contrast.unit", contrast.unit, UNITS),
    ]
    least = 1 if contrast.unit == "ratio" else 0
    if not contrast.delta >= least:
        problems.append(f"study.contrast.delta is {contrast.delta}; give {least} or more")
    if problems:
        raise ConfigError("; ".join(problems))


def along(
    contrast: Contrast, points: Sequence[Point], x: str | None
) -> list[tuple[str, Comparison]]:
    """Return the contrast at every value of a key at which its arms have the same one.

    These are secondary contrasts (but for the one that the study names), which get no verdict.
    """
    arms = [overridden(contrast.a), overridden(contrast.b)]
    if x is None or any(x not in arm for arm in arms) or arms[0][x] != arms[1][x]:
        return []
    left = [
        " ".join(override for override in arm.split() if not override.startswith(f"{x}="))
        for arm in (contrast.a, contrast.b)
    ]
    everywhere = replace(contrast, a=left[0], b=left[1])
    compared = []
    for (value,) in distinct(points, [x]):
        here = [point for point in points if point.values.get(x) == value]
        with contextlib.suppress(ConfigError):  # an arm has no run there
            compared.append((f"{key_label(x)} {value_label(value)}", compare(everywhere, here)))
    return [(name, each) for name, each in compared if isinstance(each, Comparison)]


def _differences(contrast: Contrast, of_a: Sequence[float], of_b: Sequence[float]) -> np.ndarray:
    a, b = np.array(of_a), np.array(of_b)
    return np.log2(a / b) if contrast.unit == "ratio" else a - b


def p_value(d: np.ndarray, delta: float, direction: str) -> float:
    """Return the p-value of the rule, before Holm's correction."""
    if np.std(d) <= 1e-9 * max(1.0, float(np.max(np.abs(d)))):  # no spread: the sign is certain
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
    """Return the word of the rule."""
    low, high = compared.interval95
    if compared.direction == "equal":
        if adjusted_p < SIGNIFICANCE:
            return HOLDS
        outside = low > compared.delta or high < -compared.delta
        return DOES_NOT_HOLD if outside else CANNOT_TELL
    if adjusted_p < SIGNIFICANCE:
        return HOLDS if compared.mean > compared.delta else DOES_NOT_HOLD
    return CANNOT_TELL


def note(compared: Comparison) -> str:
    """Return what the 90 % interval says beside the verdict: "no difference", "reversed" or ""."""
    low, high = compared.interval90
    if -compared.delta <= low and high <= compared.delta:
        return "no difference"
    return "reversed" if compared.direction == "greater" and high < 0 else ""


def _told(measured: Metric, arms: Sequence[Tuned], seeds: Sequence[int]) -> bool:
    """Whether any of the seeds measured something: a budget or chance alone is no measurement."""
    used = [tuned.best.seeds[seed] for tuned in arms for seed in seeds]
    return any(seed.reached_target if measured.of_steps else not seed.diverged for seed in used)


def _open_because(arms: Sequence[Tuned], seeds: Sequence[int]) -> str | None:
    """Return what the rule wants and is not there, with what makes it."""
    lacking = [lack for tuned in arms for lack in _lacking(tuned)]
    if len(seeds) < SEEDS:
        lacking.insert(0, f"{len(seeds)} of {SEEDS} seeds of both arms are there")
    cures = [_training(arms[0].best)] if lacking else []
    a, b = (len(tuned.asked) for tuned in arms)
    if a != b:
        lacking.append(f"the arms have unequal numbers of trials, {a} and {b}")
        cures.append("give both arms as many")
    return f"open, as {'; '.join(lacking)} ({', and '.join(cures)})" if lacking else None


def _lacking(tuned: Tuned) -> Iterator[str]:
    """Yield what an arm lacks of its trials."""
    overrides, asked = tuned.arm.overrides, len(tuned.asked)
    finished = sum(not point.missing for point in tuned.asked)
    if finished < asked:
        yield f"{overrides}: {finished} of {asked} trials are finished"
    stale = sum(bool(point.stale) for point in tuned.asked)
    if stale:
        yield f"{overrides}: {stale} of {asked} trials are stale, made by other code than today's"


def _training(point: Point) -> str:
    """Return what trains what is missing or stale of a study."""
    study, seeds = point.config.study.name, max(SEEDS, point.config.seeds)
    return f"train with: python -m experiments.train --multirun study={study} seeds={seeds}"


def _remarks(measured: Metric, arms: Sequence[Tuned], seeds: Sequence[int]) -> list[str]:
    remarks = []
    for tuned in arms:
        best, overrides = tuned.best, tuned.arm.overrides
        used = [best.seeds[seed] for seed in seeds]
        lost = sum(not seed.reached_target for seed in used)
        if measured.of_steps and lost:
            remarks.append(
                f"{overrides}: {lost} of {len(used)} seeds did not reach the target and count "
                f"as the budget of {best.budget} steps."
            )
        diverged = sum(seed.diverged for seed in used)
        if diverged:
            remarks.append(f"{overrides}: {diverged} of {len(used)} seeds diverged.")
    return remarks
