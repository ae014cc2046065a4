"""Layer normalization."""

from dataclasses import dataclass
from typing import Any

from flax import linen as nn

from experiments.norms.base import Context
from experiments.norms.sample import SampleNorm
from jaxnorm import linen


@dataclass(frozen=True, kw_only=True)
class LayerNorm(SampleNorm):
    """Layer normalization (Ba et al. 2016), over all positions and channels of an example."""

    def module(self, context: Context, ndim: int, **options: Any) -> nn.Module:
        return linen.LayerNorm(
            epsilon=self.epsilon,
            reduction_axes=tuple(range(1, ndim)),
            dtype=context.dtype,
            **options,
        )
