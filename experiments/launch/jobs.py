"""The runs of a sweep as jobs, and their sequential execution."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from experiments.training.watch import RunFailed, Watch

Run = Callable[[Sequence[Any], Watch], None]


class Job(NamedTuple):
    """A run of a sweep. Jobs with the same program share its compilation.

    Attributes:
        alone: whether it needs a process of its own.
    """

    name: str
    program: str
    config: Any
    alone: bool = False


def by_program(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs grouped by program, in the order in which the programs first occur."""
    order = {program: n for n, program in enumerate(dict.fromkeys(job.program for job in jobs))}
    ordered = sorted(jobs, key=lambda job: order[job.program])
    return [list(group) for _, group in groupby(ordered, key=lambda job: job.program)]


def run_sequentially(groups: Sequence[Sequence[Job]], run: Run, watch: Watch) -> list[RunFailed]:
    """Run groups of jobs one after the other in this process, and return the failures.

    The jobs of a group run together. If a group fails, its jobs are run one by one to find the
    ones that fail.
    """
    failures: list[RunFailed] = []
    for group in groups:
        try:
            run([job.config for job in group], watch)
        except Exception as error:
            if len(group) > 1:
                failures += run_sequentially([[job] for job in group], run, watch)
            else:
                failures.append(RunFailed(group[0].name, error_line(error)))
                watch(failures[-1])
    return failures


def error_line(error: Exception) -> str:
    """Return an error as one line. A traceback from XLA is reduced to its last line."""
    lines = str(error).strip().splitlines() or [""]
    said = lines[-1] if lines[0].endswith("(most recent call last):") else lines[0]
    return f"{type(error).__name__}: {said}"
