"""The time of a training step beside that of the same step without normalization."""

import time
from collections.abc import Sequence

import jax
import numpy as np

from experiments.config import Config
from experiments.data.batching import Batch
from experiments.training import parallel
from experiments.training.program import Program
from experiments.training.state import State

WARM_UP = 5  # calls, of which the first compiles


def step_times(
    program: Program, config: Config, seed: int, batches: Batch, length: int
) -> dict[str, float]:
    """Return the milliseconds of a step, and what it takes in units of one without normalization.

    Both are medians over `timed_steps` calls, of both programs in turn. The batches count as whole
    ones, without a mask.

    Args:
        batches: of one call, for `length` steps.
    """
    pair = [program, program.plain]
    states = [parallel.replicate(one.init(config, seed), one.devices) for one in pair]
    whole = batches._replace(mask=None)
    seconds = np.array(
        [
            _in_turn(pair, states, whole, (0, 1) if call % 2 else (1, 0))
            for call in range(WARM_UP + config.timed_steps)
        ]
    )[WARM_UP:]
    return {
        "step_ms": 1000 * float(np.median(seconds[:, 0])) / length,
        "overhead": float(np.median(seconds[:, 0] / seconds[:, 1])),
    }


def _in_turn(
    pair: Sequence[Program], states: list[State], batches: Batch, order: Sequence[int]
) -> list[float]:
    """Let each take a step, in this order, and return the seconds of each."""
    seconds = [0.0, 0.0]
    for which in order:
        start = time.perf_counter()
        states[which] = jax.block_until_ready(pair[which].train(states[which], batches))
        seconds[which] = time.perf_counter() - start
    return seconds
