"""A small convolutional network."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from experiments.config import NormConfig
from experiments.models.normalization import has_bias, normalize
from experiments.parallel import Scope


class CNN(nn.Module):
    """3x3 convolutions, each normalized and rectified, and a linear head.

    Attributes:
        channels: of each layer. Every layer after the first halves height and width.
        norm: the normalization between a convolution and its rectifier.
        sync: over which devices the normalization measures the batch.
        num_classes: the number of logits.
        total_steps: training steps of the run, which schedules of a normalization refer to.
    """

    channels: Sequence[int]
    norm: NormConfig
    sync: Scope
    num_classes: int
    total_steps: int

    @nn.compact
    def __call__(
        self, images: jax.Array, mask: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Return the logits (batch, classes) of images (batch, height, width, channels).

        Examples at which `mask` is False change nothing of the others.
        """
        x = images
        for layer, channels in enumerate(self.channels):
            x = nn.Conv(
                channels,
                kernel_size=(3, 3),
                strides=1 if layer == 0 else 2,
                use_bias=not has_bias(self.norm),
                kernel_init=nn.initializers.he_normal(),
            )(x)
            x = normalize(
                self.norm, x, mask, train=train, scope=self.sync, total_steps=self.total_steps
            )
            x = nn.relu(x)
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))
