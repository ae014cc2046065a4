"""A transformer over the first axis of an input, for example the rows of an image."""

from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.errors import at_least, choice, divides, positive
from experiments.models.base import Model
from experiments.models.sequences import sequences
from experiments.norms.base import Places

ORDERS = ("pre", "post")


class Transformer(Model, kw_only=True):
    """Self-attention and fully connected layers over tokens, and a linear head on their mean.

    Tokens beyond the length of an example are excluded from the attention, the mean and the
    statistics. A layer F becomes x + F(N(x)), with another N before the head (pre: Xiong et al.
    2020), or N(x + F(x)) (post: Vaswani et al. 2017). N treats every token as an example.

    Attributes:
        layers: the number of layers, each with attention and two fully connected layers.
        width: the width of a token.
        heads: the number of attention heads.
        mlp_ratio: the width between the two fully connected layers, in units of `width`.
        order: pre or post.
    """

    layers: int
    width: int
    heads: int
    mlp_ratio: float
    order: str

    takes_lengths: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """Return the logits (batch, classes) of sequences (batch, time, ...), or of words.

        Masked examples, where `mask` is False, do not affect the others.
        """
        x, valid = sequences(self.embedded(inputs, self.width), lengths, mask)
        if self.vocabulary is None:
            x = nn.Dense(self.width, dtype=self.dtype, name="tokens")(x)
        x += self._positions(x.shape[1])
        for layer in range(self.layers):
            x = self._around(2 * layer, self._attention, x, valid, train)
            x = self._around(2 * layer + 1, self._connected, x, valid, train)
        if self.order == "pre":
            x = self._normalized(2 * self.layers, x, valid, train)
        count = valid.sum(axis=1, keepdims=True, dtype=jnp.float32)
        mean = x.astype(jnp.float32).sum(axis=1, where=valid[..., None]) / jnp.maximum(count, 1)
        return self.logits(mean)

    def _positions(self, length: int) -> jax.Array:
        """Return the learned position embedding."""
        first = nn.initializers.normal(0.02)
        embedding = nn.Embed(
            length, self.width, dtype=self.dtype, embedding_init=first, name="positions"
        )
        return embedding(jnp.arange(length))

    def _around(
        self, place: int, layer: Any, x: jax.Array, valid: jax.Array, train: bool
    ) -> jax.Array:
        """Add the output of a layer to x; normalize before the layer or after the sum."""
        y = self._normalized(place, x, valid, train) if self.order == "pre" else x
        x += self.dropped(layer(y, valid), train)
        return x if self.order == "pre" else self._normalized(place, x, valid, train)

    def _normalized(self, place: int, x: jax.Array, valid: jax.Array, train: bool) -> jax.Array:
        norm = self.norm(name=f"norm_{place}", tokens=x.shape[1])
        return norm(x.reshape(-1, self.width), valid.reshape(-1), train=train).reshape(x.shape)

    def _attention(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        return nn.MultiHeadDotProductAttention(
            self.heads, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform()
        )(x, mask=valid[:, None, None, :])

    def _connected(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        options = {"dtype": self.dtype, "kernel_init": nn.initializers.xavier_uniform()}
        y = nn.gelu(nn.Dense(round(self.mlp_ratio * self.width), **options)(x))
        return nn.Dense(self.width, **options)(y)

    def own_problems(self, input_shape: tuple[int, ...]) -> Iterator[str]:
        yield from at_least("model.layers", self.layers, 1)
        yield from at_least("model.width", self.width, 1)
        if self.width >= 1:
            yield from divides("model.heads", self.heads, [self.width])
        yield from positive("model.mlp_ratio", self.mlp_ratio)
        yield from choice("model.order", self.order, ORDERS)

    def places(self, input_shape: tuple[int, ...]) -> Places:
        return Places(self.title, [self.width] * (2 * self.layers + (self.order == "pre")))
