"""The base class of all models, and layers that several of them use."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.errors import at_least, choice, fraction
from experiments.norms.base import Places

ACTIVATIONS = {"sigmoid": nn.sigmoid, "tanh": nn.tanh, "relu": nn.relu}
POSITIONS = ("before", "after")


class Model(nn.Module, kw_only=True):
    """A classifier whose normalization is configured separately.

    Attributes:
        norm: creates the normalizations, as `experiments.norms.base.Placement` does.
        num_classes: the number of logits.
        vocabulary: the number of words, if inputs are words, as integers (batch, time).
        dtype: the dtype of the computation; parameters and logits are float32.
        dropout: the dropout rate in training, with keys of the collection "dropout".
        takes_lengths: whether the inputs are sequences, which can have lengths or be of words.
        cpu_steps_per_call: the number of steps in one compiled call that is fastest on a CPU.
        numbers_layers: whether the names of its layers, except for the head, are numbered in order.
    """

    norm: Callable[..., Any]
    num_classes: int
    vocabulary: int | None = None
    dtype: Any
    dropout: float

    takes_lengths: ClassVar[bool] = False
    numbers_layers: ClassVar[bool] = False
    cpu_steps_per_call: ClassVar[int] = 1

    def problems(self, input_shape: tuple[int, ...]) -> Iterator[str]:
        """Yield what is wrong for inputs of this shape (without the batch axis)."""
        own = [*self.own_problems(input_shape)]
        yield from own
        yield from fraction("model.dropout", self.dropout, below_one=True)
        if not own:
            yield from self.norm.norm.problems_in(self.places(input_shape))

    @property
    def title(self) -> str:
        """The name of the model in a configuration."""
        return type(self).__name__.lower()

    def own_problems(self, input_shape: tuple[int, ...]) -> Iterator[str]:
        """Yield what is wrong with the values of this model."""
        raise NotImplementedError

    def places(self, input_shape: tuple[int, ...]) -> Places:
        """Return the shapes that the normalizations get."""
        raise NotImplementedError

    def embedded(self, inputs: jax.Array, width: int) -> jax.Array:
        """Return learned vectors (batch, time, width) of words (batch, time), or other inputs."""
        if self.vocabulary is None:
            return inputs
        return nn.Embed(self.vocabulary, width, dtype=self.dtype, name="words")(inputs)

    def dropped(self, x: jax.Array, train: bool) -> jax.Array:
        """Apply dropout."""
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def logits(self, x: jax.Array) -> jax.Array:
        """Return the logits of features (batch, features)."""
        return nn.Dense(self.num_classes, name="head")(x.astype(jnp.float32))

    def placed(
        self, name: str, x: jax.Array, mask: jax.Array | None, activation: Any, *, train: bool
    ) -> jax.Array:
        """Normalize and activate, in the order that `position` sets."""
        if self.position == "after":
            return self.norm(name=name)(activation(x), mask, train=train)
        return activation(self.norm(name=name)(x, mask, train=train))

    @property
    def has_bias(self) -> bool:
        """Whether a layer needs its own bias, because no normalization after it adds one."""
        return self.position == "after" or not self.norm.adds_bias


def present(inputs: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Return inputs with zeros where `mask`, of their first axes, is False.

    Masked values, NaN included, then do not change the gradients of kernels.
    """
    if mask is None:
        return inputs
    return jnp.where(mask.reshape(*mask.shape, *(1,) * (inputs.ndim - mask.ndim)), inputs, 0)


def entries(key: str, values: list[int], what: str) -> Iterator[str]:
    """Yield what is wrong with a list of sizes; `what` describes an entry."""
    if not values:
        yield f"{key} is empty; give one {what}"
    for value in values:
        yield from at_least(f"every entry of {key}", value, 1)


def position(value: str) -> Iterator[str]:
    """Yield what is wrong with the position of the normalizations."""
    yield from choice("model.position", value, POSITIONS)


def images(model: str, input_shape: tuple[int, ...]) -> Iterator[str]:
    """Yield a problem if inputs are not images."""
    if len(input_shape) != 3:
        yield (
            f"model={model} takes images, but the data have shape {list(input_shape)}; "
            "give model=mlp"
        )
