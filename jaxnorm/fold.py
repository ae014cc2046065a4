"""A normalization in evaluation, folded into the layer before it or after it."""

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
    """The kernel and the bias of a layer that gives what it and the normalization after it gave.

    kernel * s and (bias - mean) * s + norm_bias, with s = norm_scale / sqrt(var + epsilon) along
    the kernel's output channels: a layer that is linear in its kernel and adds its bias to each
    channel takes the whole of `batch_norm`, `ghost_batch_norm` and `batch_renorm` in evaluation.
    Strides, dilation, padding and groups of the input's channels do not matter.

    Args:
        kernel: of C output channels, any shape, floating or complex.
        bias: of the layer, [C]; None for one without. That of "flax.ConvLocal" has the positions of
            the output before the channels, that of an equation the axes that its kernel and its
            output share, in the output's order and with the channels last.
        stats: {"mean", "var"}, each [C], as in evaluation.
        norm_scale, norm_bias: of the normalization, [C]; None for one without.
        epsilon: that of the normalization: 1e-5 in Flax and PyTorch, 1e-3 in Keras.
        kernel_axis: the axis of the output channels, where no layer is given.
        layer: the type of the layer, which says where its kernel has the channels: "flax.Conv",
            "keras.DepthwiseConv2D", "pytorch.ConvTranspose2d" and others, which the documentation
            and the error of an unknown one list.
        groups: of the layer, as PyTorch's transposed convolutions need it.
        transpose_kernel: as of Flax's `ConvTranspose`.
        equation: of "flax.Einsum", "keras.EinsumDense", and of "flax.DenseGeneral" and
            "flax.LinearGeneral" with more axes than two: "abc,cd->abd", the input, the kernel and
            the output.

    Returns:
        The kernel in its dtype and a bias as described above in the dtype of the bias, or of the
        kernel where there was none: a wider one would promote the whole layer. Computed in float32
        at least and rounded once.

    Raises:
        TypeError: a kernel of integers (fold before quantizing), complex statistics for a real one.
        ValueError: an axis out of range, an unknown layer, an option that the layer has not, a
            kernel of another number of axes, a bias, a scale or statistics of another width than
            the kernel's, or statistics without a mean or a variance.

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
    of = _parts(described, kernel, bias, stats, norm_scale, norm_bias, epsilon, into_next=False)
    layout = of.layout
    shift = (of.bias - of.mean) * of.ratio + of.norm_bias
    return of.result(of.kernel * _along(of.ratio, layout.outputs, layout), shift)


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
    """The kernel and the bias of a layer that gives what it gave of the normalization before it.

    kernel * s along its input channels and bias + sum(kernel * t), with s = norm_scale /
    sqrt(var + epsilon) and t = norm_bias - mean * s, since a normalization in evaluation gives
    x * s + t; the sum is over all axes of the kernel but that of the output channels. It takes
    `batch_norm`, `ghost_batch_norm`, `batch_renorm` and `standardize_inputs` (without a `clip`).
    Strides and dilation of the kernel do not matter.

    A layer that pads its input with zeros pads the normalized input. Folded it would pad the input
    itself, and t would be added at positions that are not there; so the padding must be none, or of
    values of the input ("CIRCULAR", "REFLECT", "REPLICATE"), or none because the window is of one
    position ("SAME", "CAUSAL"). For another one, pad the input of the layer with what is
    normalized to zero, mean - norm_bias * sqrt(var + epsilon) / norm_scale (the mean where there is
    no norm_bias), give the layer no padding, and fold with padding="VALID"; which also is right
    where t is zero in every channel. A dilation of the input is such a padding too. A transposed
    convolution sums over other positions of its kernel at each position of its output: no single
    bias holds t there, and nothing is folded.

    Args:
        kernel: of C input channels, any shape, floating or complex.
        bias: of the layer, [out]; None for one without. That of "flax.ConvLocal" has the positions
            of the output before the channels, that of an equation the axes that its kernel and its
            output share, in the output's order.
        stats: {"mean", "var"}, each [C], as in evaluation; or a fit as from `update_input_stats`,
            of whose features those of var + epsilon = 0 are divided by 1, as by
            `standardize_inputs`.
        norm_scale, norm_bias: of the normalization, [C]; None for one without.
        epsilon: that of the normalization: 1e-5 in Flax and PyTorch, 1e-3 in Keras, 0 by default of
            `standardize_inputs`.
        kernel_axis, input_axis: the axes of the output channels and of the input channels of a
            group, where no layer is given; None: the last and the one before it.
        layer: the type of the layer, as for `fold_batch_norm`.
        groups: of the input's channels, as the layer has them.
        transpose_kernel: as of Flax's `ConvTranspose`.
        equation: as for `fold_batch_norm`; the channels are the last axis of its input.
        padding: that of the layer, where its kernel has a window of positions: a string, a number,
            or a number or a pair for each position axis.

    Returns:
        The kernel in its dtype and a bias as described above in the dtype of the bias, or of the
        kernel where there was none. Computed in float32 at least and rounded once.

    Raises:
        TypeError: a kernel of integers, complex statistics for a real one, a padding of another
            kind.
        ValueError: as of `fold_batch_norm`; a padding with zeros, or none where there is a window;
            a transposed convolution; a separable one, which is folded in two steps.

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
    of = _parts(described, kernel, bias, stats, norm_scale, norm_bias, epsilon, into_next=True)
    layout = of.layout
    _check_window(described, layout, padding)
    offset = of.norm_bias - of.mean * of.ratio
    summed = [place for place, name in enumerate(layout.names) if name not in layout.bias]
    kept = [name for name in layout.names if name in layout.bias]
    shift = (of.kernel * _along(offset, layout.inputs, layout)).sum(summed)
    shift = shift.transpose([kept.index(name) for name in layout.bias])
    shift = of.bias + shift.reshape(layout.bias_shape)
    return of.result(of.kernel * _along(of.ratio, layout.inputs, layout), shift)


class _Parts(NamedTuple):
    """What is folded, in one dtype, wide enough; `like` has the old kernel and the bias' dtype."""

    layout: _layers.Layout
    kernel: jax.Array
    bias: jax.Array
    mean: jax.Array
    ratio: jax.Array
    norm_bias: jax.Array
    like: tuple[jax.Array, Any]

    def result(self, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The new kernel and bias in the shape and the dtypes of the old ones."""
        old, dtype = self.like
        bias = jnp.broadcast_to(bias, self.layout.bias_shape)
        return kernel.reshape(old.shape).astype(old.dtype), bias.astype(dtype)


def _parts(
    layer: _layers.Layer,
    kernel: ArrayLike,
    bias: ArrayLike | None,
    stats: _states.BatchStats,
    norm_scale: ArrayLike | None,
    norm_bias: ArrayLike | None,
    epsilon: ArrayLike,
    *,
    into_next: bool,
) -> _Parts:
    """The arguments, checked against the axes of the kernel."""
    _checks.check_epsilon(epsilon)
    old = _as_kernel(kernel)
    _check_stats(stats)
    layout = _layers.layout(layer, old.shape, jnp.size(stats["mean"]) if into_next else None)
    width, side = (layout.in_width, "input") if into_next else (layout.out_width, "output")
    of_channels = partial(
        _of_kernel,
        kernel=old,
        shape=(width,),
        needs=f"{layout.kernel} has {width} {side} channels",
        cure=partial(_layers.cure, layer, layout, old.shape, into_next),
    )
    mean, var = (of_channels(f"the running {key}", stats[key]) for key in ("mean", "var"))
    scale = of_channels("norm_scale", norm_scale)
    offset = of_channels("norm_bias", norm_bias)
    needs = f"{layout.kernel} has {layout.out_width} output channels"
    own = _of_kernel("bias", bias, old, layout.bias_shape, needs, lambda _: layout.cure)
    given = [array for array in (mean, var, scale, offset, own) if array is not None]
    with jax.numpy_dtype_promotion("standard"):
        wide = jnp.result_type(jnp.float32, old, *given)
    power = var.astype(wide) + jnp.asarray(epsilon, wide)
    still = 1 if "min" in stats else 0  # of no variance: as standardize_inputs, as batch_norm
    rstd = jnp.where(power == 0, still, 1 / jnp.sqrt(jnp.where(power == 0, 1, power)))
    zero = jnp.zeros((), wide)
    return _Parts(
        layout=layout,
        kernel=old.astype(wide).reshape(layout.sizes),
        bias=zero if own is None else own.astype(wide),
        mean=mean.astype(wide),
        ratio=rstd if scale is None else scale.astype(wide) * rstd,
        norm_bias=zero if offset is None else offset.astype(wide),
        like=(old, (old if own is None else own).dtype),
    )


def _along(vector: jax.Array, names: Sequence[str], layout: _layers.Layout) -> jax.Array:
    """A number for each channel where the kernel has the channels, of one or two axes."""
    places = [layout.names.index(name) for name in names]
    order = sorted(range(len(names)), key=places.__getitem__)
    broadcast = vector.reshape(layout.shape(names)).transpose(order)
    return jnp.expand_dims(broadcast, _axes.other_axes(len(layout.names), places))


OF_THE_INPUT = ("VALID", "CIRCULAR", "REFLECT", "REPLICATE")
WITH_ZEROS = ("SAME", "SAME_LOWER", "CAUSAL")


def _check_window(layer: _layers.Layer, layout: _layers.Layout, padding: Padding) -> None:
    """The shift of a channel is added as often at each position of the output."""
    name = layer.name or "the layer"
    if "Separable" in name:
        raise ValueError(
            f"the input of {name} meets its depthwise kernel first; fold into that one with "
            f"layer={name.replace('Separable', 'Depthwise')!r}, which gives a bias, and add this "
            "bias times the pointwise kernel to the bias of the layer"
        )
    if "Transpose" in name:
        raise ValueError(
            f"{name} sums over other positions of its kernel at each position of its output, at "
            "the border and with strides, so that no bias holds the shift of a normalization "
            "before it; leave that normalization, or fold it into a layer before it"
        )
    if layout.window is None:
        if padding is not None:
            raise ValueError(
                f"padding={padding!r} is given, but {layout.kernel} has no window of positions; "
                "leave it out"
            )
        return
    if padding is None:
        raise ValueError(
            f"{layout.kernel} has a window of {layout.window} positions; give the padding of the "
            "layer, for example padding='VALID': folding is exact without padding alone"
        )
    if not _is_exact(padding, layout.window):
        raise ValueError(
            f"padding={padding!r} cannot be folded: the layer pads with zeros what is normalized, "
            "and folded it would pad the input of the normalization, where zero is another value, "
            "so the border would be off; pad that input with mean - norm_bias * "
            "sqrt(var + epsilon) / norm_scale in each channel (the mean where there is no "
            "norm_bias), which is normalized to zero, give the layer no padding, and fold with "
            "padding='VALID'"
        )


def _is_exact(padding: Any, window: Sequence[int]) -> bool:
    """Whether nothing but values of the input is under the window."""
    if isinstance(padding, str):
        known = (*OF_THE_INPUT, *WITH_ZEROS)
        if padding.upper() not in known:
            raise ValueError(f"padding={padding!r} is none of {', '.join(known)}, in any case")
        return padding.upper() in OF_THE_INPUT or all(size == 1 for size in window)
    try:
        return all(operator.index(number) <= 0 for number in jax.tree.leaves(padding))
    except TypeError:
        raise TypeError(
            f"padding must be a string, a number, or numbers or pairs of numbers for each position "
            f"axis, got {padding!r}"
        ) from None


def _as_kernel(kernel: ArrayLike) -> jax.Array:
    """`kernel` as an array of a real or complex floating type."""
    kernel = jnp.asarray(kernel)
    if not jnp.issubdtype(kernel.dtype, jnp.inexact):
        raise TypeError(
            f"the kernel has dtype {kernel.dtype}; folding multiplies it, so give a floating or "
            "complex one: fold first and quantize the result"
        )
    return kernel


def _check_stats(stats: _states.BatchStats) -> None:
    """Running statistics with what folding needs."""
    if not isinstance(stats, Mapping):
        raise TypeError(
            f"the running statistics must be a dict with mean and var, got {type(stats).__name__}"
        )
    if missing := [key for key in ("mean", "var") if key not in stats]:
        raise ValueError(
            f"the running statistics lack {missing}; they have the keys {sorted(stats)}; give "
            "those that batch_norm keeps, with mean and var"
        )


def _of_kernel(
    name: str,
    value: ArrayLike | None,
    kernel: jax.Array,
    shape: tuple[int, ...],
    needs: str,
    cure: Callable[[tuple[int, ...]], str],
) -> Any:
    """An array with a number for each channel of a kernel."""
    if value is None:
        return None
    value = jnp.asarray(value)
    if value.shape != shape:
        raise ValueError(
            f"{name} has shape {value.shape}, but {needs}, which need {shape}; {cure(value.shape)}"
        )
    if jnp.iscomplexobj(value) and jnp.isrealobj(kernel):
        raise TypeError(f"{name} is {value.dtype}, but the kernel is real; give a real {name}")
    return value
