"""Every library's training-mode normalization, behind one calling convention.

`peers(norm, channels, dtype)` yields for each library that has the norm a `Peer`, whose `apply`
takes the parameters (scale, bias; RMS: scale) and an input of the dtype in the library's own
layout, and gives an output of that dtype. All have float32 parameters, epsilon 1e-5, momentum 0.99
of the old statistics, and group normalization 32 groups; otherwise their defaults.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

import jaxnorm as jn

NORMS = ("batch", "layer", "rms", "group", "instance")
EVALUATION = "evaluation"  # batch normalization by the running statistics
EPSILON = 1e-5
MOMENTUM = 0.99
GROUPS = 32

Parameters = list[jax.Array]
Apply = Callable[[Parameters, jax.Array], tuple[jax.Array, Any]]


class Peer(NamedTuple):
    """A library's normalization: `apply(parameters, x)` gives the output and the new state."""

    library: str
    parameters: Parameters
    apply: Apply
    channels_first: bool = False

    def numpy(self, x: np.ndarray) -> np.ndarray:
        """Apply it, compiled, to a channels-last array."""
        native = np.moveaxis(x, -1, 1) if self.channels_first else x
        y = np.asarray(jax.jit(self.apply)(self.parameters, jnp.asarray(native))[0])
        return np.moveaxis(y, 1, -1) if self.channels_first else y


def peers(
    norm: str, channels: int, dtype: Any = jnp.float32, *, flat: bool = False
) -> Iterator[Peer]:
    """The JAX libraries that have the norm; `flat` is a batch normalization without positions."""
    parameters = [jnp.ones(channels), jnp.zeros(channels)][: 1 if norm == "rms" else 2]
    for library, make in LIBRARIES.items():
        if (norm == EVALUATION and library not in EVALUATING) or (flat and library not in FLAT):
            continue
        apply = make(norm, channels, dtype)
        first = library == "Equinox" and norm not in ("layer", "rms")
        yield Peer(library, parameters, apply, first)


def _jaxnorm(norm: str, channels: int, dtype: Any) -> Apply:
    if norm in ("batch", EVALUATION):
        stats, train = jn.init_batch_stats(channels), norm == "batch"
        return lambda p, x: jn.batch_norm(
            x, stats, *p, train=train, momentum=MOMENTUM, epsilon=EPSILON
        )
    function = {
        "layer": jn.layer_norm,
        "rms": jn.rms_norm,
        "group": lambda *args, **options: jn.group_norm(*args, num_groups=GROUPS, **options),
        "instance": jn.instance_norm,
    }[norm]
    return lambda p, x: (function(x, *p, epsilon=EPSILON), None)


def _flax_linen(norm: str, channels: int, dtype: Any) -> Apply:
    options = {"epsilon": EPSILON, "dtype": dtype}
    module = {
        "batch": nn.BatchNorm(use_running_average=False, momentum=MOMENTUM, **options),
        EVALUATION: nn.BatchNorm(use_running_average=True, **options),
        "layer": nn.LayerNorm(**options),
        "rms": nn.RMSNorm(**options),
        "group": nn.GroupNorm(num_groups=GROUPS, **options),
        "instance": nn.InstanceNorm(**options),
    }[norm]
    stateful = norm in ("batch", EVALUATION)
    stats = {"batch_stats": jn.init_batch_stats(channels)} if stateful else {}

    def apply(parameters: Parameters, x: jax.Array) -> tuple[jax.Array, Any]:
        params = dict(zip(("scale", "bias"), parameters, strict=False))
        return module.apply({"params": params, **stats}, x, mutable=["batch_stats"])

    return apply


def _flax_nnx(norm: str, channels: int, dtype: Any) -> Apply:
    options = {"epsilon": EPSILON, "dtype": dtype, "rngs": nnx.Rngs(0)}
    module = {
        "batch": lambda: nnx.BatchNorm(channels, momentum=MOMENTUM, **options),
        "layer": lambda: nnx.LayerNorm(channels, **options),
        "rms": lambda: nnx.RMSNorm(channels, **options),
        "group": lambda: nnx.GroupNorm(channels, num_groups=GROUPS, **options),
        "instance": lambda: nnx.InstanceNorm(channels, **options),
    }[norm]()
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def apply(parameters: Parameters, x: jax.Array) -> tuple[jax.Array, Any]:
        named = dict(zip(("scale", "bias"), parameters, strict=False))
        filled = jax.tree.map_with_path(lambda path, _: named[path[0].key], params)
        layer = nnx.merge(graph, filled, rest, copy=True)
        y = layer(x)
        return y, nnx.state(layer, nnx.BatchStat)

    return apply


def _haiku(norm: str, channels: int, dtype: Any) -> Apply:
    def forward(x: jax.Array) -> jax.Array:
        affine = {"create_scale": True, "create_offset": True, "eps": EPSILON}
        match norm:
            case "batch":
                return hk.BatchNorm(decay_rate=MOMENTUM, **affine)(x, is_training=True)
            case "layer":
                return hk.LayerNorm(axis=-1, **affine)(x)
            case "rms":
                return hk.RMSNorm(axis=-1, eps=EPSILON)(x)
            case "group":
                return hk.GroupNorm(groups=GROUPS, **affine)(x)
            case _:
                return hk.InstanceNorm(**affine)(x)

    transformed = hk.transform_with_state(forward)
    example = jnp.zeros((2, channels) if norm in ("layer", "rms") else (2, 2, 2, channels), dtype)
    params, state = transformed.init(None, example)

    def apply(parameters: Parameters, x: jax.Array) -> tuple[jax.Array, Any]:
        named = dict(zip(("scale", "offset"), parameters, strict=False))
        filled = jax.tree.map_with_path(
            lambda path, old: named[path[-1].key].reshape(old.shape), params
        )
        y, new_state = transformed.apply(filled, state, None, x)
        return y.astype(dtype), new_state

    return apply


def _equinox(norm: str, channels: int, dtype: Any) -> Apply:
    module, state = {
        "batch": lambda: eqx.nn.make_with_state(eqx.nn.BatchNorm)(
            channels, axis_name="batch", eps=EPSILON, momentum=MOMENTUM, mode="batch"
        ),
        "layer": lambda: (eqx.nn.LayerNorm(channels, eps=EPSILON), None),
        "rms": lambda: (eqx.nn.RMSNorm(channels, eps=EPSILON, use_bias=False), None),
        "group": lambda: (eqx.nn.GroupNorm(GROUPS, channels, eps=EPSILON), None),
        "instance": lambda: (eqx.nn.GroupNorm(channels, channels, eps=EPSILON), None),
    }[norm]()

    def apply(parameters: Parameters, x: jax.Array) -> tuple[jax.Array, Any]:
        names = ("weight", "bias")[: len(parameters)]
        layer = eqx.tree_at(
            lambda layer: [getattr(layer, name) for name in names], module, parameters
        )
        if norm == "batch":
            unused = jax.tree.unflatten(*jax.tree.flatten(state)[::-1])  # a state is taken once
            vmapped = jax.vmap(lambda x: layer(x, unused), axis_name="batch", out_axes=(0, None))
            y, new_state = vmapped(x)
        else:
            y, new_state = jax.vmap(layer)(x), None
        return y.astype(dtype), new_state

    return apply


def _keras(norm: str, channels: int, dtype: Any) -> Apply:
    policy = "float32" if dtype == jnp.float32 else f"mixed_{jnp.dtype(dtype).name}"
    options = {"epsilon": EPSILON, "dtype": policy}
    layer = {
        "batch": lambda: keras.layers.BatchNormalization(momentum=MOMENTUM, **options),
        "layer": lambda: keras.layers.LayerNormalization(**options),
        "rms": lambda: keras.layers.RMSNormalization(**options),
        "group": lambda: keras.layers.GroupNormalization(groups=GROUPS, **options),
        "instance": lambda: keras.layers.GroupNormalization(groups=-1, **options),
    }[norm]()
    layer.build((None, channels) if norm in ("layer", "rms") else (None, None, None, channels))
    state = [variable.value for variable in layer.non_trainable_variables]
    mode = {"training": True} if norm == "batch" else {}
    return lambda p, x: layer.stateless_call(p, state, x, **mode)


LIBRARIES: dict[str, Callable[[str, int, Any], Apply]] = {
    "jaxnorm": _jaxnorm,
    "Flax Linen": _flax_linen,
    "Flax NNX": _flax_nnx,
    "Haiku": _haiku,
    "Equinox": _equinox,
    "Keras": _keras,
}
EVALUATING = ("jaxnorm", "Flax Linen")  # and PyTorch
FLAT = ("jaxnorm", "Flax Linen", "Flax NNX", "Equinox")  # and PyTorch; as they are set up here


def torch_norm(norm: str, channels: int) -> Callable[..., torch.Tensor]:
    """PyTorch's function of (x, scale, bias), channels first."""
    mean, var = torch.zeros(channels), torch.ones(channels)
    features = (channels,)
    return {
        "batch": lambda x, *p: F.batch_norm(x, mean, var, *p, True, 1 - MOMENTUM, EPSILON),
        EVALUATION: lambda x, *p: F.batch_norm(x, mean, var, *p, False, 0.0, EPSILON),
        "layer": lambda x, *p: F.layer_norm(x, features, *p, EPSILON),
        "rms": lambda x, *p: F.rms_norm(x, features, *p, EPSILON),
        "group": lambda x, *p: F.group_norm(x, GROUPS, *p, EPSILON),
        "instance": lambda x, *p: F.instance_norm(x, None, None, *p, True, 0.0, EPSILON),
    }[norm]


def torch_numpy(norm: str, x: np.ndarray) -> np.ndarray:
    """PyTorch's result for a channels-last array."""
    first = norm not in ("layer", "rms")
    native = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1) if first else x))
    channels = x.shape[-1]
    parameters = [torch.ones(channels), torch.zeros(channels)][: 1 if norm == "rms" else 2]
    y = torch_norm(norm, channels)(native, *parameters).numpy()
    return np.moveaxis(y, 1, -1) if first else y
