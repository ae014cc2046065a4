"""Merging moments across the devices of mapped axes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes
from jaxnorm.statistics import Moments, merge_by, merge_moments_axis

__all__ = ["sync_moments"]

# An all-gather of more costs longer than another all-reduce takes to start (docs/scaling.md).
GATHERED_BYTES = 2**20


def sync_moments(
    m: Moments,
    axis_name: _axes.AxisName | None,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> Moments:
    """The moments of all members of the mapped axes together, on every member.

    The moments of the members (three numbers a channel) are gathered and merged, so members with
    different counts or none at all weigh what they should: one all-gather over all names. Where it
    would bring more than 1 MiB (members times channels above 87,381), all-reduces merge instead:
    of the counts, the means, and the squares about the merged mean.

    Args:
        m: this member's moments.
        axis_name: a name or a tuple of names mapped by `pmap`, `shard_map` or `vmap`; None merges
            nothing.
        axis_index_groups: for one name, lists of indices; only members of a list are merged (under
            `pmap` and `shard_map`; JAX's `vmap` has no groups).

    Raises:
        ValueError: a name that is not mapped, or of `vmap` inside a `shard_map` with its check of
            varying axes, or groups that do not partition the axis.

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
    on_mesh, by_vmap = _split_names(axis_name)
    if by_vmap:
        _check_vmap(by_vmap)
        m = _reduced(m, by_vmap, axis_index_groups)
    if not on_mesh:
        return m
    axis_size = _axes.mapped_size(on_mesh, axis_index_groups)
    gathered_bytes = axis_size * 3 * m.mean.size * m.mean.dtype.itemsize
    merge = _gathered if gathered_bytes <= GATHERED_BYTES else _reduced
    return merge(m, on_mesh, axis_index_groups)


def sum_over(
    parts: Sequence[jax.Array],
    axis_name: _axes.AxisName,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> Sequence[jax.Array]:
    """The sums of arrays of one dtype over the members of the mapped axes, in one collective."""
    names = _axes.axis_names(axis_name)
    packed = _varying(jnp.stack(parts), names)
    if axis_index_groups is not None and _checks_varying(names):  # JAX has no such psum
        gathered = jax.lax.all_gather(packed, names, axis_index_groups=axis_index_groups)
        return list(jnp.sum(gathered, 0))
    return list(jax.lax.psum(packed, names, axis_index_groups=axis_index_groups))


def sync_extremes(
    least: jax.Array,
    most: jax.Array,
    axis_name: _axes.AxisName | None,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> tuple[jax.Array, jax.Array]:
    """The least and the largest values of all members of the mapped axes, in one collective.

    NaN on any member is NaN on all; collectives alone do not promise that.
    """
    if axis_name is None:
        return least, most
    names = _axes.axis_names(axis_name)
    unknown = jnp.isnan(least) | jnp.isnan(most)
    packed = jnp.stack([-least, most, unknown.astype(most.dtype)])
    packed = _varying(jnp.where(jnp.isnan(packed), -jnp.inf, packed), names)
    if axis_index_groups is not None and _checks_varying(names):  # JAX has no such pmax
        gathered = jax.lax.all_gather(packed, names, axis_index_groups=axis_index_groups)
        merged = jnp.max(gathered, 0)
    else:
        merged = jax.lax.pmax(packed, names, axis_index_groups=axis_index_groups)
    below, most, unknown = merged
    return jnp.where(unknown > 0, jnp.nan, -below), jnp.where(unknown > 0, jnp.nan, most)


def _split_names(axis_name: _axes.AxisName) -> tuple[tuple[Hashable, ...], tuple[Hashable, ...]]:
    """The names that are axes of a mesh (`pmap`, `shard_map`), and those of `vmap`."""
    names = _axes.axis_names(axis_name)
    manual = jax.sharding.get_abstract_mesh().manual_axes
    on_mesh = tuple(name for name in names if name in manual)
    return on_mesh, tuple(name for name in names if name not in manual)


def _check_vmap(names: tuple[Hashable, ...]) -> None:
    """JAX has no collectives over names of `vmap` where `shard_map` checks what varies."""
    manual = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    if _checks_varying(manual):
        raise ValueError(
            f"axis_name={names!r} is mapped by vmap inside a shard_map that checks varying axes, "
            "where JAX has no collectives over it; give shard_map check_vma=False"
        )


def _gathered(
    m: Moments, names: tuple[Hashable, ...], axis_index_groups: _axes.AxisIndexGroups
) -> Moments:
    """One all-gather of all members' moments, merged alike on each."""
    packed = _varying(jnp.stack([part.astype(m.mean.dtype) for part in m]), names)
    alike = axis_index_groups is None and _checks_varying(names)
    gathered = jax.lax.all_gather(
        packed,
        names,
        axis_index_groups=axis_index_groups,
        to="invarying" if alike else "varying",
    )
    count, mean, var = jnp.moveaxis(gathered, 1, 0)
    return merge_moments_axis(Moments(count.real, mean, var.real), 0)


def _reduced(
    m: Moments, names: tuple[Hashable, ...], axis_index_groups: _axes.AxisIndexGroups
) -> Moments:
    """All-reduces of as many numbers whatever the number of members: counts, means, the rest."""

    def sums(*parts: jax.Array) -> list[jax.Array]:
        packed = [part.astype(m.mean.dtype) for part in parts]
        summed = sum_over(packed, names, axis_index_groups)
        return [
            total if jnp.iscomplexobj(part) else total.real
            for total, part in zip(summed, parts, strict=True)
        ]

    return merge_by(sums, m)


def _checks_varying(names: tuple[Hashable, ...]) -> bool:
    """Whether `shard_map` checks over which of these mesh axes values vary."""
    on_mesh, _ = _split_names(names)
    if not on_mesh:
        return False
    return bool(jax.typeof(jax.lax.axis_index(on_mesh)).manual_axis_type.varying)


def _varying(x: jax.Array, names: tuple[Hashable, ...]) -> jax.Array:
    """`x`, where that is checked marked as varying over all the names."""
    missing = set(names) - jax.typeof(x).manual_axis_type.varying
    return jax.lax.pcast(x, tuple(missing), to="varying") if _checks_varying(names) else x
