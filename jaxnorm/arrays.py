"""Operations on arrays that keep their sharding where a mesh has explicit axes.

There the sharding of every result must follow from those of its operands, so a mask, a constant or
a group that is split over devices has to be brought into the sharding of what it meets. Elsewhere
these are the plain operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxnorm.axes import axis_names, other_axes


def only(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """`x` with 0 where it does not count."""
    return x if mask is None else jnp.where(everywhere(mask, x), x, 0)


def everywhere(mask: jax.Array, x: jax.Array) -> jax.Array:
    """A mask in the whole shape of `x`, sharded as `x` is."""
    return mask | jnp.zeros_like(x, bool)


def full_without(x: jax.Array, reduced: Sequence[int], value: Any, dtype: Any) -> jax.Array:
    """An array of one value, shaped and sharded as `x` without the axes `reduced`."""
    shape = [x.shape[axis] for axis in other_axes(x.ndim, reduced)]
    return jax.lax.full(shape, value, dtype, sharding=_sharding_without(x, reduced))


def repeated(part: jax.Array, x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """`part`, of the shape of `x` without the axes `axes`, so that it meets every value of `x`."""
    if not isinstance(x, jax.core.Tracer) or any(explicit_spec(x)):
        return jnp.expand_dims(part, axes)
    return jax.lax.broadcast_in_dim(part, x.shape, other_axes(x.ndim, axes))  # one operation


def sharded_without(part: jax.Array, x: jax.Array, reduced: Sequence[int]) -> jax.Array:
    """`part`, of the shape of `x` without the axes `reduced`, sharded as `x` is."""
    sharding = _sharding_without(x, reduced)
    return part if sharding is None else jax.sharding.reshard(part, sharding)


def _sharding_without(x: jax.Array, reduced: Sequence[int]) -> NamedSharding | None:
    """The sharding of `x` without the axes `reduced`, where it is split explicitly."""
    spec = explicit_spec(x)
    if not any(spec):
        return None
    array: Any = jax.typeof(x) if isinstance(x, jax.core.Tracer) else x
    kept = other_axes(x.ndim, reduced)
    return NamedSharding(array.sharding.mesh, PartitionSpec(*(spec[axis] for axis in kept)))


def explicit_spec(x: jax.Array) -> tuple[Any, ...]:
    """For each axis the names of the explicit mesh axes that it is split over, or None."""
    return tuple(jax.typeof(x).sharding.spec)


def explicit_shards(x: jax.Array, axis: int) -> int:
    """In how many parts an axis is split over explicit mesh axes."""
    names = explicit_spec(x)[axis] or ()
    mesh = jax.typeof(x).sharding.mesh
    return math.prod(mesh.shape[name] for name in axis_names(names))


def split_groups(x: jax.Array, axis: int, size: int) -> jax.Array:
    """`axis` cut in two: groups, and the `size` members of a group."""
    groups = x.shape[axis] // size
    if groups % explicit_shards(x, axis):  # then some groups are split over devices
        spec = list(explicit_spec(x))
        spec[axis] = None
        mesh = jax.typeof(x).sharding.mesh
        x = jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*spec)))
    return x.reshape(*x.shape[:axis], groups, size, *x.shape[axis + 1 :])


def repeat_groups(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Every group along `axis` given to its `size` members."""
    axis_size = jnp.broadcast_to(
        jnp.expand_dims(x, axis + 1), (*x.shape[: axis + 1], size, *x.shape[axis + 1 :])
    )
    return axis_size.reshape(*x.shape[:axis], x.shape[axis] * size, *x.shape[axis + 1 :])
