"""The time and the memory of a training step, and of the same step without normalization."""

import time
from collections.abc import Sequence

import jax
import numpy as np

from experiments.config import Config
from experiments.data.batching import Batch
from experiments.training import parallel
from experiments.training.program import Program
from experiments.training.state import State

WARM_UP = 5  # calls; the first one compiles


def step_times(
    program: Program, config: Config, seed: int, batches: Batch, length: int
) -> dict[str, float]:
    """Return the milliseconds of a step, and the ratio to a step without normalization.

    Both are medians over `timed_steps` calls. The two programs alternate. The batches are used
    without a mask.

    Args:
        batches: the batches of one call, with `length` steps.
    """
    pair = [program, program.plain]
    states = [parallel.replicate(one.init(config, seed), one.devices) for one in pair]
    whole = batches._replace(mask=None)
    seconds = np.array(
        [
            _alternate(pair, states, whole, (0, 1) if call % 2 else (1, 0))
            for call in range(WARM_UP + config.timed_steps)
        ]
    )[WARM_UP:]
    return {
        "step_ms": 1000 * float(np.median(seconds[:, 0])) / length,
        "overhead": float(np.median(seconds[:, 0] / seconds[:, 1])),
    }


def step_bytes(program: Program, config: Config, seed: int, batches: Batch) -> dict[str, float]:
    """Return the bytes of the compiled step, and the ratio to a step without normalization.

    Args:
        batches: the batches of one call, of which the first step is compiled.
    """
    one = jax.tree.map(lambda array: array[:1], batches) if program.steps_per_call > 1 else batches
    normalized, plain = (
        each.train.num_bytes(each.init(config, seed), one._replace(mask=None))
        for each in (program, program.plain)
    )
    return {"step_bytes": normalized, "memory_overhead": normalized / plain}


def _alternate(
    pair: Sequence[Program], states: list[State], batches: Batch, order: Sequence[int]
) -> list[float]:
    """Run one call of each program in the given order, and return the seconds of each."""
    seconds = [0.0, 0.0]
    for which in order:
        start = time.perf_counter()
        states[which] = jax.block_until_ready(pair[which].train(states[which], batches))
        seconds[which] = time.perf_counter() - start
    return seconds
