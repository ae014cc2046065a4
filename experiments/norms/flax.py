"""Flax Linen's own modules, to stand beside those of jaxnorm."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import linen

from experiments.errors import fraction
from experiments.norms.base import Context
from experiments.norms.group import GroupNorm
from experiments.norms.instance import InstanceNorm
from experiments.norms.rms import RMSNorm
from experiments.norms.sample import SampleNorm


@dataclass(frozen=True, kw_only=True)
class FlaxBatchNorm(SampleNorm):
    """Flax's batch normalization, of a whole batch.

    Attributes:
        momentum: the weight of the old running statistics.
    """

    momentum: float

    of_the_batch: ClassVar[bool] = True
    merges: ClassVar[bool] = False

    def module(self, context: Context, ndim: int, **options: Any) -> linen.Module:
        return linen.BatchNorm(
            momentum=self.momentum, epsilon=self.epsilon, dtype=context.dtype, **options
        )

    def problems(self, batch_size: int) -> Iterator[str]:
        yield from fraction("norm.momentum", self.momentum)
        yield from super().problems(batch_size)


@dataclass(frozen=True, kw_only=True)
class FlaxLayerNorm(SampleNorm):
    """Flax's layer normalization, over all positions and channels of an example."""

    def module(self, context: Context, ndim: int, **options: Any) -> linen.Module:
        return linen.LayerNorm(
            epsilon=self.epsilon,
            reduction_axes=tuple(range(1, ndim)),
            dtype=context.dtype,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class FlaxRMSNorm(RMSNorm):
    """Flax's RMS normalization, over all positions and channels of an example."""

    def module(self, context: Context, ndim: int, **options: Any) -> linen.Module:
        return linen.RMSNorm(
            epsilon=self.epsilon,
            reduction_axes=tuple(range(1, ndim)),
            dtype=context.dtype,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class FlaxGroupNorm(GroupNorm):
    """Flax's group normalization."""

    def module(self, context: Context, ndim: int, **options: Any) -> linen.Module:
        return linen.GroupNorm(
            num_groups=self.num_groups, epsilon=self.epsilon, dtype=context.dtype, **options
        )


@dataclass(frozen=True, kw_only=True)
class FlaxInstanceNorm(InstanceNorm):
    """Flax's instance normalization."""

    def module(self, context: Context, ndim: int, **options: Any) -> linen.Module:
        return linen.InstanceNorm(epsilon=self.epsilon, dtype=context.dtype, **options)
