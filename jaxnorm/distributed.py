"""Merging moments across the devices of mapped axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes
from jaxnorm.statistics import Moments, merge_moments_axis


def sync_moments(
    m: Moments,
    axis_name: _axes.AxisName | None,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> Moments:
    """The moments of all members of the mapped axes together, on every member.

    The moments of the members (three numbers a channel) are gathered and merged, so members with
    different counts or none at all weigh what they should. One collective for each name.

    Args:
        m: this member's moments.
        axis_name: a name or a tuple of names mapped by `pmap`, `shard_map` or `vmap`; None merges
            nothing.
        axis_index_groups: for one name, lists of indices; only members of a list are merged (under
            `pmap` and `shard_map`; JAX's `vmap` has no groups).

    Raises:
        ValueError: a name that is not mapped, or groups that do not partition the axis.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[1.0, 2.0], [6.0, 7.0]])
        >>> sync = lambda x: jn.sync_moments(jn.moments(x, 0), "devices")
        >>> print(jax.vmap(sync, axis_name="devices")(x).mean)
        [4. 4.]
    """
    _axes.mapped_size(axis_name, axis_index_groups)
    if axis_name is None:
        return m
    destination = _destination(m.mean) if axis_index_groups is None else "varying"
    for name in _axes.axis_names(axis_name):
        packed = jnp.stack([part.astype(m.mean.dtype) for part in m])
        gathered = jax.lax.all_gather(
            packed, name, axis_index_groups=axis_index_groups, to=destination
        )
        count, mean, var = jnp.moveaxis(gathered, 1, 0)
        m = merge_moments_axis(Moments(count.real, mean, var.real), 0)
    return m


def _destination(x: jax.Array) -> str:
    """Under shard_map's check of varying axes the gathered value is marked as equal everywhere."""
    return "invarying" if jax.typeof(x).manual_axis_type.varying else "varying"
