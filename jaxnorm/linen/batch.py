"""Batch normalization, ghost batch normalization and batch renormalization."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import jaxnorm as jn
from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import shells as _shells
from jaxnorm.batch import Schedule, default_d_max, default_r_max
from jaxnorm.linen.variables import assign, evaluates, parameters_of, values_of, variables_of
from jaxnorm.running import sharded
from jaxnorm.shells import Function, Initializer

__all__ = ["BatchNorm", "BatchRenorm", "GhostBatchNorm"]

# `init` takes a batch of any size, as one ghost.
_ONE_GHOST = partial(jn.ghost_batch_norm, num_ghosts=1, ghost_size=None)


class BatchNorm(nn.Module):
    """Batch normalization: `jaxnorm.batch_norm` with its statistics in `batch_stats`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel over the batch.
    x is [..., C] (C at `axis`). y has the shape of x and the dtype `dtype`, by default the dtype
    that x and the parameters promote to.

    `init` does not update the statistics. After `jaxnorm.freeze_stats`, training normalizes with
    the running statistics and does not update them. After `jaxnorm.start_recomputing`, training
    merges all batches into new statistics, beside the old ones. With `momentum=None`, the running
    statistics are the exact moments of all batches so far, and `batch_stats` holds their `count`
    too.

    Attributes:
        use_running_average: True to normalize with the statistics in `batch_stats`, False to
            normalize with the statistics of the batch and update the running ones; give it here or
            in the call, not in both.
        axis: the axis or axes of the channels.
        momentum: the weight of the old statistics (PyTorch's is one minus it); the running variance
            is biased (PyTorch's is not).
        epsilon: added to the variance; 1e-5 as in PyTorch (Keras: 1e-3).
        skip_nonfinite: leave the running statistics unchanged in a step in which a moment of the
            batch is not finite.
        stats_dtype: the dtype of the running statistics, which updates keep, also with wider
            inputs. By default float32, or `param_dtype` if that is wider; complex if the input of
            `init`, `dtype` or `param_dtype` is complex.
        count_per_channel: with `momentum=None`, keep a count for each channel, for masks that
            differ by channel.

    In the call:
        update_stats: False to normalize with the statistics of the batch without updating the
            running ones; `batch_stats` then need not be mutable.
        scale, bias: used as the scale and the bias of a module without its own
            (`use_scale=False`, `use_bias=False`); shapes as for the function: [C], or [N, C] with
            one for each example.

    References:
        Ioffe and Szegedy, "Batch normalization", 2015.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import BatchNorm
        >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
        >>> norm = BatchNorm(use_running_average=False, momentum=0.5)
        >>> variables = norm.init(jax.random.key(0), x)
        >>> y, updates = norm.apply(variables, x, mutable=["batch_stats"])
        >>> print(y.round(3), updates["batch_stats"]["mean"])
        [[-1. -1.]
         [ 1.  1.]] [ 1. 10.]
    """

    use_running_average: bool | None = None
    axis: _axes.Axes = -1
    momentum: ArrayLike | None = 0.99
    epsilon: ArrayLike = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: _axes.AxisName | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    skip_nonfinite: bool = False
    stats_dtype: Any = None
    count_per_channel: bool = False

    @property
    def _function(self) -> Function:
        return jn.batch_norm

    @property
    def _init_stats(self) -> Function:
        return jn.init_batch_stats

    @nn.compact
    @_checks.mask_is_called("mask")
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        update_stats: bool = True,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
    ) -> jax.Array:
        evaluating = evaluates(self, use_running_average)
        _checks.check_choice("update_stats", update_stats)
        initializing = self.is_initializing()
        features = _shells.feature_shape(x, self.axis, "axis")
        variables = variables_of(
            self,
            dict.fromkeys(self._entries(), "batch_stats"),
            partial(self._fresh_stats, x, features),
            required=evaluating and not initializing,
        )
        parameters = parameters_of(self, features, scale=scale, bias=bias)
        one_value_in_init = initializing and x.size == math.prod(features)  # then init evaluates
        y, new = _shells.normalize_with_stats(
            self,
            self._function,
            x,
            values_of(variables),
            *parameters,
            dtype=_shells.result_dtype(self.dtype, x, *parameters),
            mask=mask,
            train=not (evaluating or one_value_in_init),
            synced=not initializing,
        )
        if update_stats and not (evaluating or initializing):
            assign(variables, new)
        return y

    def _entries(self) -> tuple[str, ...]:
        """The names of the running statistics."""
        cumulative = {"momentum": None} if self.momentum is None else {}
        names = _shells.entries(self._init_stats, **cumulative)
        recomputed = self.has_variable("batch_stats", "recomputed")
        return (*names, "recomputed") if recomputed else names

    def _fresh_stats(self, x: jax.Array, features: tuple[int, ...]) -> Any:
        """New running statistics, sharded as the channels of the input are."""
        fresh = self._init_stats(
            features,
            momentum=self.momentum,
            dtype=_shells.stats_dtype(self, x),
            count_per_channel=self.count_per_channel,
        )
        channels = _axes.nonempty_axes(x.ndim, self.axis, "axis")
        return sharded(fresh, x, _axes.other_axes(x.ndim, channels))


class GhostBatchNorm(BatchNorm):
    """Ghost batch normalization: `jaxnorm.ghost_batch_norm` with its statistics in `batch_stats`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel over a slice of the batch
    (a ghost). x is [N, ..., C] (C at `axis`), and axis 0 is split into ghosts of equal size. `init`
    takes a batch of any size, as one ghost. The other arguments are those of `BatchNorm`.

    Attributes:
        ghost_size: the number of examples in a ghost; give this or `num_ghosts`.
        num_ghosts: the number of ghosts in the batch; give this or `ghost_size`.

    References:
        Hoffer, Hubara and Soudry, "Train longer, generalize better", 2017.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import GhostBatchNorm
        >>> norm = GhostBatchNorm(use_running_average=False, ghost_size=2)
        >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
        >>> variables = norm.init(jax.random.key(0), x)
        >>> y, _ = norm.apply(variables, x, mutable=["batch_stats"])
        >>> print(y[:, 0].round(3))
        [-1.  1. -1.  1.]
    """

    ghost_size: int | None = None
    num_ghosts: int | None = None

    @property
    def _function(self) -> Function:
        if self.is_initializing():
            _axes.check_ghosts(self.num_ghosts, self.ghost_size)
            return _ONE_GHOST
        return jn.ghost_batch_norm


class BatchRenorm(BatchNorm):
    """Batch renormalization: `jaxnorm.batch_renorm` with its statistics in `batch_stats`.

    y = ((x - mean) / sqrt(var + epsilon) * r + d) * scale + bias, with the mean and the variance of
    the batch, which r and d correct to the running ones. x is [..., C] (C at `axis`). `batch_stats`
    holds the number of training `steps` too, so schedules work under `jit` and continue from a
    checkpoint. The other arguments are those of `BatchNorm`.

    Attributes:
        r_max, d_max: the bounds of r and d: numbers, or functions of the number of steps; by
            default the paper's schedules.

    References:
        Ioffe, "Batch renormalization", 2017.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import BatchRenorm
        >>> norm = BatchRenorm(use_running_average=False, r_max=3.0, d_max=5.0)
        >>> x = jnp.array([[1.0], [3.0]])
        >>> y, variables = norm.init_with_output(jax.random.key(0), x)
        >>> print(y[:, 0].round(2), variables["batch_stats"]["steps"])
        [1. 3.] 0
    """

    r_max: ArrayLike | Schedule = default_r_max
    d_max: ArrayLike | Schedule = default_d_max

    @property
    def _function(self) -> Function:
        return jn.batch_renorm

    @property
    def _init_stats(self) -> Function:
        return jn.init_renorm_stats
