"""Rewards scaled by the deviation of their discounted returns.

Glossary:
    return: the discounted sum of the rewards of one environment since its episode began.
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
from jaxnorm.arrays import broadcast_mask
from jaxnorm.input_stats import init_input_stats, updated
from jaxnorm.inputs import check_standardizing, power_of, standardized
from jaxnorm.kernels.varying import match_varying

__all__ = ["init_return_stats", "scale_rewards", "update_return_stats"]

_EACH = "jaxnorm.update_return_stats(fit[key], x[key], done[key], discount=...)"


def init_return_stats(
    num_environments: int | Sequence[int], *, dtype: Any = jnp.float32
) -> dict[str, Any]:
    """Make a new fit to discounted returns, of no rewards yet, with which scaling changes nothing.

    `update_return_stats` updates the fit, and `scale_rewards` scales rewards by it. No update
    changes the shape or the dtype of any entry.

    Args:
        num_environments: the number of environments that run in parallel, or their shape; () for
            one environment, whose rewards are scalars.
        dtype: of every entry; float32, or float64 for more than 2^24 steps, as for
            `init_input_stats`.

    Returns:
        {"count": 0, "mean": 0, "var": 1, "min": inf, "max": -inf}, each dtype[], the fit to all
        returns so far; and "returns", dtype[num_environments] zeros, the present return of each
        environment.

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a number that is not positive, a dtype narrower than float32.

    Example:
        >>> import jaxnorm as jn
        >>> print(jn.init_return_stats(3)["returns"])
        [0. 0. 0.]
    """
    shape = _axes.as_shape("num_environments", num_environments)
    return init_input_stats((), dtype=dtype) | {"returns": jnp.zeros(shape, dtype)}


@_checks.mask_is_called("where")
def update_return_stats(
    fit: _states.BatchStats,
    reward: ArrayLike,
    done: ArrayLike,
    *,
    discount: ArrayLike,
    time_axis: int | None = None,
    where: ArrayLike | None = None,
    axis_name: _axes.AxisName | None = None,
    axis_index_groups: _axes.AxisIndexGroups = None,
    decay: ArrayLike = 1.0,
) -> Any:
    """Update a fit to discounted returns with the rewards of a step, or of several steps.

    The return of each environment becomes discount * return + reward. The moments of the new
    returns are merged into those of the fit, as by `update_input_stats`. Then the return of each
    environment that is done becomes 0. No gradient goes through a fit.

    Args:
        fit: as from `init_return_stats`; a fit with the mark of `freeze_stats` is returned as it
            is.
        reward: floating, of the shape of the environments; with a `time_axis`, the rewards of
            successive steps along this axis, as of a rollout [T, N].
        done: nonzero where this step ended the episode; broadcasts to `reward`.
        discount: the discount of the return, gamma, in [0, 1].
        time_axis: the time axis of `reward`; None for one step. The result is that of one call for
            each step, up to rounding, but the moments are measured, merged and synced at once.
        where: a mask that broadcasts to `reward`, nonzero at the rewards to count. The others, NaN
            included, change neither the return nor the fit, but `done` still ends the return.
        axis_name, axis_index_groups: as for `update_input_stats`. Each device keeps the returns of
            its own environments.
        decay: as for `update_input_stats`, applied once in each call.

    Returns:
        The new fit, with the shapes and dtypes of the given one.

    Raises:
        TypeError: integer or complex rewards.
        ValueError: a fit for other environments, that is narrower than float32 or lacks an entry; a
            `done` or a mask that does not broadcast, an axis name that is not mapped, a discount or
            a decay outside [0, 1].

    Conventions:
        This is the order of stable-baselines3's `VecNormalize`. It starts from a count of 1e-4
        (with mean 0 and variance 1), this function from 0. gymnasium's `NormalizeReward` starts
        from 1e-4 too. There, a termination sets the return to 0 before the reward of its step is
        added, and a truncation does not: `update_return_stats({**fit, "returns": fit["returns"] *
        (1 - terminated)}, reward, False, discount=discount)`. gymnasium's vector form with
        autoreset in the same step also sets it to 0 after the reward of every step that is done;
        with autoreset in the next step, it leaves out the step that only resets, as `where` does
        here.

    References:
        Engstrom et al., "Implementation matters in deep policy gradients: a case study on PPO and
        TRPO", 2020, section 3 (reward scaling).

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> fit = jn.init_return_stats(2)
        >>> for reward, done in (([1.0, 3.0], [0, 1]), ([1.0, 3.0], [0, 0])):
        ...     fit = jn.update_return_stats(fit, jnp.array(reward), jnp.array(done), discount=0.5)
        >>> print(fit["returns"], fit["mean"], fit["count"])
        [1.5 3. ] 2.125 4.0
    """
    _checks.check_number("discount", discount, 0.0, 1.0)
    _checks.check_decay(decay)
    _axes.check_axis_index_groups(axis_name, axis_index_groups)
    reward = _checks.as_real_input(reward, _EACH)
    time = () if time_axis is None else (_axes.single_axis(reward.ndim, time_axis, "time_axis"),)
    shape = tuple(reward.shape[axis] for axis in _axes.other_axes(reward.ndim, time))
    _states.check_return_fit(fit, shape)
    ended = _checks.as_flags("`done`", done, reward.shape)
    mask = _checks.as_mask(where, reward.shape)
    if "frozen" in fit:
        return fit
    dtype = _dtypes.promoted_dtype(reward.dtype, fit["returns"].dtype)
    running = jax.lax.stop_gradient(fit["returns"].astype(dtype))
    reward = jax.lax.stop_gradient(reward.astype(dtype))
    step, inputs = partial(_step, discount), _broadcast(reward, ended, mask)
    if time:
        over_time = [jnp.moveaxis(array, *time, 0) for array in inputs]
        running, *over_time = match_varying([running, *over_time])  # as a scan needs
        running, returns = jax.lax.scan(step, running, over_time)
        returns = jnp.moveaxis(returns, 0, *time)
    else:
        running, returns = step(running, inputs)
    every = tuple(range(returns.ndim))
    new = updated(fit, returns, every, mask, decay, axis_name, axis_index_groups)
    return _states.with_entries(new, {"returns": running.astype(fit["returns"].dtype)})


def _broadcast(
    reward: jax.Array, ended: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The rewards, which episodes ended, and which rewards count, in the shape of the rewards."""
    counts = jnp.ones_like(reward, bool) if mask is None else broadcast_mask(mask, reward)
    return reward, broadcast_mask(ended, reward), counts


def _step(
    discount: ArrayLike, running: jax.Array, inputs: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The returns that the next step goes on with, and those of this step."""
    reward, ended, counts = inputs
    returns = jnp.asarray(discount, running.dtype) * running + reward
    returns = jnp.where(counts, returns, running)
    return jnp.where(ended, 0, returns), returns


def scale_rewards(
    reward: ArrayLike,
    fit: _states.BatchStats,
    *,
    clip: ArrayLike | None = None,
    epsilon: ArrayLike = 1e-8,
    invert: bool = False,
) -> jax.Array:
    """Scale rewards by the standard deviation of their discounted returns.

    y = reward / sqrt(var + epsilon), then clipped to +- clip; the inverse is
    reward = y * sqrt(var + epsilon). The mean is not subtracted, because that would change what is
    rewarded. Where var is 0, as for a single return or equal returns, the divisor is 1. A new fit
    changes nothing except by epsilon.

    Args:
        reward: floating, of any shape.
        fit: as from `update_return_stats`.
        clip: the bound of |y|, a positive number; None for no bound.
        epsilon: added to the variance.
        invert: compute rewards from y, up to rounding; not with `clip`, which has no inverse.

    Returns:
        y of the shape and dtype of `reward`, computed in float32, or wider where `reward` or the
        fit is.

    Raises:
        TypeError: integer or complex rewards.
        ValueError: a fit that is narrower than float32 or lacks an entry, a `clip` that is not
            positive, `clip` with `invert`.

    Conventions:
        gymnasium's `NormalizeReward` does not clip; stable-baselines3's `VecNormalize` has
        clip=10. Where the returns are equal, as at the first step, both still divide by
        sqrt(var + epsilon), which scales the rewards up.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> reward = jnp.array([10.0, 30.0])
        >>> fit = jn.init_return_stats(2)
        >>> fit = jn.update_return_stats(fit, reward, jnp.zeros(2), discount=0.99)
        >>> print(jn.scale_rewards(reward, fit))
        [1. 3.]
    """
    check_standardizing(epsilon, clip, invert)
    reward = _checks.as_real_input(reward, _EACH)
    _states.check_return_fit(fit)
    dtype = _dtypes.promoted_dtype(reward.dtype, fit["var"].dtype)
    power = power_of(jnp.asarray(fit["var"], dtype), epsilon, center=False)
    y = standardized(reward.astype(dtype), None, power, clip=clip, invert=invert)
    return y.astype(reward.dtype)
