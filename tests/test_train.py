"""The command line: runs and studies, skipped and interrupted runs, errors before training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from hydra import initialize_config_dir

from experiments import train
from experiments.config import register_schemas
from experiments.runs import is_finished, run_directory, write_result
from experiments.study import CONFIG_DIR, grid
from experiments.training import Epoch

ROOT = Path(__file__).parent.parent
TINY = ("epochs=1", "seeds=2", "model.channels=[4]", "batch_size=256")
FILES = {"config.yaml", "history.json", "result.json"}


@pytest.fixture(autouse=True)
def promotion():
    """Optax's schedules mix integer steps and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def places(tmp_path):
    """Overrides that keep runs and data out of the working tree."""
    return (f"output={tmp_path}/runs", f"data.directory={tmp_path}/data")


@pytest.fixture
def call(monkeypatch):
    """Call the command line in this process."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # which main sets
        train.main()

    return main


def composed(*overrides):
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        [config] = grid(overrides)
    return config


def program(module, *arguments):
    """Run a program on a pipe, where warnings are errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", f"experiments.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_run_leaves_its_files_and_is_not_run_again(call, places, capsys):
    call(*TINY, *places)
    directory = run_directory(composed(*TINY, *places))
    assert {path.name for path in directory.iterdir()} == FILES
    assert {path.name for path in directory.parent.iterdir()} == {directory.name}
    written = (directory / "result.json").stat().st_mtime_ns
    result = json.loads((directory / "result.json").read_text())
    assert [seed["seed"] for seed in result["seeds"]] == [0, 1]
    assert all(0 <= seed["test_accuracy"] <= 1 for seed in result["seeds"])
    assert {"python", "jax", "flax", "jaxnorm"} <= set(result["versions"])
    capsys.readouterr()

    call(*TINY, *places)
    assert capsys.readouterr().out == f"[1/1] {directory.name}: already done, see {directory}\n"
    assert (directory / "result.json").stat().st_mtime_ns == written


def test_an_interrupted_run_is_run_again(call, places, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    config = composed(*TINY, *places)
    with monkeypatch.context() as patched:
        patched.setattr(train, "train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train.run(config)
    assert {path.name for path in run_directory(config).iterdir()} == {"config.yaml"}
    call(*TINY, *places)
    assert is_finished(run_directory(config))


def test_a_bug_is_not_taken_for_a_wrong_configuration(call, places, monkeypatch):
    def fail(*args):
        raise ValueError("a bug")

    monkeypatch.setattr(train, "train", fail)
    with pytest.raises(ValueError, match="a bug"):
        call(*TINY, *places)


def test_the_directory_follows_what_determines_the_result():
    base = composed()
    for same in ("data.directory=elsewhere", "study.name=other", "distributed=auto"):
        assert run_directory(composed(same)) == run_directory(base)
    for other in ("epochs=3", "seeds=2", "norm.momentum=0.5", "optimizer=adam", "sync=local"):
        assert run_directory(composed(other)) != run_directory(base)
    assert run_directory(base).name.startswith("digits-cnn-batch-batch16-")
    assert run_directory(composed("output=elsewhere")) == Path(
        "elsewhere", run_directory(base).name
    )


def test_a_loss_that_is_not_finite_is_written_as_null(tmp_path):
    epoch = Epoch(0, 1, 5, float("nan"), 0.1, float("inf"), 0.1)
    write_result(tmp_path, [[epoch]], seconds=1.0)
    [seed] = json.loads((tmp_path / "result.json").read_text())["seeds"]
    assert seed["train_loss"] is seed["test_loss"] is None
    assert seed["test_accuracy"] == 0.1


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["batchsize=8"], ["no key 'batchsize'", "batch_size"]),
        (["norm=grup"], ["no choice 'grup'", "group"]),
        (["norm=ghost_batch", "norm.ghost_size=5"], ["norm.ghost_size is 5", "1, 2, 4, 8, 16"]),
        (["norm=batch,layer"], ["norm=batch,layer", "--multirun"]),
        (["study=norms", "batch_size=16,2000"], ["batch_size is 2000", "1437"]),
        (["study=norms", "norm=batch,grup"], ["no choice 'grup'", "group"]),
        (["study=norms", "norm.epsilon=1"], ["no key 'epsilon' in norm"]),
        (["--multirun", "epochs=1,0"], ["epochs is 0"]),
        (["sync=group", "sync.num_groups=3"], ["sync.num_groups is 3", "8 devices"]),
        (["--multirun", "distributed=off,auto"], ["distributed differs"]),
        (["distributed=auto"], ["distributed=auto failed", "else manual with"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_right_stops_before_training(call, places, tmp_path, arguments, fragments):
    with pytest.raises(SystemExit) as stopped:
        call(*arguments, *places)
    assert isinstance(stopped.value.code, str), "printed, and exit code 1"
    for fragment in fragments:
        assert fragment in stopped.value.code
    assert not list(tmp_path.iterdir()), "neither data nor runs"


@pytest.mark.long
def test_a_wrong_command_ends_without_a_traceback(places, tmp_path):
    ended = program("train", "--multirun", "study=norms", "epoch=3", *places)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: there is no key 'epoch'; the keys are batch_size")
    assert len(ended.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_study_from_its_command_to_its_page(places, tmp_path):
    study = ("study=norms", "norm=none,group", *TINY, *places)
    ended = program("train", "--multirun", *study)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert all(line.isprintable() for line in lines), "no control characters"
    assert len(lines) == 4, "each run starts and ends"
    assert lines[0].startswith("[1/2] digits-cnn-none-batch256-")
    assert lines[0].endswith(": training")
    assert lines[-1].startswith("[2/2] digits-cnn-group-batch256-")
    assert "test accuracy" in lines[-1]
    directories = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert len(directories) == 2
    assert all({path.name for path in each.iterdir()} == FILES for each in directories)

    ended = program("report", *study)
    assert (ended.returncode, ended.stderr) == (0, "")
    page = tmp_path / "runs" / "norms.html"
    assert ended.stdout.splitlines()[-1] == f"report: {page}"
    html = page.read_text()
    for directory in directories:
        result = json.loads((directory / "result.json").read_text())
        mean = sum(100 * seed["test_accuracy"] for seed in result["seeds"]) / 2
        assert f"{mean:.1f} ± " in ended.stdout
        assert f"{mean:.1f} ± " in html
