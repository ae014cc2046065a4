"""Online normalization: by statistics over time, for streams of single examples.

The forward pass standardizes each example by the running moments of those before it. The true
gradient would reach back through all of them; the backward pass keeps two running errors instead,
and steers the gradient by them until it is orthogonal to what normalizing removes: the output and
the ones. Both are recurrences in rows of statistics; what touches the examples is done for all at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes
from jaxnorm import states as _states
from jaxnorm.arrays import only
from jaxnorm.running import init_batch_stats, promoted_dtype, running_moments
from jaxnorm.standardize import standardize
from jaxnorm.statistics import Moments, Scope, count_of, divisor, measure, merge_moments

__all__ = ["init_online_stats", "online_norm"]

Control = tuple[jax.Array, jax.Array]


def init_online_stats(
    num_channels: int | Sequence[int], *, dtype: Any = jnp.float32
) -> dict[str, jax.Array]:
    """As `init_batch_stats`, and the errors of the two control processes, which start at zero.

    Args:
        num_channels: the width C, or the shape of several channel axes in ascending order.
        dtype: of all entries; float32, or wider to keep the precision of wider inputs.

    Returns:
        {"mean": zeros, "var": ones, "control_y": zeros, "control_x": zeros}, each dtype[C].

    Raises:
        TypeError: a dtype that is not a real floating one.
        ValueError: a width that is not positive, a dtype narrower than float32.

    Example:
        >>> import jaxnorm as jn
        >>> sorted(jn.init_online_stats(2))
        ['control_x', 'control_y', 'mean', 'var']
    """
    stats = init_batch_stats(num_channels, dtype=dtype)
    _checks.check_real("dtype", dtype)
    return stats | {key: jnp.zeros_like(stats["mean"]) for key in ("control_y", "control_x")}


@_checks.mask_is_called("where")
def online_norm(
    x: ArrayLike,
    stats: _states.BatchStats,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    train: bool,
    forward_decay: ArrayLike = 0.999,
    backward_decay: ArrayLike = 0.99,
    epsilon: ArrayLike = 1e-5,
    channel_axis: _axes.Axes = -1,
    where: ArrayLike | None = None,
) -> tuple[jax.Array, Any]:
    """Online normalization: each example by the statistics of those before it.

    Axis 0 is time: a batch of N is N steps of one example, forward and backward. Of example t, with
    E and V the mean and the biased variance of a channel over its positions, a = `forward_decay`,
    b = `backward_decay` and r = 1 / sqrt(var + epsilon) of the statistics before it:

        y = (x - mean) r                                    (the result is y * scale + bias)
        mean <- a mean + (1 - a) E[x]
        var  <- a var  + (1 - a) V[x] + a (1 - a) (E[x] - mean)^2

    so the statistics are the merge of the old moments, with weight a, and the example's. With g the
    gradient of y, the gradient of x is not the derivative of these formulas but

        h = g - (1 - b) control_y y,     control_y <- control_y + E[h y]
        x' = h r - (1 - b) control_x,    control_x <- control_x + E[x'].

    The forward pass leaves `control_y` and `control_x` as they are. **Their gradient is their new
    value**: differentiate with respect to `stats` too, and put the gradients of these two entries
    in their place (not in an optimizer, not scaled, not averaged over devices or micro-batches).

    Args:
        x: real floating [N, ..., C] (C at `channel_axis`, not axis 0), N >= 1 in order of time.
        stats: as from `init_online_stats(C)`; those that `freeze_stats` marked are used and not
            updated, whatever `train` is. In training the gradient of their control entries is
            their value; with `train=False`, which does not need these entries, it is zero.
        scale, bias: [C], or None for 1 and 0.
        train: a Python bool: stream these examples, or use `stats` for all of them.
        forward_decay, backward_decay: weights of the old value, in [0, 1].
        epsilon: added to the variance. Like the decays, a number or an array that holds one.
        channel_axis: the axis of the channels; or several, and C is their shape in ascending order.
        where: nonzero where a position counts; broadcasts to `x`. The others change nothing and get
            no gradient; an example with none is passed over.

    Returns:
        (y, stats): y of the shape and dtype of `x`; the statistics with `mean` and `var` after the
        last example, each entry in its shape and dtype; or as given when `train=False`.

    Raises:
        TypeError: an integer or complex input, a `train` that is not a bool.
        ValueError: channels on axis 0, statistics of another width, narrower than float32 or with a
            missing entry, a scale of the wrong shape, a decay outside [0, 1], and the like.

    Conventions:
        One value a channel (N = 1, no positions) is enough in training. The decays are the paper's
        for ImageNet; short runs want smaller ones. The first outputs are as far from standard as
        the input is from mean 0 and variance 1, and `control_y` settles only while
        (1 - b) E[y^2] < 2: standardize what enters the first layer.
        The loss is of one example, or the sum over a batch; a mean over N scales every step's
        gradient by 1 / N, to which the control processes, which are linear, adapt.
        The paper's layer scaling is `rms_norm` after this, over all features of an example.
        There is no `axis_name`: a step is one example after another, so a device streams its own.
        In training there is reverse-mode differentiation only (`grad`, `vjp`), once.

    References:
        Chiley et al., "Online normalization for training neural networks", NeurIPS 2019, section 3.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x, stats = jnp.array([[2.0]]), jn.init_online_stats(1)
        >>> def loss(stats):
        ...     y, new = jn.online_norm(x, stats, train=True, forward_decay=0.75)
        ...     return y.sum(), new
        >>> moved, stats = jax.grad(loss, has_aux=True)(stats)
        >>> stats |= {key: moved[key] for key in ("control_y", "control_x")}
        >>> print(stats["mean"], stats["var"], stats["control_y"].round(2))
        [0.5] [1.5] [2.]
    """
    x = _checks.as_input(x)
    channels = _axes.channel_axes(x.ndim, channel_axis)
    scope = Scope(_axes.positions(x.ndim, channels))
    _checks.check_choice("train", train)
    _checks.check_number("forward_decay", forward_decay, 0.0, 1.0)
    _checks.check_number("backward_decay", backward_decay, 0.0, 1.0)
    _checks.check_epsilon(epsilon)
    _checks.check_real("the input's dtype", x.dtype)
    entries = ("mean", "var", *_states.CONTROL) if train else ("mean", "var")
    _states.check_stats(stats, x, channels, entries, "init_online_stats")
    mask = _checks.as_mask(where, x.shape)
    scale = _checks.as_parameter("scale", scale, x, channels)
    bias = _checks.as_parameter("bias", bias, x, channels)
    options: dict[str, Any] = {"epsilon": epsilon, "mask": mask}
    if not train or "frozen" in stats:
        running = running_moments(stats, _dtypes.statistics_dtype(x.dtype))
        over = Scope((0, *scope.reduced))
        y = standardize(x, running, over, scale, bias, channels, given=True, **options)
        return _kept(y, _control(stats)) if train else y, stats
    wide = x.astype(_dtypes.statistics_dtype(x.dtype))
    before, new = _streamed(stats, measure(wide, scope, mask), forward_decay)
    y = _controlled(scope, wide, before, _control(stats), backward_decay, **options)
    for parameter, combined in ((scale, jnp.multiply), (bias, jnp.add)):
        if parameter is not None:
            y = combined(y, jnp.expand_dims(parameter, (0, *scope.reduced)))
    return y.astype(x.dtype), new


def _control(stats: _states.BatchStats) -> Control:
    """The errors of the two control processes."""
    return stats["control_y"], stats["control_x"]


def _streamed(
    stats: _states.BatchStats, m: Moments, decay: ArrayLike
) -> tuple[Moments, _states.BatchStats]:
    """The running moments before each example, and the statistics after the last.

    Args:
        m: of the examples, along axis 0.
    """
    dtype = promoted_dtype(stats["mean"].dtype, m.mean.dtype)
    m = jax.lax.stop_gradient(Moments(*(part.astype(dtype) for part in m)))
    keep = jnp.asarray(decay).astype(dtype)
    start = jax.lax.stop_gradient(running_moments(stats, dtype))

    def step(old: Moments, seen: Moments) -> tuple[Moments, Moments]:
        weight = jnp.where(seen.count > 0, 1 - keep, 0)
        new = merge_moments(old._replace(count=1 - weight), seen._replace(count=weight))
        return new._replace(count=old.count), old

    end, before = jax.lax.scan(step, start, m)
    new = {key: getattr(end, key).astype(stats[key].dtype) for key in ("mean", "var")}
    return before, type(stats)({**stats, **new})  # type: ignore[call-arg]


def _controlled(
    scope: Scope,
    x: jax.Array,
    before: Moments,
    control: Control,
    decay: ArrayLike,
    *,
    epsilon: ArrayLike,
    mask: jax.Array | None,
) -> jax.Array:
    """Each example standardized by the moments before it, with the gradient that is controlled."""
    before = Moments(*(part.astype(x.dtype) for part in before))
    epsilon, decay = (jnp.asarray(number, x.dtype) for number in (epsilon, decay))
    y: jax.Array = _standardized(scope, x, before, epsilon, decay, mask, control)
    return y


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _standardized(
    scope: Scope,
    x: jax.Array,
    before: Moments,
    epsilon: jax.Array,
    decay: jax.Array,
    mask: jax.Array | None,
    control: Control,
) -> jax.Array:
    return standardize(x, before, scope, None, None, (), epsilon=epsilon, mask=mask, given=True)


def _standardized_forward(scope: Scope, *args: Any) -> tuple[jax.Array, Any]:
    return _standardized(scope, *args), args


def _standardized_backward(scope: Scope, residuals: Any, g: jax.Array) -> tuple[Any, ...]:
    """The gradient of `x`, and the new errors of the two control processes."""
    x, before, epsilon, decay, mask, control = residuals
    y = only(mask, _standardized(scope, *residuals))
    g = only(mask, g)
    power = before.var + epsilon
    rstd = jnp.where(power > 0, jax.lax.rsqrt(jnp.where(power > 0, power, 1)), 0)
    values = count_of(scope, x, mask)

    def mean(part: jax.Array) -> jax.Array:
        return scope.sum(part) / divisor(values)

    def step(control: Control, means: tuple[jax.Array, ...]) -> tuple[Control, Control]:
        of_y, of_x = control
        gy, yy, g, y, rstd, seen = means
        less_y, less_x = ((1 - decay) * error for error in control)
        moved = of_y + gy - less_y * yy, of_x + (g - less_y * y) * rstd - less_x * seen
        return moved, (less_y, less_x)

    seen = (values > 0).astype(x.dtype)
    means = mean(g * y), mean(y * y), mean(g), mean(y), rstd, seen
    start = tuple(error.astype(x.dtype) for error in control)
    end, (less_y, less_x) = jax.lax.scan(step, start, means)
    h = g - scope.broadcast(less_y, x) * y
    dx = only(mask, h * scope.broadcast(rstd, x) - scope.broadcast(less_x, x))
    new = tuple(error.astype(old.dtype) for error, old in zip(end, control, strict=True))
    return dx, None, None, None, None, new


_standardized.defvjp(_standardized_forward, _standardized_backward)


@jax.custom_vjp
def _kept(y: jax.Array, control: Control) -> jax.Array:
    """`y`; the gradient of the control processes' errors is their value: they stay."""
    return y


_kept.defvjp(lambda y, control: (y, control), lambda control, g: (g, control))
