"""The channel axes of the kernels of layers of Flax, Keras and PyTorch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxnorm import axes as _axes

# The axes of each layer's kernel. `window*` is one axis or more. Parentheses are one axis that
# holds two, of which the first varies more slowly. The channels of the input are (groups in), those
# of the output (groups out); of a depthwise layer they are (in) and (in multiplier). Along
# `places*` weights are not shared: each position of the output has its own weights and biases.
AXES = {
    "flax.Dense": "in out",
    "flax.Linear": "in out",
    "flax.DenseGeneral": "in out",
    "flax.LinearGeneral": "in out",
    "flax.Einsum": "",
    "flax.Conv": "window* in (groups out)",
    "flax.ConvLocal": "places* (in window) out",
    "flax.ConvTranspose": "window* in out",
    "keras.Dense": "in out",
    "keras.EinsumDense": "",
    "keras.Conv1D": "length in (groups out)",
    "keras.Conv2D": "height width in (groups out)",
    "keras.Conv3D": "depth height width in (groups out)",
    "keras.DepthwiseConv1D": "length in multiplier",
    "keras.DepthwiseConv2D": "height width in multiplier",
    "keras.SeparableConv1D": "length in out",
    "keras.SeparableConv2D": "height width in out",
    "keras.Conv1DTranspose": "length out in",
    "keras.Conv2DTranspose": "height width out in",
    "keras.Conv3DTranspose": "depth height width out in",
    "pytorch.Linear": "out in",
    "pytorch.Conv1d": "(groups out) in length",
    "pytorch.Conv2d": "(groups out) in height width",
    "pytorch.Conv3d": "(groups out) in depth height width",
    "pytorch.ConvTranspose1d": "(groups in) out length",
    "pytorch.ConvTranspose2d": "(groups in) out height width",
    "pytorch.ConvTranspose3d": "(groups in) out depth height width",
}
TRANSPOSED_KERNEL = "window* out in"  # of flax.ConvTranspose with transpose_kernel=True
BY_EQUATION = ("flax.DenseGeneral", "flax.LinearGeneral", "flax.Einsum", "keras.EinsumDense")
_WINDOW = ("window", "length", "depth", "height", "width")


class Layer(NamedTuple):
    """The caller's description of a layer: its type, or the axes of its kernel."""

    name: str | None = None
    kernel_axis: int = -1
    input_axis: int | None = None
    groups: int = 1
    transpose_kernel: bool = False
    equation: str | None = None


class Layout(NamedTuple):
    """The axes of a kernel by name, after each axis that holds two is split.

    Attributes:
        names, sizes: the name and the size of each axis.
        inputs, outputs: the names of the axes that make up the channels, the slower first.
        bias: the names of the axes of the bias, in order.
        kernel: a description of the kernel, for messages.
        cure: what to check if a width does not fit, for messages.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bias: tuple[str, ...]
    kernel: str
    cure: str

    def shape(self, names: Sequence[str]) -> tuple[int, ...]:
        """The sizes of the named axes."""
        return tuple(self.sizes[self.names.index(name)] for name in names)

    @property
    def in_width(self) -> int:
        return math.prod(self.shape(self.inputs))

    @property
    def out_width(self) -> int:
        return math.prod(self.shape(self.outputs))

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """The shape of the layer's bias, in which the output channels are one axis."""
        before = self.bias[: len(self.bias) - len(self.outputs)]
        if not self.outputs or self.bias != before + self.outputs:
            return self.shape(self.bias)
        return (*self.shape(before), self.out_width)

    @property
    def window(self) -> tuple[int, ...] | None:
        """The sizes of the axes of positions that are summed over, or None without such axes."""
        positions = [name for name in self.names if name.startswith(_WINDOW)]
        return self.shape(positions) if positions else None


def layout(layer: Layer, shape: tuple[int, ...], features: int | None = None) -> Layout:
    """The layout of a kernel with the given shape.

    Args:
        features: the width of the input, which the kernel of flax.ConvLocal does not determine;
            None if only the axes of the output are needed.
    """
    _axes.check_positive_int("groups", layer.groups)
    if layer.name is None:
        return _by_axes(layer, shape, features is not None)
    _check_named(layer)
    if layer.equation is not None:
        return _by_equation(layer.name, layer.equation, shape, features is not None)
    return _by_pattern(layer, shape, {} if features is None else {"in": features})


def _by_pattern(layer: Layer, shape: tuple[int, ...], known: Mapping[str, int]) -> Layout:
    """The layout of a kernel by the layer's type."""
    assert layer.name is not None
    pattern = TRANSPOSED_KERNEL if layer.transpose_kernel else AXES[layer.name]
    axes = _expanded(pattern, len(shape))
    if len(axes) != len(shape):
        also = "; for other axes give the equation" if layer.name in BY_EQUATION else ""
        raise ValueError(
            f"the kernel of {layer.name} has the axes [{_listed(pattern)}], but the given kernel "
            f"has shape {shape}; check the layer's name{also}"
        )
    kernel = f"the kernel of {layer.name}, [{_listed(pattern)}], of shape {shape}"
    if layer.groups > 1:
        kernel += f" in {layer.groups} groups"
    names, sizes = _split(axes, shape, {"groups": layer.groups, **known}, kernel)
    outputs = ("in", "multiplier") if "multiplier" in names else ("groups", "out")
    places = tuple(name for name in names if name.startswith("places"))
    cure = "check the layer's name"
    if "groups" in pattern:
        cure += " and groups"
    if layer.name == "flax.ConvTranspose":
        cure += " and transpose_kernel"
    return _laid_out(names, sizes, ("groups", "in"), outputs, places, kernel, cure)


def _check_named(layer: Layer) -> None:
    """Check that the type is known and that it has the options that are given."""
    name = layer.name
    if not isinstance(name, str):
        raise TypeError(f"layer must be a string such as 'flax.Conv', got {name!r}")
    if name not in AXES:
        raise ValueError(
            f"layer={name!r} is not one of {', '.join(AXES)}; for another layer give the axes of "
            "its kernel, for example kernel_axis=-1"
        )
    axes = {"kernel_axis": (layer.kernel_axis, -1), "input_axis": (layer.input_axis, None)}
    for option, (value, default) in axes.items():
        if value != default:
            raise ValueError(
                f"layer={name!r} and {option}={value!r} both determine the channel axis; leave one "
                "of the two out"
            )
    if layer.groups != 1 and "groups" not in AXES[name]:
        raise ValueError(f"groups={layer.groups} is given, but {name} has no groups; leave it out")
    if layer.transpose_kernel and name != "flax.ConvTranspose":
        raise ValueError(
            f"transpose_kernel=True is an option of flax.ConvTranspose, not of {name}; leave it out"
        )
    if layer.equation is not None and name not in BY_EQUATION:
        raise ValueError(
            f"equation={layer.equation!r} is an option of {', '.join(BY_EQUATION)}, not of {name}; "
            "leave it out"
        )
    if layer.equation is None and not AXES[name]:
        raise ValueError(
            f"the equation of {name} determines the axes of its kernel; give for example "
            "equation='abc,cd->abd'"
        )


def _expanded(pattern: str, ndim: int) -> list[str]:
    """The axes of a pattern, for a kernel with `ndim` axes."""
    expanded = []
    axes = _axes_of(pattern)
    for axis in axes:
        number = max(ndim - len(axes) + 1, 1)
        several = [f"{axis[:-1]}{place}" for place in range(number)]
        expanded += several if axis.endswith("*") else [axis]
    return expanded


def _axes_of(pattern: str) -> list[str]:
    """The axes of a pattern as they are written, for example ["window*", "in", "(groups out)"]."""
    axes: list[str] = re.findall(r"\([^)]*\)|\S+", pattern)
    return axes


def _listed(pattern: str) -> str:
    """A pattern as messages show it: window..., in, groups * out."""
    axes = (axis.replace("*", "...") for axis in _axes_of(pattern))
    return ", ".join(" * ".join(axis.strip("()").split()) for axis in axes)


def _split(
    axes: Sequence[str], shape: Sequence[int], known: Mapping[str, int], kernel: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names and sizes of the axes, after each axis in parentheses is split into two."""
    names: list[str] = []
    sizes: list[int] = []
    for axis, size in zip(axes, shape, strict=True):
        held = axis.strip("()").split()
        first = known.get(held[0], size)
        if len(held) == 1 or (held[0] == "groups" and first == 1):
            names.append(held[-1])
            sizes.append(size)
            continue
        if size % first:
            raise ValueError(
                f"{held[0]}={first} does not divide the axis of {size} in {kernel}; check the "
                "layer's name, its groups and the width of the statistics"
            )
        names += held
        sizes += [first, size // first]
    return tuple(names), tuple(sizes)


def _by_equation(name: str, equation: str, shape: tuple[int, ...], into_next: bool) -> Layout:
    """The layout of a kernel by its letters in an einsum, whose arrays have the channels last."""
    match = re.fullmatch(r"([A-Za-z.]*),([A-Za-z]*)->([A-Za-z.]*)", equation.replace(" ", ""))
    if match is None:
        raise ValueError(
            f"equation={equation!r} must have an input, a kernel and an output, for example "
            "'abc,cd->abd', and no '...' in the kernel"
        )
    x, names, y = match[1], match[2], match[3]
    kernel = f"the kernel of {name}, {names!r} of {equation!r}, of shape {shape}"
    if len(names) != len(shape) or len(set(names)) != len(names):
        raise ValueError(f"{kernel}, must have one axis for each letter, and no letter twice")
    channels, array = (x, "input") if into_next else (y, "output")
    if channels[-1:] not in tuple(names):
        raise ValueError(
            f"the channels, which are the last axis of the {array} {channels!r} of {equation!r}, "
            f"are not an axis of the kernel {names!r}, so nothing can be folded into it"
        )
    if into_next and (left_out := set(x) - set(names) - set(y)):
        raise ValueError(
            f"{equation!r} sums its input over {''.join(sorted(left_out))!r}, which is not an axis "
            "of the kernel, so the kernel does not determine how often the shift is added; sum the "
            "input first"
        )
    return Layout(
        names=tuple(names),
        sizes=shape,
        inputs=(x[-1],) if into_next else (),
        outputs=(y[-1],) if y[-1:] in tuple(names) else (),
        bias=tuple(letter for letter in y if letter in names),
        kernel=kernel,
        cure="check the equation",
    )


def _by_axes(layer: Layer, shape: tuple[int, ...], into_next: bool) -> Layout:
    """The layout of a kernel by the axis of its output channels, and of its input channels."""
    ndim = len(shape)
    if layer.transpose_kernel or layer.equation is not None:
        raise ValueError(
            "transpose_kernel and equation need the type of the layer; give it, for example "
            "layer='flax.ConvTranspose'"
        )
    outputs = _axes.single_axis(ndim, layer.kernel_axis, "kernel_axis", "kernel")
    axes = [f"window{place}" for place in range(ndim)]
    axes[outputs] = "(groups out)"
    kernel, cure = f"kernel_axis={outputs} of the kernel of shape {shape}", "check kernel_axis"
    if into_next:
        if ndim == 1:
            raise ValueError(
                f"the kernel of shape {shape} has one axis; a kernel with input and output "
                "channels has two or more"
            )
        axis = -2 if layer.input_axis is None else layer.input_axis
        inputs = _axes.single_axis(ndim, axis, "input_axis", "kernel")
        if inputs == outputs:
            raise ValueError(
                f"input_axis={axis} and kernel_axis={layer.kernel_axis} name the same axis of the "
                f"kernel of shape {shape}; give the axis of the input channels and the axis of the "
                "output channels"
            )
        axes[inputs] = "in"
        kernel = f"the kernel of shape {shape} with kernel_axis={outputs} and input_axis={inputs}"
        if layer.groups > 1:
            kernel += f" in {layer.groups} groups"
        cure = "check input_axis, kernel_axis and groups"
    elif layer.groups != 1:
        raise ValueError(
            f"groups={layer.groups} needs the type of the layer; give it, for example "
            "layer='pytorch.ConvTranspose2d'"
        )
    cure += " (the last in Flax, 0 in OIHW), or give for example layer='pytorch.Conv2d'"
    names, sizes = _split(axes, shape, {"groups": layer.groups}, kernel)
    inputs_named = ("groups", "in") if into_next else ()
    return _laid_out(names, sizes, inputs_named, ("groups", "out"), (), kernel, cure)


def _laid_out(
    names: tuple[str, ...],
    sizes: tuple[int, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    places: Sequence[str],
    kernel: str,
    cure: str,
) -> Layout:
    """The layout with the axes of `inputs` and `outputs` that the kernel has as its channels."""
    channels = tuple(name for name in outputs if name in names)
    ins = tuple(name for name in inputs if name in names)
    return Layout(names, sizes, ins, channels, (*places, *channels), kernel, cure)


def cure(
    layer: Layer, tried: Layout, shape: tuple[int, ...], into_next: bool, given: tuple[int, ...]
) -> str:
    """What to check if an array has the shape `given`, and the groups that would fit this shape."""
    for groups in range(1, max(shape) + 1):
        try:
            other = layout(
                layer._replace(groups=groups), shape, math.prod(given) if into_next else None
            )
        except ValueError:
            continue
        if given == (other.in_width if into_next else other.out_width,):
            return f"{tried.cure}: groups={groups} would fit"
    return tried.cure
