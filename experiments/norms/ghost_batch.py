"""Ghost batch normalization."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flax import linen as nn

from experiments.errors import divides
from experiments.norms.base import Context
from experiments.norms.running import RunningNorm
from jaxnorm import linen


@dataclass(frozen=True, kw_only=True)
class GhostBatchNorm(RunningNorm):
    """Ghost batch normalization (Hoffer et al. 2017).

    If the scope has a number of ghosts, as in evaluation by batches, it replaces the ghost size.

    Attributes:
        ghost_size: the number of examples that share their statistics.
    """

    ghost_size: int

    @property
    def batch_multiple(self) -> int:
        return self.ghost_size

    def module(self, context: Context, ndim: int, **options: Any) -> nn.Module:
        if context.scope.num_ghosts is not None:
            ghosts = {"num_ghosts": context.scope.num_ghosts}
        else:
            ghosts = {"ghost_size": self.ghost_size * context.tokens}
        return linen.GhostBatchNorm(**ghosts, **self.common(context), **options)

    def problems(self, batch_size: int) -> Iterator[str]:
        yield from super().problems(batch_size)
        yield from divides("norm.ghost_size", self.ghost_size, [batch_size])
