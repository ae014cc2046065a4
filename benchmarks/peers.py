"""The normalizations of all libraries, with one calling convention.

`peers(norm, shape, dtype)` yields a `Peer` for each library that has the norm. Its `apply` takes
the parameters (scale, bias; RMS: scale) and an input with the dtype, in the layout of the library,
and returns an output with that dtype. All have float32 parameters, epsilon 1e-5, momentum 0.99 for
the old statistics, 32 groups in group normalization, and otherwise their defaults. "batch" is batch
normalization in training; "evaluation" is batch normalization by running statistics.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
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

from benchmarks.ours import EPSILON, GROUPS, MOMENTUM, affine, normalization, running_stats
from benchmarks.timing import Apply, Parameters

Shape = tuple[int, ...]


class Peer(NamedTuple):
    """The normalization of a library: `apply(parameters, x)` gives the output and new state."""

    library: str
    parameters: Parameters
    apply: Apply
    channels_first: bool = False

    def numpy(self, x: np.ndarray) -> np.ndarray:
        """Apply it, compiled, to a channels-last array."""
        native = np.moveaxis(x, -1, 1) if self.channels_first else x
        y = np.asarray(jax.jit(self.apply)(self.parameters, jnp.asarray(native))[0])
        return np.moveaxis(y, 1, -1) if self.channels_first else y


def peers(norm: str, shape: Shape, dtype: Any = jnp.float32) -> Iterator[Peer]:
    """Yield the JAX libraries that have the norm, for channels-last inputs of this shape."""
    parameters = affine(norm, shape[-1])
    for library, make in LIBRARIES.items():
        apply = make(norm, shape, dtype)
        first = library == "Equinox" and norm not in ("layer", "rms")
        yield Peer(library, parameters, apply, first)


def _jaxnorm(norm: str, shape: Shape, dtype: Any) -> Apply:
    return normalization(norm, shape[-1])


def _flax_linen(norm: str, shape: Shape, dtype: Any) -> Apply:
    options = {"epsilon": EPSILON, "dtype": dtype}
    module = {
        "batch": nn.BatchNorm(use_running_average=False, momentum=MOMENTUM, **options),
        "evaluation": nn.BatchNorm(use_running_average=True, **options),
        "layer": nn.LayerNorm(**options),
        "rms": nn.RMSNorm(**options),
        "group": nn.GroupNorm(num_groups=GROUPS, **options),
        "instance": nn.InstanceNorm(**options),
    }[norm]
    stats = {"batch_stats": running_stats(shape[-1])} if norm in ("batch", "evaluation") else {}

    def apply(parameters: Parameters, x: jax.Array) -> tuple[jax.Array, Any]:
        params = dict(zip(("scale", "bias"), parameters, strict=False))
        return module.apply({"params": params, **stats}, x, mutable=["batch_stats"])

    return apply


def _flax_nnx(norm: str, shape: Shape, dtype: Any) -> Apply:
    channels, options = shape[-1], {"epsilon": EPSILON, "dtype": dtype, "rngs": nnx.Rngs(0)}
    module = {
        "batch": lambda: nnx.BatchNorm(channels, momentum=MOMENTUM, **options),
        "evaluation": lambda: nnx.BatchNorm(channels, use_running_average=True, **options),
        "layer": lambda: nnx.LayerNorm(channels, **options),
        "rms": lambda: nnx.RMSNorm(channels, **options),
        "group": lambda: nnx.GroupNorm(channels, num_groups=GROUPS, **options),
        "instance": lambda: nnx.InstanceNorm(channels, **options),
    }[norm]()
    if norm == "evaluation":
        nnx.update(module, nnx.State(jax.tree.map(nnx.BatchStat, running_stats(channels))))
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def apply(parameters: Parameters, x: jax.Array) -> tuple[jax.Array, Any]:
        named = dict(zip(("scale", "bias"), parameters, strict=False))
        filled = jax.tree.map_with_path(lambda path, _: named[path[0].key], params)
        layer = nnx.merge(graph, filled, rest, copy=True)
        y = layer(x)
        return y, nnx.state(layer, nnx.BatchStat)

    return apply


def _haiku(norm: str, shape: Shape, dtype: Any) -> Apply:
    def forward(x: jax.Array, train: bool) -> jax.Array:
        both = {"create_scale": True, "create_offset": True, "eps": EPSILON}
        match norm:
            case "batch" | "evaluation":
                return hk.BatchNorm(decay_rate=MOMENTUM, **both)(x, is_training=train)
            case "layer":
                return hk.LayerNorm(axis=-1, **both)(x)
            case "rms":
                return hk.RMSNorm(axis=-1, eps=EPSILON)(x)
            case "group":
                return hk.GroupNorm(groups=GROUPS, **both)(x)
            case _:
                return hk.InstanceNorm(**both)(x)

    transformed = hk.transform_with_state(forward)
    params, state = transformed.init(None, jnp.zeros((2, *shape[1:]), dtype), True)
    if norm == "evaluation":
        for name, value in running_stats(shape[-1]).items():
            moments = state[f"batch_norm/~/{name}_ema"]
            moments["average"] = value.reshape(moments["average"].shape)

    def apply(parameters: Parameters, x: jax.Array) -> tuple[jax.Array, Any]:
        named = dict(zip(("scale", "offset"), parameters, strict=False))
        filled = jax.tree.map_with_path(
            lambda path, old: named[path[-1].key].reshape(old.shape), params
        )
        y, new_state = transformed.apply(filled, state, None, x, norm == "batch")
        return y.astype(dtype), new_state

    return apply


def _equinox(norm: str, shape: Shape, dtype: Any) -> Apply:
    channels, batch = shape[-1], norm in ("batch", "evaluation")
    make_batch = partial(
        eqx.nn.make_with_state(eqx.nn.BatchNorm),
        channels,
        axis_name="batch",
        eps=EPSILON,
        momentum=MOMENTUM,
        mode="batch",
    )
    module, state = {
        "batch": make_batch,
        "evaluation": partial(make_batch, inference=True),
        "layer": lambda: (eqx.nn.LayerNorm(channels, eps=EPSILON), None),
        "rms": lambda: (eqx.nn.RMSNorm(channels, eps=EPSILON, use_bias=False), None),
        "group": lambda: (eqx.nn.GroupNorm(GROUPS, channels, eps=EPSILON), None),
        "instance": lambda: (eqx.nn.GroupNorm(channels, channels, eps=EPSILON), None),
    }[norm]()
    if norm == "evaluation":
        stats = running_stats(channels)
        state = state.set(module.batch_state_index, (stats["mean"], stats["var"]))

    def apply(parameters: Parameters, x: jax.Array) -> tuple[jax.Array, Any]:
        names = ("weight", "bias")[: len(parameters)]
        layer = eqx.tree_at(
            lambda layer: [getattr(layer, name) for name in names], module, parameters
        )
        if batch:
            unused = jax.tree.unflatten(
                *jax.tree.flatten(state)[::-1]
            )  # Equinox allows each state to be used once only
            vmapped = jax.vmap(lambda x: layer(x, unused), axis_name="batch", out_axes=(0, None))
            y, new_state = vmapped(x)
        else:
            y, new_state = jax.vmap(layer)(x), None
        return y.astype(dtype), new_state

    return apply


def _keras(norm: str, shape: Shape, dtype: Any) -> Apply:
    policy = "float32" if dtype == jnp.float32 else f"mixed_{jnp.dtype(dtype).name}"
    options = {"epsilon": EPSILON, "dtype": policy}
    layer = {
        "batch": lambda: keras.layers.BatchNormalization(momentum=MOMENTUM, **options),
        "evaluation": lambda: keras.layers.BatchNormalization(**options),
        "layer": lambda: keras.layers.LayerNormalization(**options),
        "rms": lambda: keras.layers.RMSNormalization(**options),
        "group": lambda: keras.layers.GroupNormalization(groups=GROUPS, **options),
        "instance": lambda: keras.layers.GroupNormalization(groups=-1, **options),
    }[norm]()
    layer.build((None, *shape[1:]))
    state = [variable.value for variable in layer.non_trainable_variables]
    if norm == "evaluation":
        state = list(running_stats(shape[-1]).values())
    mode = {"training": norm == "batch"} if norm in ("batch", "evaluation") else {}
    return lambda p, x: layer.stateless_call(p, state, x, **mode)


LIBRARIES: dict[str, Callable[[str, Shape, Any], Apply]] = {
    "jaxnorm": _jaxnorm,
    "Flax Linen": _flax_linen,
    "Flax NNX": _flax_nnx,
    "Haiku": _haiku,
    "Equinox": _equinox,
    "Keras": _keras,
}


def torch_norm(norm: str, channels: int) -> Callable[..., torch.Tensor]:
    """Return the function of (x, scale, bias) of PyTorch, with channels first."""
    mean, var = torch.zeros(channels), torch.ones(channels)
    known = [torch.from_numpy(np.array(stat)) for stat in running_stats(channels).values()]
    features = (channels,)
    return {
        "batch": lambda x, *p: F.batch_norm(x, mean, var, *p, True, 1 - MOMENTUM, EPSILON),
        "evaluation": lambda x, *p: F.batch_norm(x, *known, *p, False, 0.0, EPSILON),
        "layer": lambda x, *p: F.layer_norm(x, features, *p, EPSILON),
        "rms": lambda x, *p: F.rms_norm(x, features, *p, EPSILON),
        "group": lambda x, *p: F.group_norm(x, GROUPS, *p, EPSILON),
        "instance": lambda x, *p: F.instance_norm(x, None, None, *p, True, 0.0, EPSILON),
    }[norm]


def torch_parameters(norm: str, channels: int, dtype: str = "float32") -> list[torch.Tensor]:
    """Return scale and bias; of RMS the scale alone, in the dtype that its kernel requires."""
    if norm == "rms":
        return [torch.ones(channels, dtype=getattr(torch, dtype))]
    return [torch.ones(channels), torch.zeros(channels)]


def torch_numpy(norm: str, x: np.ndarray) -> np.ndarray:
    """Return the result of PyTorch for a channels-last array."""
    first = norm not in ("layer", "rms")
    native = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1) if first else x))
    channels = x.shape[-1]
    y = torch_norm(norm, channels)(native, *torch_parameters(norm, channels)).numpy()
    return np.moveaxis(y, 1, -1) if first else y
