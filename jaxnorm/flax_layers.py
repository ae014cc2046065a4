"""The type, the equation and the bias of a layer of Flax, for folding."""

from __future__ import annotations

from collections.abc import Iterable
from string import ascii_letters
from typing import Any

import jax
import jax.numpy as jnp

import jaxnorm as jn
from jaxnorm import layers as _layers
from jaxnorm import pairs as _pairs
from jaxnorm import states as _states
from jaxnorm.inputs import power_of


def folded(
    pair: _pairs.Pair,
    kernel: jax.Array,
    bias: Any,
    stats: _states.BatchStats,
    *parameters: Any,
) -> tuple[jax.Array, jax.Array]:
    """The new kernel and bias of the layer of a pair, whose normalization has these parameters."""
    function = jn.fold_batch_norm_into_next if pair.into_next else jn.fold_batch_norm
    kernel = _masked(pair.layer.module, kernel)
    try:
        options = _layer_options(pair, kernel)
        stats, epsilon = _as_normalization(pair.norm.module, stats)
        return function(kernel, bias, stats, *parameters, epsilon=epsilon, **options)
    except ValueError as error:
        raise ValueError(
            f"{pair.norm.path!r} cannot be folded into {pair.layer.path!r}: {error}"
        ) from error


def _as_normalization(norm: Any, stats: _states.BatchStats) -> tuple[_states.BatchStats, Any]:
    """The statistics and the epsilon with which a module that does not center is one that does."""
    if getattr(norm, "center", True):
        return stats, norm.epsilon
    power = power_of(stats["var"], norm.epsilon, center=False)
    return {**stats, "mean": jnp.zeros_like(stats["mean"]), "var": power}, 0.0


def _masked(layer: Any, kernel: jax.Array) -> jax.Array:
    """The kernel as the layer uses it, with its mask applied."""
    mask = getattr(layer, "mask", None) if "Conv" in (flax_layer(layer) or "") else None
    return kernel if mask is None else kernel * jnp.asarray(mask, kernel.dtype)


def _layer_options(pair: _pairs.Pair, kernel: jax.Array) -> dict[str, Any]:
    """The options that describe the layer of a pair to the function that folds.

    A layer that is not one of Flax's must have a kernel whose channels are last.
    """
    module: Any = pair.layer.module
    name = flax_layer(module)
    transposed = getattr(module, "transpose_kernel", False)
    options: dict[str, Any] = {"layer": name, "equation": equation(pair.layer)}
    if name is not None:
        options["transpose_kernel"] = transposed
    elif transposed:
        options["kernel_axis"] = -2
    if not pair.into_next:
        return options
    if name is None and transposed:
        options["input_axis"] = -1
    options["groups"] = getattr(module, "feature_group_count", 1)
    if kernel.ndim > 2 if name is None else "Conv" in name:
        _check_input_dilation(module)
        options["padding"] = getattr(module, "padding", "VALID")
    return options


def flax_layer(module: Any) -> str | None:
    """The name of the layer of Flax that a module is, or is derived from, or None."""
    for kind in type(module).__mro__:
        name = f"flax.{kind.__name__}"
        if kind.__module__.partition(".")[0] == "flax" and name in _layers.AXES:
            return name
    return None


def equation(call: _pairs.Call) -> str | None:
    """The equation of a layer that computes an einsum, or None."""
    module: Any = call.module
    name = flax_layer(module)
    if name == "flax.Einsum":
        return next((given for given in call.rest if isinstance(given, str)), module.einsum_str)
    if name not in _layers.BY_EQUATION:
        return None
    ndim = call.input.ndim
    batch = getattr(module, "batch_dims", None)
    batch = module.batch_axis if batch is None else batch
    features = module.features if hasattr(module, "features") else module.out_features
    x, outputs = ascii_letters[:ndim], ascii_letters[ndim : ndim + len(_tuple(features))]
    first = "".join(x[axis] for axis in _tuple(batch))
    summed = "".join(x[axis] for axis in _tuple(module.axis))
    free = "".join(letter for letter in x if letter not in first + summed)
    return f"{x},{first}{summed}{outputs}->{first}{free}{outputs}"


def broadcast_bias(bias: jax.Array, call: _pairs.Call) -> jax.Array:
    """The bias of a layer of Flax in a shape that broadcasts to the layer's output."""
    einsum = equation(call)
    if einsum is None:
        return bias
    inputs, result = einsum.replace(" ", "").split("->")
    kernel = inputs.partition(",")[2]
    sizes = iter(bias.shape)
    before, _, after = result.partition("...")
    ends = [tuple(next(sizes) if s in kernel else 1 for s in end) for end in (before, after)]
    between = (1,) * (call.output.ndim - len(before) - len(after))
    return bias.reshape(ends[0] + between + ends[1])


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Iterable) else (value,)


def _check_input_dilation(module: Any) -> None:
    """Check that a layer does not dilate its input, which is a padding with zeros."""
    dilation = getattr(module, "input_dilation", None) or 1
    if any(size > 1 for size in _tuple(dilation)):
        raise ValueError(
            f"input_dilation={dilation!r} puts zeros between the normalized values, and after "
            "folding it would put them between the values of the input, where zero is another "
            "value; leave this pair out"
        )
