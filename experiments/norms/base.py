"""What every normalization of a model is, and the place it takes in one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
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
    """

    scope: Scope
    total_steps: int
    dtype: Any


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A normalization, as a configuration chooses it.

    Attributes:
        of_the_batch: whether it keeps running statistics in `batch_stats`.
        needs_positions: whether it has nothing to measure in inputs of (batch, features).
        adds_bias: whether the layer before it needs no bias.
    """

    of_the_batch: ClassVar[bool] = False
    needs_positions: ClassVar[bool] = False
    adds_bias: ClassVar[bool] = True
    only_global: ClassVar[str] = ""
    needs_running: ClassVar[str] = ""

    def module(self, context: Context, ndim: int, **options: Any) -> nn.Module | None:
        """Return the layer for inputs of `ndim` axes; None for the identity.

        `options` are `scale_init` and the like.

        It is called as `layer(x)`, or where it is of the batch
        `layer(x, use_running_average=not train, mask=mask)`.
        """
        raise NotImplementedError

    def problems(self, batch_size: int) -> Iterator[str]:
        """Yield what cannot be right about the values, whatever the model."""
        yield from ()


class Normalization(nn.Module):
    """One place in a model where its normalization stands.

    Where the collection "intermediates" is mutable, it keeps what goes in and what comes out.

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
        layer = self.norm.module(self.context, x.ndim, **dict(self.options))
        if layer is None:
            y = x
        elif self.norm.of_the_batch:
            if mask is not None:
                mask = mask.reshape(-1, *(1,) * (x.ndim - 1))
            y = layer(x, use_running_average=not train, mask=mask)
        else:
            y = layer(x)
        self.sow("intermediates", "output", y)
        return y


class Placement(NamedTuple):
    """TEMP"""

    norm: Norm
    context: Context

    @property
    def adds_bias(self) -> bool:
        return self.norm.adds_bias

    def __call__(self, name=None, **options):
        return Normalization(self.norm, self.context, tuple(options.items()), name=name)
