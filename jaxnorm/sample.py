"""Normalizations within one example: layer, RMS, group and instance normalization."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import segments as _segments
from jaxnorm.scope import Scope, by_segment
from jaxnorm.standardize import normalize

__all__ = ["group_norm", "instance_norm", "layer_norm", "rms_norm"]

_one_value_passes = ContextVar("_one_value_passes", default=False)


@contextmanager
def one_value_passes() -> Iterator[None]:
    """In this context one value in every group is no error, as Linen's `init` needs."""
    token = _one_value_passes.set(True)
    try:
        yield
    finally:
        _one_value_passes.reset(token)


@_checks.mask_is_called("where")
def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    reduction_axes: _axes.Axes = -1,
    feature_axes: _axes.Axes = -1,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: int | None = None,
    axis_name: _axes.AxisName | None = None,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> jax.Array:
    """Normalize each example over its features (layer normalization).

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, with the mean and the biased variance over
    `reduction_axes`, at each index of the other axes.

    Args:
        x: floating or complex, any shape.
        scale, bias: of the shape of `feature_axes` of `x` in ascending order, or None for 1 and 0.
            To give each example its own, put leading axes of `x` in front of these, each of
            full size or 1: for `x` [N, T, C], [C] may also be [N, C], [N, 1, C] or [N, T, C].
        reduction_axes: the axis or axes to measure over.
        feature_axes: the axis or axes that the scale and the bias have.
        epsilon: added to the variance; a number or a scalar array, which may be traced.
        where: a mask that broadcasts to `x`, nonzero at the positions to measure. The others affect
            neither the statistics nor the results and gradients at these positions.
        segment_ids: int [N], the segment of each of the N rows of `x` (its entries along axis 0),
            in any order. Each segment is then normalized like one example: its rows are measured
            together, over `reduction_axes` (whether these include axis 0 or not). A row with an id
            outside [0, num_segments) belongs to no segment, and its result is the bias.
        num_segments: the number of segments, a Python int; some may have no rows.
        axis_name: mapped axis or axes over which the features are split.
        axis_index_groups: lists of indices of the mapped axis; each list is merged separately.

    Returns:
        y, of the shape and dtype of `x`.

    Raises:
        TypeError: an integer input.
        ValueError: an axis out of range or given twice, one value to measure over, a scale of the
            wrong shape, a mask that does not broadcast, an axis name that is not mapped, a negative
            epsilon; one of `segment_ids` and `num_segments` without the other, ids whose shape is
            not [N], segments together with features along axis 0.

    Conventions:
        One value to measure over is an error: its variance is zero, and the output would be only
        the bias, as in Flax. A mask or a segment may leave only one value; the result is then the
        bias.
        Epsilon is 1e-6, as in Flax (PyTorch, Haiku and Equinox: 1e-5; Keras: 1e-3).

    References:
        Ba, Kiros and Hinton, "Layer normalization", 2016, section 3.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> print(jn.layer_norm(jnp.array([1.0, 3.0])).round(3))
        [-1.  1.]
        >>> x, graph = jnp.array([[1.0], [10.0], [3.0], [30.0]]), jnp.array([0, 1, 0, 1])
        >>> print(jn.layer_norm(x, segment_ids=graph, num_segments=2)[:, 0].round(3))
        [-1. -1.  1.  1.]
    """
    x = _checks.as_input(x)
    reduced = _axes.nonempty_axes(x.ndim, reduction_axes, "reduction_axes")
    features = _axes.canonical_axes(x.ndim, feature_axes, "feature_axes")
    return _normalize(
        x,
        _checks.as_parameter("scale", scale, x, features),
        _checks.as_parameter("bias", bias, x, features),
        _checks.as_mask(where, x.shape),
        Scope(reduced),
        features=features,
        epsilon=epsilon,
        segments=_segments.as_segments(segment_ids, num_segments, x, features),
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
    )


@_checks.mask_is_called("where")
def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    reduction_axes: _axes.Axes = -1,
    feature_axes: _axes.Axes = -1,
    epsilon: ArrayLike = 1e-6,
    scale_offset: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: int | None = None,
    axis_name: _axes.AxisName | None = None,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> jax.Array:
    """Divide each example by the root mean square of its features (RMS normalization).

    y = x / sqrt(mean(|x|^2) + epsilon) * (scale + scale_offset).

    Args:
        scale_offset: added to the scale in float32; 1.0 for models that store their weight w as
            w - 1, so that weight decay pulls w to one.

    The other arguments, the result and the errors are those of `layer_norm`; a `scale_offset`
    without a scale is a `ValueError` too. One value to measure over is no error: the result is its
    sign, times the scale. A masked position that is not finite gives 0.

    Conventions:
        Epsilon is 1e-6, as in Flax (PyTorch: the dtype's machine epsilon by default).

    References:
        Zhang and Sennrich, "Root mean square layer normalization", 2019, section 4.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> print(jn.rms_norm(jnp.array([3.0, 4.0, 0.0, 0.0])).round(3))
        [1.2 1.6 0.  0. ]
    """
    x = _checks.as_input(x)
    reduced = _axes.nonempty_axes(x.ndim, reduction_axes, "reduction_axes")
    features = _axes.canonical_axes(x.ndim, feature_axes, "feature_axes")
    return _normalize(
        x,
        _offset(_checks.as_parameter("scale", scale, x, features), scale_offset),
        None,
        _checks.as_mask(where, x.shape),
        Scope(reduced, about_zero=True),
        features=features,
        epsilon=epsilon,
        segments=_segments.as_segments(segment_ids, num_segments, x, features),
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
    )


@_checks.mask_is_called("where")
def group_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    channel_axis: int = -1,
    reduction_axes: _axes.Axes | None = None,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: int | None = None,
    axis_name: _axes.AxisName | None = None,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> jax.Array:
    """Normalize each group of channels of each example (group normalization).

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, with the mean and the biased variance of
    each example over the positions and the consecutive channels of a group.

    Args:
        x: floating or complex [N, ..., C] (C at `channel_axis`), where axis 0 is the batch; or [C],
            one example.
        scale, bias: [C], or None for 1 and 0; [N, C] and the like give each example its own, as in
            `layer_norm`.
        num_groups: the number of groups of channels; None if `group_size` is given.
        group_size: the number of channels in a group; needs `num_groups=None`.
        channel_axis: the channel axis.
        reduction_axes: the axes to measure over, including the channel axis; None for all except
            axis 0.

    The other arguments, the result and the errors are those of `layer_norm`; a number or a size of
    groups that does not divide the channels is a `ValueError` too. With `segment_ids`, a group is
    measured over the rows and positions of its segment.

    Conventions:
        32 groups and epsilon 1e-6, as in Flax (PyTorch and Haiku: 1e-5, Keras: 1e-3).

    References:
        Wu and He, "Group normalization", 2018, section 3.1.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
        >>> print(jn.group_norm(x, num_groups=2).round(3))
        [[-1.  1. -1.  1.]]
    """
    x = _checks.as_input(x)
    channel = _axes.single_axis(x.ndim, channel_axis)
    size = _axes.group_size_of(x.shape[channel], num_groups, group_size)
    positions = _positions(x.ndim, channel, reduction_axes)
    mask = _checks.as_mask(where, x.shape)
    scope = Scope(positions, channel, size)
    scale = _checks.as_parameter("scale", scale, x, (channel,))
    bias = _checks.as_parameter("bias", bias, x, (channel,))
    return _normalize(
        x,
        scale,
        bias,
        mask,
        scope,
        features=(channel,),
        epsilon=epsilon,
        segments=_segments.as_segments(segment_ids, num_segments, x, (channel,)),
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
    )


@_checks.mask_is_called("where")
def instance_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    channel_axis: _axes.Axes = -1,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: int | None = None,
    axis_name: _axes.AxisName | None = None,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> jax.Array:
    """Normalize each channel of each example over its positions (instance normalization).

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, with the mean and the biased variance of
    each channel of each example.

    Args:
        x: floating or complex [N, ..., C] (C at `channel_axis`), where axis 0 is the batch, with at
            least one axis of positions (with `segment_ids`, none is needed: a channel is measured
            over the rows and positions of its segment).
        scale, bias: [C], or None for 1 and 0; [N, C] and the like give each example its own, as in
            `layer_norm`.
        channel_axis: the channel axis, or several; C is then their shape, in ascending order.

    The other arguments, the result and the errors are those of `layer_norm`.

    Conventions:
        Epsilon is 1e-6, as in Flax (PyTorch and Haiku: 1e-5).

    References:
        Ulyanov, Vedaldi and Lempitsky, "Instance normalization: the missing ingredient for fast
        stylization", 2016, section 2.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
        >>> print(jn.instance_norm(x).round(3))
        [[[-1. -1.]
          [ 1.  1.]]]
    """
    x = _checks.as_input(x)
    channels = _axes.nonempty_axes(x.ndim, channel_axis, "channel_axis")
    segments = _segments.as_segments(segment_ids, num_segments, x, channels)
    measured = _axes.sample_axes if segments is None else _axes.positions
    return _normalize(
        x,
        _checks.as_parameter("scale", scale, x, channels),
        _checks.as_parameter("bias", bias, x, channels),
        _checks.as_mask(where, x.shape),
        Scope(measured(x.ndim, channels)),
        features=channels,
        epsilon=epsilon,
        segments=segments,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
    )


def _normalize(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    scope: Scope,
    *,
    features: tuple[int, ...],
    epsilon: ArrayLike,
    segments: _segments.Segments | None,
    axis_name: _axes.AxisName | None,
    axis_index_groups: _axes.AxisIndexGroups,
) -> jax.Array:
    """`x` standardized by its own moments over `scope` and the mapped axes."""
    _checks.check_epsilon(epsilon)
    axis_size = _axes.mapped_size(axis_name, axis_index_groups)
    scope, mask = by_segment(scope, segments, mask, x.ndim)
    if not (scope.about_zero or _one_value_passes.get()):
        rows = 1 if segments is None else x.shape[0]
        values = rows * scope.group_size * _axes.values_per_channel(x.shape, scope.reduced)
        _checks.check_values_per_group(x.shape, axis_size * values)
    groups = _axes.hashable_groups(axis_index_groups)
    scope = scope._replace(axis_name=axis_name, axis_index_groups=groups)
    y, _ = normalize(x, scope, scale, bias, features, epsilon=epsilon, mask=mask)
    return y


def _offset(scale: jax.Array | None, scale_offset: ArrayLike) -> jax.Array | None:
    """scale + scale_offset in the scale's dtype."""
    _checks.check_number("scale_offset", scale_offset, -math.inf)
    if not _checks.is_traced(scale_offset) and scale_offset == 0:
        return scale
    if scale is None:
        raise ValueError(f"scale_offset={scale_offset!r} needs a scale to be added to; give scale")
    return scale + jnp.asarray(scale_offset, scale.dtype)


def _positions(ndim: int, channel: int, reduction_axes: _axes.Axes | None) -> tuple[int, ...]:
    """The axes that a group is measured over, except the channel axis, which must be among them."""
    if reduction_axes is None:
        return () if ndim == 1 else _axes.positions(ndim, (channel,))
    reduced = _axes.nonempty_axes(ndim, reduction_axes, "reduction_axes")
    if channel not in reduced:
        raise ValueError(
            f"reduction_axes={reduction_axes!r} must include the channel axis {channel}, along "
            "which the groups are measured"
        )
    return tuple(axis for axis in reduced if axis != channel)
