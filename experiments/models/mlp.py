"""Fully connected layers."""

from collections.abc import Iterator
from typing import ClassVar

import jax
from flax import linen as nn

from experiments.errors import at_least, choice
from experiments.models.base import ACTIVATIONS, Model, entries, position, present
from experiments.norms.base import Places


class MLP(Model, kw_only=True):
    """Fully connected layers, each with a normalization and an activation, and a linear head.

    The plain network is y <- W act(norm(y)) in every layer after the first. The residual one is
    y <- y + W act(norm(y)), the pre-activation form of He et al. 2016 (Identity mappings in deep
    residual networks, section 4) with one layer in a block.

    Attributes:
        hidden: the width of each layer.
        activation: sigmoid or tanh, with the initialization of Glorot & Bengio 2010, or relu, with
            the initialization of He et al. 2015.
        position: the position of the normalizations, before or after the activation.
        residual: whether each layer after the first adds to its input.
        depth: the number of layers, which then all have the one width of `hidden`; None means one
            layer for each width.
    """

    hidden: list[int]
    activation: str
    position: str
    residual: bool = False
    depth: int | None = None

    numbers_layers: ClassVar[bool] = True
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

        def activated(layer: int, y: jax.Array) -> jax.Array:
            y = self.placed(f"norm_{layer}", y, mask, activation, train=train)
            return self.dropped(y, train)

        first, *others = self.widths
        y = self._dense(first)(present(inputs, mask).reshape(len(inputs), -1))
        for layer, width in enumerate(others):
            added = self._dense(width)(activated(layer, y))
            y = y + added if self.residual else added
        return self.logits(activated(len(others), y))

    @property
    def widths(self) -> list[int]:
        """The width of each layer."""
        return list(self.hidden) * (self.depth or 1)

    def _dense(self, width: int) -> nn.Dense:
        relu = self.activation == "relu"
        kernel_init = nn.initializers.he_normal() if relu else nn.initializers.glorot_normal()
        return nn.Dense(width, use_bias=self.has_bias, dtype=self.dtype, kernel_init=kernel_init)

    def own_problems(self, input_shape: tuple[int, ...]) -> Iterator[str]:
        yield from position(self.position)
        yield from choice("model.activation", self.activation, list(ACTIVATIONS))
        yield from entries("model.hidden", self.hidden, "width for each layer")
        if self.depth is not None:
            yield from at_least("model.depth", self.depth, 1)
            if len(self.hidden) != 1:
                yield (
                    f"model.depth is {self.depth}, but model.hidden is {list(self.hidden)}; give "
                    "one width, such as [64], or model.depth=null"
                )
        if self.residual and len(set(self.hidden)) > 1:
            yield (
                f"model.residual adds layers of one width, but model.hidden is "
                f"{list(self.hidden)}; give equal widths, or model.residual=false"
            )

    def places(self, input_shape: tuple[int, ...]) -> Places:
        return Places(self.title, self.widths)
