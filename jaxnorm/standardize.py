"""(x - mean) * rstd * scale + bias, with its derivative.

Standardizing projects: with n values, y = (x - mean) * rstd and E the mean over them,

    dy = rstd * (dx - E[dx] - y * Re E[conj(y) * dx]),

which is symmetric, so one formula serves both modes: on the tangent in forward mode, on
scale * cotangent in reverse mode. It needs nothing but the input and rows of statistics: x - mean
is computed again where it is needed, and the input is all that is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes
from jaxnorm.arrays import only, repeated
from jaxnorm.distributed import sum_over, sync_moments
from jaxnorm.kernels.linear import Map
from jaxnorm.kernels.linear import apply as linear
from jaxnorm.kernels.native import Operation, Result, run
from jaxnorm.kernels.view import View
from jaxnorm.statistics import (
    Moments,
    Scope,
    count_of,
    divisor,
    measure,
    moved_moments,
    plainly_measured,
)

Renorm = tuple[jax.Array, jax.Array]


class Form(NamedTuple):
    """How an input is standardized (hashable).

    Attributes:
        scope: what its moments were taken over.
        features: the axes of the scale and the bias; none where there is neither.
        given: the moments do not depend on the input: running statistics.
        positive: var + epsilon is known to be above zero.
    """

    scope: Scope
    features: tuple[int, ...]
    given: bool = False
    positive: bool = False

    def expand(self, parameter: jax.Array, x: jax.Array) -> jax.Array:
        """A scale or a bias, so that it broadcasts to the input."""
        return repeated(parameter, x, _axes.other_axes(x.ndim, self.features))

    def view(self, x: jax.Array, mask: jax.Array | None) -> View | None:
        """How the kernels see the input, None where they cannot."""
        return self.scope.view(x, self.features) if mask is None else None

    def parameter(self, x: jax.Array) -> Result:
        """Shape and dtype of a scale or a bias."""
        shape = tuple(x.shape[axis] for axis in self.features)
        return shape, _dtypes.statistics_dtype(x.dtype)


class Statistics(NamedTuple):
    """The statistics that standardize: moments, epsilon, and renorm's r and d."""

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    mean: jax.Array
    var: jax.Array
    epsilon: jax.Array
    r: jax.Array | None = None
    d: jax.Array | None = None

    def rstd(self, form: Form) -> jax.Array:
        """1 / sqrt(var + epsilon), 0 where nothing counts or nothing varies and epsilon is 0."""
        power = self.var + self.epsilon
        if form.positive:
            return jax.lax.rsqrt(power)
        nothing = (self.count == 0) | (power == 0)
        return jnp.where(nothing, 0, jax.lax.rsqrt(jnp.where(nothing, 1, power)))

    def gain(self, form: Form) -> jax.Array:
        """What x - mean is multiplied by."""
        rstd = self.rstd(form).astype(self.mean.dtype)
        return rstd if self.r is None else rstd * self.r

    def projecting(self, form: Form) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the derivative is taken with: mean, gain and rstd."""
        return self.mean, self.gain(form), self.rstd(form)


def normalize(
    x: jax.Array,
    scope: Scope,
    scale: jax.Array | None,
    bias: jax.Array | None,
    features: tuple[int, ...],
    *,
    epsilon: ArrayLike,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, Moments]:
    """`x` standardized by its own moments over `scope`, and these, merged over the mapped axes."""
    form = _form(x, scope, scale, bias, features, epsilon, mask)
    view = form.view(x, mask)
    if view is None or scope.axis_name is not None:
        m = sync_moments(measure(x, scope, mask), scope.axis_name, scope.axis_index_groups)
        y = standardize(x, m, scope, scale, bias, features, epsilon=epsilon, mask=mask)
        return y, m
    epsilon = jnp.asarray(epsilon, _dtypes.statistics_dtype(x.dtype))
    y, mean, var = _normalized(x, scale, bias, epsilon, form, view)
    return y, Moments(count_of(scope, x), mean, var)


def standardize(
    x: jax.Array,
    m: Moments,
    scope: Scope,
    scale: jax.Array | None,
    bias: jax.Array | None,
    features: tuple[int, ...],
    *,
    epsilon: ArrayLike,
    mask: jax.Array | None = None,
    renorm: Renorm | None = None,
    given: bool = False,
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in the dtype of `x`.

    Args:
        x: the input.
        m: its moments over `scope`.
        scope: what they were taken over; the derivative is that of `x` measured there.
        scale, bias: of the shape of the axes `features` of `x`, in the statistics' dtype, or None.
        features: canonical axes.
        epsilon: added to the variance.
        mask: boolean, broadcasts to `x`. A position that does not count and is not finite
            yields the bias.
        renorm: the corrections (r, d) of batch renormalization, of the shape of the moments:
            the standardized value y becomes y * r + d.
        given: the moments do not depend on `x`: running statistics.
    """
    form = _form(x, scope, scale, bias, features, epsilon, mask)._replace(given=given)
    statistics = Statistics(*m, jnp.asarray(epsilon, m.var.dtype), *(renorm or ()))
    y: jax.Array = _standardized(x, statistics, scale, bias, mask, form)
    return y


def _form(
    x: jax.Array,
    scope: Scope,
    scale: jax.Array | None,
    bias: jax.Array | None,
    features: tuple[int, ...],
    epsilon: ArrayLike,
    mask: jax.Array | None,
) -> Form:
    smallest = float(jnp.finfo(_dtypes.statistics_dtype(x.dtype)).tiny)
    return Form(
        scope,
        () if scale is None and bias is None else features,
        positive=mask is None and _checks.is_at_least(epsilon, smallest),
    )


@partial(jax.custom_jvp, nondiff_argnums=(5,))
def _standardized(
    x: jax.Array,
    statistics: Statistics,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    form: Form,
) -> jax.Array:
    operands = (x, statistics.mean, statistics.gain(form), statistics.d, scale, bias)
    view = form.view(x, mask)
    if view is None:
        return _applied(form, *operands, mask)[0]
    operation = Operation("jaxnorm_apply", _applied, form, view, results=((x.shape, x.dtype),))
    return cast(jax.Array, run(operation, *operands)[0])


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _normalized(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    epsilon: jax.Array,
    form: Form,
    view: View,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The result, mean and variance, measured and standardized in one operation."""
    row = (form.scope.kept_shape(x), epsilon.dtype)
    operation = Operation(
        "jaxnorm_normalize",
        _measured_and_applied,
        form,
        view,
        results=((x.shape, x.dtype), row, row),
        attributes=(("about_zero", form.scope.about_zero),),
        scalar=True,
    )
    y, mean, var = run(operation, x, scale, bias, epsilon)
    return cast(jax.Array, y), cast(jax.Array, mean), cast(jax.Array, var)


def _applied(
    form: Form,
    x: jax.Array,
    mean: jax.Array,
    gain: jax.Array,
    shift: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None = None,
) -> list[jax.Array]:
    """((x - mean) * gain + shift) * scale + bias."""
    y = _standard(form, x, mean, gain, shift, mask)
    if scale is not None:
        y = y * form.expand(scale, x)
    if bias is not None:
        y = y + form.expand(bias, x)
    return [y.astype(x.dtype)]


def _standard(
    form: Form,
    x: jax.Array,
    mean: jax.Array,
    gain: jax.Array,
    shift: jax.Array | None,
    mask: jax.Array | None,
) -> jax.Array:
    """(x - mean) * gain + shift, and 0 where nothing is shown."""
    y = _deviation(form, x, mean, mask) * form.scope.broadcast(gain, x)
    defined = _defined(form, x, mean, gain, mask)
    if shift is not None:
        y = y + form.scope.broadcast(shift, x)
    return only(defined, y)


def _deviation(
    form: Form, x: jax.Array, mean: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """x - mean, where x is taken for 0 if it does not count and is not finite."""
    x = x if mask is None else jnp.where(mask | jnp.isfinite(x), x, 0)
    return x.astype(mean.dtype) - form.scope.broadcast(mean, x)


def _defined(
    form: Form, x: jax.Array, mean: jax.Array, gain: jax.Array, mask: jax.Array | None
) -> jax.Array | None:
    """Where the standardized value stands: where it counts or is finite; None for everywhere."""
    if mask is None:
        return None
    y = _deviation(form, x, mean, mask) * form.scope.broadcast(gain, x)
    return mask | (jnp.isfinite(x) & jnp.isfinite(y))


def _measured_and_applied(
    form: Form,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    epsilon: jax.Array,
) -> list[jax.Array]:
    """`_applied` by the moments of `x`, and these."""
    mean, var = plainly_measured(form.scope, x)
    gain = Statistics(count_of(form.scope, x), mean, var, epsilon).gain(form)
    return [*_applied(form, x, mean, gain, None, scale, bias), mean, var]


@_standardized.defjvp
def _standardized_jvp(form: Form, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    x, statistics, scale, _, mask = primals
    dx, dstatistics, dscale, dbias, _ = tangents
    y = _standardized(*primals, form)
    dmean, dvar = (dstatistics.mean, dstatistics.var) if form.given else (None, None)
    dparts = (dx, dmean, dvar, dstatistics.epsilon, dscale, dbias)
    return y, _moved(form, y, x, statistics, scale, mask, dparts)


@_normalized.defjvp
def _normalized_jvp(
    form: Form, view: View, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> Any:
    x, scale, _, epsilon = primals
    dx, dscale, dbias, depsilon = tangents
    y, mean, var = _normalized(*primals, form, view)
    count = count_of(form.scope, x)
    statistics = Statistics(count, mean, var, epsilon)
    dy = _moved(form, y, x, statistics, scale, None, (dx, None, None, depsilon, dscale, dbias))
    return (y, mean, var), (dy, *moved_moments(form.scope, x, count, None, mean, var, dx))


def _moved(
    form: Form,
    y: jax.Array,
    x: jax.Array,
    statistics: Statistics,
    scale: jax.Array | None,
    mask: jax.Array | None,
    tangents: tuple[Any, ...],
) -> jax.Array:
    """The tangent of y."""
    map = Map(_pushed_forward, _pulled_back, form, (jax.typeof(y),))
    return linear(map, (x, scale, mask, *statistics), tangents)[0]


def _pushed_forward(form: Form, residuals: Any, tangents: Any) -> list[jax.Array]:
    """The tangent of y: the projection of dx, and what the parameters' tangents add."""
    x, scale, mask, *parts = residuals
    dx, dmean, dvar, depsilon, dscale, dbias = tangents
    statistics = Statistics(*parts)
    gain, defined = (
        statistics.gain(form),
        _defined(form, x, statistics.mean, statistics.gain(form), mask),
    )
    if form.given:
        along = (dvar + depsilon) / 2
    else:
        sums = _summed(form._replace(features=()), x, dx, statistics, None, mask, mask, _PROJECTING)
        of_x, dmean = _averages(form, sums.along, sums.total, statistics.count)
        along = of_x + depsilon / 2
    dy = _projected(
        form, x, dx, *statistics.projecting(form), along, dmean, None, mask, defined, defined
    )
    if scale is not None:
        dy = dy * form.expand(scale, x)
    if dscale is not None:
        dy = dy + _standard(form, x, statistics.mean, gain, statistics.d, mask) * form.expand(
            dscale, x
        )
    if dbias is not None:
        dy = dy + form.expand(dbias, x)
    return [dy.astype(x.dtype)]


def _pulled_back(
    form: Form, residuals: Any, cotangents: Any, wanted: Sequence[bool]
) -> list[jax.Array | None]:
    """The cotangents of x, given mean and variance, epsilon, the scale and the bias."""
    x, scale, mask, *parts = residuals
    (g,) = cotangents
    statistics = Statistics(*parts)
    if jnp.iscomplexobj(x):  # the projection of the conjugate is the transpose
        g, scale = jnp.conj(g), scale if scale is None else jnp.conj(scale)
    of_x, of_mean, of_var, of_epsilon, of_scale, of_bias = wanted
    own, of_power = not form.given, of_var or of_epsilon
    if own and not of_power and statistics.r is None and form.scope.axis_name is None:
        view = form.view(x, mask)
        if view is not None:
            return _pulled_back_at_once(form, view, x, g, statistics, scale, wanted)
    defined = _defined(form, x, statistics.mean, statistics.gain(form), mask)
    need = Sums(of_power or (own and of_x), of_mean or (own and of_x), of_scale, of_bias)
    sums = _summed(form, x, g, statistics, scale, mask, defined, need)
    along = total = None
    if own and of_x:
        along, total = _averages(form, sums.along, sums.total, statistics.count)
    gain, rstd = statistics.gain(form), statistics.rstd(form)
    power = -gain.real * (rstd * (rstd * (sums.along / 2))) if of_power else None
    found = [
        _backward(form, x, g, statistics, along, total, scale, mask, defined) if of_x else None,
        -gain * sums.total if of_mean else None,
        power if of_var else None,
        None if power is None or not of_epsilon else jnp.sum(power),
        sums.dscale,
        sums.dbias,
    ]
    return [part if part is None else jnp.conj(part) for part in found]


class Sums(NamedTuple):
    """What the derivative sums, or which of it.

    Attributes:
        along: Re sum(conj(x - mean) * scale * g) of each statistic.
        total: sum(scale * g) of each statistic.
        dscale: sum(conj((x - mean) * gain + d) * g) of each feature.
        dbias: sum(g) of each feature.
    """

    along: Any
    total: Any
    dscale: Any
    dbias: Any


_PROJECTING = Sums(along=True, total=True, dscale=False, dbias=False)


def _summed(
    form: Form,
    x: jax.Array,
    g: jax.Array,
    statistics: Statistics,
    scale: jax.Array | None,
    mask: jax.Array | None,
    over: jax.Array | None,
    wanted: Sums,
) -> Sums:
    """The sums on this device over where `over` is true, in one pass."""
    wanted = wanted._replace(total=wanted.total and not form.scope.about_zero)
    if not any(wanted):
        return Sums(None, None, None, None)
    operands = (x, g, statistics.mean, statistics.gain(form), statistics.d, scale)
    view = form.view(x, mask) if g.dtype == x.dtype else None
    if view is None:
        return Sums(*_plainly_summed((form, wanted), *operands, mask, over))
    row = (form.scope.kept_shape(x), statistics.mean.dtype)
    every = Sums(row, row, form.parameter(x), form.parameter(x))
    results = tuple(part if want else None for part, want in zip(every, wanted, strict=True))
    operation = Operation("jaxnorm_sums", _plainly_summed, (form, wanted), view, results)
    return Sums(*run(operation, *operands))


def _plainly_summed(
    form_and_wanted: tuple[Form, Sums],
    x: jax.Array,
    g: jax.Array,
    mean: jax.Array,
    gain: jax.Array,
    shift: jax.Array | None,
    scale: jax.Array | None,
    mask: jax.Array | None = None,
    over: jax.Array | None = None,
) -> list[jax.Array | None]:
    form, wanted = form_and_wanted
    scope = form.scope
    g_everywhere = g.astype(mean.dtype)
    g = only(over, g_everywhere)
    along_x = only(over, jnp.conj(_deviation(form, x, mean, mask)) * g)
    gain, shift = scope.per_channel(gain), None if shift is None else scope.per_channel(shift)
    if set(form.features) & set(scope.reduced):
        others, axes = _axes.other_axes(x.ndim, form.features), scope.reduced
        gain = jnp.expand_dims(gain, axes)
        shift = None if shift is None else jnp.expand_dims(shift, axes)
    else:  # the sums of each channel are all that is needed of x and g
        g, along_x = jnp.sum(g, scope.reduced), jnp.sum(along_x, scope.reduced)
        features = [_axes.kept_axis(axis, scope.reduced) for axis in form.features]
        others, axes = _axes.other_axes(g.ndim, features), ()
    by_feature = 1 if scale is None else jnp.expand_dims(scale, others)

    def of_statistic(part: jax.Array) -> jax.Array:
        return scope.grouped(jnp.sum(part, axes))

    def of_feature(part: jax.Array) -> jax.Array:
        return jnp.sum(part, others)

    moved = along_x * gain if shift is None else along_x * gain + g * jnp.conj(shift)
    return [
        of_statistic((by_feature * along_x).real) if wanted.along else None,
        of_statistic(by_feature * g) if wanted.total else None,
        of_feature(moved) if wanted.dscale else None,
        jnp.sum(g_everywhere, _axes.other_axes(x.ndim, form.features)) if wanted.dbias else None,
    ]


def _averages(
    form: Form, along: jax.Array, total: jax.Array | None, count: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """The means over all devices that the sums make, in one collective."""
    scope, values = form.scope, divisor(count)
    parts = [along] if total is None else [along.astype(total.dtype), total]
    if scope.axis_name is not None:
        parts = list(sum_over(parts, scope.axis_name, scope.axis_index_groups))
    along = parts[0].real / values
    return along, None if total is None else parts[1] / values.astype(parts[1].dtype)


def _projected(
    form: Form,
    x: jax.Array,
    g: jax.Array,
    mean: jax.Array,
    gain: jax.Array,
    rstd: jax.Array,
    along: jax.Array | None,
    total: jax.Array | None,
    scale: jax.Array | None,
    mask: jax.Array | None = None,
    defined: jax.Array | None = None,
    moving: jax.Array | None = None,
) -> jax.Array:
    """gain * (scale * g - total - (x - mean) * rstd^2 * along).

    The first term is where the value is shown, the others are where it moves the moments.
    """
    broadcast = partial(form.scope.broadcast, x=x)
    v = g.astype(mean.dtype)
    v = only(defined, v if scale is None else v * form.expand(scale, x))
    if total is not None:
        v = v - only(moving, broadcast(total) + jnp.zeros_like(v))
    if along is not None:
        slope = broadcast((rstd * (rstd * along)).astype(mean.dtype))
        v = v - only(moving, _deviation(form, x, mean, mask) * slope)
    return broadcast(gain) * v


def _backward(
    form: Form,
    x: jax.Array,
    g: jax.Array,
    statistics: Statistics,
    along: jax.Array | None,
    total: jax.Array | None,
    scale: jax.Array | None,
    mask: jax.Array | None,
    defined: jax.Array | None,
) -> jax.Array:
    """The projection in the dtype of `x`."""
    operands = (x, g, *statistics.projecting(form), along, total, scale)
    view = form.view(x, mask)
    if view is None:
        dx = _projected(form, *operands, mask, defined, mask)
        return dx.astype(x.dtype)
    results = ((x.shape, x.dtype),)
    operation = Operation("jaxnorm_backward", _plainly_backward, form, view, results)
    return cast(jax.Array, run(operation, *operands)[0])


def _plainly_backward(form: Form, x: jax.Array, *operands: Any) -> list[jax.Array]:
    return [_projected(form, x, *operands).astype(x.dtype)]


def _pulled_back_at_once(
    form: Form,
    view: View,
    x: jax.Array,
    g: jax.Array,
    statistics: Statistics,
    scale: jax.Array | None,
    wanted: Sequence[bool],
) -> list[jax.Array | None]:
    """The cotangents where one device has all and nothing but x, scale and bias is moved."""
    of_x, *_, of_scale, of_bias = wanted
    results = (
        (x.shape, x.dtype),
        form.parameter(x) if of_scale else None,
        form.parameter(x) if of_bias else None,
    )
    need = Sums(True, True, of_scale, of_bias)
    operation = Operation(
        "jaxnorm_backward_fused",
        _plainly_pulled_back,
        (form, need),
        view,
        results,
        (("about_zero", form.scope.about_zero),),
        scalar=True,
    )
    dx, dscale, dbias = run(
        operation, x, g, statistics.mean, statistics.var, scale, statistics.epsilon
    )
    return [dx if of_x else None, None, None, None, dscale, dbias]


def _plainly_pulled_back(
    form_and_need: tuple[Form, Sums],
    x: jax.Array,
    g: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None,
    epsilon: jax.Array,
) -> list[jax.Array | None]:
    form, need = form_and_need
    count = count_of(form.scope, x)
    statistics = Statistics(count, mean, var, epsilon)
    need = need._replace(total=not form.scope.about_zero)
    sums = Sums(*_plainly_summed((form, need), x, g, mean, statistics.gain(form), None, scale))
    along, total = _averages(form, sums.along, sums.total, count)
    dx = _projected(form, x, g, *statistics.projecting(form), along, total, scale)
    return [dx.astype(x.dtype), sums.dscale, sums.dbias]
