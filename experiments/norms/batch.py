"""Batch normalization, over the devices that the scope names."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from flax import linen as nn

from experiments.errors import fraction, positive
from experiments.norms.base import Context, Norm
from jaxnorm import linen


@dataclass(frozen=True, kw_only=True)
class RunningNorm(Norm):
    """What keeps running statistics.

    Attributes:
        momentum: the weight of their old value; None merges all batches exactly.
        epsilon: added to the variance.
    """

    momentum: Optional[float]
    epsilon: float

    of_the_batch: ClassVar[bool] = True

    def common(self, context: Context) -> dict[str, Any]:
        """Return what every layer of the batch is given."""
        return {
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "axis_name": context.scope.axis_name,
            "axis_index_groups": context.scope.axis_index_groups,
            "dtype": context.dtype,
        }

    def problems(self, batch_size: int) -> Iterator[str]:
        if self.momentum is not None:
            yield from fraction("norm.momentum", self.momentum)
        yield from positive("norm.epsilon", self.epsilon)


class BatchNorm(RunningNorm):
    """Batch normalization (Ioffe & Szegedy 2015)."""

    def module(self, context: Context, ndim: int, **options: Any) -> nn.Module:
        common = self.common(context)
        if context.scope.num_ghosts is None:
            return linen.BatchNorm(**common, **options)
        return linen.GhostBatchNorm(num_ghosts=context.scope.num_ghosts, **common, **options)
