"""What the normalizations of each example by itself have in common."""

from collections.abc import Iterator
from dataclasses import dataclass

from experiments.errors import positive
from experiments.norms.base import Norm


@dataclass(frozen=True, kw_only=True)
class SampleNorm(Norm):
    """What measures each example by itself.

    Attributes:
        epsilon: added to the variance, or to the mean square.
    """

    epsilon: float

    def problems(self, batch_size: int) -> Iterator[str]:
        yield from positive("norm.epsilon", self.epsilon)
