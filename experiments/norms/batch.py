"""Batch normalization over the devices of the scope."""

from dataclasses import dataclass
from typing import Any, ClassVar

from flax import linen as nn

from experiments.norms.base import Context
from experiments.norms.running import RunningNorm
from jaxnorm import linen


@dataclass(frozen=True, kw_only=True)
class BatchNorm(RunningNorm):
    """Batch normalization (Ioffe & Szegedy 2015)."""

    syncs: ClassVar[bool] = True

    def module(self, context: Context, ndim: int, **options: Any) -> nn.Module:
        common = self.common(context)
        if context.scope.num_ghosts is None:
            return linen.BatchNorm(**common, **options)
        return linen.GhostBatchNorm(num_ghosts=context.scope.num_ghosts, **common, **options)
