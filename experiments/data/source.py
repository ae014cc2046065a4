"""A data set as a configuration chooses it."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Optional

import numpy as np

from experiments import errors
from experiments.data import prepared
from experiments.data.batching import Batches
from experiments.data.card import Card, Examples
from experiments.data.scaling import SCALINGS, measure, scaling
from experiments.data.splits import Dataset, Split, draw_validation, num_validation

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class Spec(NamedTuple):
    """What is known of a data set before it is prepared.

    Attributes:
        input_shape: of one example.
        num_classes: labels are 0 to below it.
        num_train: training examples, those for validation taken away.
        max_length: the most that an example's length can be; None where all of an input counts.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    num_train: int
    max_length: int | None = None


class Source(NamedTuple):
    """What the source of a data set holds.

    Attributes:
        input_shape: of one example.
        num_classes: labels are 0 to below it.
        num_train, num_test: examples.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    num_train: int
    num_test: int


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A data set, and how its examples are scaled and drawn.

    Attributes:
        directory: where it is prepared.
        validation: the fraction of the source's training examples that is drawn for validation.
        scaling: raw, standard or min_max, by the training examples that are left.
        classes_per_batch: draw this many classes for a batch and its examples from them; None:
            every example once an epoch.
        stream: read the examples from files as they are needed; None: where they take more than
            `memory` bytes.
    """

    directory: str
    validation: float
    scaling: str
    classes_per_batch: Optional[int] = None
    stream: Optional[bool] = None
    memory: int = 4_000_000_000

    card: ClassVar[Card]

    def source(self) -> Source:
        """Return what the source holds, without reading its examples."""
        raise NotImplementedError

    def examples(self) -> Mapping[str, Examples]:
        """Return the examples of the source, `train` and `test`."""
        raise NotImplementedError

    def builder(self) -> "tfds.core.DatasetBuilder":
        """Return the TFDS builder that prepares the source."""
        from experiments.data.builder import builder_class

        make = builder_class(self.card, self.source().num_classes, self.examples)
        return make(data_dir=self.directory, file_format="array_record")

    def spec(self) -> Spec:
        """Return what is known without preparing anything.

        Raises:
            ConfigError: a file of the source is missing or cannot be right.
        """
        source = self.source()
        num_train = source.num_train - num_validation(source.num_train, self.validation)
        return Spec(source.input_shape, source.num_classes, num_train)

    def problems(self, batch_size: int) -> Iterator[str]:
        """Yield what cannot be right about the values, and about a batch size."""
        yield from errors.choice("data.scaling", self.scaling, SCALINGS)
        if not self.directory.strip():
            yield "data.directory is empty; give a directory"
        if not 0 < self.validation < 1:
            yield f"data.validation is {self.validation}; give a fraction between 0 and 1"
            return
        spec = self.spec()
        if batch_size > spec.num_train:
            yield (
                f"batch_size is {batch_size}, but {self.card.name} has {spec.num_train} training "
                f"examples; give 1 to {spec.num_train}"
            )
        classes = self.classes_per_batch
        if classes is not None and not 1 <= classes <= spec.num_classes:
            yield (
                f"data.classes_per_batch is {classes}, but {self.card.name} has "
                f"{spec.num_classes} classes; give 1 to {spec.num_classes}, or null"
            )

    def load(self, seed: int) -> Dataset:
        """Return the examples, prepared where they are not yet.

        Raises:
            ConfigError: a file is missing, truncated or corrupt.
        """
        return _load(self, seed)

    def batches(self, dataset: Dataset, batch_size: int, *, multiple: int, seed: int) -> Batches:
        """Return the batches of training one seed, each filled to a multiple."""
        return Batches(dataset.train, batch_size, multiple=multiple, seed=seed)

    def _read(self) -> Mapping[str, Examples]:
        """Return the examples as the source has them."""
        builder = self.builder()
        prepared.prepare(builder, Path(self.directory))
        return {split: prepared.decode(builder, split) for split in ("train", "test")}


@functools.lru_cache(maxsize=4)
def _load(source: DataSource, seed: int) -> Dataset:
    raw = source._read()
    held = draw_validation(raw["train"].labels, source.validation, seed)
    parts = {
        "train": Examples(*(array[~held] for array in raw["train"])),
        "validation": Examples(*(array[held] for array in raw["train"])),
        "test": raw["test"],
    }
    inputs = parts["train"].inputs
    scaled = scaling(source.scaling, measure([inputs.reshape(-1, inputs.shape[-1])]))
    splits = {
        name: Split(scaled(part.inputs.astype(np.float32)), part.labels.astype(np.int32))
        for name, part in parts.items()
    }
    return Dataset(**splits, num_classes=source.source().num_classes)
