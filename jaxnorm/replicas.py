"""Merging the trees of running statistics of replicas, clients and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes
from jaxnorm.distributed import sync_extremes, sync_moments
from jaxnorm.statistics import Moments, merge_moments_axis
from jaxnorm.tree_parts import Parts, as_alike, parts_of, with_parts

__all__ = ["merge_batch_stats", "sync_batch_stats"]


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
    weighted by their `count`. The merged counts are sums over the replicas, so use the merged
    statistics only for evaluation or saving, and continue training with those before the merge.

    Args:
        batch_stats: the statistics of one normalization, or nested dicts of them, as Linen's
            `variables["batch_stats"]` or `nnx.state(model, nnx.BatchStat)`.
        axis_name, axis_index_groups: as for `sync_moments`. To merge statistics that have the
            replicas on a first axis, as `pmap` returns them, call this under `pmap`, or under
            `vmap` on one device.

    Returns:
        A tree of the same structure, with the same values on all replicas (of a group).

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
    parts = parts_of(batch_stats)
    m, rebuilt = _raveled(parts.moments)
    merged = Parts(
        rebuilt(sync_moments(m, axis_name, axis_index_groups)),
        jax.lax.pmax(parts.steps, axis_name, axis_index_groups=axis_index_groups),
        [sync_extremes(*pair, axis_name, axis_index_groups) for pair in parts.extremes],
    )
    return with_parts(batch_stats, merged)


def merge_batch_stats(
    trees: Iterable[Any], weights: ArrayLike | Sequence[ArrayLike] | None = None
) -> Any:
    """Merge trees of running statistics, such as those of federated clients or of checkpoints.

    With the weights w_i divided by their sum, mean = sum(w_i mean_i) and
    var = sum(w_i (var_i + |mean_i - mean|^2)): the moments of the mixture. The result includes the
    variance between the means, which an average of the variances would lose. `sync_batch_stats`
    does the same for the devices of a mapped axis.

    Args:
        trees: trees of the same structure, each the statistics of one normalization or nested dicts
            of them, as Linen's `variables["batch_stats"]` or `nnx.state(model, nnx.BatchStat)`.
        weights: a finite number for each tree, 0 or more, not all 0; they need not sum to 1. A
            weight below 1e-38 times the largest one is taken as 0. With None, cumulative statistics
            (`momentum=None`, recomputed ones, fits to inputs) are weighted by their `count`, and
            other statistics equally.

    Returns:
        A tree with the structure, the shapes and the dtypes of the first tree. A `count` is the sum
        of the counts, and `steps` is their maximum; `min` and `max` are those of all trees. Other
        entries of statistics (marks, the control processes of `online_norm`) are those of the
        first tree. So are arrays that belong to no statistics; they must be equal in all trees
        (traced arrays are not checked).

    Trees of weight 0, and statistics of count 0 whatever their weight, do not affect the merged
    statistics, even if they hold NaN. A channel without any others has mean 0 and variance 1.

    Raises:
        TypeError: a single tree in place of several; a dict or a set of weights, a weight that is
            not a real number.
        ValueError: no trees, trees that differ in structure, shapes or dtypes (the message has the
            path), trees without statistics, statistics narrower than float32; other arrays that
            differ, such as the parameters in whole `variables`; not one weight for each tree, a
            weight that is negative or not finite, weights that are all 0 (traced weights are not
            checked).

    References:
        Chan, Golub and LeVeque 1983, equations 2.1, with weights in place of counts.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> clients = [{"norm": {"mean": jnp.array([m]), "var": jnp.ones(1)}} for m in (0.0, 4.0)]
        >>> merged = jn.merge_batch_stats(clients, weights=[300, 100])
        >>> print(merged["norm"]["mean"], merged["norm"]["var"])
        [1.] [4.]
    """
    trees = as_alike(trees)
    shares = None if weights is None else _as_weights(weights, len(trees))
    parts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(parts_of, trees))
    return with_parts(trees[0], _merged(parts, shares))


def _raveled(moments: Sequence[Moments]) -> tuple[Moments, Callable[[Moments], list[Moments]]]:
    """Moments in one vector, and a function from such a vector back to the list."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*[m.mean for m in moments])
    real = _dtypes.real_dtype(dtype)
    pairs = [
        _raveled_arrays(arrays, kind)
        for arrays, kind in zip(zip(*moments, strict=True), (real, dtype, real), strict=True)
    ]

    def back(flat: Moments) -> list[Moments]:
        lists = [unravel(part) for part, (_, unravel) in zip(flat, pairs, strict=True)]
        return [Moments(*one) for one in zip(*lists, strict=True)]

    return Moments(*(flat for flat, _ in pairs)), back


def _raveled_arrays(
    arrays: Sequence[jax.Array], dtype: Any
) -> tuple[jax.Array, Callable[[jax.Array], list[jax.Array]]]:
    """Arrays in one vector of a dtype, and a function back to their shapes and dtypes."""
    flat, unravel = ravel_pytree([array.astype(dtype) for array in arrays])

    def back(flat: jax.Array) -> list[jax.Array]:
        return [
            (new if jnp.iscomplexobj(old) else new.real).astype(old.dtype)
            for new, old in zip(unravel(flat), arrays, strict=True)
        ]

    return flat, back


def _merged(parts: Parts, weights: jax.Array | None) -> Parts:
    """The merge of stacked parts, which have one tree at each index of axis 0."""

    def takes(stacked: jax.Array) -> Any:
        return True if weights is None else _along(weights > 0, stacked)

    return Parts(
        [_merged_moments(m, weights) for m in parts.moments],
        [jnp.max(steps, 0, where=takes(steps), initial=0) for steps in parts.steps],
        [
            (
                jnp.min(minimum, 0, where=takes(minimum), initial=jnp.inf),
                jnp.max(maximum, 0, where=takes(maximum), initial=-jnp.inf),
            )
            for minimum, maximum in parts.extremes
        ],
    )


def _merged_moments(m: Moments, weights: jax.Array | None) -> Moments:
    """The merge along axis 0 by weights, or by the counts; the count is the sum of the counts."""
    if weights is None:
        return merge_moments_axis(m, 0)
    weights = _along(weights.astype(m.count.dtype), m.count)
    count = _as_counts(jnp.where(m.count > 0, weights, 0))
    merged = merge_moments_axis(m._replace(count=count), 0)
    return merged._replace(count=jnp.sum(jnp.where(weights > 0, m.count, 0), 0))


def _as_counts(weights: jax.Array) -> jax.Array:
    """Weights of trees, scaled so that each channel counts as many values as there are trees."""
    total = jnp.sum(weights, 0)
    return weights * len(weights) / jnp.where(total > 0, total, 1)


def _along(weights: jax.Array, stacked: jax.Array) -> jax.Array:
    """The weights along axis 0 of what is stacked."""
    return weights.reshape(-1, *(1,) * (stacked.ndim - 1))


def _as_weights(weights: Any, number: int) -> jax.Array:
    """The weights of so many trees in one vector, divided by a power of 2 near the largest."""
    if isinstance(weights, Mapping | AbstractSet):
        raise TypeError(
            "weights must be a sequence of numbers in the order of the trees, got the "
            f"{type(weights).__name__} {weights!r}; give a list"
        )
    known = hasattr(weights, "tolist") and not _checks.is_traced(weights)
    try:
        values = list(weights.tolist() if known else weights)
    except TypeError:
        raise TypeError(f"weights must be a sequence of numbers, got {weights!r}") from None
    if len(values) != number:
        raise ValueError(f"got {len(values)} weights for {number} trees; give each tree one weight")
    for place, value in enumerate(values):
        _checks.check_number(f"weights[{place}]", value, 0.0)
    if any(map(_checks.is_traced, values)):
        stacked = jnp.stack([jnp.asarray(value, float) for value in values])
        return jnp.ldexp(stacked, -jnp.frexp(jnp.max(stacked))[1])
    numbers = [float(value) for value in values]  # in float64, whatever dtype JAX has
    if not any(numbers):
        raise ValueError(f"the weights {values} are all 0; give at least one tree a weight above 0")
    exponent = math.frexp(max(numbers))[1]
    return jnp.asarray([math.ldexp(number, -exponent) for number in numbers], float)
