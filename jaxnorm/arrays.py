"""Operations on arrays that keep their sharding on meshes with explicit axes.

On such a mesh the sharding of every result must follow from those of the operands, so a mask, a
constant or a group that is split over devices is first brought into the sharding of the array that
it is combined with. Elsewhere these are the plain operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxnorm.axes import axis_names, other_axes


def masked(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`x` where the mask is true, 0 elsewhere; all of it without a mask."""
    return x if mask is None else jnp.where(broadcast_mask(mask, x), x, 0)


def broadcast_mask(mask: jax.Array, x: jax.Array) -> jax.Array:
    """Broadcast a mask to `x`, sharded as `x` is."""
    return mask | jnp.zeros_like(x, bool)


def full_without(x: jax.Array, reduced: Sequence[int], value: Any, dtype: Any) -> jax.Array:
    """Fill an array that is shaped and sharded as `x` without the axes `reduced`."""
    shape = [x.shape[axis] for axis in other_axes(x.ndim, reduced)]
    return jax.lax.full(shape, value, dtype, sharding=_sharding_without(x, reduced))


def broadcast_over(statistic: jax.Array, x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Make an array of the shape of `x` without `axes` broadcast to `x`."""
    if not isinstance(x, jax.core.Tracer) or any(explicit_spec(x)):
        return jnp.expand_dims(statistic, axes)
    return jax.lax.broadcast_in_dim(statistic, x.shape, other_axes(x.ndim, axes))  # one operation


def sharded_without(statistic: jax.Array, x: jax.Array, reduced: Sequence[int]) -> jax.Array:
    """Shard an array of the shape of `x` without the axes `reduced` as `x` is sharded."""
    sharding = _sharding_without(x, reduced)
    return statistic if sharding is None else jax.sharding.reshard(statistic, sharding)


def _sharding_without(x: jax.Array, reduced: Sequence[int]) -> NamedSharding | None:
    """The sharding of `x` without the axes `reduced`; None if `x` is not explicitly sharded."""
    spec = explicit_spec(x)
    return explicit_sharding(x, [spec[axis] for axis in other_axes(x.ndim, reduced)])


def explicit_sharding(x: jax.Array, spec: Sequence[Any]) -> NamedSharding | None:
    """A sharding over the mesh of `x`; None if `x` is not explicitly sharded."""
    if not any(explicit_spec(x)):
        return None
    array: Any = jax.typeof(x) if isinstance(x, jax.core.Tracer) else x
    return NamedSharding(array.sharding.mesh, PartitionSpec(*spec))


def explicit_spec(x: jax.Array) -> tuple[Any, ...]:
    """For each axis of `x`, the explicit mesh axes that it is split over, or None."""
    return tuple(jax.typeof(x).sharding.spec)


def explicit_shards(x: jax.Array, axis: int) -> int:
    """The number of shards of an axis over explicit mesh axes."""
    names = explicit_spec(x)[axis] or ()
    mesh = jax.typeof(x).sharding.mesh
    return math.prod(mesh.shape[name] for name in axis_names(names))


def split_groups(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Split `axis` into two: the groups, and the `size` channels of a group."""
    groups = x.shape[axis] // size
    if groups % explicit_shards(x, axis):  # some groups are split over devices
        spec = list(explicit_spec(x))
        spec[axis] = None
        mesh = jax.typeof(x).sharding.mesh
        x = jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*spec)))
    return x.reshape(*x.shape[:axis], groups, size, *x.shape[axis + 1 :])


def repeat_groups(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Repeat each group along `axis` for its `size` channels, as `jnp.repeat` does."""
    repeated = jnp.broadcast_to(
        jnp.expand_dims(x, axis + 1), (*x.shape[: axis + 1], size, *x.shape[axis + 1 :])
    )
    return repeated.reshape(*x.shape[:axis], x.shape[axis] * size, *x.shape[axis + 1 :])
