"""Moments: a count, a mean and a variance, measured once and merged everywhere.

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
    everywhere,
    full_without,
    only,
    repeat_groups,
    repeated,
    split_groups,
)
from jaxnorm.kernels.linear import Map
from jaxnorm.kernels.linear import apply as linear
from jaxnorm.kernels.native import Operation, has_native, run
from jaxnorm.kernels.view import View, view_of

__all__ = ["Moments", "merge_moments", "merge_moments_axis", "moments"]

# Deviations are squared in these units: float32 then holds the squares of those of 1e-18.
_UNIT = 16.0
_MERGED_UNIT = 512.0  # of means, which lie closer together and are fewer


class Moments(NamedTuple):
    """How many values were seen, their mean, and their biased variance.

    The three have one shape. `count` and `var` are real; an empty measurement has count, mean and
    variance 0 and is the identity of the merge.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    mean: jax.Array
    var: jax.Array


class Scope(NamedTuple):
    """What the moments of an input are taken over (hashable).

    Attributes:
        reduced: canonical axes of the input.
        channel, group_size: also the groups of this many channels, if more than one.
        about_zero: the mean is 0 by definition.
        axis_name, axis_index_groups: mapped axes over which they are merged.
    """

    reduced: tuple[int, ...]
    channel: int = 0
    group_size: int = 1
    about_zero: bool = False
    axis_name: _axes.AxisName | None = None
    axis_index_groups: Any = None

    def per_channel(self, part: jax.Array) -> jax.Array:
        """A statistic of each group, given to its channels."""
        if self.group_size == 1:
            return part
        return repeat_groups(part, self.kept_channel, self.group_size)

    def broadcast(self, part: jax.Array, x: jax.Array) -> jax.Array:
        """A statistic, so that it meets every value of `x` that it was taken from."""
        return repeated(self.per_channel(part), x, self.reduced)

    def grouped(self, part: jax.Array) -> jax.Array:
        """The sum over each group of what was summed over the axes `reduced`."""
        if self.group_size == 1:
            return part
        return jnp.sum(
            split_groups(part, self.kept_channel, self.group_size), self.kept_channel + 1
        )

    def sum(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """The sum over what counts on this device."""
        return self.grouped(jnp.sum(only(mask, x), self.reduced))

    def view(self, x: jax.Array, features: tuple[int, ...] = ()) -> View | None:
        """How the kernels see the input, None where they cannot."""
        view = view_of(x.shape, self.reduced, features, self.channel, self.group_size)
        return view if has_native(x, view) else None

    def kept_shape(self, x: jax.Array) -> tuple[int, ...]:
        """The shape of the statistics."""
        shape = list(x.shape)
        if self.group_size > 1:
            shape[self.channel] //= self.group_size
        return tuple(shape[axis] for axis in _axes.other_axes(x.ndim, self.reduced))

    @property
    def kept_channel(self) -> int:
        """Where the channel axis stands once the axes `reduced` are gone."""
        return _axes.kept_axis(self.channel, self.reduced)


@_checks.mask_is_called("where")
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
        their precision; count and variance are real). Where the squares of the deviations sum up to
        more than 1e36 (in float32), the variance is infinite.

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
    """The moments of `x` over `scope` on this device, of what counts.

    About zero, the mean is 0 and the variance sum(|x|^2) / n.
    """
    count = count_of(scope, x, mask)
    mean, var = _measured(x, count, mask, scope)
    return Moments(count, mean, var)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _measured(
    x: jax.Array, count: jax.Array, mask: jax.Array | None, scope: Scope
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance."""
    view = scope.view(x) if mask is None else None
    if view is None:
        return plainly_measured(scope, x, count, mask)
    dtype = _dtypes.statistics_dtype(x.dtype)
    row = (scope.kept_shape(x), dtype)
    operation = Operation(
        "jaxnorm_measure",
        plainly_measured,
        scope,
        view,
        results=(row, row),
        attributes=(("about_zero", scope.about_zero),),
    )
    mean, var = run(operation, x)
    return cast(jax.Array, mean), cast(jax.Array, var)


def plainly_measured(
    scope: Scope,
    x: jax.Array,
    count: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance by the corrected two-pass algorithm, about a first mean."""
    count = count_of(scope, x, mask) if count is None else count
    values = divisor(count)
    x = only(mask, x.astype(_dtypes.statistics_dtype(x.dtype)))
    if scope.about_zero:
        square = scope.sum(_squared(x, _UNIT)) / values
        return jnp.zeros_like(square, x.dtype), square / _UNIT**2
    number = max(_axes.values_per_channel(x.shape, scope.reduced) * scope.group_size, 1)
    center = scope.sum(x * (1 / number)) * (number / values).astype(x.dtype)  # no sum overflows
    unit = _unit(center, _UNIT)
    deviation = x - scope.broadcast(center, x)
    correction = scope.sum(deviation, mask) / values.astype(x.dtype)
    square = scope.sum(_squared(deviation, scope.broadcast(unit, x)), mask) / values
    return center + correction, _less(square, _squared(correction, unit)) / unit**2


@_measured.defjvp
def _measured_jvp(
    scope: Scope, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    """The mean moves by E[dx], the variance by 2 Re E[conj(x - mean) dx]."""
    x, count, mask = primals
    mean, var = _measured(x, count, mask, scope)
    return (mean, var), moved_moments(scope, x, count, mask, mean, var, tangents[0])


def moved_moments(
    scope: Scope,
    x: jax.Array,
    count: jax.Array,
    mask: jax.Array | None,
    mean: jax.Array,
    var: jax.Array,
    dx: jax.Array,
) -> tuple[jax.Array, ...]:
    """The tangents of the mean and the variance."""
    map = Map(_moved, _moved_by, scope, (jax.typeof(mean), jax.typeof(var)))
    return tuple(linear(map, (x, count, mask, mean), (dx,)))


def _moved(scope: Scope, residuals: Any, tangents: Any) -> list[jax.Array]:
    """E[dx] and 2 Re E[conj(x - mean) dx]."""
    x, count, mask, mean = residuals
    deviation = only(mask, x).astype(mean.dtype) - scope.broadcast(mean, x)
    dx = tangents[0].astype(mean.dtype)
    values = divisor(count)
    dmean = scope.sum(dx, mask) / values.astype(mean.dtype)
    dvar = 2 * scope.sum((jnp.conj(deviation) * dx).real, mask) / values
    return [jnp.zeros_like(dmean) if scope.about_zero else dmean, dvar]


def _moved_by(scope: Scope, residuals: Any, cotangents: Any, wanted: Any) -> list[jax.Array | None]:
    """The transpose: what each value adds to the mean and the variance."""
    x, count, mask, mean = residuals
    of_mean, of_var = cotangents
    values = divisor(count)
    g = jnp.zeros_like(x, mean.dtype)
    if of_mean is not None and not scope.about_zero:
        g = g + scope.broadcast(of_mean / values.astype(mean.dtype), x)
    if of_var is not None:
        slope = scope.broadcast((2 * of_var / values).astype(mean.dtype), x)
        g = g + jnp.conj(x.astype(mean.dtype) - scope.broadcast(mean, x)) * slope
    return [only(mask, g).astype(x.dtype)]


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
    weight = m.count / divisor(count)
    share = weight.astype(mean.dtype)

    (center,) = jax.lax.stop_gradient(sums(share * mean))
    unit = _unit(center, _MERGED_UNIT)
    deviation = jnp.where(seen, mean - center, 0)
    correction, within, between = sums(
        share * deviation, weight * (var * unit**2), weight * _squared(deviation, unit)
    )
    between = _less(between, _squared(correction, unit))
    return Moments(count, center + correction, (within + between) / unit**2)


def is_finite(m: Moments) -> jax.Array:
    """Whether the moments of each set are finite."""
    return jnp.isfinite(m.mean) & jnp.isfinite(m.var)


def count_of(scope: Scope, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """How many values count, in the shape of the statistics."""
    dtype = _dtypes.real_dtype(_dtypes.statistics_dtype(x.dtype))
    if mask is None:
        number = _axes.values_per_channel(x.shape, scope.reduced)
        return scope.grouped(full_without(x, scope.reduced, number, dtype))
    return scope.grouped(jnp.sum(everywhere(mask, x), scope.reduced, dtype=dtype))


def divisor(count: jax.Array) -> jax.Array:
    """What a sum over the counted values is divided by for their mean: 1 where nothing counts."""
    return jnp.maximum(count, jnp.ones_like(count))


def _unit(center: jax.Array, unit: float) -> jax.Array:
    """The unit in which deviations from a center are squared.

    About a huge center the mere rounding of a deviation has a square that overflows, so the unit
    is small there: a constant then has variance 0, and only a variance that overflows is infinite.
    """
    size = jnp.abs(center)
    huge = jnp.full_like(size, 2.0 ** (jnp.finfo(center.dtype).maxexp // 2 - 2))
    return unit * (huge / jnp.maximum(size, huge))


def _squared(x: jax.Array, unit: ArrayLike) -> jax.Array:
    """|x|^2, real, in squares of a unit."""
    if jnp.isrealobj(x):
        return (x * unit) ** 2
    return (x.real * unit) ** 2 + (x.imag * unit) ** 2


def _less(square: jax.Array, correction: jax.Array) -> jax.Array:
    """square - correction, and 0 where only their rounding differs; what overflows stays so."""
    correction = (1 + 8 * float(jnp.finfo(square.dtype).eps)) * correction
    return jnp.maximum(square - correction, 0 * correction)  # NaN where it is not finite
