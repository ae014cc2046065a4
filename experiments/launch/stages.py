"""The runs that the rule of the verdict adds to a study, as far as its finished runs tell.

The first stage is the grid of the study with `TUNING_SEEDS` seeds. If an arm chooses the end of a
grid of numbers, both arms get the next value beyond it, at most `EXTENSIONS` times at each end. A
metric that is a range of values, such as the highest rate that trains, is extended in the same way
and then bisected to an eighth of a decade, for each seed by itself. The second stage is fresh seeds
of the chosen runs, and so is the third, if the second decides nothing. A fresh seed of a range
begins at the values around the ends of all seeds before it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from experiments.config import Config, with_seeds
from experiments.errors import ConfigError
from experiments.launch.validation import validate
from experiments.reports.arms import TUNING_SEEDS
from experiments.reports.metrics import Metric, metric
from experiments.reports.places import Place, places
from experiments.reports.ranges import ends_that_train, first_values, next_values, seeds_of
from experiments.reports.results import Point, collect
from experiments.runs.directory import run_directory

EXTENSIONS = 6


def planned(configs: Sequence[Config]) -> list[Point]:
    """Return the runs of a study with their results, and those that these call for.

    The rule is applied step by step: while runs of a step are missing or stale, the next steps are
    not known. It applies to studies that have a primary contrast and at least `TUNING_SEEDS` seeds.

    Args:
        configs: the runs of the grid of the study.
    """
    study = configs[0].study
    points = _collected(configs)
    most_seeds = max(config.seeds for config in configs)
    if study.contrast is None or most_seeds < TUNING_SEEDS:
        return list(points.values())
    stated = set(points)
    while True:
        every = list(points.values())
        measured = metric(study.contrast.metric, every, study.x)
        found = places(study.contrast, every, measured)
        if any(point.unfinished for place in found for point in (*place.a.points, *place.b.points)):
            break
        added = [config for place in found for config in _next(place, measured, stated)]
        changed = _changed(added, points) or _changed(_fresh(found, measured), points)
        if not changed:
            break
        points |= _collected(changed)
    return list(points.values())


def by_run(configs: Iterable[Config]) -> dict[str, Config]:
    """Return the runs by name, each with all seeds that are asked for."""
    runs: dict[str, Config] = {}
    for config in configs:
        name = run_directory(config).name
        asked = [*runs[name].seed_numbers, *config.seed_numbers] if name in runs else None
        runs[name] = config if asked is None else with_seeds(config, asked)
    return runs


def _changed(added: Iterable[Config], points: dict[str, Point]) -> list[Config]:
    """Return the runs that are new, and those that get new seeds, with all their seeds."""
    asked = by_run([*(point.config for point in points.values()), *added])
    return [
        config
        for name, config in asked.items()
        if name not in points or len(config.seed_numbers) > len(points[name].config.seed_numbers)
    ]


def _collected(configs: Iterable[Config]) -> dict[str, Point]:
    return {point.directory.name: point for point in collect(list(configs))}


def _next(place: Place, measured: Metric, stated: set[str]) -> list[Config]:
    """Return the valid runs of a place that extend its grids or, if none do, refine its ranges."""
    extended = [*_extended(place, stated), *_ranges_extended(place, measured, stated)]
    return [*filter(_is_valid, extended)] or [*_bisected(place, measured)]


def _is_valid(config: Config) -> bool:
    """Return whether a run is possible. At a dropout above 1, for example, a grid ends."""
    try:
        validate(config)
    except ConfigError:
        return False
    return True


def _extended(place: Place, stated: set[str]) -> Iterator[Config]:
    """Yield the runs of both arms at the next value beyond each end that an arm chose."""
    arms = (place.a, place.b)
    for key in dict.fromkeys(key for tuned in arms for key in tuned.arm.grid):
        having = [tuned for tuned in arms if key in tuned.arm.grid]
        values = {value for tuned in having for value in tuned.arm.grid[key]}
        for tuned in having:
            if key in tuned.arm.at_ends:
                original = _stated(tuned.points, key, stated)
                values |= _beyond(tuned.arm.grid[key], original, tuned.arm.choice[key])
        for tuned in having:
            for value in values - set(tuned.arm.grid[key]):
                yield from _at_value(tuned.points, key, value)


def _at_value(points: Sequence[Point], key: str, value: float) -> Iterator[Config]:
    """Yield the runs at the nearest value of a key, with this value."""
    nearest = min((point.values[key] for point in points), key=lambda other: abs(other - value))
    for point in points:
        if point.values[key] == nearest:
            yield _with_value(point.config, key, value)


def _stated(points: Iterable[Point], key: str, stated: set[str]) -> list[float]:
    """Return the values of a key in the runs that the file of the study states."""
    return [point.values[key] for point in points if point.directory.name in stated]


def _beyond(grid: Sequence[float], original: Iterable[float], end: float) -> set[float]:
    """Return the next value beyond an end of a grid; none after `EXTENSIONS` of them.

    Args:
        original: the values that the file of the study states, whose factors continue.
    """
    up = end == max(grid)
    values = sorted({value for value in original if value > 0}, reverse=not up)
    for _ in range(EXTENSIONS if len(values) > 1 else 0):
        values.append(next_value(values))
        if values[-1] > end if up else values[-1] < end:
            return {values[-1]}
    return set()


def next_value(grid: Sequence[float]) -> float:
    """Return the value that continues a grid beyond its last value by the same factors.

    A grid such as 0.1, 0.3, 1 repeats its factors every two values. A grid of integers continues
    with integers.
    """
    value = grid[-2] * grid[-1] / grid[-3] if len(grid) > 2 else grid[-1] ** 2 / grid[-2]
    return round(value) if all(isinstance(v, int) for v in grid) else float(f"{value:.4g}")


def _ranges_extended(place: Place, measured: Metric, stated: set[str]) -> Iterator[Config]:
    """Yield the runs at the next value beyond each end at which a trial trains."""
    if measured.over is None:
        return
    for tuned in (place.a, place.b):
        original = _stated(tuned.points, measured.over, stated)
        for trial in tuned.asked:
            values = [point.values[measured.over] for point in trial]
            for end, seeds in ends_that_train(measured, trial).items():
                for value in _beyond(values, original, end):
                    yield from _of_seeds(trial, measured.over, value, seeds)


def _bisected(place: Place, measured: Metric) -> Iterator[Config]:
    """Yield the runs that bisect the gaps in which the ranges of seeds end."""
    if measured.over is None:
        return
    for trial in (place.a.best, place.b.best):
        for seed in seeds_of(trial):
            for value in next_values(measured, trial, seed):
                yield from _of_seeds(trial, measured.over, value, [seed])


def _of_seeds(
    trial: Sequence[Point], over: str, value: float, seeds: Sequence[int]
) -> Iterator[Config]:
    """Yield the run of a trial at a value, or a new one, with these seeds."""
    there = [point.config for point in trial if point.values[over] == value]
    for config in there or _at_value(trial, over, value):
        yield with_seeds(config, seeds)


def _with_value(config: Config, key: str, value: float) -> Config:
    group, _, option = key.partition(".")
    whole = getattr(config, group) | {option: value} if option else value
    return replace(config, **{group: whole})


def _fresh(found: Sequence[Place], measured: Metric) -> Iterator[Config]:
    """Yield the chosen runs with their fresh seeds. Those of ranges begin at some of the runs."""
    for place in found:
        for trial in (place.a.best, place.b.best):
            if measured.over is None:
                yield from (with_seeds(p.config, range(place.last.stop)) for p in trial)
            elif new := [seed for seed in place.last if seed not in seeds_of(trial)]:
                for value in first_values(measured, trial):
                    yield from _of_seeds(trial, measured.over, value, new)
