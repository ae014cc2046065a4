"""Folding: a normalization in evaluation becomes part of the layer before it or after it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import layers as _layers
from jaxnorm import states as _states

__all__ = ["fold_batch_norm", "fold_batch_norm_into_next"]

Padding = str | int | Sequence[int | tuple[int, int]] | None


def fold_batch_norm(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    stats: _states.BatchStats,
    norm_scale: ArrayLike | None,
    norm_bias: ArrayLike | None,
    *,
    epsilon: ArrayLike = 1e-5,
    kernel_axis: int = -1,
    layer: str | None = None,
    groups: int = 1,
    transpose_kernel: bool = False,
    equation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Fold a normalization into the layer before it: return the layer's new kernel and bias.

    The new kernel is kernel * s, along its output channels, and the new bias is
    (bias - mean) * s + norm_bias, with s = norm_scale / sqrt(var + epsilon). With them, the layer
    gives the result of the old layer followed by `batch_norm`, `ghost_batch_norm` or `batch_renorm`
    in evaluation. The layer must be linear in its kernel and add its bias to each channel. Strides,
    dilation, padding and groups of the input's channels do not matter.

    Args:
        kernel: of any shape, floating or complex, with C output channels.
        bias: the layer's bias, [C]; None if it has none. The bias of "flax.ConvLocal" has the
            positions of the output before the channels. The bias of a layer with an equation has
            the axes that its kernel and its output share, in the output's order and with the
            channels last.
        stats: {"mean", "var"}, each [C]: the running statistics that evaluation uses.
        norm_scale, norm_bias: those of the normalization, [C]; None if it has none.
        epsilon: that of the normalization: 1e-5 in Flax and PyTorch, 1e-3 in Keras.
        kernel_axis: the axis of the output channels, if no layer is given.
        layer: the type of the layer, which determines the channel axes of its kernel: "flax.Conv",
            "keras.DepthwiseConv2D", "pytorch.ConvTranspose2d" and others; the documentation and
            the error for an unknown type list them.
        groups: the layer's groups, which PyTorch's transposed convolutions need.
        transpose_kernel: the option of Flax's `ConvTranspose`.
        equation: the axes of the input, the kernel and the output, such as "abc,cd->abd", for
            "flax.Einsum", "keras.EinsumDense", and for "flax.DenseGeneral" and "flax.LinearGeneral"
            with a kernel of more than two axes.

    Returns:
        The new kernel, in the dtype of the old one, and the new bias, in the dtype of the old bias,
        or of the kernel if there was no bias, because a wider bias would promote the whole layer.
        Both are computed in float32 at least and rounded once.

    Raises:
        TypeError: a kernel of integers (fold before quantizing), complex statistics for a real
            kernel.
        ValueError: an axis out of range, an unknown layer, an option that the layer does not have,
            a kernel with another number of axes, a bias, a scale or statistics whose width is not
            the kernel's, statistics without a mean or a variance.

    References:
        Jacob et al., "Quantization and training of neural networks for efficient
        integer-arithmetic-only inference", 2018, section 3.2.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> kernel, x = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, -1.0]])
        >>> stats = {"mean": jnp.array([1.0, 2.0]), "var": jnp.array([4.0, 0.25])}
        >>> y, _ = jn.batch_norm(x @ kernel, stats, train=False, epsilon=0.0)
        >>> kernel, bias = jn.fold_batch_norm(kernel, None, stats, None, None, epsilon=0.0)
        >>> print(y, x @ kernel + bias)
        [[-1.5 -8. ]] [[-1.5 -8. ]]
    """
    described = _layers.Layer(layer, kernel_axis, None, groups, transpose_kernel, equation)
    operands = _operands(
        described, kernel, bias, stats, norm_scale, norm_bias, epsilon, into_next=False
    )
    layout = operands.layout
    shift = (operands.bias - operands.mean) * operands.ratio + operands.norm_bias
    ratio = _along(operands.ratio, layout.outputs, layout)
    return operands.result(operands.kernel * ratio, shift)


def fold_batch_norm_into_next(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    stats: _states.BatchStats,
    norm_scale: ArrayLike | None,
    norm_bias: ArrayLike | None,
    *,
    epsilon: ArrayLike = 1e-5,
    kernel_axis: int = -1,
    input_axis: int | None = None,
    layer: str | None = None,
    groups: int = 1,
    transpose_kernel: bool = False,
    equation: str | None = None,
    padding: Padding = None,
) -> tuple[jax.Array, jax.Array]:
    """Fold a normalization into the layer after it: return the layer's new kernel and bias.

    A normalization in evaluation gives x * s + t, with s = norm_scale / sqrt(var + epsilon) and
    t = norm_bias - mean * s. The new kernel is kernel * s, along its input channels, and the new
    bias is bias + sum(kernel * t), where the sum is over all axes of the kernel except that of the
    output channels. The normalization may be `batch_norm`, `ghost_batch_norm`, `batch_renorm` or
    `standardize_inputs` (centered, without a `clip`). Strides and dilation of the kernel do not
    matter.

    A layer that pads its input with zeros pads the normalized input. After folding, it would pad
    the input itself, and the bias would hold t for the padded positions too. So the layer must have
    no padding, or pad with values of the input ("CIRCULAR", "REFLECT", "REPLICATE"), or have a
    window of one position, for which "SAME" and "CAUSAL" do not pad. In other cases, pad the input
    of the normalization with the value that becomes zero, mean - norm_bias * sqrt(var + epsilon) /
    norm_scale (the mean if there is no norm_bias), give the layer no padding, and fold with
    padding="VALID". If t is zero in every channel, padding="VALID" is right for any padding. A
    dilation of the input is a padding with zeros too. Folding into a transposed convolution is an
    error: it sums over different positions of its kernel at each position of its output, so no
    single bias can hold the sum of t.

    Args:
        kernel: of any shape, floating or complex, with C input channels.
        bias: the layer's bias, [out]; None if it has none. The bias of "flax.ConvLocal" has the
            positions of the output before the channels. The bias of a layer with an equation has
            the axes that its kernel and its output share, in the output's order.
        stats: {"mean", "var"}, each [C]: the running statistics that evaluation uses; or a fit as
            from `update_input_stats`, whose features with var + epsilon = 0 are divided by 1, as in
            `standardize_inputs`.
        norm_scale, norm_bias: those of the normalization, [C]; None if it has none.
        epsilon: that of the normalization: 1e-5 in Flax and PyTorch, 1e-3 in Keras, by default 0 in
            `standardize_inputs`.
        kernel_axis, input_axis: the axis of the output channels and that of the input channels of
            a group, if no layer is given; by default the last axis and the one before it.
        layer: the type of the layer, as for `fold_batch_norm`.
        groups: the layer's groups of input channels.
        transpose_kernel: the option of Flax's `ConvTranspose`.
        equation: as for `fold_batch_norm`; the channels are the last axis of its input.
        padding: that of the layer, if its kernel has a window of positions: a string, a number, or
            a number or a pair for each position axis.

    Returns:
        The new kernel, in the dtype of the old one, and the new bias, in the dtype of the old bias,
        or of the kernel if there was no bias. Both are computed in float32 at least and rounded
        once.

    Raises:
        TypeError: a kernel of integers, complex statistics for a real kernel, a padding of another
            kind.
        ValueError: those of `fold_batch_norm`; a padding with zeros, or no padding given for a
            kernel with a window; a transposed convolution; a separable convolution, which is folded
            in two steps.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> kernel, x = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, -1.0]])
        >>> stats = {"mean": jnp.array([1.0, 2.0]), "var": jnp.array([4.0, 0.25])}
        >>> y, _ = jn.batch_norm(x, stats, train=False, epsilon=0.0)
        >>> new, bias = jn.fold_batch_norm_into_next(kernel, None, stats, None, None, epsilon=0.0)
        >>> print(y @ kernel, x @ new + bias)
        [[-18. -24.]] [[-18. -24.]]
    """
    described = _layers.Layer(layer, kernel_axis, input_axis, groups, transpose_kernel, equation)
    operands = _operands(
        described, kernel, bias, stats, norm_scale, norm_bias, epsilon, into_next=True
    )
    layout = operands.layout
    _check_window(described, layout, padding)
    offset = operands.norm_bias - operands.mean * operands.ratio
    summed = [place for place, name in enumerate(layout.names) if name not in layout.bias]
    kept = [name for name in layout.names if name in layout.bias]
    shift = (operands.kernel * _along(offset, layout.inputs, layout)).sum(summed)
    shift = shift.transpose([kept.index(name) for name in layout.bias])
    shift = operands.bias + shift.reshape(layout.bias_shape)
    ratio = _along(operands.ratio, layout.inputs, layout)
    return operands.result(operands.kernel * ratio, shift)


class _Operands(NamedTuple):
    """A layer and a normalization in one dtype, float32 at least.

    Attributes:
        kernel: in the shape of the layout.
        ratio: norm_scale / sqrt(var + epsilon).
        old_kernel, bias_dtype: the kernel as given, and the dtype of the new bias.
    """

    layout: _layers.Layout
    kernel: jax.Array
    bias: jax.Array
    mean: jax.Array
    ratio: jax.Array
    norm_bias: jax.Array
    old_kernel: jax.Array
    bias_dtype: Any

    def result(self, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The new kernel and bias in the shapes and the dtypes of the old ones."""
        bias = jnp.broadcast_to(bias, self.layout.bias_shape)
        old = self.old_kernel
        return kernel.reshape(old.shape).astype(old.dtype), bias.astype(self.bias_dtype)


def _operands(
    layer: _layers.Layer,
    kernel: ArrayLike,
    bias: ArrayLike | None,
    stats: _states.BatchStats,
    norm_scale: ArrayLike | None,
    norm_bias: ArrayLike | None,
    epsilon: ArrayLike,
    *,
    into_next: bool,
) -> _Operands:
    """Check the arguments against the axes of the kernel, and convert them."""
    _checks.check_epsilon(epsilon)
    old = _checks.as_kernel(kernel, "folding", "fold first and quantize the result")
    _check_stats(stats)
    layout = _layers.layout(layer, old.shape, jnp.size(stats["mean"]) if into_next else None)
    width, side = (layout.in_width, "input") if into_next else (layout.out_width, "output")
    channel_array = partial(
        _as_channel_array,
        kernel=old,
        shape=(width,),
        needs=f"{layout.kernel} has {width} {side} channels",
        cure=partial(_layers.cure, layer, layout, old.shape, into_next),
    )
    mean, var = (channel_array(f"the running {key}", stats[key]) for key in ("mean", "var"))
    scale = channel_array("norm_scale", norm_scale)
    offset = channel_array("norm_bias", norm_bias)
    needs = f"{layout.kernel} has {layout.out_width} output channels"
    own = _as_channel_array("bias", bias, old, layout.bias_shape, needs, lambda _: layout.cure)
    given = [array for array in (mean, var, scale, offset, own) if array is not None]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, old, *given)
    power = var.astype(dtype) + jnp.asarray(epsilon, dtype)
    of_zero = 1 if "min" in stats else 0  # as standardize_inputs has it, and as batch_norm
    rstd = jnp.where(power == 0, of_zero, 1 / jnp.sqrt(jnp.where(power == 0, 1, power)))
    zero = jnp.zeros((), dtype)
    return _Operands(
        layout=layout,
        kernel=old.astype(dtype).reshape(layout.sizes),
        bias=zero if own is None else own.astype(dtype),
        mean=mean.astype(dtype),
        ratio=rstd if scale is None else scale.astype(dtype) * rstd,
        norm_bias=zero if offset is None else offset.astype(dtype),
        old_kernel=old,
        bias_dtype=(old if own is None else own).dtype,
    )


def _along(vector: jax.Array, names: Sequence[str], layout: _layers.Layout) -> jax.Array:
    """A vector of channels, broadcast along the kernel axes `names`, which make up the channels."""
    places = [layout.names.index(name) for name in names]
    order = sorted(range(len(names)), key=places.__getitem__)
    broadcast = vector.reshape(layout.shape(names)).transpose(order)
    return jnp.expand_dims(broadcast, _axes.other_axes(len(layout.names), places))


INPUT_PADDINGS = ("VALID", "CIRCULAR", "REFLECT", "REPLICATE")
ZERO_PADDINGS = ("SAME", "SAME_LOWER", "CAUSAL")


def _check_window(layer: _layers.Layer, layout: _layers.Layout, padding: Padding) -> None:
    """Check that the shift of a channel is the same at each position of the output."""
    name = layer.name or "the layer"
    if "Separable" in name:
        raise ValueError(
            f"{name} applies its depthwise kernel to the input first; fold into this kernel with "
            f"layer={name.replace('Separable', 'Depthwise')!r}, which gives a bias, and add this "
            "bias times the pointwise kernel to the bias of the layer"
        )
    if "Transpose" in name:
        raise ValueError(
            f"{name} sums over different positions of its kernel at each position of its output, "
            "at the border and with strides, so no single bias can hold the shift that a "
            "normalization before it adds; keep this normalization, or fold it into a layer before "
            "it"
        )
    if layout.window is None:
        if padding is not None:
            raise ValueError(
                f"padding={padding!r} is given, but {layout.kernel} has no window of positions; "
                "leave padding out"
            )
        return
    if padding is None:
        raise ValueError(
            f"{layout.kernel} has a window of {layout.window} positions; give the padding of the "
            "layer, for example padding='VALID', since folding is not exact with every padding"
        )
    if not _is_exact(padding, layout.window):
        raise ValueError(
            f"padding={padding!r} cannot be folded: the layer pads the normalized input with "
            "zeros, but after folding it would pad the input of the normalization, where zero is "
            "not the same value, so the border would be wrong; pad that input with mean - "
            "norm_bias * sqrt(var + epsilon) / norm_scale in each channel (the mean if there is no "
            "norm_bias), which the normalization turns into zero, give the layer no padding, and "
            "fold with padding='VALID'"
        )


def _is_exact(padding: Any, window: Sequence[int]) -> bool:
    """Whether the window covers only values of the input."""
    if isinstance(padding, str):
        known = (*INPUT_PADDINGS, *ZERO_PADDINGS)
        if padding.upper() not in known:
            raise ValueError(
                f"padding={padding!r} is not one of {', '.join(known)} (upper or lower case)"
            )
        return padding.upper() in INPUT_PADDINGS or all(size == 1 for size in window)
    try:
        return all(operator.index(number) <= 0 for number in jax.tree.leaves(padding))
    except TypeError:
        raise TypeError(
            f"padding must be a string, a number, or a number or a pair of numbers for each "
            f"position axis, got {padding!r}"
        ) from None


def _check_stats(stats: _states.BatchStats) -> None:
    """Check that the running statistics have the entries that folding needs."""
    if not isinstance(stats, Mapping):
        raise TypeError(
            "the running statistics must be a dict with mean and var, such as those of batch_norm, "
            f"got a {type(stats).__name__}"
        )
    if missing := [key for key in ("mean", "var") if key not in stats]:
        raise ValueError(
            f"the running statistics lack {missing}; they have the keys {sorted(stats)}; give "
            "statistics with mean and var, such as those of batch_norm"
        )


def _as_channel_array(
    name: str,
    value: ArrayLike | None,
    kernel: jax.Array,
    shape: tuple[int, ...],
    needs: str,
    cure: Callable[[tuple[int, ...]], str],
) -> Any:
    """Return an array with a number for each channel of a kernel, or None for None."""
    if value is None:
        return None
    value = jnp.asarray(value)
    if value.shape != shape:
        raise ValueError(
            f"{name} has shape {value.shape}, but {needs}, which need shape {shape}; "
            f"{cure(value.shape)}"
        )
    if jnp.iscomplexobj(value) and jnp.isrealobj(kernel):
        raise TypeError(f"{name} is {value.dtype}, but the kernel is real; give real numbers")
    return value
