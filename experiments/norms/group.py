"""Group normalization."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from experiments.errors import divides
from experiments.norms.base import Places
from experiments.norms.sample import SampleNorm
from jaxnorm import linen


@dataclass(frozen=True, kw_only=True)
class GroupNorm(SampleNorm):
    """Group normalization (Wu & He 2018), over all positions of a group of channels.

    Attributes:
        num_groups: the number of groups in every layer.
    """

    num_groups: int

    layer = linen.GroupNorm

    def arguments(self, ndim: int) -> dict[str, Any]:
        return {"num_groups": self.num_groups}

    def problems_in(self, places: Places) -> Iterator[str]:
        yield from divides("norm.num_groups", self.num_groups, places.widths)
        if places.positions == 1 and self.num_groups in places.widths:
            yield (
                f"norm.num_groups is {self.num_groups}, which leaves one value in a group of "
                f"model={places.model}; give fewer than {min(places.widths)}"
            )
