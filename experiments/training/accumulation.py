"""Statistics of a batch that comes in micro-batches, one after the other.

Each is normalized by its own statistics, as a ghost is. The running statistics take the merge of
all, within and between, in one update (jaxnorm's `start_recomputing` and `finish_accumulating`).
"""

from typing import Any

import jax
import jax.numpy as jnp


def micro_batches(array: jax.Array, number: int) -> jax.Array:
    """Deal the examples out, so that each device has its part of every micro-batch."""
    return jnp.moveaxis(array.reshape(-1, number, *array.shape[1:]), 1, 0)


def is_statistics(tree: Any) -> bool:
    """Whether this is the dict of one normalization's running statistics."""
    return isinstance(tree, dict) and "mean" in tree
