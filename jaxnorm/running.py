"""Running statistics: what training saw, for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes
from jaxnorm.statistics import Moments, is_finite, merge_moments


def init_batch_stats(
    num_channels: int | Sequence[int], *, momentum: float | None = 0.99, dtype: Any = jnp.float32
) -> dict[str, jax.Array]:
    """Fresh running statistics: mean 0 and variance 1, so that evaluation gives x / sqrt(1 + eps).

    Args:
        num_channels: the width C, or the shape of several channel axes in ascending order.
        momentum: as it will be given to the normalization; None adds the count that the exact
            cumulative merge needs.
        dtype: of the mean; float32, or wider for wider inputs (complex for complex inputs).

    Returns:
        {"mean": dtype[C] zeros, "var": real[C] ones}, with "count": real[] zero (float32 at least)
        if `momentum` is None.

    Raises:
        ValueError: a width that is not positive, a momentum outside [0, 1].

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
    count = jnp.zeros((), _axes.statistics_dtype(real))
    return stats | ({"count": count} if momentum is None else {})


def init_renorm_stats(
    num_channels: int | Sequence[int], *, momentum: float | None = 0.99, dtype: Any = jnp.float32
) -> dict[str, jax.Array]:
    """As `init_batch_stats`, and the number of training steps taken, {"steps": i32[] zero}.

    Example:
        >>> import jaxnorm as jn
        >>> jn.init_renorm_stats(2)["steps"]
        Array(0, dtype=int32)
    """
    stats = init_batch_stats(num_channels, momentum=momentum, dtype=dtype)
    return stats | {"steps": jnp.zeros((), jnp.int32)}


def running_moments(stats: _axes.BatchStats, dtype: Any) -> Moments:
    """The running statistics as moments, in `dtype`."""
    var = jnp.asarray(stats["var"], _axes.real_dtype(dtype))
    return Moments(jnp.ones_like(var), jnp.asarray(stats["mean"], dtype), var)


def update(
    stats: _axes.BatchStats,
    m: Moments,
    *,
    momentum: float | None,
    skip_nonfinite: bool,
    counts_alike: bool,
) -> _axes.BatchStats:
    """`stats` after a step whose batch had the moments `m`.

    Where nothing counted they stay as they were; with `skip_nonfinite`, also in a step with any
    moment that is not finite.

    Args:
        counts_alike: every channel counts the same values, so the cumulative count is one number.
    """
    dtype = _wider(stats["mean"].dtype, m.mean.dtype)
    real = _axes.real_dtype(dtype)
    m = Moments(m.count.astype(real), m.mean.astype(dtype), m.var.astype(real))
    old = running_moments(stats, dtype)
    if momentum is None:
        new = _cumulated(old._replace(count=jnp.asarray(stats["count"], real)), m, counts_alike)
    else:
        new = _decayed(old, m, momentum)
    if "steps" in stats:
        new["steps"] = stats["steps"] + jnp.any(m.count > 0).astype(stats["steps"].dtype)
    if skip_nonfinite:
        finite = jnp.all(is_finite(m))
        new = {key: jnp.where(finite, new[key], stats[key].astype(new[key].dtype)) for key in new}
    return type(stats)({**stats, **new})  # type: ignore[call-arg]


def _decayed(old: Moments, m: Moments, momentum: float) -> dict[str, jax.Array]:
    """momentum * old + (1 - momentum) * batch, where the two rounded weights add up to 1."""
    seen = m.count > 0

    def decayed(old: jax.Array, new: jax.Array) -> jax.Array:
        keep = jnp.asarray(momentum, new.dtype)
        return jnp.where(seen, keep * old + (1 - keep) * new, old)

    return {"mean": decayed(old.mean, m.mean), "var": decayed(old.var, m.var)}


def _cumulated(old: Moments, m: Moments, counts_alike: bool) -> dict[str, jax.Array]:
    """The moments of all that was ever seen."""
    merged = merge_moments(old, m)
    seen = merged.count > 0
    return {
        "mean": jnp.where(seen, merged.mean, old.mean),
        "var": jnp.where(seen, merged.var, old.var),
        "count": jnp.max(merged.count) if counts_alike and old.count.ndim == 0 else merged.count,
    }


def _wider(a: Any, b: Any) -> Any:
    """The dtype that holds both, at least as precise as statistics are kept."""
    with jax.numpy_dtype_promotion("standard"):
        return _axes.statistics_dtype(jnp.promote_types(a, b))
