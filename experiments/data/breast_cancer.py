"""The tumours that scikit-learn contains."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from experiments.data.card import Card
from experiments.data.tabular import TabularSource


@dataclass(frozen=True, kw_only=True)
class BreastCancer(TabularSource):
    """Malignant (0) and benign (1) tumours, with 30 measurements between 0.001 and 4,300."""

    card: ClassVar[Card] = Card(
        name="breast_cancer",
        version="1.0.0",
        notes="455 train, 114 test, stratified.",
        description="""\
569 tumours of the breast, 212 malignant (0) and 357 benign (1): mean, error and worst value of ten
measurements of cell nuclei, of very different scale (area up to 4,254, smoothness below 0.2), as
scikit-learn ships them: the "Breast Cancer Wisconsin (Diagnostic)" set of the UCI.

20% of each class, drawn with a fixed seed, are the test set.
""",
        homepage="https://archive.ics.uci.edu/dataset/17",
        citation="""\
@misc{wolberg1993breast,
  author = {Wolberg, William and Mangasarian, Olvi and Street, Nick and Street, W.},
  title = {Breast Cancer Wisconsin (Diagnostic)},
  year = {1993},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C5DW2B},
}
""",
    )
    num_examples: ClassVar[int] = 569
    num_features: ClassVar[int] = 30
    num_classes: ClassVar[int] = 2

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_breast_cancer  # takes seconds

        return load_breast_cancer(return_X_y=True)
