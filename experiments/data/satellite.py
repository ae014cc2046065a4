"""Pixels of a Landsat image, from R's package mlbench."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from experiments.data.card import Card, Source
from experiments.data.mlbench import FOLDER, LICENSE, MlbenchSource


@dataclass(frozen=True, kw_only=True)
class Satellite(MlbenchSource):
    """Six kinds of soil by four spectral bands of 3x3 pixels: 36 integers from 27 to 157."""

    card: ClassVar[Card] = Card(
        name="satellite",
        version="1.0.0",
        notes="First 4,435 train, last 2,000 test.",
        description="""\
6,435 squares of 3x3 pixels of a Landsat image, each pixel by four spectral bands, integers from 27
to 157, as mlbench ships them: the "Statlog (Landsat Satellite)" set of the UCI. The class is of the
middle pixel: red soil (0), cotton crop (1), grey soil (2), damp grey soil (3), vegetation stubble
(4), very damp grey soil (5), with 626 to 1,533 examples each.

The split is that of the UCI: the first 4,435 examples are the training set. A shuffled split is
easier, because the squares of neighbours overlap.
""",
        homepage="https://archive.ics.uci.edu/dataset/146",
        citation="""\
@misc{srinivasan1993satellite,
  author = {Srinivasan, Ashwin},
  title = {Statlog (Landsat Satellite)},
  year = {1993},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C55887},
}
""",
        license=LICENSE,
    )
    files: ClassVar[tuple[Path, ...]] = (FOLDER / "Satellite.rda",)
    table: ClassVar[str] = "Satellite"
    label: ClassVar[str] = "classes"
    holds: ClassVar[Source] = Source((36,), 6, 4_435, 2_000, np.float32)
