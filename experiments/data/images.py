"""Images: halved, or read row by row as sequences."""

from collections.abc import Iterator
from dataclasses import dataclass

from experiments import errors
from experiments.data.source import DataSource

LENGTHS = ("full", "inked")


@dataclass(frozen=True, kw_only=True)
class ImageSource(DataSource):
    """A data set of images.

    Attributes:
        half: take the mean of 2x2 pixels for one.
        lengths: full, or inked: the rows between the first and the last with ink (a pixel that is
            not 0) come first, and the example is as long as they are many.
    """

    half: bool = False
    lengths: str = "full"

    def problems(self, batch_size: int) -> Iterator[str]:
        yield from errors.choice("data.lengths", self.lengths, LENGTHS)
        yield from super().problems(batch_size)
