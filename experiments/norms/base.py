"""What every normalization of a model is, and the place it takes in one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn


class Scope(NamedTuple):
    """Over which examples a normalization layer measures batch statistics."""

    num_ghosts: int | None = None
    axis_name: str | None = None
    axis_index_groups: list[list[int]] | None = None


class Context(NamedTuple):
    """What a normalization must know of the run.

    Attributes:
        scope: over which devices the batch is measured.
        total_steps: of training, which schedules refer to.
        dtype: of the activations.
        step: how many training steps were taken, possibly traced; needed in training where
            statistics freeze.
        tokens: of an input that one example has: its tokens in a transformer.
        measures: whether evaluation too measures the batch and normalizes by that.
    """

    scope: Scope
    total_steps: int
    dtype: Any
    step: Any = None
    tokens: int = 1
    measures: bool = False


class Places(NamedTuple):
    """What the normalizations of a model see.

    Attributes:
        model: its name.
        widths: their channels, in order of depth.
        positions: that a channel of an example has at least; 1 where inputs are (batch, features).
    """

    model: str
    widths: list[int]
    positions: int = 1


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A normalization, as a configuration chooses it.

    Attributes:
        of_the_batch: whether it keeps running statistics in `batch_stats`.
        needs_positions: whether it has nothing to measure in inputs of (batch, features).
        adds_bias: whether the layer before it needs no bias.
        syncs: whether it is defined over the examples of some devices alone (`Context.scope`).
        of_running: whether training normalizes by the running statistics too, so that they must be
            those of the step before.
        merges: whether statistics of parts of a batch, on devices or micro-batches, can be merged.
        frozen_from: the fraction of the run's steps from which running statistics are used, and no
            longer changed, in training too (Wu & Johnson 2021); None for never.
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
        """What must divide the examples of a batch in training."""
        return 1

    def module(self, context: Context, ndim: int, **options: Any) -> nn.Module | None:
        """Return the layer for inputs of `ndim` axes; None for the identity.

        `options` are `scale_init` and, where it adds a bias, `use_bias`.

        It is called as `layer(x)`, or where it is of the batch
        `layer(x, use_running_average=not train, mask=mask)`.
        """
        raise NotImplementedError

    def perturbed(self, y: jax.Array, key: Callable[[], jax.Array], scope: Scope) -> jax.Array:
        """Return what training continues with.

        `key()` gives keys of the collection "noise", the same on every device.
        """
        return y

    def problems(self, batch_size: int) -> Iterator[str]:
        """Yield what cannot be right about the values, whatever the model."""
        yield from ()

    def problems_in(self, places: Places) -> Iterator[str]:
        """Yield what cannot be right in a model."""
        yield from ()


class Normalization(nn.Module):
    """One place in a model where its normalization stands, whose variables are the place's own.

    Where the collection "intermediates" is mutable, it keeps what goes in, what comes out and,
    where one is given, the mask.

    Attributes:
        norm: the normalization.
        context: what it must know of the run.
        options: of its layer, such as `scale_init`.
    """

    norm: Norm
    context: Context
    options: Any = ()

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Normalize x, (batch, features) or (batch, height, width, channels).

        Examples at which `mask` (batch,) is False change nothing of the others.
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
        """Measure the batch, or from `frozen_from` on use and keep the running statistics.

        Both are computed, and the step chooses: exact under `jit`, `scan` and `vmap`.
        """
        if self.context.step is None:
            raise ValueError("norm.frozen_from needs to know the step; give Context(step=...)")
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
    """A normalization in a run: what a model makes its places with, and what it asks before."""

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
            tokens: of an input that one example has.
            use_bias: False where it is to add none.
            options: of its layer: `scale_init`.
        """
        if self.adds_bias:
            options["use_bias"] = use_bias
        return Normalization(
            self.norm, self.context._replace(tokens=tokens), tuple(options.items()), name=name
        )
