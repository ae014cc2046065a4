"""A fit to inputs: the statistics of each feature that a stream of inputs had.

Glossary:
    fit: a dict with a count, a mean, a variance, a minimum and a maximum for each feature. The fit
        is merged with that of every batch, in any order and from any process, and is what one pass
        over all examples at once would give.
    nested: a dict of inputs, or of such dicts, has a dict of fits with the same keys (`nested.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from jaxnorm.nested import Inputs, by_entry, naming_entry
from jaxnorm.running import init_batch_stats, sharded, update
from jaxnorm.scope import Scope
from jaxnorm.statistics import Moments, measure

__all__ = ["init_input_stats", "merge_input_stats", "update_input_stats"]


def init_input_stats(
    num_features: int | Sequence[int] | Mapping[str, Any], *, dtype: Any = jnp.float32
) -> dict[str, Any]:
    """Make a new fit to inputs: statistics of no examples yet, with which scaling changes nothing.

    `update_input_stats` updates the fit, and `standardize_inputs` and `min_max_inputs` scale by it.
    No update changes the shape or the dtype of any entry.

    Args:
        num_features: the width F, or the shape of several feature axes in ascending order; for
            nested inputs, a nested dict of these with the keys of the inputs.
        dtype: of every entry; float32, or float64 for more than 16,777,216 (2^24) examples: above
            this number, adding one example does not change a count in float32.

    Returns:
        {"count": zeros, "mean": zeros, "var": ones, "min": inf, "max": -inf}, each dtype[F]. Each
        feature has its own count, since masks and NaN may differ by feature. For nested inputs, a
        nested dict of such fits.

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a width that is not positive, a dtype narrower than float32, nested inputs with
            both of the keys "mean" and "var".

    Example:
        >>> import jaxnorm as jn
        >>> print(*jn.init_input_stats(1).values())
        [0.] [0.] [1.] [inf] [-inf]
        >>> fit = jn.init_input_stats({"camera": 3, "joints": {"position": 7, "velocity": 7}})
        >>> print(fit["joints"]["velocity"]["mean"])
        [0. 0. 0. 0. 0. 0. 0.]
    """
    if isinstance(num_features, Mapping):
        if {"mean", "var"} <= num_features.keys():
            raise ValueError(
                f"the inputs have the keys {sorted(map(str, num_features))}, so their fit would "
                "look like running statistics, which have mean and var; rename 'mean' or 'var'"
            )
        fits = {}
        for key, width in num_features.items():
            with naming_entry(key):
                fits[key] = init_input_stats(width, dtype=dtype)
        return fits
    if given := getattr(num_features, "shape", ()):
        raise TypeError(
            f"num_features must be numbers, got an array of shape {given}; give the width, "
            "x.shape[-1], or for nested inputs jax.tree.map(lambda x: x.shape[-1], x)"
        )
    shape = _axes.as_shape("num_features", num_features)
    _states.check_fit_dtype(dtype)
    stats = init_batch_stats(shape, momentum=None, dtype=dtype, count_per_channel=True)
    maximum = jnp.full(shape, -jnp.inf, dtype)
    return {key: stats[key] for key in ("count", "mean", "var")} | {"min": -maximum, "max": maximum}


@by_entry
@_checks.mask_is_called("where")
def update_input_stats(
    fit: _states.BatchStats,
    x: Inputs,
    *,
    feature_axis: _axes.Axes | Mapping[str, Any] = -1,
    where: Inputs | None = None,
    axis_name: _axes.AxisName | None = None,
    axis_index_groups: _axes.AxisIndexGroups = None,
    skip_nan: bool = False,
    decay: ArrayLike = 1.0,
) -> Any:
    """Update a fit to inputs with the examples of `x`.

    The moments of `x` are merged into those of the fit as by `merge_moments`; the minimum and the
    maximum are exact. No gradient goes through a fit.

    With a `decay` below 1, the fit follows inputs that change: before the merge, the count of the
    fit is multiplied by the decay. A batch that is k updates old has a weight of decay^k,
    and the count of batches of n examples tends to n / (1 - decay). The minimum and the maximum
    stay those of all examples.

    Args:
        fit: as from `init_input_stats(F)`; a fit with the mark of `freeze_stats` is returned as it
            is.
        x: floating [..., F] (F at `feature_axis`), with any number of examples, including zero; or
            a nested dict of inputs, with the keys of the fit.
        feature_axis: the feature axis, or several; F is then their shape, in ascending order. For
            nested inputs, one for all entries, or a nested dict.
        where: a mask that broadcasts to `x`, nonzero at the values to count. The others change
            nothing. For nested inputs, one that broadcasts to all entries, or a nested dict.
        axis_name: mapped axis or axes (`pmap`, `shard_map`, `vmap`) to merge the fit over; under
            `jit` with sharded arrays the fit is global without it.
        axis_index_groups: lists of indices of the mapped axis; each list is merged separately.
        skip_nan: True leaves out NaN. Otherwise one NaN makes the mean, variance, min and max of
            its feature NaN permanently.
        decay: the weight of the earlier examples, in [0, 1]. It applies to a feature in each update
            in which at least one of its values counts; 1 forgets nothing.

    Returns:
        The new fit, with the shapes and dtypes of the given one. For a constant feature the mean,
        the min and the max are exactly its value, and the variance is exactly 0.

    Raises:
        TypeError: an integer or complex input.
        ValueError: a fit that has another width, is narrower than float32 or lacks an entry, nested
            inputs whose keys are not those of the fit, a mask that does not broadcast, an axis name
            that is not mapped, a decay outside [0, 1].

    Conventions:
        NaN count by default (scikit-learn's scalers always skip them). The variance is
        biased, as in scikit-learn.

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
        >>> fits = jn.init_input_stats({"position": 2, "speed": 1})
        >>> fits = jn.update_input_stats(fits, {"position": jnp.ones((4, 2)), "speed": jnp.ones(1)})
        >>> print(fits["position"]["count"], fits["speed"]["count"])
        [4. 4.] [1.]
    """
    _checks.check_choice("skip_nan", skip_nan)
    _checks.check_decay(decay)
    _axes.check_axis_index_groups(axis_name, axis_index_groups)
    checked = checked_input(x, fit, feature_axis, where)
    if "frozen" in fit:
        return fit
    x, mask = checked.x, checked.mask
    if skip_nan:
        known = ~jnp.isnan(x)
        mask = known if mask is None else mask & known
    return updated(checked.fit, x, checked.reduced, mask, decay, axis_name, axis_index_groups)


def updated(
    fit: _states.BatchStats,
    x: jax.Array,
    reduced: tuple[int, ...],
    mask: jax.Array | None,
    decay: ArrayLike,
    axis_name: _axes.AxisName | None,
    axis_index_groups: _axes.AxisIndexGroups,
) -> Any:
    """The fit after the values of `x` that count, which are measured over the axes `reduced`."""
    fit, x = jax.lax.stop_gradient((fit, x))
    m = sync_moments(measure(x, Scope(reduced), mask), axis_name, axis_index_groups)
    seen = None if mask is None else broadcast_mask(mask, x)
    minimum = jnp.min(x, reduced, where=seen, initial=jnp.inf)
    maximum = jnp.max(x, reduced, where=seen, initial=-jnp.inf)
    minimum, maximum = sync_extremes(minimum, maximum, axis_name, axis_index_groups)
    kept = jnp.where(m.count > 0, jnp.asarray(decay, fit["count"].dtype), 1)
    fit = _states.with_entries(fit, {"count": kept * fit["count"]})
    return _merged(fit, m, minimum, maximum)


@by_entry
def merge_input_stats(a: _states.BatchStats, b: _states.BatchStats) -> Any:
    """Merge two fits, for example of two files or processes, into the fit to all their examples.

    The merge is associative and commutative up to the rounding of moments, and a new fit is its
    identity. No example may belong to both fits.

    Args:
        a, b: fits of the same width, or nested dicts of fits with the same keys.

    Returns:
        The merged fit, with the dtypes of `a`; it is frozen if `a` is.

    Raises:
        ValueError: fits that have different widths, are narrower than float32 or lack an entry.

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


class CheckedInput(NamedTuple):
    """An input and its fit; `x` has a dtype that both promote to.

    Attributes:
        dtype: the dtype of the result.
    """

    x: jax.Array
    fit: _states.BatchStats
    mask: jax.Array | None
    reduced: tuple[int, ...]
    dtype: Any

    def broadcast(self, key: str) -> jax.Array:
        """An entry of the fit, broadcast to the values of `x`."""
        return broadcast_over(jnp.asarray(self.fit[key], self.x.dtype), self.x, self.reduced)

    def finite(self, other: ArrayLike) -> jax.Array:
        """`x`, with `other` in place of values that neither count nor are finite."""
        if self.mask is None:
            return self.x
        return jnp.where(self.mask | jnp.isfinite(self.x), self.x, other)

    def result(self, y: jax.Array) -> jax.Array:
        """`y` in the dtype of the result."""
        return y.astype(self.dtype)


def checked_input(x: Any, fit: _states.BatchStats, feature_axis: Any, where: Any) -> CheckedInput:
    """Check an input and its fit, which are not nested."""
    x = _checks.as_real_input(x)
    features = _axes.nonempty_axes(x.ndim, feature_axis, "feature_axis")
    shape = tuple(x.shape[axis] for axis in features)
    _states.check_fit(fit, shape, ", or for one feature give x[..., None], as targets[:, None]")
    mask = _checks.as_mask(where, x.shape)
    reduced = _axes.other_axes(x.ndim, features)
    dtype = _dtypes.promoted_dtype(x.dtype, fit["mean"].dtype)
    return CheckedInput(x.astype(dtype), sharded(fit, x, reduced), mask, reduced, x.dtype)


def _merged(fit: _states.BatchStats, m: Moments, minimum: jax.Array, maximum: jax.Array) -> Any:
    """The fit after more values, which have these moments, minimum and maximum."""
    minimum = jnp.minimum(fit["min"], minimum.astype(fit["min"].dtype))
    maximum = jnp.maximum(fit["max"], maximum.astype(fit["max"].dtype))
    new = update(fit, m, momentum=None, skip_nonfinite=False)
    mean, var = exact_constants(new["mean"], new["var"], minimum, maximum)
    # Otherwise the old fit may hold more than min and max cover, such as an initial count.
    covered = (fit["count"] == 0) | (fit["var"] == 0)
    exact = {
        "mean": jnp.where(covered, mean, new["mean"]),
        "var": jnp.where(covered, var, new["var"]),
    }
    return _states.with_entries(new, {**exact, "min": minimum, "max": maximum})


def exact_constants(
    mean: jax.Array, var: jax.Array, minimum: jax.Array, maximum: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A merged mean and variance, without rounding for features that are constant."""
    constant = minimum == maximum
    return jnp.where(constant, minimum.astype(mean.dtype), mean), jnp.where(constant, 0, var)
