"""Running statistics: what training saw, for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm.arrays import sharded_without
from jaxnorm.statistics import Moments, is_finite, merge_moments


def init_batch_stats(
    num_channels: int | Sequence[int],
    *,
    momentum: ArrayLike | None = 0.99,
    dtype: Any = jnp.float32,
    count_per_channel: bool = False,
) -> dict[str, jax.Array]:
    """Fresh running statistics: mean 0 and variance 1, so that evaluation gives x / sqrt(1 + eps).

    No training step changes the shape or the dtype of any entry. On a mesh with explicit axes the
    statistics that a step returns are sharded as the channels of its input; to carry them through
    `lax.scan`, start them so, with `jax.device_put`.

    Args:
        num_channels: the width C, or the shape of several channel axes in ascending order.
        momentum: as it will be given to the normalization; None adds the count that the exact
            cumulative merge needs.
        dtype: of the mean; float32, or wider to keep the precision of wider inputs (complex for
            complex inputs).
        count_per_channel: a count for each channel, for masks that differ by channel, where
            `momentum` is None.

    Returns:
        {"mean": dtype[C] zeros, "var": real[C] ones}, with "count": real[] or real[C] zeros
        (float32 at least) if `momentum` is None.

    Raises:
        ValueError: a width that is not positive, a momentum outside [0, 1], a `count_per_channel`
            with a momentum.

    Example:
        >>> import jaxnorm as jn
        >>> jn.init_batch_stats(2)
        {'mean': Array([0., 0.], dtype=float32), 'var': Array([1., 1.], dtype=float32)}
    """
    widths = num_channels if isinstance(num_channels, Sequence) else (num_channels,)
    shape = tuple(_axes.check_positive_int("num_channels", width) for width in widths)
    _axes.check_momentum(momentum)
    _axes.check_inexact("dtype", dtype)
    real = _axes.real_dtype(dtype)
    stats = {"mean": jnp.zeros(shape, dtype), "var": jnp.ones(shape, real)}
    if momentum is not None:
        if count_per_channel:
            raise ValueError(
                f"count_per_channel=True needs momentum=None, got momentum={momentum!r}: only the "
                "cumulative merge has a count"
            )
        return stats
    count = jnp.zeros(shape if count_per_channel else (), _axes.statistics_dtype(real))
    return stats | {"count": count}


def init_renorm_stats(
    num_channels: int | Sequence[int],
    *,
    momentum: ArrayLike | None = 0.99,
    dtype: Any = jnp.float32,
    count_per_channel: bool = False,
) -> dict[str, jax.Array]:
    """As `init_batch_stats`, and the number of training steps taken, {"steps": i32[] zero}.

    Example:
        >>> import jaxnorm as jn
        >>> jn.init_renorm_stats(2)["steps"]
        Array(0, dtype=int32)
    """
    stats = init_batch_stats(
        num_channels, momentum=momentum, dtype=dtype, count_per_channel=count_per_channel
    )
    return stats | {"steps": jnp.zeros((), jnp.int32)}


def sharded(stats: _axes.BatchStats, x: jax.Array, reduced: Sequence[int]) -> Any:
    """The running statistics, those of each channel sharded as the channels of `x` are."""
    by_channel = {
        key: sharded_without(jnp.asarray(stats[key]), x, reduced)
        for key in ("mean", "var", "count")
        if key in stats and jnp.ndim(stats[key]) > 0
    }
    return type(stats)({**stats, **by_channel})  # type: ignore[call-arg]


def running_moments(stats: _axes.BatchStats, dtype: Any) -> Moments:
    """The running statistics as moments, in `dtype`."""
    var = jnp.asarray(stats["var"], _axes.real_dtype(dtype))
    return Moments(jnp.ones_like(var), jnp.asarray(stats["mean"], dtype), var)


def update(
    stats: _axes.BatchStats,
    m: Moments,
    *,
    momentum: ArrayLike | None,
    skip_nonfinite: bool,
    all_seen: bool = False,
) -> _axes.BatchStats:
    """`stats` after a step whose batch had the moments `m`, in their shapes and dtypes.

    Where nothing counted they stay as they were; with `skip_nonfinite`, also in a step with any
    moment that is not finite.

    Args:
        all_seen: it is known that something counted in every channel.
    """
    dtype = wider(stats["mean"].dtype, m.mean.dtype)
    real = _axes.real_dtype(dtype)
    m = Moments(m.count.astype(real), m.mean.astype(dtype), m.var.astype(real))
    old = running_moments(stats, dtype)
    if momentum is None:
        new = _cumulated(old._replace(count=jnp.asarray(stats["count"], real)), m)
    else:
        new = _decayed(old, m, momentum, all_seen)
    new = {key: value.astype(stats[key].dtype) for key, value in new.items()}
    if "steps" in stats:
        step = jnp.asarray(all_seen or jnp.any(m.count > 0), stats["steps"].dtype)
        new["steps"] = stats["steps"] + step
    if skip_nonfinite:
        finite = jnp.all(is_finite(m))
        new = {key: jnp.where(finite, value, stats[key]) for key, value in new.items()}
    return type(stats)({**stats, **new})  # type: ignore[call-arg]


def _decayed(old: Moments, m: Moments, momentum: ArrayLike, all_seen: bool) -> dict[str, jax.Array]:
    """momentum * old + (1 - momentum) * batch, where the two rounded weights add up to 1."""

    def decayed(old: jax.Array, new: jax.Array) -> jax.Array:
        keep = jnp.asarray(momentum).astype(new.dtype)
        new = keep * old + (1 - keep) * new
        return new if all_seen else jnp.where(m.count > 0, new, old)

    return {"mean": decayed(old.mean, m.mean), "var": decayed(old.var, m.var)}


def _cumulated(old: Moments, m: Moments) -> dict[str, jax.Array]:
    """The moments of all that was ever seen."""
    merged = merge_moments(old, m)
    seen = merged.count > 0
    return {
        "mean": jnp.where(seen, merged.mean, old.mean),
        "var": jnp.where(seen, merged.var, old.var),
        "count": jnp.max(merged.count) if old.count.ndim == 0 else merged.count,
    }


def wider(a: Any, b: Any) -> Any:
    """The dtype that holds both, at least as precise as statistics are kept."""
    with jax.numpy_dtype_promotion("standard"):
        return _axes.statistics_dtype(jnp.promote_types(a, b))
