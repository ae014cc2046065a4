"""Moments: a count, a mean and a variance, measured once and merged everywhere.

References:
    Chan, Golub and LeVeque, "Algorithms for computing the sample variance: analysis and
    recommendations", The American Statistician 37 (1983).
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
from jaxnorm.arrays import masked
from jaxnorm.forms import mean_and_var
from jaxnorm.kernels.linear import LinearMap, apply_linear
from jaxnorm.kernels.native import Operation, run
from jaxnorm.kernels.static import Static, split_arrays
from jaxnorm.scope import Scope, by_segment, count_of, divisor, mask_operand
from jaxnorm.segments import as_segments
from jaxnorm.squares import squared, subtracted, unit_about

__all__ = ["Moments", "merge_moments", "merge_moments_axis", "moments"]

_MERGED_UNIT = 512.0  # for means, which lie closer together and are fewer


class Moments(NamedTuple):
    """The number of values, their mean, and their biased variance.

    The three have the same shape. `count` and `var` are real. Moments of no values have count, mean
    and variance 0; merging them changes nothing.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    mean: jax.Array
    var: jax.Array


class Centered(NamedTuple):
    """Moments whose mean is a pair, center + correction, more precise than its dtype.

    The correction is what rounding took off the mean. It is None where it is 0 (about zero) or
    unknown (moments that were merged).
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    center: jax.Array
    correction: jax.Array | None
    var: jax.Array

    @property
    def moments(self) -> Moments:
        """The same with the mean as one number."""
        mean = self.center if self.correction is None else self.center + self.correction
        return Moments(self.count, mean, self.var)


@_checks.mask_is_called("where")
def moments(
    x: ArrayLike,
    axis: _axes.Axes,
    *,
    where: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: int | None = None,
) -> Moments:
    """Measure the count, the mean and the biased variance of `x` over `axis`.

    mean = sum(x) / n and var = sum(|x - mean|^2) / n, from the deviations from a center near the
    mean (Chan, Golub and LeVeque 1983, equation 1.7) or by merging moments (2.1), so that no
    precision is lost when the mean is much larger than the deviation. The device and the axes
    decide which of the two is used.

    Args:
        x: floating or complex, any shape.
        axis: the axis or axes to measure over.
        where: a mask that broadcasts to `x`, nonzero at the values to measure. The other values may
            be anything, NaN included.
        segment_ids: int [N], the segment of each of the N entries of `x` along axis 0, in any
            order. Each segment is measured separately, over all its entries (whether `axis`
            includes axis 0 or not) and the other axes in `axis`. An entry with an id outside
            [0, num_segments) belongs to no segment.
        num_segments: the number of segments, a Python int.

    Returns:
        `Moments` of the shape of `x` without `axis`, in float32 at least (float64 and complex keep
        their precision; count and variance are real). The variance is infinite where the squares of
        the deviations sum to more than 8e34 (in float32). With `segment_ids`, the first axis is
        that of the segments, [num_segments, ...]; a segment without entries has count 0.

    Raises:
        TypeError: an integer input; ids that are not integers.
        ValueError: an axis out of range or given twice; a mask that does not broadcast; one of
            `segment_ids` and `num_segments` without the other, or ids whose shape is not [N].

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> m = jn.moments(jnp.array([1.0, 2.0, 6.0]), 0)
        >>> print(m.count, m.mean, m.var)
        3.0 3.0 4.6666665
    """
    x = _checks.as_input(x)
    mask = _checks.as_mask(where, x.shape)
    segments = as_segments(segment_ids, num_segments, x)
    scope, mask = by_segment(Scope(_axes.canonical_axes(x.ndim, axis)), segments, mask, x.ndim)
    return measure(x, scope, mask)


def measure(x: jax.Array, scope: Scope, mask: jax.Array | None = None) -> Moments:
    """The moments over `scope` of the values of this device that count.

    About zero, the mean is 0 and the variance sum(|x|^2) / n.
    """
    return measure_centered(x, scope, mask).moments


def measure_centered(x: jax.Array, scope: Scope, mask: jax.Array | None = None) -> Centered:
    """As `measure`, with the mean as a pair."""
    m = Centered(*_measured(x, mask, *split_arrays(scope)))
    return m._replace(count=jax.lax.stop_gradient(m.count))


def without_correction(m: Moments) -> Centered:
    """Moments of which only the rounded mean is known."""
    return Centered(m.count, m.mean, None, m.var)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _measured(
    x: jax.Array, mask: jax.Array | None, static: Static, held: list[jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array]:
    """Count, center, correction (None about zero) and variance; the scope is split."""
    scope: Scope = static.joined(held)
    view = scope.view(x, mask)
    shape, dtype = scope.statistic_shape(x), _dtypes.statistics_dtype(x.dtype)
    real = shape, _dtypes.real_dtype(dtype)
    operation = Operation(
        "jaxnorm_measure",
        _plain_measure,
        scope,
        view,
        results=(
            (shape, dtype),
            None if scope.about_zero else (shape, dtype),
            real,
            None if mask is None else real,
        ),
        attributes=(("about_zero", scope.about_zero),),
    )
    center, correction, var, counted = run(operation, x, mask_operand(view, mask))
    every = (count_of(scope, x) if counted is None else counted, center, correction, var)
    return cast(tuple[jax.Array, jax.Array, jax.Array | None, jax.Array], every)


def _plain_measure(scope: Scope, x: jax.Array, mask: jax.Array | None) -> list[jax.Array | None]:
    """The plain form of `jaxnorm_measure`."""
    count = None if mask is None else count_of(scope, x, mask)
    return [*mean_and_var(scope, x, count, mask), count]


@_measured.defjvp
def _measured_jvp(static: Static, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    x, mask, held = primals
    scope: Scope = static.joined(held)
    m = Centered(*_measured(x, mask, *split_arrays(scope._replace(differentiated=True))))
    return tuple(m), (jnp.zeros_like(m.count), *moments_tangents(scope, x, mask, m, tangents[0]))


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

    Returns:
        Moments of the broadcast shape.

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
    """Merge the moments of all sets of values along one or more array axes of `m`.

    n = sum(n_i), mean = sum(n_i mean_i) / n, and var = sum(n_i (var_i + |mean_i - mean|^2)) / n,
    the variance within and between the sets.

    Args:
        m: moments with one set of values at each index of `axis`.
        axis: the axis or axes to merge.

    Returns:
        Moments of the shape of `m` without `axis`.

    References:
        Chan, Golub and LeVeque 1983, equations 2.1, for any number of sets at once.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> m = jn.moments(jnp.array([[1.0, 3.0], [6.0, 8.0]]), 1)
        >>> print(m.mean, jn.merge_moments_axis(m, 0).mean)
        [2. 7.] 4.5
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
    unit = unit_about(center, _MERGED_UNIT)
    deviation = jnp.where(nonempty, mean - center, 0)
    correction, within, between = sums(
        mean_weight * deviation, weight * (var * unit**2), weight * squared(deviation, unit)
    )
    between = subtracted(between, squared(correction, unit))
    return Moments(count, center + correction, (within + between) / unit**2)


def is_finite(m: Moments) -> jax.Array:
    """Whether the moments of each set are finite."""
    return jnp.isfinite(m.mean) & jnp.isfinite(m.var)
