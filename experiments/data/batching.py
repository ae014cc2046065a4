"""Which examples make a batch: shuffled for training, in their order for evaluation."""

from typing import NamedTuple

import numpy as np

from experiments.data.loading import Split


class Batch(NamedTuple):
    """Images, labels, and a mask that is False where an example only fills the batch."""

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


class Rows(NamedTuple):
    """The examples of batches: `indices` ([...,] batches, examples), and the mask of each."""

    indices: np.ndarray
    mask: np.ndarray

    def of(self, split: Split) -> Batch:
        return Batch(split.images[self.indices], split.labels[self.indices], self.mask)

    def batches(self, which: int | slice) -> "Rows":
        return Rows(*(array[..., which, :] for array in self))

    def part(self, examples: slice) -> "Rows":
        """Some of the examples of every batch."""
        return Rows(*(array[..., examples] for array in self))


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
