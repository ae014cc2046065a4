"""Instance normalization."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from experiments.norms.base import Places
from experiments.norms.sample import SampleNorm
from jaxnorm import linen


@dataclass(frozen=True, kw_only=True)
class InstanceNorm(SampleNorm):
    """Instance normalization (Ulyanov et al. 2016), over the positions of a channel."""

    needs_positions: ClassVar[bool] = True
    layer = linen.InstanceNorm

    def problems_in(self, places: Places) -> Iterator[str]:
        if places.positions == 1:
            yield (
                f"instance normalization needs positions, and model={places.model} has none; give "
                "norm=layer, or model=cnn or resnet"
            )
