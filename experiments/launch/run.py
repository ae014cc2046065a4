"""Trains the missing seeds of one run, or of several runs that share a compiled program."""

import contextlib
import fcntl
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import Config
from experiments.errors import ConfigError
from experiments.runs import records
from experiments.runs.code import made_from
from experiments.runs.directory import program_key, run_directory
from experiments.runs.events import Events
from experiments.training import hosts
from experiments.training.checkpoints import Checkpoints, full_disk_as_config_error, save_final
from experiments.training.fit import Saved, SeedRun, fit
from experiments.training.parallel import make_devices
from experiments.training.program import Program, compile_program
from experiments.training.setup import Setup, make_setup
from experiments.training.watch import Ended, Resumed, RunEnded, RunStarted, Update, Watch


def run(configs: Sequence[Config], watch: Watch) -> None:
    """Train the missing seeds of runs that share a program. Each seed is saved when it ends.

    Results of other code are made again, unless the configuration keeps them. With several
    processes, only the first one writes.
    """
    make_devices(configs[0].parallel)
    setup = make_setup(configs[0])
    with full_disk_as_config_error(Path(configs[0].output)), contextlib.ExitStack() as held:
        for config in configs:
            directory = run_directory(config)
            hosts.check_same_run(config, directory.name)
            if hosts.is_first():
                directory.mkdir(parents=True, exist_ok=True)
                held.enter_context(_lock(directory))
                records.write_config(directory, config)
                held.enter_context(_log_file(directory))
        seeds = {run_directory(config): _begin(config, watch) for config in configs}
        _train(setup, [seed for of_run in seeds.values() for seed in of_run], watch)
        for config in configs:
            directory = run_directory(config)
            watch(RunEnded(directory.name, _outcome(config, bool(seeds[directory]))))


def _log(directory: Path) -> logging.Logger:
    return logging.getLogger(f"experiments.runs.{directory.name}")


def _begin(config: Config, watch: Watch) -> list[SeedRun]:
    """Announce a run, and return the seeds to train."""
    directory = run_directory(config)
    stale, missing = [], []
    today = made_from(config)
    for seed in config.seed_numbers:
        result = records.read_result(directory, seed)
        if result is None:
            missing.append(seed)
        elif records.is_stale(result, today):
            stale.append(seed)
    trained = missing if config.keep_stale else sorted(missing + stale)
    trained = hosts.from_first_process(trained)
    note = ""
    if stale:
        what = "kept" if config.keep_stale else "made again"
        which = ", ".join(map(str, stale))
        note = f"seeds {which} have results of other code or data, which are {what}"
        _log(directory).info(note)
    if trained or note:
        watch(RunStarted(directory.name, len(trained), note))
    return [SeedRun(config, seed) for seed in trained]


def _train(setup: Setup, seeds: Sequence[SeedRun], watch: Watch) -> None:
    if not seeds:
        return
    program = _program(program_key(seeds[0].config), seeds[0].config, setup)
    groups = [seeds] if program.together else [[seed] for seed in seeds]
    for group in groups:
        callbacks = [_Callbacks(seed, setup, watch) for seed in group]
        try:
            for alike in _by_step(callbacks):
                fit(program, setup, [one.seed_run for one in alike], alike)
        finally:
            for one in callbacks:
                one.close()


def _by_step(callbacks: Sequence["_Callbacks"]) -> list[list["_Callbacks"]]:
    """Group seeds by their starting step: seeds that are trained together start together."""
    by_step: dict[int, list[_Callbacks]] = {}
    for one in callbacks:
        by_step.setdefault(max(one.saved_steps(), default=0), []).append(one)
    return list(by_step.values())


_compiled: dict[str, Program] = {}


def _program(key: str, config: Config, setup: Setup) -> Program:
    """Return the program of a configuration. The latest one is cached for the next runs."""
    if key not in _compiled:
        _compiled.clear()
        _compiled[key] = compile_program(config, setup)
    return _compiled[key]


class _Callbacks:
    """The files and events of one seed."""

    def __init__(self, seed_run: SeedRun, setup: Setup, watch: Watch) -> None:
        self.seed_run = seed_run
        self.config, self.seed = seed_run
        self.run = run_directory(self.config)
        self.directory = records.seed_directory(self.run, self.seed)
        self.total_steps, self.watch = setup.total_steps, watch
        self.log = _log(self.run)
        self.accuracy: float | None = None
        self.events: Events | None = None
        if hosts.is_first():
            self._clear()
        hosts.meet("seed")
        self.checkpoints = Checkpoints(self.directory / "checkpoints", self.config.keep_checkpoints)

    def _clear(self) -> None:
        """Remove files that other code or data made, and a result that is made again."""
        made_by = self.directory / "code.txt"
        code = "".join(f"{key} {value}\n" for key, value in made_from(self.config).items())
        if not made_by.exists() or made_by.read_text() != code:
            shutil.rmtree(self.directory, ignore_errors=True)
        (self.directory / records.RESULT).unlink(missing_ok=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        made_by.write_text(code)

    def saved_steps(self) -> list[int]:
        return hosts.from_first_process(self.checkpoints.steps())

    def restore(self, step: int, like: Saved) -> Saved | None:
        return self.checkpoints.restore(step, like)

    def save(self, step: int, saved: Saved) -> None:
        self.checkpoints.save(step, saved)

    def on_start(self, step: int) -> None:
        self.log.info("seed %d begins at step %d of %d", self.seed, step, self.total_steps)
        if step:
            self.watch(Resumed(self.run.name, self.seed, step))
        self.checkpoints.drop_after(step)
        if hosts.is_first():
            history = records.cut_history(self.run, self.seed, step)
            self.events = Events(self.directory, history)
            if history:
                self.accuracy = history[-1]["validation_accuracy"]

    def on_progress(self, step: int, loss: float) -> None:
        self._tell(step, loss)

    def on_evaluation(self, record: dict[str, Any]) -> None:
        self.accuracy = record["validation_accuracy"]
        self._tell(record["step"], record["train_loss"])
        self.log.info(
            "seed %d, step %d: train loss %.4f, validation loss %.4f, accuracy %.4f",
            self.seed,
            record["step"],
            record["train_loss"],
            record["validation_loss"],
            record["validation_accuracy"],
        )
        if self.events:
            record = records.finite(record)
            records.add_to_history(self.run, self.seed, record)
            self.events.add(record)

    def _tell(self, step: int, loss: float) -> None:
        self.watch(Update(self.run.name, self.seed, step, self.total_steps, loss, self.accuracy))

    def on_end(self, result: dict[str, Any], variables: dict[str, Any]) -> None:
        if self.seed == 0:
            save_final(self.directory, variables)
        if hosts.is_first():
            records.write_result(self.run, self.seed, self.config, result)
        self.log.info(
            "seed %d %s at step %d, test accuracy %.1f%% in %.1f s",
            self.seed,
            result["ended"],
            result["step"],
            100 * result["test_accuracy"],
            result["seconds"],
        )
        self.watch(Ended(self.run.name, self.seed, result["ended"]))

    def close(self) -> None:
        self.checkpoints.close()
        if self.events:
            self.events.close()


def _outcome(config: Config, trained: bool) -> str:
    """Return a summary of a run over all its seeds."""
    directory = run_directory(config)
    if not trained:
        return f"already done, see {directory}"
    if not hosts.is_first():
        return "done"
    results = [records.read_result(directory, seed) for seed in config.seed_numbers]
    there = [result for result in results if result is not None]
    accuracy = np.mean([result["test_accuracy"] for result in there])
    diverged = sum(result["ended"] == "diverged" for result in there)
    stopped = sum(result["ended"] == "stopped" for result in there)
    seconds = sum(result["seconds"] for result in there)
    note = "".join(
        f", {number} of {len(there)} seeds {how}"
        for how, number in (("diverged", diverged), ("stopped at the target", stopped))
        if number
    )
    return f"test accuracy {accuracy:.1%}{note} in {seconds:.1f} s"


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a run. The system releases it even if the process dies.

    Raises:
        ConfigError: another process holds it.
    """
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process trains {directory}; wait until it ends, or give another output"
            ) from error
        yield


class _LogFile(logging.FileHandler):
    """A log file that ignores write errors. If the disk is full, writing the results raises."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextlib.contextmanager
def _log_file(directory: Path) -> Iterator[None]:
    """Write the logs of the run, of training and of orbax ("absl") to the log file of the run.

    None of them goes to the terminal, which belongs to the display.
    """
    handler = _LogFile(directory / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    own = _log(directory)
    loggers = [own, logging.getLogger("experiments.training"), logging.getLogger("absl")]
    own.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    except Exception:
        own.exception("the run failed")
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
