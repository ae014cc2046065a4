"""Printed letters, from R's package mlbench."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from experiments.data.card import Card, Source
from experiments.data.mlbench import FOLDER, LICENSE, MlbenchSource


@dataclass(frozen=True, kw_only=True)
class Letters(MlbenchSource):
    """Capital letters A (0) to Z (25) by 16 measurements of their images, integers from 0 to 15."""

    card: ClassVar[Card] = Card(
        name="letters",
        version="1.0.0",
        notes="First 16,000 train, last 4,000 test.",
        description="""\
20,000 images of the 26 capital letters in 20 distorted fonts, each by 16 measurements, integers
from 0 to 15: box, number of pixels, moments, edges. As mlbench ships them: the "Letter Recognition"
set of the UCI. Each letter has 734 to 813 examples.

The split is that of Frey and Slate: the first 16,000 examples are the training set.
""",
        homepage="https://archive.ics.uci.edu/dataset/59",
        citation="""\
@article{frey1991letter,
  author = {Frey, Peter W. and Slate, David J.},
  title = {Letter Recognition Using Holland-Style Adaptive Classifiers},
  journal = {Machine Learning},
  volume = {6},
  pages = {161--182},
  year = {1991},
}
""",
        license=LICENSE,
    )
    files: ClassVar[tuple[Path, ...]] = (FOLDER / "LetterRecognition.rda",)
    table: ClassVar[str] = "LetterRecognition"
    label: ClassVar[str] = "lettr"
    holds: ClassVar[Source] = Source((16,), 26, 16_000, 4_000, np.float32)
