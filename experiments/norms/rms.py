"""RMS normalization."""

from dataclasses import dataclass
from typing import Any, ClassVar

from flax import linen as nn

from experiments.norms.base import Context
from experiments.norms.sample import SampleNorm
from jaxnorm import linen


@dataclass(frozen=True, kw_only=True)
class RMSNorm(SampleNorm):
    """RMS normalization (Zhang & Sennrich 2019), over all positions and channels of an example."""

    adds_bias: ClassVar[bool] = False

    def module(self, context: Context, ndim: int, **options: Any) -> nn.Module:
        return linen.RMSNorm(
            epsilon=self.epsilon,
            reduction_axes=tuple(range(1, ndim)),
            dtype=context.dtype,
            **options,
        )
