"""Tables of R's package mlbench, which Debian packages."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from experiments.data.card import Examples
from experiments.data.debian import DebianSource

FOLDER = Path("/usr/lib/R/site-library/mlbench/data")
LICENSE = "GPL-2, as part of mlbench"


@dataclass(frozen=True, kw_only=True)
class MlbenchSource(DebianSource):
    """A table of float32 features (features,). Its first examples are the training examples.

    Attributes:
        table: the name of the table in its file.
        label: the column of the classes. Labels are their order in the file.
    """

    package: ClassVar[str] = "r-cran-mlbench"
    table: ClassVar[str]
    label: ClassVar[str]

    def parse(self) -> dict[str, Examples]:
        import rdata  # takes a second

        [path] = self.files
        table = rdata.read_rda(path, default_encoding="ASCII")[self.table]
        features = table.drop(columns=self.label).to_numpy(np.float32)
        labels = table[self.label].cat.codes.to_numpy(np.int32)
        train, test = slice(None, self.holds.num_train), slice(self.holds.num_train, None)
        return {
            "train": Examples(features[train], labels[train]),
            "test": Examples(features[test], labels[test]),
        }
