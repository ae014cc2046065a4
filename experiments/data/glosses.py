"""The definitions of WordNet, which Debian packages."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from experiments.data.card import Card, Examples, Source
from experiments.data.debian import DebianSource

PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2
SHORTEST, LONGEST = 3, 19  # words
TRAINING_WORDS = 39_479  # distinct words of the training examples
TEST_BYTES = 48  # of 256: the share of the test examples
WORD = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*")
END_OF_DEFINITION = re.compile(r'[;"]')


class Gloss(NamedTuple):
    """The words of a definition, and the number of its lexicographer file."""

    words: tuple[str, ...]
    file: int

    @property
    def is_test(self) -> bool:
        """Whether it is a test example. Equal definitions are on the same side."""
        return hashlib.sha256(" ".join(self.words).encode()).digest()[0] < TEST_BYTES


@dataclass(frozen=True, kw_only=True)
class Glosses(DebianSource):
    """Definitions as word ids int32 (19,): 0 is padding, 1 any word that is not in the vocabulary.

    The other ids are of the most frequent words of the training examples, the first has 2.

    Attributes:
        words: the number of words in the vocabulary.
    """

    words: int

    card: ClassVar[Card] = Card(
        name="glosses",
        version="1.0.0",
        notes="87,150 train, 19,943 test, by a hash.",
        description="""\
Definitions of WordNet 3.0. The label is the number of the lexicographer file, 0 to 44: what a noun
or a verb is about (noun.animal, verb.motion), or the kind of an adjective or adverb. The classes
are very unequal: 12,924 definitions are of adj.all, 40 of noun.motive.

A definition is the gloss before its first semicolon or quotation mark, in lower case; a word is a
run of letters and digits, with hyphens and apostrophes inside. Of the 117,659 glosses those of 3 to
19 words are kept, whole: 107,093. 5% of the others are shorter, 4% longer.

An example is a test example if the first byte of the SHA-256 digest of its words is below 48:
equal definitions are all training or all test examples. A word is its rank by frequency in the
training examples, from 2; a word that is in test examples only is 1; zeros follow.
""",
        homepage="https://wordnet.princeton.edu",
        citation="""\
@book{fellbaum1998wordnet,
  editor = {Fellbaum, Christiane},
  title = {{WordNet}: An Electronic Lexical Database},
  publisher = {MIT Press},
  year = {1998},
}
""",
        license="WordNet 3.0 license: use, copy, modify and distribute, with its copyright notice.",
    )
    package: ClassVar[str] = "wordnet-base"
    files: ClassVar[tuple[Path, ...]] = tuple(
        Path("/usr/share/wordnet") / f"data.{part}" for part in ("noun", "verb", "adj", "adv")
    )
    holds: ClassVar[Source] = Source((LONGEST,), 45, 87_150, 19_943, np.int32)

    def source(self) -> Source:
        return self.holds._replace(vocabulary=FIRST_WORD + self.words)

    def problems(self, batch_size: int) -> Iterator[str]:
        if not 1 <= self.words <= TRAINING_WORDS:
            yield (
                f"data.words is {self.words}, but the training examples of {self.title} have "
                f"{TRAINING_WORDS} words; give 1 to {TRAINING_WORDS}"
            )
        yield from super().problems(batch_size)

    def parse(self) -> dict[str, Examples]:
        glosses = [gloss for path in self.files for gloss in read_glosses(path)]
        kept = [gloss for gloss in glosses if SHORTEST <= len(gloss.words) <= LONGEST]
        train = [gloss for gloss in kept if not gloss.is_test]
        test = [gloss for gloss in kept if gloss.is_test]
        ids = word_ids(train)
        return {"train": _examples(train, ids), "test": _examples(test, ids)}

    @property
    def layout(self) -> str:
        return f"words-{self.words}"

    def laid_out(self, source: Source) -> tuple[tuple[int, ...], int | None]:
        return source.input_shape, LONGEST

    def lay_out(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lengths = (inputs != PADDING).sum(axis=1, dtype=np.int32)
        return np.where(inputs < FIRST_WORD + self.words, inputs, UNKNOWN), lengths


def read_glosses(path: Path) -> Iterator[Gloss]:
    """Yield the glosses of a file of WordNet's format (wndb(5WN)), in its order."""
    for line in path.read_text("latin-1").splitlines():
        if line.startswith("  "):  # the license
            continue
        data, _, text = line.partition(" | ")
        definition = END_OF_DEFINITION.split(text, maxsplit=1)[0]
        yield Gloss(tuple(WORD.findall(definition.lower())), int(data.split()[1]))


def word_ids(glosses: list[Gloss]) -> dict[str, int]:
    """Return the ids of all words, by falling frequency and then by alphabet."""
    counts = Counter(word for gloss in glosses for word in gloss.words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: number for number, word in enumerate(ranked, FIRST_WORD)}


def _examples(glosses: list[Gloss], ids: dict[str, int]) -> Examples:
    inputs = np.full((len(glosses), LONGEST), PADDING, np.int32)
    for row, gloss in zip(inputs, glosses, strict=True):
        row[: len(gloss.words)] = [ids.get(word, UNKNOWN) for word in gloss.words]
    return Examples(inputs, np.array([gloss.file for gloss in glosses], np.int32))
