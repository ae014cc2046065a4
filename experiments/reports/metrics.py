"""The metric of a study for each seed, and its mean over seeds with an interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.errors import ConfigError
from experiments.launch.contrast import DECADES, HIGHEST, NEEDS_TARGET, SHARE, SHIFT, STEPS
from experiments.reports.results import Point, Seed, is_numeric, key_label

NEAR = 2.0  # points of validation accuracy from the best run of a grid


@dataclass(frozen=True)
class Metric:
    """A number in the result of a seed, or the difference "a - b" of two.

    Attributes:
        key: the key in the result.
        label: the name with its unit.
        in_percent: whether it is an accuracy.
        of_steps: whether it is the number of steps to the target, which is compared by ratios.
        over: the key along which all runs of a seed give one number together, for `DECADES` and
            `HIGHEST`; None otherwise.
    """

    key: str
    label: str
    in_percent: bool = False
    of_steps: bool = False
    over: str | None = None

    @property
    def together(self) -> bool:
        """Whether several runs of a seed give one number together."""
        return self.over is not None or self.key == SHARE

    @property
    def lowest_is_best(self) -> bool:
        """Whether it is a number of steps, a loss, a time, a memory or a spread of gradients."""
        ends = ("loss", "seconds", "_ms", "overhead", "_bytes", "gradient_decades")
        return self.of_steps or self.key.endswith(ends)

    def of(self, point: Point, seed: Seed) -> float | None:
        """Return the number of one seed.

        A target that was not reached counts as the budget, and a diverged loss as that of chance.
        """
        if self.of_steps:
            return float(seed.result["step"] if seed.reached_target else point.budget)
        if self.key == SHIFT:
            return input_shift(seed.history)
        values = [_result_value(seed, key) for key in self.key.split(" - ")]
        return None if None in values else float(values[0] - sum(values[1:]))

    def values(self, point: Point) -> dict[int, float]:
        """Return the number of every finished seed that has one."""
        values = {number: self.of(point, seed) for number, seed in point.seeds.items()}
        return {number: value for number, value in values.items() if value is not None}

    def values_over(self, points: Sequence[Point]) -> dict[int, float]:
        """Return the number of every seed that these runs have and of which none is unfinished.

        A run trains if it reaches its target. `HIGHEST` is log10 of the largest value along `over`
        that trains, `DECADES` is log10 of the largest over the smallest one. If none trains,
        `HIGHEST` is half a decade below the smallest value, and `DECADES` is 0. `SHARE` is the
        percentage of the runs whose validation accuracy is at most `NEAR` points below the best.
        """
        unfinished = {seed for point in points for seed in point.missing}
        seeds = sorted({seed for point in points for seed in point.seeds} - unfinished)
        return {seed: self._together(points, seed) for seed in seeds}

    def _together(self, points: Sequence[Point], seed: int) -> float:
        if self.key == SHARE:
            reached = [100 * p.seeds[seed].result["validation_accuracy"] for p in points]
            return 100 * float(np.mean(np.array(reached) >= max(reached) - NEAR))
        training = trained_values(points, self.over, seed)
        if self.key == DECADES:
            return math.log10(max(training) / min(training)) if training else 0.0
        smallest = min(point.values[self.over] for point in points)
        return math.log10(max(training) if training else smallest / 10**0.5)

    def text(self, value: float) -> str:
        """Return a number as text."""
        if self.in_percent:
            return f"{value:.1f}"
        return f"{value:.0f}" if self.of_steps else f"{value:.3g}"

    def summary(self, point: Point) -> "Summary | None":
        """Return the mean over seeds with its interval. For steps it is the geometric mean."""
        values = np.array(list(self.values(point).values()))
        if not len(values):
            return None
        if self.of_steps:
            return Summary(*(2**bound for bound in mean_interval(np.log2(values))))
        return Summary(*mean_interval(values))

    def summary_text(self, point: Point) -> str:
        """Return the summary as text for a table."""
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
    """A mean over seeds with its 95 % interval. With one seed the bounds are NaN."""

    mean: float
    low: float
    high: float


def metric(name: str, points: Sequence[Point], over: str | None = None) -> Metric:
    """Return the metric with this name; `over` is the key along which a study sweeps.

    Raises:
        ConfigError: no result has such a number, or a necessary target or key is missing.
    """
    if name in STEPS:
        _needs_target(name, points)
        return Metric("step", "steps to the target", of_steps=True)
    if name in (DECADES, HIGHEST):
        return _range_metric(name, points, over)
    if name == SHARE:
        return Metric(SHARE, f"runs within {NEAR:g} points of the best (% of the grid)")
    if name == SHIFT:
        return Metric(SHIFT, "shift of a unit between evaluations (of its spread)")
    results = [seed.result for point in points for seed in point.seeds.values()]
    for key in name.split(" - "):
        _check_results_have(key, results)
    words = name.replace("_", " ")
    if " - " in name:
        return Metric(name, words + (" (points)" if name.endswith("accuracy") else ""))
    if name.endswith("accuracy"):
        return Metric(name, f"{words} (%)", in_percent=True)
    units = {"loss": " (nats)", "seconds": " of training", "ms": " (milliseconds)"}
    return Metric(name, words + units.get(name.rpartition("_")[2], ""))


def _needs_target(name: str, points: Sequence[Point]) -> None:
    if any(point.config.target is None for point in points):
        raise ConfigError(NEEDS_TARGET.format(name))


def _range_metric(name: str, points: Sequence[Point], over: str | None) -> Metric:
    _needs_target(name, points)
    values = [point.values.get(over) for point in points]
    if not (is_numeric(values) and len(set(values)) > 1 and min(values) > 0):
        raise ConfigError(
            f"the metric {name!r} needs a key that is swept over positive numbers, and study.x is "
            f"{over!r}; give one such as study.x=optimizer.learning_rate"
        )
    words = {
        DECADES: f"decades of {key_label(over)} that train",
        HIGHEST: f"log10 of the highest {key_label(over)} that trains",
    }
    return Metric(name, words[name], over=over)


def trained_values(points: Sequence[Point], over: str | None, seed: int) -> list[float]:
    """Return the values along a key at which a seed reached its target, in ascending order."""
    there = [point for point in points if seed in point.seeds]
    return sorted(point.values[over] for point in there if point.seeds[seed].reached_target)


def _check_results_have(key: str, results: Sequence[dict[str, Any]]) -> None:
    if results and not any(isinstance(result.get(key), int | float) for result in results):
        keys = [name for name, value in results[0].items() if isinstance(value, int | float)]
        raise ConfigError(
            f"no result has the metric {key!r}; there are {', '.join(keys)}, steps_to_target, "
            f"{DECADES}, {HIGHEST}, {SHARE} and {SHIFT}"
        )


def _result_value(seed: Seed, key: str) -> float | None:
    if seed.diverged and key.endswith("loss"):
        return -math.log(seed.result["test_accuracy"])  # which is 1 / classes, by definition
    value = seed.result.get(key)
    return None if value is None else float(value) * (100 if key.endswith("accuracy") else 1)


def input_shift(history: Sequence[dict[str, Any]]) -> float | None:
    """Return how far one unit after the last normalization moves between evaluations.

    This is the mean distance of the 15, 50 and 85 % quantiles from those of the previous
    evaluation, divided by the mean distance of the outer two. None if it is not finite.
    """
    places = [[*line["quantiles"].values()] for line in history if line.get("quantiles")]
    if len(places) < 2:
        return None
    quantiles = np.array([of_step[-1]["unit"] for of_step in places], dtype=float)[:, 1:4]
    width = np.mean(quantiles[:, -1] - quantiles[:, 0])
    shift = float(np.mean(np.abs(np.diff(quantiles, axis=0))) / width) if width > 0 else np.nan
    return shift if np.isfinite(shift) else None


def report_metric(measured: Metric, *, tuned: bool, points: Sequence[Point]) -> Metric:
    """Return the metric that a report shows for every run.

    If runs were chosen by validation data, it is measured on these. Test data are then used for
    the contrast of the chosen runs only.
    """
    if tuned and "test_" in measured.key:
        return metric(measured.key.replace("test_", "validation_"), points)
    return measured


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the mean, and the bounds of its interval by the t-distribution of Student."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, float("nan"), float("nan")
    half_width = float(stats.t.ppf((1 + confidence) / 2, n - 1) * stats.sem(values))
    return mean, mean - half_width, mean + half_width
