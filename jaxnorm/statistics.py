"""Moments: a count, a mean and a variance, measured once and merged everywhere.

A *scope* says which values of an input are measured together; a *statistic* is an array with one
entry for each such set of values. A value *counts* where the mask is true, or if there is no mask.
The *unit* of squared deviations is the factor by which deviations are multiplied before they are
squared, so that the squares neither underflow nor overflow.

References:
    Chan, Golub and LeVeque, "Algorithms for computing the sample variance: analysis and
    recommendations", The American Statistician 37 (1983): the pairwise merge, and the corrected
    two-pass algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes
from jaxnorm.arrays import (
    broadcast_mask,
    broadcast_over,
    full_without,
    masked,
    repeat_groups,
    split_groups,
)
from jaxnorm.kernels.linear import LinearMap, apply_linear
from jaxnorm.kernels.native import Operation, has_native, run
from jaxnorm.kernels.view import View, view_of

__all__ = ["Moments", "merge_moments", "merge_moments_axis", "moments"]

# Of deviations of 1e-18, float32 then holds also the squares of those a hundred times smaller.
_UNIT = 16.0
_MERGED_UNIT = 512.0  # for means, which lie closer together and are fewer


class Moments(NamedTuple):
    """The number of values, their mean, and their biased variance.

    The three have one shape. `count` and `var` are real; an empty measurement has count, mean and
    variance 0 and is the identity of the merge.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    mean: jax.Array
    var: jax.Array


class Centered(NamedTuple):
    """Moments whose mean is a pair, center + correction, more precise than its dtype.

    The center is the mean as its dtype holds it, and the correction what that rounding took off:
    None where it is 0 (about zero) or unknown (moments that were merged).
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    center: jax.Array
    correction: jax.Array | None
    var: jax.Array

    @property
    def moments(self) -> Moments:
        """The same without the correction."""
        return Moments(self.count, self.center, self.var)


class Scope(NamedTuple):
    """Which values of an input are measured together (hashable).

    Attributes:
        reduced: the canonical axes of the input that are measured over.
        channel, group_size: if `group_size` is above 1, the axis `channel` is measured over too, in
            groups of this many channels.
        about_zero: whether the mean is 0 by definition.
        axis_name, axis_index_groups: the mapped axes over which the moments are merged.
    """

    reduced: tuple[int, ...]
    channel: int = 0
    group_size: int = 1
    about_zero: bool = False
    axis_name: _axes.AxisName | None = None
    axis_index_groups: Any = None

    def per_channel(self, statistic: jax.Array) -> jax.Array:
        """Repeat a statistic of groups for the channels of each group."""
        if self.group_size == 1:
            return statistic
        return repeat_groups(statistic, self.kept_channel, self.group_size)

    def broadcast(self, statistic: jax.Array, x: jax.Array) -> jax.Array:
        """Broadcast a statistic to the values of `x` that it was measured over."""
        return broadcast_over(self.per_channel(statistic), x, self.reduced)

    def deviation(self, x: jax.Array, center: jax.Array, correction: jax.Array | None) -> jax.Array:
        """x - mean: far from zero x - center is exact, so that no unit of the mean is lost."""
        deviation = x.astype(center.dtype) - self.broadcast(center, x)
        return deviation if correction is None else deviation - self.broadcast(correction, x)

    def sum_groups(self, sums: jax.Array) -> jax.Array:
        """Sum over the channels of each group what was summed over the axes `reduced`."""
        if self.group_size == 1:
            return sums
        split = split_groups(sums, self.kept_channel, self.group_size)
        return jnp.sum(split, self.kept_channel + 1)

    def sum(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Sum the values of this device that count."""
        return self.sum_groups(jnp.sum(masked(x, mask), self.reduced))

    def view(self, x: jax.Array, features: tuple[int, ...] = ()) -> View | None:
        """The view in which the kernels take the input, None if they do not."""
        view = view_of(x.shape, self.reduced, features, self.channel, self.group_size)
        return view if has_native(x, view) else None

    def statistic_shape(self, x: jax.Array) -> tuple[int, ...]:
        """The shape of a statistic."""
        shape = list(x.shape)
        if self.group_size > 1:
            shape[self.channel] //= self.group_size
        return tuple(shape[axis] for axis in _axes.other_axes(x.ndim, self.reduced))

    @property
    def kept_channel(self) -> int:
        """The channel axis of an array without the axes `reduced`."""
        return _axes.kept_axis(self.channel, self.reduced)


@_checks.mask_is_called("where")
def moments(x: ArrayLike, axis: _axes.Axes, *, where: ArrayLike | None = None) -> Moments:
    """Measure count, mean and biased variance of `x` over `axis`.

    mean = sum(x) / n and var = sum(|x - mean|^2) / n, by the corrected two-pass algorithm (Chan,
    Golub and LeVeque 1983, equation 1.7): the second pass measures both the variance and the
    rounding error of the first mean, so that no precision is lost when the mean is much larger than
    the deviation.

    Args:
        x: floating or complex, any shape.
        axis: the axis or axes to measure over.
        where: nonzero where a value counts; broadcasts to `x`. The other values may be anything,
            NaN included.

    Returns:
        `Moments` of the shape of `x` without `axis`, in float32 at least (float64 and complex keep
        their precision; count and variance are real). The variance is infinite where the squares of
        the deviations sum to more than 1e36 (in float32).

    Raises:
        TypeError: an integer input.
        ValueError: an axis out of range or given twice; a mask that does not broadcast.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> m = jn.moments(jnp.array([1.0, 2.0, 6.0]), 0)
        >>> print(m.count, m.mean, m.var)
        3.0 3.0 4.6666665
    """
    x = _checks.as_input(x)
    mask = _checks.as_mask(where, x.shape)
    return measure(x, Scope(_axes.canonical_axes(x.ndim, axis)), mask)


def measure(x: jax.Array, scope: Scope, mask: jax.Array | None = None) -> Moments:
    """The moments over `scope` of the values of this device that count.

    About zero, the mean is 0 and the variance sum(|x|^2) / n.
    """
    return measure_centered(x, scope, mask).moments


def measure_centered(x: jax.Array, scope: Scope, mask: jax.Array | None = None) -> Centered:
    """As `measure`, with the mean as a pair."""
    count = count_of(scope, x, mask)
    return Centered(count, *_mean_and_var(x, count, mask, scope))


def without_correction(m: Moments) -> Centered:
    """Moments of which only the rounded mean is known."""
    return Centered(m.count, m.mean, None, m.var)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _mean_and_var(
    x: jax.Array, count: jax.Array, mask: jax.Array | None, scope: Scope
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Center, correction (None about zero) and variance."""
    view = scope.view(x) if mask is None else None
    if view is None:
        return plain_mean_and_var(scope, x, count, mask)
    statistic = (scope.statistic_shape(x), _dtypes.statistics_dtype(x.dtype))
    operation = Operation(
        "jaxnorm_measure",
        plain_mean_and_var,
        scope,
        view,
        results=(statistic, None if scope.about_zero else statistic, statistic),
        attributes=(("about_zero", scope.about_zero),),
    )
    center, correction, var = run(operation, x)
    return cast(jax.Array, center), correction, cast(jax.Array, var)


def plain_mean_and_var(
    scope: Scope,
    x: jax.Array,
    count: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Center, correction and variance by the corrected two-pass algorithm, about a first mean."""
    count = count_of(scope, x, mask) if count is None else count
    values = divisor(count)
    x = masked(x.astype(_dtypes.statistics_dtype(x.dtype)), mask)
    if scope.about_zero:
        square = scope.sum(_squared(x, _UNIT)) / values
        return jnp.zeros_like(square, x.dtype), None, square / _UNIT**2
    number = max(_axes.values_per_channel(x.shape, scope.reduced) * scope.group_size, 1)
    center = scope.sum(x * (1 / number)) * (number / values).astype(x.dtype)  # no sum overflows
    unit = _unit(center, _UNIT)
    deviation = x - scope.broadcast(center, x)
    correction = scope.sum(deviation, mask) / values.astype(x.dtype)
    square = scope.sum(_squared(deviation, scope.broadcast(unit, x)), mask) / values
    var = _subtract(square, _squared(correction, unit)) / unit**2
    return *_rounded(center, correction, var), var


def _rounded(
    center: jax.Array, correction: jax.Array, var: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The mean center + correction as its rounded value, and what the rounding took off it.

    That is 0 where nothing varies: the mean of a constant is the constant, exactly.
    """
    mean = center + correction
    lost = correction - (mean - center)
    return mean, jax.lax.select(var == 0, jnp.zeros_like(lost), lost)


@_mean_and_var.defjvp
def _mean_and_var_jvp(
    scope: Scope, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    x, count, mask = primals
    m = Centered(count, *_mean_and_var(x, count, mask, scope))
    return tuple(m[1:]), moments_tangents(scope, x, mask, m, tangents[0])


def moments_tangents(
    scope: Scope, x: jax.Array, mask: jax.Array | None, m: Centered, dx: jax.Array
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """The tangents of center (the mean's), correction (0) and variance, as a linear map."""
    map = LinearMap(_push_forward, _pull_back, scope, (jax.typeof(m.center), jax.typeof(m.var)))
    residuals = (x, m.count, mask, m.center, m.correction)
    dmean, dvar = apply_linear(map, residuals, (dx,))
    return dmean, None if m.correction is None else jnp.zeros_like(m.correction), dvar


def _push_forward(scope: Scope, residuals: Any, tangents: Any) -> list[jax.Array]:
    """dmean = E[dx] and dvar = 2 Re E[conj(x - mean) * dx]."""
    x, count, mask, center, correction = residuals
    deviation = scope.deviation(masked(x, mask), center, correction)
    dx = tangents[0].astype(center.dtype)
    values = divisor(count)
    dmean = scope.sum(dx, mask) / values.astype(center.dtype)
    dvar = 2 * scope.sum((jnp.conj(deviation) * dx).real, mask) / values
    return [jnp.zeros_like(dmean) if scope.about_zero else dmean, dvar]


def _pull_back(
    scope: Scope, residuals: Any, cotangents: Any, wanted: Any
) -> list[jax.Array | None]:
    """The transpose: of mean / n and of var * 2 conj(x - mean) / n, at each value that counts."""
    x, count, mask, center, correction = residuals
    of_mean, of_var = cotangents
    values = divisor(count)
    g = jnp.zeros_like(x, center.dtype)
    if of_mean is not None and not scope.about_zero:
        g = g + scope.broadcast(of_mean / values.astype(center.dtype), x)
    if of_var is not None:
        slope = scope.broadcast((2 * of_var / values).astype(center.dtype), x)
        g = g + jnp.conj(scope.deviation(x, center, correction)) * slope
    return [masked(g, mask).astype(x.dtype)]


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Merge the moments of two sets of values into those of their union.

    The merge is associative and commutative up to rounding; moments of count 0 are its identity.

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
    """Merge the moments of all sets of values along array axes of `m`.

    n = sum(n_i), mean = sum(n_i mean_i) / n, and the variance is that within and between the sets,
    var = sum(n_i (var_i + |mean_i - mean|^2)) / n.

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

    def sums(*terms: jax.Array) -> list[jax.Array]:
        return [jnp.sum(term, merged, keepdims=True) for term in terms]

    return Moments(*(jnp.squeeze(statistic, merged) for statistic in merge_by(sums, m)))


def merge_by(sums: Callable[..., Sequence[jax.Array]], m: Moments) -> Moments:
    """Merge, given a function that sums each of its arguments over all sets of values."""
    nonempty = m.count > 0
    mean, var = jnp.where(nonempty, m.mean, 0), jnp.where(nonempty, m.var, 0)
    (count,) = sums(m.count)
    weight = m.count / divisor(count)
    mean_weight = weight.astype(mean.dtype)

    # The result does not depend on the center, so no gradient goes through it.
    (center,) = jax.lax.stop_gradient(sums(mean_weight * mean))
    unit = _unit(center, _MERGED_UNIT)
    deviation = jnp.where(nonempty, mean - center, 0)
    correction, within, between = sums(
        mean_weight * deviation, weight * (var * unit**2), weight * _squared(deviation, unit)
    )
    between = _subtract(between, _squared(correction, unit))
    return Moments(count, center + correction, (within + between) / unit**2)


def is_finite(m: Moments) -> jax.Array:
    """Whether the moments of each set are finite."""
    return jnp.isfinite(m.mean) & jnp.isfinite(m.var)


def count_of(scope: Scope, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The number of values that count, a statistic."""
    dtype = _dtypes.real_dtype(_dtypes.statistics_dtype(x.dtype))
    if mask is None:
        number = _axes.values_per_channel(x.shape, scope.reduced)
        return scope.sum_groups(full_without(x, scope.reduced, number, dtype))
    return scope.sum_groups(jnp.sum(broadcast_mask(mask, x), scope.reduced, dtype=dtype))


def divisor(count: jax.Array) -> jax.Array:
    """The count, or 1 where nothing counts: a sum divided by it is the mean."""
    return jnp.maximum(count, jnp.ones_like(count))


def _unit(center: jax.Array, unit: float) -> jax.Array:
    """The unit of squared deviations from a center: `unit`, or less about a huge center.

    About a huge center the square of the rounding error of a deviation would overflow. With the
    smaller unit a constant has variance 0, and only a variance that overflows is infinite.
    """
    size = jnp.abs(center)
    huge = jnp.full_like(size, 2.0 ** (jnp.finfo(center.dtype).maxexp // 2 - 2))
    return unit * (huge / jnp.maximum(size, huge))


def _squared(x: jax.Array, unit: ArrayLike) -> jax.Array:
    """|x * unit|^2, real."""
    if jnp.isrealobj(x):
        return (x * unit) ** 2
    return (x.real * unit) ** 2 + (x.imag * unit) ** 2


def _subtract(square: jax.Array, correction: jax.Array) -> jax.Array:
    """square - correction, or 0 where they differ by rounding only."""
    correction = (1 + 8 * float(jnp.finfo(square.dtype).eps)) * correction
    return jnp.maximum(square - correction, 0 * correction)  # NaN if the correction is not finite
