"""The two arms of a contrast: the runs they choose from, and their choice.

Both arms are tuned in the same way, on the validation data of the first seeds (`TUNING_SEEDS`). The
contrast is then measured on other seeds of the chosen runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import ConfigError
from experiments.launch.selection import overridden, picks
from experiments.reports.metrics import Metric
from experiments.reports.results import (
    Point,
    distinct,
    is_numeric,
    key_label,
    label,
    swept_keys,
    value_label,
    values_at,
)

TUNING_SEEDS = 8
GEOMETRIC = "geometric mean of the steps to the target"


@dataclass(frozen=True)
class Arm:
    """One side of a contrast.

    Attributes:
        overrides: select the runs of the arm.
        trials: the label and score of every trial that has a finished seed.
        chosen: the label of the best trial.
        scored_by: a description of the scores.
        grid: the values of every number that was tuned, in ascending order.
        choice: the values of the best trial.
    """

    overrides: str
    trials: list[tuple[str, float]]
    chosen: str
    scored_by: str
    grid: dict[str, list[float]]
    choice: dict[str, float]

    @property
    def at_ends(self) -> list[str]:
        """The tuned numbers of which the best trial has the first or last value of the grid.

        Better values may lie beyond it. Zero is the natural end of a number such as weight decay.
        """
        return [key for key, value in self.choice.items() if is_end(value, self.grid[key])]


class Tuned(NamedTuple):
    """An arm with all its trials.

    Attributes:
        best: the chosen trial; empty if none of its runs has a finished seed.
        values: the metric of every seed of that trial.
        asked: all trials, finished or not. A trial is one run, or all runs that give a number
            together.
    """

    arm: Arm
    best: list[Point]
    values: dict[int, float]
    asked: list[list[Point]]

    @property
    def points(self) -> list[Point]:
        """The runs of all trials."""
        return [point for trial in self.asked for point in trial]


def is_end(value: float, grid: Sequence[float]) -> bool:
    """Return whether a value is an end of its grid, beyond which the grid could go on."""
    return len(grid) > 1 and (value == grid[-1] or (value == grid[0] and value != 0))


def tune(overrides: str, points: Sequence[Point], measured: Metric, where: str) -> Tuned:
    """Return an arm whose trial has the best mean over the tuning seeds on validation data.

    Raises:
        ConfigError: the overrides select no run; `where` is the key of the overrides.
    """
    found = matching(overrides, points, where)
    asked = _trials(found, measured)
    tuned_keys = [key for key in swept_keys(found) if key != measured.over]
    keys = tuned_keys or [key for key in swept_keys(points) if key != measured.over]
    there = [trial for trial in asked if any(point.seeds for point in trial)]
    scores = [_score([tuning_part(point) for point in trial], measured) for trial in there]
    sign = -1 if measured.of_steps else 1
    best = there[int(np.argmax(sign * np.array(scores)))] if there else []
    grid = {} if measured.together and measured.over is None else _grid(found, tuned_keys)
    labels = [_label(trial, keys, measured) for trial in there]
    arm = Arm(
        overrides,
        list(zip(labels, scores, strict=True)),
        _label(best, keys, measured) if best else "",
        _scored_by(measured),
        grid,
        {key: best[0].values[key] for key in grid} if best else {},
    )
    return Tuned(arm, best, _values(best, measured) if best else {}, asked)


def tuning_part(point: Point) -> Point:
    """Return a run with its tuning seeds only."""
    seeds = {number: seed for number, seed in point.seeds.items() if number < TUNING_SEEDS}
    return replace(point, seeds=seeds)


def _grid(points: Sequence[Point], keys: Sequence[str]) -> dict[str, list[float]]:
    grids = {key: [value for (value,) in distinct(points, [key])] for key in keys}
    return {key: values for key, values in grids.items() if is_numeric(values)}


def _trials(points: Sequence[Point], measured: Metric) -> list[list[Point]]:
    if not measured.together:
        return [[point] for point in points]
    if measured.over is None:
        return [list(points)]
    keys = [key for key in swept_keys(points) if key != measured.over]
    by_values: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        by_values.setdefault(values_at(point, keys), []).append(point)
    return list(by_values.values())


def _values(trial: Sequence[Point], measured: Metric) -> dict[int, float]:
    return measured.values_over(trial) if measured.together else measured.values(trial[0])


def _label(trial: Sequence[Point], keys: Sequence[str], measured: Metric) -> str:
    whole = not keys or (measured.together and measured.over is None)
    return "the whole grid" if whole else label(trial[0], keys)


def _score(trial: Sequence[Point], measured: Metric) -> float:
    """Return the score of a trial on validation data.

    The target is a validation accuracy, so a metric that uses the target is its own score.
    """
    if measured.of_steps:
        reached = measured.summary(trial[0])
        return np.inf if reached is None else reached.mean
    if measured.together:
        return float(np.mean([*_values(trial, measured).values()] or [-np.inf]))
    accuracies = [seed.result["validation_accuracy"] for seed in trial[0].seeds.values()]
    return 100 * float(np.mean(accuracies or [-np.inf]))


def _scored_by(measured: Metric) -> str:
    if measured.of_steps:
        return GEOMETRIC
    return measured.label if measured.together else "validation accuracy in %"


def matching(overrides: str, points: Sequence[Point], where: str) -> list[Point]:
    """Return the runs that overrides such as "norm=batch optimizer.learning_rate=0.1" select.

    Raises:
        ConfigError: they select none.
    """
    wanted = overridden(overrides)
    found = [point for point in points if picks(overrides, point.values)]
    if not found or len(wanted) < len(overrides.split()):
        there = "; ".join(
            f"{key}: {', '.join(dict.fromkeys(value_label(p.values.get(key)) for p in points))}"
            for key in swept_keys(points)
        )
        raise ConfigError(f"{where} is {overrides!r}, which matches no run of the study; {there}")
    return found


def trials_text(arm: Arm) -> str:
    """Return the choice of an arm and its trials."""
    if len(arm.trials) == 1:
        return f"{arm.chosen} (one trial)"
    scores = "; ".join(f"{name}: {score:.4g}" for name, score in arm.trials)
    return f"{arm.chosen}, the best of {len(arm.trials)} trials by {arm.scored_by} ({scores})"


def ends_text(arm: Arm) -> str:
    """Return which tuned numbers have an end of their grid; "" if none."""
    return "; ".join(
        f"{arm.overrides}: the {key_label(key)} chosen, {value_label(arm.choice[key])}, is the "
        f"{'smallest' if arm.choice[key] == arm.grid[key][0] else 'largest'} of its grid"
        for key in arm.at_ends
    )
