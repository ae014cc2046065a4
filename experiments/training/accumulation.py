"""Statistics of a batch that comes in micro-batches, one after the other.

Each is normalized by its own statistics, as a ghost is. The running statistics take the merge of
all, within and between, in one update: a cumulative merge from nothing, and then one decay.
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


def nothing_seen(batch_stats: Any) -> Any:
    """Return statistics of no example at all, which merge all that they will see."""

    def empty(stats: Any) -> Any:
        return {**jax.tree.map(jnp.zeros_like, stats), "count": jnp.zeros(stats["mean"].shape[:-1])}

    return jax.tree.map(empty, batch_stats, is_leaf=is_statistics)


def decayed(old: Any, seen: Any, momentum: float) -> Any:
    """momentum * old + (1 - momentum) * seen, where anything was seen."""

    def of_place(old: Any, seen: Any) -> Any:
        new = {key: momentum * old[key] + (1 - momentum) * seen[key] for key in ("mean", "var")}
        counted = seen["count"][..., None] > 0
        return {**old, **{key: jnp.where(counted, new[key], old[key]) for key in new}}

    return jax.tree.map(of_place, old, seen, is_leaf=is_statistics)
