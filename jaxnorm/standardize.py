"""(x - mean) * rstd * scale + bias, with its derivative.

Standardizing projects: with n values, y = (x - mean) * rstd and E the mean over them,

    dy = rstd * (dx - E[dx] - y * Re E[conj(y) * dx]),

which is symmetric, so the one rule below serves forward mode and, transposed, reverse mode. It
needs nothing but the input and rows of statistics: x - mean is computed again where it is needed,
and the input is all that is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm.arrays import only, repeat_groups, split_groups
from jaxnorm.distributed import sum_over
from jaxnorm.statistics import Moments

Renorm = tuple[jax.Array, jax.Array]


class Shifted(NamedTuple):
    """Moments with var + epsilon in place of the variance."""

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    mean: jax.Array
    power: jax.Array


# XLA's CPU backend writes out any large value, even the broadcast of a row, that a sum shares with
# something else. Ways to write x - mean that it does not take for the same, and round alike:
_Form = Literal["plain", "negated", "halved"]


class Scope(NamedTuple):
    """What the moments of an input were taken over (hashable).

    Attributes:
        reduced: canonical axes of the input.
        channel, group_size: also the groups of this many channels, if more than one.
        about_zero: the mean is 0 by definition.
        given: the moments do not depend on the input: running statistics.
        positive: what the deviation is the root of is known to be above zero.
        axis_name, axis_index_groups: mapped axes over which they were merged.
    """

    reduced: tuple[int, ...]
    channel: int = 0
    group_size: int = 1
    about_zero: bool = False
    given: bool = False
    positive: bool = False
    axis_name: _axes.AxisName | None = None
    axis_index_groups: Any = None

    def spread(self, part: jax.Array) -> jax.Array:
        """A statistic, so that it broadcasts to the input."""
        if self.group_size > 1:
            part = repeat_groups(part, self.kept_channel, self.group_size)
        return jnp.expand_dims(part, self.reduced)

    def sums(self, counted: jax.Array | None, *values: jax.Array) -> list[jax.Array]:
        """The sum of each array over what counts on this device."""
        sums = [jnp.sum(only(counted, value), self.reduced) for value in values]
        if self.group_size == 1:
            return sums
        channel = self.kept_channel
        groups = [split_groups(part, channel, self.group_size) for part in sums]
        return [jnp.sum(group, channel + 1) for group in groups]

    def averages(self, sums: Sequence[jax.Array], count: jax.Array) -> list[jax.Array]:
        """The means over all devices that the sums make, in one collective, spread."""
        if self.axis_name is not None:
            sums = sum_over(sums, self.axis_name, self.axis_index_groups)
        return [self.spread(s / jnp.maximum(count, 1).astype(s.dtype)) for s in sums]

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
    epsilon: ArrayLike,
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
        formula = jax.checkpoint(_affine, static_argnums=(6, 7), prevent_cse=False)
    else:
        formula, m = _affine_of_own_moments, jax.lax.stop_gradient(m)
    power = m.var + jnp.asarray(epsilon, m.var.dtype)
    above_zero = _axes.is_at_least(epsilon, float(jnp.finfo(power.dtype).tiny))
    scope = scope._replace(positive=above_zero and counted is None)
    shifted = Shifted(m.count, m.mean, power)
    y: jax.Array = formula(x, shifted, scale, bias, counted, renorm, scope, features)
    return y


def _affine(
    x: jax.Array,
    m: Shifted,
    scale: jax.Array | None,
    bias: jax.Array | None,
    counted: jax.Array | None,
    renorm: Renorm | None,
    scope: Scope,
    features: tuple[int, ...],
) -> jax.Array:
    mean, rstd = scope.spread(m.mean), _rstd(m, scope)
    y = (_finite(x, counted).astype(mean.dtype) - mean) * rstd.astype(mean.dtype)
    y = _corrected(y, x, counted, renorm, scope)
    others = _axes.other_axes(x.ndim, features)
    if scale is not None:
        y = y * jnp.expand_dims(scale, others)
    if bias is not None:
        y = y + jnp.expand_dims(bias, others)
    return y.astype(x.dtype)


_affine_of_own_moments = jax.custom_jvp(_affine, nondiff_argnums=(6, 7))


@_affine_of_own_moments.defjvp
def _affine_jvp(
    scope: Scope,
    features: tuple[int, ...],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[Any, Any]:
    """The derivative, which keeps `x` and computes the rest again on both sides of the sums."""
    x, m, scale, _, counted, renorm = primals
    dx, dm, dscale, dbias, *_ = tangents
    recompute = partial(jax.checkpoint, prevent_cse=False)
    by_feature = scale is not None and bool(set(features) & set(scope.reduced))

    def deviation(x: jax.Array, form: _Form) -> tuple[jax.Array, jax.Array]:
        return _deviation(_finite(x, counted), m, counted, scope, form)

    @recompute
    def sums(x: jax.Array, dx: jax.Array) -> list[jax.Array]:
        of_x, _ = deviation(x, "negated" if by_feature else "plain")
        return scope.sums(counted, *_products(of_x, dx, scope))

    @recompute
    def tangent(
        x: jax.Array, dx: jax.Array, averages: list[jax.Array], scale: Any, dscale: Any, dbias: Any
    ) -> jax.Array:
        scale, dscale, dbias = (
            part if part is None else jnp.expand_dims(part, _axes.other_axes(x.ndim, features))
            for part in (scale, dscale, dbias)
        )
        of_x, rstd = deviation(x, "negated")
        dx = dx.astype(of_x.dtype)
        along_x, mean_dx = averages[0].real + scope.spread(dm.power / 2), sum(averages[1:])
        along_x = along_x.astype(dx.dtype)
        rstd = rstd.astype(dx.dtype)
        slope = rstd if renorm is None else rstd * scope.spread(renorm[0])
        if by_feature:
            dy = -slope * (dx - mean_dx - of_x * (rstd * (rstd * along_x))) * -scale
            dy = dy + deviation(x, "halved")[0] * (dscale / 2) * (2 * slope)
        else:
            gain = slope if scale is None else slope * scale
            along, shift = -gain * (rstd * (rstd * along_x)), -gain * mean_dx
            if scale is not None:
                along = along + slope * dscale
                shift = shift if renorm is None else shift + scope.spread(renorm[1]) * dscale
            dy = gain * dx + of_x * along + shift
        if counted is not None:
            dy = jnp.where(_shown(of_x * rstd, x, counted), dy, 0)
        dy = dy if dbias is None else dy + dbias
        return jnp.asarray(dy, x.dtype)

    averages = scope.averages(sums(x, dx), m.count)
    y = _affine_of_own_moments(*primals, scope, features)
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


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _deviation(
    x: jax.Array,
    m: Shifted,
    counted: jax.Array | None,
    scope: Scope,
    form: _Form,
) -> tuple[jax.Array, jax.Array]:
    """x - mean and 1 / sqrt(var + epsilon), whose derivative is that of the own moments of `x`."""
    mean = scope.spread(m.mean)
    x = x.astype(mean.dtype)
    difference = {
        "plain": lambda: x - mean,
        "negated": lambda: x + -mean,
        "halved": lambda: 2 * (x / 2 - mean / 2),
    }[form]()
    return difference, _rstd(m, scope)


@_deviation.defjvp
def _deviation_jvp(
    scope: Scope, form: _Form, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    x, m, counted = primals
    dx, dm, _ = tangents
    deviation, rstd = _deviation(x, m, counted, scope, form)
    sums = scope.sums(counted, *_products(deviation, dx, scope))
    along_x, *mean_dx = scope.averages(sums, m.count)
    drstd = -rstd * (rstd * (rstd * (along_x.real + scope.spread(dm.power / 2))))
    return (deviation, rstd), (dx.astype(deviation.dtype) - sum(mean_dx), drstd)


def _rstd(m: Shifted, scope: Scope) -> jax.Array:
    """1 / sqrt(var + epsilon), and 0 where nothing counts or nothing varies and epsilon is 0."""
    count, power = scope.spread(m.count), scope.spread(m.power)
    if scope.positive:
        return jax.lax.rsqrt(power)
    nothing = (count == 0) | (power == 0)
    return jnp.where(nothing, 0, jax.lax.rsqrt(jnp.where(nothing, 1, power)))


def _products(deviation: jax.Array, dx: jax.Array, scope: Scope) -> tuple[jax.Array, ...]:
    """What the derivative averages: conj(x - mean) * dx, and dx where there is a mean."""
    dx = dx.astype(deviation.dtype)
    along_x = jnp.conj(deviation) * dx
    return (along_x,) if scope.about_zero else (along_x, dx)
