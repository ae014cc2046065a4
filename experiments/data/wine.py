"""The wines that scikit-learn contains."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from experiments.data.card import Card
from experiments.data.tabular import TabularSource


@dataclass(frozen=True, kw_only=True)
class Wine(TabularSource):
    """Wines of three cultivars, with 13 chemical measurements between 0.1 and 1,700."""

    card: ClassVar[Card] = Card(
        name="wine",
        version="1.0.0",
        notes="142 train, 36 test, stratified.",
        description="""\
178 wines of three cultivars of one region of Italy: 13 chemical measurements of very different
scale (proline 278 to 1,680, hue 0.5 to 1.7), as scikit-learn ships them.

20% of each cultivar, drawn with a fixed seed, are the test set.
""",
        homepage="https://archive.ics.uci.edu/dataset/109",
        citation="""\
@misc{aeberhard1992wine,
  author = {Aeberhard, Stefan and Forina, M.},
  title = {Wine},
  year = {1992},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C5PC7J},
}
""",
    )
    num_examples: ClassVar[int] = 178
    num_features: ClassVar[int] = 13
    num_classes: ClassVar[int] = 3

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_wine  # takes seconds

        return load_wine(return_X_y=True)
