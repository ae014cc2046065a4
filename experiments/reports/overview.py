"""The existing runs and how they ended, for the terminal."""

import difflib
import itertools
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table

from experiments.config import Config
from experiments.errors import ConfigError
from experiments.launch.labels import labels
from experiments.runs import records
from experiments.runs.code import made_from
from experiments.runs.records import CONFIG

ENDS = ("done", "diverged", "stopped")


class RunState(NamedTuple):
    """A run directory: its configuration, and the result of every seed that has one."""

    directory: Path
    config: Config
    results: dict[int, dict[str, Any]]

    @property
    def stale(self) -> list[int]:
        """The seeds that were trained by other code than the current one."""
        today = made_from(self.config)
        return [n for n, r in self.results.items() if records.is_stale(r, today)]

    @property
    def missing(self) -> list[int]:
        return [seed for seed in self.config.seed_numbers if seed not in self.results]

    @property
    def changed(self) -> datetime:
        """The time of the last change to a file of the run."""
        files = [self.directory / CONFIG, *self.directory.glob("seed-*/*.json*")]
        return datetime.fromtimestamp(max(path.stat().st_mtime for path in files))


def run_directories(output: Path) -> list[Path]:
    """Return the directories of all runs, sorted by name."""
    return sorted(path.parent for path in output.glob(f"*/{CONFIG}"))


def read_run(directory: Path) -> RunState:
    """Return the state of a run.

    Raises:
        ConfigError: this code cannot read the configuration of the run.
    """
    try:
        config = records.read_config(directory)
    except (OmegaConfBaseException, KeyError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{directory / CONFIG} does not fit this code: {reason}") from error
    numbers = [n for n in records.existing_seeds(directory) if records.finished(directory, n)]
    return RunState(directory, config, {n: records.read_result(directory, n) for n in numbers})


def find_run(name: str, output: Path) -> Path:
    """Return the run with this name, with an unambiguous prefix of a name, or at this path.

    Raises:
        ConfigError: there is none, or there are several.
    """
    if (Path(name) / CONFIG).exists():
        return Path(name)
    names = [path.name for path in run_directories(output)]
    found = [other for other in names if other == name] or [
        other for other in names if other.startswith(name)
    ]
    if len(found) == 1:
        return output / found[0]
    if found:
        raise ConfigError(
            f"{name!r} is the beginning of several runs: {', '.join(found)}; give more of the name"
        )
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    hint = f"similar names are {', '.join(near)}" if near else f"there are {len(names)} runs"
    raise ConfigError(f"there is no run {name!r} in {output}; {hint}")


def runs_table(output: Path) -> Table:
    """Return a table of all runs."""
    table = Table(title=f"runs in {output}")
    for name in ("run", "differing in", "seeds", "test accuracy", "seconds", "code", "last change"):
        table.add_column(name, justify="right" if name in ("test accuracy", "seconds") else "left")
    readable, unreadable = [], []
    for directory in run_directories(output):
        try:
            readable.append(read_run(directory))
        except ConfigError as error:
            unreadable.append((directory.name, str(error).replace(f"{directory}/", "")))
    for _, alike in itertools.groupby(readable, lambda run: run.directory.name.rpartition("-")[0]):
        runs = list(alike)
        for run, label in zip(runs, labels([run.config for run in runs]), strict=True):
            table.add_row(*_row(run, label))
    for name, error in unreadable:
        table.add_row(name, "", error)
    return table


def _row(run: RunState, label: str) -> Iterator[str]:
    yield run.directory.name
    yield label
    yield seeds_text(run)
    accuracies = [100 * result["test_accuracy"] for result in run.results.values()]
    yield f"{np.mean(accuracies):.1f} %" if accuracies else ""
    yield f"{sum(result['seconds'] for result in run.results.values()):.1f}"
    yield f"{len(run.stale)} stale" if run.stale else ""
    yield f"{run.changed:%Y-%m-%d %H:%M}"


def seeds_text(run: RunState) -> str:
    """Return how the seeds ended, such as "3 done, 1 diverged, 1 at step 200, 1 missing"."""
    ended = [result["ended"] for result in run.results.values()]
    counts = [f"{ended.count(end)} {end}" for end in ENDS if end in ended]
    histories = [records.read_history(run.directory, seed) for seed in run.missing]
    begun = [f"1 at step {history[-1]['step']}" for history in histories if history]
    missing = len(histories) - len(begun)
    return ", ".join([*counts, *begun, *([f"{missing} missing"] if missing else [])])


def choices(configs: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield each group of configurations with its choices and their descriptions."""
    for group in sorted(path for path in configs.iterdir() if path.is_dir()):
        files = sorted(group.glob("*.yaml"))
        if files:
            yield group.name, [(file.stem, _first_comment(file)) for file in files]


def _first_comment(file: Path) -> str:
    """Return the first sentence of the comment at the top."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    texts = [line.lstrip("#").strip() for line in lines]
    text = " ".join(text for text in texts if text and not text.startswith("@"))
    return re.split(r"(?<=[^l]\.)\s+(?=[A-Z])", text)[0]  # not after "et al."
