"""Which examples make a batch: shuffled for training, in their order for evaluation."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.data.splits import Split, draw_classes
from experiments.data.streaming import read_ahead

_MIXED = 0  # a seed


class Batch(NamedTuple):
    """Some examples, and a mask that is False where one only fills the batch; None: none does."""

    inputs: np.ndarray
    lengths: np.ndarray | None
    labels: np.ndarray
    mask: np.ndarray | None


class Rows(NamedTuple):
    """The examples of batches: `indices` ([...,] batches, examples), and the mask of each."""

    indices: np.ndarray
    mask: np.ndarray

    def of(self, split: Split) -> Batch:
        lengths = None if split.lengths is None else split.lengths[self.indices]
        return Batch(split.inputs[self.indices], lengths, split.labels[self.indices], self.mask)

    def batches(self, which: int | slice) -> "Rows":
        return Rows(*(array[..., which, :] for array in self))

    def part(self, examples: slice) -> "Rows":
        """Some of the examples of every batch."""
        return Rows(*(array[..., examples] for array in self))


class Batches:
    """The batches of training one seed, without end. A step has the same batch in every run.

    Every training example is in them once an epoch; or, with `classes`, each is drawn from as many
    classes.

    Attributes:
        steps_per_epoch: batches that hold as many examples as there are.
    """

    def __init__(
        self,
        train: Split,
        batch_size: int,
        *,
        multiple: int,
        seed: int,
        classes: int | None = None,
    ) -> None:
        self.steps_per_epoch = math.ceil(len(train.labels) / batch_size)
        self._train, self._batch_size = train, batch_size
        self._multiple, self._seed, self._classes = multiple, seed, classes
        self._epoch: tuple[int, Rows] | None = None
        if classes is not None:
            self._members = [np.flatnonzero(train.labels == one) for one in np.unique(train.labels)]

    def from_step(self, step: int, part: slice = slice(None)) -> Iterator[Batch]:
        """Yield the batches from a step on, counted from 0; `part` of the examples of each."""

        def read(step: int) -> Batch:
            return self.rows(step).part(part).of(self._train)

        if isinstance(self._train.inputs, np.ndarray):
            while True:
                yield read(step)
                step += 1
        else:
            yield from read_ahead(read, step)

    def rows(self, step: int) -> Rows:
        """Return the examples of one step."""
        if self._classes is not None:
            return self._rows_of_classes(step)
        number, place = divmod(step, self.steps_per_epoch)
        epoch = self._epoch  # several threads read ahead
        if epoch is None or epoch[0] != number:
            epoch = self._epoch = (number, self._rows_of_epoch(number))
        return epoch[1].batches(place)

    def _rows_of_epoch(self, number: int) -> Rows:
        return training_rows(
            len(self._train.labels),
            self._batch_size,
            multiple=self._multiple,
            seed=self._seed,
            epoch=number + 1,
        )

    def _rows_of_classes(self, step: int) -> Rows:
        classes = min(self._classes, len(self._members))
        examples = draw_classes(
            self._members, classes, self._batch_size, seed=self._seed, step=step
        )
        return _filled(examples, self._batch_size, self._multiple).batches(0)


class EvaluationBatches(Sequence[Batch]):
    """Batches that hold every example once, each read when it is asked for."""

    def __init__(self, split: Split, rows: Rows) -> None:
        self._split, self._rows = split, rows

    def __len__(self) -> int:
        return len(self._rows.indices)

    def __getitem__(self, which: int) -> Batch:
        return self._rows.batches(which).of(self._split)


def evaluation_batches(
    split: Split,
    batch_size: int,
    *,
    multiple: int,
    part: slice = slice(None),
    most: int | None = None,
    mixed: bool = False,
) -> EvaluationBatches:
    """Return batches that hold every example once; `part` of the examples of each.

    Args:
        most: hold so many examples, the first ones.
        mixed: in a fixed random order, since their own may be by class.
    """
    number = min(most or len(split.labels), len(split.labels))
    rows = evaluation_rows(number, batch_size, multiple=multiple, mixed=mixed)
    return EvaluationBatches(split, rows.part(part))


def training_rows(
    num_examples: int, batch_size: int, *, multiple: int, seed: int, epoch: int
) -> Rows:
    """Return every example once, in an order that depends on `seed` and `epoch` alone."""
    order = np.random.default_rng((seed, epoch)).permutation(num_examples)
    return _filled(order, batch_size, multiple)


def evaluation_rows(
    num_examples: int, batch_size: int, *, multiple: int, mixed: bool = False
) -> Rows:
    """Return every example once."""
    order = np.arange(num_examples)
    if mixed:
        order = np.random.default_rng(_MIXED).permutation(order)
    return _filled(order, min(batch_size, num_examples), multiple)


def _filled(order: np.ndarray, batch_size: int, multiple: int) -> Rows:
    """Cut the examples into batches of `batch_size`, each filled to a multiple.

    What the last batch lacks is filled too. The filling repeats the last example.
    """
    steps = -(-len(order) // batch_size)
    places = np.arange(steps * batch_size).reshape(steps, batch_size)
    filling = ((0, 0), (0, -batch_size % multiple))
    places = np.pad(places, filling, constant_values=len(order))
    mask = places < len(order)
    return Rows(order[np.minimum(places, len(order) - 1)], mask)
