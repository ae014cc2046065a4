"""Inputs standardized, or scaled to a range, by a fit to all that a stream held.

A fit is the moments of each feature and its least and largest value. It is merged with that of
every batch, in any order and from anywhere, and stays what all rows at once would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes
from jaxnorm import states as _states
from jaxnorm.arrays import broadcast_mask, broadcast_over
from jaxnorm.distributed import sync_extremes, sync_moments
from jaxnorm.running import init_batch_stats, sharded, update
from jaxnorm.statistics import Moments, Scope, measure

__all__ = [
    "init_input_stats",
    "merge_input_stats",
    "min_max_inputs",
    "normalize_observations",
    "standardize_inputs",
    "update_input_stats",
]


def init_input_stats(
    num_features: int | Sequence[int], *, dtype: Any = jnp.float32
) -> dict[str, jax.Array]:
    """A fit to nothing yet: applied, it leaves inputs as they are.

    No update changes the shape or the dtype of any entry.

    Args:
        num_features: the width F, or the shape of several feature axes in ascending order.
        dtype: of every entry; float32, or float64 for more than 16,777,216 (2^24) rows: from there
            on a count in float32 does not grow by one row any more, and stands still where rows
            come singly.

    Returns:
        {"count": zeros, "mean": zeros, "var": ones, "min": inf, "max": -inf}, each dtype[F]. The
        count is each feature's own, since masks and NaN may differ by feature.

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a width that is not positive, a dtype narrower than float32.

    Example:
        >>> import jaxnorm as jn
        >>> print(*jn.init_input_stats(1).values())
        [0.] [0.] [1.] [inf] [-inf]
    """
    widths = num_features if isinstance(num_features, Sequence) else (num_features,)
    shape = tuple(_axes.check_positive_int("num_features", width) for width in widths)
    _states.check_fit_dtype(dtype)
    stats = init_batch_stats(shape, momentum=None, dtype=dtype, count_per_channel=True)
    most = jnp.full(shape, -jnp.inf, dtype)
    return {key: stats[key] for key in ("count", "mean", "var")} | {"min": -most, "max": most}


@_checks.mask_is_called("where")
def update_input_stats(
    fit: _states.BatchStats,
    x: ArrayLike,
    *,
    feature_axis: _axes.Axes = -1,
    where: ArrayLike | None = None,
    axis_name: _axes.AxisName | None = None,
    axis_index_groups: _axes.AxisIndexGroups = None,
    skip_nan: bool = False,
) -> Any:
    """The fit to all that `fit` saw and to the rows of `x`.

    The moments of `x` are merged into those of the fit (`merge_moments`), within and between; the
    least and the largest value are exact. No gradient goes through a fit.

    Args:
        fit: as from `init_input_stats(F)`; one that `freeze_stats` marked is returned as it is.
        x: floating [..., F] (F at `feature_axis`): any number of rows, none too.
        feature_axis: the axis of the features; or several, and F is their shape in ascending order.
        where: nonzero where a value counts; broadcasts to `x`. The others change nothing.
        axis_name: mapped axis or axes (`pmap`, `shard_map`, `vmap`), over all of whose members rows
            are seen; under `jit` with sharded arrays all rows are seen without it.
        axis_index_groups: lists of indices of the mapped axis that are merged among themselves.
        skip_nan: NaN do not count, in the features that have them. Otherwise one NaN makes the
            feature's mean, variance, min and max NaN for good.

    Returns:
        The new fit, each entry in its shape and dtype. The min and the max of a feature that never
        varied are its value, its mean too, and its variance is 0, without rounding.

    Raises:
        TypeError: an integer or complex input.
        ValueError: a fit of another width, narrower than float32 or with a missing entry, a mask
            that does not broadcast, an axis name that is not mapped.

    Conventions:
        NaN count unless they are skipped (scikit-learn's scalers always skip them). The variance is
        biased, as scikit-learn's.

    References:
        Chan, Golub and LeVeque, "Algorithms for computing the sample variance: analysis and
        recommendations", 1983.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> fit = jn.init_input_stats(2)
        >>> for batch in jnp.array([[[3.0, 1e5]], [[5.0, 3e5]]]):
        ...     fit = jn.update_input_stats(fit, batch)
        >>> print(fit["mean"], fit["min"], fit["max"], fit["count"])
        [4.e+00 2.e+05] [3.e+00 1.e+05] [5.e+00 3.e+05] [2. 2.]
    """
    _checks.check_choice("skip_nan", skip_nan)
    _axes.check_axis_index_groups(axis_name, axis_index_groups)
    checked = _checked(x, fit, feature_axis, where)
    if "frozen" in fit:
        return fit
    x, mask = jax.lax.stop_gradient(checked.x), checked.mask
    if skip_nan:
        known = ~jnp.isnan(x)
        mask = known if mask is None else mask & known
    m = sync_moments(measure(x, Scope(checked.reduced), mask), axis_name, axis_index_groups)
    seen = None if mask is None else broadcast_mask(mask, x)
    least = jnp.min(x, checked.reduced, where=seen, initial=jnp.inf)
    most = jnp.max(x, checked.reduced, where=seen, initial=-jnp.inf)
    least, most = sync_extremes(least, most, axis_name, axis_index_groups)
    return _merged(jax.lax.stop_gradient(checked.fit), m, least, most)


def merge_input_stats(a: _states.BatchStats, b: _states.BatchStats) -> Any:
    """The fit to all that two fits saw: those of two parts, files, or processes.

    Associative and commutative up to the rounding of moments; a fresh fit changes nothing. No row
    may have been seen by both.

    Args:
        a, b: fits of one width.

    Returns:
        The merged fit, in the dtypes of `a`, and frozen where it is.

    Raises:
        ValueError: fits of two widths, narrower than float32 or with a missing entry.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> fit = lambda x: jn.update_input_stats(jn.init_input_stats(1), jnp.array(x))
        >>> merged = jn.merge_input_stats(fit([[1.0], [2.0]]), fit([[6.0]]))
        >>> print(merged["mean"], merged["var"], merged["max"], merged["count"])
        [3.] [4.6666665] [6.] [3.]
    """
    _states.check_fit(a)
    _states.check_fit(b, jnp.shape(a["mean"]))
    m = Moments(*(jnp.asarray(b[key]) for key in ("count", "mean", "var")))
    return _merged(a, m, jnp.asarray(b["min"]), jnp.asarray(b["max"]))


@_checks.mask_is_called("where")
def standardize_inputs(
    x: ArrayLike,
    fit: _states.BatchStats,
    *,
    epsilon: ArrayLike = 0.0,
    clip: ArrayLike | None = None,
    feature_axis: _axes.Axes = -1,
    where: ArrayLike | None = None,
    invert: bool = False,
) -> jax.Array:
    """Inputs to mean 0 and variance 1, feature by feature.

    y = (x - mean) / sqrt(var + epsilon), then within +- clip; inverted, x = y * sqrt(var + epsilon)
    + mean. Where var + epsilon is 0, as of a feature that never varied, the divisor is 1: its value
    becomes 0, and comes back. A fresh fit changes nothing but by epsilon.

    Args:
        x: floating [..., F] (F at `feature_axis`).
        fit: as from `update_input_stats`.
        epsilon: added to the variance.
        clip: the bound of |y|, a positive number, or None for none.
        feature_axis: the axis of the features; or several, and F is their shape in ascending order.
        where: nonzero where a value counts; broadcasts to `x`. The others are standardized like
            these, and give 0 where they are not finite.
        invert: from y back to x, up to rounding; not with `clip`, which is not undone.

    Returns:
        y of the shape and dtype of `x`, computed in float32, or wider where `x` or the fit is. NaN
        stay NaN.

    Raises:
        TypeError: an integer or complex input.
        ValueError: a fit of another width, narrower than float32 or with a missing entry, a `clip`
            that is not positive, or with `invert`.

    Conventions:
        The variance is biased and the divisor of a constant 1, as in scikit-learn's
        `StandardScaler`, which also takes a deviation within rounding of the mean for 0.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[3.0, 1e5], [5.0, 3e5]])
        >>> fit = jn.update_input_stats(jn.init_input_stats(2), x)
        >>> y = jn.standardize_inputs(x, fit)
        >>> print(y, jn.standardize_inputs(y, fit, invert=True)[1])
        [[-1. -1.]
         [ 1.  1.]] [5.e+00 3.e+05]
    """
    _checks.check_epsilon(epsilon)
    _checks.check_choice("invert", invert)
    if clip is not None:
        _checks.check_positive("clip", clip)
        _check_invertible("clip", clip, invert)
    checked = _checked(x, fit, feature_axis, where)
    mean = checked.broadcast("mean")
    values = checked.finite(0.0 if invert else mean)
    power = checked.broadcast("var") + jnp.asarray(epsilon, values.dtype)
    deviation = jnp.sqrt(jnp.where(power == 0, 1, power))
    if invert:
        return checked.result(values * deviation + mean)
    y = (values - mean) / deviation
    if clip is not None:
        bound = jnp.asarray(clip, y.dtype)
        y = jnp.clip(y, -bound, bound)
    return checked.result(y)


@_checks.mask_is_called("where")
def min_max_inputs(
    x: ArrayLike,
    fit: _states.BatchStats,
    *,
    low: ArrayLike = 0.0,
    high: ArrayLike = 1.0,
    clip: bool = False,
    feature_axis: _axes.Axes = -1,
    where: ArrayLike | None = None,
    invert: bool = False,
) -> jax.Array:
    """Inputs to the range from `low` to `high`, feature by feature.

    y = low * (1 - t) + high * t with t = (x - min) / (max - min): the least value that was seen
    becomes `low` and the largest `high`, exactly. Of a feature that never varied max - min is taken
    for 1: its value becomes `low`, and comes back. A fresh fit changes nothing.

    Args:
        x: floating [..., F] (F at `feature_axis`).
        fit: as from `update_input_stats`.
        low, high: the range, two numbers.
        clip: keep within the range what lies beyond the values that were seen.
        feature_axis: the axis of the features; or several, and F is their shape in ascending order.
        where: nonzero where a value counts; broadcasts to `x`. The others are scaled like these,
            and give `low` where they are not finite.
        invert: from y back to x, up to rounding; not with `clip`, which is not undone.

    Returns:
        y of the shape and dtype of `x`, computed in float32, or wider where `x` or the fit is. NaN
        stay NaN.

    Raises:
        TypeError: an integer or complex input.
        ValueError: a fit of another width, narrower than float32 or with a missing entry, a `low`
            that is not below `high`, `clip` with `invert`.

    Conventions:
        The width of a constant is 1, as in scikit-learn's `MinMaxScaler`.

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
    checked = _checked(x, fit, feature_axis, where)
    least, most = checked.broadcast("min"), checked.broadcast("max")
    low, high = (jnp.asarray(bound, least.dtype) for bound in (low, high))
    unseen, constant = least > most, least == most
    least, most = jnp.where(unseen, low, least), jnp.where(unseen, high, most)
    values = checked.finite(low if invert else least)
    if invert:
        part = _part(values, low, high)
        y = jnp.where(constant, least + part, _between(least, most, part))
    else:
        y = _between(low, high, _part(values, least, most))
    y = jnp.where(unseen, values, y)
    return checked.result(jnp.clip(y, low, high) if clip else y)


@_checks.mask_is_called("where")
def normalize_observations(
    x: ArrayLike,
    fit: _states.BatchStats,
    *,
    clip: ArrayLike | None = 10.0,
    epsilon: ArrayLike = 1e-8,
    feature_axis: _axes.Axes = -1,
    where: ArrayLike | None = None,
    axis_name: _axes.AxisName | None = None,
    update: bool = True,
) -> tuple[jax.Array, Any]:
    """Observations of an environment, standardized by all that were seen, these included.

    One step of running observation normalization: `update_input_stats`, then `standardize_inputs`
    by the new fit. Environments that run in parallel, along the leading axes of `x` and over
    `axis_name`, share the fit.

    Args:
        x: floating [..., F] (F at `feature_axis`): observations of any number of environments.
        fit: as from `init_input_stats(F)`.
        clip: the bound of |y|, or None for none.
        epsilon: added to the variance.
        update: a Python bool; False uses the fit and leaves it, as in evaluation.

    The other arguments and the errors are those of `update_input_stats`.

    Returns:
        (y, fit): y of the shape and dtype of `x`, and the new fit.

    Conventions:
        As gymnasium's `NormalizeObservation`, which starts from a count of 1e-4 (of mean 0 and
        variance 1) where this one starts from none, and does not clip. brax's
        `running_statistics` start from none too, bound the deviation to [1e-6, 1e6] where this one
        adds epsilon, and normalize and update in two calls.

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
            fit, x, feature_axis=feature_axis, where=where, axis_name=axis_name
        )
    y = standardize_inputs(
        x, fit, epsilon=epsilon, clip=clip, feature_axis=feature_axis, where=where
    )
    return y, fit


class _Checked(NamedTuple):
    """An input and its fit, in a dtype that holds both.

    Attributes:
        dtype: of the result.
    """

    x: jax.Array
    fit: _states.BatchStats
    mask: jax.Array | None
    reduced: tuple[int, ...]
    dtype: Any

    def broadcast(self, key: str) -> jax.Array:
        """An entry of the fit, so that it meets every value of `x`."""
        return broadcast_over(jnp.asarray(self.fit[key], self.x.dtype), self.x, self.reduced)

    def finite(self, other: ArrayLike) -> jax.Array:
        """`x`, with the other value where it neither counts nor is finite."""
        if self.mask is None:
            return self.x
        return jnp.where(self.mask | jnp.isfinite(self.x), self.x, other)

    def result(self, y: jax.Array) -> jax.Array:
        return y.astype(self.dtype)


def _checked(
    x: ArrayLike, fit: _states.BatchStats, feature_axis: _axes.Axes, where: ArrayLike | None
) -> _Checked:
    x = _checks.as_real_input(x)
    features = _axes.channel_axes(x.ndim, feature_axis, "feature_axis")
    _states.check_fit(fit, tuple(x.shape[axis] for axis in features))
    mask = _checks.as_mask(where, x.shape)
    reduced = _axes.other_axes(x.ndim, features)
    with jax.numpy_dtype_promotion("standard"):
        wide = _dtypes.statistics_dtype(jnp.promote_types(x.dtype, fit["mean"].dtype))
    return _Checked(x.astype(wide), sharded(fit, x, reduced), mask, reduced, x.dtype)


def _check_invertible(name: str, value: Any, invert: bool) -> None:
    if invert:
        raise ValueError(
            f"{name}={value!r} cannot be inverted: what was beyond the bound is lost; give "
            f"invert=True without {name}"
        )


def _merged(fit: _states.BatchStats, m: Moments, least: jax.Array, most: jax.Array) -> Any:
    """The fit after values of these moments, least and most."""
    least = jnp.minimum(fit["min"], least.astype(fit["min"].dtype))
    most = jnp.maximum(fit["max"], most.astype(fit["max"].dtype))
    new = update(fit, m, momentum=None, skip_nonfinite=False)
    mean, var = exact_constants(new["mean"], new["var"], least, most)
    alone = (fit["count"] == 0) | (fit["var"] == 0)  # else it began with more than was seen
    exact = {"mean": jnp.where(alone, mean, new["mean"]), "var": jnp.where(alone, var, new["var"])}
    return type(new)({**new, **exact, "min": least, "max": most})  # type: ignore[call-arg]


def exact_constants(
    mean: jax.Array, var: jax.Array, least: jax.Array, most: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Merged mean and variance, without the rounding of those features that never varied."""
    constant = least == most
    return jnp.where(constant, least.astype(mean.dtype), mean), jnp.where(constant, 0, var)


def _part(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """How far `x` is from `low` to `high`: 0 and 1 there, exactly; the width of a point is 1."""
    part = (x - low) / jnp.where(low == high, 1, high - low)
    at_end = (x == high) & (low < high)  # XLA may multiply by a rounded reciprocal
    return part + jax.lax.stop_gradient(jnp.where(at_end, 1 - part, 0))


def _between(low: jax.Array, high: jax.Array, part: jax.Array) -> jax.Array:
    """From `low` at 0 to `high` at 1, both exactly."""
    return low * (1 - part) + high * part
