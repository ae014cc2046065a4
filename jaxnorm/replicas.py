"""Merging the trees of running statistics of replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxnorm import axes as _axes
from jaxnorm import dtypes as _dtypes
from jaxnorm import running as _running
from jaxnorm import states as _states
from jaxnorm.distributed import sync_extremes, sync_moments
from jaxnorm.input_stats import exact_constants
from jaxnorm.paths import map_dicts
from jaxnorm.statistics import Moments
from jaxnorm.trees import STATS

__all__ = ["sync_batch_stats"]


def sync_batch_stats(
    batch_stats: Any,
    axis_name: _axes.AxisName,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> Any:
    """Merge the running statistics of all replicas; every replica gets the result.

    Replicas that normalize separately (local or grouped scope) have different running statistics;
    merge them before evaluation or saving. The result includes the variance between the replicas'
    means, which an average of the variances would lose. The whole tree needs one collective, as in
    `sync_moments`; the `steps` of batch renormalization, whose maximum is taken, need another, and
    so do the minima and maxima of fits to inputs.

    Replicas have equal weights; cumulative statistics (`momentum=None`, or recomputed ones) are
    weighted by their `count`. The merged counts are sums, so use the merged statistics for
    evaluation or saving only, and continue training with the statistics before the merge.

    Args:
        batch_stats: the statistics of one normalization, or nested dicts of them, as Linen's
            `variables["batch_stats"]` or `nnx.state(model, nnx.BatchStat)`.
        axis_name, axis_index_groups: as for `sync_moments`. To merge statistics with the replicas
            on a first axis, as `pmap` returns them, use `pmap` again, or `vmap` on one device.

    Raises:
        ValueError: a name that is not mapped, a tree without statistics, statistics narrower than
            float32.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> replicas = {"norm": {"mean": jnp.array([[0.0], [2.0]]), "var": jnp.ones((2, 1))}}
        >>> merge = lambda stats: jn.sync_batch_stats(stats, "devices")
        >>> merged = jax.vmap(merge, axis_name="devices")(replicas)
        >>> print(merged["norm"]["mean"][0], merged["norm"]["var"][0])
        [1.] [2.]
    """
    layers: list[dict[str, Any]] = []

    def found(stats: Mapping[str, Any]) -> dict[str, Any]:
        _states.check_at_least_float32(stats, "the running statistics")
        layers.append(dict(stats))
        if "recomputed" in stats:
            found(stats["recomputed"])
        return dict(stats)

    map_dicts(batch_stats, ("*",), STATS, found)
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves([stats["mean"] for stats in layers]))
    means, rebuilt_means = _raveled([stats["mean"] for stats in layers], dtype)
    variances, rebuilt_variances = _raveled(
        [stats["var"] for stats in layers], _dtypes.real_dtype(dtype)
    )
    counts, rebuilt_counts = _raveled(
        [_counts(stats, _dtypes.real_dtype(dtype)) for stats in layers], _dtypes.real_dtype(dtype)
    )
    m = sync_moments(Moments(counts, means, variances), axis_name, axis_index_groups)
    rebuilt = rebuilt_counts(m.count), rebuilt_means(m.mean), rebuilt_variances(m.var)
    merged = zip(*rebuilt, strict=True)

    def synced(stats: Mapping[str, Any]) -> dict[str, Any]:
        count, mean, var = next(merged)
        # A new state has a variance of 1.
        var = jax.tree.map(lambda count, var: jnp.where(count > 0, var, 1), count, var)
        new = {**stats, "mean": mean, "var": var}
        if "count" in stats:
            new["count"] = jax.tree.map(_running.cast_like, stats["count"], count)
        if "steps" in stats:
            new["steps"] = jax.lax.pmax(
                stats["steps"], axis_name, axis_index_groups=axis_index_groups
            )
        if {"min", "max"} <= stats.keys():
            new |= _synced_fit(new, axis_name, axis_index_groups)
        if "recomputed" in stats:
            new["recomputed"] = synced(stats["recomputed"])
        return new

    return map_dicts(batch_stats, ("*",), STATS, synced)


def _raveled(tree: Sequence[Any], dtype: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """The leaves of a tree in one vector, and a function from such a vector back to the tree."""
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(dtype), tree))

    def back(flat: jax.Array) -> Any:
        def restored(new: jax.Array, old: jax.Array) -> jax.Array:
            return (new if jnp.iscomplexobj(old) else new.real).astype(old.dtype)

        return jax.tree.map(restored, unravel(flat), tree)

    return flat, back


def _counts(stats: Mapping[str, Any], dtype: Any) -> Any:
    """The weight of each channel's statistics, in the shape of the statistics."""
    ones = jax.tree.map(lambda var: jnp.ones(var.shape, dtype), stats["var"])
    if "count" not in stats:
        return ones

    def broadcast(ones: jax.Array, count: jax.Array) -> jax.Array:
        return _running.broadcast_count(count, ones).astype(dtype)

    return jax.tree.map(broadcast, ones, stats["count"])


def _synced_fit(
    fit: Mapping[str, Any],
    axis_name: _axes.AxisName,
    axis_index_groups: _axes.AxisIndexGroups,
) -> dict[str, Any]:
    """The entries of a merged fit to inputs, whose constant features are exact."""
    boxed = {key: fit[key] for key in ("mean", "var", "min", "max")}
    mean, var, minimum, maximum = (jax.tree.leaves(box)[0] for box in boxed.values())
    minimum, maximum = sync_extremes(minimum, maximum, axis_name, axis_index_groups)
    mean, var = exact_constants(mean, var, minimum, maximum)
    new = dict(zip(boxed, (mean, var, minimum, maximum), strict=True))
    return {key: jax.tree.unflatten(jax.tree.structure(boxed[key]), [new[key]]) for key in boxed}
