"""Flax Linen modules: thin shells that create variables and call the functions.

The five normalizations that Flax has take Flax's arguments under Flax's names, in its order, and
make Flax's variables: `params` {"scale", "bias"} and `batch_stats` {"mean", "var"}; so replacing
the import is the whole migration. Formulas, conventions and errors are the functions'. The
arguments that all modules share:

    dtype: of the result; by default what the input and the parameters promote to. Nothing is
        rounded to it before the result is.
    param_dtype: of the parameters.
    use_scale, use_bias, scale_init, bias_init: which parameters there are, and how they start.
    axis_name, axis_index_groups: mapped axes to merge statistics over; not needed in `init`.
    use_fast_variance: taken for compatibility, without effect: the exact form is always used.
    force_float32_reductions: taken for compatibility, without effect: statistics are computed and
        kept in float32 at least.

and in the call

    mask: nonzero where a position counts; broadcasts to the input.

Statistics are float32 at least: narrower ones that a checkpoint brings are widened in each call,
and the first training step keeps them so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, freeze, unfreeze
from flax.core.meta import AxisMetadata, unbox
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike

import jaxnorm as jn
from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import modules as _modules
from jaxnorm import pairs as _pairs
from jaxnorm.batch import Schedule, default_d_max, default_r_max
from jaxnorm.modules import Function, Initializer
from jaxnorm.running import sharded
from jaxnorm.sample import one_value_passes


class BatchNorm(nn.Module):
    """Batch normalization: `jaxnorm.batch_norm` with its statistics in `batch_stats`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel over the batch.
    x is [..., C] (C at `axis`), and y of its shape, in `dtype`, by default what x and
    the parameters promote to.

    `init` does not update the statistics; those that `jaxnorm.freeze_stats` marked are used and not
    updated in training either, and those of `jaxnorm.start_recomputing` merge all batches beside
    the old ones. `momentum=None` merges all batches exactly and keeps their `count` in
    `batch_stats` too.

    Attributes:
        use_running_average: True to normalize with the statistics in `batch_stats`, False to
            measure the batch and update them; here or in the call.
        axis: the axis or axes of the channels.
        momentum: the weight of the old statistics (PyTorch's is one minus it); the variance
            that is kept is biased (PyTorch's is not).
        epsilon: added to the variance; 1e-5 as in PyTorch (Keras: 1e-3).
        skip_nonfinite: leave the running statistics as they were in a step whose moments are not
            finite.
        stats_dtype: of the running statistics, which keep it: by default float32, or wider where
            `param_dtype` is, and complex where `init` sees complex input. Wider inputs are
            remembered as precisely as it is.
        count_per_channel: with `momentum=None`, a count for each channel, for masks that differ by
            channel.

    In the call:
        update_stats: False to measure the batch without updating the statistics, which then need
            not be mutable.

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

    def _function(self) -> Function:
        return _modules.batch_norm(self)

    def _entries(self) -> tuple[str, ...]:
        """What the running statistics consist of."""
        return ("mean", "var", "count") if self.momentum is None else ("mean", "var")

    def _init_stats(self, shape: tuple[int, ...], **options: Any) -> dict[str, jax.Array]:
        return jn.init_batch_stats(shape, **options)

    @nn.compact
    @_checks.mask_is_called("mask")
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        update_stats: bool = True,
    ) -> jax.Array:
        evaluating = _evaluating(self, use_running_average)
        evaluating = evaluating or self.has_variable("batch_stats", "frozen")
        _checks.check_choice("update_stats", update_stats)
        initializing = self.is_initializing()
        features = _modules.feature_shape(x, self.axis, "axis")
        stats = self._stats(x, features, needed=evaluating and not initializing)
        scale, bias = _scale(self, features), _bias(self, features)
        y, new = _modules.normalize_batch(
            self,
            self._function(),
            x,
            {key: variable.value for key, variable in stats.items()},
            scale,
            bias,
            dtype=_modules.result_dtype(self.dtype, x, scale, bias),
            mask=mask,
            train=not evaluating and not (initializing and x.size == math.prod(features)),
            synced=not initializing,
        )
        if update_stats and not (evaluating or initializing):
            for key, variable in stats.items():
                variable.value = new[key]
        return y

    def _stats(self, x: jax.Array, features: tuple[int, ...], needed: bool) -> dict[str, Any]:
        """The variables of the running statistics; `needed` says that none may start afresh."""
        names = self._entries()
        missing = [key for key in names if not self.has_variable("batch_stats", key)]
        if missing and (needed or not self.is_mutable_collection("batch_stats")):
            _raise_missing(self, missing)
        fresh = self._fresh_stats(x, features) if missing else {}
        if self.has_variable("batch_stats", "recomputed"):
            names = (*names, "recomputed")
        return {key: self.variable("batch_stats", key, fresh.get, key) for key in names}

    def _fresh_stats(self, x: jax.Array, features: tuple[int, ...]) -> Any:
        """The first running statistics, sharded as the channels of the input are."""
        fresh = self._init_stats(
            features,
            momentum=self.momentum,
            dtype=_modules.stats_dtype(self, x),
            count_per_channel=self.count_per_channel,
        )
        channels = _axes.channel_axes(x.ndim, self.axis, "axis")
        return sharded(fresh, x, _axes.other_axes(x.ndim, channels))


class GhostBatchNorm(BatchNorm):
    """Batch normalization in ghosts: `jaxnorm.ghost_batch_norm`; otherwise as `BatchNorm`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel over its slice of the
    batch. x is [N, ..., C] (C at `axis`): axis 0 is cut into ghosts. `init` takes a batch of any
    size, as one ghost.

    Attributes:
        ghost_size: examples in a ghost; exclusive with `num_ghosts`.
        num_ghosts: ghosts in the batch; exclusive with `ghost_size`.

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

    def _function(self) -> Function:
        if self.is_initializing():
            _axes.check_ghosts(self.num_ghosts, self.ghost_size)
            return partial(jn.ghost_batch_norm, num_ghosts=1)
        return _modules.ghost_batch_norm(self)


class BatchRenorm(BatchNorm):
    """Batch renormalization: `jaxnorm.batch_renorm`; otherwise as `BatchNorm`.

    y = ((x - mean) / sqrt(var + epsilon) * r + d) * scale + bias, with r and d from the running
    statistics; x is [..., C] (C at `axis`). `batch_stats` holds the number of training `steps` too,
    so schedules move on under `jit` and survive a checkpoint.

    Attributes:
        r_max, d_max: numbers, or schedules of the number of steps; the paper's by default.

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

    def _function(self) -> Function:
        return _modules.batch_renorm(self)

    def _entries(self) -> tuple[str, ...]:
        return (*super()._entries(), "steps")

    def _init_stats(self, shape: tuple[int, ...], **options: Any) -> dict[str, jax.Array]:
        return jn.init_renorm_stats(shape, **options)


class OnlineNorm(nn.Module):
    """Online normalization: `jaxnorm.online_norm`, each example by the statistics of those before.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel. x is [N, ..., C] (C at
    `axis`), N examples in order of time, and y of its shape, in `dtype`, by default what x and the
    parameters promote to. One value a channel is enough in training.

    `batch_stats` holds `mean` and `var`; those that `jaxnorm.freeze_stats` marked are used and not
    updated in training either. The two control processes' `control_y` and `control_x` are in the
    collection `_overwrite_with_gradient`, as the state of Flax's fp8 operators is: their gradient
    is their new value, which `flax.training.train_state.TrainState` puts in their place.

    Attributes:
        use_running_average: True to normalize with the statistics in `batch_stats`, False to
            stream the batch and update them; here or in the call. True gives the control processes
            a zero gradient: do not overwrite them by it.
        axis: the axis or axes of the channels.
        forward_decay, backward_decay: weights of the old statistics, and of the old errors of the
            control processes.
        epsilon: added to the variance.
        stats_dtype: of the statistics, which keep it: float32 by default, or wider where
            `param_dtype` is.

    References:
        Chiley et al., "Online normalization for training neural networks", 2019.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import OnlineNorm
        >>> norm = OnlineNorm(use_running_average=False, forward_decay=0.5)
        >>> x = jnp.array([[2.0]])
        >>> variables = norm.init(jax.random.key(0), x)
        >>> sorted(variables)
        ['_overwrite_with_gradient', 'batch_stats', 'params']
        >>> y, updates = norm.apply(variables, x, mutable=["batch_stats"])
        >>> print(y.round(2), updates["batch_stats"]["mean"])
        [[2.]] [1.]
    """

    use_running_average: bool | None = None
    axis: _axes.Axes = -1
    forward_decay: ArrayLike = 0.999
    backward_decay: ArrayLike = 0.99
    epsilon: ArrayLike = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    stats_dtype: Any = None

    @nn.compact
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
        stats = self._stats(features, evaluating and not self.is_initializing())
        frozen = {"frozen": None} if self.has_variable("batch_stats", "frozen") else {}
        scale, bias = _scale(self, features), _bias(self, features)
        y, new = _modules.normalize_online(
            self,
            x,
            {key: variable.value for key, variable in stats.items()} | frozen,
            scale,
            bias,
            dtype=_modules.result_dtype(self.dtype, x, scale, bias),
            mask=mask,
            train=not evaluating,
        )
        if not (evaluating or frozen or self.is_initializing()):
            for key in ("mean", "var"):
                stats[key].value = new[key]
        return y

    def _stats(self, features: tuple[int, ...], evaluating: bool) -> dict[str, Any]:
        """The variables of the statistics and of the control processes, each in its collection."""
        collections = dict.fromkeys(("mean", "var"), "batch_stats")
        if not evaluating:
            collections |= dict.fromkeys(("control_y", "control_x"), OVERWRITE_WITH_GRADIENT)
        fresh = jn.init_online_stats(features, dtype=_modules.stats_dtype(self))
        for key, collection in collections.items():
            if not (self.is_initializing() or self.has_variable(collection, key)):
                raise ValueError(
                    f"{type(self).__name__} at /{'/'.join(self.path)} lacks {key!r} in the "
                    f"collection {collection}; give apply the params, the batch_stats and, in "
                    f"training, the {OVERWRITE_WITH_GRADIENT} that init made and training updated"
                )
        return {
            key: self.variable(collection, key, fresh.get, key)
            for key, collection in collections.items()
        }


class _InputScaling(nn.Module):
    """What `StandardizeInputs` and `MinMaxInputs` share: a fit in `batch_stats`."""

    use_running_average: bool | None = None
    axis: _axes.Axes = -1
    dtype: Any = None
    axis_name: _axes.AxisName | None = None
    axis_index_groups: Any = None
    skip_nan: bool = False
    stats_dtype: Any = jnp.float32

    def _function(self) -> Function:
        raise NotImplementedError

    @nn.compact
    @_checks.mask_is_called("mask")
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        evaluating = _evaluating(self, use_running_average)
        evaluating = evaluating or self.has_variable("batch_stats", "frozen")
        initializing = self.is_initializing()
        fit = self._fit(x, needed=evaluating and not initializing)
        y, new = _modules.scale_inputs(
            self,
            self._function(),
            x,
            {key: variable.value for key, variable in fit.items()},
            mask=mask,
            train=not evaluating,
            synced=not initializing,
        )
        if not (evaluating or initializing):
            for key, variable in fit.items():
                variable.value = new[key]
        return y

    def _fit(self, x: jax.Array, needed: bool) -> dict[str, Any]:
        """The variables of the fit; `needed` says that none may start afresh."""
        features = _modules.feature_shape(x, self.axis, "axis")
        fresh = jn.init_input_stats(features, dtype=self.stats_dtype)
        missing = [key for key in fresh if not self.has_variable("batch_stats", key)]
        if missing and (needed or not self.is_mutable_collection("batch_stats")):
            _raise_missing(self, missing)
        return {key: self.variable("batch_stats", key, fresh.get, key) for key in fresh}


class StandardizeInputs(_InputScaling):
    """Inputs to mean 0 and variance 1: `jaxnorm.standardize_inputs` with its fit in `batch_stats`.

    y = (x - mean) / sqrt(var + epsilon), for each feature, within +- clip. x is [..., F] (F at
    `axis`) of any real dtype, and y of its shape, in `dtype`, by default that of x, and float32 of
    integers. There are no parameters.

    In training the fit takes in the batch (`jaxnorm.update_input_stats`), and the batch is scaled
    by the new fit. `init` does not update it; one that `jaxnorm.freeze_stats` marked is used and
    not updated in training either.

    Attributes:
        use_running_average: True to use the fit in `batch_stats`, False to update it first; here or
            in the call.
        axis: the axis or axes of the features.
        epsilon, clip: as for `jaxnorm.standardize_inputs`.
        skip_nan: NaN do not count in the fit; in the result they stay.
        stats_dtype: of the fit: float32, or float64.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import StandardizeInputs
        >>> x = jnp.array([[3.0, 1e5], [5.0, 3e5]])
        >>> scale = StandardizeInputs(use_running_average=False)
        >>> y, variables = scale.apply({}, x, mutable=["batch_stats"])
        >>> print(y, variables["batch_stats"]["mean"])
        [[-1. -1.]
         [ 1.  1.]] [4.e+00 2.e+05]
    """

    epsilon: ArrayLike = 0.0
    clip: ArrayLike | None = None

    def _function(self) -> Function:
        return _modules.standardize_inputs(self)


class MinMaxInputs(_InputScaling):
    """Inputs to a range: `jaxnorm.min_max_inputs`; otherwise as `StandardizeInputs`.

    y = low + (high - low) * (x - min) / (max - min), for each feature; x is [..., F] (F at `axis`).

    Attributes:
        low, high, clip: as for `jaxnorm.min_max_inputs`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import MinMaxInputs
        >>> scale = MinMaxInputs(use_running_average=False, low=-1.0)
        >>> y, _ = scale.apply({}, jnp.array([[0.0], [5.0], [20.0]]), mutable=["batch_stats"])
        >>> print(y[:, 0])
        [-1.  -0.5  1. ]
    """

    low: ArrayLike = 0.0
    high: ArrayLike = 1.0
    clip: bool = False

    def _function(self) -> Function:
        return _modules.min_max_inputs(self)


class LayerNorm(nn.Module):
    """Layer normalization: `jaxnorm.layer_norm`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each example over its features.
    x is of any shape, and y of the same, in `dtype`, by default what x and
    the parameters promote to.

    Attributes:
        reduction_axes: the axis or axes to measure over.
        feature_axes: the axis or axes with a scale and a bias of their own.
        epsilon: added to the variance; 1e-6 as in Flax (PyTorch, Haiku and Equinox: 1e-5, Keras:
            1e-3).

    References:
        Ba, Kiros and Hinton, "Layer normalization", 2016.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import LayerNorm
        >>> y, _ = LayerNorm().init_with_output(jax.random.key(0), jnp.array([[1.0, 3.0]]))
        >>> print(y.round(3))
        [[-1.  1.]]
    """

    epsilon: ArrayLike = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    reduction_axes: _axes.Axes = -1
    feature_axes: _axes.Axes = -1
    axis_name: _axes.AxisName | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    @_checks.mask_is_called("mask")
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        features = _modules.feature_shape(x, self.feature_axes)
        return _normalize(
            self, _modules.layer_norm(self), x, mask, _scale(self, features), _bias(self, features)
        )


class RMSNorm(nn.Module):
    """Root mean square normalization: `jaxnorm.rms_norm`.

    y = x / sqrt(mean(|x|^2) + epsilon) * (scale + scale_offset), for each example.
    x is of any shape, and y of the same, in `dtype`, by default what x and
    the parameters promote to.

    Attributes:
        reduction_axes: the axis or axes to measure over.
        feature_axes: the axis or axes with a scale of their own.
        epsilon: added to the mean square; 1e-6 as in Flax (PyTorch: the dtype's own).
        scale_offset: added to the scale in float32; 1.0 for models that store their weight as
            w - 1, with `scale_init=nn.initializers.zeros`.

    References:
        Zhang and Sennrich, "Root mean square layer normalization", 2019.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import RMSNorm
        >>> x = jnp.array([[3.0, 4.0, 0.0, 0.0]])
        >>> y, _ = RMSNorm().init_with_output(jax.random.key(0), x)
        >>> print(y.round(3))
        [[1.2 1.6 0.  0. ]]
    """

    epsilon: ArrayLike = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = nn.initializers.ones
    reduction_axes: _axes.Axes = -1
    feature_axes: _axes.Axes = -1
    axis_name: _axes.AxisName | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    scale_offset: ArrayLike = 0.0

    @nn.compact
    @_checks.mask_is_called("mask")
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        features = _modules.feature_shape(x, self.feature_axes)
        return _normalize(self, _modules.rms_norm(self), x, mask, _scale(self, features))


class GroupNorm(nn.Module):
    """Group normalization: `jaxnorm.group_norm` of channels on the last axis.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each group of channels of each example.
    x is [N, ..., C], or [C], one example; y is of its shape, in
    `dtype`, by default what x and the parameters promote to.

    Attributes:
        num_groups: groups of channels; None where `group_size` is given.
        group_size: channels of a group; exclusive with `num_groups`.
        reduction_axes: the axes to measure over, the last among them; all but axis 0 by default.
        epsilon: added to the variance; 1e-6 as in Flax (PyTorch and Haiku: 1e-5, Keras: 1e-3).

    References:
        Wu and He, "Group normalization", 2018.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import GroupNorm
        >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
        >>> y, _ = GroupNorm(num_groups=2).init_with_output(jax.random.key(0), x)
        >>> print(y.round(3))
        [[-1.  1. -1.  1.]]
    """

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: ArrayLike = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    reduction_axes: _axes.Axes | None = None
    axis_name: _axes.AxisName | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    @_checks.mask_is_called("mask")
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        features = _modules.feature_shape(x, -1)
        function = _modules.group_norm(self, self.num_groups, self.group_size)
        return _normalize(self, function, x, mask, _scale(self, features), _bias(self, features))


class InstanceNorm(nn.Module):
    """Instance normalization: `jaxnorm.instance_norm`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel of each example.
    x is [N, ..., C] (C at `feature_axes`), and y of its shape, in
    `dtype`, by default what x and the parameters promote to.

    Attributes:
        feature_axes: the axis or axes of the channels.
        epsilon: added to the variance; 1e-6 as in Flax (PyTorch: 1e-5, Keras: 1e-3).

    References:
        Ulyanov, Vedaldi and Lempitsky, "Instance normalization", 2016.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import InstanceNorm
        >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
        >>> y, _ = InstanceNorm().init_with_output(jax.random.key(0), x)
        >>> print(y.round(3))
        [[[-1. -1.]
          [ 1.  1.]]]
    """

    epsilon: ArrayLike = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    feature_axes: _axes.Axes = -1
    axis_name: _axes.AxisName | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    @_checks.mask_is_called("mask")
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        features = _modules.feature_shape(x, self.feature_axes)
        return _normalize(
            self,
            _modules.instance_norm(self),
            x,
            mask,
            _scale(self, features),
            _bias(self, features),
        )


def _evaluating(module: Any, use_running_average: bool | None) -> bool:
    """Whether evaluation is asked for, by the call or by the module."""
    name = "use_running_average"
    return _checks.as_choice(
        name, nn.merge_param(name, module.use_running_average, use_running_average)
    )


def _raise_missing(module: nn.Module, missing: list[str]) -> None:
    there = sorted(module.variables.get("batch_stats", {}))
    held = f" (which has {there})" if there else ""
    raise ValueError(
        f"{type(module).__name__} at /{'/'.join(module.path)} lacks {missing} in the collection "
        f"batch_stats{held}; give apply the batch_stats that init made and training updated, "
        "beside the params (in training, a mutable batch_stats may start empty)"
    )


_FOLDABLE = (nn.BatchNorm, BatchNorm, StandardizeInputs)


def fold(
    model: nn.Module,
    variables: Any,
    pairs: Mapping[str, str],
    *args: Any,
    tolerance: float = 1e-5,
    **options: Any,
) -> Any:
    """The variables with normalizations folded into the layers before them, or after them.

    Each kernel and bias becomes what `jaxnorm.fold_batch_norm` gives, where the normalization is
    given the output of the layer, or what `jaxnorm.fold_batch_norm_into_next` gives, where the
    layer is given the output of the normalization, by the layer's type. The normalization's
    parameters and statistics are gone: these are the variables of the same network written without
    the normalizations, and with a bias in the layers. The network as it is evaluates them by
    `apply_folded`, and they may be folded again, with other pairs. They save and load as any
    others.

    The model is evaluated on an example, to see what stands where and to compare: whole, folded,
    and with what passes from one of a pair to the other visible to no other module.

    Args:
        model: the network; `BatchNorm`, `GhostBatchNorm`, `BatchRenorm`, Flax's own `BatchNorm` and
            `StandardizeInputs` without a `clip` in it can be folded, into `Dense`, `DenseGeneral`,
            `Einsum`, `Conv`, `ConvLocal`, `ConvTranspose` and classes derived from them, and into
            any other layer with a `kernel` whose channels are last.
        variables: what `init` made and training updated.
        pairs: for each layer's path its normalization's, as in {"block_0/Conv_0":
            "block_0/BatchNorm_0"}; `*` stands for any characters but "/", in the normalization's
            path for the same ones: {"block_*/Conv_*": "block_*/BatchNorm_*"}. A normalization that
            feeds several layers is named with each of them.
        args, options: of `model.apply`, an example in evaluation.
        tolerance: how far the output may move, relative to its largest value (of each array); for
            kernels or results in bfloat16 give 0.05 or what they allow.

    Raises:
        TypeError: a normalization that has no running statistics, a layer without a kernel.
        ValueError: a path that names nothing, a layer or normalization called more than once, two
            of which neither is given the other's output itself (the message says whose it is), an
            output that is used elsewhere too, a layer after a normalization that pads with zeros,
            an output further away than the tolerance.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
        >>> norm = jnn.BatchNorm(use_running_average=True)
        >>> model = nn.Sequential([nn.Dense(2, use_bias=False), norm, nn.relu])
        >>> variables = model.init(jax.random.key(0), x := jnp.ones((1, 3)))
        >>> folded = jnn.fold(model, variables, {"layers_0": "layers_1"}, x)
        >>> jax.tree.map(jnp.shape, folded)
        {'params': {'layers_0': {'bias': (2,), 'kernel': (3, 2)}}}
        >>> y = jnn.apply_folded(model, folded, x)
        >>> print(jnp.allclose(y, model.apply(variables, x)))
        True
    """

    def run(variables: Any, around: _pairs.Around | None = None) -> Any:
        return _applied(model, variables, args, options, around)

    calls = _pairs.recorded(lambda around: run(variables, around))
    found = _pairs.found_pairs(pairs, calls, _FOLDABLE)
    folded = _folded(variables, found)

    def results(variables: Any, folded: Any) -> Any:
        return run(variables), run(variables, _pairs.hidden(found)), run(folded)

    _pairs.check_folded(jax.jit(results)(variables, folded), tolerance)
    return folded


def check_marks(model: nn.Module, variables: Any, *args: Any, **options: Any) -> None:
    """Raise an error where statistics are marked and their module does not heed the mark.

    `jaxnorm.freeze_stats` and `jaxnorm.start_recomputing` mark a tree, which does not tell whose
    statistics it holds: those of Flax's own `BatchNorm` go on moving as if nothing were marked, and
    `OnlineNorm` and fits to inputs are not recomputed. The model is traced on shapes alone.

    Args:
        model: the network.
        variables: with marked statistics in `batch_stats`.
        args, options: of `model.apply`, an example in training.

    Raises:
        ValueError: marks that are not heeded; the message lists their paths.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm as jn, jaxnorm.linen as jnn
        >>> model = nn.Sequential([nn.Dense(2), jnn.BatchNorm(use_running_average=False)])
        >>> variables = model.init(jax.random.key(0), x := jnp.ones((4, 3)))
        >>> stats = jn.freeze_stats(variables["batch_stats"])
        >>> jnn.check_marks(model, {**variables, "batch_stats": stats}, x)
    """
    heeding = {"frozen": (BatchNorm, OnlineNorm, _InputScaling), "recomputed": (BatchNorm,)}
    unheeded = {}

    def intercepted(inner: Any, args: Any, options: Any, context: Any) -> Any:
        module = context.module
        for mark, kinds in heeding.items():
            if module.has_variable("batch_stats", mark) and not isinstance(module, kinds):
                unheeded["/".join(module.path)] = (mark, type(module))
        return inner(*args, **options)

    options = {"mutable": ["batch_stats"], **options}
    with nn.intercept_methods(intercepted):
        jax.eval_shape(lambda: model.apply(variables, *args, **options))
    if unheeded:
        listed = [
            f"{path!r} ({mark}; {kind.__name__} of {kind.__module__})"
            for path, (mark, kind) in unheeded.items()
        ]
        raise ValueError(
            f"statistics are marked that do not heed it: {', '.join(listed)}; jaxnorm.linen's "
            "BatchNorm takes the place of Flax's with the same arguments and variables; of what "
            "cannot be marked name the other parts alone"
        )


def apply_folded(model: nn.Module, variables: Any, *args: Any, **options: Any) -> Any:
    """`model.apply` of variables from `fold`, whose normalizations are not computed any more.

    A normalization with running statistics that has no variables gives its input back, and a layer
    that was built without a bias adds the one that it has in `params`; everything else is as in
    `apply`.

    Args:
        model: the network as it was trained.
        variables: what `fold` returned.
        args, options: of `model.apply`, in evaluation.
    """

    return _applied(model, variables, args, options, None)


def _applied(
    model: nn.Module, variables: Any, args: Any, options: Any, around: _pairs.Around | None
) -> Any:
    """Folded or other variables applied, each call of a module handed to `around`, if there is one.

    What `around` is given of a layer has the layer's new bias.
    """

    def intercepted(inner: Any, args: Any, options: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return inner(*args, **options)
        module = context.module
        call = partial(_without_norm, module, inner)
        if around is None:
            return call(*args, **options)
        return around("/".join(module.path), module, call, args, options)

    with nn.intercept_methods(intercepted):
        return model.apply(variables, *args, **options)


def _without_norm(module: Any, inner: Any, *args: Any, **options: Any) -> Any:
    """The call of a normalization that is folded, of a layer that it is folded into, or another."""
    if isinstance(module, _FOLDABLE) and not module.variables:
        return _passed_on(module, *args, **options)
    y = inner(*args, **options)
    if getattr(module, "use_bias", None) is False and module.has_variable("params", "bias"):
        bias = module.get_variable("params", "bias").astype(y.dtype)
        x, *rest = (*args, *options.values())
        call = _pairs.Call("", module, x, tuple(rest), y)
        y = y + _modules.spread_bias(bias, call)
    return y


def _passed_on(module: Any, x: jax.Array, *args: Any, **options: Any) -> jax.Array:
    """What went into a normalization, in the dtype in which it would come out."""
    parameters = getattr(module, "use_scale", False) or getattr(module, "use_bias", False)
    parameter = jnp.zeros((), module.param_dtype) if parameters else None
    return x.astype(_modules.result_dtype(module.dtype, x, parameter))


def _folded(variables: Any, pairs: Sequence[_pairs.Pair]) -> Any:
    """The variables with each layer's new kernel and bias, without the normalizations'."""
    flat: dict[Any, Any] = flatten_dict(unfreeze(variables))  # type: ignore[no-untyped-call]
    plain = unbox(flat)
    norms = {tuple(pair.norm.path.split("/")) for pair in pairs}
    for pair in pairs:
        layer, of = pair.layer, tuple(pair.norm.path.split("/"))
        at = ("params", *layer.path.split("/"))
        may_have_bias = (*at, "bias") in flat or hasattr(layer.module, "use_bias")
        if (*at, "kernel") not in flat or not may_have_bias:
            raise TypeError(
                f"{layer.path!r} is a {type(layer.module).__name__}, without a kernel, or without "
                "a bias and use_bias, of its own; what can be folded into is a layer such as "
                "Dense, Conv, ConvTranspose"
            )
        stats = {p[-1]: leaf for p, leaf in plain.items() if p[:-1] == ("batch_stats", *of)}
        kernel, bias = _modules.folded(
            pair,
            plain[*at, "kernel"],
            plain.get((*at, "bias")),
            stats,
            plain.get(("params", *of, "scale")),
            plain.get(("params", *of, "bias")),
        )
        for path, new in (((*at, "kernel"), kernel), ((*at, "bias"), bias)):
            old = flat.get(path)
            flat[path] = old.replace_boxed(new) if isinstance(old, AxisMetadata) else new
    kept = {
        path: leaf
        for path, leaf in flat.items()
        if not any(path[1 : 1 + len(norm)] == norm for norm in norms)
    }
    folded = unflatten_dict(kept)  # type: ignore[no-untyped-call]
    return freeze(folded) if isinstance(variables, FrozenDict) else folded


def _scale(module: Any, features: tuple[int, ...]) -> Any:
    if not module.use_scale:
        return None
    return module.param("scale", module.scale_init, features, module.param_dtype)


def _bias(module: Any, features: tuple[int, ...]) -> Any:
    if not module.use_bias:
        return None
    return module.param("bias", module.bias_init, features, module.param_dtype)


def _normalize(
    module: Any, function: Function, x: jax.Array, mask: jax.Array | None, *parameters: Any
) -> jax.Array:
    """A stateless normalization; in `init`, not synced, and of inputs of any size."""
    initializing = module.is_initializing()
    with one_value_passes() if initializing else nullcontext():
        return _modules.normalize(
            module,
            function,
            x,
            *parameters,
            dtype=_modules.result_dtype(module.dtype, x, *parameters),
            mask=mask,
            synced=not initializing,
        )
