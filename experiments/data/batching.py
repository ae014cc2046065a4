"""Which examples make a batch: shuffled for training, in their order for evaluation."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from experiments.data.splits import Split


class Batch(NamedTuple):
    """Some examples, and a mask that is False where one only fills the batch."""

    inputs: np.ndarray
    lengths: np.ndarray | None
    labels: np.ndarray
    mask: np.ndarray


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
    """The batches of training one seed, without end.

    Attributes:
        steps_per_epoch: batches in which the training examples are contained once.
    """

    def __init__(self, train: Split, batch_size: int, *, multiple: int, seed: int) -> None:
        self.steps_per_epoch = math.ceil(len(train.labels) / batch_size)
        self._train, self._batch_size = train, batch_size
        self._multiple, self._seed = multiple, seed
        self._epoch: tuple[int, Rows] | None = None

    def from_step(self, step: int, part: slice = slice(None)) -> Iterator[Batch]:
        """Yield the batches from a step on, counted from 0; `part` of the examples of each.

        A step has the same batch wherever one starts.
        """
        while True:
            yield self.rows(step).part(part).of(self._train)
            step += 1

    def rows(self, step: int) -> Rows:
        """Return the examples of one step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._rows_of(epoch))
        return self._epoch[1].batches(place)

    def _rows_of(self, epoch: int) -> Rows:
        return training_rows(
            len(self._train.labels),
            self._batch_size,
            multiple=self._multiple,
            seed=self._seed,
            epoch=epoch + 1,
        )


def evaluation_batches(
    split: Split, batch_size: int, *, multiple: int, part: slice = slice(None)
) -> list[Batch]:
    """Return batches that hold every example once; `part` of the examples of each."""
    rows = evaluation_rows(len(split.labels), batch_size, multiple=multiple).part(part)
    return [rows.batches(step).of(split) for step in range(len(rows.indices))]


def training_rows(
    num_examples: int, batch_size: int, *, multiple: int, seed: int, epoch: int
) -> Rows:
    """Return every example once, in an order that depends on `seed` and `epoch` alone."""
    order = np.random.default_rng((seed, epoch)).permutation(num_examples)
    return _filled(order, batch_size, multiple)


def evaluation_rows(num_examples: int, batch_size: int, *, multiple: int) -> Rows:
    """Return every example once."""
    return _filled(np.arange(num_examples), min(batch_size, num_examples), multiple)


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
