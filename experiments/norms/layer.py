"""Layer normalization."""

from dataclasses import dataclass
from typing import Any

from experiments.norms.sample import SampleNorm
from jaxnorm import linen


@dataclass(frozen=True, kw_only=True)
class LayerNorm(SampleNorm):
    """Layer normalization (Ba et al. 2016), over all positions and channels of an example."""

    layer = linen.LayerNorm

    def arguments(self, ndim: int) -> dict[str, Any]:
        return {"reduction_axes": tuple(range(1, ndim))}
