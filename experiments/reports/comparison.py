"""The primary contrast of a study, compared by seed, and the verdict on its claim.

Per seed d = a - b, in points of accuracy, or log2(a / b) where the unit is a ratio. The rule: a
two-sided t-test of d against delta for "greater"; two one-sided tests at -delta and delta for
"equal" (Schuirmann 1987); Holm's correction (1979) over the primary contrasts of all studies.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from experiments.config import Contrast
from experiments.errors import ConfigError, choice
from experiments.reports.metrics import Metric, mean_interval, metric
from experiments.reports.results import Point, key_label, label, swept_keys, value_label

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
CANNOT_TELL = "cannot tell here"
SIGNIFICANCE = 0.05
DIRECTIONS = ("greater", "equal")
UNITS = ("points", "ratio")


@dataclass(frozen=True)
class Arm:
    """The runs that one side of a contrast may choose from, and what it chose.

    Attributes:
        trials: label and score of every run there is, by which the best was chosen.
        chosen: the label of the best.
    """

    overrides: str
    trials: list[tuple[str, float]]
    chosen: str


@dataclass(frozen=True)
class Comparison:
    """What the seeds say of a contrast. d, delta, mean and the intervals are log2 for a ratio."""

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

    def shown(self, value: float, *, sign: bool = True) -> str:
        """Return a difference with its unit."""
        if self.unit == "ratio":
            return f"{2**value:.3g}x"
        return f"{value:+.2f} points" if sign else f"{value:g} points"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

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
    keys = swept_keys(points)
    arms, chosen = [], []
    for side, overrides in (("a", contrast.a), ("b", contrast.b)):
        candidates = matching(overrides, points, f"study.contrast.{side}")
        there = [point for point in candidates if measured.values(point)]
        if not there:
            return f"no seed of {overrides} is finished"
        scores = [_score(point, measured) for point in there]
        best = there[int(np.argmax(scores))]
        shown = [abs(score) for score in scores]
        labels = [label(point, keys) for point in there]
        arms.append(Arm(overrides, list(zip(labels, shown, strict=True)), label(best, keys)))
        chosen.append((best, candidates, there))
    (a, *_), (b, *_) = chosen
    seeds = sorted(measured.values(a).keys() & measured.values(b).keys())
    if len(seeds) < 2:
        return f"{len(seeds)} seeds of both arms are finished, and a comparison needs two"
    d = _differences(contrast, measured, a, b, seeds)
    delta = math.log2(contrast.delta) if contrast.unit == "ratio" else contrast.delta
    return Comparison(
        *arms,
        metric=measured.label,
        direction=contrast.direction,
        unit=contrast.unit,
        delta=delta,
        seeds=seeds,
        d=d.tolist(),
        mean=float(np.mean(d)),
        interval95=mean_interval(d)[1:],
        interval90=mean_interval(d, 0.90)[1:],
        p=p_value(d, delta, contrast.direction),
        remarks=_remarks(measured, contrast, chosen, seeds),
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


def matching(overrides: str, points: Sequence[Point], where: str) -> list[Point]:
    """Return the runs that overrides such as "norm=batch optimizer.learning_rate=0.1" pick.

    Raises:
        ConfigError: they pick none.
    """
    wanted = dict(override.split("=", 1) for override in overrides.split() if "=" in override)
    values = {key: _parsed(value) for key, value in wanted.items()}
    found = [p for p in points if all(_same(p.values.get(k), v) for k, v in values.items())]
    if not found or len(wanted) < len(overrides.split()):
        there = "; ".join(
            f"{key}: {', '.join(dict.fromkeys(value_label(p.values.get(key)) for p in points))}"
            for key in swept_keys(points)
        )
        raise ConfigError(f"{where} is {overrides!r}, which picks no run of the study; {there}")
    return found


def _parsed(value: str) -> Any:
    parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
    return tuple(parsed) if isinstance(parsed, list) else parsed


def _same(value: Any, wanted: Any) -> bool:
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _score(point: Point, measured: Metric) -> float:
    """Return how good a run is on validation data, the higher the better.

    The target is one of validation accuracy, so steps to it are chosen by themselves.
    """
    if measured.of_steps:
        return -(2 ** float(np.mean(np.log2(list(measured.values(point).values())))))
    return 100 * float(
        np.mean([seed.result["validation_accuracy"] for seed in point.seeds.values()])
    )


def _differences(
    contrast: Contrast, measured: Metric, a: Point, b: Point, seeds: Sequence[int]
) -> np.ndarray:
    of_a, of_b = (np.array([measured.values(arm)[s] for s in seeds]) for arm in (a, b))
    return np.log2(of_a / of_b) if contrast.unit == "ratio" else of_a - of_b


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


def _remarks(
    measured: Metric, contrast: Contrast, chosen: Sequence[tuple], seeds: Sequence[int]
) -> list[str]:
    remarks = []
    for overrides, (best, candidates, there) in zip((contrast.a, contrast.b), chosen, strict=True):
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
        if len(there) < len(candidates):
            remarks.append(f"{overrides}: {len(there)} of {len(candidates)} trials are finished.")
    trials = [len(candidates) for _, candidates, _ in chosen]
    if trials[0] != trials[1]:
        remarks.append(
            f"The arms were tuned with unequal numbers of trials, {trials[0]} and {trials[1]}."
        )
    expected = chosen[0][0].config.seeds
    if len(seeds) < expected:
        remarks.append(f"Preliminary: {len(seeds)} of {expected} seeds.")
    return remarks


def trials_text(arm: Arm, measured: str) -> str:
    """Return the grid of an arm with its scores, and what won."""
    if len(arm.trials) == 1:
        return f"{arm.chosen} (one trial)"
    scores = "; ".join(f"{name}: {score:.4g}" for name, score in arm.trials)
    by = key_label(measured) if measured.startswith("steps") else "validation accuracy in %"
    return f"{arm.chosen}, the best of {len(arm.trials)} trials by {by} ({scores})"
