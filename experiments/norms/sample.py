"""The common part of the normalizations that treat each example separately."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import linen as nn

from experiments.errors import positive
from experiments.norms.base import Context, Norm


@dataclass(frozen=True, kw_only=True)
class SampleNorm(Norm):
    """A normalization that measures each example separately.

    Attributes:
        epsilon: added to the variance, or to the mean square.
        layer: the Linen module, from jaxnorm or from Flax.
    """

    epsilon: float

    layer: ClassVar[Callable[..., nn.Module]]

    def arguments(self, ndim: int) -> dict[str, Any]:
        """Return the arguments of the layer besides epsilon, for inputs of `ndim` axes."""
        return {}

    def module(self, context: Context, ndim: int, **options: Any) -> nn.Module:
        arguments = self.arguments(ndim)
        return self.layer(epsilon=self.epsilon, dtype=context.dtype, **arguments, **options)

    def problems(self, batch_size: int) -> Iterator[str]:
        yield from positive("norm.epsilon", self.epsilon)
