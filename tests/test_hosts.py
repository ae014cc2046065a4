"""Several processes: the same run as in one, ended together, by the documented commands."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from runs_of import composed, curves, trained
from waiting import PATIENCE, until

from experiments.runs.directory import run_directory
from experiments.training.setup import make_setup

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "experiments.md").read_text()
COMMANDS = re.findall(r"^    (python -m experiments\.train .*distributed=manual.*)$", PAGE, re.M)
SHORT = ("epochs=2", "seeds=1", "model.channels=[4]", "batch_size=480")
PATIENT = f"distributed.timeout={PATIENCE}"


@pytest.fixture
def places(tmp_path):
    """Overrides that keep runs and data out of the working tree, and a free port."""
    make_setup(composed(f"data.directory={tmp_path}/data")).source.load(0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return (
        f"distributed.coordinator=127.0.0.1:{port}",
        f"output={tmp_path}/runs",
        f"data.directory={tmp_path}/data",
    )


@pytest.fixture
def start(tmp_path):
    """Start a process of a run with one device; what still runs at the end of a test is killed."""
    started = []

    def process(arguments, **environment):
        output = (tmp_path / f"output{len(started)}").open("w+")
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.train", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        started.append((process, output))
        return process

    def text(process):
        return next(Path(o.name).read_text() for p, o in started if p is process)

    process.text = text
    yield process
    for each, output in started:
        each.kill()
        each.wait()
        output.close()


def manual(index, *arguments, patient=PATIENT):
    return (
        "distributed=manual",
        patient,
        "distributed.processes=2",
        f"distributed.index={index}",
        *SHORT,
        *arguments,
    )


KEYS = ("train_loss", "validation_loss", "validation_accuracy")


def history(places):
    [path] = Path(places[1].removeprefix("output=")).glob("*/seed-0/history.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return np.array([[record[key] for key in KEYS] for record in records])


def in_one_process(places, *arguments):
    config = composed(*SHORT, *arguments, places[2], f"{places[1]}/alone")
    with jax.numpy_dtype_promotion("standard"):
        trained(config)
    return np.array(curves(config))[:, [0, 2, 3]]


@pytest.mark.long
def test_the_commands_of_the_readme_run_as_written(places, start, tmp_path):
    assert [re.search(r"index=(\d)", command)[1] for command in COMMANDS] == ["0", "1"]
    processes = []
    for command in COMMANDS:
        arguments = shlex.split(command.removesuffix(" &"))[3:]
        processes.append(start([*arguments, *SHORT, PATIENT, *places]))
    for process in processes:
        assert process.wait(timeout=PATIENCE) == 0, start.text(process)
    first, second = (start.text(process) for process in processes)
    assert "test accuracy" in first
    assert "accuracy" not in second, "one process prints"
    assert "training" not in second
    np.testing.assert_allclose(history(places), in_one_process(places), atol=2e-6)


@pytest.mark.slow
def test_processes_that_slurm_starts_find_each_other(places, start):
    options = (*SHORT, "parallel=shard_map", "sync=group")
    processes = [
        start(
            ("distributed=auto", PATIENT, *options, *places[1:]),
            SLURM_JOB_ID=str(places[0].rpartition(":")[2]),  # by which JAX chooses the port
            SLURM_STEP_NODELIST="127.0.0.1",
            SLURM_NTASKS="2",
            SLURM_PROCID=str(index),
            SLURM_LOCALID=str(index),
        )
        for index in (0, 1)
    ]
    for process in processes:
        assert process.wait(timeout=PATIENCE) == 0, start.text(process)
    # The same two groups on eight devices.
    expected = in_one_process(places, *options)
    np.testing.assert_allclose(history(places), expected, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "how", "way"), [(1, signal.SIGKILL, "pmap"), (0, signal.SIGSTOP, "jit")]
)
def test_a_process_that_dies_or_hangs_ends_the_other(places, start, victim, how, way):
    options = ("epochs=100000", f"parallel={way}", *places)
    processes = [
        start(manual(index, *options, patient="distributed.timeout=30")) for index in (0, 1)
    ]
    run = Path(places[1].removeprefix("output="))
    until(lambda: list(run.glob("*/seed-0/history.jsonl")), "evaluation")
    assert [process.poll() for process in processes] == [None, None]
    processes[victim].send_signal(how)
    other = processes[1 - victim]
    assert other.wait(timeout=PATIENCE) not in (0, None)
    text = start.text(other)
    assert "another process has ended" in text or "another task died" in text
    assert not list(Path(places[1].removeprefix("output=")).glob("*/seed-0/result.json"))


@pytest.mark.slow
def test_processes_that_are_killed_go_on_together(places, start, tmp_path):
    run = Path(places[1].removeprefix("output="))
    options = ("steps=400", "evaluate_every=200", "checkpoint_every=20", *places)
    first = [start(manual(index, *options)) for index in (0, 1)]
    until(lambda: list(run.glob("*/seed-0/checkpoints/60")), "third checkpoint")
    for process in first:
        process.kill()
    for process in first:
        process.wait()
    second = [start(manual(index, *options)) for index in (0, 1)]
    for process in second:
        assert process.wait(timeout=PATIENCE) == 0, start.text(process)
    [log] = run.glob("*/log.txt")
    begun = [line for line in log.read_text().splitlines() if "begins at step" in line]
    assert len(begun) == 2
    assert "begins at step 0 " not in begun[1]
    whole = [start(manual(index, *options, f"{places[1]}/whole")) for index in (0, 1)]
    for process in whole:
        assert process.wait(timeout=PATIENCE) == 0, start.text(process)
    results = [json.loads(path.read_text()) for path in run.rglob("result.json")]
    assert len({result["parameters"] for result in results}) == 1 == len(results) - 1


@pytest.mark.slow
def test_a_process_that_fails_ends_the_other(places, start):
    directory = run_directory(composed(*SHORT, *places[1:]))
    directory.parent.mkdir()
    directory.write_text("a file where process 0 wants a directory")
    processes = [start(manual(index, *places)) for index in (0, 1)]
    for process in processes:
        assert process.wait(timeout=PATIENCE) not in (0, None)
    assert "FileExistsError" in start.text(processes[0])


@pytest.mark.slow
def test_processes_of_different_runs_are_told(places, start):
    processes = [start(manual(index, f"epochs={2 + index}", *places)) for index in (0, 1)]
    for process in processes:
        assert process.wait(timeout=PATIENCE) not in (0, None)
    assert "give all processes the same configuration" in start.text(processes[1])


@pytest.mark.slow
def test_who_waits_in_vain_is_told(places, start):
    process = start(manual(1, *places, patient="distributed.timeout=2"))
    assert process.wait(timeout=PATIENCE) not in (0, None)
    assert "waiting up to 2 s for the other processes" in start.text(process)
    assert "DEADLINE_EXCEEDED" in start.text(process)
