"""(x - mean) * rstd * scale + bias, with its derivative.

Standardizing projects: with n values, y = (x - mean) * rstd and E the mean over them,

    dy = rstd * (dx - E[dx] - y * Re E[conj(y) * dx]),

which is symmetric, so the one rule below serves forward mode and, transposed, reverse mode. It
needs nothing but the input and rows of statistics: the standardized values are computed again
where they are needed, and the input is all that is kept for the backward pass.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes
from jaxnorm.statistics import Moments, split_groups

Renorm = tuple[jax.Array, jax.Array]


class Scope(NamedTuple):
    """What the moments of an input were taken over (hashable).

    Attributes:
        reduced: canonical axes of the input.
        channel, group_size: also the groups of this many channels, if more than one.
        about_zero: the mean is 0 by definition.
        given: the moments do not depend on the input: running statistics.
        axis_name, axis_index_groups: mapped axes over which they were merged.
    """

    reduced: tuple[int, ...]
    channel: int = 0
    group_size: int = 1
    about_zero: bool = False
    given: bool = False
    axis_name: _axes.AxisName | None = None
    axis_index_groups: Any = None

    def spread(self, part: jax.Array) -> jax.Array:
        """A statistic, so that it broadcasts to the input."""
        if self.group_size > 1:
            part = jnp.repeat(part, self.group_size, self.kept_channel)
        return jnp.expand_dims(part, self.reduced)

    def sums(self, counted: jax.Array | None, *values: jax.Array) -> jax.Array:
        """The sums of each array over what counts on this device, stacked."""
        if counted is not None:
            values = tuple(jnp.where(counted, value, 0) for value in values)
        sums = jnp.stack([jnp.sum(value, self.reduced) for value in values])
        if self.group_size == 1:
            return sums
        channel = self.kept_channel + 1
        return jnp.sum(split_groups(sums, channel, self.group_size), channel + 1)

    def averages(self, sums: jax.Array, count: jax.Array) -> list[jax.Array]:
        """The means over all devices that the stacked sums make, in one collective, spread."""
        if self.axis_name is not None:
            sums = jax.lax.psum(sums, self.axis_name, axis_index_groups=self.axis_index_groups)
        return [self.spread(total) for total in sums / jnp.maximum(count, 1).astype(sums.dtype)]

    @property
    def kept_channel(self) -> int:
        """Where the channel axis stands once the axes `reduced` are gone."""
        return _axes.kept_axis(self.channel, self.reduced)


def standardize(
    x: jax.Array,
    m: Moments,
    scope: Scope,
    scale: jax.Array | None,
    bias: jax.Array | None,
    features: tuple[int, ...],
    *,
    epsilon: float,
    counted: jax.Array | None = None,
    renorm: Renorm | None = None,
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in the dtype of `x`.

    Args:
        x: the input.
        m: its moments over `scope`.
        scope: what they were taken over; the derivative is that of `x` measured there.
        scale, bias: of the shape of the axes `features` of `x`, in the statistics' dtype, or None.
        features: canonical axes.
        epsilon: added to the variance.
        counted: boolean, broadcasts to `x`. A position that does not count and is not finite
            yields the bias.
        renorm: the corrections (r, d) of batch renormalization, of the shape of the moments:
            the standardized value y becomes y * r + d.
    """
    if scope.given:
        formula = jax.checkpoint(_affine, static_argnums=(6, 7, 8), prevent_cse=False)
    else:
        formula, m = _affine_of_own_moments, jax.lax.stop_gradient(m)
    y: jax.Array = formula(x, m, scale, bias, counted, renorm, scope, features, epsilon)
    return y


def _affine(
    x: jax.Array,
    m: Moments,
    scale: jax.Array | None,
    bias: jax.Array | None,
    counted: jax.Array | None,
    renorm: Renorm | None,
    scope: Scope,
    features: tuple[int, ...],
    epsilon: float,
) -> jax.Array:
    y, _ = _standardized(_finite(x, counted), m, scope, epsilon)
    y = _corrected(y, x, counted, renorm, scope)
    others = _axes.other_axes(x.ndim, features)
    if scale is not None:
        y = y * jnp.expand_dims(scale, others)
    if bias is not None:
        y = y + jnp.expand_dims(bias, others)
    return y.astype(x.dtype)


_affine_of_own_moments = jax.custom_jvp(_affine, nondiff_argnums=(6, 7, 8))


@_affine_of_own_moments.defjvp
def _affine_jvp(
    scope: Scope,
    features: tuple[int, ...],
    epsilon: float,
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[Any, Any]:
    """The derivative, which keeps `x` and computes the rest again on both sides of the sums."""
    x, m, scale, _, counted, renorm = primals
    dx, _, dscale, dbias, *_ = tangents
    recompute = partial(jax.checkpoint, prevent_cse=False)
    others = _axes.other_axes(x.ndim, features)

    @recompute
    def sums(x: jax.Array, dx: jax.Array) -> jax.Array:
        y, _ = _standardized_by_own_moments(_finite(x, counted), m, counted, scope, epsilon)
        return scope.sums(counted, *_products(y, dx, counted, scope))

    @recompute
    def tangent(
        x: jax.Array, dx: jax.Array, averages: list[jax.Array], scale: Any, dscale: Any, dbias: Any
    ) -> jax.Array:
        y, rstd = _standardized_by_own_moments(_finite(x, counted), m, counted, scope, epsilon)
        dy = _projected(y, rstd, dx, averages, counted)
        if renorm is not None:
            dy = dy * scope.spread(renorm[0])
        if counted is not None:
            dy = jnp.where(_shown(y, x, counted), dy, 0)
        if scale is not None:
            dy = dy * jnp.expand_dims(scale, others)
            dy = dy + _corrected(y, x, counted, renorm, scope) * jnp.expand_dims(dscale, others)
        if dbias is not None:
            dy = dy + jnp.expand_dims(dbias, others)
        return dy.astype(x.dtype)

    averages = scope.averages(sums(x, dx), m.count)
    y = _affine_of_own_moments(*primals, scope, features, epsilon)
    return y, tangent(x, dx, averages, scale, dscale, dbias)


def _finite(x: jax.Array, counted: jax.Array | None) -> jax.Array:
    """`x` with 0 where it does not count and is not finite."""
    return x if counted is None else jnp.where(counted | jnp.isfinite(x), x, 0)


def _shown(y: jax.Array, x: jax.Array, counted: jax.Array) -> jax.Array:
    """Where the standardized value stands: where it counts or is finite."""
    return counted | (jnp.isfinite(x) & jnp.isfinite(y))


def _corrected(
    y: jax.Array,
    x: jax.Array,
    counted: jax.Array | None,
    renorm: Renorm | None,
    scope: Scope,
) -> jax.Array:
    """y * r + d of batch renormalization, and 0 where nothing is shown."""
    corrected = y
    if renorm is not None:
        r, d = map(scope.spread, renorm)
        corrected = y * r + d
    return corrected if counted is None else jnp.where(_shown(y, x, counted), corrected, 0)


def _standardized(
    x: jax.Array, m: Moments, scope: Scope, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """(x - mean) * rstd and rstd = 1 / sqrt(var + epsilon).

    rstd is 0 where nothing counts, and where nothing varies and epsilon is 0.
    """
    count, mean, var = map(scope.spread, m)
    power = var + epsilon
    nothing = (count == 0) | (power == 0)
    rstd = jnp.where(nothing, 0, jax.lax.rsqrt(jnp.where(nothing, 1, power)))
    return (x.astype(mean.dtype) - mean) * rstd.astype(mean.dtype), rstd


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _standardized_by_own_moments(
    x: jax.Array, m: Moments, counted: jax.Array | None, scope: Scope, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """As `_standardized`, where `m` moves with `x`."""
    return _standardized(x, m, scope, epsilon)


@_standardized_by_own_moments.defjvp
def _standardized_jvp(
    scope: Scope, epsilon: float, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    x, m, counted = primals
    dx = tangents[0]
    y, rstd = _standardized_by_own_moments(x, m, counted, scope, epsilon)
    averages = scope.averages(scope.sums(counted, *_products(y, dx, counted, scope)), m.count)
    drstd = -rstd * rstd * averages[0].real
    return (y, rstd), (_projected(y, rstd, dx, averages, counted), drstd)


def _products(
    y: jax.Array, dx: jax.Array, counted: jax.Array | None, scope: Scope
) -> tuple[jax.Array, ...]:
    """What the derivative averages: conj(y) * dx, and dx where there is a mean."""
    dx = dx.astype(y.dtype)
    along_y = jnp.conj(_finite(y, counted)) * dx
    return (along_y,) if scope.about_zero else (along_y, dx)


def _projected(
    y: jax.Array,
    rstd: jax.Array,
    dx: jax.Array,
    averages: list[jax.Array],
    counted: jax.Array | None,
) -> jax.Array:
    """rstd * (dx - E[dx] - y * Re E[conj(y) * dx])."""
    along_y, *mean_dx = averages
    along_y = along_y.real.astype(y.dtype)
    moved = dx.astype(y.dtype) - sum(mean_dx) - _finite(y, counted) * along_y
    return rstd.astype(y.dtype) * moved
