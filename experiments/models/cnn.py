"""A small convolutional network."""

import math
from collections.abc import Iterator
from typing import ClassVar

import jax
from flax import linen as nn

from experiments.models.base import Model, entries, images, position, present
from experiments.norms.base import Places


class CNN(Model, kw_only=True):
    """3x3 convolutions, each with a normalization and a rectifier, and a linear head.

    Attributes:
        channels: the channels of each layer. Every layer after the first halves height and width.
        position: the position of the normalizations, before or after the rectifier.
    """

    channels: list[int]
    position: str

    numbers_layers: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        lengths: None = None,
        mask: jax.Array | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """Return the logits (batch, classes) of images (batch, height, width, channels).

        Masked examples, where `mask` is False, do not affect the others.
        """
        x = present(inputs, mask)
        for layer, channels in enumerate(self.channels):
            x = nn.Conv(
                channels,
                kernel_size=(3, 3),
                strides=1 if layer == 0 else 2,
                use_bias=self.has_bias,
                dtype=self.dtype,
                kernel_init=nn.initializers.he_normal(),
            )(x)
            x = self.placed(f"norm_{layer}", x, mask, nn.relu, train=train)
            x = self.dropped(x, train)
        return self.logits(x.reshape(len(x), -1))

    def own_problems(self, input_shape: tuple[int, ...]) -> Iterator[str]:
        yield from position(self.position)
        yield from entries("model.channels", self.channels, "number of channels for each layer")
        yield from images(self.title, input_shape)
        if len(input_shape) != 3:
            return
        most = int(
            math.log2(min(input_shape[:2]))
        )  # the last layer must have at least 2x2 positions
        if self.norm.norm.needs_positions and len(self.channels) > most:
            height, width = input_shape[:2]
            yield (
                f"model.channels has {len(self.channels)} layers, but images of {height}x{width} "
                f"cannot be halved below 2x2; give at most {most}"
            )

    def places(self, input_shape: tuple[int, ...]) -> Places:
        halved = 2 ** (len(self.channels) - 1)
        height, width = (math.ceil(size / halved) for size in input_shape[:2])
        return Places(self.title, list(self.channels), height * width)
