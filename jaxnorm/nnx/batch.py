"""Batch normalization, ghost batch normalization and batch renormalization."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax.typing import ArrayLike

import jaxnorm as jn
from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import shells as _shells
from jaxnorm.batch import Schedule, default_d_max, default_r_max
from jaxnorm.nnx.variables import (
    Metadata,
    Stateful,
    assign,
    evaluates,
    parameter,
    parameters_of,
    promoted,
    values_of,
    variables_of,
)
from jaxnorm.shells import Function, Initializer

__all__ = ["BatchNorm", "BatchRenorm", "GhostBatchNorm"]


class BatchNorm(Stateful):
    """Batch normalization: `jaxnorm.batch_norm` with its statistics in `nnx.BatchStat`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel over the batch.
    x is [..., C] (C at `axis`). y has the shape of x and the dtype `dtype`, by default the dtype
    that x and the variables promote to.

    `train()` and `eval()` choose between the statistics of the batch and the running statistics.
    After `freeze_stats`, training normalizes with the running statistics and does not update them.
    After `start_recomputing`, training merges all batches into new statistics, beside the old ones.
    With `momentum=None`, the running statistics are the exact moments of all batches so far, and
    an `nnx.BatchStat` holds their `count` too.

    Args:
        use_running_average: True to normalize with the running statistics, False to normalize with
            the statistics of the batch and update the running ones; here or in the call, which
            takes precedence.
        axis: the axis or axes of the channels.
        momentum: the weight of the old statistics (PyTorch's is one minus it); the running variance
            is biased (PyTorch's is not).
        epsilon: added to the variance; 1e-5 as in PyTorch (Keras: 1e-3).
        skip_nonfinite: leave the running statistics unchanged in a step in which a moment of the
            batch is not finite.
        stats_dtype: the dtype of the running statistics, which updates keep, also with wider
            inputs. By default float32, or `param_dtype` if that is wider; complex if `dtype` or
            `param_dtype` is complex (complex inputs need that).
        count_per_channel: with `momentum=None`, keep a count for each channel, for masks that
            differ by channel.

    In the call:
        update_stats: False to normalize with the statistics of the batch without updating the
            running ones.
        scale, bias: used as the scale and the bias of a module without its own
            (`use_scale=False`, `use_bias=False`); shapes as for the function: [C], or [N, C] with
            one for each example.

    References:
        Ioffe and Szegedy, "Batch normalization", 2015.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import BatchNorm
        >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
        >>> norm = BatchNorm(2, momentum=0.5, rngs=nnx.Rngs(0))
        >>> print(norm(x).round(3), norm.mean[...])
        [[-1. -1.]
         [ 1.  1.]] [ 1. 10.]
        >>> norm.eval()
        >>> print(norm(x)[:, 0].round(3))
        [0. 2.]
    """

    mean: nnx.BatchStat[jax.Array]
    var: nnx.BatchStat[jax.Array]
    recomputed: Any  # present from start_recomputing to finish_recomputing

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: _axes.Axes = -1,
        momentum: ArrayLike | None = 0.99,
        epsilon: ArrayLike = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = nnx.initializers.zeros,
        scale_init: Initializer = nnx.initializers.ones,
        axis_name: _axes.AxisName | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = MappingProxyType({}),
        scale_metadata: Metadata = MappingProxyType({}),
        skip_nonfinite: bool = False,
        stats_dtype: Any = None,
        count_per_channel: bool = False,
    ):
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.skip_nonfinite = skip_nonfinite
        self.stats_dtype = stats_dtype
        self.count_per_channel = count_per_channel
        self.frozen = False
        stats = self._init_stats(
            num_features,
            momentum=momentum,
            dtype=_shells.stats_dtype(self),
            count_per_channel=count_per_channel,
        )
        for key, value in stats.items():
            setattr(self, key, nnx.BatchStat(value))
        self.scale = parameter(self, use_scale, scale_init, rngs, scale_metadata)
        self.bias = parameter(self, use_bias, bias_init, rngs, bias_metadata)

    @property
    def _function(self) -> Function:
        return jn.batch_norm

    @property
    def _init_stats(self) -> Function:
        return jn.init_batch_stats

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
        self._check_momentum()
        features = _shells.feature_shape(x, self.axis, "axis")
        variables = variables_of(self)
        x, parameters, stats, dtype = promoted(
            self,
            x,
            parameters_of(self, features, scale=scale, bias=bias),
            values_of(variables, features),
            evaluating=evaluating,
        )
        y, new = _shells.normalize_with_stats(
            self,
            self._function,
            x,
            stats,
            *parameters,
            dtype=dtype,
            mask=mask,
            train=not evaluating,
        )
        if update_stats and not evaluating:
            assign(variables, new)
        return y

    def _check_momentum(self) -> None:
        """Check that the count exists that `momentum=None` needs, which the constructor makes."""
        if self.momentum is None and not hasattr(self, "count"):
            raise ValueError(
                "momentum=None was set on a module that was built with another momentum and has no "
                "count; build it with momentum=None, or restart the statistics with a count of 0: "
                "module.count = nnx.BatchStat(jnp.zeros(()))"
            )


class GhostBatchNorm(BatchNorm):
    """Ghost batch normalization: `jaxnorm.ghost_batch_norm` with its statistics in `nnx.BatchStat`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel over a slice of the batch
    (a ghost). x is [N, ..., C] (C at `axis`), and axis 0 is split into ghosts of equal size.

    Args:
        ghost_size: the number of examples in a ghost; give this or `num_ghosts`.
        num_ghosts: the number of ghosts in the batch; give this or `ghost_size`.
        options: the arguments of `BatchNorm`.

    References:
        Hoffer, Hubara and Soudry, "Train longer, generalize better", 2017.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import GhostBatchNorm
        >>> norm = GhostBatchNorm(1, ghost_size=2, rngs=nnx.Rngs(0))
        >>> print(norm(jnp.array([[1.0], [3.0], [10.0], [30.0]]))[:, 0].round(3))
        [-1.  1. -1.  1.]
    """

    def __init__(
        self,
        num_features: int,
        *,
        ghost_size: int | None = None,
        num_ghosts: int | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        _axes.check_ghosts(num_ghosts, ghost_size)
        super().__init__(num_features, rngs=rngs, **options)
        self.ghost_size = ghost_size
        self.num_ghosts = num_ghosts

    @property
    def _function(self) -> Function:
        return jn.ghost_batch_norm


class BatchRenorm(BatchNorm):
    """Batch renormalization: `jaxnorm.batch_renorm` with its statistics in `nnx.BatchStat`.

    y = ((x - mean) / sqrt(var + epsilon) * r + d) * scale + bias, with the mean and the variance of
    the batch, which r and d correct to the running ones. x is [..., C] (C at `axis`). An
    `nnx.BatchStat` holds the number of training `steps` too, so schedules work under `nnx.jit` and
    continue from a checkpoint.

    Args:
        r_max, d_max: the bounds of r and d: numbers, or functions of the number of steps; by
            default the paper's schedules.
        options: the arguments of `BatchNorm`.

    References:
        Ioffe, "Batch renormalization", 2017.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import BatchRenorm
        >>> norm = BatchRenorm(1, r_max=3.0, d_max=5.0, rngs=nnx.Rngs(0))
        >>> print(norm(jnp.array([[1.0], [3.0]]))[:, 0].round(2), norm.steps[...])
        [1. 3.] 1
    """

    steps: nnx.BatchStat[jax.Array]

    def __init__(
        self,
        num_features: int,
        *,
        r_max: ArrayLike | Schedule = default_r_max,
        d_max: ArrayLike | Schedule = default_d_max,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(num_features, rngs=rngs, **options)
        self.r_max = r_max
        self.d_max = d_max

    @property
    def _function(self) -> Function:
        return jn.batch_renorm

    @property
    def _init_stats(self) -> Function:
        return jn.init_renorm_stats
