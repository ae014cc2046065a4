"""Batch normalization, ghost batch normalization and batch renormalization.

Glossary:
    ghost: a contiguous slice of the batch that is normalized by its own moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import states as _states
from jaxnorm.arrays import explicit_shards
from jaxnorm.batch_arguments import Arguments, checked
from jaxnorm.distributed import sync_centered, sync_moments
from jaxnorm.running import running_moments
from jaxnorm.scope import Scope
from jaxnorm.statistics import Moments, measure_centered, merge_moments_axis

__all__ = ["batch_norm", "batch_renorm", "ghost_batch_norm"]

Schedule = Callable[[Any], Any]


@_checks.mask_is_called("where")
def batch_norm(
    x: ArrayLike,
    stats: _states.BatchStats,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    train: bool,
    momentum: ArrayLike | None = 0.99,
    epsilon: ArrayLike = 1e-5,
    channel_axis: _axes.Axes = -1,
    where: ArrayLike | None = None,
    axis_name: _axes.AxisName | None = None,
    axis_index_groups: _axes.AxisIndexGroups = None,
    skip_nonfinite: bool = False,
) -> tuple[jax.Array, Any]:
    """Normalize each channel over the batch, or with running statistics (batch normalization).

    y = (x - mean) / sqrt(var + epsilon) * scale + bias. With `train=True`, mean and var are the
    mean and the biased variance of each channel over all examples and positions of the batch;
    with `train=False`, they are the running statistics.

    Args:
        x: floating or complex [..., C] (C at `channel_axis`).
        stats: running statistics as from `init_batch_stats(C)`. Statistics with the mark of
            `freeze_stats` are used and not updated, whatever `train` is. With the mark of
            `start_recomputing`, training merges all batches into a new entry beside them.
        scale, bias: [C], or None for 1 and 0. To give each example its own, put leading axes of
            `x` in front of C, each of full size or 1: [N, C] for `x` [N, ..., C].
        train: a Python bool. True normalizes with the statistics of this batch and updates
            `stats`; False normalizes with `stats`.
        momentum: weight of the old value, `new = momentum * old + (1 - momentum) * batch`; None
            merges all batches exactly and needs `init_batch_stats(C, momentum=None)`.
        epsilon: added to the variance. Like `momentum`, a number or a scalar array, which may be
            traced.
        channel_axis: the channel axis, or several; C is then their shape, in ascending order.
        where: a mask that broadcasts to `x`, nonzero at the positions to measure. The others affect
            neither the statistics nor the results and gradients at these positions.
        axis_name: mapped axis or axes (`pmap`, `shard_map`, `vmap`) to merge statistics over.
        axis_index_groups: lists of indices of the mapped axis; each list is merged separately.
        skip_nonfinite: True skips the update of the running statistics in a step where the mean
            or the variance of any channel on this device is not finite (under `shard_map`,
            channels may be split).

    Returns:
        (y, stats): y has the shape and dtype of `x`. stats are the running statistics after this
        step, with the shapes and dtypes of the given ones; on a mesh with explicit axes, they are
        sharded like the channels of `x`. With `train=False` they are returned as given.

    Raises:
        TypeError: an integer input, a `train` that is not a bool, training real statistics on
            complex input.
        ValueError: statistics that have another width, are narrower than float32 or lack an entry,
            a scale of the wrong shape, one value per channel in training, an axis name that is not
            mapped, a momentum outside [0, 1], and the like; the message says what would work.

    Conventions:
        Momentum is the weight of the old value, as in Flax and Keras (PyTorch's momentum is 1 minus
        this). The running variance is biased, as in Flax, Haiku and Keras (PyTorch: unbiased).
        Epsilon is 1e-5, as in Flax and PyTorch (Keras: 1e-3).

    References:
        Ioffe and Szegedy, "Batch normalization: accelerating deep network training by reducing
        internal covariate shift", 2015, algorithms 1 and 2.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
        >>> y, stats = jn.batch_norm(x, jn.init_batch_stats(2), train=True, momentum=0.9)
        >>> print(y.round(3), stats["mean"])
        [[-1. -1.]
         [ 1.  1.]] [0.20000005 2.0000005 ]
    """
    arguments = checked(
        x,
        stats,
        scale,
        bias,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        channel_axis=channel_axis,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        skip_nonfinite=skip_nonfinite,
    )
    if arguments.evaluates:
        return arguments.evaluated(), stats
    scope, axis_size = arguments.whole_batch(axis_name, axis_index_groups)
    y, m = arguments.normalized(scope)
    return y, arguments.updated(arguments.with_known_count(m, axis_size))


@_checks.mask_is_called("where")
def ghost_batch_norm(
    x: ArrayLike,
    stats: _states.BatchStats,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    train: bool,
    ghost_size: int | None = None,
    num_ghosts: int | None = None,
    momentum: ArrayLike | None = 0.99,
    epsilon: ArrayLike = 1e-5,
    channel_axis: _axes.Axes = -1,
    where: ArrayLike | None = None,
    axis_name: _axes.AxisName | None = None,
    axis_index_groups: _axes.AxisIndexGroups = None,
    skip_nonfinite: bool = False,
) -> tuple[jax.Array, Any]:
    """Normalize each contiguous slice of the batch on its own (ghost batch normalization).

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, with the mean and the biased variance of
    each channel over one slice, a ghost. The running statistics are updated once, with the moments
    of all ghosts merged (the variance within and between them), so the update is that of the whole
    batch.

    Args:
        ghost_size: the number of examples (along axis 0) in a ghost. Give either this or
            `num_ghosts`.
        num_ghosts: the number of ghosts in the batch. Give either this or `ghost_size`.
        axis_name: mapped axis or axes to merge the running statistics over; each device has its
            own ghosts.

    The other arguments, the results and the errors are those of `batch_norm`; the channels cannot
    be on axis 0, the batch axis. Evaluation takes a batch of any size.

    Conventions:
        Ghosts are contiguous, as in Hoffer's code (TensorFlow's `virtual_batch_size` strides
        through the batch); Hoffer's code updates the running statistics once for each ghost.

    References:
        Hoffer, Hubara and Soudry, "Train longer, generalize better", 2017, algorithm 1.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
        >>> y, stats = jn.ghost_batch_norm(x, jn.init_batch_stats(1), train=True, ghost_size=2)
        >>> print(y[:, 0].round(3))
        [-1.  1. -1.  1.]
    """
    arguments = checked(
        x,
        stats,
        scale,
        bias,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        channel_axis=channel_axis,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        skip_nonfinite=skip_nonfinite,
    )
    _axes.check_ghosts(num_ghosts, ghost_size)
    if 0 in arguments.channels:
        raise ValueError(
            f"channel_axis={channel_axis!r} includes axis 0, the batch axis, which is split into "
            f"ghosts; move the channels to another axis. {_axes.BATCH_AXIS}"
        )
    if arguments.evaluates:
        return arguments.evaluated(), stats
    batch, *rest = arguments.x.shape
    size = _axes.ghost_size_of(batch, num_ghosts, ghost_size)
    ghosts = batch // size if num_ghosts is None else num_ghosts
    _checks.check_values_per_channel((size, *rest), arguments.reduced, 1, "ghosts")
    shards = explicit_shards(arguments.x, 0)
    # A ghost that lies on several devices is measured in one slice for each, which then merge: axis
    # 0 takes the place of the channels, and a group of `slices` entries is a ghost.
    slices = 1 if shards == 1 else shards // math.gcd(ghosts, shards)
    split = arguments.split(ghosts * slices, size // slices)
    y, m = split.normalized(Scope(split.reduced, 0, slices, ghosts=slices == 1))
    axis_size = _axes.mapped_size(axis_name, axis_index_groups)
    whole = sync_moments(merge_moments_axis(m, 0), axis_name, axis_index_groups)
    return y.reshape(arguments.x.shape), arguments.updated(
        arguments.with_known_count(whole, axis_size)
    )


def default_r_max(step: Any) -> jax.Array:
    """The paper's schedule of `r_max`: 1 for 5,000 steps, then linearly to 3 at step 40,000."""
    return _interpolated(step, (5e3, 4e4), (1.0, 3.0))


def default_d_max(step: Any) -> jax.Array:
    """The paper's schedule of `d_max`: 0 for 5,000 steps, then linearly to 5 at step 25,000."""
    return _interpolated(step, (5e3, 2.5e4), (0.0, 5.0))


def _interpolated(step: Any, steps: tuple[float, float], limits: tuple[float, float]) -> jax.Array:
    """A limit that changes linearly between two steps."""
    (begin, end), (first, last) = steps, limits
    share = jnp.clip((jnp.asarray(step, jnp.float32) - begin) / (end - begin), 0, 1)
    return first + (last - first) * share


@_checks.mask_is_called("where")
def batch_renorm(
    x: ArrayLike,
    stats: _states.BatchStats,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    train: bool,
    r_max: ArrayLike | Schedule = default_r_max,
    d_max: ArrayLike | Schedule = default_d_max,
    momentum: ArrayLike | None = 0.99,
    epsilon: ArrayLike = 1e-5,
    channel_axis: _axes.Axes = -1,
    where: ArrayLike | None = None,
    axis_name: _axes.AxisName | None = None,
    axis_index_groups: _axes.AxisIndexGroups = None,
    skip_nonfinite: bool = False,
) -> tuple[jax.Array, Any]:
    """Normalize over the batch, corrected by the running statistics (batch renormalization).

    y = ((x - m_B) / s_B * r + d) * scale + bias, with r = clip(s_B / s, 1 / r_max, r_max) and
    d = clip((m_B - m) / s, -d_max, d_max). Here m_B and s_B are the mean and sqrt(var + epsilon)
    of the batch, and m and s those of the running statistics before this step's update; no
    gradient goes through r and d. As long as nothing is clipped, training gives the same result as
    evaluation.

    Args:
        stats: running statistics as from `init_renorm_stats(C)`, which count the steps.
        r_max: a number >= 1, or a schedule: a function of `stats["steps"]`, such as optax's.
        d_max: a number >= 0, or a schedule. The default schedules are the paper's: r_max = 1 and
            d_max = 0 for 5,000 steps (plain batch normalization); then r_max grows linearly to 3
            at step 40,000, and d_max to 5 at step 25,000.

    The other arguments, the results and the errors are those of `batch_norm`.

    Conventions:
        The running variance is an average of variances (Keras averages the standard deviation).

    References:
        Ioffe, "Batch renormalization: towards reducing minibatch dependence in batch-normalized
        models", 2017, algorithm 1 and section 5.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[1.0], [3.0]])
        >>> stats = jn.init_renorm_stats(1)
        >>> y, stats = jn.batch_renorm(x, stats, train=True, r_max=3.0, d_max=5.0)
        >>> print(y[:, 0].round(2), stats["steps"])
        [1. 3.] 1
    """
    arguments = checked(
        x,
        stats,
        scale,
        bias,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        channel_axis=channel_axis,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        skip_nonfinite=skip_nonfinite,
        entries=("mean", "var", "steps"),
        init_stats="init_renorm_stats",
    )
    r_max = _limit("r_max", r_max, 1.0)
    d_max = _limit("d_max", d_max, 0.0)
    if arguments.evaluates:
        return arguments.evaluated(), stats
    scope, axis_size = arguments.whole_batch(axis_name, axis_index_groups)
    centered = measure_centered(arguments.x, scope, arguments.mask)
    centered = sync_centered(centered, axis_name, axis_index_groups)
    m = arguments.with_known_count(centered.moments, axis_size)
    steps = stats["steps"]
    corrections = _corrections(arguments, m, r_max(steps), d_max(steps))
    centered = centered._replace(count=m.count)
    return arguments.standardized(centered, scope, renorm=corrections), arguments.updated(m)


def _corrections(
    arguments: Arguments, m: Moments, r_max: ArrayLike, d_max: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """r and d, without gradients; 1 and 0 where the count is 0."""
    running = running_moments(arguments.stats, m.mean.dtype)
    m, running = jax.lax.stop_gradient((m, running))
    r_max, d_max = (jnp.asarray(limit, m.var.dtype) for limit in (r_max, d_max))
    s_batch, s = jnp.sqrt(m.var + arguments.epsilon), jnp.sqrt(running.var + arguments.epsilon)
    r = jnp.clip(s_batch / s, 1 / r_max, r_max)
    d = _clip((m.mean - running.mean) / s.astype(m.mean.dtype), d_max)
    seen = m.count > 0
    return jnp.where(seen, r, 1).astype(m.mean.dtype), jnp.where(seen, d, 0)


def _clip(d: jax.Array, limit: jax.Array) -> jax.Array:
    """Clip d to +- limit, for complex d its real and imaginary part each."""
    if jnp.isrealobj(d):
        return jnp.clip(d, -limit, limit)
    return jax.lax.complex(_clip(d.real, limit), _clip(d.imag, limit))


def _limit(name: str, limit: ArrayLike | Schedule, low: float) -> Schedule:
    """Return a schedule as it is, and a number as a constant schedule."""
    if callable(limit):
        return limit
    _checks.check_number(name, limit, low, finite=False)
    return lambda _: limit
