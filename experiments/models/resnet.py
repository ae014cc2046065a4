"""Residual networks for small images."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn

Norm = Callable[..., nn.Module]


class ResNet(nn.Module):
    """A residual network of 6 n + 2 layers (He et al. 2015, section 4.2): n = 3 makes ResNet-20.

    Attributes:
        norm: makes a normalization; called as `norm()(x)`, `norm(scale_init=...)(x)`.
        blocks: blocks of each stage. Every stage after the first halves height and width.
        channels: of each stage.
        num_classes: the number of logits.
        dtype: of the computation; parameters are float32.
    """

    norm: Norm
    blocks: Sequence[int] = (3, 3, 3)
    channels: Sequence[int] = (16, 32, 64)
    num_classes: int = 10
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return the logits (batch, classes) of images (batch, height, width, channels)."""
        x = _convolution(self, self.channels[0], 1)(images)
        x = nn.relu(self.norm()(x))
        for stage, (blocks, channels) in enumerate(zip(self.blocks, self.channels, strict=True)):
            for block in range(blocks):
                x = self._block(x, channels, 2 if stage > 0 and block == 0 else 1)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))

    def _block(self, x: jax.Array, channels: int, stride: int) -> jax.Array:
        """Two convolutions beside the identity, or a projection where the shape changes."""
        y = nn.relu(self.norm()(_convolution(self, channels, stride)(x)))
        y = self.norm(scale_init=nn.initializers.zeros)(_convolution(self, channels, 1)(y))
        if x.shape != y.shape:
            x = self.norm()(_convolution(self, channels, stride, kernel=1)(x))
        return nn.relu(x + y)


def _convolution(model: ResNet, channels: int, stride: int, kernel: int = 3) -> nn.Conv:
    return nn.Conv(
        channels,
        (kernel, kernel),
        stride,
        use_bias=False,
        dtype=model.dtype,
        kernel_init=nn.initializers.he_normal(),
    )
