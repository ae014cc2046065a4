"""Instance normalization."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import linen as nn

from experiments.norms.base import Context, Places
from experiments.norms.sample import SampleNorm
from jaxnorm import linen


@dataclass(frozen=True, kw_only=True)
class InstanceNorm(SampleNorm):
    """Instance normalization (Ulyanov et al. 2016), over the positions of a channel."""

    needs_positions: ClassVar[bool] = True

    def module(self, context: Context, ndim: int, **options: Any) -> nn.Module:
        return linen.InstanceNorm(epsilon=self.epsilon, dtype=context.dtype, **options)

    def problems_in(self, places: Places) -> Iterator[str]:
        if places.positions == 1:
            yield (
                f"instance normalization needs positions, and model={places.model} has none; give "
                "norm=layer, or model=cnn or resnet"
            )
