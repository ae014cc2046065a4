"""Whole training steps: a ResNet-50, a transformer, and the GroupNorm blocks of a diffusion U-Net.

Each network is written once; its normalizations are Flax's modules or ours of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

import jaxnorm.linen as jnn
from benchmarks.compiled.cases import DTYPES
from benchmarks.compiled.devices import array, mesh

MODULES = {"jaxnorm": jnn, "Flax": nn}
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


class Bottleneck(nn.Module):
    """A block of a ResNet-50."""

    norms: Any
    dtype: Any
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(self.norms.BatchNorm, use_running_average=False, dtype=self.dtype)
        y = nn.relu(norm()(conv(self.channels, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.channels, (3, 3), self.stride)(y)))
        y = norm()(conv(4 * self.channels, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(conv(4 * self.channels, (1, 1), self.stride)(x))
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """The residual network of 50 layers for images of 224 by 224 (He et al. 2015)."""

    norms: Any
    dtype: Any
    blocks: tuple[int, ...] = (3, 4, 6, 3)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(64, (7, 7), 2, use_bias=False, dtype=self.dtype)(x)
        x = self.norms.BatchNorm(use_running_average=False, dtype=self.dtype)(x)
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Bottleneck(self.norms, self.dtype, 64 * 2**stage, stride)(x)
        return nn.Dense(1000, dtype=self.dtype)(x.mean((1, 2)))


class Transformer(nn.Module):
    """Four layers of causal attention and two connected layers, normalized before each."""

    norms: Any
    dtype: Any
    layers: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        causal = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        norm = partial(self.norms.LayerNorm, dtype=self.dtype)
        dense = partial(nn.Dense, dtype=self.dtype)
        width = x.shape[-1]
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(width // 64, dtype=self.dtype)
            x = x + attention(norm()(x), mask=causal)
            x = x + dense(width)(nn.gelu(dense(4 * width)(norm()(x))))
        return norm()(x)


class Blocks(nn.Module):
    """Two residual blocks of a diffusion U-Net (Ho et al. 2020), at each of two resolutions."""

    norms: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(nn.Conv, dtype=self.dtype)
        norm = partial(self.norms.GroupNorm, num_groups=32, dtype=self.dtype)
        for scale in (1, 2):
            channels = scale * 128
            x = conv(channels, (3, 3), scale)(x)
            for _ in range(2):
                y = conv(channels, (3, 3))(nn.silu(norm()(x)))
                x = x + conv(channels, (3, 3))(nn.silu(norm()(y)))
        return x


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "resnet50": (ResNet50, (128, 224, 224, 3)),
    "transformer": (Transformer, (8, 1024, 1024)),
    "unet": (Blocks, (16, 64, 64, 128)),
}


class Step(NamedTuple):
    """A training step of a network."""

    network: str
    dtype: str
    library: str

    def __str__(self) -> str:
        return f"step {self.network} {self.dtype} {self.library}"


def steps() -> Iterator[Step]:
    """Every step. A ResNet-50 compiles for minutes, for a TPU for a quarter of an hour."""
    for network in NETWORKS:
        for dtype in DTYPES:
            for library in MODULES:
                yield Step(network, dtype, library)


def program(
    step: Step, platform: str, shape: tuple[int, ...] | None = None, **sizes: Any
) -> tuple[Callable[..., Any], list[Any]]:
    """Loss, gradients, new statistics and the optimizer's update; x and the state.

    The shape of x and the sizes of the network are those of `NETWORKS` unless others are given.
    """
    make, usual = NETWORKS[step.network]
    shape = shape or usual
    dtype = DTYPES[step.dtype]
    network = make(MODULES[step.library], dtype, **sizes)
    device = mesh(platform, 1)
    x = array(shape, dtype, device, P())

    def initial(x: jax.Array) -> Any:
        variables = network.init(jax.random.key(0), x)
        return variables, OPTIMIZER.init(variables["params"])

    def train(x: jax.Array, state: Any) -> Any:
        variables, optimizer = state
        stats = {name: part for name, part in variables.items() if name != "params"}

        def loss(params: Any) -> tuple[jax.Array, Any]:
            y, new = network.apply({"params": params, **stats}, x, mutable=["batch_stats"])
            return jnp.square(y.astype(jnp.float32)).mean(), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, optimizer = OPTIMIZER.update(gradients, optimizer)
        params = optax.apply_updates(variables["params"], updates)
        return value, ({"params": params, **new}, optimizer)

    state = jax.eval_shape(initial, x)
    state = jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype, device, P()), state)
    return train, [x, state]
