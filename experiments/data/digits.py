"""The handwritten digits that scikit-learn contains."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from experiments.data.card import Card, Examples, Source
from experiments.data.images import ImageSource

NUM_TRAIN = 1437


@dataclass(frozen=True, kw_only=True)
class Digits(ImageSource):
    """Handwritten digits: images are uint8 (8, 8, 1) with values 0 to 16, labels 0 to 9."""

    card: ClassVar[Card] = Card(
        name="digits",
        version="2.1.0",
        notes="First 1,437 train, last 360 test.",
        description="""\
1,797 grayscale images of handwritten digits, 8x8 pixels with values 0 to 16: the test set of the
UCI "Optical Recognition of Handwritten Digits", as scikit-learn ships it.

The split is fixed: the first 1,437 examples of the source are the training set and the last 360
the test set. The source holds the digits of 13 writers, neighbours often by one hand. A shuffled
split is easier, because the test set then holds hands that were trained on.
""",
        homepage="https://archive.ics.uci.edu/dataset/80",
        citation="""\
@misc{alpaydin1998optdigits,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}
""",
    )

    pixel_range: ClassVar[int] = 16

    def source(self) -> Source:
        return Source((8, 8, 1), 10, NUM_TRAIN, 360)

    def read(self) -> dict[str, Examples]:
        from sklearn.datasets import load_digits  # takes seconds

        data = load_digits()
        images = data.images.astype(np.uint8)[..., None]
        train, test = slice(None, NUM_TRAIN), slice(NUM_TRAIN, None)
        return {
            "train": Examples(images[train], data.target[train]),
            "test": Examples(images[test], data.target[test]),
        }
