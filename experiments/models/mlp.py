"""Fully connected layers."""

from collections.abc import Iterator
from typing import ClassVar

import jax
from flax import linen as nn

from experiments.errors import choice
from experiments.models.base import ACTIVATIONS, Model, entries, position, present
from experiments.norms.base import Places


class MLP(Model, kw_only=True):
    """Fully connected layers, each with a normalization and an activation, and a linear head.

    Attributes:
        hidden: the width of each layer.
        activation: sigmoid or tanh, with the initialization of Glorot & Bengio 2010, or relu, with
            the initialization of He et al. 2015.
        position: the position of the normalizations, before or after the activation.
    """

    hidden: list[int]
    activation: str
    position: str

    cpu_steps_per_call: ClassVar[int] = 50

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        lengths: None = None,
        mask: jax.Array | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """Return the logits (batch, classes) of inputs (batch, ...), which are flattened.

        Masked examples, where `mask` is False, do not affect the others.
        """
        activation = ACTIVATIONS[self.activation]
        relu = self.activation == "relu"
        kernel_init = nn.initializers.he_normal() if relu else nn.initializers.glorot_normal()
        x = present(inputs, mask).reshape(len(inputs), -1)
        for layer, width in enumerate(self.hidden):
            x = nn.Dense(width, use_bias=self.has_bias, dtype=self.dtype, kernel_init=kernel_init)(
                x
            )
            x = self.placed(f"norm_{layer}", x, mask, activation, train=train)
            x = self.dropped(x, train)
        return self.logits(x)

    def own_problems(self, input_shape: tuple[int, ...]) -> Iterator[str]:
        yield from position(self.position)
        yield from choice("model.activation", self.activation, list(ACTIVATIONS))
        yield from entries("model.hidden", self.hidden, "width for each layer")

    def places(self, input_shape: tuple[int, ...]) -> Places:
        return Places(self.title, list(self.hidden))
