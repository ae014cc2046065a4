"""What folding needs to know of a layer of Flax: its type, its equation, its bias."""

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


def folded(
    pair: _pairs.Pair,
    kernel: jax.Array,
    bias: Any,
    stats: _states.BatchStats,
    *parameters: Any,
) -> tuple[jax.Array, jax.Array]:
    """The kernel and the bias of a layer that takes its normalization of those parameters."""
    function = jn.fold_batch_norm_into_next if pair.into_next else jn.fold_batch_norm
    kernel = _masked(pair.layer.module, kernel)
    try:
        options = _layer_options(pair, kernel)
        epsilon = pair.norm.module.epsilon
        return function(kernel, bias, stats, *parameters, epsilon=epsilon, **options)
    except ValueError as error:
        raise ValueError(
            f"{pair.norm.path!r} cannot be folded into {pair.layer.path!r}: {error}"
        ) from error


def _masked(layer: Any, kernel: jax.Array) -> jax.Array:
    """The kernel as the layer uses it."""
    mask = getattr(layer, "mask", None) if "Conv" in (flax_layer(layer) or "") else None
    return kernel if mask is None else kernel * jnp.asarray(mask, kernel.dtype)


def _layer_options(pair: _pairs.Pair, kernel: jax.Array) -> dict[str, Any]:
    """What the function that folds needs to know of a layer: of one of Flax, its type.

    Any other has a kernel whose channels are last, as Flax's have.
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
    """The name of a module's type, or of that it is derived from, among the layers of Flax."""
    for kind in type(module).__mro__:
        name = f"flax.{kind.__name__}"
        if kind.__module__.partition(".")[0] == "flax" and name in _layers.AXES:
            return name
    return None


def equation(call: _pairs.Call) -> str | None:
    """The einsum of a layer that is one, or that has axes of its own."""
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
    """The bias of a layer of Flax in a shape that broadcasts to what the layer gave."""
    of = equation(call)
    if of is None:
        return bias
    inputs, result = of.replace(" ", "").split("->")
    kernel = inputs.partition(",")[2]
    sizes = iter(bias.shape)
    before, _, after = result.partition("...")
    ends = [tuple(next(sizes) if s in kernel else 1 for s in end) for end in (before, after)]
    between = (1,) * (call.output.ndim - len(before) - len(after))
    return bias.reshape(ends[0] + between + ends[1])


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Iterable) else (value,)


def _check_input_dilation(module: Any) -> None:
    dilation = getattr(module, "input_dilation", None) or 1
    if any(size > 1 for size in _tuple(dilation)):
        raise ValueError(
            f"input_dilation={dilation!r} puts zeros between what is normalized, and folded it "
            "would put them between the values of the input, where zero is another value; leave "
            "this pair out"
        )
