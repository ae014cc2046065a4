"""Residual networks for small images."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
from flax import linen as nn

from experiments.errors import at_least
from experiments.models.base import Model, images, position, present
from experiments.norms.base import Places

STAGES = 3


class ResNet(Model, kw_only=True):
    """A residual network of 6 n + 2 layers (He et al. 2015, section 4.2): n = 3 gives ResNet-20.

    The last scale of a residual block is initialized to zero (Goyal et al. 2017), so that the block
    starts as the identity. The summands of a block, which are the second convolution and the
    projection, have no rectifier of their own. They are always normalized directly, and the
    rectified sum is not normalized, in both positions.

    Attributes:
        depth: the number of layers, 6 n + 2.
        width: the channels of the first of three stages. The others halve height and width and
            double the channels.
        position: the position of the normalizations of the first convolution and of the first one
            in each block, before or after the rectifier.
        residual: False for a plain network (He et al. 2015): the same layers without the skip
            connections and their projections, and all scales are initialized to one.
    """

    depth: int
    width: int
    position: str
    residual: bool = True

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
        places = itertools.count()

        def normalized(x: jax.Array, **options: Any) -> jax.Array:
            return self.norm(name=f"norm_{next(places)}", **options)(x, mask, train=train)

        def activated(x: jax.Array) -> jax.Array:
            return self.placed(f"norm_{next(places)}", x, mask, nn.relu, train=train)

        first = self._convolution(self.width, 1, use_bias=self.has_bias)
        x = activated(first(present(inputs, mask)))
        for stage in range(STAGES):
            for block in range((self.depth - 2) // (2 * STAGES)):
                stride = 2 if stage > 0 and block == 0 else 1
                x = self._block(x, activated, normalized, self.width * 2**stage, stride)
        return self.logits(self.dropped(x.mean((1, 2)), train))

    def _block(
        self, x: jax.Array, activated: Any, normalized: Any, channels: int, stride: int
    ) -> jax.Array:
        """Apply two convolutions and add the input, which is projected if the shape changes."""
        y = activated(self._convolution(channels, stride, use_bias=self.has_bias)(x))
        y = self._convolution(channels, 1)(y)
        if not self.residual:
            return nn.relu(normalized(y))
        y = normalized(y, scale_init=nn.initializers.zeros)
        if x.shape != y.shape:
            x = normalized(self._convolution(channels, stride, kernel=1)(x))
        return nn.relu(x + y)

    def _convolution(
        self, channels: int, stride: int, kernel: int = 3, use_bias: bool | None = None
    ) -> nn.Conv:
        """Return a convolution, by default one that a normalization follows directly."""
        return nn.Conv(
            channels,
            (kernel, kernel),
            stride,
            use_bias=not self.norm.adds_bias if use_bias is None else use_bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.he_normal(),
        )

    def own_problems(self, input_shape: tuple[int, ...]) -> Iterator[str]:
        yield from position(self.position)
        if self.depth < 8 or self.depth % 6 != 2:
            yield f"model.depth is {self.depth}; give 6 n + 2, such as 8, 14, 20, 32 or 56"
        yield from at_least("model.width", self.width, 1)
        yield from images(self.title, input_shape)

    def places(self, input_shape: tuple[int, ...]) -> Places:
        smallest = [math.ceil(size / 2 ** (STAGES - 1)) for size in input_shape[:2]]
        widths = [self.width * 2**stage for stage in range(STAGES)]
        return Places(self.title, widths, math.prod(smallest))
