"""The command line: runs and studies, skipped and interrupted runs, errors before training."""

import ast
import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import pytest
from runs_of import composed, replaced, result
from waiting import PATIENCE

from experiments import train
from experiments.config import LocalSync
from experiments.launch import run as running
from experiments.runs import code, records
from experiments.runs.directory import run_directory
from experiments.training.setup import make_setup

ROOT = Path(__file__).parent.parent
TINY = ("epochs=1", "seeds=2", "model.channels=[4]", "batch_size=256")
FILES = {"config.yaml", "lock", "log.txt", "seed-0", "seed-1"}
OF_A_SEED = {"checkpoints", "code.txt", "history.jsonl", "result.json"}


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


def program(module, *arguments):
    """Run a program on a pipe, where warnings are errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", f"experiments.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def files(directory):
    return {path.name for path in directory.iterdir()}


def test_a_run_leaves_its_files_and_is_not_run_again(call, places, capsys):
    call(*TINY, *places)
    config = composed(*TINY, *places)
    directory = run_directory(config)
    assert files(directory) == FILES
    assert files(directory.parent) == {directory.name}
    for seed in (0, 1):
        of_seed = files(records.seed_directory(directory, seed))
        events = {name for name in of_seed if name.startswith("events.out.tfevents")}
        assert len(events) == 1
        assert of_seed - events == OF_A_SEED | ({"final"} if seed == 0 else set())
        assert result(config, seed)["seed"] == seed
        assert result(config, seed)["ended"] == "done"
        assert 0 <= result(config, seed)["test_accuracy"] <= 1
        assert {"python", "jax", "flax", "jaxnorm"} <= set(result(config, seed)["versions"])
    written = (directory / "seed-1" / "result.json").stat().st_mtime_ns
    capsys.readouterr()

    call(*TINY, *places)
    assert capsys.readouterr().out == f"[1/1] {directory.name}: already done, see {directory}\n"
    assert (directory / "seed-1" / "result.json").stat().st_mtime_ns == written


@pytest.mark.long
def test_more_seeds_train_only_what_is_missing(call, places, monkeypatch):
    call(*TINY, *places)
    before = result(composed(*TINY, *places))
    trained = []
    monkeypatch.setattr(running, "fit", lambda p, m, runs, c: trained.extend(runs))
    monkeypatch.setattr(running, "_outcome", lambda *arguments: "")
    call(*TINY, *places, "seeds=4")
    assert [member.seed for member in trained] == [2, 3]
    call(*TINY, *places, "seeds=4", "only_seeds=[1,3]")
    assert [member.seed for member in trained] == [2, 3, 3]
    assert result(composed(*TINY, *places)) == before


@pytest.mark.long
def test_results_of_other_code_are_named_and_made_again(call, places, capsys, monkeypatch):
    call(*TINY, *places)
    config = composed(*TINY, *places)
    before = [result(config, seed) for seed in (0, 1)]
    monkeypatch.setattr(code, "code_digest", lambda config: "other")
    capsys.readouterr()
    call(*TINY, *places, "keep_stale=true")
    assert (
        "seeds 0, 1 have results of other code or data, which are kept" in capsys.readouterr().out
    )
    assert [result(config, seed) for seed in (0, 1)] == before
    call(*TINY, *places)
    assert (
        "seeds 0, 1 have results of other code or data, which are made again"
        in capsys.readouterr().out
    )
    for seed in (0, 1):
        assert result(config, seed)["code"] == "other"
        assert result(config, seed)["parameters"] == before[seed]["parameters"]


@pytest.mark.long
def test_a_state_of_other_code_is_not_gone_on_from(call, places, monkeypatch):
    config = composed(*TINY, *places, "checkpoint_every=1")
    end_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        running.run([config], lambda event: None)
    assert files(run_directory(config) / "seed-0" / "checkpoints") == {"2", "3"}
    begun = begins(monkeypatch)
    monkeypatch.setattr(code, "code_digest", lambda config: "other")
    running.run([config], lambda event: None)
    assert begun == [0, 0]


def end_after(monkeypatch, step, seed=0):
    """Interrupt training right after a seed's checkpoint of a step."""
    save = running._Callbacks.save

    def interrupted(callbacks, at, saved):
        save(callbacks, at, saved)
        if (at, callbacks.seed) == (step, seed):
            monkeypatch.setattr(running._Callbacks, "save", save)
            raise KeyboardInterrupt

    monkeypatch.setattr(running._Callbacks, "save", interrupted)


def begins(monkeypatch):
    """The steps from which seeds begin, as they do."""
    steps, on_start = [], running._Callbacks.on_start

    def noted(callbacks, step):
        steps.append(step)
        on_start(callbacks, step)

    monkeypatch.setattr(running._Callbacks, "on_start", noted)
    return steps


OF_ONE_SEED = (*TINY, "checkpoint_every=1", "seeds=1")


@pytest.fixture(scope="module")
def parameters(tmp_path_factory):
    """The digest of the parameters of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    config = composed(*OF_ONE_SEED, f"output={folder}", f"data.directory={folder}/data")
    with jax.numpy_dtype_promotion("standard"):
        running.run([config], lambda event: None)
    return result(config)["parameters"]


@pytest.mark.long
@pytest.mark.parametrize("damage", ["none", "cut", "emptied", "half written"])
def test_an_interrupted_run_goes_on_from_its_newest_whole_checkpoint(
    places, parameters, monkeypatch, damage
):
    config = composed(*OF_ONE_SEED, *places)
    end_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        running.run([config], lambda event: None)
    newest = run_directory(config) / "seed-0" / "checkpoints" / "4"
    if damage == "half written":
        newest.rename(newest.with_name("4.orbax-checkpoint-tmp"))
    elif damage != "none":
        for path in newest.rglob("*"):
            if path.is_file() and path.stat().st_size > 200:
                content = path.read_bytes()
                path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    begun = begins(monkeypatch)
    running.run([config], lambda event: None)
    assert begun == [4 if damage == "none" else 3]
    assert result(config)["parameters"] == parameters
    assert "is skipped" in (run_directory(config) / "log.txt").read_text() or damage in (
        "none",
        "half written",
    )


@pytest.mark.long
def test_seeds_together_go_on_each_from_its_newest_checkpoint(places, monkeypatch):
    config = composed(*TINY, *places, "checkpoint_every=1", "seeds_together=true")
    end_after(monkeypatch, 4)  # of the first seed, so that the second has no step 4
    with pytest.raises(KeyboardInterrupt):
        running.run([config], lambda event: None)
    begun = begins(monkeypatch)
    running.run([replaced(config, seeds=3)], lambda event: None)
    assert begun == [4, 3, 0]
    for seed in (0, 1, 2):
        assert result(config, seed)["ended"] == "done"


@pytest.mark.long
def test_seeds_together_go_on_to_the_same_bits(places, monkeypatch, tmp_path):
    config = composed(*TINY, *places, "checkpoint_every=1", "seeds_together=true")
    end_after(monkeypatch, 4, seed=1)
    with pytest.raises(KeyboardInterrupt):
        running.run([config], lambda event: None)
    begun = begins(monkeypatch)
    running.run([config], lambda event: None)
    assert begun == [4, 4]
    whole = replaced(config, output=str(tmp_path / "whole"))
    running.run([whole], lambda event: None)
    for seed in (0, 1):
        assert result(config, seed)["parameters"] == result(whole, seed)["parameters"]


@pytest.mark.long
def test_a_run_that_another_process_trains_is_left_to_it(call, places):
    config = composed(*TINY, *places)
    directory = run_directory(config)
    directory.mkdir(parents=True)
    with running._lock(directory), pytest.raises(SystemExit) as stopped:
        call(*TINY, *places)
    assert f"another process trains {directory}" in stopped.value.code
    assert files(directory) == {"lock"}


@pytest.mark.long
def test_events_of_a_run_that_went_on_are_there_once(places, monkeypatch):
    tensorboard = pytest.importorskip(
        "tensorboardX.proto.event_pb2", reason="tensorboardX is of the experiments"
    )
    config = composed(*TINY, *places, "checkpoint_every=4", "seeds=1", "evaluate_every=1")
    end_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        running.run([config], lambda event: None)
    running.run([config], lambda event: None)
    seen = []
    [path] = (run_directory(config) / "seed-0").glob("events.out.tfevents.*")
    for record in records_of(path):
        event = tensorboard.Event.FromString(record)
        seen += [(value.tag, event.step) for value in event.summary.value]
    steps = range(1, make_setup(config).total_steps + 1)
    assert sorted(step for tag, step in seen if tag == "validation_accuracy") == [*steps]
    assert len(set(seen)) == len(seen)
    tags = {tag for tag, _ in seen}
    assert {"train_loss", "learning_rate", "gradient_norm/norm_0", "statistics/norm_0/mean"} <= tags


def records_of(path):
    """The records of a file of events: length, its checksum, the record, its checksum."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        yield content[at + 12 : at + 12 + length]
        at += 16 + length


@pytest.mark.long
def test_a_bug_is_not_taken_for_a_wrong_configuration(call, places, monkeypatch):
    def fail(*args):
        raise ValueError("a bug")

    monkeypatch.setattr(running, "fit", fail)
    with pytest.raises(ValueError, match="a bug"):
        call(*TINY, *places)
    log = run_directory(composed(*TINY, *places)) / "log.txt"
    assert "ValueError: a bug" in log.read_text(), "with its traceback"


@pytest.mark.long
def test_a_full_disk_is_told_and_loses_nothing(call, places, monkeypatch):
    config = composed(*TINY, *places, "checkpoint_every=1", "seeds=1")
    full = ocp.CheckpointManager.save

    def save(manager, step, **arguments):
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return full(manager, step, **arguments)

    with monkeypatch.context() as patched:
        patched.setattr(ocp.CheckpointManager, "save", save)
        with pytest.raises(SystemExit) as stopped:
            call(*TINY, *places, "checkpoint_every=1", "seeds=1")
    assert "the disk is full" in stopped.value.code
    assert "to continue from there" in stopped.value.code
    begun = begins(monkeypatch)
    running.run([config], lambda event: None)
    assert begun == [2]


@pytest.mark.long
def test_the_directory_follows_what_determines_the_result():
    base, auto = composed(), composed("distributed=auto")
    for same in (
        {"data": {"directory": "elsewhere"}},
        {"study": dataclasses.replace(base.study, name="other")},
        {"distributed": auto.distributed},
        {"seeds": 2},
        {"steps_per_call": 3},
        {"seeds_together": True},
        {"checkpoint_every": 7},
        {"keep_checkpoints": 1},
        {"keep_stale": True},
        {"launcher": dataclasses.replace(base.launcher, workers=1)},
    ):
        assert replaced(base, **same) != base, same
        assert run_directory(replaced(base, **same)) == run_directory(base), same
    adam = composed("optimizer=adam")
    for other in (
        {"epochs": 3},
        {"norm": {"momentum": 0.5}},
        {"optimizer": adam.optimizer},
        {"sync": LocalSync("local")},
        {"dtype": "bfloat16"},
    ):
        assert run_directory(replaced(base, **other)) != run_directory(base), other
    steps = replaced(base, steps=5)
    assert run_directory(replaced(steps, epochs=3)) == run_directory(steps)
    assert run_directory(base).name.startswith("digits-cnn-batch-batch16-")
    resnet = composed("model=resnet")
    older = {key: value for key, value in resnet.model.items() if key != "residual"}
    assert run_directory(dataclasses.replace(resnet, model=older)) == run_directory(resnet)
    assert run_directory(replaced(resnet, model={"residual": False})) != run_directory(resnet)
    elsewhere = run_directory(replaced(base, output="elsewhere"))
    assert elsewhere == Path("elsewhere", run_directory(base).name)


@pytest.mark.long
def test_the_digest_of_the_code_is_of_what_trains_the_run(monkeypatch):
    cnn, mlp = composed(), composed("model=mlp")
    of_cnn, of_mlp = (code._imported((code.TRAINING, target(c))) for c in (cnn, mlp))
    assert {"experiments.models.cnn", "jaxnorm.batch", "jaxnorm.kernels"} <= set(of_cnn)
    assert "experiments.models.mlp" not in of_cnn
    assert not any(name.startswith("experiments.reports") for name in of_cnn)
    before = code.code_digest(cnn), code.code_digest(mlp)
    tree = code._tree
    other = of_mlp["experiments.models.mlp"]
    monkeypatch.setattr(
        code, "_tree", lambda path: ast.parse("x = 1") if path == other else tree(path)
    )
    code._code.cache_clear()
    code._digest.cache_clear()
    after = code.code_digest(cnn), code.code_digest(mlp)
    code._code.cache_clear()
    code._digest.cache_clear()
    assert after[0] == before[0]
    assert after[1] != before[1]


def target(config):
    return config.model["_target_"].rpartition(".")[0]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["batchsize=8"], ["no key 'batchsize'", "batch_size"]),
        (["norm=ghost_batch", "norm.ghost_size=5"], ["norm.ghost_size is 5", "1, 2, 4, 8, 16"]),
        (["norm=batch,layer"], ["norm=batch,layer", "--multirun"]),
        (["study=norms", "norm=batch", "batch_size=16,2000"], ["batch_size is 2000", "1293"]),
        (
            ["--multirun", "norm=batch,instance,layer", "model=mlp", "batch_size=16,5000"],
            [
                "norm=batch batch_size=5000: batch_size is 5000",
                "norm=instance batch_size=16: instance normalization",
            ],
        ),
        (["study=norms", "norm=batch,grup"], ["no choice 'grup'", "group"]),
        (["sync=group", "sync.num_groups=3"], ["sync.num_groups is 3", "8 devices"]),
        (["--multirun", "distributed=off,auto"], ["distributed differs"]),
        (["--multirun", "launcher.workers=1,2"], ["launcher differs"]),
        (["--multirun", "parallel.virtual_devices=2,4"], ["parallel.virtual_devices differs"]),
        (["launcher.workers=0"], ["launcher.workers is 0", "1 or more"]),
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
    assert ended.stderr.startswith("error: there is no key 'epoch'; the keys are accumulate")
    assert len(ended.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_study_from_its_command_to_its_page(places, tmp_path):
    study = ("study=norms", "norm=none,group", *TINY, *places)
    ended = program("train", "--multirun", *study)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert all(line.isprintable() for line in lines), "no control characters"
    assert {line[:6] for line in lines} == {"[1/2] ", "[2/2] "}
    for norm in ("none", "group"):  # by two processes, in any order
        start, *signs, end = (line for line in lines if f" norm={norm}: " in line)
        assert {line[:6] for line in (start, *signs, end)} == {start[:6]}, "a run has one number"
        assert f" digits-cnn-{norm}-batch256-" in start
        assert start.endswith(": training")
        assert all(": seed " in sign for sign in signs), "signs of life, where it takes long"
        assert ": test accuracy" in end
    directories = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert len(directories) == 2
    assert all({path.name for path in each.iterdir()} == FILES for each in directories)

    ended = program("report", *study)
    assert (ended.returncode, ended.stderr) == (0, "")
    page = tmp_path / "runs" / "norms.html"
    assert ended.stdout.splitlines()[-1] == f"report: {page}"
    html = page.read_text()
    for directory in directories:
        results = [json.loads(path.read_text()) for path in directory.glob("seed-*/result.json")]
        mean = sum(100 * result["test_accuracy"] for result in results) / 2
        assert f"{mean:.1f} ± " in ended.stdout
        assert f"{mean:.1f} ± " in html
