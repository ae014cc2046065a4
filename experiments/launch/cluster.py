"""Runs of a sweep as tasks on a Ray cluster whose machines share a disk.

hydra-ray-launcher provides the configuration and starts Ray. Its own `launch` fetches the results
one by one and stops at the first lost one. Therefore this module waits for all tasks together.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray
from omegaconf import OmegaConf
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from experiments.launch.jobs import Job, Run, by_program, error_line
from experiments.training.watch import Event, RunFailed, RunLost, RunStarted, Watch

POLL_SECONDS = 0.2  # time between two reads of the mailbox


def launch(
    jobs: Sequence[Job], run: Run, watch: Watch, init: Mapping[str, Any], remote: Mapping[str, Any]
) -> list[RunFailed]:
    """Run each job as a task, and return the failures.

    Args:
        init: the arguments of `ray.init`.
        remote: the arguments of `ray.remote`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"os\.fork\(\)")  # Ray forks and then execs
        start_ray(OmegaConf.create(dict(init)))
    try:
        mailbox = _mailbox()
        task = ray.remote(**OmegaConf.to_container(OmegaConf.create(dict(remote))))(_task)
        tasks: dict[Any, Job] = {}
        for job in (job for group in by_program(jobs) for job in group):
            same = [ref for ref, other in tasks.items() if other.name == job.name]
            arguments = (run, job.config, mailbox, os.getcwd(), *same[-1:])
            tasks[task.options(name=job.name).remote(*arguments)] = job
        return _watch(tasks, mailbox, watch)
    finally:
        ray.shutdown()


def _task(run: Run, config: Any, mailbox: Any, directory: str, *after: Any) -> str | None:
    """Run a job in the directory of the sweep, and return its error, if any.

    The task starts when the tasks `after` have ended, so that two tasks never train the same run.
    """
    sent = None

    def tell(event: Event) -> None:
        nonlocal sent
        sent = mailbox.put.remote(
            event
        )  # do not wait here: Ray gives the core of a waiting task away

    try:
        os.chdir(directory)
        run([config], tell)
        return None
    except Exception as error:
        return error_line(error)
    finally:
        ray.wait([sent] if sent else [])


class _Mailbox:
    """Collects the events of all tasks."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        taken, self._events = self._events, []
        return taken


def _mailbox() -> Any:
    """Create the mailbox on this machine, so that it survives the loss of another one."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()


def _watch(tasks: dict[Any, Job], mailbox: Any, watch: Watch) -> list[RunFailed]:
    """Pass on the events until all tasks have ended. Ray itself restarts lost tasks."""
    failures: list[RunFailed] = []
    begun: set[str] = set()
    while tasks:
        ended, _ = ray.wait(list(tasks), timeout=POLL_SECONDS)
        for event in ray.get(mailbox.take.remote()):
            if isinstance(event, RunStarted):
                if event.run in begun:
                    watch(RunLost(event.run, "its process or machine was lost"))
                begun.add(event.run)
            watch(event)
        for ref in ended:
            job = tasks.pop(ref)
            begun.discard(job.name)
            if error := _error(ref):
                failures.append(RunFailed(job.name, error))
                watch(failures[-1])
    return failures


def _error(ref: Any) -> str | None:
    """Return the error of a task, or None."""
    try:
        return ray.get(ref)
    except RayError as error:
        return error_line(error)
