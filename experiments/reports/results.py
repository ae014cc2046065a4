"""The finished runs of a study, and what their seeds say together."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.config import NORMS, Config
from experiments.runs import is_finished, read_history, read_result, run_directory
from experiments.validation import ConfigError

LABELS = {
    "none": "none",
    "batch": "batch",
    "ghost_batch": "ghost batch",
    "batch_renorm": "batch renorm",
    "layer": "layer",
    "rms": "RMS",
    "group": "group",
    "instance": "instance",
}


class Run(NamedTuple):
    """A finished run: its configuration and what it left."""

    config: Config
    histories: list[list[dict[str, Any]]]
    result: dict[str, Any]

    @property
    def label(self) -> str:
        return LABELS[self.config.norm.name]

    @property
    def accuracies(self) -> np.ndarray:
        """The test accuracy of every seed after the last epoch, in percent."""
        return 100 * np.array([seed["test_accuracy"] for seed in self.result["seeds"]])

    @property
    def diverged(self) -> int:
        """The number of seeds whose loss was not finite in the end."""
        return sum(
            seed["train_loss"] is None or seed["test_loss"] is None for seed in self.result["seeds"]
        )

    def curves(self, key: str) -> np.ndarray:
        """Return a value of the history, (seeds, epochs); NaN where it was not finite."""
        return np.array(
            [[epoch[key] for epoch in history] for history in self.histories], dtype=float
        )


class Interval(NamedTuple):
    """A mean over seeds with its 95% confidence interval; NaN bounds if there is one seed."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        if np.isnan(self.half_width):
            return f"{self.mean:.1f}"
        return f"{self.mean:.1f} ± {self.half_width:.1f}"

    def overlaps(self, other: "Interval") -> bool:
        return abs(self.mean - other.mean) <= self.half_width + other.half_width


def interval(values: np.ndarray) -> Interval:
    """Return the mean and its 95% confidence interval by Student's t distribution."""
    n = len(values)
    if n < 2:
        return Interval(float(np.mean(values)), float("nan"))
    half_width = stats.t.ppf(0.975, n - 1) * stats.sem(values)
    return Interval(float(np.mean(values)), float(half_width))


def collect(configs: Sequence[Config]) -> tuple[list[Run], list[Config]]:
    """Return the finished runs among the configurations, and the configurations without one.

    Raises:
        ConfigError: two configurations differ in more than the normalization and the batch size,
            which is what a report compares.
    """
    _check_comparable(configs)
    order = list(NORMS)
    configs = sorted(configs, key=lambda c: (order.index(c.norm.name), c.batch_size))
    runs, missing = [], []
    for config in configs:
        directory = run_directory(config)
        if is_finished(directory):
            runs.append(Run(config, read_history(directory), read_result(directory)))
        else:
            missing.append(config)
    return runs, missing


def batch_sizes(runs: Sequence[Run]) -> list[int]:
    """The batch sizes of the runs: the columns of a table and of the figures."""
    return sorted({run.config.batch_size for run in runs})


def table_rows(runs: Sequence[Run]) -> Iterator[tuple[str, list[Run | None]]]:
    """Yield each normalization's label and its run at each batch size, None if it is missing."""
    sizes = batch_sizes(runs)
    by_point = {(run.config.norm.name, run.config.batch_size): run for run in runs}
    for name, label in LABELS.items():
        cells = [by_point.get((name, size)) for size in sizes]
        if any(cells):
            yield label, cells


def _check_comparable(configs: Sequence[Config]) -> None:
    seen = set()
    for config in configs:
        point = (config.norm.name, config.batch_size)
        if point in seen:
            raise ConfigError(
                f"the study has several runs with norm={point[0]} batch_size={point[1]}, "
                "but a report compares normalizations over batch sizes; sweep over those alone"
            )
        seen.add(point)
