"""A sweep on a Ray cluster of two machines, of which processes and a machine are lost."""

import json
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hydra import initialize_config_dir
from launch_jobs import trace
from waiting import PATIENCE, until

from experiments.config import register_schemas
from experiments.launch.study import CONFIG_DIR, grid
from experiments.runs.directory import run_directory

pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Start two machines of a core each, to which Ray finds its way."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    machines = started(tmp_path / "cluster.log", str(ROOT / "tests" / "ray_cluster.py"))
    try:
        monkeypatch.setenv("RAY_ADDRESS", machines.stdout.readline().strip())
        yield machines
    finally:
        machines.communicate("\n\n", timeout=PATIENCE)


@pytest.fixture
def sweep(tmp_path):
    """Start the module of a sweep on a pipe."""
    processes = []

    def start(*arguments):
        processes.append(started(tmp_path / "sweep.log", "-W", "error", "-m", *arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def started(log, *arguments):
    with log.open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )


def process_of(task):
    """Wait for the process of a task, and return it."""
    until(lambda: processes_of(task), f"process of {task}")
    return processes_of(task)[0]


def processes_of(task):
    every = psutil.process_iter(["cmdline"])
    return [p for p in every if (p.info["cmdline"] or [""])[0].startswith(f"ray::{task}")]


def line_with(lines, text):
    return next(line for line in lines if text in line)


def test_a_sweep_ends_right_though_a_process_is_killed(cluster, sweep, tmp_path):
    arguments = (
        *("norm=none,batch,layer,group", "seeds=1", "epochs=2", "batch_size=64"),
        *(f"output={tmp_path}/runs", f"data.directory={tmp_path}/data"),
    )
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        directories = [run_directory(config) for config in grid(arguments)]
    directories[0].parent.mkdir()
    directories[-1].touch()  # a file where a run is to have its directory

    process = sweep("experiments.train", "--multirun", "launcher=ray", *arguments)
    first = line_with(process.stdout, "training").split()[1].rstrip(":")
    process_of(first).send_signal(signal.SIGKILL)
    lines = process.stdout.read().splitlines()
    assert process.wait() == 1, "a run has failed"
    assert first in line_with(lines, "its process or machine was lost")
    assert directories[-1].name in line_with(lines, "failed: FileExistsError")
    told = (tmp_path / "sweep.log").read_text().splitlines()
    assert told[-2] == "error: 1 of 4 runs failed"
    assert told[-1].startswith(f"  {directories[-1].name}: FileExistsError")
    results = [directory / "seed-0" / "result.json" for directory in directories[:-1]]
    assert [json.loads(path.read_text())["ended"] for path in results] == ["done"] * 3


def test_the_runs_of_a_lost_machine_go_on_on_another(cluster, sweep, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    process = sweep("launch_jobs", str(files), "ray")
    for _ in range(2):
        line_with(process.stdout, "training")
    cluster.stdin.write("\n")
    cluster.stdin.flush()
    until(lambda: len(processes_of("a") + processes_of("b")) == 1, "loss of the machine")
    trace({"name": "go", "files": str(files)}, "begun")
    lines = process.stdout.read().splitlines()
    assert process.wait() == 0
    assert line_with(lines, "its process or machine was lost")
    assert sorted(line.split()[1] for line in lines if "on core" in line) == ["a:", "b:", "c:"]
    assert lines[-1] == "failures: []"
