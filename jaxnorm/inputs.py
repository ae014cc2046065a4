"""Inputs standardized, or scaled to a range, by a fit (see `input_stats.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import states as _states
from jaxnorm.input_stats import checked_input, update_input_stats
from jaxnorm.nested import Inputs, of_inputs, of_inputs_and_fit

__all__ = ["min_max_inputs", "normalize_observations", "standardize_inputs"]


@of_inputs
@_checks.mask_is_called("where")
def standardize_inputs(
    x: ArrayLike,
    fit: _states.BatchStats,
    *,
    epsilon: ArrayLike = 0.0,
    clip: ArrayLike | None = None,
    feature_axis: _axes.Axes | Mapping[str, Any] = -1,
    where: Inputs | None = None,
    invert: bool = False,
    center: bool = True,
) -> jax.Array:
    """Standardize inputs: mean 0 and variance 1 for each feature.

    y = (x - mean) / sqrt(var + epsilon), then clipped to +- clip; the inverse is
    x = y * sqrt(var + epsilon) + mean. Where var + epsilon is 0, as for a constant feature, the
    divisor is 1, so the value of a constant feature becomes 0 and its inverse is exact. A new fit
    changes nothing except by epsilon.

    With center=False the mean is not subtracted: y = x / sqrt(var + epsilon), with the variance
    about the mean, and the inverse is x = y * sqrt(var + epsilon). Then the divisor of a constant
    feature is 1, whatever epsilon is.

    Args:
        x: floating [..., F] (F at `feature_axis`); or a nested dict of inputs, with the keys of the
            fit.
        fit: as from `update_input_stats`.
        epsilon: added to the variance.
        clip: the bound of |y|, a positive number; None for no bound.
        feature_axis: the feature axis, or several; F is then their shape, in ascending order.
        where: a mask that broadcasts to `x`. Where it is zero and `x` is not finite, the result is
            0; everything else is standardized as usual.
        invert: compute x from y, up to rounding; not with `clip`, which has no inverse.
        center: a Python bool; False only divides.

    For nested inputs, `feature_axis` and `where` are as for `update_input_stats`.

    Returns:
        y of the shape and dtype of `x`, computed in float32, or wider if `x` or the fit is wider.
        NaN stay NaN, unless they are masked.

    Raises:
        TypeError: an integer or complex input.
        ValueError: a fit that has another width, is narrower than float32 or lacks an entry, a
            `clip` that is not positive, `clip` with `invert`; nested inputs whose keys are not
            those of the fit.

    Conventions:
        The variance is biased, and the divisor of a constant is 1, as in scikit-learn's
        `StandardScaler` (whose `with_mean` is `center`), which also treats a deviation within
        rounding of the mean as 0.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[3.0, 1e5], [5.0, 3e5]])
        >>> fit = jn.update_input_stats(jn.init_input_stats(2), x)
        >>> y = jn.standardize_inputs(x, fit)
        >>> print(y, jn.standardize_inputs(y, fit, invert=True)[1])
        [[-1. -1.]
         [ 1.  1.]] [5.e+00 3.e+05]
    """
    check_standardizing(epsilon, clip, invert)
    _checks.check_choice("center", center)
    checked = checked_input(x, fit, feature_axis, where)
    mean = checked.broadcast("mean") if center else None
    values = checked.finite(0.0 if mean is None or invert else mean)
    power = power_of(checked.broadcast("var"), epsilon, center=center)
    return checked.result(standardized(values, mean, power, clip=clip, invert=invert))


@of_inputs
@_checks.mask_is_called("where")
def min_max_inputs(
    x: ArrayLike,
    fit: _states.BatchStats,
    *,
    low: ArrayLike = 0.0,
    high: ArrayLike = 1.0,
    clip: bool = False,
    feature_axis: _axes.Axes | Mapping[str, Any] = -1,
    where: Inputs | None = None,
    invert: bool = False,
) -> jax.Array:
    """Scale inputs to the range from `low` to `high` for each feature.

    y = low * (1 - t) + high * t with t = (x - min) / (max - min): the minimum of the fit becomes
    exactly `low`, and the maximum exactly `high`. For a constant feature max - min is replaced by
    1, so its value becomes `low` and its inverse is exact. A new fit changes nothing.

    Args:
        x: floating [..., F] (F at `feature_axis`); or a nested dict of inputs, with the keys of the
            fit.
        fit: as from `update_input_stats`.
        low, high: the range, two numbers.
        clip: True clips the results to the range, for values beyond the minimum and maximum of the
            fit.
        feature_axis: the feature axis, or several; F is then their shape, in ascending order.
        where: a mask that broadcasts to `x`. Where it is zero and `x` is not finite, the result is
            `low`; everything else is scaled as usual.
        invert: compute x from y, up to rounding; not with `clip`, which has no inverse.

    For nested inputs, `feature_axis` and `where` are as for `update_input_stats`.

    Returns:
        y of the shape and dtype of `x`, computed in float32, or wider if `x` or the fit is wider.
        NaN stay NaN, unless they are masked.

    Raises:
        TypeError: an integer or complex input.
        ValueError: a fit that has another width, is narrower than float32 or lacks an entry, a
            `low` that is not below `high`, `clip` with `invert`; nested inputs whose keys are not
            those of the fit.

    Conventions:
        A constant feature is divided by 1, as in scikit-learn's `MinMaxScaler`.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[0.0, 1e5], [5.0, 2e5], [20.0, 3e5]])
        >>> fit = jn.update_input_stats(jn.init_input_stats(2), x)
        >>> print(jn.min_max_inputs(x, fit, low=-1.0))
        [[-1.  -1. ]
         [-0.5  0. ]
         [ 1.   1. ]]
    """
    _checks.check_range(low, high)
    _checks.check_choice("clip", clip)
    _checks.check_choice("invert", invert)
    if clip:
        _check_invertible("clip", clip, invert)
    checked = checked_input(x, fit, feature_axis, where)
    minimum, maximum = checked.broadcast("min"), checked.broadcast("max")
    low, high = (jnp.asarray(bound, minimum.dtype) for bound in (low, high))
    unseen, constant = minimum > maximum, minimum == maximum
    minimum, maximum = jnp.where(unseen, low, minimum), jnp.where(unseen, high, maximum)
    values = checked.finite(low if invert else minimum)
    if invert:
        fraction = _fraction(values, low, high)
        y = jnp.where(constant, minimum + fraction, _interpolated(minimum, maximum, fraction))
    else:
        y = _interpolated(low, high, _fraction(values, minimum, maximum))
    y = jnp.where(unseen, values, y)
    return checked.result(jnp.clip(y, low, high) if clip else y)


@of_inputs_and_fit
@_checks.mask_is_called("where")
def normalize_observations(
    x: ArrayLike,
    fit: _states.BatchStats,
    *,
    clip: ArrayLike | None = 10.0,
    epsilon: ArrayLike = 1e-8,
    feature_axis: _axes.Axes | Mapping[str, Any] = -1,
    where: Inputs | None = None,
    axis_name: _axes.AxisName | None = None,
    update: bool = True,
    decay: ArrayLike = 1.0,
    center: bool = True,
) -> tuple[jax.Array, Any]:
    """Standardize observations of an environment by the fit to all observations so far.

    This is one step of running observation normalization: `update_input_stats`, then
    `standardize_inputs` with the new fit. Environments that run in parallel, along the leading axes
    of `x` and over `axis_name`, share the fit.

    Args:
        x: floating [..., F] (F at `feature_axis`): observations of any number of environments; or
            a nested dict of them, with the keys of the fit.
        fit: as from `init_input_stats(F)`, or `init_input_stats({"key": F, ...})`.
        clip: the bound of |y|; None for no bound.
        epsilon: added to the variance.
        center: as for `standardize_inputs`.
        update: a Python bool; False uses the fit without updating it, as in evaluation.

    The other arguments and the errors are those of `update_input_stats`.

    Returns:
        (y, fit): y of the shape and dtype of `x`, and the new fit.

    Conventions:
        gymnasium's `NormalizeObservation` does the same, but starts from a count of 1e-4 (with mean
        0 and variance 1; this function: 0) and does not clip. brax's `running_statistics` start
        from a count of 0 too, but bound the deviation to [1e-6, 1e6] (this function adds epsilon),
        and update and normalize in two calls.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> fit = jn.init_input_stats(1)
        >>> for x in ([[1.0], [3.0]], [[2.0], [6.0]]):  # two environments, two steps
        ...     y, fit = jn.normalize_observations(jnp.array(x), fit)
        >>> print(y[:, 0].round(1), fit["mean"], fit["var"])
        [-0.5  1.6] [3.] [3.5]
    """
    _checks.check_choice("update", update)
    if update:
        fit = update_input_stats(
            fit, x, feature_axis=feature_axis, where=where, axis_name=axis_name, decay=decay
        )
    y = standardize_inputs(
        x,
        fit,
        epsilon=epsilon,
        clip=clip,
        feature_axis=feature_axis,
        where=where,
        center=center,
    )
    return y, fit


def check_standardizing(epsilon: ArrayLike, clip: ArrayLike | None, invert: bool) -> None:
    """Check the options of standardizing."""
    _checks.check_epsilon(epsilon)
    _checks.check_choice("invert", invert)
    if clip is not None:
        _checks.check_positive("clip", clip)
        _check_invertible("clip", clip, invert)


def power_of(var: jax.Array, epsilon: ArrayLike, *, center: bool = True) -> jax.Array:
    """The square of the divisor: var + epsilon, or 1 for a constant."""
    power = var + jnp.asarray(epsilon, var.dtype)
    return jnp.where((power if center else var) == 0, 1, power)


def standardized(
    x: jax.Array,
    mean: jax.Array | None,
    power: jax.Array,
    *,
    clip: ArrayLike | None,
    invert: bool,
) -> jax.Array:
    """(x - mean) / sqrt(power), clipped, or x * sqrt(power) + mean; without a mean, about zero."""
    deviation = jnp.sqrt(power)
    if invert:
        return x * deviation if mean is None else x * deviation + mean
    y = (x if mean is None else x - mean) / deviation
    if clip is None:
        return y
    bound = jnp.asarray(clip, y.dtype)
    return jnp.clip(y, -bound, bound)


def _check_invertible(name: str, value: Any, invert: bool) -> None:
    """Check that an option that has no inverse is not given with `invert`."""
    if invert:
        raise ValueError(
            f"{name}={value!r} cannot be inverted, since clipped values are lost; give "
            f"invert=True without {name}"
        )


def _fraction(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """(x - low) / (high - low), exactly 0 at `low` and 1 at `high`; x - low if they are equal."""
    fraction = (x - low) / jnp.where(low == high, 1, high - low)
    at_end = (x == high) & (low < high)  # XLA may multiply by a rounded reciprocal
    return fraction + jax.lax.stop_gradient(jnp.where(at_end, 1 - fraction, 0))


def _interpolated(low: jax.Array, high: jax.Array, fraction: jax.Array) -> jax.Array:
    """From `low` at 0 to `high` at 1, exactly at both ends."""
    return low * (1 - fraction) + high * fraction
