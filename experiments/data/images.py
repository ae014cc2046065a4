"""Image data sets: optionally halved, cropped to their ink, or shifted in the test set."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from experiments import errors
from experiments.data.card import Source
from experiments.data.source import DataSource

LENGTHS = ("full", "inked")
_NOISE = 0  # added to the random seed


@dataclass(frozen=True, kw_only=True)
class ImageSource(DataSource):
    """A data set of images (height, width, channels).

    Attributes:
        half: average 2x2 pixels to one pixel.
        lengths: "full", or "inked". "Inked" moves the rows from the first to the last row with ink
            (a pixel that is not 0) to the front, and their number is the length of the example.
        test_brightness: added to the test images only, as a fraction of `pixel_range`.
        test_noise: the standard deviation, as a fraction of `pixel_range`, of normal noise that is
            added to the test images only. It depends on the index of the example only. After
            brightness and noise, pixels are clipped to their range.
        pixel_range: the largest pixel value of the source; the smallest is 0.
    """

    half: bool
    lengths: str
    test_brightness: float
    test_noise: float

    pixel_range: ClassVar[int] = 255

    def problems(self, batch_size: int) -> Iterator[str]:
        yield from errors.choice("data.lengths", self.lengths, LENGTHS)
        if not -1 <= self.test_brightness <= 1:
            yield f"data.test_brightness is {self.test_brightness}; give a number from -1 to 1"
        yield from errors.at_least("data.test_noise", self.test_noise, 0)
        if self._shifts and self.lengths == "inked":
            yield (
                "data.test_brightness and data.test_noise change which pixels are ink, and "
                "data.lengths=inked depends on that; give data.lengths=full, or 0 for both"
            )
        yield from super().problems(batch_size)

    @property
    def _shifts(self) -> bool:
        return bool(self.test_brightness or self.test_noise)

    def shifted(self, inputs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        if not self._shifts:
            return inputs
        shifted = inputs + np.float32(self.test_brightness * self.pixel_range)
        if self.test_noise:
            deviation = np.float32(self.test_noise * self.pixel_range)
            for image, example in zip(shifted, examples, strict=True):
                rng = np.random.default_rng((example, _NOISE))
                image += deviation * rng.standard_normal(image.shape, np.float32)
        return np.clip(shifted, 0, self.pixel_range)

    def layout_problems(self, source: Source) -> Iterator[str]:
        height, width, _ = source.input_shape
        if self.half and (height % 2 or width % 2):
            yield (
                f"data.half is true, but the images of {self.title} are {height}x{width}; "
                "only even sides can be halved; give data.half=false"
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
        return ink_to_the_front(images) if self.lengths == "inked" else (images, None)


def halved(images: np.ndarray) -> np.ndarray:
    """Return the means of 2x2 pixels as float32."""
    n, height, width, channels = images.shape
    squares = images.reshape(n, height // 2, 2, width // 2, 2, channels)
    total = np.zeros((n, height // 2, width // 2, channels), np.float32)
    for row in (0, 1):
        for column in (0, 1):
            total += squares[:, :, row, :, column]
    return total / 4


def ink_to_the_front(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move the rows from the first to the last row with ink to the front; zeros follow.

    Returns:
        The images and the number of these rows, int32. An image without ink has 1.
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
