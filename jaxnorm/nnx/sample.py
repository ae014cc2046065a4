"""Layer, root mean square, group and instance normalization."""

from __future__ import annotations

from functools import partial
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
from jaxnorm.nnx.variables import Metadata, normalize, parameter
from jaxnorm.shells import Initializer

__all__ = ["GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]

# The module has both attributes, as Flax's has; the function takes one.
_BY_NUM_GROUPS = partial(jn.group_norm, group_size=None, channel_axis=-1)


class LayerNorm(nnx.Module):
    """Layer normalization: `jaxnorm.layer_norm`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each example over its features.
    x is of any shape. y has the shape of x and the dtype `dtype`, by default the dtype that x and
    the variables promote to.
    The call takes `segment_ids` and `num_segments` as the function does.

    Args:
        reduction_axes: the axis or axes to measure over.
        feature_axes: the axis or axes whose shape the scale and the bias have.
        epsilon: added to the variance; 1e-6 as in Flax (PyTorch, Haiku and Equinox: 1e-5, Keras:
            1e-3).

    In the call:
        scale, bias: used as the scale and the bias of a module without its own
            (`use_scale=False`, `use_bias=False`); shapes as for the function: [C], or [N, C] with
            one for each example.

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
        self.scale = parameter(self, use_scale, scale_init, rngs, scale_metadata)
        self.bias = parameter(self, use_bias, bias_init, rngs, bias_metadata)

    @_checks.mask_is_called("mask")
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        segment_ids: jax.Array | None = None,
        num_segments: int | None = None,
    ) -> jax.Array:
        given = {"scale": scale, "bias": bias}
        segments = {"segment_ids": segment_ids, "num_segments": num_segments}
        return normalize(self, jn.layer_norm, x, mask, self.feature_axes, given, **segments)


class RMSNorm(nnx.Module):
    """Root mean square normalization: `jaxnorm.rms_norm`.

    y = x / sqrt(mean(|x|^2) + epsilon) * (scale + scale_offset), for each example.
    x is of any shape. y has the shape of x and the dtype `dtype`, by default the dtype that x and
    the variables promote to.
    The call takes `segment_ids` and `num_segments` as the function does.

    Args:
        reduction_axes: the axis or axes to measure over.
        feature_axes: the axis or axes whose shape the scale has.
        epsilon: added to the mean square; 1e-6 as in Flax (PyTorch: the machine epsilon of the
            dtype).
        scale_offset: added to the scale in float32; 1.0 for models that store their weight as
            w - 1, with `scale_init=nnx.initializers.zeros`.

    In the call:
        scale: used as the scale of a module without its own (`use_scale=False`); shapes as for the
            function: [C], or [N, C] with one for each example.

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
        self.scale = parameter(self, use_scale, scale_init, rngs, scale_metadata)

    @_checks.mask_is_called("mask")
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        scale: ArrayLike | None = None,
        segment_ids: jax.Array | None = None,
        num_segments: int | None = None,
    ) -> jax.Array:
        given = {"scale": scale}
        segments = {"segment_ids": segment_ids, "num_segments": num_segments}
        return normalize(self, jn.rms_norm, x, mask, self.feature_axes, given, **segments)


class GroupNorm(nnx.Module):
    """Group normalization: `jaxnorm.group_norm` of channels on the last axis.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each group of channels of each example.
    x is [N, ..., C], or [C] for one example. y has the shape of x and the dtype `dtype`, by default
    the dtype that x and the variables promote to.
    The call takes `segment_ids` and `num_segments` as the function does.

    Args:
        num_groups: the number of groups of channels; None if `group_size` is given.
        group_size: the number of channels of a group; give this or `num_groups`.
        reduction_axes: the axes to measure over, including the last; by default all except axis 0.
        epsilon: added to the variance; 1e-6 as in Flax (PyTorch and Haiku: 1e-5, Keras: 1e-3).

    In the call:
        scale, bias: used as the scale and the bias of a module without its own
            (`use_scale=False`, `use_bias=False`); shapes as for the function: [C], or [N, C] with
            one for each example.

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
        self.scale = parameter(self, use_scale, scale_init, rngs, scale_metadata)
        self.bias = parameter(self, use_bias, bias_init, rngs, bias_metadata)

    @_checks.mask_is_called("mask")
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        segment_ids: jax.Array | None = None,
        num_segments: int | None = None,
    ) -> jax.Array:
        given = {"scale": scale, "bias": bias}
        segments = {"segment_ids": segment_ids, "num_segments": num_segments}
        return normalize(self, _BY_NUM_GROUPS, x, mask, -1, given, **segments)


class InstanceNorm(nnx.Module):
    """Instance normalization: `jaxnorm.instance_norm`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel of each example.
    x is [N, ..., C] (C at `feature_axes`). y has the shape of x and the dtype `dtype`, by default
    the dtype that x and the variables promote to.
    The call takes `segment_ids` and `num_segments` as the function does.

    Args:
        feature_axes: the axis or axes of the channels.
        epsilon: added to the variance; 1e-6 as in Flax (PyTorch: 1e-5, Keras: 1e-3).

    In the call:
        scale, bias: used as the scale and the bias of a module without its own
            (`use_scale=False`, `use_bias=False`); shapes as for the function: [C], or [N, C] with
            one for each example.

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
        self.scale = parameter(self, use_scale, scale_init, rngs, scale_metadata)
        self.bias = parameter(self, use_bias, bias_init, rngs, bias_metadata)

    @_checks.mask_is_called("mask")
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        segment_ids: jax.Array | None = None,
        num_segments: int | None = None,
    ) -> jax.Array:
        given = {"scale": scale, "bias": bias}
        segments = {"segment_ids": segment_ids, "num_segments": num_segments}
        return normalize(self, jn.instance_norm, x, mask, self.feature_axes, given, **segments)
