"""The sums and averages that the derivative of standardizing needs (`projection.py`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes
from jaxnorm import dtypes as _dtypes
from jaxnorm.arrays import masked
from jaxnorm.distributed import sum_over
from jaxnorm.forms import sums_of
from jaxnorm.kernels.native import Operation, run
from jaxnorm.merged import merged_products, merges_rows
from jaxnorm.operands import Form, Standardization
from jaxnorm.scope import Scope, divisor, mask_operand


class Vector(NamedTuple):
    """The array v that is projected: v = scale * g at the positions `where`, 0 elsewhere.

    Attributes:
        g: the tangent of x (without a scale), or the cotangent of y.
        scale: a parameter; None means 1.
        where: None means everywhere.
    """

    g: jax.Array
    scale: jax.Array | None = None
    where: jax.Array | None = None

    def v(self, s: Standardization) -> jax.Array:
        """The array v, in the dtype of the statistics."""
        v = self.g.astype(s.center.dtype)
        return masked(v if self.scale is None else v * s.expand(self.scale), self.where)


class Sums(NamedTuple):
    """The sums that the derivative needs, or which of them are wanted.

    Attributes:
        products: Re sum(conj(x - mean) * v), a statistic.
        v: sum(v), a statistic.
        dscale: sum(conj(y) * g), a parameter, with y = (x - mean) * gain + shift.
        dbias: sum(g), a parameter.
    """

    products: Any = None
    v: Any = None
    dscale: Any = None
    dbias: Any = None


class Averages(NamedTuple):
    """What the projection removes; None if it does not.

    Attributes:
        covariance: Re E[conj(x - mean) * v]. For v = dx this is half the tangent of the variance.
        mean: E[v]. For v = dx this is the tangent of the mean.
    """

    covariance: jax.Array | None = None
    mean: jax.Array | None = None


def sums_here(s: Standardization, vector: Vector, want: Sums) -> Sums:
    """The sums on this device that are wanted, in one pass."""
    want = want._replace(v=want.v and not s.form.scope.about_zero)
    if not any(want):
        return Sums()
    found = _sums_apart(s.apart(), vector, want)
    if s.form.repeated:
        products, v = (one if one is None else jnp.sum(one, s.form.repeated) for one in found[:2])
        return found._replace(products=products, v=v)
    return found


def _sums_apart(s: Standardization, vector: Vector, want: Sums) -> Sums:
    """The sums that are wanted, those that are statistics of the form `apart`."""
    form = s.form
    view = form.view(s.x, s.mask) if vector.g.dtype == s.x.dtype else None
    statistic, parameter = form.statistic(s.x), form.parameter(s.x)
    products = (statistic[0], _dtypes.real_dtype(statistic[1]))
    every = Sums(products, statistic, parameter, parameter)
    results = tuple(one if wanted else None for one, wanted in zip(every, want, strict=True))
    operation = Operation("jaxnorm_sums", plain_sums, (form, want), form.native(view), results)
    statistics = (s.center, s.correction, s.gain, s.shift)
    operands = (s.x, vector.g, *statistics, vector.scale, mask_operand(view, s.mask))
    return Sums(*run(operation, *operands))


def plain_sums(
    form_and_want: tuple[Form, Sums],
    x: jax.Array,
    g: jax.Array,
    center: jax.Array,
    correction: jax.Array | None,
    gain: jax.Array,
    shift: jax.Array | None,
    scale: jax.Array | None,
    mask: jax.Array | None,
) -> Sums:
    """The plain form of `jaxnorm_sums`."""
    form, want = form_and_want
    s = Standardization(form, x, center, correction, gain, shift, mask)
    summed = _summed_by_channel if form.by_channel else _summed_by_row
    found = summed(s, Vector(g, scale, s.defined()))
    return Sums(*(one if wanted else None for one, wanted in zip(found, want, strict=True)))


def _summed_by_channel(s: Standardization, vector: Vector) -> Sums:
    """The sums where the scale does not vary along `scope.reduced`: from two sums by channel.

    The products are summed about the center alone, as (x - center) * g is one operation.
    """
    scope = s.form.scope
    g_everywhere = vector.g.astype(s.center.dtype)
    g = masked(g_everywhere, vector.where)
    products = jnp.conj(s._replace(correction=None).deviation()) * g
    g, products = sums_of(scope, g, masked(products, vector.where))
    if s.correction is not None:
        products = products - jnp.conj(scope.per_channel(s.correction)) * g
    others = s.form.without_parameter(g.ndim)
    scale: Any = 1 if vector.scale is None else jnp.expand_dims(vector.scale, others)
    y_g = products * scope.per_channel(s.gain)
    if s.shift is not None:
        y_g = y_g + g * jnp.conj(scope.per_channel(s.shift))
    if vector.where is not None:
        g_everywhere = jnp.sum(g_everywhere, scope.reduced)
    return Sums(
        products=scope.sum_groups((scale * products).real),
        v=scope.sum_groups(scale * g),
        dscale=jnp.sum(y_g, others),
        dbias=jnp.sum(g if vector.where is None else g_everywhere, others),
    )


def _summed_by_row(s: Standardization, vector: Vector) -> Sums:
    """The sums where the scale varies along `scope.reduced`."""
    scope = s.form.scope
    g_everywhere = vector.g.astype(s.center.dtype)
    g = masked(g_everywhere, vector.where)
    v = vector.v(s)
    about_own_mean = not (scope.about_zero or scope.axis_name or s.form.given)
    if vector.where is None and about_own_mean and merges_rows(scope, s.x):
        products, total = merged_products(scope, s.x.astype(v.dtype), v)
    else:
        products, total = _products_of_rows(s, vector, v)
    y = s.deviation() * s.broadcast(s.gain)
    if s.shift is not None:
        y = y + s.broadcast(s.shift)
    others = _axes.other_axes(s.x.ndim, s.form.features)
    return Sums(
        products=products,
        v=total,
        dscale=jnp.sum(masked(jnp.conj(y) * g, vector.where), others),
        dbias=jnp.sum(g_everywhere, others),
    )


def _products_of_rows(
    s: Standardization, vector: Vector, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Re sum(conj(x - mean) * v) and sum(v)."""
    scope = s.form.scope
    products = (jnp.conj(s._replace(correction=None).deviation()) * v).real
    total, products = scope.sum(v), scope.sum(masked(products, vector.where))
    if s.correction is None:
        return products, total
    return products - (jnp.conj(s.correction) * total).real, total


def averages_of(scope: Scope, sums: Sums, count: jax.Array) -> Averages:
    """The averages over all devices, from their sums, in one collective."""
    values = divisor(count)
    terms = [sums.products]
    if sums.v is not None:
        terms = [sums.products.astype(sums.v.dtype), sums.v]
    if scope.axis_name is not None:
        terms = list(sum_over(terms, scope.axis_name, scope.axis_index_groups))
    covariance, *v = terms
    return Averages(covariance.real / values, *(one / values.astype(one.dtype) for one in v))
