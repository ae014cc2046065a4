"""The standardized value ((x - mean) * rstd * r + d) * scale + bias.

r and d are 1 and 0 but in batch renormalization. The derivative is in `projection.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes
from jaxnorm.affine import Affine, affine_of
from jaxnorm.arrays import masked
from jaxnorm.distributed import sync_centered
from jaxnorm.forms import mean_and_var
from jaxnorm.kernels.native import Operation, run
from jaxnorm.kernels.static import Static, split_arrays
from jaxnorm.kernels.view import View
from jaxnorm.operands import Form, Standardization, Statistics
from jaxnorm.projection import Tangents, value_tangent
from jaxnorm.scope import Scope, count_of, mask_operand
from jaxnorm.statistics import Centered, measure_centered, moments_tangents

Renorm = tuple[jax.Array, jax.Array]


def normalize(
    x: jax.Array,
    scope: Scope,
    scale: jax.Array | None,
    bias: jax.Array | None,
    features: tuple[int, ...],
    *,
    epsilon: ArrayLike,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, Centered]:
    """Standardize `x` by its own moments over `scope`, and return these too.

    The moments are merged over the mapped axes of the scope. The arguments are those of
    `standardize`.
    """
    affine = affine_of(x, scale, bias, features, mask)
    form = _form(x, scope, affine, epsilon, mask)
    view = form.view(x, mask)
    if view is None or scope.axis_name is not None:
        m = measure_centered(x, scope, mask)
        m = sync_centered(m, scope.axis_name, scope.axis_index_groups)
        return _by_moments(x, m, affine, form, epsilon, mask), m
    epsilon = jnp.asarray(epsilon, _dtypes.statistics_dtype(x.dtype))
    operands = (x, affine.scale, affine.bias, mask, epsilon)
    y, count, center, correction, var = _normalized(*operands, form, view)
    return y, Centered(jax.lax.stop_gradient(count), center, correction, var)


def standardize(
    x: jax.Array,
    m: Centered,
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
        scale, bias: as `checks.as_parameter` returns them.
        features: the feature axes, canonical.
        epsilon: added to the variance.
        mask: boolean, broadcasts to `x`. A position that does not count and is not finite
            yields the bias.
        renorm: the corrections (r, d) of batch renormalization, of the shape of the moments:
            the standardized value y becomes y * r + d.
        given: whether the moments do not depend on `x`: running statistics.
    """
    affine = affine_of(x, scale, bias, features, mask)
    form = _form(x, scope, affine, epsilon, mask)._replace(given=given)
    return _by_moments(x, m, affine, form, epsilon, mask, renorm)


def _by_moments(
    x: jax.Array,
    m: Centered,
    affine: Affine,
    form: Form,
    epsilon: ArrayLike,
    mask: jax.Array | None,
    renorm: Renorm | None = None,
) -> jax.Array:
    """`standardize` in a form that is known."""
    statistics = Statistics(*m, jnp.asarray(epsilon, m.var.dtype), *(renorm or ()))
    operands = (x, statistics, affine.scale, affine.bias, mask)
    y: jax.Array = _standardized(*operands, *split_arrays(form))
    return y


def _form(
    x: jax.Array,
    scope: Scope,
    affine: Affine,
    epsilon: ArrayLike,
    mask: jax.Array | None,
) -> Form:
    smallest = float(jnp.finfo(_dtypes.statistics_dtype(x.dtype)).tiny)
    return Form(
        scope,
        affine.axes,
        affine.leading,
        positive=mask is None and _checks.is_at_least(epsilon, smallest),
    )


@partial(jax.custom_jvp, nondiff_argnums=(5,))
def _standardized(
    x: jax.Array,
    statistics: Statistics,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    static: Static,
    held: list[jax.Array],
) -> jax.Array:
    """The value, given the statistics; the form is split."""
    s = statistics.of_value(static.joined(held), x, mask).apart()
    form = s.form
    view = form.view(x, mask)
    if view is None:
        return _scaled(s, scale, bias)
    results = ((x.shape, x.dtype),)
    operation = Operation("jaxnorm_apply", _plain_apply, form, form.native(view), results)
    statistics_of_value = (s.center, s.correction, s.gain, s.shift)
    operands = (x, *statistics_of_value, scale, bias, mask_operand(view, mask))
    return cast(jax.Array, run(operation, *operands)[0])


@partial(jax.custom_jvp, nondiff_argnums=(5, 6))
def _normalized(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    epsilon: jax.Array,
    form: Form,
    view: View,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array]:
    """The value, and count, center, correction and variance, in one operation."""
    about_zero, statistic = form.scope.about_zero, form.statistic(x)
    operation = Operation(
        "jaxnorm_normalize",
        _plain_normalize,
        form,
        view,
        results=(
            (x.shape, x.dtype),
            statistic,
            None if about_zero else statistic,
            statistic,
            None if mask is None else statistic,
        ),
        attributes=(("about_zero", about_zero),),
        scalar=True,
    )
    operands = (x, scale, bias, mask_operand(view, mask), epsilon)
    y, center, correction, var, counted = run(operation, *operands)
    every = (y, count_of(form.scope, x) if counted is None else counted, center, correction, var)
    return cast(tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array], every)


def _scaled(s: Standardization, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """((x - mean) * gain + shift) * scale + bias; gain * scale first, if both are by channel."""
    shift = None if s.shift is None else s.broadcast(s.shift)
    if scale is None or not s.form.by_channel:
        gain = s.broadcast(s.gain)
    elif s.form.given:  # of few numbers, so that each value is multiplied once
        gain = s.broadcast(s.gain * s.per_statistic(scale))
    else:
        gain = s.broadcast(s.gain) * s.expand(scale)
    if scale is not None and s.form.by_channel:
        shift = None if shift is None else shift * s.expand(scale)
    y = s.deviation() * gain
    y = masked(y if shift is None else y + shift, s.defined())
    if scale is not None and not s.form.by_channel:
        y = y * s.expand(scale)
    if bias is not None:
        y = y + s.expand(bias)
    return y.astype(s.x.dtype)


def _plain_apply(
    form: Form,
    x: jax.Array,
    center: jax.Array,
    correction: jax.Array | None,
    gain: jax.Array,
    shift: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
) -> list[jax.Array]:
    """The plain form of `jaxnorm_apply`."""
    return [_scaled(Standardization(form, x, center, correction, gain, shift, mask), scale, bias)]


def _plain_normalize(
    form: Form,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    epsilon: jax.Array,
) -> list[jax.Array | None]:
    """The plain form of `jaxnorm_normalize`."""
    count = count_of(form.scope, x, mask)
    measured = mean_and_var(form.scope, x, count, mask, for_value=mask is None)
    statistics = Statistics(count, *measured, epsilon)
    y = _scaled(statistics.of_value(form, x, mask), scale, bias)
    return [y, *measured, None if mask is None else count]


@_standardized.defjvp
def _standardized_jvp(static: Static, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    x, statistics, scale, bias, mask, held = primals
    dx, dstatistics, dscale, dbias, *_ = tangents
    form: Form = static.joined(held)
    y = _standardized(x, statistics, scale, bias, mask, static, held)
    dmean, dvar = (dstatistics.center, dstatistics.var) if form.given else (None, None)
    of_operands = Tangents(dx, dmean, dvar, dstatistics.epsilon, dscale, dbias)
    return y, value_tangent(form, y, x, scale, mask, statistics, of_operands)


@_normalized.defjvp
def _normalized_jvp(
    form: Form, view: View, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> Any:
    x, scale, _, mask, epsilon = primals
    dx, dscale, dbias, _, depsilon = tangents
    differentiated = form._replace(scope=form.scope._replace(differentiated=True))
    y, count, center, correction, var = _normalized(*primals, differentiated, view)
    m = Centered(count, center, correction, var)
    of_operands = Tangents(dx, None, None, depsilon, dscale, dbias)
    dy = value_tangent(form, y, x, scale, mask, Statistics(*m, epsilon), of_operands)
    dm = (jnp.zeros_like(m.count), *moments_tangents(form.scope, x, mask, m, dx))
    return (y, *m), (dy, *dm)
