"""Layer, root mean square, group and instance normalization."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import jaxnorm as jn
from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm.linen.variables import normalize
from jaxnorm.shells import Initializer

__all__ = ["GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]

_LAST_CHANNELS = partial(jn.group_norm, channel_axis=-1)


class LayerNorm(nn.Module):
    """Layer normalization: `jaxnorm.layer_norm`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each example over its features.
    x is of any shape. y has the shape of x and the dtype `dtype`, by default the dtype that x and
    the parameters promote to.
    The call takes `segment_ids` and `num_segments` as the function does.

    Attributes:
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


class RMSNorm(nn.Module):
    """Root mean square normalization: `jaxnorm.rms_norm`.

    y = x / sqrt(mean(|x|^2) + epsilon) * (scale + scale_offset), for each example.
    x is of any shape. y has the shape of x and the dtype `dtype`, by default the dtype that x and
    the parameters promote to.
    The call takes `segment_ids` and `num_segments` as the function does.

    Attributes:
        reduction_axes: the axis or axes to measure over.
        feature_axes: the axis or axes whose shape the scale has.
        epsilon: added to the mean square; 1e-6 as in Flax (PyTorch: the machine epsilon of the
            dtype).
        scale_offset: added to the scale in float32; 1.0 for models that store their weight as
            w - 1, with `scale_init=nn.initializers.zeros`.

    In the call:
        scale: used as the scale of a module without its own (`use_scale=False`); shapes as for the
            function: [C], or [N, C] with one for each example.

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
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        scale: ArrayLike | None = None,
        segment_ids: jax.Array | None = None,
        num_segments: int | None = None,
    ) -> jax.Array:
        given = {"scale": scale}
        segments = {"segment_ids": segment_ids, "num_segments": num_segments}
        return normalize(self, jn.rms_norm, x, mask, self.feature_axes, given, **segments)


class GroupNorm(nn.Module):
    """Group normalization: `jaxnorm.group_norm` of channels on the last axis.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each group of channels of each example.
    x is [N, ..., C], or [C] for one example. y has the shape of x and the dtype `dtype`, by default
    the dtype that x and the parameters promote to.
    The call takes `segment_ids` and `num_segments` as the function does.

    Attributes:
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
        return normalize(self, _LAST_CHANNELS, x, mask, -1, given, **segments)


class InstanceNorm(nn.Module):
    """Instance normalization: `jaxnorm.instance_norm`.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel of each example.
    x is [N, ..., C] (C at `feature_axes`). y has the shape of x and the dtype `dtype`, by default
    the dtype that x and the parameters promote to.
    The call takes `segment_ids` and `num_segments` as the function does.

    Attributes:
        feature_axes: the axis or axes of the channels.
        epsilon: added to the variance; 1e-6 as in Flax (PyTorch: 1e-5, Keras: 1e-3).

    In the call:
        scale, bias: used as the scale and the bias of a module without its own
            (`use_scale=False`, `use_bias=False`); shapes as for the function: [C], or [N, C] with
            one for each example.

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
