"""The two sides of a contrast: the runs that each may choose from, and which it chose.

Every arm is tuned alike, on validation data; the metric is read of what won alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from experiments.errors import ConfigError
from experiments.reports.metrics import Metric
from experiments.reports.results import Point, label, swept_keys, value_label

GEOMETRIC = "geometric mean of the steps to the target"


@dataclass(frozen=True)
class Arm:
    """One side of a contrast.

    Attributes:
        overrides: that pick its runs.
        trials: label and score of every run that has a finished seed.
        chosen: the label of the best.
        scored_by: what the scores are.
    """

    overrides: str
    trials: list[tuple[str, float]]
    chosen: str
    scored_by: str


class Tuned(NamedTuple):
    """An arm, the run it chose (None if none has a finished seed), and all that it asks for."""

    arm: Arm
    best: Point | None
    asked: list[Point]


def tune(overrides: str, points: Sequence[Point], measured: Metric, where: str) -> Tuned:
    """Return an arm with the run that has the best mean over seeds on validation data.

    Raises:
        ConfigError: the overrides pick no run; `where` says whose they are.
    """
    asked = matching(overrides, points, where)
    keys = swept_keys(asked) or swept_keys(points)
    there = [point for point in asked if point.seeds]
    scores = [_score(point, measured) for point in there]
    sign = -1 if measured.of_steps else 1
    best = there[int(np.argmax(sign * np.array(scores)))] if there else None
    arm = Arm(
        overrides,
        [(label(point, keys), score) for point, score in zip(there, scores, strict=True)],
        label(best, keys) if best else "",
        GEOMETRIC if measured.of_steps else "validation accuracy in %",
    )
    return Tuned(arm, best, asked)


def _score(point: Point, measured: Metric) -> float:
    """The target is one of validation accuracy, so steps to it are chosen by themselves."""
    if measured.of_steps:
        return measured.summary(point).mean
    reached = [seed.result["validation_accuracy"] for seed in point.seeds.values()]
    return 100 * float(np.mean(reached))


def matching(overrides: str, points: Sequence[Point], where: str) -> list[Point]:
    """Return the runs that overrides such as "norm=batch optimizer.learning_rate=0.1" pick.

    Raises:
        ConfigError: they pick none.
    """
    wanted = overridden(overrides)
    found = [p for p in points if all(_same(p.values.get(k), v) for k, v in wanted.items())]
    if not found or len(wanted) < len(overrides.split()):
        there = "; ".join(
            f"{key}: {', '.join(dict.fromkeys(value_label(p.values.get(key)) for p in points))}"
            for key in swept_keys(points)
        )
        raise ConfigError(f"{where} is {overrides!r}, which picks no run of the study; {there}")
    return found


def overridden(overrides: str) -> dict[str, Any]:
    """Return the values that overrides give, by key."""
    pairs = (override.split("=", 1) for override in overrides.split() if "=" in override)
    return {key: _parsed(value) for key, value in pairs}


def _parsed(value: str) -> Any:
    parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
    return tuple(parsed) if isinstance(parsed, list) else parsed


def _same(value: Any, wanted: Any) -> bool:
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def trials_text(arm: Arm) -> str:
    """Return what an arm chose, and from what."""
    if len(arm.trials) == 1:
        return f"{arm.chosen} (one trial)"
    scores = "; ".join(f"{name}: {score:.4g}" for name, score in arm.trials)
    return f"{arm.chosen}, the best of {len(arm.trials)} trials by {arm.scored_by} ({scores})"
