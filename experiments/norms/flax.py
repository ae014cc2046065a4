"""The modules of Flax Linen itself, to compare with those of jaxnorm."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import linen

from experiments.errors import fraction
from experiments.norms.group import GroupNorm
from experiments.norms.instance import InstanceNorm
from experiments.norms.layer import LayerNorm
from experiments.norms.rms import RMSNorm
from experiments.norms.sample import SampleNorm


@dataclass(frozen=True, kw_only=True)
class FlaxBatchNorm(SampleNorm):
    """Batch normalization of Flax, over the whole batch.

    Attributes:
        momentum: the weight of the old running statistics.
    """

    momentum: float

    of_the_batch: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    layer = linen.BatchNorm

    def arguments(self, ndim: int) -> dict[str, Any]:
        return {"momentum": self.momentum}

    def problems(self, batch_size: int) -> Iterator[str]:
        yield from fraction("norm.momentum", self.momentum)
        yield from super().problems(batch_size)


@dataclass(frozen=True, kw_only=True)
class FlaxLayerNorm(LayerNorm):
    """Layer normalization of Flax."""

    layer = linen.LayerNorm


@dataclass(frozen=True, kw_only=True)
class FlaxRMSNorm(RMSNorm):
    """RMS normalization of Flax."""

    layer = linen.RMSNorm


@dataclass(frozen=True, kw_only=True)
class FlaxGroupNorm(GroupNorm):
    """Group normalization of Flax."""

    layer = linen.GroupNorm


@dataclass(frozen=True, kw_only=True)
class FlaxInstanceNorm(InstanceNorm):
    """Instance normalization of Flax."""

    layer = linen.InstanceNorm
