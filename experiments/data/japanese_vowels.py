"""Utterances of nine speakers, which the Python package aeon contains.

Aeon requires an older pandas than the experiments. Therefore it is installed without dependencies
and not imported. This module finds and reads its files.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from experiments.data.card import Card, Examples, Source
from experiments.data.packaged import PackagedSource

INSTALL = "pip install --no-deps aeon"
FOLDER = Path("datasets", "data", "JapaneseVowels")  # in the package
SPLITS = {"train": "JapaneseVowels_TRAIN.ts", "test": "JapaneseVowels_TEST.ts"}
LONGEST, COEFFICIENTS, SPEAKERS = 29, 12, 9


class Series(NamedTuple):
    """A time series (time, dimensions) and its label."""

    values: np.ndarray
    label: str


@dataclass(frozen=True, kw_only=True)
class JapaneseVowels(PackagedSource):
    """Utterances as float32 (29, 12): 7 to 29 vectors of 12 cepstral coefficients, then zeros.

    Labels are the speakers, 0 to 8.
    """

    card: ClassVar[Card] = Card(
        name="japanese_vowels",
        version="1.0.0",
        notes="270 train, 370 test, as in the source.",
        description="""\
640 utterances of the two Japanese vowels /ae/ by nine male speakers, as aeon ships them. The label
is the speaker, 0 to 8. An utterance is a series of 7 to 29 frames, each by 12 coefficients of the
LPC cepstrum. Zeros follow up to 29 frames.

The split is that of Kudo, Toyama and Shimbo: 30 training examples of each speaker, and 24 to 88
test examples, which were recorded on other occasions. The longest training example has 26 frames.
""",
        homepage="https://archive.ics.uci.edu/dataset/128",
        citation="""\
@article{kudo1999multidimensional,
  author = {Kudo, Mineichi and Toyama, Jun and Shimbo, Masaru},
  title = {Multidimensional Curve Classification Using Passing-Through Regions},
  journal = {Pattern Recognition Letters},
  volume = {20},
  number = {11--13},
  pages = {1103--1111},
  year = {1999},
}
""",
        license="CC BY 4.0",
    )
    package: ClassVar[str] = "aeon"
    holds: ClassVar[Source] = Source((LONGEST, COEFFICIENTS), SPEAKERS, 270, 370, np.float32)

    def absent(self) -> str | None:
        files = _files().values()
        if files and all(path.is_file() for path in files):
            return None
        return (
            f"the Python package {self.package}, which contains {self.title}, is not installed; "
            f"run {INSTALL}"
        )

    def parse(self) -> dict[str, Examples]:
        return {split: _examples(list(read_ts(path))) for split, path in _files().items()}

    def laid_out(self, source: Source) -> tuple[tuple[int, ...], int | None]:
        return source.input_shape, LONGEST

    def lay_out(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        frames = inputs.any(axis=2)
        return inputs, (LONGEST - frames[:, ::-1].argmax(axis=1)).astype(np.int32)


def _files() -> dict[str, Path]:
    """Return the file of each split, or nothing if aeon is not installed."""
    spec = importlib.util.find_spec("aeon")  # does not import it
    if spec is None or not spec.submodule_search_locations:
        return {}
    [package, *_] = spec.submodule_search_locations
    return {split: Path(package) / FOLDER / name for split, name in SPLITS.items()}


def read_ts(path: Path) -> Iterator[Series]:
    """Yield the labelled time series of a file of aeon's format .ts, in its order.

    A line is a series: its dimensions and its label, separated by colons. The values of a dimension
    are separated by commas. Comments begin with #, and lines of the header with @.
    """
    for line in path.read_text("utf-8").splitlines():
        if line.strip() and not line.startswith(("#", "@")):
            *dimensions, label = line.split(":")
            values = [[float(value) for value in one.split(",")] for one in dimensions]
            yield Series(np.array(values, np.float32).T, label.strip())


def _examples(series: Sequence[Series]) -> Examples:
    inputs = np.zeros((len(series), LONGEST, COEFFICIENTS), np.float32)
    for row, one in zip(inputs, series, strict=True):
        row[: len(one.values)] = one.values
    return Examples(inputs, np.array([int(one.label) - 1 for one in series], np.int32))
