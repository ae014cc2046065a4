"""Online normalization: normalization by statistics over time, for streams of single examples.

The forward pass standardizes each example by the running moments of the examples before it. The
true gradient would go back through all of them. Instead, the backward pass keeps two running
errors and corrects the gradient by them, so that on average the gradient becomes orthogonal to the
output and to a constant, which normalization removes. Both passes are recurrences in the statistics
of each example; operations on the examples themselves are done for all examples at once.

Glossary:
    control process: a running error of the gradient, as the paper calls it; its new value is
        returned as its gradient.
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
from jaxnorm.affine import affine_of
from jaxnorm.arrays import masked
from jaxnorm.running import init_batch_stats, running_moments
from jaxnorm.scope import Scope, count_of, divisor
from jaxnorm.standardize import standardize
from jaxnorm.statistics import Moments, measure, merge_moments, without_correction

__all__ = ["init_online_stats", "online_norm"]

Control = tuple[jax.Array, jax.Array]


def init_online_stats(
    num_channels: int | Sequence[int], *, dtype: Any = jnp.float32
) -> dict[str, jax.Array]:
    """Make new statistics for `online_norm`: mean 0, variance 1 and two control processes at 0.

    No step changes the shape or the dtype of any entry.

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
    """Online normalization: normalize each example by the statistics of the examples before it.

    Axis 0 is time: a batch of N examples is N steps of one example each, forward and backward. For
    each example, let E and V be the mean and the biased variance of a channel over its positions,
    mean and var the statistics before the example, a = `forward_decay`, b = `backward_decay` and
    r = 1 / sqrt(var + epsilon):

        y = (x - mean) r                                    (the result is y * scale + bias)
        mean <- a mean + (1 - a) E[x]
        var  <- a var  + (1 - a) V[x] + a (1 - a) (E[x] - mean)^2

    The new statistics merge the old moments, with weight a, and the example's, with weight 1 - a.
    If g is the gradient of y, the gradient of x is not the derivative of these formulas but x' in

        h = g - (1 - b) control_y y,     control_y <- control_y + E[h y]
        x' = h r - (1 - b) control_x,    control_x <- control_x + E[x'].

    The forward pass does not change `control_y` and `control_x`. **Their gradient is their new
    value**: differentiate with respect to `stats` too, and replace these two entries by their
    gradients. Do not give these gradients to an optimizer, scale them, or average them over devices
    or micro-batches.

    Args:
        x: real floating [N, ..., C] (C at `channel_axis`, not axis 0), N >= 1 in order of time.
        stats: as from `init_online_stats(C)`. Statistics with the mark of `freeze_stats` are used
            and not updated, whatever `train` is; in training the gradient of their control entries
            is then their old value. With `train=False` these entries are not needed, and their
            gradient is zero.
        scale, bias: [C], or None for 1 and 0; [N, C] and the like give each example its own, as in
            `batch_norm`.
        train: a Python bool. True updates the statistics after each example; False uses `stats` for
            all examples.
        forward_decay, backward_decay: weights of the old value, in [0, 1].
        epsilon: added to the variance. Like the decays, a number or a scalar array.
        channel_axis: the channel axis, or several; C is then their shape, in ascending order.
        where: a mask that broadcasts to `x`, nonzero at the positions to measure. The others change
            nothing and get no gradient; an example without a position to measure is skipped.

    Returns:
        (y, stats): y has the shape and dtype of `x`. stats hold the mean and the variance after the
        last example, with the shapes and dtypes of the given ones; with `train=False` they are
        returned as given.

    Raises:
        TypeError: an integer or complex input, a `train` that is not a bool.
        ValueError: channels on axis 0, statistics that have another width, are narrower than
            float32 or lack an entry, a scale of the wrong shape, a decay outside [0, 1], and the
            like.

    Conventions:
        One value per channel (N = 1, no positions) is enough in training. The decays are the
        paper's for ImageNet; short runs need smaller ones. The first outputs are as far from mean 0
        and variance 1 as the input is, and `control_y` converges only if (1 - b) E[y^2] < 2, so
        standardize the input of the first layer.
        The loss is that of one example, or the sum over a batch; a mean over N scales every step's
        gradient by 1 / N, and the control processes, which are linear, scale with it.
        The paper's layer scaling is `rms_norm` after this function, over all features of an
        example.
        There is no `axis_name`: examples follow one another in time, so each device has a stream
        and statistics of its own.
        In training, only reverse-mode differentiation of first order works (`grad`, `vjp`).

    References:
        Chiley et al., "Online normalization for training neural networks", NeurIPS 2019, section 3.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x, stats = jnp.array([[2.0]]), jn.init_online_stats(1)
        >>> def loss(stats):
        ...     y, new = jn.online_norm(x, stats, train=True, forward_decay=0.75)
        ...     return y.sum(), new
        >>> grads, stats = jax.grad(loss, has_aux=True)(stats)
        >>> stats |= {key: grads[key] for key in ("control_y", "control_x")}
        >>> print(stats["mean"], stats["var"], stats["control_y"].round(2))
        [0.5] [1.5] [2.]
    """
    x = _checks.as_input(x)
    channels = _axes.nonempty_axes(x.ndim, channel_axis, "channel_axis")
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
        running = without_correction(running_moments(stats, _dtypes.statistics_dtype(x.dtype)))
        all_examples = Scope((0, *scope.reduced))
        y = standardize(x, running, all_examples, scale, bias, channels, given=True, **options)
        return _with_control_as_gradient(y, _control(stats)) if train else y, stats
    promoted = x.astype(_dtypes.statistics_dtype(x.dtype))
    before, new = _stream(stats, measure(promoted, scope, mask), forward_decay)
    y = _controlled(scope, promoted, before, _control(stats), backward_decay, **options)
    affine = affine_of(x, scale, bias, channels, mask)
    for parameter, combined in ((affine.scale, jnp.multiply), (affine.bias, jnp.add)):
        if parameter is not None:
            y = combined(y, jnp.expand_dims(parameter, _axes.other_axes(x.ndim, affine.axes)))
    return y.astype(x.dtype), new


def _control(stats: _states.BatchStats) -> Control:
    """The errors of the two control processes."""
    return stats["control_y"], stats["control_x"]


def _stream(
    stats: _states.BatchStats, m: Moments, decay: ArrayLike
) -> tuple[Moments, _states.BatchStats]:
    """The running moments before each example, and the statistics after the last example.

    Args:
        m: the moments of the examples, along axis 0.
    """
    dtype = _dtypes.promoted_dtype(stats["mean"].dtype, m.mean.dtype)
    m = jax.lax.stop_gradient(Moments(*(array.astype(dtype) for array in m)))
    keep = jnp.asarray(decay).astype(dtype)
    start = jax.lax.stop_gradient(running_moments(stats, dtype))

    def step(old: Moments, seen: Moments) -> tuple[Moments, Moments]:
        weight = jnp.where(seen.count > 0, 1 - keep, 0)
        new = merge_moments(old._replace(count=1 - weight), seen._replace(count=weight))
        return new._replace(count=old.count), old

    end, before = jax.lax.scan(step, start, m)
    new = {key: getattr(end, key).astype(stats[key].dtype) for key in ("mean", "var")}
    return before, _states.with_entries(stats, new)


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
    """Each example standardized by the moments before it, with the corrected gradient."""
    before = Moments(*(array.astype(x.dtype) for array in before))
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
    m = without_correction(before)
    return standardize(x, m, scope, None, None, (), epsilon=epsilon, mask=mask, given=True)


def _standardized_forward(scope: Scope, *args: Any) -> tuple[jax.Array, Any]:
    return _standardized(scope, *args), args


def _standardized_backward(scope: Scope, residuals: Any, g: jax.Array) -> tuple[Any, ...]:
    """The gradient of `x`, and the new errors of the two control processes."""
    x, before, epsilon, decay, mask, control = residuals
    y = masked(_standardized(scope, *residuals), mask)
    g = masked(g, mask)
    power = before.var + epsilon
    rstd = jnp.where(power > 0, jax.lax.rsqrt(jnp.where(power > 0, power, 1)), 0)
    values = count_of(scope, x, mask)

    def mean(array: jax.Array) -> jax.Array:
        return scope.sum(array) / divisor(values)

    def step(control: Control, means: tuple[jax.Array, ...]) -> tuple[Control, Control]:
        error_y, error_x = control
        gy, yy, g, y, rstd, seen = means
        step_y, step_x = ((1 - decay) * error for error in control)
        new = error_y + gy - step_y * yy, error_x + (g - step_y * y) * rstd - step_x * seen
        return new, (step_y, step_x)

    seen = (values > 0).astype(x.dtype)
    means = mean(g * y), mean(y * y), mean(g), mean(y), rstd, seen
    start = tuple(error.astype(x.dtype) for error in control)
    end, (step_y, step_x) = jax.lax.scan(step, start, means)
    h = g - scope.broadcast(step_y, x) * y
    dx = masked(h * scope.broadcast(rstd, x) - scope.broadcast(step_x, x), mask)
    new = tuple(error.astype(old.dtype) for error, old in zip(end, control, strict=True))
    return dx, None, None, None, None, new


_standardized.defvjp(_standardized_forward, _standardized_backward)


@jax.custom_vjp
def _with_control_as_gradient(y: jax.Array, control: Control) -> jax.Array:
    """`y`; the gradient of the control processes' errors is their value, so they do not change."""
    return y


_with_control_as_gradient.defvjp(lambda y, control: (y, control), lambda control, g: (g, control))
