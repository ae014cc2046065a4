"""The networks of the benchmarks, each written once, with the normalizations as an argument.

The normalizations `norms` are the modules of a library by the names of Flax Linen's: `flax.linen`,
`jaxnorm.linen`, `NNX`, or `Nothing`, which normalizes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

NORMS = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm")
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


class NNX:
    """The normalizations of Flax NNX, with the names that Linen's modules give their variables."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        layer = type(name, (nnx.bridge.ToLinen,), {})

        def make(**options: Any) -> Callable[[jax.Array], jax.Array]:
            module = partial(layer, getattr(nnx, name), kwargs=nn.FrozenDict(options))
            return lambda x: module(args=(x.shape[-1],))(x)

        return make


class Nothing:
    """No normalizations."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda **options: lambda x: x


class Network(nn.Module):
    """What the networks share.

    Attributes:
        norms: the modules of a library.
        dtype: that of the computation.
        train: whether batch normalization measures the batch.
    """

    norms: Any
    dtype: Any
    train: bool = True

    def norm(self, name: str = "BatchNorm", **options: Any) -> Any:
        """A normalization of this name."""
        if name == "BatchNorm":
            options["use_running_average"] = not self.train
        return getattr(self.norms, name)(dtype=self.dtype, **options)

    def conv(self, channels: int, size: int = 3, stride: int = 1) -> nn.Conv:
        """A convolution in front of a batch normalization."""
        return nn.Conv(channels, (size, size), stride, use_bias=False, dtype=self.dtype)


class ResNet20(Network):
    """The residual network of 20 layers for images of 32 by 32 (He et al. 2015, section 4.2)."""

    blocks: tuple[int, ...] = (3, 3, 3)
    width: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(self.norm()(self.conv(self.width)(x)))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                channels, stride = self.width * 2**stage, 2 if stage > 0 and block == 0 else 1
                y = nn.relu(self.norm()(self.conv(channels, 3, stride)(x)))
                y = self.norm()(self.conv(channels)(y))
                if x.shape != y.shape:
                    x = self.norm()(self.conv(channels, 1, stride)(x))
                x = nn.relu(x + y)
        return nn.Dense(10, dtype=self.dtype)(x.mean((1, 2)))


class Bottleneck(Network):
    """A block of a ResNet-50."""

    channels: int = 64
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm()(self.conv(self.channels, 1)(x)))
        y = nn.relu(self.norm()(self.conv(self.channels, 3, self.stride)(y)))
        y = self.norm()(self.conv(4 * self.channels, 1)(y))
        if x.shape != y.shape:
            x = self.norm()(self.conv(4 * self.channels, 1, self.stride)(x))
        return nn.relu(x + y)


class Bottlenecks(Network):
    """Blocks of one stage of a ResNet-50."""

    blocks: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.blocks):
            x = Bottleneck(self.norms, self.dtype, self.train, x.shape[-1] // 4)(x)
        return x


class ResNet50(Network):
    """The residual network of 50 layers for images of 224 by 224 (He et al. 2015)."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm()(self.conv(64, 7, 2)(x))
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Bottleneck(self.norms, self.dtype, self.train, 64 * 2**stage, stride)(x)
        return nn.Dense(1000, dtype=self.dtype)(x.mean((1, 2)))


class Transformer(Network):
    """Layers of causal attention and two connected layers, normalized before each."""

    layers: int = 4
    kind: str = "LayerNorm"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        causal = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        norm, dense = partial(self.norm, self.kind), partial(nn.Dense, dtype=self.dtype)
        width = x.shape[-1]
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(width // 64, dtype=self.dtype)
            x = x + attention(norm()(x), mask=causal)
            x = x + dense(width)(nn.gelu(dense(4 * width)(norm()(x))))
        return norm()(x)


class UNetBlocks(Network):
    """Two residual blocks of a diffusion U-Net (Ho et al. 2020), at each of two resolutions."""

    width: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(nn.Conv, dtype=self.dtype)
        norm = partial(self.norm, "GroupNorm", num_groups=32)
        for scale in (1, 2):
            channels = scale * self.width
            x = conv(channels, (3, 3), scale)(x)
            for _ in range(2):
                y = conv(channels, (3, 3))(nn.silu(norm()(x)))
                x = x + conv(channels, (3, 3))(nn.silu(norm()(y)))
        return x


class ConvNeXtBlocks(Network):
    """Blocks of one stage of a ConvNeXt (Liu et al. 2022)."""

    blocks: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, dense = x.shape[-1], partial(nn.Dense, dtype=self.dtype)
        for _ in range(self.blocks):
            by_channel = nn.Conv(width, (7, 7), feature_group_count=width, dtype=self.dtype)
            y = self.norm("LayerNorm")(by_channel(x))
            x = x + dense(width)(nn.gelu(dense(4 * width)(y)))
        return x


class Perceptron(Network):
    """Connected layers, each with batch normalization and a rectifier."""

    layers: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, dtype=self.dtype)
        for _ in range(self.layers):
            x = nn.relu(self.norm()(dense(x.shape[-1], use_bias=False)(x)))
        return dense(10)(x)


def initial(network: nn.Module, x: jax.Array) -> tuple[Any, Any]:
    """The variables, and the state of the optimizer."""
    variables = network.init(jax.random.key(0), x)
    return variables, OPTIMIZER.init(variables["params"])


def step(network: nn.Module) -> Callable[[jax.Array, Any], tuple[jax.Array, Any]]:
    """The training step of (x, state): the loss, and the new state after all gradients."""

    def train(x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        variables, optimizer = state
        stats = {name: part for name, part in variables.items() if name != "params"}

        def loss(params: Any) -> tuple[jax.Array, Any]:
            y, new = network.apply({"params": params, **stats}, x, mutable=["batch_stats"])
            return jnp.square(y.astype(jnp.float32)).mean(), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, optimizer = OPTIMIZER.update(gradients, optimizer)
        params = optax.apply_updates(variables["params"], updates)
        return value, ({"params": params, **new}, optimizer)

    return train
