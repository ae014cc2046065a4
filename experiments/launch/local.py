"""Runs of a sweep on this machine: sequentially, or in one process for each core."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from experiments.launch.jobs import Job, Run, by_program, error_line, run_sequentially
from experiments.training.watch import RunFailed, RunLost, Watch

ATTEMPTS = 2  # how often a run is started if its process dies
METHODS = ("forkserver", "spawn")  # a copy of a process that has imported all starts at once
IMPORTED = ["experiments.launch.run", "experiments.launch.preloaded"]


class _Failed(NamedTuple):
    """The message from a process whose job failed. A process sends None after success."""

    error: str


def launch(jobs: Sequence[Job], run: Run, watch: Watch, workers: int | None) -> list[RunFailed]:
    """Run the jobs in `workers` single-core processes, and return the failures.

    Args:
        run: trains configurations that share a program. It and they are pickled.
        watch: is called in this process with the events of all processes.
        workers: None means the number of cores, or 1 if a job needs a process of its own. With 1,
            the jobs run in this process on all cores, except those that need their own.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    alone = any(job.alone for job in jobs)
    most = 1 if alone else len(cores) or os.cpu_count() or 1
    num_workers = min(workers or most, len(jobs))
    if num_workers == 1 and alone:
        return _Pool(run, watch, [None]).run(jobs)
    if num_workers == 1:
        return run_sequentially([[job] for group in by_program(jobs) for job in group], run, watch)
    pool = _Pool(run, watch, [cores[n % len(cores)] if cores else None for n in range(num_workers)])
    return pool.run(jobs)


class _Worker:
    """A process on a core, its current job, and the program that it compiled last."""

    def __init__(self, run: Run, core: int | None) -> None:
        self.core = core
        self.job: Job | None = None
        self.program: str | None = None
        self.connection, its_end = multiprocessing.Pipe()
        context = _context()
        self.process = context.Process(target=_work, args=(its_end, run, core))
        resource_tracker.ensure_running()  # its start would unblock the signal
        signal.pthread_sigmask(
            signal.SIG_BLOCK, [signal.SIGINT]
        )  # only this process handles Ctrl-C
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        its_end.close()

    def give(self, job: Job) -> None:
        self.job, self.program = job, job.program
        with contextlib.suppress(OSError):  # `_listen` detects that the process has ended
            self.connection.send(job.config)

    def end(self) -> str:
        """Kill the process if it is still running, and return how it ended."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        code = self.process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"its process ended {how}"


def _context() -> multiprocessing.context.BaseContext:
    """Return how processes start here, with the modules that they import."""
    there = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context(next(way for way in METHODS if way in there))
    context.set_forkserver_preload(IMPORTED)
    return context


def _work(connection: Connection, run: Run, core: int | None) -> None:
    """Run the jobs that arrive, and send their events."""
    if core is not None:
        os.sched_setaffinity(0, [core])  # XLA starts one thread for each visible core
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        config = connection.recv()
        try:
            run([config], connection.send)
            connection.send(None)
        except Exception as error:
            connection.send(_Failed(error_line(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class _Pool:
    """One worker for each entry of `cores`. A core can occur more than once."""

    def __init__(self, run: Run, watch: Watch, cores: Sequence[int | None]) -> None:
        self._run, self._watch = run, watch
        self._free_cores = list(cores)
        self._workers: list[_Worker] = []
        self._waiting: list[Job] = []
        self._lost: list[Job] = []
        self._failures: list[RunFailed] = []

    def run(self, jobs: Sequence[Job]) -> list[RunFailed]:
        self._waiting = list(jobs)
        try:
            while True:
                self._give()
                busy = {w.connection: w for w in self._workers if w.job is not None}
                if not busy:
                    return self._failures
                for connection in wait(list(busy)):
                    self._listen(busy[connection])
        finally:
            for worker in self._workers:
                worker.end()

    def _give(self) -> None:
        """Give a job to each idle worker, and start a worker on each free core.

        A job that needs a process of its own gets a new one.
        """
        for worker in [*self._workers]:
            if worker.job is None and (job := self._next(worker.program)):
                if job.alone:
                    self._waiting.insert(0, job)
                    self._end(worker)
                else:
                    worker.give(job)
        while self._free_cores and (job := self._next(None)):
            self._workers.append(_Worker(self._run, self._free_cores.pop(0)))
            self._workers[-1].give(job)

    def _next(self, program: str | None) -> Job | None:
        """Take a job of the same program, else of a program without a worker, else any job.

        Two workers never train the same run at the same time.
        """
        running = {worker.job.name for worker in self._workers if worker.job}
        compiled = {worker.program for worker in self._workers}
        fitting = [job for job in self._waiting if job.name not in running]
        if not fitting:
            return None
        same = [job for job in fitting if job.program == program]
        new = [job for job in fitting if job.program not in compiled]
        job = (same or new or fitting)[0]
        self._waiting.remove(job)
        return job

    def _listen(self, worker: _Worker) -> None:
        job = worker.job
        assert job is not None
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._lose(worker, job)
            return
        if message is None:
            worker.job = None
            if job.alone:
                self._end(worker)
        elif isinstance(message, _Failed):
            worker.job = None
            self._fail(job, message.error)
        else:
            self._watch(message)

    def _lose(self, worker: _Worker, job: Job) -> None:
        """Handle the end of a process: queue its job again, or let it fail after `ATTEMPTS`."""
        how = self._end(worker)
        self._lost.append(job)
        if self._lost.count(job) < ATTEMPTS:
            self._waiting.insert(0, job)
            self._watch(RunLost(job.name, how))
        else:
            self._fail(job, f"{how}, as in the previous attempt")

    def _end(self, worker: _Worker) -> str:
        self._workers.remove(worker)
        self._free_cores.append(worker.core)
        return worker.end()

    def _fail(self, job: Job, error: str) -> None:
        self._failures.append(RunFailed(job.name, error))
        self._watch(self._failures[-1])
