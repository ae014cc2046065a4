"""The common part of the normalizations with running statistics."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from experiments.errors import fraction, positive
from experiments.norms.base import Context, Norm


@dataclass(frozen=True, kw_only=True)
class RunningNorm(Norm):
    """A normalization that keeps running statistics.

    Attributes:
        momentum: the weight of their old value; None merges all batches exactly.
        epsilon: added to the variance.
        frozen_from: as in `Norm`.
    """

    momentum: Optional[float]
    epsilon: float
    frozen_from: Optional[float]

    of_the_batch: ClassVar[bool] = True

    def common(self, context: Context) -> dict[str, Any]:
        """Return the arguments that all these layers have in common."""
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
        if self.frozen_from is not None:
            yield from fraction("norm.frozen_from", self.frozen_from)
