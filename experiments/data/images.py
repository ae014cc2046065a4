"""Images: halved, or read row by row as sequences of unequal length."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from experiments import errors
from experiments.data.card import Source
from experiments.data.source import DataSource

LENGTHS = ("full", "inked")


@dataclass(frozen=True, kw_only=True)
class ImageSource(DataSource):
    """A data set of images (height, width, channels).

    Attributes:
        half: take the mean of 2x2 pixels for one.
        lengths: full, or inked: the rows from the first to the last with ink (a pixel that is not
            0) come first, and the example is as long as they are many.
    """

    half: bool
    lengths: str

    def problems(self, batch_size: int) -> Iterator[str]:
        yield from errors.choice("data.lengths", self.lengths, LENGTHS)
        yield from super().problems(batch_size)

    def layout_problems(self, source: Source) -> Iterator[str]:
        height, width, _ = source.input_shape
        if self.half and (height % 2 or width % 2):
            yield (
                f"data.half is true, but the images of {self.title} are {height}x{width}; "
                "only even sides can be halved, give data.half=false"
            )

    @property
    def layout(self) -> str:
        return f"{'half' if self.half else 'whole'}-{self.lengths}"

    def laid_out(self, source: Source) -> tuple[tuple[int, ...], int | None]:
        height, width, channels = source.input_shape
        if self.half:
            height, width = height // 2, width // 2
        return (height, width, channels), height if self.lengths == "inked" else None

    def lay_out(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        images = halved(inputs) if self.half else inputs
        return rows_to_the_front(images) if self.lengths == "inked" else (images, None)


def halved(images: np.ndarray) -> np.ndarray:
    """Return the means of 2x2 pixels, float32."""
    n, height, width, channels = images.shape
    squares = images.reshape(n, height // 2, 2, width // 2, 2, channels)
    total = np.zeros((n, height // 2, width // 2, channels), np.float32)
    for row in (0, 1):
        for column in (0, 1):
            total += squares[:, :, row, :, column]
    return total / 4


def rows_to_the_front(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move the rows from the first to the last with ink to the front, zeros behind them.

    Returns:
        The images and how many rows that is, int32: 1 in an image without ink.
    """
    height = images.shape[1]
    inked = images.any(axis=(2, 3))
    first = inked.argmax(axis=1)
    last = np.where(inked.any(axis=1), height - 1 - inked[:, ::-1].argmax(axis=1), 0)
    lengths = (last - first + 1).astype(np.int32)
    rows = np.arange(height)
    taken = np.minimum(rows + first[:, None], height - 1)
    moved = np.take_along_axis(images, taken[:, :, None, None], axis=1)
    moved[rows >= lengths[:, None]] = 0
    return moved, lengths
