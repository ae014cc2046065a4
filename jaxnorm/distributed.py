"""Merging moments across the devices of mapped axes.

A *device* here is one index of the mapped axes: a device of `pmap` and `shard_map`, or an entry of
the axis that `vmap` maps.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes
from jaxnorm.statistics import Centered, Moments, merge_by, merge_moments_axis, without_correction

__all__ = ["sync_moments"]

# Above this an all-gather takes longer than the all-reduces that replace it (docs/scaling.md).
GATHERED_BYTES = 2**20


def sync_moments(
    m: Moments,
    axis_name: _axes.AxisName | None,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> Moments:
    """Merge the moments of all devices of the mapped axes; every device gets the result.

    One all-gather over all names collects the moments of the devices (three numbers for each
    channel), and each device merges them. Devices may have different counts, or a count of 0. If
    the all-gather would bring more than 1 MiB (devices times channels above 87,381), all-reduces
    are used instead: of the counts, the means, and the squares about the merged mean.

    Args:
        m: the moments of this device.
        axis_name: a name or a tuple of names mapped by `pmap`, `shard_map` or `vmap`; None merges
            nothing.
        axis_index_groups: for one name, lists of device indices; each list is merged separately
            (under `pmap` and `shard_map`; JAX's `vmap` has no groups).

    Raises:
        ValueError: a name that is not mapped, a name of `vmap` inside a `shard_map` that checks
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


def sync_centered(
    m: Centered,
    axis_name: _axes.AxisName | None,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> Centered:
    """As `sync_moments`; the mean stays a pair where nothing is merged."""
    if axis_name is None:
        return m
    return without_correction(sync_moments(m.moments, axis_name, axis_index_groups))


def sum_over(
    terms: Sequence[jax.Array],
    axis_name: _axes.AxisName,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> Sequence[jax.Array]:
    """Sum arrays of one dtype over the devices of the mapped axes, in one collective."""
    names = _axes.axis_names(axis_name)
    packed = _mark_varying(jnp.stack(terms), names)
    if axis_index_groups is not None and _checks_varying(names):  # JAX has no such psum
        gathered = jax.lax.all_gather(packed, names, axis_index_groups=axis_index_groups)
        return list(jnp.sum(gathered, 0))
    return list(jax.lax.psum(packed, names, axis_index_groups=axis_index_groups))


def sync_extremes(
    minimum: jax.Array,
    maximum: jax.Array,
    axis_name: _axes.AxisName | None,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> tuple[jax.Array, jax.Array]:
    """The minimum and the maximum over all devices of the mapped axes, in one collective.

    NaN on any device gives NaN on all, which collectives alone do not promise.
    """
    if axis_name is None:
        return minimum, maximum
    names = _axes.axis_names(axis_name)
    has_nan = jnp.isnan(minimum) | jnp.isnan(maximum)
    packed = jnp.stack([-minimum, maximum, has_nan.astype(maximum.dtype)])
    packed = _mark_varying(jnp.where(jnp.isnan(packed), -jnp.inf, packed), names)
    if axis_index_groups is not None and _checks_varying(names):  # JAX has no such pmax
        gathered = jax.lax.all_gather(packed, names, axis_index_groups=axis_index_groups)
        merged = jnp.max(gathered, 0)
    else:
        merged = jax.lax.pmax(packed, names, axis_index_groups=axis_index_groups)
    negative_minimum, maximum, has_nan = merged
    minimum = -negative_minimum
    return jnp.where(has_nan > 0, jnp.nan, minimum), jnp.where(has_nan > 0, jnp.nan, maximum)


def _split_names(axis_name: _axes.AxisName) -> tuple[tuple[Hashable, ...], tuple[Hashable, ...]]:
    """The names of mesh axes (`pmap`, `shard_map`), and the names of `vmap`."""
    names = _axes.axis_names(axis_name)
    manual = jax.sharding.get_abstract_mesh().manual_axes
    on_mesh = tuple(name for name in names if name in manual)
    return on_mesh, tuple(name for name in names if name not in manual)


def _check_vmap(names: tuple[Hashable, ...]) -> None:
    """Refuse `vmap` names where `shard_map` checks varying axes: JAX has no collectives there."""
    manual = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    if _checks_varying(manual):
        raise ValueError(
            f"axis_name={names!r} is mapped by vmap inside a shard_map that checks varying axes, "
            "where JAX has no collectives over it; give shard_map check_vma=False"
        )


def _gathered(
    m: Moments, names: tuple[Hashable, ...], axis_index_groups: _axes.AxisIndexGroups
) -> Moments:
    """Merge after one all-gather of the moments of all devices; all compute the same result."""
    packed = _mark_varying(jnp.stack([statistic.astype(m.mean.dtype) for statistic in m]), names)
    invarying = axis_index_groups is None and _checks_varying(names)
    gathered = jax.lax.all_gather(
        packed,
        names,
        axis_index_groups=axis_index_groups,
        to="invarying" if invarying else "varying",
    )
    count, mean, var = jnp.moveaxis(gathered, 1, 0)
    return merge_moments_axis(Moments(count.real, mean, var.real), 0)


def _reduced(
    m: Moments, names: tuple[Hashable, ...], axis_index_groups: _axes.AxisIndexGroups
) -> Moments:
    """Merge by all-reduces, whose size does not grow with the number of devices."""

    def sums(*terms: jax.Array) -> list[jax.Array]:
        of_one_dtype = [term.astype(m.mean.dtype) for term in terms]
        summed = sum_over(of_one_dtype, names, axis_index_groups)
        return [
            one if jnp.iscomplexobj(term) else one.real
            for one, term in zip(summed, terms, strict=True)
        ]

    return merge_by(sums, m)


def _checks_varying(names: tuple[Hashable, ...]) -> bool:
    """Whether there are mesh axes among the names, of a `shard_map` that checks varying axes."""
    on_mesh, _ = _split_names(names)
    if not on_mesh:
        return False
    return bool(jax.typeof(jax.lax.axis_index(on_mesh)).manual_axis_type.varying)


def _mark_varying(x: jax.Array, names: tuple[Hashable, ...]) -> jax.Array:
    """Mark `x` as varying over all the names, where `shard_map` checks that."""
    missing = set(names) - jax.typeof(x).manual_axis_type.varying
    return jax.lax.pcast(x, tuple(missing), to="varying") if _checks_varying(names) else x
