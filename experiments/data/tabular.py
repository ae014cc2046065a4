"""Small tables of features from Python packages. They are split here."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from experiments.data.card import Examples, Source
from experiments.data.source import DataSource
from experiments.data.splits import draw_stratified

TEST = 0.2  # fraction of all examples
SPLIT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class TabularSource(DataSource):
    """A table of float32 features (features,), with 80% train and 20% test examples.

    The test examples are fixed and stratified by class.
    """

    num_examples: ClassVar[int]
    num_features: ClassVar[int]
    num_classes: ClassVar[int]

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the features (examples, features) and the labels (examples,)."""
        raise NotImplementedError

    def source(self) -> Source:
        num_test = round(self.num_examples * TEST)
        num_train = self.num_examples - num_test
        return Source((self.num_features,), self.num_classes, num_train, num_test, np.float32)

    def read(self) -> dict[str, Examples]:
        features, labels = (np.asarray(array) for array in self.table())
        rng = np.random.default_rng(SPLIT_SEED)
        test = draw_stratified(labels, self.source().num_test, rng)
        features = features.astype(np.float32)
        return {
            "train": Examples(features[~test], labels[~test]),
            "test": Examples(features[test], labels[test]),
        }
