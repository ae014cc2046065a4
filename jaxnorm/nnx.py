"""Flax NNX modules: thin shells that create variables and call the functions.

The five normalizations that NNX has take NNX's arguments under NNX's names and make NNX's
variables: `nnx.Param` `scale` and `bias`, `nnx.BatchStat` `mean` and `var`; so replacing the import
is the whole migration. Formulas, conventions and errors are the functions'. The arguments that all
modules share:

    num_features: how many values the scale and the bias have: of several feature axes, their
        product.
    dtype: of the result; by default what the input and the variables promote to. Nothing is rounded
        to it before the result is.
    param_dtype: of the parameters.
    use_scale, use_bias, scale_init, bias_init: which parameters there are, and how they start.
    scale_metadata, bias_metadata: of their `nnx.Param`, for example its sharding.
    axis_name, axis_index_groups: mapped axes to merge statistics over.
    use_fast_variance: taken for compatibility, without effect: the exact form is always used.
    promote_dtype: a function of the input and the variables, called as
        `promote_dtype((x, ...), dtype=dtype)`, whose results are used in their place. Flax's own,
        the default, would round them: of it only the dtype of the result is taken.
    rngs: the keys of the parameters.

and in the call

    mask: nonzero where a position counts; broadcasts to the input.

Statistics are float32 at least: narrower ones that a checkpoint brings are widened in each call,
and the first training step keeps them so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.module import first_from
from flax.nnx.nn import dtypes
from jax.typing import ArrayLike

import jaxnorm as jn
from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import modules as _modules
from jaxnorm import pairs as _pairs
from jaxnorm import recipes as _recipes
from jaxnorm import running as _running
from jaxnorm.batch import Schedule, default_d_max, default_r_max
from jaxnorm.modules import Function, Initializer

Metadata = Mapping[str, Any]
Model = TypeVar("Model", bound=nnx.Module)
_CALL = "__call__"
_EXCHANGE = "whose place jaxnorm.nnx.BatchNorm takes with the same arguments and variables"


class BatchNorm(nnx.Module):
    """Batch normalization: `jaxnorm.batch_norm` with its statistics in `nnx.BatchStat`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel over the batch.
    x is [..., C] (C at `axis`), and y of its shape, in `dtype`, by default what x and
    the variables promote to.

    `train()` and `eval()` choose between measuring and the running statistics, which `freeze_stats`
    makes those of training too, and beside which `start_recomputing` merges all batches.
    `momentum=None` merges all batches exactly and keeps their `count` in an `nnx.BatchStat` too.

    Args:
        use_running_average: True to normalize with the running statistics, False to measure the
            batch and update them; here or in the call, which takes precedence.
        axis: the axis or axes of the channels.
        momentum: the weight of the old statistics (PyTorch's is one minus it); the variance
            that is kept is biased (PyTorch's is not).
        epsilon: added to the variance; 1e-5 as in PyTorch (Keras: 1e-3).
        skip_nonfinite: leave the running statistics as they were in a step whose moments are not
            finite.
        stats_dtype: of the running statistics, which keep it: by default float32, or wider where
            `param_dtype` is, and complex where that or `dtype` is, as complex inputs need. Wider
            inputs are remembered as precisely as it is.
        count_per_channel: with `momentum=None`, a count for each channel, for masks that differ by
            channel.

    In the call:
        update_stats: False to measure the batch without updating the statistics.

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
    recomputed: Any  # there while they are

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
            dtype=_modules.stats_dtype(self),
            count_per_channel=count_per_channel,
        )
        for key, value in stats.items():
            setattr(self, key, nnx.BatchStat(value))
        self.scale = _parameter(self, use_scale, scale_init, rngs, scale_metadata)
        self.bias = _parameter(self, use_bias, bias_init, rngs, bias_metadata)

    def _function(self) -> Function:
        return _modules.batch_norm(self)

    def _init_stats(self, num_features: int, **options: Any) -> dict[str, jax.Array]:
        return jn.init_batch_stats(num_features, **options)

    @_checks.mask_is_called("mask")
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        update_stats: bool = True,
    ) -> jax.Array:
        evaluating = _evaluates(self, use_running_average)
        _checks.check_choice("update_stats", update_stats)
        self._check_momentum()
        features = _modules.feature_shape(x, self.axis, "axis")
        variables = _variables(self)
        stats = _each(lambda variable: _value(variable, features), variables)
        x, (mean, var), parameters, dtype = _promoted(
            self,
            x,
            (stats["mean"], stats["var"]),
            (_value(self.scale, features), _value(self.bias, features)),
        )
        y, new = _modules.normalize_batch(
            self,
            self._function(),
            x,
            {**stats, "mean": mean, "var": var} if evaluating else stats,
            *parameters,
            dtype=dtype,
            mask=mask,
            train=not evaluating,
        )
        if update_stats and not evaluating:
            _each(lambda v, value: v.set_value(jax.lax.stop_gradient(_flat(value))), variables, new)
        return y

    def _check_momentum(self) -> None:
        """The cumulative merge needs the count that `momentum=None` in the constructor makes."""
        if self.momentum is None and not hasattr(self, "count"):
            raise ValueError(
                "momentum=None was set on a module that was built with another momentum and keeps "
                "no count of what was merged; build it with momentum=None, or start a count, and "
                "with it the statistics, here: module.count = nnx.BatchStat(jnp.zeros(()))"
            )

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Called by `nnx.view`. (`nnx.view_info` reads the arguments indented by two.)

        Args:
          use_running_average: True to normalize with the running statistics, False to measure.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


class GhostBatchNorm(BatchNorm):
    """Batch normalization in ghosts: `jaxnorm.ghost_batch_norm`; otherwise as `BatchNorm`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel over its slice of the
    batch. x is [N, ..., C] (C at `axis`): axis 0 is cut into ghosts.

    Args:
        ghost_size: examples in a ghost; exclusive with `num_ghosts`.
        num_ghosts: ghosts in the batch; exclusive with `ghost_size`.
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

    def _function(self) -> Function:
        return _modules.ghost_batch_norm(self)


class BatchRenorm(BatchNorm):
    """Batch renormalization: `jaxnorm.batch_renorm`; otherwise as `BatchNorm`.

    y = ((x - mean) / sqrt(var + epsilon) * r + d) * scale + bias, with r and d from the running
    statistics; x is [..., C] (C at `axis`). An `nnx.BatchStat` holds the number of training `steps`
    too, so schedules move on under `nnx.jit` and survive a checkpoint.

    Args:
        r_max, d_max: numbers, or schedules of the number of steps; the paper's by default.
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

    def _function(self) -> Function:
        return _modules.batch_renorm(self)

    def _init_stats(self, num_features: int, **options: Any) -> dict[str, jax.Array]:
        return jn.init_renorm_stats(num_features, **options)


class ControlState(nnx.Variable[Any]):
    """An error of a control process of `OnlineNorm`: its gradient is its new value."""


class OnlineNorm(nnx.Module):
    """Online normalization: `jaxnorm.online_norm`, each example by the statistics of those before.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel. x is [N, ..., C] (C at
    `axis`), N examples in order of time, and y of its shape, in `dtype`, by default what x and the
    variables promote to. One value a channel is enough in training.

    `mean` and `var` are `nnx.BatchStat`. The two control processes' `control_y` and `control_x` are
    `ControlState`: differentiate with respect to them too, with the filter `DIFFERENTIATED`, and
    give what comes out to `overwrite_control`, which gives back the gradients of the rest.

    `train()` and `eval()` choose between streaming and the running statistics, which `freeze_stats`
    makes those of training too.

    Args:
        use_running_average: True to normalize with the running statistics, False to stream the
            batch and update them; here or in the call, which takes precedence. True gives the
            control processes a zero gradient: do not overwrite them by it.
        axis: the axis or axes of the channels.
        forward_decay, backward_decay: weights of the old statistics, and of the old errors of the
            control processes.
        epsilon: added to the variance.
        stats_dtype: of the statistics, which keep it: float32 by default, or wider where
            `param_dtype` is.

    References:
        Chiley et al., "Online normalization for training neural networks", 2019.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import DIFFERENTIATED, OnlineNorm, overwrite_control
        >>> norm = OnlineNorm(1, forward_decay=0.5, rngs=nnx.Rngs(0))
        >>> loss = lambda norm: norm(jnp.array([[2.0]])).sum()
        >>> grads = nnx.grad(loss, argnums=nnx.DiffState(0, DIFFERENTIATED))(norm)
        >>> grads = overwrite_control(norm, grads)
        >>> print(sorted(grads), norm.mean[...], norm.control_y[...].round(2))
        ['bias', 'scale'] [1.] [2.]
    """

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: _axes.Axes = -1,
        forward_decay: ArrayLike = 0.999,
        backward_decay: ArrayLike = 0.99,
        epsilon: ArrayLike = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = nnx.initializers.zeros,
        scale_init: Initializer = nnx.initializers.ones,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = MappingProxyType({}),
        scale_metadata: Metadata = MappingProxyType({}),
        stats_dtype: Any = None,
    ):
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.forward_decay = forward_decay
        self.backward_decay = backward_decay
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.promote_dtype = promote_dtype
        self.stats_dtype = stats_dtype
        self.frozen = False
        stats = jn.init_online_stats(num_features, dtype=_modules.stats_dtype(self))
        self.mean = nnx.BatchStat(stats["mean"])
        self.var = nnx.BatchStat(stats["var"])
        self.control_y = ControlState(stats["control_y"])
        self.control_x = ControlState(stats["control_x"])
        self.scale = _parameter(self, use_scale, scale_init, rngs, scale_metadata)
        self.bias = _parameter(self, use_bias, bias_init, rngs, bias_metadata)

    @_checks.mask_is_called("mask")
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        evaluating = _evaluating(self, use_running_average)
        features = _modules.feature_shape(x, self.axis, "axis")
        names = ("mean", "var", "control_y", "control_x")
        stats = {key: _value(getattr(self, key), features) for key in names}
        x, (mean, var), parameters, dtype = _promoted(
            self,
            x,
            (stats["mean"], stats["var"]),
            (_value(self.scale, features), _value(self.bias, features)),
        )
        if evaluating or self.frozen:
            stats |= {"mean": mean, "var": var}
        y, new = _modules.normalize_online(
            self,
            x,
            stats | ({"frozen": None} if self.frozen else {}),
            *parameters,
            dtype=dtype,
            mask=mask,
            train=not evaluating,
        )
        if not (evaluating or self.frozen):
            self.mean.set_value(_flat(new["mean"]))
            self.var.set_value(_flat(new["var"]))
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Called by `nnx.view`. (`nnx.view_info` reads the arguments indented by two.)

        Args:
          use_running_average: True to normalize with the running statistics, False to stream.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


DIFFERENTIATED = nnx.Any(nnx.Param, ControlState)


def overwrite_control(model: nnx.Module, grads: Any) -> Any:
    """Put the control processes where their gradients say; the gradients of the rest.

    Args:
        model: with `OnlineNorm` in it; changed in place.
        grads: as from `nnx.grad(..., argnums=nnx.DiffState(0, DIFFERENTIATED))`.

    Returns:
        `grads` without the control processes, for an optimizer of `nnx.Param`.

    Raises:
        ValueError: gradients without the control processes that the model has.
    """
    moved, rest = nnx.split_state(grads, ControlState, ...)
    if not moved and nnx.state(model, ControlState):
        raise ValueError(
            "the gradients have no control processes, and the model has; differentiate with "
            "respect to them too: nnx.grad(loss, argnums=nnx.DiffState(0, "
            "jaxnorm.nnx.DIFFERENTIATED))"
        )
    nnx.update(model, moved)
    return rest


class _InputScaling(nnx.Module):
    """What `StandardizeInputs` and `MinMaxInputs` share: a fit in `nnx.BatchStat`."""

    count: nnx.BatchStat[jax.Array]
    mean: nnx.BatchStat[jax.Array]
    var: nnx.BatchStat[jax.Array]
    min: nnx.BatchStat[jax.Array]
    max: nnx.BatchStat[jax.Array]

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: _axes.Axes = -1,
        dtype: Any = None,
        axis_name: _axes.AxisName | None = None,
        axis_index_groups: Any = None,
        skip_nan: bool = False,
        stats_dtype: Any = jnp.float32,
    ):
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.dtype = dtype
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.skip_nan = skip_nan
        self.stats_dtype = stats_dtype
        self.frozen = False
        for key, value in jn.init_input_stats(num_features, dtype=stats_dtype).items():
            setattr(self, key, nnx.BatchStat(value))

    def _function(self) -> Function:
        raise NotImplementedError

    @_checks.mask_is_called("mask")
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        evaluating = _evaluates(self, use_running_average)
        features = _modules.feature_shape(x, self.axis, "axis")
        variables = _variables(self)
        fit = {key: _value(variable, features) for key, variable in variables.items()}
        y, new = _modules.scale_inputs(
            self, self._function(), x, fit, mask=mask, train=not evaluating
        )
        if not evaluating:
            for key, variable in variables.items():
                variable.set_value(_flat(new[key]))
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Called by `nnx.view`. (`nnx.view_info` reads the arguments indented by two.)

        Args:
          use_running_average: True to use the fit, False to update it first.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


class StandardizeInputs(_InputScaling):
    """Inputs to mean 0 and variance 1: `jaxnorm.standardize_inputs`, its fit in `nnx.BatchStat`.

    y = (x - mean) / sqrt(var + epsilon), for each feature, within +- clip. x is [..., F] (F at
    `axis`) of any real dtype, and y of its shape, in `dtype`, by default that of x, and float32 of
    integers. There are no parameters.

    In training the fit takes in the batch (`jaxnorm.update_input_stats`), and the batch is scaled
    by the new fit; `train()` and `eval()` choose, and `freeze_stats` leaves the fit as it is in
    training too.

    Args:
        num_features: the width F; of several feature axes, their product.
        use_running_average: True to use the fit, False to update it first; here or in the call,
            which takes precedence.
        axis: the axis or axes of the features.
        epsilon, clip: as for `jaxnorm.standardize_inputs`.
        skip_nan: NaN do not count in the fit; in the result they stay.
        stats_dtype: of the fit: float32, or float64.
        options: the arguments after `axis`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.nnx import StandardizeInputs
        >>> scale = StandardizeInputs(2)
        >>> print(scale(jnp.array([[3.0, 1e5], [5.0, 3e5]])), scale.mean[...])
        [[-1. -1.]
         [ 1.  1.]] [4.e+00 2.e+05]
        >>> scale.eval()
        >>> print(scale(jnp.array([[4.0, 4e5]])))
        [[0. 2.]]
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: ArrayLike = 0.0,
        clip: ArrayLike | None = None,
        **options: Any,
    ):
        super().__init__(num_features, **options)
        self.epsilon = epsilon
        self.clip = clip

    def _function(self) -> Function:
        return _modules.standardize_inputs(self)


class MinMaxInputs(_InputScaling):
    """Inputs to a range: `jaxnorm.min_max_inputs`; otherwise as `StandardizeInputs`.

    y = low + (high - low) * (x - min) / (max - min), for each feature; x is [..., F] (F at `axis`).

    Args:
        low, high, clip: as for `jaxnorm.min_max_inputs`.
        options: the other arguments of `StandardizeInputs`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.nnx import MinMaxInputs
        >>> print(MinMaxInputs(1, low=-1.0)(jnp.array([[0.0], [5.0], [20.0]]))[:, 0])
        [-1.  -0.5  1. ]
    """

    def __init__(
        self,
        num_features: int,
        *,
        low: ArrayLike = 0.0,
        high: ArrayLike = 1.0,
        clip: bool = False,
        **options: Any,
    ):
        super().__init__(num_features, **options)
        self.low = low
        self.high = high
        self.clip = clip

    def _function(self) -> Function:
        return _modules.min_max_inputs(self)


class LayerNorm(nnx.Module):
    """Layer normalization: `jaxnorm.layer_norm`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each example over its features.
    x is of any shape, and y of the same, in `dtype`, by default what x and
    the variables promote to.

    Args:
        reduction_axes: the axis or axes to measure over.
        feature_axes: the axis or axes with a scale and a bias of their own.
        epsilon: added to the variance; 1e-6 as in Flax (PyTorch, Haiku and Equinox: 1e-5, Keras:
            1e-3).

    References:
        Ba, Kiros and Hinton, "Layer normalization", 2016.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import LayerNorm
        >>> print(LayerNorm(2, rngs=nnx.Rngs(0))(jnp.array([[1.0, 3.0]])).round(3))
        [[-1.  1.]]
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: ArrayLike = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = nnx.initializers.zeros,
        scale_init: Initializer = nnx.initializers.ones,
        reduction_axes: _axes.Axes = -1,
        feature_axes: _axes.Axes = -1,
        axis_name: _axes.AxisName | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = MappingProxyType({}),
        scale_metadata: Metadata = MappingProxyType({}),
    ):
        self.num_features = num_features
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.reduction_axes = reduction_axes
        self.feature_axes = feature_axes
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.scale = _parameter(self, use_scale, scale_init, rngs, scale_metadata)
        self.bias = _parameter(self, use_bias, bias_init, rngs, bias_metadata)

    @_checks.mask_is_called("mask")
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        return _normalize(
            self, _modules.layer_norm(self), x, mask, self.feature_axes, self.scale, self.bias
        )


class RMSNorm(nnx.Module):
    """Root mean square normalization: `jaxnorm.rms_norm`.

    y = x / sqrt(mean(|x|^2) + epsilon) * (scale + scale_offset), for each example.
    x is of any shape, and y of the same, in `dtype`, by default what x and
    the variables promote to.

    Args:
        reduction_axes: the axis or axes to measure over.
        feature_axes: the axis or axes with a scale of their own.
        epsilon: added to the mean square; 1e-6 as in Flax (PyTorch: the dtype's own).
        scale_offset: added to the scale in float32; 1.0 for models that store their weight as
            w - 1, with `scale_init=nnx.initializers.zeros`.

    References:
        Zhang and Sennrich, "Root mean square layer normalization", 2019.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import RMSNorm
        >>> print(RMSNorm(4, rngs=nnx.Rngs(0))(jnp.array([[3.0, 4.0, 0.0, 0.0]])).round(3))
        [[1.2 1.6 0.  0. ]]
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: ArrayLike = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_scale: bool = True,
        scale_init: Initializer = nnx.initializers.ones,
        reduction_axes: _axes.Axes = -1,
        feature_axes: _axes.Axes = -1,
        axis_name: _axes.AxisName | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        scale_metadata: Metadata = MappingProxyType({}),
        scale_offset: ArrayLike = 0.0,
    ):
        self.num_features = num_features
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_scale = use_scale
        self.reduction_axes = reduction_axes
        self.feature_axes = feature_axes
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.scale_offset = scale_offset
        self.scale = _parameter(self, use_scale, scale_init, rngs, scale_metadata)

    @_checks.mask_is_called("mask")
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return _normalize(self, _modules.rms_norm(self), x, mask, self.feature_axes, self.scale)


class GroupNorm(nnx.Module):
    """Group normalization: `jaxnorm.group_norm` of channels on the last axis.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each group of channels of each example.
    x is [N, ..., C], or [C], one example; y is of its shape, in
    `dtype`, by default what x and the variables promote to.

    Args:
        num_groups: groups of channels; None where `group_size` is given.
        group_size: channels of a group; exclusive with `num_groups`.
        reduction_axes: the axes to measure over, the last among them; all but axis 0 by default.
        epsilon: added to the variance; 1e-6 as in Flax (PyTorch and Haiku: 1e-5, Keras: 1e-3).

    References:
        Wu and He, "Group normalization", 2018.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import GroupNorm
        >>> norm = GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
        >>> print(norm(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(3))
        [[-1.  1. -1.  1.]]
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: ArrayLike = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = nnx.initializers.zeros,
        scale_init: Initializer = nnx.initializers.ones,
        reduction_axes: _axes.Axes | None = None,
        axis_name: _axes.AxisName | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = MappingProxyType({}),
        scale_metadata: Metadata = MappingProxyType({}),
    ):
        self.feature_axis = -1
        self.group_size = _axes.group_size_of(num_features, num_groups, group_size)
        self.num_groups = num_features // self.group_size
        self.num_features = num_features
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.reduction_axes = reduction_axes
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.scale = _parameter(self, use_scale, scale_init, rngs, scale_metadata)
        self.bias = _parameter(self, use_bias, bias_init, rngs, bias_metadata)

    @_checks.mask_is_called("mask")
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        return _normalize(
            self,
            _modules.group_norm(self, self.num_groups, None),
            x,
            mask,
            -1,
            self.scale,
            self.bias,
        )


class InstanceNorm(nnx.Module):
    """Instance normalization: `jaxnorm.instance_norm`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel of each example.
    x is [N, ..., C] (C at `feature_axes`), and y of its shape, in
    `dtype`, by default what x and the variables promote to.

    Args:
        feature_axes: the axis or axes of the channels.
        epsilon: added to the variance; 1e-6 as in Flax (PyTorch: 1e-5, Keras: 1e-3).

    References:
        Ulyanov, Vedaldi and Lempitsky, "Instance normalization", 2016.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import InstanceNorm
        >>> norm = InstanceNorm(2, rngs=nnx.Rngs(0))
        >>> print(norm(jnp.array([[[1.0, 10.0], [3.0, 30.0]]])).round(3))
        [[[-1. -1.]
          [ 1.  1.]]]
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: ArrayLike = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = nnx.initializers.zeros,
        scale_init: Initializer = nnx.initializers.ones,
        feature_axes: _axes.Axes = -1,
        axis_name: _axes.AxisName | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = MappingProxyType({}),
        scale_metadata: Metadata = MappingProxyType({}),
    ):
        self.num_features = num_features
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.feature_axes = feature_axes
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.scale = _parameter(self, use_scale, scale_init, rngs, scale_metadata)
        self.bias = _parameter(self, use_bias, bias_init, rngs, bias_metadata)

    @_checks.mask_is_called("mask")
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        return _normalize(
            self, _modules.instance_norm(self), x, mask, self.feature_axes, self.scale, self.bias
        )


def freeze_stats(model: nnx.Module, *parts: str, frozen: bool = True) -> None:
    """Use the running statistics and leave them as they are in training too, as in evaluation.

    It sets the attribute `frozen` of every `BatchNorm` and kin, and of every fit to inputs, in the
    named parts, which `train()` and `eval()` do not touch. The parameters go on learning; stop
    those in the optimizer.

    Args:
        model: changed in place, as by `train()` and `eval()`.
        parts: paths of normalizations, or of what holds them, as in "encoder/block_0"; `*` stands
            for any characters. All where none is given.
        frozen: False makes them move again.

    Raises:
        ValueError: a part with no `BatchNorm` in it; the message lists those that there are.

    Warns:
        UserWarning: a `BatchNorm` of Flax in the parts, whose statistics go on moving.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import BatchNorm, freeze_stats
        >>> model = nnx.Dict(encoder=BatchNorm(1, rngs=nnx.Rngs(0)))
        >>> freeze_stats(model, "encoder")
        >>> print(model.encoder(jnp.ones((2, 1)))[:, 0].round(3), model.encoder.mean[...])
        [1. 1.] [0.]
    """
    norms = _named(model, parts, (BatchNorm, OnlineNorm, _InputScaling))
    for norm in norms.values():
        norm.frozen = frozen
    if frozen:
        _warn_of_flaxs("freeze_stats", model, parts)


def start_recomputing(model: nnx.Module, *parts: str) -> None:
    """Merge all that training sees in new statistics beside the running ones, which stay.

    As `jaxnorm.start_recomputing`, in the model: every `BatchNorm` and kin in the named parts takes
    an attribute `recomputed` with `nnx.BatchStat` `count`, `mean` and `var`, and its momentum does
    not matter until `finish_recomputing`.

    Args:
        model: changed in place; a compiled step is compiled once more.
        parts: paths of normalizations, or of what holds them; all where none is given.

    Raises:
        ValueError: statistics that are being recomputed already; a part with no `BatchNorm` in it.

    Warns:
        UserWarning: a `BatchNorm` of Flax in the parts, whose statistics are not recomputed.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import BatchNorm, finish_recomputing, start_recomputing
        >>> model = nnx.Dict(norm=BatchNorm(1, rngs=nnx.Rngs(0)))
        >>> start_recomputing(model)
        >>> for batch in jnp.array([[1.0], [3.0]]), jnp.array([[8.0]] * 6):
        ...     y = model.norm(batch)
        >>> finish_recomputing(model)
        >>> print(model.norm.mean[...], model.norm.var[...])
        [6.5] [7.]
    """
    for norm in _named(model, parts).values():
        new = _running.started(_values(norm))["recomputed"]
        norm.recomputed = nnx.Dict({key: nnx.BatchStat(value) for key, value in new.items()})
    _warn_of_flaxs("start_recomputing", model, parts)


def finish_recomputing(model: nnx.Module, *parts: str) -> None:
    """Put the recomputed statistics in the place of the running ones, where anything counted.

    As `jaxnorm.finish_recomputing`, in the model, with its warning.

    Args:
        model: changed in place.
        parts: paths of what is being recomputed; all of it where none is given.

    Raises:
        ValueError: a part in which nothing is being recomputed.

    There is an example in `start_recomputing`.
    """
    _finish(model, parts, _running.replaced)


def finish_accumulating(model: nnx.Module, *parts: str, momentum: ArrayLike | None = 0.99) -> None:
    """Update the running statistics once, by all that was seen since `start_recomputing`.

    As `jaxnorm.finish_accumulating`, in the model, with its warning.

    Args:
        model: changed in place.
        parts: paths of what is being recomputed; all of it where none is given.
        momentum: the weight of the old value, as that of the normalizations; None merges exactly.

    Raises:
        ValueError: a part in which nothing is being recomputed; a momentum outside [0, 1], or None
            for statistics without a count.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import BatchNorm, finish_accumulating, start_recomputing
        >>> model = nnx.Dict(norm=BatchNorm(1, rngs=nnx.Rngs(0)))
        >>> start_recomputing(model)
        >>> for micro_batch in jnp.array([[[1.0], [3.0]], [[8.0], [8.0]]]):
        ...     y = model.norm(micro_batch)
        >>> finish_accumulating(model, momentum=0.5)
        >>> print(model.norm.mean[...])
        [2.5]
    """
    _checks.check_momentum(momentum)
    _finish(model, parts, partial(_running.accumulated, momentum=momentum))


def _finish(model: nnx.Module, parts: Sequence[str], change: Callable[[Any], Any]) -> None:
    unseen = []
    for path, norm in _named(model, parts, recomputed=True).items():
        old = _values(norm)
        if not norm.frozen and _recipes.saw_nothing(old):
            unseen.append(path)
        new = change(old)
        del norm.recomputed
        _each(lambda variable, value: variable.set_value(value), _variables(norm), new)
    _recipes.warn_of_nothing_seen(unseen)


def _named(
    model: nnx.Module, parts: Sequence[str], kinds: Any = BatchNorm, *, recomputed: bool = False
) -> dict[Any, Any]:
    """Every module of the kinds and their kin in the parts, by path."""
    norms, others = {}, {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, kinds) and (hasattr(module, "recomputed") or not recomputed):
            norms[path] = module
        elif path[-1:] != ("recomputed",) and _keeps_statistics(module):
            others[path] = _described(module)
    what = _recipes.RECOMPUTED if recomputed else "BatchNorm of jaxnorm.nnx"
    _recipes.check_found(parts or ("*",), list(norms), what, others)
    return {path: norm for path, norm in norms.items() if _in_parts(path, parts)}


def _in_parts(path: Sequence[Any], parts: Sequence[str]) -> bool:
    return any(_recipes.matches(path, part) for part in parts or ("*",))


def _keeps_statistics(module: nnx.Module) -> bool:
    return any(isinstance(variable, nnx.BatchStat) for variable in vars(module).values())


def _described(module: nnx.Module) -> str:
    """The class of a module, and of Flax's what takes its place."""
    kind = type(module)
    if isinstance(module, nnx.BatchNorm):
        return f"{kind.__name__} of flax.nnx, {_EXCHANGE}"
    return f"{kind.__name__} of {'jaxnorm.nnx' if kind.__module__ == __name__ else kind.__module__}"


def _warn_of_flaxs(function: str, model: nnx.Module, parts: Sequence[str]) -> None:
    """Statistics in the parts that go on moving, as they are Flax's own."""
    names = [
        _recipes.joined(path)
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.BatchNorm) and _in_parts(path, parts)
    ]
    if names:
        warnings.warn(
            f"{function} does not reach {names}, whose statistics go on moving: each is a "
            f"BatchNorm of flax.nnx, {_EXCHANGE}",
            stacklevel=3,
        )


def _variables(norm: Any) -> dict[str, Any]:
    """The variables of the statistics, those that are recomputed in a dict of their own."""
    variables: dict[str, Any] = {
        k: v for k, v in vars(norm).items() if isinstance(v, nnx.BatchStat)
    }
    if hasattr(norm, "recomputed"):
        variables["recomputed"] = dict(norm.recomputed.items())
    return variables


def _values(norm: BatchNorm) -> Any:
    """The statistics, in float32 at least."""
    return _modules.wide_stats(_each(lambda variable: variable[...], _variables(norm)))


def _each(function: Callable[..., Any], variables: Any, *others: Any) -> Any:
    """What a function gives of each variable, and of what stands at its place in other dicts."""
    return jax.tree.map(
        function, variables, *others, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )


def _evaluates(module: Any, use_running_average: bool | None) -> bool:
    """Whether the running statistics are used: in evaluation, and where they are frozen."""
    return _evaluating(module, use_running_average) or module.frozen


def _evaluating(module: Any, use_running_average: bool | None) -> bool:
    """Whether evaluation is asked for, by the call or by the module."""
    chosen = first_from(
        use_running_average,
        module.use_running_average,
        error_msg=(
            f"give use_running_average to {type(module).__name__}, when it is built, in the call "
            "or by nnx.view, or call train() or eval() of the model"
        ),
    )
    return _checks.as_choice("use_running_average", chosen)


class Identity(nnx.Module):
    """What stands for a normalization that was folded: the input, in the dtype of its result.

    Args:
        dtype: of the result.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.nnx import Identity
        >>> print(Identity(jnp.float32)(jnp.ones(2), use_running_average=True))
        [1. 1.]
    """

    def __init__(self, dtype: Any):
        self.dtype = dtype

    def __call__(self, x: jax.Array, *args: Any, **options: Any) -> jax.Array:
        return x.astype(self.dtype)


def fold(
    model: Model,
    pairs: Mapping[str, str],
    *args: Any,
    tolerance: float = 1e-5,
    **options: Any,
) -> Model:
    """A copy of the model with normalizations folded into the layers before them, or after them.

    Each kernel and bias becomes what `jaxnorm.fold_batch_norm` gives, where the normalization is
    given the output of the layer, or what `jaxnorm.fold_batch_norm_into_next` gives, where the
    layer is given the output of the normalization, by the layer's type. An `Identity` stands where
    the normalization stood. The copy is in evaluation, as by `eval()`, and the model is left as it
    was.

    The model is evaluated on an example, to see what stands where and to compare: whole, folded,
    and with what passes from one of a pair to the other visible to no other module. While it is,
    the classes of its modules are watched, so no other thread may call theirs; modules inside
    `nnx.jit` are not seen.

    Args:
        model: the network; `BatchNorm`, `GhostBatchNorm`, `BatchRenorm`, Flax's own `BatchNorm` and
            `StandardizeInputs` without a `clip` in it can be folded, into `Linear`,
            `LinearGeneral`, `Einsum`, `Conv`, `ConvTranspose` and classes derived from them, and
            into any other layer with a `kernel` whose channels are last and a `bias`, or None for
            it.
        pairs: for each layer's path its normalization's, as in {"blocks/0/conv": "blocks/0/norm"};
            `*` stands for any characters but "/", in the normalization's path for the same ones:
            {"blocks/*/conv": "blocks/*/norm"}. A normalization that feeds several layers is named
            with each of them.
        args, options: of a call of the model, an example in evaluation.
        tolerance: how far the output may move, relative to its largest value (of each array); for
            kernels or results in bfloat16 give 0.05 or what they allow.

    Raises:
        TypeError: a normalization that has no running statistics, a layer without a kernel.
        ValueError: a path that names nothing, a layer or normalization called more than once, two
            of which neither is given the other's output itself (the message says whose it is), an
            output that is used elsewhere too, a layer after a normalization that pads with zeros,
            an output further away than the tolerance.

    Example:
        >>> import jax.numpy as jnp, jaxnorm.nnx as jnnx
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=rngs), jnnx.BatchNorm(2, rngs=rngs))
        >>> folded = jnnx.fold(model, {"layers/0": "layers/1"}, x := jnp.ones((1, 3)))
        >>> print(type(folded.layers[1]).__name__)
        Identity
        >>> model.eval()
        >>> print(jnp.allclose(folded(x), model(x)))
        True
    """
    folded = nnx.clone(model)
    folded.eval()  # type: ignore[no-untyped-call]
    whole = nnx.split(nnx.clone(folded))  # with variables of its own

    def run(graph: Any, state: Any, around: _pairs.Around | None = None) -> Any:
        copy = nnx.merge(graph, state)
        with _watched(copy, around):
            return copy(*args, **options)

    calls = _pairs.recorded(lambda around: run(*whole, around))
    found = _pairs.found_pairs(pairs, calls, (nnx.BatchNorm, BatchNorm, StandardizeInputs))
    for pair in found:
        _fold_pair(folded, pair)
    for pair in found:
        _pass_on(folded, pair)
    changed = nnx.split(folded)

    def results(state: Any, changed_state: Any) -> Any:
        return (
            run(whole[0], state),
            run(whole[0], state, _pairs.hidden(found)),
            run(changed[0], changed_state),
        )

    _pairs.check_folded(jax.jit(results)(whole[1], changed[1]), tolerance)
    return folded


def _modules_of(model: nnx.Module) -> dict[str, tuple[Any, Any]]:
    """Each module's path, as keys, and the module itself, by its path."""
    return {"/".join(map(str, path)): (path, module) for path, module in nnx.iter_modules(model)}


def _fold_pair(model: nnx.Module, pair: _pairs.Pair) -> None:
    """Change the layer of a pair in the model."""
    modules = _modules_of(model)
    norm, layer = modules[pair.norm.path][1], modules[pair.layer.path][1]
    if not isinstance(getattr(layer, "kernel", None), nnx.Param) or not hasattr(layer, "bias"):
        raise TypeError(
            f"{pair.layer.path!r} is a {type(layer).__name__}, without a kernel and a bias of its "
            "own; what can be folded into is a layer such as Linear, Conv, ConvTranspose"
        )
    of_fit = ("min", "max") if isinstance(norm, StandardizeInputs) else ()
    parameters = (getattr(norm, name, None) for name in ("scale", "bias"))
    kernel, bias = _modules.folded(
        pair,
        layer.kernel[...],
        None if layer.bias is None else layer.bias[...],
        {key: getattr(norm, key)[...] for key in ("mean", "var", *of_fit)},
        *(None if parameter is None else parameter[...] for parameter in parameters),
    )
    layer.kernel.set_value(kernel)
    if layer.bias is None:
        layer.bias, layer.use_bias = nnx.Param(bias), True
    else:
        layer.bias.set_value(bias)


def _pass_on(model: nnx.Module, pair: _pairs.Pair) -> None:
    """Put an identity in the place of the normalization of a pair."""
    path, norm = _modules_of(model)[pair.norm.path]
    if isinstance(norm, Identity):  # of another pair too
        return
    parent: Any = model
    for key in path[:-1]:
        parent = _part(parent, key)
    stands = Identity(pair.norm.output.dtype)
    if isinstance(path[-1], int):
        parent[path[-1]] = stands
    else:
        setattr(parent, str(path[-1]), stands)


def _part(module: Any, key: Any) -> Any:
    return module[key] if isinstance(key, int) else getattr(module, key)


@contextmanager
def _watched(model: nnx.Module, around: _pairs.Around | None) -> Iterator[None]:
    """Hand the calls of the model's modules to `around`, if there is one."""
    paths = {id(module): "/".join(map(str, path)) for path, module in nnx.iter_modules(model)}
    kinds = {type(module) for _, module in nnx.iter_modules(model)} if around else set()
    kinds = {kind for kind in kinds if any(_CALL in vars(base) for base in kind.__mro__)}
    calls = {kind: getattr(kind, _CALL) for kind in kinds}
    own = {kind for kind in kinds if _CALL in vars(kind)}

    def watching(call: Any) -> Any:
        def watched(module: Any, *args: Any, **options: Any) -> Any:
            inner = partial(call, module)
            if around is None or id(module) not in paths:
                return inner(*args, **options)
            return around(paths[id(module)], module, inner, args, options)

        return watched

    try:
        for kind, call in calls.items():
            setattr(kind, _CALL, watching(call))
        yield
    finally:
        for kind, call in calls.items():
            if kind in own:
                setattr(kind, _CALL, call)
            else:
                delattr(kind, _CALL)


def _parameter(
    module: Any, use: bool, init: Initializer, rngs: nnx.Rngs, metadata: Metadata
) -> nnx.Param[jax.Array] | None:
    if not use:
        return nnx.data(None)
    return nnx.Param(init(rngs.params(), (module.num_features,), module.param_dtype), **metadata)


def _value(variable: Any, features: tuple[int, ...]) -> Any:
    """The value of a variable in the shape of the features; of one number or none, as it is."""
    value = None if variable is None else variable[...]
    if value is None or value.ndim == 0:
        return value
    if value.size != math.prod(features):
        raise ValueError(
            f"num_features={value.size}, but the feature axes of the input have shape {features}; "
            "give num_features that size, or check the feature axes"
        )
    return value.reshape(features)


def _flat(value: jax.Array) -> jax.Array:
    """A statistic in the shape of its variable."""
    return value.reshape(-1) if value.ndim else value


def _promoted(
    module: Any, x: jax.Array, stats: tuple[Any, ...], parameters: tuple[Any, ...]
) -> tuple[jax.Array, tuple[Any, ...], tuple[Any, ...], Any]:
    """The arrays to compute from, and the dtype of the result."""
    arrays = (x, *stats, *parameters)
    if module.promote_dtype is dtypes.promote_dtype:
        return x, stats, parameters, _modules.result_dtype(module.dtype, *arrays)
    x, *others = module.promote_dtype(arrays, dtype=module.dtype)
    stats, parameters = tuple(others[: len(stats)]), tuple(others[len(stats) :])
    return x, stats, parameters, _modules.result_dtype(module.dtype, x, *parameters)


def _normalize(
    module: Any,
    function: Function,
    x: jax.Array,
    mask: jax.Array | None,
    feature_axes: _axes.Axes,
    *variables: Any,
) -> jax.Array:
    """A stateless normalization with the module's parameters."""
    features = _modules.feature_shape(x, feature_axes)
    parameters = tuple(_value(variable, features) for variable in variables)
    x, _, parameters, dtype = _promoted(module, x, (), parameters)
    return _modules.normalize(module, function, x, *parameters, dtype=dtype, mask=mask)
