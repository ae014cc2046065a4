"""Moments: a count, a mean and a variance, measured once and merged everywhere.

References:
    Chan, Golub and LeVeque, "Algorithms for computing the sample variance: analysis and
    recommendations", The American Statistician 37 (1983): the pairwise merge, and the corrected
    two-pass algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm.arrays import (
    everywhere,
    explicit_spec,
    full_without,
    only,
    repeat_groups,
    split_groups,
)

_STRIDE = 8  # positions a sample
_UNIT = 256  # squares are summed in this unit: float32 then holds those of 1e-18 and of 1e15
_MERGED_UNIT = 2**18  # the same of means, which lie closer together and are fewer


class Moments(NamedTuple):
    """How many values were seen, their mean, and their biased variance.

    The three have one shape. `count` and `var` are real; an empty measurement has count, mean and
    variance 0 and is the identity of the merge.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    mean: jax.Array
    var: jax.Array


def moments(x: ArrayLike, axis: _axes.Axes, *, where: ArrayLike | None = None) -> Moments:
    r"""Count, mean and biased variance of `x` over `axis`.

    mean = sum(x) / n and var = sum(|x - mean|^2) / n, by the corrected two-pass algorithm (Chan,
    Golub and LeVeque 1983, equation 1.7): the second pass measures both the variance and the
    rounding error of the first mean, so that means far above the deviation lose nothing.

    Args:
        x: floating or complex, any shape.
        axis: the axis or axes to measure over.
        where: nonzero where a value counts; broadcasts to `x`. What it leaves out may be anything,
            NaN included.

    Returns:
        `Moments` of the shape of `x` without `axis`, in float32 at least (float64 and complex keep
        their precision; count and variance are real).

    Raises:
        TypeError: an integer input.
        ValueError: an axis out of range or given twice; a mask that does not broadcast.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> m = jn.moments(jnp.array([1.0, 2.0, 6.0]), 0)
        >>> print(m.count, m.mean, m.var)
        3.0 3.0 4.6666665
    """
    x, reduced, counted = _prepared(x, axis, where)
    count = _count(x, reduced, counted)
    center = jax.lax.stop_gradient(_center(x, count, reduced, counted))
    m = _about(jnp.expand_dims(center, reduced), x, count, reduced, counted)
    return m._replace(mean=center + m.mean)


def mean_square(x: ArrayLike, axis: _axes.Axes, *, where: ArrayLike | None = None) -> Moments:
    """As `moments`, but about zero: the mean is 0 and the variance sum(|x|^2) / n."""
    x, reduced, counted = _prepared(x, axis, where)
    count = _count(x, reduced, counted)
    var = jnp.sum(_squared(x), reduced) / jnp.maximum(count, 1) / _UNIT
    return Moments(count, jnp.zeros(var.shape, x.dtype), var)


def group_moments(
    x: ArrayLike,
    axis: _axes.Axes,
    channel: int,
    group_size: int,
    *,
    where: ArrayLike | None = None,
) -> Moments:
    """As `moments`, over `axis` and over groups of consecutive channels.

    The channels are measured one by one about the center of their group, and merged.

    Args:
        axis: the axes to measure over beside the channels.
        channel: the axis of the channels, in [0, x.ndim).
        group_size: channels in a group.

    Returns:
        `Moments` of the shape of `x` without `axis`, with the groups in place of the channels.
    """
    if group_size == 1:
        return moments(x, axis, where=where)
    x, reduced, counted = _prepared(x, axis, where)
    at = _axes.kept_axis(channel, reduced)

    def merged(m: Moments) -> Moments:
        return merge_moments_axis(
            Moments(*(split_groups(part, at, group_size) for part in m)), at + 1
        )

    count = _count(x, reduced, counted)
    rough = Moments(count, _center(x, count, reduced, counted), jnp.zeros_like(count))
    center = jax.lax.stop_gradient(merged(rough).mean)
    centers = jnp.expand_dims(repeat_groups(center, at, group_size), reduced)
    m = merged(_about(centers, x, count, reduced, counted))
    return m._replace(mean=center + m.mean)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of values together, from the moments of each.

    Associative and commutative up to rounding; moments of count 0 are the identity.

    Args:
        a, b: moments whose shapes broadcast to each other.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([1.0, 2.0, 6.0, 7.0])
        >>> m = jn.merge_moments(jn.moments(x[:1], 0), jn.moments(x[1:], 0))
        >>> print(m.count, m.mean, m.var)
        4.0 4.0 6.5
    """
    pairs = zip(map(jnp.asarray, a), map(jnp.asarray, b), strict=True)
    stacked = [jnp.stack(jnp.broadcast_arrays(x, y)) for x, y in pairs]
    return merge_moments_axis(Moments(*stacked), 0)


def merge_moments_axis(m: Moments, axis: _axes.Axes) -> Moments:
    """The moments of all sets of values along array axes of `m` together.

    n = sum(n_i), mean = sum(n_i mean_i) / n,
    var = sum(n_i (var_i + |mean_i - mean|^2)) / n: within and between.

    Args:
        m: moments with one set of values at each index of `axis`.
        axis: the axis or axes to merge.

    Returns:
        Moments of the shape of `m` without `axis`.

    References:
        Chan, Golub and LeVeque 1983, equations 2.1, for any number of sets at once.
    """
    m = Moments(*jnp.broadcast_arrays(*m))
    merged = _axes.canonical_axes(m.mean.ndim, axis)

    def sums(*parts: jax.Array) -> list[jax.Array]:
        return [jnp.sum(part, merged, keepdims=True) for part in parts]

    return Moments(*(jnp.squeeze(part, merged) for part in merge_by(sums, m)))


def merge_by(sums: Callable[..., Sequence[jax.Array]], m: Moments) -> Moments:
    """The merge, given what sums arrays over all sets of values."""
    seen = m.count > 0
    mean, var = jnp.where(seen, m.mean, 0), jnp.where(seen, m.var, 0)
    (count,) = sums(m.count)
    weight = m.count / jnp.maximum(count, 1)
    share = weight.astype(mean.dtype)

    (center,) = jax.lax.stop_gradient(sums(share * mean))
    deviation, unit = jnp.where(seen, mean - center, 0), _MERGED_UNIT
    correction, within, between = sums(
        share * deviation, weight * (unit * var), weight * _squared(deviation, unit)
    )
    between = _less(between, _squared(correction, unit))
    return Moments(count, center + correction, (within + between) / unit)


def is_finite(m: Moments) -> jax.Array:
    """Whether the moments of each set are finite, and no square has overflowed."""
    return jnp.isfinite(m.mean) & (m.var < float(jnp.finfo(m.var.dtype).max) / _MERGED_UNIT)


def _prepared(
    x: ArrayLike, axis: _axes.Axes, where: ArrayLike | None
) -> tuple[jax.Array, tuple[int, ...], jax.Array | None]:
    """Checked arguments: the counted values in the statistics' dtype, 0 for the others."""
    x = _axes.as_input(x)
    counted = _axes.as_mask(where, x.shape)
    values = only(counted, x.astype(_axes.statistics_dtype(x.dtype)))
    return values, _axes.canonical_axes(x.ndim, axis), counted


def _count(x: jax.Array, reduced: tuple[int, ...], counted: jax.Array | None) -> jax.Array:
    """How many values count, in the shape of the statistics."""
    dtype = _axes.real_dtype(x.dtype)
    if counted is None:
        number = _axes.values_per_channel(x.shape, reduced)
        return full_without(x, reduced, number, dtype)
    return jnp.sum(everywhere(counted, x), reduced, dtype=dtype)


def _center(
    x: jax.Array, count: jax.Array, reduced: tuple[int, ...], counted: jax.Array | None
) -> jax.Array:
    """A value near the mean: the mean of one in eight positions, or of all.

    The mean square about the mean of a fraction f of the values is at most 1 + 1 / f times the
    variance, so one pass about it loses no more than a digit. The positions are taken from an axis
    that is unlikely to be split over devices, and not the contiguous one.
    """
    if counted is not None:
        number = _axes.values_per_channel(x.shape, reduced)
        return _mean(x, reduced) * (number / jnp.maximum(count, 1)).astype(x.dtype)
    inner = [
        axis
        for axis in reduced[1:]
        if axis < x.ndim - 1 and x.shape[axis] >= 2 * _STRIDE and not explicit_spec(x)[axis]
    ]
    return _mean(jax.lax.slice_in_dim(x, 0, None, _STRIDE, inner[0]) if inner else x, reduced)


def _about(
    center: jax.Array,
    x: jax.Array,
    count: jax.Array,
    reduced: tuple[int, ...],
    counted: jax.Array | None,
) -> Moments:
    """The moments of x - center in one pass, precise where `center` is near the mean.

    The two sums subtract in two ways, because XLA's CPU backend writes out what they share.
    """
    values = jnp.maximum(count, 1)
    mean = jnp.sum(only(counted, x - center), reduced) / values.astype(x.dtype)
    square = jnp.sum(_squared(only(counted, x + -center)), reduced) / values
    return Moments(count, mean, _less(square, _squared(mean)) / _UNIT)


def _squared(x: jax.Array, unit: int = _UNIT) -> jax.Array:
    """|x|^2, real, in units of 1 / unit, which is a power of four."""
    x = math.isqrt(unit) * x
    return x * x if jnp.isrealobj(x) else x.real * x.real + x.imag * x.imag


def _mean(x: jax.Array, reduced: tuple[int, ...]) -> jax.Array:
    """sum(x) / n, divided first, so that the sum of large values cannot overflow."""
    return jnp.sum(x * (1 / max(_axes.values_per_channel(x.shape, reduced), 1)), reduced)


def _less(square: jax.Array, correction: jax.Array) -> jax.Array:
    """square - correction, and 0 where only their rounding differs; NaN stays NaN.

    What overflows is taken for the largest number: without a comparison, XLA fuses the whole of a
    layer normalization into one kernel.
    """
    largest = float(jnp.finfo(square.dtype).max)
    rounding = 8 * float(jnp.finfo(square.dtype).eps)
    correction = jnp.minimum((1 + rounding) * correction, largest)
    return jnp.maximum(jnp.minimum(square, largest) - correction, 0)
