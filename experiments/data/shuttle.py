"""States of the Space Shuttle's radiators, from R's package mlbench."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from experiments.data.card import Card, Source
from experiments.data.mlbench import FOLDER, LICENSE, MlbenchSource


@dataclass(frozen=True, kw_only=True)
class Shuttle(MlbenchSource):
    """Seven states by nine measurements between -26,739 and 15,164. 79% of examples are of one."""

    card: ClassVar[Card] = Card(
        name="shuttle",
        version="1.0.0",
        notes="First 43,500 train, last 14,500 test.",
        description="""\
58,000 measurements of the Space Shuttle, by nine integers of very different scale (one from 21 to
149, another from -26,739 to 15,164), as mlbench ships them: the "Statlog (Shuttle)" set of the UCI.

The classes, in the order of their labels, are very unequal, and kept as they are: Rad.Flow 45,586,
Fpv.Close 50, Fpv.Open 171, High 8,903, Bypass 3,267, Bpv.Close 10, Bpv.Open 13. A classifier that
always says the first is right for 79.2% of the test examples.

The split is that of the UCI: the first 43,500 examples are the training set.
""",
        homepage="https://archive.ics.uci.edu/dataset/148",
        citation="""\
@misc{statlog_shuttle,
  title = {Statlog (Shuttle)},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C5WS31},
}
""",
        license=LICENSE,
    )
    files: ClassVar[tuple[Path, ...]] = (FOLDER / "Shuttle.rda",)
    table: ClassVar[str] = "Shuttle"
    label: ClassVar[str] = "Class"
    holds: ClassVar[Source] = Source((9,), 7, 43_500, 14_500, np.float32)
