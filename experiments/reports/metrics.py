"""What a study measures of every seed, and its mean over seeds with an interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.errors import ConfigError
from experiments.reports.results import Point, Seed

STEPS = ("steps_to_target", "steps", "step")


@dataclass(frozen=True)
class Metric:
    """A number of a seed's result.

    Attributes:
        key: in the result.
        label: with its unit.
        in_percent: whether it is an accuracy.
        of_steps: whether it is the number of steps to the target, compared by ratios.
    """

    key: str
    label: str
    in_percent: bool = False
    of_steps: bool = False

    def of(self, point: Point, seed: Seed) -> float | None:
        """Return the number of one seed.

        A target not reached counts as the budget, a loss that diverged as that of chance.
        """
        if self.of_steps:
            return float(seed.result["step"] if seed.reached_target else point.budget)
        if seed.diverged and self.key.endswith("loss"):
            return -math.log(seed.result["test_accuracy"])  # which is 1 / classes, by definition
        value = seed.result[self.key]
        return None if value is None else float(value) * (100 if self.in_percent else 1)

    def values(self, point: Point) -> dict[int, float]:
        """Return the number of every finished seed that has one."""
        values = {number: self.of(point, seed) for number, seed in point.seeds.items()}
        return {number: value for number, value in values.items() if value is not None}

    def text(self, value: float) -> str:
        """Return a number as it is shown."""
        if self.in_percent:
            return f"{value:.1f}"
        return f"{value:.0f}" if self.of_steps else f"{value:.3g}"

    def summary(self, point: Point) -> "Summary | None":
        """Return the mean over seeds with its interval; that of steps is geometric."""
        values = np.array(list(self.values(point).values()))
        if not len(values):
            return None
        if self.of_steps:
            return Summary(*(2**bound for bound in mean_interval(np.log2(values))))
        return Summary(*mean_interval(values))

    def summary_text(self, point: Point) -> str:
        """Return the summary as it is shown in a table."""
        reached = self.summary(point)
        if reached is None:
            return "not run" if not point.seeds else "not finite"
        if np.isnan(reached.low):
            return self.text(reached.mean)
        if self.of_steps:
            low, high = self.text(reached.low), self.text(reached.high)
            return f"{self.text(reached.mean)} ({low} to {high})"
        return f"{self.text(reached.mean)} ± {self.text(reached.high - reached.mean)}"


class Summary(NamedTuple):
    """A mean over seeds with its 95 % interval; NaN bounds where there is one seed."""

    mean: float
    low: float
    high: float


def metric(name: str, points: Sequence[Point]) -> Metric:
    """Return the metric of that name.

    Raises:
        ConfigError: no result has such a number, or steps are to a target that is not given.
    """
    if name in STEPS:
        if any(point.config.target is None for point in points):
            raise ConfigError(
                f"the metric {name!r} needs a target, and target is null; give the validation "
                "accuracy at which a seed stops, such as target=0.8"
            )
        return Metric("step", "steps to the target", of_steps=True)
    results = [seed.result for point in points for seed in point.seeds.values()]
    if results and not any(isinstance(result.get(name), int | float) for result in results):
        keys = [key for key, value in results[0].items() if isinstance(value, int | float)]
        raise ConfigError(
            f"no result has the metric {name!r}; there are {', '.join(keys)} and steps_to_target"
        )
    words = name.replace("_", " ")
    if name.endswith("accuracy"):
        return Metric(name, f"{words} (%)", in_percent=True)
    unit = {"loss": " (nats)", "seconds": " of training"}.get(name.rpartition("_")[2], "")
    return Metric(name, words + unit)


def shown_metric(measured: Metric, *, tuned: bool, points: Sequence[Point]) -> Metric:
    """Return what a report shows of every run: validation data where runs were chosen by them.

    Test data are then looked at once, in the contrast of what won.
    """
    if tuned and measured.key.startswith("test_"):
        return metric(measured.key.replace("test_", "validation_", 1), points)
    return measured


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the mean, and the bounds of its interval by Student's t distribution."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, float("nan"), float("nan")
    half_width = float(stats.t.ppf((1 + confidence) / 2, n - 1) * stats.sem(values))
    return mean, mean - half_width, mean + half_width
