"""The derivative of standardizing, which is a projection.

With n values, y = (x - mean) * rstd, and E the mean over the values,

    dy = rstd * (dx - E[dx] - y * Re E[conj(y) * dx])
       = rstd * (dx - E[dx] - (x - mean) * rstd^2 * Re E[conj(x - mean) * dx]).

The projection is symmetric, so one formula serves both modes: it is applied to the tangent of x in
forward mode, and to scale * cotangent of y in reverse mode. It needs only the input and the
statistics: x - mean is computed again where it is needed, and the input is the only large array
that is kept for the backward pass.

In this file *v* is the array that is projected, and Re E[conj(x - mean) * v] is called its
*covariance* (with x).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes
from jaxnorm import dtypes as _dtypes
from jaxnorm.arrays import masked
from jaxnorm.distributed import sum_over
from jaxnorm.forms import sums_of
from jaxnorm.kernels.linear import LinearMap, apply_linear
from jaxnorm.kernels.native import Operation, run
from jaxnorm.kernels.target import target
from jaxnorm.merged import merged_products, merges_rows
from jaxnorm.operands import Form, Standardization, Statistics
from jaxnorm.scope import Scope, count_of, divisor, is_rows


class Tangents(NamedTuple):
    """For each operand of the value its tangent, its cotangent, or whether that is wanted."""

    x: Any
    mean: Any
    var: Any
    epsilon: Any
    scale: Any
    bias: Any


class Vector(NamedTuple):
    """The array that is projected: v = scale * g at the positions `where`, 0 elsewhere.

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


def value_tangent(
    form: Form,
    y: jax.Array,
    x: jax.Array,
    scale: jax.Array | None,
    mask: jax.Array | None,
    statistics: Statistics,
    tangents: Tangents,
) -> jax.Array:
    """The tangent of the standardized value `y`, as a linear map with its transpose."""
    map = LinearMap(_push_forward, _pull_back, form, (jax.typeof(y),))
    return apply_linear(map, (x, scale, mask, *statistics), tangents)[0]


def _push_forward(form: Form, residuals: Any, tangents: Any) -> list[jax.Array]:
    """The tangent of y: the projection of dx, and what the tangents of the parameters add."""
    x, scale, mask, *rest = residuals
    dx, dmean, dvar, depsilon, dscale, dbias = tangents
    statistics = Statistics(*rest)
    s = statistics.standardization(form, x, mask)
    if form.given:
        averages = Averages((dvar + depsilon) / 2, dmean)
    else:
        sums = _sums(s._replace(form=form._replace(features=())), Vector(dx, None, mask), _PROJECT)
        covariance, dmean = _averages(form.scope, sums, statistics.count)
        averages = Averages(covariance + depsilon / 2, dmean)
    defined = s.defined()
    dy = _projected(s, Vector(dx, None, defined), statistics.rstd(form), averages, defined)
    if scale is not None:
        dy = dy * s.expand(scale)
    if dscale is not None:
        dy = dy + statistics.of_value(form, x, mask).value() * s.expand(dscale)
    if dbias is not None:
        dy = dy + s.expand(dbias)
    return [dy.astype(x.dtype)]


def _pull_back(
    form: Form, residuals: Any, cotangents: Any, wanted: Sequence[bool]
) -> list[jax.Array | None]:
    """The cotangents of the operands, from that of y."""
    x, scale, mask, *rest = residuals
    (g,) = cotangents
    statistics, want = Statistics(*rest), Tangents(*wanted)
    if jnp.iscomplexobj(x):  # the projection of the conjugate is the transpose
        g, scale = jnp.conj(g), scale if scale is None else jnp.conj(scale)
    local = not form.given and form.scope.axis_name is None
    if local and not (want.var or want.epsilon) and statistics.r is None:
        fused = _fused(form, x, mask, statistics, Vector(g, scale), want)
        if fused is not None:
            return list(fused)
    s = statistics.standardization(form, x, mask)
    found = _cotangents(s, Vector(g, scale, s.defined()), statistics, want)
    return [None if cotangent is None else jnp.conj(cotangent) for cotangent in found]


def _cotangents(
    s: Standardization, vector: Vector, statistics: Statistics, want: Tangents
) -> Tangents:
    """The cotangents of the operands; of a complex input their conjugates."""
    through_moments, of_var = want.x and not s.form.given, want.var or want.epsilon
    need = Sums(of_var or through_moments, want.mean or through_moments, want.scale, want.bias)
    sums = _sums(statistics.of_value(s.form, s.x, s.mask), vector, need)
    averages = Averages()
    if through_moments:
        averages = _averages(s.form.scope, sums, statistics.count)
    rstd = statistics.rstd(s.form)
    dvar = -s.gain.real * (rstd * (rstd * (sums.products / 2))) if of_var else None
    return Tangents(
        x=_backward(s, vector, rstd, averages) if want.x else None,
        mean=-s.gain * sums.v if want.mean else None,
        var=dvar if want.var else None,
        epsilon=jnp.sum(dvar) if dvar is not None and want.epsilon else None,
        scale=sums.dscale,
        bias=sums.dbias,
    )


# The projection


def _projected(
    s: Standardization,
    vector: Vector,
    rstd: jax.Array,
    averages: Averages,
    where: jax.Array | None = None,
) -> jax.Array:
    """gain * (v - E[v] - (x - mean) * rstd^2 * covariance).

    E[v] and the covariance are subtracted at the positions `where`: in forward mode where y is not
    replaced by 0, in reverse mode where x counts.
    """
    v = vector.v(s)
    if averages.mean is not None:
        v = v - masked(s.broadcast(averages.mean) + jnp.zeros_like(v), where)
    if averages.covariance is not None:
        slope = s.broadcast((rstd * (rstd * averages.covariance)).astype(s.center.dtype))
        v = v - masked(s.deviation() * slope, where)
    return s.broadcast(s.gain) * v


def _backward(s: Standardization, vector: Vector, rstd: jax.Array, averages: Averages) -> jax.Array:
    """The projection in reverse mode, in the dtype of x: as one operation if there is a view."""
    view = s.form.view(s.x, s.mask)
    if view is None:
        return _projected(s, vector, rstd, averages, s.mask).astype(s.x.dtype)
    results = ((s.x.shape, s.x.dtype),)
    operation = Operation("jaxnorm_backward", _plain_backward, s.form, view, results)
    operands = (s.x, vector.g, s.center, s.correction, s.gain, rstd, *averages, vector.scale)
    return cast(jax.Array, run(operation, *operands)[0])


def _plain_backward(
    form: Form,
    x: jax.Array,
    g: jax.Array,
    center: jax.Array,
    correction: jax.Array | None,
    gain: jax.Array,
    rstd: jax.Array,
    *averages_and_scale: jax.Array | None,
) -> list[jax.Array]:
    """The plain form of `jaxnorm_backward`."""
    *averages, scale = averages_and_scale
    s = Standardization(form, x, center, correction, gain)
    return [_projected(s, Vector(g, scale), rstd, Averages(*averages)).astype(x.dtype)]


# Its sums and averages

_PROJECT = Sums(products=True, v=True, dscale=False, dbias=False)


def _sums(s: Standardization, vector: Vector, want: Sums) -> Sums:
    """The sums on this device that are wanted, in one pass."""
    form = s.form
    want = want._replace(v=want.v and not form.scope.about_zero)
    if not any(want):
        return Sums()
    view = form.view(s.x, s.mask) if vector.g.dtype == s.x.dtype else None
    statistic, parameter = form.statistic(s.x), form.parameter(s.x)
    products = (statistic[0], _dtypes.real_dtype(statistic[1]))
    every = Sums(products, statistic, parameter, parameter)
    results = tuple(one if wanted else None for one, wanted in zip(every, want, strict=True))
    operation = Operation("jaxnorm_sums", _plain_sums, (form, want), view, results)
    operands = (s.x, vector.g, s.center, s.correction, s.gain, s.shift, vector.scale)
    masks = (s.mask, vector.where) if view is None else ()
    return Sums(*run(operation, *operands, *masks))


def _plain_sums(
    form_and_want: tuple[Form, Sums],
    x: jax.Array,
    g: jax.Array,
    center: jax.Array,
    correction: jax.Array | None,
    gain: jax.Array,
    shift: jax.Array | None,
    scale: jax.Array | None,
    mask: jax.Array | None = None,
    where: jax.Array | None = None,
) -> Sums:
    """The plain form of `jaxnorm_sums`."""
    form, want = form_and_want
    s = Standardization(form, x, center, correction, gain, shift, mask)
    summed = _summed_by_row if set(form.features) & set(form.scope.reduced) else _summed_by_channel
    found = summed(s, Vector(g, scale, where))
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
    kept = [_axes.kept_axis(axis, scope.reduced) for axis in s.form.features]
    others = _axes.other_axes(g.ndim, kept)
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


def _averages(scope: Scope, sums: Sums, count: jax.Array) -> Averages:
    """The averages over all devices, from their sums, in one collective."""
    values = divisor(count)
    terms = [sums.products]
    if sums.v is not None:
        terms = [sums.products.astype(sums.v.dtype), sums.v]
    if scope.axis_name is not None:
        terms = list(sum_over(terms, scope.axis_name, scope.axis_index_groups))
    covariance, *v = terms
    return Averages(covariance.real / values, *(one / values.astype(one.dtype) for one in v))


# The whole backward pass in one operation


def _fused(
    form: Form,
    x: jax.Array,
    mask: jax.Array | None,
    statistics: Statistics,
    vector: Vector,
    want: Tangents,
) -> Tangents | None:
    """The cotangents of x, scale and bias in one operation, or None if there is no view.

    One device has all values here, and only x, the scale and the bias have cotangents.
    """
    view = form.view(x, mask)
    if view is None:
        return None
    parameter = form.parameter(x)
    operation = Operation(
        "jaxnorm_backward_fused",
        _plain_fused,
        (form, Sums(True, not form.scope.about_zero, want.scale, want.bias)),
        view,
        results=(
            (x.shape, x.dtype),
            parameter if want.scale else None,
            parameter if want.bias else None,
        ),
        attributes=(("about_zero", form.scope.about_zero),),
        scalar=True,
    )
    _, *measured, epsilon, _, _ = statistics
    dx, dscale, dbias = run(operation, x, vector.g, *measured, vector.scale, epsilon)
    return Tangents(dx if want.x else None, None, None, None, dscale, dbias)


def _plain_fused(
    form_and_need: tuple[Form, Sums],
    x: jax.Array,
    g: jax.Array,
    center: jax.Array,
    correction: jax.Array | None,
    var: jax.Array,
    scale: jax.Array | None,
    epsilon: jax.Array,
) -> list[jax.Array | None]:
    """The plain form of `jaxnorm_backward_fused`."""
    form, need = form_and_need
    statistics = Statistics(count_of(form.scope, x), center, correction, var, epsilon)
    gain = statistics.of_value(form, x).gain
    sums = _plain_sums((form, need), x, g, center, correction, gain, None, scale)
    averages = _averages(form.scope, sums, statistics.count)
    if target().platform == "tpu" and is_rows(form.scope, x.ndim) and x.dtype == jnp.float32:
        # the pass that sums then writes y too, which costs less than beside dx
        statistics, averages = jax.lax.optimization_barrier((statistics, averages))
    s = statistics.standardization(form, x)
    dx = _projected(s, Vector(g, scale), statistics.rstd(form), averages)
    return [dx.astype(x.dtype), sums.dscale, sums.dbias]
