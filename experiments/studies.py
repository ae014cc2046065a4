"""Train and report all studies of `configs/study`.

    python -m experiments.studies                      # all of them, in processes on all cores
    python -m experiments.studies --only ghost renorm  # some
    python -m experiments.studies --smoke              # a check: one seed, few steps
    python -m experiments.studies seeds=2 output=few   # with overrides for every study

Runs are trained in waves: the grid of every study, then the runs that the rule of the verdict adds
(`experiments.launch.stages`), until it asks no more. The same command again trains what is missing.
The page of each study is runs/NAME.html, and runs/index.html shows all studies with their verdicts.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from experiments.config import Config, register_schemas
from experiments.errors import ConfigError, choice
from experiments.launch.contrast import arms_of
from experiments.launch.labels import labels
from experiments.launch.progress import display
from experiments.launch.selection import picked
from experiments.launch.stages import by_run, planned
from experiments.launch.study import (
    CONFIG_DIR,
    NOT_INSTALLED,
    check,
    check_contrast,
    composed,
    explain,
    fallback,
)
from experiments.launch.sweep import failed, train
from experiments.launch.validation import validate_devices
from experiments.report import changes, command, studies, write_report
from experiments.reports.results import Point, collect
from experiments.runs.directory import run_directory
from experiments.training import parallel
from experiments.training.watch import RunFailed

LEFT = "it is unfinished after training, so its code or data changed meanwhile; start again"
SMOKE = ("seeds=1", "steps=4", "evaluate_every=2", "output=runs/smoke")


def run_all(names: Sequence[str], overrides: Sequence[str], *, smoke: bool) -> None:
    """Train and report the studies. If runs fail, exit with a list of them.

    Raises:
        HydraException: an override does not fit the configuration.
        ConfigError: a run is invalid.
    """
    asked = {name: [f"study={name}", *(SMOKE if smoke else ()), *overrides] for name in names}
    configs = {name: _composed(name, each, smoke) for name, each in asked.items()}
    for name, each in asked.items():
        if instead := fallback(each):
            print(f"{name}: {NOT_INSTALLED.format(' '.join(instead))}", file=sys.stderr)
    failures = _train_in_waves(configs)
    every = {name: planned(each) for name, each in configs.items()}
    for name, points in every.items():
        _report(points, asked[name])
    if failures:
        sys.exit(failed(failures, sum(map(len, every.values()))))


def _composed(name: str, overrides: Sequence[str], smoke: bool) -> list[Config]:
    """Return the checked runs of a study.

    Raises:
        HydraException: an override does not fit the configuration.
        ConfigError: a run is invalid. The message begins with the name of the study.
    """
    try:
        configs = composed(overrides)
        check_contrast(overrides, configs)
        configs = _smoke_runs(configs) if smoke else configs
        check(configs)
    except ConfigError as error:
        lines = [f"{name}: {line}" for line in str(error).splitlines()]
        raise ConfigError("\n".join(lines)) from error
    return configs


def _smoke_runs(configs: Sequence[Config]) -> list[Config]:
    """Return the first run of the first arm of a study, or its first run, without its contrast."""
    study = configs[0].study
    arm = arms_of(study.contrast)[0][0] if study.contrast else ""
    first = next(config for config in configs if picked(config, arm))
    return [replace(first, study=replace(study, contrast=None, metric="test_accuracy"))]


def _train_in_waves(configs: Mapping[str, Sequence[Config]]) -> list[RunFailed]:
    """Train the runs of all studies until the rule asks no more. A study with a failure stops."""
    failures: list[RunFailed] = []
    wave = configs
    while wave:
        failed_runs = {failure.run for failure in failures}
        asked = {name: _unfinished(planned(configs[name])) for name in wave}
        wave = {
            name: unfinished
            for name, unfinished in asked.items()
            if unfinished and not failed_runs & _names(unfinished)
        }
        if wave:
            failures += _train(wave)
        left = _names(_unfinished(collect([config for each in wave.values() for config in each])))
        failures += [RunFailed(name, LEFT) for name in left - {each.run for each in failures}]
    return failures


def _names(configs: Sequence[Config]) -> set[str]:
    return {run_directory(config).name for config in configs}


def _unfinished(points: Sequence[Point]) -> list[Config]:
    return [point.config for point in points if point.unfinished]


def _train(configs: Mapping[str, Sequence[Config]]) -> list[RunFailed]:
    """Train runs with the same launcher and devices together; those for one process come last."""
    every = list(by_run(config for each in configs.values() for config in each).values())
    for config in every:
        validate_devices(config, parallel.num_devices(config.parallel), 1)
    run_labels = {
        run_directory(config).name: f"{name} {label}"
        for name, each in configs.items()
        for config, label in zip(each, labels(each), strict=True)
    }
    display.start_study("all studies", len(every), run_labels)
    ordered = sorted(every, key=_pool_key, reverse=True)
    groups = [list(group) for _, group in groupby(ordered, key=_pool_key)]
    try:
        return [failure for group in groups for failure in train(group)]
    finally:
        display.stop()


def _pool_key(config: Config) -> tuple[int, int, str]:
    workers = getattr(config.launcher, "workers", None)
    devices = config.parallel.virtual_devices
    return (workers or sys.maxsize, -(devices or 0), config.launcher.name)


def _report(points: Sequence[Point], overrides: Sequence[str]) -> None:
    """Report a study if any seed of it is finished."""
    if any(point.seeds for point in points):
        changed = [*fallback(overrides), *changes(overrides)]
        write_report(points[0].config, points, command(overrides), Console(), changed)


def main() -> None:
    """Run the command line. An error ends in a message and an exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.studies", description="Train and report all studies."
    )
    parser.add_argument("overrides", nargs="*", help="for every study, such as seeds=2 output=few")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="train and report only these studies"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="check that the studies run: a run of each, one seed, few steps",
    )
    arguments = parser.parse_args()
    only = [each for each in arguments.only if "=" not in each]
    overrides = [*arguments.overrides, *(each for each in arguments.only if "=" in each)]
    register_schemas()
    try:
        if wrong := [*_unknown(only)]:
            raise ConfigError("; ".join(wrong))
        with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
            run_all(only or studies(), overrides, smoke=arguments.smoke)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        sys.exit(explain(error))


def _unknown(names: Sequence[str]) -> list[str]:
    known = [*studies(), *studies("*/*.yaml")]
    return [problem for name in names for problem in choice("--only", name, known)]


if __name__ == "__main__":
    main()
