"""Flax Linen modules: thin shells that create variables and call the functions.

The five normalizations that Flax has take Flax's arguments under Flax's names, in its order, and
make Flax's variables: `params` {"scale", "bias"} and `batch_stats` {"mean", "var"}. The arguments
that all modules share:

    dtype: of the result; by default what the input and the parameters promote to.
    param_dtype: of the parameters.
    use_scale, use_bias, scale_init, bias_init: which parameters there are, and how they start.
    axis_name, axis_index_groups: mapped axes to merge statistics over; not needed in `init`.
    use_fast_variance: taken for compatibility, without effect: the exact form is always used.
    force_float32_reductions: False keeps the running statistics in `param_dtype`; statistics are
        computed in float32 at least whatever it is.

and in the call

    mask: nonzero where a position counts; broadcasts to the input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype

import jaxnorm as jn
from jaxnorm import axes as _axes
from jaxnorm.batch import Schedule, default_d_max, default_r_max

Initializer = Callable[..., Any]


class BatchNorm(nn.Module):
    """Batch normalization: `jaxnorm.batch_norm` with its statistics in `batch_stats`.

    `init` does not update the statistics. `momentum=None` merges all batches exactly and keeps
    their `count` in `batch_stats` too.

    Attributes:
        use_running_average: True to normalize with the statistics in `batch_stats`, False to
            measure the batch and update them; here or in the call.
        axis: the axis of the channels.
        momentum: the weight of the old statistics.
        skip_nonfinite: leave the running statistics as they were in a step whose moments are not
            finite.

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
    axis: int = -1
    momentum: float | None = 0.99
    epsilon: float = 1e-5
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

    def _function(self) -> Callable[..., Any]:
        return jn.batch_norm

    def _init_stats(self, num_channels: int, dtype: Any) -> dict[str, jax.Array]:
        return jn.init_batch_stats(num_channels, momentum=self.momentum, dtype=dtype)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        use_running_average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        initializing = self.is_initializing()
        channel = _axes.single_axis(x.ndim, self.axis, "axis")
        features = (x.shape[channel],)
        stats_dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
        stats = {
            key: self.variable("batch_stats", key, lambda value: value, value)
            for key, value in self._init_stats(*features, stats_dtype).items()
        }
        scale, bias = _scale(self, features), _bias(self, features)
        x, dtype = _promoted(self, x, scale, bias)
        measurable = _axes.values_per_channel(x.shape, _axes.other_axes(x.ndim, (channel,))) != 1
        y, new = self._function()(
            x,
            {key: variable.value for key, variable in stats.items()},
            scale,
            bias,
            train=not use_running_average and (measurable or not initializing),
            momentum=self.momentum,
            epsilon=self.epsilon,
            channel_axis=channel,
            where=mask,
            axis_name=None if initializing else self.axis_name,
            axis_index_groups=None if initializing else self.axis_index_groups,
            skip_nonfinite=self.skip_nonfinite,
        )
        if not (use_running_average or initializing):
            for key, variable in stats.items():
                variable.value = (
                    new[key]
                    if self.force_float32_reductions
                    else new[key].astype(variable.value.dtype)
                )
        return jnp.asarray(y, dtype)


class GhostBatchNorm(BatchNorm):
    """Batch normalization in ghosts: `jaxnorm.ghost_batch_norm`; otherwise as `BatchNorm`.

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
        >>> y, _ = norm.init_with_output(jax.random.key(0), x)
        >>> print(y[:, 0].round(3))
        [-1.  1. -1.  1.]
    """

    ghost_size: int | None = None
    num_ghosts: int | None = None

    def _function(self) -> Callable[..., Any]:
        return partial(jn.ghost_batch_norm, ghost_size=self.ghost_size, num_ghosts=self.num_ghosts)


class BatchRenorm(BatchNorm):
    """Batch renormalization: `jaxnorm.batch_renorm`; otherwise as `BatchNorm`.

    `batch_stats` holds the number of training `steps` too, so schedules move on under `jit` and
    survive a checkpoint.

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

    r_max: float | Schedule = default_r_max
    d_max: float | Schedule = default_d_max

    def _function(self) -> Callable[..., Any]:
        return partial(jn.batch_renorm, r_max=self.r_max, d_max=self.d_max)

    def _init_stats(self, num_channels: int, dtype: Any) -> dict[str, jax.Array]:
        return jn.init_renorm_stats(num_channels, momentum=self.momentum, dtype=dtype)


class LayerNorm(nn.Module):
    """Layer normalization: `jaxnorm.layer_norm`.

    Attributes:
        reduction_axes: the axis or axes to measure over.
        feature_axes: the axis or axes with a scale and a bias of their own.

    References:
        Ba, Kiros and Hinton, "Layer normalization", 2016.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import LayerNorm
        >>> y, _ = LayerNorm().init_with_output(jax.random.key(0), jnp.array([[1.0, 3.0]]))
        >>> print(y.round(3))
        [[-1.  1.]]
    """

    epsilon: float = 1e-6
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
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        features = _features(x, self.feature_axes)
        return _sample_norm(
            self,
            partial(
                jn.layer_norm, reduction_axes=self.reduction_axes, feature_axes=self.feature_axes
            ),
            x,
            mask,
            _scale(self, features),
            _bias(self, features),
        )


class RMSNorm(nn.Module):
    """Root mean square normalization: `jaxnorm.rms_norm`.

    Attributes:
        reduction_axes: the axis or axes to measure over.
        feature_axes: the axis or axes with a scale of their own.

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

    epsilon: float = 1e-6
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

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        function = partial(
            jn.rms_norm, reduction_axes=self.reduction_axes, feature_axes=self.feature_axes
        )
        scale = _scale(self, _features(x, self.feature_axes))
        return _sample_norm(self, function, x, mask, scale)


class GroupNorm(nn.Module):
    """Group normalization: `jaxnorm.group_norm` of channels on the last axis.

    Attributes:
        num_groups: groups of channels; None where `group_size` is given.
        group_size: channels of a group; exclusive with `num_groups`.
        reduction_axes: the axes to measure over, the last among them; all but axis 0 by default.

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
    epsilon: float = 1e-6
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
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        features = _features(x, -1)
        return _sample_norm(
            self,
            partial(
                jn.group_norm,
                num_groups=self.num_groups,
                group_size=self.group_size,
                reduction_axes=self.reduction_axes,
            ),
            x,
            mask,
            _scale(self, features),
            _bias(self, features),
        )


class InstanceNorm(nn.Module):
    """Instance normalization: `jaxnorm.instance_norm`.

    Attributes:
        feature_axes: the axis of the channels.

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

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    feature_axes: int = -1
    axis_name: _axes.AxisName | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        features = _features(x, self.feature_axes)
        return _sample_norm(
            self,
            partial(jn.instance_norm, channel_axis=self.feature_axes),
            x,
            mask,
            _scale(self, features),
            _bias(self, features),
        )


def _features(x: jax.Array, axes: _axes.Axes) -> tuple[int, ...]:
    """The shape of the axes that have parameters of their own."""
    return tuple(x.shape[axis] for axis in _axes.canonical_axes(x.ndim, axes, "feature_axes"))


def _scale(module: Any, features: tuple[int, ...]) -> Any:
    if not module.use_scale:
        return None
    return module.param("scale", module.scale_init, features, module.param_dtype)


def _bias(module: Any, features: tuple[int, ...]) -> Any:
    if not module.use_bias:
        return None
    return module.param("bias", module.bias_init, features, module.param_dtype)


def _promoted(module: Any, x: jax.Array, *parameters: Any) -> tuple[jax.Array, Any]:
    """The input in a dtype that loses nothing, and Flax's dtype of the result."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = canonicalize_dtype(
            x, *(value for value in parameters if value is not None), dtype=module.dtype
        )
        return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), dtype)), dtype


def _sample_norm(
    module: Any,
    function: Callable[..., jax.Array],
    x: jax.Array,
    mask: jax.Array | None,
    *parameters: Any,
) -> jax.Array:
    """A stateless normalization in the module's dtype, synced except during `init`."""
    x, dtype = _promoted(module, x, *parameters)
    initializing = module.is_initializing()
    y = function(
        x,
        *parameters,
        epsilon=module.epsilon,
        where=mask,
        axis_name=None if initializing else module.axis_name,
        axis_index_groups=None if initializing else module.axis_index_groups,
    )
    return jnp.asarray(y, dtype)
