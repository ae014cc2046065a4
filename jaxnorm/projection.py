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

from jaxnorm.arrays import masked
from jaxnorm.kernels.linear import LinearMap, apply_linear
from jaxnorm.kernels.native import Operation, run
from jaxnorm.kernels.target import target
from jaxnorm.operands import Form, Standardization, Statistics
from jaxnorm.scope import count_of, is_rows, mask_operand
from jaxnorm.sums import Averages, Sums, Vector, averages_of, plain_sums, sums_here


class Tangents(NamedTuple):
    """For each operand of the value its tangent, its cotangent, or whether that is wanted."""

    x: Any
    mean: Any
    var: Any
    epsilon: Any
    scale: Any
    bias: Any


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
        of_counted = Vector(masked(dx, mask))
        want = Sums(products=True, v=True, dscale=False, dbias=False)
        sums = sums_here(s._replace(form=form._replace(features=(), leading=())), of_counted, want)
        covariance, dmean = averages_of(form.scope, sums, statistics.count)
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
    if (want.scale or want.bias) and form.by_value(x):
        g = g.astype(statistics.center.dtype)
        others = _pull_back(form, residuals, cotangents, want._replace(scale=False, bias=False))
        return list(
            Tangents(*others)._replace(
                scale=statistics.of_value(form, x, mask).value() * g if want.scale else None,
                bias=g if want.bias else None,
            )
        )
    if jnp.iscomplexobj(x):  # the projection of the conjugate is the transpose
        g, scale = jnp.conj(g), scale if scale is None else jnp.conj(scale)
    local = not form.given and form.scope.axis_name is None
    if local and not (want.var or want.epsilon) and statistics.r is None:
        fused = _fused(form, x, mask, statistics, Vector(g, scale), want)
        if fused is not None:
            return list(fused)
    s = statistics.standardization(form, x, mask)
    found = _cotangents(s, Vector(g, scale), statistics, want)
    return [None if cotangent is None else jnp.conj(cotangent) for cotangent in found]


def _cotangents(
    s: Standardization, vector: Vector, statistics: Statistics, want: Tangents
) -> Tangents:
    """The cotangents of the operands; of a complex input their conjugates."""
    through_moments, of_var = want.x and not s.form.given, want.var or want.epsilon
    need = Sums(of_var or through_moments, want.mean or through_moments, want.scale, want.bias)
    sums = sums_here(statistics.of_value(s.form, s.x, s.mask), vector, need)
    averages = Averages()
    if through_moments:
        averages = averages_of(s.form.scope, sums, statistics.count)
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
    rstd, *means = [s.form.repeat(statistic, s.x) for statistic in (rstd, *averages)]
    s = s.apart()
    view = s.form.view(s.x, s.mask)
    statistics = (s.center, s.correction, s.gain, rstd, *means)
    operands = (s.x, vector.g, *statistics, vector.scale, mask_operand(view, s.mask))
    if view is None:
        return _plain_backward(s.form, *operands)[0]
    results = ((s.x.shape, s.x.dtype),)
    operation = Operation("jaxnorm_backward", _plain_backward, s.form, s.form.native(view), results)
    return cast(jax.Array, run(operation, *operands)[0])


def _plain_backward(
    form: Form,
    x: jax.Array,
    g: jax.Array,
    center: jax.Array,
    correction: jax.Array | None,
    gain: jax.Array,
    rstd: jax.Array,
    covariance: jax.Array | None,
    mean: jax.Array | None,
    scale: jax.Array | None,
    mask: jax.Array | None,
) -> list[jax.Array]:
    """The plain form of `jaxnorm_backward`."""
    s = Standardization(form, x, center, correction, gain, mask=mask)
    vector = Vector(g, scale, s.defined())
    return [_projected(s, vector, rstd, Averages(covariance, mean), mask).astype(x.dtype)]


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
    operands = (x, vector.g, *measured, vector.scale, mask_operand(view, mask), epsilon)
    dx, dscale, dbias = run(operation, *operands)
    return Tangents(dx if want.x else None, None, None, None, dscale, dbias)


def _plain_fused(
    form_and_need: tuple[Form, Sums],
    x: jax.Array,
    g: jax.Array,
    center: jax.Array,
    correction: jax.Array | None,
    var: jax.Array,
    scale: jax.Array | None,
    mask: jax.Array | None,
    epsilon: jax.Array,
) -> list[jax.Array | None]:
    """The plain form of `jaxnorm_backward_fused`."""
    form, need = form_and_need
    statistics = Statistics(count_of(form.scope, x, mask), center, correction, var, epsilon)
    gain = statistics.of_value(form, x, mask).gain
    sums = plain_sums((form, need), x, g, center, correction, gain, None, scale, mask)
    averages = averages_of(form.scope, sums, statistics.count)
    if target().platform == "tpu" and is_rows(form.scope, x.ndim) and x.dtype == jnp.float32:
        # the pass that sums then writes y too, which costs less than beside dx
        statistics, averages = jax.lax.optimization_barrier((statistics, averages))
    s = statistics.standardization(form, x, mask)
    dx = _projected(s, Vector(g, scale, s.defined()), statistics.rstd(form), averages, mask)
    return [dx.astype(x.dtype), sums.dscale, sums.dbias]
