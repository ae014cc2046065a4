"""The handwritten digits that scikit-learn ships, as a TFDS builder."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

_DESCRIPTION = """\
1,797 grayscale images of handwritten digits, 8x8 pixels with values 0 to 16: the test set of the
UCI "Optical Recognition of Handwritten Digits", as scikit-learn ships it.

The split is fixed: the first 1,437 examples of the source are the training set and the last 360
the test set. The source holds the digits of 13 writers, neighbours often by one hand. A shuffled
split is easier, because the test set then holds hands that were trained on.
"""

_CITATION = """\
@misc{alpaydin1998optdigits,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}
"""


class Digits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits: `image` is uint8 (8, 8, 1) with values 0 to 16, `label` is 0 to 9."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First 1,437 train, last 360 test."}

    IMAGE_SHAPE: ClassVar[tuple[int, int, int]] = (8, 8, 1)
    NUM_CLASSES: ClassVar[int] = 10
    NUM_TRAIN: ClassVar[int] = 1437

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=self.IMAGE_SHAPE, dtype=np.uint8)
        label = tfds.features.ClassLabel(num_classes=self.NUM_CLASSES)
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=_CITATION,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # scikit-learn's package holds the data
        source = load_digits()
        images = source.images.astype(np.uint8).reshape(-1, *self.IMAGE_SHAPE)
        labels = source.target
        n = self.NUM_TRAIN
        return {
            "train": self._generate_examples(images[:n], labels[:n]),
            "test": self._generate_examples(images[n:], labels[n:]),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image, "label": int(label)}
