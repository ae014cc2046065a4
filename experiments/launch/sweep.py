"""Passes the runs of a sweep to the configured launcher."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments.config import Config, LauncherConfig, Local, with_seeds
from experiments.launch import local
from experiments.launch.jobs import Job, by_program, run_sequentially
from experiments.launch.progress import display
from experiments.launch.run import run
from experiments.reports.results import collect
from experiments.runs.directory import program_key, run_directory
from experiments.training import hosts
from experiments.training.watch import RunFailed


def sweep(configs: Sequence[Config], ray: Mapping[str, Any] | None) -> None:
    """Train the runs of a sweep. If any fail, exit with a list of them."""
    failures = train(configs, ray)
    if failures:
        sys.exit(failed(failures, len(configs)))


def train(configs: Sequence[Config], ray: Mapping[str, Any] | None = None) -> list[RunFailed]:
    """Train runs that have the same launcher, and return the failures.

    A failure is reported immediately, and the other runs continue.
    """
    jobs = [job for config in configs for job in _jobs(config)]
    return _launch(jobs, configs[0].launcher, ray) if jobs else []


def _jobs(config: Config) -> list[Job]:
    """Return the job of a run, or one for each seed if its steps are timed.

    Times vary more between processes than in one, so each timed seed has a process of its own. A
    job trains the unfinished seeds up to its own.
    """
    name, program = run_directory(config).name, program_key(config)
    if config.timed_steps is None:
        return [Job(name, program, config)]
    [point] = collect([config])
    numbers = config.seed_numbers
    up_to = [[number for number in numbers if number <= seed] for seed in point.unfinished]
    return [Job(name, program, with_seeds(config, each), alone=True) for each in up_to]


def failed(failures: Sequence[RunFailed], of: int) -> str:
    """Return a message with the failed runs and their errors."""
    lines = [f"error: {len(failures)} of {of} runs failed"]
    return "\n".join([*lines, *(f"  {failure.run}: {failure.error}" for failure in failures)])


def _launch(
    jobs: Sequence[Job], launcher: LauncherConfig, ray: Mapping[str, Any] | None
) -> list[RunFailed]:
    if hosts.is_distributed():  # if one process fails, all do
        for group in by_program(jobs):
            run([job.config for job in group], display.show)
        return []
    if not isinstance(launcher, Local):
        from experiments.launch import cluster  # needs the extra `ray`

        return cluster.launch(jobs, run, display.show, **(ray or {}))
    if jax.default_backend() != "cpu":
        return run_sequentially(by_program(jobs), run, display.show)
    return local.launch(jobs, run, display.show, launcher.workers)
