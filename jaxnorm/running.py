"""Running statistics: the moments that training measured, for use in evaluation.

Glossary:
    recomputed: new statistics, in an entry "recomputed" beside the old ones, that merge the moments
        of every training batch exactly (`start_recomputing` in `trees.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes
from jaxnorm import states as _states
from jaxnorm.arrays import sharded_without
from jaxnorm.statistics import Moments, is_finite, merge_moments

__all__ = ["init_batch_stats", "init_renorm_stats"]


def init_batch_stats(
    num_channels: int | Sequence[int],
    *,
    momentum: ArrayLike | None = 0.99,
    dtype: Any = jnp.float32,
    count_per_channel: bool = False,
) -> dict[str, jax.Array]:
    """Make new running statistics for `batch_norm` or `ghost_batch_norm`: mean 0 and variance 1.

    With them, evaluation gives x / sqrt(1 + epsilon). No training step changes the shape or the
    dtype of any entry. On a mesh with explicit axes, the statistics that a step returns are sharded
    like the channels of its input; to carry them through `lax.scan`, shard the new ones in the same
    way, with `jax.device_put`.

    Args:
        num_channels: the width C, or the shape of several channel axes in ascending order.
        momentum: the same as for the normalization; None adds the count that the exact cumulative
            merge needs.
        dtype: of the mean; float32, or wider to keep the precision of wider inputs (complex for
            complex inputs). For narrower inputs keep float32, because a narrower dtype would lose
            every update below half a unit in the last place.
        count_per_channel: with `momentum=None`, keep a count for each channel, for masks that
            differ by channel.

    Returns:
        {"mean": dtype[C] zeros, "var": real[C] ones}, with "count": real[] or real[C] zeros if
        `momentum` is None.

    Raises:
        TypeError: a dtype that is not floating or complex.
        ValueError: a width that is not positive, a dtype narrower than float32, a momentum outside
            [0, 1], a `count_per_channel` with a momentum.

    Example:
        >>> import jaxnorm as jn
        >>> jn.init_batch_stats(2)
        {'mean': Array([0., 0.], dtype=float32), 'var': Array([1., 1.], dtype=float32)}
    """
    shape = _axes.as_shape("num_channels", num_channels)
    _checks.check_momentum(momentum)
    _states.check_stats_dtype(dtype)
    real = _dtypes.real_dtype(dtype)
    stats = {"mean": jnp.zeros(shape, dtype), "var": jnp.ones(shape, real)}
    if momentum is not None:
        if count_per_channel:
            raise ValueError(
                f"count_per_channel=True needs momentum=None, got momentum={momentum!r}: only the "
                "cumulative merge keeps a count"
            )
        return stats
    count = jnp.zeros(shape if count_per_channel else (), real)
    return stats | {"count": count}


def init_renorm_stats(
    num_channels: int | Sequence[int],
    *,
    momentum: ArrayLike | None = 0.99,
    dtype: Any = jnp.float32,
    count_per_channel: bool = False,
) -> dict[str, jax.Array]:
    """Make new running statistics for `batch_renorm`: those of `init_batch_stats`, and the steps.

    The arguments and the errors are those of `init_batch_stats`. The result has one more entry,
    "steps": int32[], the number of training steps so far.

    Example:
        >>> import jaxnorm as jn
        >>> jn.init_renorm_stats(2)["steps"]
        Array(0, dtype=int32)
    """
    stats = init_batch_stats(
        num_channels, momentum=momentum, dtype=dtype, count_per_channel=count_per_channel
    )
    return stats | {"steps": jnp.zeros((), jnp.int32)}


def sharded(stats: _states.BatchStats, x: jax.Array, reduced: Sequence[int]) -> Any:
    """The running statistics; entries with one value per channel are sharded as those of `x`."""
    by_channel: dict[str, Any] = {
        key: sharded_without(jnp.asarray(stats[key]), x, reduced)
        for key in ("mean", "var", "count", "min", "max")
        if key in stats and jnp.ndim(stats[key]) > 0
    }
    if "recomputed" in stats:
        by_channel["recomputed"] = sharded(stats["recomputed"], x, reduced)
    return _states.with_entries(stats, by_channel)


def running_moments(stats: _states.BatchStats, dtype: Any) -> Moments:
    """The running statistics as moments, in `dtype`."""
    var = jnp.asarray(stats["var"], _dtypes.real_dtype(dtype))
    return Moments(jnp.ones_like(var), jnp.asarray(stats["mean"], dtype), var)


def update(
    stats: _states.BatchStats,
    m: Moments,
    *,
    momentum: ArrayLike | None,
    skip_nonfinite: bool,
    all_seen: bool = False,
) -> _states.BatchStats:
    """`stats` after a step whose batch had the moments `m`; shapes and dtypes do not change.

    A channel with a count of 0 does not change; with `skip_nonfinite`, no channel changes in a
    step that has a moment that is not finite. If there are recomputed statistics, only these
    change: they merge the moments of every batch.

    Args:
        all_seen: the count is known to be above 0 in every channel.
    """
    if "recomputed" in stats:
        recomputed = update(
            stats["recomputed"], m, momentum=None, skip_nonfinite=skip_nonfinite, all_seen=all_seen
        )
        return _states.with_entries(stats, {"recomputed": recomputed})
    dtype = _dtypes.promoted_dtype(stats["mean"].dtype, m.mean.dtype)
    real = _dtypes.real_dtype(dtype)
    m = Moments(m.count.astype(real), m.mean.astype(dtype), m.var.astype(real))
    old = running_moments(stats, dtype)
    if momentum is None:
        new = _merged(old._replace(count=jnp.asarray(stats["count"], real)), m)
    else:
        new = _decayed(old, m, momentum, all_seen)
    new = {key: value.astype(stats[key].dtype) for key, value in new.items()}
    if "steps" in stats:
        step = jnp.asarray(all_seen or jnp.any(m.count > 0), stats["steps"].dtype)
        new["steps"] = stats["steps"] + step
    if skip_nonfinite:
        finite = jnp.all(is_finite(m))
        new = {key: jnp.where(finite, value, stats[key]) for key, value in new.items()}
    return _states.with_entries(stats, new)


def start_recomputing(stats: _states.BatchStats) -> dict[str, Any]:
    """`stats` with new recomputed statistics, whose count is 0."""
    if "recomputed" in stats:
        raise ValueError(
            "these statistics are being recomputed already; end that first, with "
            "finish_recomputing or finish_accumulating"
        )
    _states.check_at_least_float32(stats, "the running statistics")
    mean, var = jnp.asarray(stats["mean"]), jnp.asarray(stats["var"])
    nothing = jnp.zeros_like(var, _dtypes.real_dtype(mean.dtype))
    recomputed = {"count": nothing, "mean": jnp.zeros_like(mean), "var": nothing}
    return {**stats, "recomputed": recomputed}


def replace_by_recomputed(stats: _states.BatchStats) -> dict[str, Any]:
    """The recomputed statistics in place of the old ones; the old ones where the count is 0."""
    old, m = _split_recomputed(stats)
    new = {"mean": m.mean, "var": m.var}
    if "count" in old:
        new["count"] = m.count
    seen = m.count > 0
    for key, value in new.items():
        value = value.astype(old[key].dtype)
        new[key] = cast_like(old[key], jnp.where(seen, value, broadcast_count(old[key], seen)))
    return {**old, **new}


def accumulate(stats: _states.BatchStats, momentum: ArrayLike | None) -> dict[str, Any]:
    """The running statistics after one step with the recomputed moments."""
    old, m = _split_recomputed(stats)
    if momentum is None and "count" not in old:
        raise ValueError(
            "momentum=None needs running statistics that have a count; these have the keys "
            f"{sorted(old)}; give a number, or start the statistics with momentum=None"
        )
    by_channel = {"count": broadcast_count(old["count"], m.count)} if "count" in old else {}
    new = update({**old, **by_channel}, m, momentum=momentum, skip_nonfinite=False)
    return {**new, **{key: cast_like(old[key], new[key]) for key in by_channel}}


def _split_recomputed(stats: _states.BatchStats) -> tuple[dict[str, Any], Moments]:
    """The old statistics, and the recomputed moments."""
    _states.check_at_least_float32(stats, "the running statistics")
    return {k: v for k, v in stats.items() if k != "recomputed"}, Moments(**stats["recomputed"])


def broadcast_count(count: jax.Array, like: jax.Array) -> jax.Array:
    """A count for each channel, in the shape of `like`; leading axes may be stacked layers."""
    over_channels = (1,) * (jnp.ndim(like) - jnp.ndim(count))
    return jnp.ones_like(like, count.dtype) * jnp.reshape(count, count.shape + over_channels)


def cast_like(old: jax.Array, new: jax.Array) -> jax.Array:
    """`new` in the dtype of `old`; equal counts of all channels become one if `old` is one."""
    last = tuple(range(jnp.ndim(old), new.ndim))
    return (jnp.max(new, axis=last) if last else new).astype(old.dtype)


def _decayed(old: Moments, m: Moments, momentum: ArrayLike, all_seen: bool) -> dict[str, jax.Array]:
    """momentum * old + (1 - momentum) * batch; the two rounded weights add up to 1."""

    def decayed(old: jax.Array, new: jax.Array) -> jax.Array:
        keep = jnp.asarray(momentum).astype(new.dtype)
        new = keep * old + (1 - keep) * new
        return new if all_seen else jnp.where(m.count > 0, new, old)

    return {"mean": decayed(old.mean, m.mean), "var": decayed(old.var, m.var)}


def _merged(old: Moments, m: Moments) -> dict[str, jax.Array]:
    """The exact merge of the old moments and the batch's."""
    merged = merge_moments(old, m)
    seen = merged.count > 0
    return {
        "mean": jnp.where(seen, merged.mean, old.mean),
        "var": jnp.where(seen, merged.var, old.var),
        "count": jnp.max(merged.count) if old.count.ndim == 0 else merged.count,
    }
