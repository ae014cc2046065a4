"""Data sets, as a configuration selects them."""

import ast
import functools
import hashlib
import inspect
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Optional

import numpy as np

from experiments import errors
from experiments.data.batching import Batches
from experiments.data.card import Card, Examples, Source, Spec
from experiments.data.prepared import Prepared
from experiments.data.scaling import SCALINGS, Measured, Scaling, measure, scaling
from experiments.data.splits import (
    Dataset,
    Inputs,
    Split,
    draw_examples,
    draw_validation,
    num_validation,
)
from experiments.data.streaming import Mapped, Scaled
from experiments.errors import ConfigError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A data set, and how its examples are scaled and drawn.

    A subclass describes the source and reads its examples. The constructor reads nothing.

    Attributes:
        directory: the directory that it is prepared in.
        validation: the fraction of the source's training examples that is used for validation.
        examples: the number of remaining training examples to keep. The seed draws them, with the
            class proportions of the source. None keeps all.
        scaling: raw, standard or min_max, measured on the training examples that are kept. Words
            are not scaled, and need raw.
        classes_per_batch: draw this many classes for each batch and its examples from them. With
            None, every example comes once an epoch.
        stream: read examples from files when they are needed. None streams if all examples take
            more than `memory` bytes. The batches are the same in both cases.
        memory: the number of bytes that all examples may take as float32.
    """

    directory: str
    validation: float
    examples: Optional[int]
    scaling: str
    classes_per_batch: Optional[int]
    stream: Optional[bool]
    memory: int

    card: ClassVar[Card]

    @property
    def title(self) -> str:
        """The name for error messages."""
        return self.card.name

    @property
    def key(self) -> str:
        """A string that distinguishes several sources with the same name."""
        return ""

    def fingerprint(self) -> str:
        """Return a digest of the source's files, or "" if the version determines them.

        Raises:
            ConfigError: a file is missing or cannot be read.
        """
        return ""

    def source(self) -> Source:
        """Return the content of the source, without reading its examples.

        Raises:
            ConfigError: a file is missing or invalid.
        """
        raise NotImplementedError

    def read(self) -> Mapping[str, Examples]:
        """Return the examples of the splits `train` and `test`.

        Raises:
            ConfigError: a file is missing, truncated or corrupt.
        """
        raise NotImplementedError

    def builder(self) -> "tfds.core.DatasetBuilder":
        """Return the TFDS builder that prepares the source."""
        from experiments.data.builder import make_builder

        return make_builder(
            self.card, self.key, self.source(), self.read, Path(self.directory).expanduser()
        )

    def laid_out(self, source: Source) -> tuple[tuple[int, ...], int | None]:
        """Return the shape of an input after `lay_out`, and the largest possible length."""
        return source.input_shape, None

    def lay_out(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return inputs in the layout for training, before scaling, and their lengths."""
        return inputs, None

    def shifted(self, inputs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Return test inputs after a shift, before `lay_out`; `examples` are their indices."""
        return inputs

    def layout_problems(self, source: Source) -> Iterator[str]:
        """Yield the reasons why `lay_out` cannot work."""
        yield from ()

    @property
    def layout(self) -> str:
        """A string that identifies the options of `lay_out`."""
        return "full"

    def spec(self) -> Spec:
        """Return the shapes and sizes for training, without preparing the data.

        Raises:
            ConfigError: a file of the source is missing or invalid.
        """
        source = self.source()
        shape, max_length = self.laid_out(source)
        left = source.num_train - num_validation(source.num_train, self.validation)
        num_train = left if self.examples is None else self.examples
        return Spec(shape, source.num_classes, num_train, max_length, source.vocabulary)

    def problems(self, batch_size: int) -> Iterator[str]:
        """Yield what is wrong with the values, the files of the source and a batch size."""
        yield from errors.choice("data.scaling", self.scaling, SCALINGS)
        yield from errors.at_least("data.memory", self.memory, 1)
        if not self.directory.strip():
            yield "data.directory is empty; give a directory"
        try:
            source = self.source()
        except ConfigError as error:
            yield str(error)
        else:
            if source.vocabulary is not None and self.scaling != "raw":
                yield (
                    f"data.scaling is {self.scaling!r}, but {self.title} has words, which have no "
                    "scale; give data.scaling=raw"
                )
            yield from self.layout_problems(source)
            yield from self._source_problems(source, batch_size)

    def _source_problems(self, source: Source, batch_size: int) -> Iterator[str]:
        held = source.num_train * self.validation
        if not (math.isfinite(held) and 1 <= round(held) < source.num_train):
            yield (
                f"data.validation is {self.validation}; give the fraction of the "
                f"{source.num_train} examples of {self.title} to use for validation, such as 0.1"
            )
        else:
            yield from self._train_problems(source.num_train - round(held), batch_size)
        classes = self.classes_per_batch
        if classes is not None and not 1 <= classes <= source.num_classes:
            yield (
                f"data.classes_per_batch is {classes}, but {self.title} has "
                f"{source.num_classes} classes; give 1 to {source.num_classes}, or null"
            )

    def _train_problems(self, left: int, batch_size: int) -> Iterator[str]:
        num_train = left if self.examples is None else self.examples
        if not 1 <= num_train <= left:
            yield (
                f"data.examples is {num_train}, but {self.title} has {left} training examples; "
                f"give 1 to {left}, or null"
            )
        elif batch_size > num_train:
            whose = self.title if self.examples is None else f"{self.title} with data.examples"
            yield (
                f"batch_size is {batch_size}, but {whose} has {num_train} training "
                f"examples; give 1 to {num_train}"
            )

    def load(self, seed: int) -> Dataset:
        """Return the examples, after preparing them if necessary.

        Raises:
            ConfigError: a file is missing, truncated or corrupt.
        """
        return _load(self, seed, self.prepared().folder)

    def batches(self, dataset: Dataset, batch_size: int, *, multiple: int, seed: int) -> Batches:
        """Return the training batches of one seed, each padded to a multiple of `multiple`."""
        return Batches(
            dataset.train,
            batch_size,
            multiple=multiple,
            seed=seed,
            classes=self.classes_per_batch,
            ahead=self.streams(),
        )

    def streams(self) -> bool:
        """Return whether examples are read when they are needed."""
        if self.stream is not None:
            return self.stream
        source = self.source()
        shape, _ = self.laid_out(source)
        return 4 * (source.num_train + source.num_test) * math.prod(shape) > self.memory

    def prepared(self) -> Prepared:
        """Return the prepared source."""
        folder = Path(self.directory).expanduser() / self.card.name / self.key / self.card.version
        return Prepared(self.title, folder, self.builder)


class _UnscaledSplit(NamedTuple):
    """The train or test examples in their layout, before scaling."""

    inputs: Inputs
    labels: np.ndarray
    lengths: np.ndarray | None

    def split(self, examples: np.ndarray, scaling: Scaling | None) -> Split:
        inputs = Scaled(self.inputs, examples, self.lengths, scaling)
        lengths = None if self.lengths is None else self.lengths[examples]
        return Split(inputs, self.labels[examples], lengths)


@functools.lru_cache(maxsize=2)
def _load(source: DataSource, seed: int, folder: Path) -> Dataset:
    train, test = _unscaled_splits(source, folder)
    chosen, held = _drawn(source, train.labels, seed)
    scale = _scaling(source, seed, folder)
    return Dataset(
        train.split(chosen, scale),
        train.split(held, scale),
        test.split(np.arange(len(test.labels)), scale),
        source.source().num_classes,
    )


def _drawn(source: DataSource, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the examples of a seed for training and for validation."""
    drawn = draw_validation(labels, source.validation, seed)
    chosen, held = np.flatnonzero(~drawn), np.flatnonzero(drawn)
    if source.examples is not None:
        chosen = chosen[draw_examples(labels[chosen], source.examples, seed)]
    return chosen, held


@functools.lru_cache(maxsize=256)  # the runs of a study use the same seeds
def _scaling(source: DataSource, seed: int, folder: Path) -> Scaling | None:
    """Return the scaling of a seed; None for words, which have no scale."""
    if source.source().vocabulary is not None:
        return None
    train, _ = _unscaled_splits(source, folder)
    chosen, _ = _drawn(source, train.labels, seed)
    return scaling(source.scaling, _measured(source, train, chosen, seed))


@functools.lru_cache(maxsize=1)  # the next seed uses the same splits; `folder` is only a cache key
def _unscaled_splits(source: DataSource, folder: Path) -> tuple[_UnscaledSplit, _UnscaledSplit]:
    read = _streamed_split if source.streams() else _split_in_memory
    prepared = source.prepared()
    return read(source, prepared, "train"), read(source, prepared, "test")


def _split_in_memory(source: DataSource, prepared: Prepared, split: str) -> _UnscaledSplit:
    def decoded() -> dict[str, np.ndarray]:
        chunks = list(prepared.records(split).chunks())
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    arrays = prepared.arrays(split, decoded)
    inputs = arrays["inputs"]
    if split == "test":
        inputs = source.shifted(inputs, np.arange(len(inputs)))
    inputs, lengths = source.lay_out(inputs)
    return _UnscaledSplit(inputs, arrays["labels"], lengths)


def _streamed_split(source: DataSource, prepared: Prepared, split: str) -> _UnscaledSplit:
    records = prepared.records(split)
    shape, max_length = source.laid_out(source.source())

    def passed() -> dict[str, np.ndarray]:
        labels, lengths = [], []
        for chunk in records.chunks():
            labels.append(chunk["labels"])
            lengths.append(source.lay_out(chunk["inputs"])[1])
        index = {"labels": labels} if max_length is None else {"labels": labels, "lengths": lengths}
        return {name: np.concatenate(chunks) for name, chunks in index.items()}

    index = prepared.arrays(f"{split}-{source.layout}-index-{_code(type(source))}", passed)

    def laid_out(inputs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        if split == "test":
            inputs = source.shifted(inputs, examples)
        return source.lay_out(inputs)[0]

    return _UnscaledSplit(Mapped(records, shape, laid_out), index["labels"], index.get("lengths"))


def _measured(source: DataSource, train: _UnscaledSplit, chosen: np.ndarray, seed: int) -> Measured:
    """Measure the training examples. The statistics of streamed examples are stored."""

    def measured() -> dict[str, np.ndarray]:
        return measure(train.inputs, train.lengths, chosen)._asdict()

    if not source.streams():
        return Measured(**measured())
    kept = "all" if source.examples is None else source.examples
    drawn = f"validation-{source.validation}-seed-{seed}-examples-{kept}"
    name = f"measured-{source.layout}-{drawn}-{_code(type(source))}"
    return Measured(**source.prepared().arrays(name, measured))


@functools.cache
def _code(kind: type[DataSource]) -> str:
    """Return a digest of the modules that lay out, draw and measure the examples of a source."""
    import jaxnorm as jn  # the import takes most of a second

    makers = (*kind.__mro__[:-1], Prepared, Mapped, Split, Measured, jn.Moments)
    modules = sorted({maker.__module__ for maker in makers})
    trees = [ast.dump(ast.parse(inspect.getsource(sys.modules[name]))) for name in modules]
    return hashlib.sha256("".join(trees).encode()).hexdigest()[:16]
