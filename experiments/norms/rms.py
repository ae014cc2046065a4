"""RMS normalization."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.norms.layer import LayerNorm
from jaxnorm import linen


@dataclass(frozen=True, kw_only=True)
class RMSNorm(LayerNorm):
    """RMS normalization (Zhang & Sennrich 2019), over the same axes as layer normalization."""

    adds_bias: ClassVar[bool] = False
    layer = linen.RMSNorm
