"""The time and memory of a training step beside those of the same step without normalization."""

from itertools import count
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from runs_of import composed, replaced, result, trained

from experiments.config import Single
from experiments.data.batching import Batch
from experiments.runs.directory import run_directory
from experiments.training import parallel, timing
from experiments.training.program import Program

RUN = (
    "model=mlp",
    "model.hidden=[4]",
    "batch_size=400",
    "steps=4",
    "seeds=1",
    "steps_per_call=2",
    "checkpoint_every=null",
)


@pytest.fixture(autouse=True, scope="module")
def promotion():
    """Optax's schedules mix integer steps and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.long
@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_a_timed_run_has_its_times_and_is_otherwise_the_same(tmp_path, way, monkeypatch):
    ticks = SimpleNamespace(perf_counter=count().__next__)  # a second from one to the next
    monkeypatch.setattr(timing, "time", ticks)
    places = (f"output={tmp_path}", f"data.directory={tmp_path}/data", f"parallel={way}")
    timed = composed(*RUN, *places, "timed_steps=3", "step_memory=true")
    plain = replaced(timed, timed_steps=None, step_memory=False)
    trained(timed)
    trained(plain)
    assert run_directory(timed) != run_directory(plain)
    times, others = result(timed), result(plain)
    added = {"step_ms", "overhead", "step_bytes", "memory_overhead"}
    assert set(times) - set(others) == added
    assert (times["step_ms"], times["overhead"]) == (500.0, 1.0)  # of two steps a call
    assert times["parameters"] == others["parameters"]


def test_the_bytes_of_a_step_are_those_of_its_arrays():
    """A state of 400 bytes is given and replaced, a batch of 800 bytes given."""

    def step(state, batch):
        return state + batch["x"].sum()

    devices = jax.devices()[:1]
    state, batch = np.zeros(100, np.float32), {"x": np.ones((200, 1), np.float32)}
    for donate, expected in ((True, 1200), (False, 1600)):
        compiled = parallel.compile_step(
            Single("single"), step, devices, batch_axis=0, donate=donate
        )
        measured = compiled.num_bytes(jax.device_put(state, devices[0]), batch)
        assert expected <= measured < expected + 128  # the sum, in its own buffer


def test_the_memory_is_that_of_one_step_without_a_mask():
    def program(num_bytes, plain=None):
        def measured(state, batches):
            assert batches.mask is None
            assert batches.inputs.shape == (1, 4, 3)
            return num_bytes

        train = SimpleNamespace(num_bytes=measured)
        devices = jax.devices()[:1]
        return Program(
            lambda *run: None, train, None, None, None, devices, 1, None, 2, False, None, plain
        )

    batches = Batch(np.zeros((2, 4, 3)), None, np.zeros((2, 4), int), np.ones((2, 4), bool))
    measured = timing.step_bytes(program(300, program(200)), None, 0, batches)
    assert measured == {"step_bytes": 300, "memory_overhead": 1.5}


def test_both_steps_are_taken_in_turn_on_whole_batches(monkeypatch):
    clock, order = SimpleNamespace(now=0.0), []

    def program(name, seconds, plain=None):
        """A program whose calls last so many seconds, one after the other."""
        left = iter([9.0] * timing.WARM_UP + seconds)

        def train(state, batches):
            assert batches.mask is None
            order.append(name)
            clock.now += next(left)
            return state + 1

        def init(config, seed):
            return np.zeros(())

        return Program(
            init, train, None, None, None, jax.devices()[:1], 1, None, 2, False, None, plain
        )

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    pair = program("norm", [0.3, 0.8, 0.4], program("none", [0.1, 0.2, 0.2]))
    batches = Batch(np.zeros((2, 4, 3)), None, np.zeros((2, 4), int), np.ones((2, 4), bool))
    times = timing.step_times(pair, SimpleNamespace(timed_steps=3), 0, batches, length=2)
    assert times == pytest.approx({"step_ms": 200.0, "overhead": 3.0})
    assert order[-6:] == ["norm", "none", "none", "norm", "norm", "none"]
