"""The ways of running a step on devices agree, and filling a batch changes nothing."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from environment import generator
from runs_of import ROOT
from runs_of import composed as config_of
from waiting import PATIENCE

from experiments.config import Jit, Single
from experiments.data.batching import Batches, training_indices
from experiments.data.source import Spec
from experiments.data.splits import Dataset, Split
from experiments.errors import ConfigError
from experiments.runs.directory import run_directory
from experiments.training import parallel
from experiments.training.fit import SeedRun, fit
from experiments.training.program import compile_program
from experiments.training.setup import make_setup

WAYS = ["jit", "shard_map", "pmap"]
# 44 examples in batches of 20 on eight devices: every batch is filled to 24, and in the last one of
# an epoch, with 4 examples, six devices have nothing.
RUN = ("model.channels=[4]", "batch_size=20", "epochs=2", "seeds=1")
TRAIN = 44


@pytest.fixture(autouse=True, scope="module")
def promotion():
    """Optax's schedules mix integer steps and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Random:
    """Random images, whose mean grows with their label, as a source of data."""

    def __init__(self):
        draws = generator()
        labels = draws.integers(0, 10, 70).astype(np.int32)
        noise = draws.standard_normal((70, 8, 8, 1))
        images = (noise + 0.3 * labels[:, None, None, None]).astype(np.float32)
        train, others = (Split(images[k], labels[k]) for k in (slice(TRAIN), slice(TRAIN, None)))
        self.dataset = Dataset(train, others, others, 10)

    def load(self, seed):
        return self.dataset

    def batches(self, dataset, batch_size, *, multiple, seed):
        return Batches(dataset.train, batch_size, multiple=multiple, seed=seed)


@pytest.fixture(scope="module")
def data():
    return Random()


def composed(*overrides):
    return config_of(*RUN, *overrides)


def made_of(config, data):
    """The components of a run, on the random images."""
    made = make_setup(config)._replace(source=data, spec=Spec((8, 8, 1), 10, TRAIN), epoch_steps=3)
    return made._replace(total_steps=3 * config.epochs)


class Notes:
    """Keeps nothing of a seed but the losses and accuracies of its evaluations."""

    def __init__(self):
        self.curve = []

    def saved_steps(self):
        return []

    def on_start(self, step):
        pass

    def on_progress(self, step, loss):
        pass

    def on_evaluation(self, record):
        keys = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
        self.curve.append([record[key] for key in keys])

    def on_end(self, result, variables):
        pass


@functools.cache
def curves(data, *overrides):
    """Train, and return train loss and accuracy, validation loss and accuracy of each epoch."""
    config, notes = composed(*overrides), Notes()
    made = made_of(config, data)
    fit(compile_program(config, made), made, [SeedRun(config, 0)], [notes])
    return np.array(notes.curve)


@pytest.fixture(scope="module")
def on_one_device(data):
    return curves(data, "parallel=single")


def alike(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_eight_devices_give_the_curve_of_one(data, on_one_device, way):
    alike(curves(data, f"parallel={way}"), on_one_device)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_a_mesh_of_one_device_gives_the_curve_of_one(data, on_one_device, way, monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr(parallel, "devices", lambda config: first)
    alike(curves.__wrapped__(data, f"parallel={way}"), on_one_device)


@pytest.mark.long
def test_the_ways_agree_in_local_scope(data, on_one_device):
    jit, *others = (curves(data, f"parallel={way}", "sync=local") for way in WAYS)
    for other in others:
        alike(other, jit)
    assert np.abs(jit - on_one_device)[:, 0].max() > 1e-3, "local is not global"


@pytest.mark.long
def test_the_ways_agree_in_group_scope(data, on_one_device):
    jit, *others = (curves(data, f"parallel={way}", "sync=group") for way in WAYS)
    alike(others[1], others[0])
    alike(others[0][:, :2], jit[:, :2])  # the training
    # Each group's running statistics, merged, have a smaller variance than all examples: of what
    # is between the groups' means a tenth counts (one minus the momentum).
    np.testing.assert_allclose(others[0][:, 2], jit[:, 2], rtol=0.05)
    assert np.abs(jit - on_one_device)[:, 0].max() > 1e-4, "group is not global"


@pytest.mark.long
@pytest.mark.parametrize("norm", ["ghost_batch", "batch_renorm", "layer"])
def test_other_norms_agree_on_every_number_of_devices(data, norm):
    options = (f"norm={norm}", "norm.ghost_size=5") if norm == "ghost_batch" else (f"norm={norm}",)
    alike(curves(data, *options, "parallel=shard_map"), curves(data, *options, "parallel=single"))


@pytest.mark.long
def test_the_ways_carry_steps_and_seeds_together(data):
    expected = curves(data, "parallel=shard_map", "sync=group")
    together = ("sync=group", "seeds_together=true", "steps_per_call=2")
    for way in ("shard_map", "pmap"):
        alike(curves(data, *together, f"parallel={way}"), expected)


@pytest.mark.long
def test_jit_carries_steps_and_seeds_together(data, on_one_device):
    alike(curves(data, "seeds_together=true", "steps_per_call=2"), on_one_device)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_steps_of_several_cpu_devices_run_one_at_a_time(data, way):
    config = composed(f"parallel={way}")
    program = compile_program(config, made_of(config, data))
    batch = (
        training_indices(TRAIN, 20, multiple=8, seed=0, epoch=1).at(0).gather(data.dataset.train)
    )
    state = parallel.replicate(program.init(config, 0), program.devices)
    for _ in range(3):
        state = program.train(state, batch)
        assert all(leaf.is_ready() for leaf in jax.tree.leaves(state))


def test_every_device_has_its_part_of_a_batch():
    part = parallel.local_shard(jax.devices(), 24)
    assert part == slice(0, 24), "one process has all devices"


def after_a_step(config, data, rows, filling):
    """Take one step on a batch whose filling holds `filling`; return the new state."""
    program = compile_program(config, made_of(config, data))
    batch = rows.gather(data.dataset.train)
    inputs = np.where(batch.mask[:, None, None, None], batch.inputs, filling)
    state = parallel.replicate(program.init(config, 0), program.devices)
    return jax.device_get(program.train(state, batch._replace(inputs=inputs.astype(np.float32))))


@pytest.mark.long
@pytest.mark.parametrize(
    ("way", "norm"),
    [
        ("single", "norm=batch"),
        ("shard_map", "norm=batch"),
        ("jit", "norm=ghost_batch norm.ghost_size=2"),
    ],
)
def test_what_fills_a_batch_changes_nothing(data, norm, way):
    config = composed(*norm.split(), f"parallel={way}", "optimizer.warmup=0")
    last = training_indices(TRAIN, 20, multiple=16, seed=0, epoch=1).at(2)
    assert (last.mask.sum(), len(last.mask)) == (4, 32), "most devices have nothing"
    filled, otherwise = (after_a_step(config, data, last, filling) for filling in (0.0, 1e4))
    jax.tree.map(np.testing.assert_array_equal, otherwise, filled)
    alone = dataclasses.replace(config, parallel=Single("single"))
    unfilled = after_a_step(alone, data, last.shard(slice(0, 4)), 0.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), filled, unfilled
    )


def test_virtual_devices_count_without_being_made_and_are_of_no_result():
    assert parallel.num_devices(Jit("jit", 4)) == 4
    assert parallel.num_devices(Jit("jit")) == 8
    assert parallel.num_devices(Single("single", 4)) == 1
    config = composed("sync=local")
    same = dataclasses.replace(config, parallel=Jit("jit", 8))
    fewer = dataclasses.replace(config, parallel=Jit("jit", 4))
    assert run_directory(same) == run_directory(config) != run_directory(fewer)
    parallel.make_devices(same.parallel)  # as many as have been made
    with pytest.raises(ConfigError, match=r"is 4, but JAX has started with 8 cpu"):
        parallel.make_devices(fewer.parallel)


@pytest.mark.slow
def test_a_sweep_makes_virtual_devices_here_and_in_its_workers(tmp_path):
    arguments = (
        *("--multirun", "norm=batch,none", "model=mlp", "model.hidden=[4]", "batch_size=32"),
        *("steps=2", "seeds=1", "sync=local", "parallel.virtual_devices=4", "launcher.workers=2"),
        *(f"output={tmp_path}", f"data.directory={tmp_path}/data"),
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "experiments.train", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stderr
    written = [json.loads(path.read_text()) for path in tmp_path.glob("*/seed-0/result.json")]
    assert [result["device"]["devices"] for result in written] == [4, 4]
