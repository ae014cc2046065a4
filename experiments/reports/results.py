"""The runs of a study, the results of their seeds, and the keys in which runs differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config import Config, flat
from experiments.runs import records
from experiments.runs.code import made_from
from experiments.runs.directory import determining, run_directory

MAX_WRITTEN = 4  # equal entries of a list that are written out


class Seed(NamedTuple):
    """The result and the history of one seed."""

    result: dict[str, Any]
    history: list[dict[str, Any]]
    stale: bool

    @property
    def diverged(self) -> bool:
        return self.result["ended"] == "diverged"

    @property
    def reached_target(self) -> bool:
        return self.result["ended"] == "stopped"


@dataclass(frozen=True)
class Point:
    """A run of a study: its configuration, and its finished seeds by number.

    Attributes:
        values: the values of the configuration by dotted key. The name of a component has the key
            of its group.
    """

    config: Config
    directory: Path
    values: dict[str, Any]
    seeds: dict[int, Seed]

    @property
    def missing(self) -> list[int]:
        return [seed for seed in self.config.seed_numbers if seed not in self.seeds]

    @property
    def stale(self) -> list[int]:
        return [number for number, seed in self.seeds.items() if seed.stale]

    @property
    def unfinished(self) -> list[int]:
        """The seeds to train."""
        return sorted({*self.missing, *([] if self.config.keep_stale else self.stale)})

    @property
    def diverged(self) -> int:
        return sum(seed.diverged for seed in self.seeds.values())

    @property
    def seconds(self) -> float:
        """The training time of all seeds together."""
        return sum(seed.result["seconds"] for seed in self.seeds.values())

    @property
    def budget(self) -> int:
        """The number of steps after which a seed ends if nothing stops it."""
        if self.config.steps is not None:
            return self.config.steps
        lines = [seed.history[-1] for seed in self.seeds.values() if seed.history]
        by_epochs = [self.config.epochs * at["step"] / at["epoch"] for at in lines if at["epoch"]]
        ends = [seed.result["step"] for seed in self.seeds.values()]
        return max(round(step) for step in [*by_epochs, *ends])


def collect(configs: Sequence[Config]) -> list[Point]:
    """Return the runs of the configurations with their finished seeds, if any."""
    by_directory = {run_directory(config): config for config in configs}
    return [_point(config, directory) for directory, config in by_directory.items()]


def _point(config: Config, directory: Path) -> Point:
    seeds = {}
    today = made_from(config)
    for number in config.seed_numbers:
        if records.finished(directory, number):
            result = records.read_result(directory, number)
            history = records.read_history(directory, number)
            seeds[number] = Seed(result, history, records.is_stale(result, today))
    return Point(config, directory, values_of(config), seeds)


def values_of(config: Config) -> dict[str, Any]:
    """Return the values that determine a result, such as norm, norm.epsilon and batch_size."""
    values = flat(determining(config))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values}


def swept_keys(points: Sequence[Point], first: Sequence[str] = ()) -> list[str]:
    """Return the keys that distinguish the runs, with `first` before the others.

    A key that does not distinguish more runs than the keys before it is left out. Options of a
    component count if they differ between runs with the same component.
    """
    every = dict.fromkeys(key for point in points for key in point.values)
    kept: list[str] = []
    for key in [*first, *(key for key in every if key not in first)]:
        if _varies(points, key) and _combinations(points, [*kept, key]) > _combinations(
            points, kept
        ):
            kept.append(key)
    return kept


def _combinations(points: Sequence[Point], keys: Sequence[str]) -> int:
    return len({values_at(point, keys) for point in points})


def _varies(points: Sequence[Point], key: str) -> bool:
    group = key.partition(".")[0]
    seen: dict[Any, set[Any]] = {}
    for point in points:
        component = point.values.get(group) if key != group else None
        seen.setdefault(component, set()).add(point.values.get(key))
    return any(len(values) > 1 for values in seen.values())


def values_at(point: Point, keys: Sequence[str]) -> tuple[Any, ...]:
    """Return the values of a run at the keys; None for a key that it does not have."""
    return tuple(point.values.get(key) for key in keys)


def distinct(points: Sequence[Point], keys: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the combinations of values at the keys: numbers sorted, others as they appear."""
    combinations = list(dict.fromkeys(values_at(point, keys) for point in points))
    columns = list(zip(*combinations, strict=True))
    if columns and all(is_numeric(column) for column in columns):
        return sorted(combinations)
    return combinations


def is_numeric(values: Sequence[Any]) -> bool:
    """Return whether all values are numbers."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def key_label(key: str) -> str:
    """Return a key in words, such as "learning rate" for optimizer.learning_rate."""
    if key == "norm":
        return "normalization"
    return key.rpartition(".")[2].replace("_", " ")


def listed(names: Sequence[str]) -> str:
    """Return names as "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[:-1] else names)


def value_label(value: Any) -> str:
    """Return a value as text."""
    if isinstance(value, tuple):
        if len(value) > MAX_WRITTEN and len(set(value)) == 1:
            return f"{len(value)} x {value_label(value[0])}"
        return "-".join(value_label(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if value is None else str(value).replace("_", " ")


def named_value(key: str, value: Any) -> str:
    """Return a text as it is, and another value with its key, such as "learning rate 0.1"."""
    text = value_label(value)
    return text if isinstance(value, str) else f"{key_label(key)} {text}"


def label(point: Point, keys: Sequence[str]) -> str:
    """Return a label that distinguishes a run in its study."""
    words = [named_value(key, point.values.get(key)) for key in keys]
    return ", ".join(words) or point.directory.name


def shortfalls(points: Sequence[Point]) -> list[str]:
    """Return a sentence for each kind of missing or stale results."""
    absent = [point.directory.name for point in points if not point.seeds]
    partial = [
        f"{point.directory.name} (seeds {_listed(point.missing)})"
        for point in points
        if point.seeds and point.missing
    ]
    stale = [
        f"{point.directory.name} (seeds {_listed(point.stale)})" for point in points if point.stale
    ]
    sentences = []
    if absent:
        sentences.append(f"{len(absent)} of {len(points)} runs are missing: {', '.join(absent)}.")
    if partial:
        sentences.append(f"Seeds are missing of {', '.join(partial)}.")
    if stale:
        sentences.append(f"Stale, made by other code than today's: {', '.join(stale)}.")
    return sentences


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)
