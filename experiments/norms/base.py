"""The base class of all normalizations, and their use in a model.

A place is a position in a model where its normalization is applied. Each place has its own
parameters and statistics.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn


class Scope(NamedTuple):
    """The examples over which a normalization layer measures batch statistics."""

    num_ghosts: int | None = None
    axis_name: str | None = None
    axis_index_groups: list[list[int]] | None = None


class Context(NamedTuple):
    """The facts about a run that a normalization needs.

    Attributes:
        scope: the devices that share batch statistics.
        total_steps: the number of training steps, for schedules.
        dtype: the dtype of the activations.
        step: the number of completed training steps, possibly traced. Training needs it if
            statistics freeze.
        tokens: the number of rows of an input that belong to one example, such as the tokens in a
            transformer.
        measures: whether evaluation also measures the batch and normalizes by it.
    """

    scope: Scope
    total_steps: int
    dtype: Any
    step: Any = None
    tokens: int = 1
    measures: bool = False


class Places(NamedTuple):
    """The inputs of the normalizations of a model.

    Attributes:
        model: the name of the model.
        widths: the channels, in order of depth.
        positions: the smallest number of positions of a channel in an example; 1 where inputs are
            (batch, features).
    """

    model: str
    widths: list[int]
    positions: int = 1


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A normalization, as a configuration selects it.

    Attributes:
        of_the_batch: whether it keeps running statistics in `batch_stats`.
        needs_positions: whether it has nothing to measure in inputs of (batch, features).
        adds_bias: whether the layer before it needs no bias.
        syncs: whether it is defined over the examples of some devices only (`Context.scope`).
        of_running: whether training also normalizes by the running statistics, which must then be
            those of the previous step.
        merges: whether statistics of devices or micro-batches can be merged.
        frozen_from: the fraction of the steps after which training uses the running statistics and
            no longer changes them (Wu & Johnson 2021); None means never.
        overwritten: entries of `batch_stats` whose gradient in training is their new value.
    """

    of_the_batch: ClassVar[bool] = False
    needs_positions: ClassVar[bool] = False
    adds_bias: ClassVar[bool] = True
    syncs: ClassVar[bool] = False
    of_running: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    frozen_from: ClassVar[float | None] = None
    overwritten: ClassVar[tuple[str, ...]] = ()

    @property
    def batch_multiple(self) -> int:
        """A number that must divide the size of a training batch."""
        return 1

    def module(self, context: Context, ndim: int, **options: Any) -> nn.Module | None:
        """Return the layer for inputs of `ndim` axes; None means the identity.

        `options` are `scale_init` and, if it adds a bias, `use_bias`.

        The layer is called as `layer(x)`, or if it is of the batch as
        `layer(x, use_running_average=not train, mask=mask)`.
        """
        raise NotImplementedError

    def perturbed(self, y: jax.Array, key: Callable[[], jax.Array], scope: Scope) -> jax.Array:
        """Return the output of the place in training.

        `key()` gives keys of the collection "noise", which are the same on every device.
        """
        return y

    def problems(self, batch_size: int) -> Iterator[str]:
        """Yield what is wrong with the values, independent of the model."""
        yield from ()

    def problems_in(self, places: Places) -> Iterator[str]:
        """Yield what is wrong in a model."""
        yield from ()


class Normalization(nn.Module):
    """A place in a model. Its variables are those of its layer.

    If the collection "intermediates" is mutable, the place stores its input, its output and the
    mask, if there is one.

    Attributes:
        norm: the normalization.
        context: the facts about the run.
        options: the options of the layer, such as `scale_init`.
    """

    norm: Norm
    context: Context
    options: Any = ()

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Normalize x, (batch, features) or (batch, height, width, channels).

        Masked examples, where `mask` (batch,) is False, do not affect the others.
        """
        self.sow("intermediates", "input", x)
        if mask is not None:
            self.sow("intermediates", "mask", mask)
        training = train and not self.is_initializing()
        y = self._normalized(x, mask, training)
        if training:
            y = self.norm.perturbed(y, lambda: self.make_rng("noise"), self.context.scope)
        self.sow("intermediates", "output", y)
        return y

    def _normalized(self, x: jax.Array, mask: jax.Array | None, training: bool) -> jax.Array:
        layer = self.norm.module(self.context, x.ndim, **dict(self.options))
        if layer is None:
            return x
        nn.share_scope(self, layer)
        if not self.norm.of_the_batch:
            return layer(x)
        if mask is not None:
            mask = mask.reshape(-1, *(1,) * (x.ndim - 1))
        if training and self.norm.frozen_from is not None:
            return self._freezing(layer, x, mask)
        measuring = training or self.context.measures
        return layer(x, use_running_average=not measuring, mask=mask)

    def _freezing(self, layer: nn.Module, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Measure the batch, or use and keep the running statistics from `frozen_from` on.

        Both are computed, and the step selects one. This is exact under `jit`, `scan` and `vmap`.
        """
        if self.context.step is None:
            raise ValueError("norm.frozen_from needs the step; give Context(step=...)")
        frozen = self.context.step >= round(self.norm.frozen_from * self.context.total_steps)
        before = dict(layer.variables["batch_stats"])
        of_running = layer(x, use_running_average=True, mask=mask)
        of_batch = layer(x, use_running_average=False, mask=mask)
        for key, old in before.items():
            new = layer.get_variable("batch_stats", key)
            layer.put_variable("batch_stats", key, jnp.where(frozen, old, new))
        return jnp.where(frozen, of_running, of_batch)


@dataclass(frozen=True)
class Placement:
    """A normalization in a run. A model creates its places with it."""

    norm: Norm
    context: Context

    @property
    def adds_bias(self) -> bool:
        """Whether the layer before a place needs no bias."""
        return self.norm.adds_bias

    def __call__(
        self, *, name: str, tokens: int = 1, use_bias: bool = True, **options: Any
    ) -> Normalization:
        """Return a place.

        Args:
            tokens: the number of rows of an input that belong to one example.
            use_bias: False if the place must not add a bias.
            options: the options of the layer: `scale_init`.
        """
        if self.adds_bias:
            options["use_bias"] = use_bias
        return Normalization(
            self.norm, self.context._replace(tokens=tokens), tuple(options.items()), name=name
        )
