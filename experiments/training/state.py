"""The state of training."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.config import Config
from experiments.data.batching import Batch
from experiments.training.diagnostics import watched
from experiments.training.optimizers import BATCH
from experiments.training.setup import Setup

# XLA compiles random kernels slowly on a CPU. At this level it takes about an eighth of the time.
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 1}


class Sums(NamedTuple):
    """Sums over examples: the cross-entropy in nats, the correct predictions, and the count."""

    loss: jax.Array
    right: jax.Array
    examples: jax.Array


def no_sums() -> Sums:
    """Return the sums over no examples."""
    return Sums(*(jnp.zeros(()) for _ in Sums._fields))


def sums_of(logits: jax.Array, batch: Batch) -> Sums:
    """Return the sums over the unmasked examples of a batch."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    right = (logits.argmax(axis=-1) == batch.labels).astype(jnp.float32)
    values = (loss, right, jnp.ones_like(right))
    return Sums(*(jnp.sum(value, where=batch.mask) for value in values))


class State(NamedTuple):
    """The state that a training step changes, and the numbers in which runs of a program differ.

    Attributes:
        step: the number of completed steps, which is also the position in the data.
        key: the data of a random key, from which each step derives its own key.
        numbers: the numbers of the optimizer.
        sums: the sums over the steps since the last evaluation.
        watched: diagnostics of gradients and statistics in the last step.
    """

    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    step: jax.Array
    key: jax.Array
    numbers: dict[str, jax.Array]
    sums: Sums
    watched: dict[str, Any]


def first_state(model: nn.Module, setup: Setup, batch: Batch) -> Callable[[Config, int], State]:
    """Return a function that maps a configuration and a seed to the initial state.

    `batch` has the shapes of a batch.
    """

    options = QUICK_TO_COMPILE if jax.default_backend() == "cpu" else None

    @partial(jax.jit, compiler_options=options)
    def state(key: jax.Array, numbers: dict[str, Any], scale: float) -> State:
        for_params, for_steps = jax.random.split(key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch)
        variables = model.init({"params": for_params}, zeros.inputs, zeros.lengths, train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        params = _scaled(params, scale)
        optimizer = setup.optimizer.with_numbers(numbers)
        return State(
            params,
            batch_stats,
            optimizer.transformation(BATCH, setup.total_steps).init(params),
            jnp.zeros((), jnp.int32),
            jax.random.key_data(for_steps),
            jax.tree.map(jnp.float32, numbers),
            no_sums(),
            jax.tree.map(jnp.zeros_like, watched(params, batch_stats, batch_stats, 0.0)),
        )

    def of_seed(config: Config, seed: int) -> State:
        numbers = {name: config.optimizer[name] for name in setup.optimizer.NUMBERS}
        return state(jax.random.key(seed), numbers, config.model["init_scale"])

    return of_seed


def _scaled(params: Any, scale: jax.Array) -> Any:
    """Multiply all kernels by a scale, which can differ between runs of a program."""

    def scaled(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf * scale if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(scaled, params)
