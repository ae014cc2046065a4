"""Which examples form a batch: shuffled for training, in source order for evaluation."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np

from experiments.data.splits import Split, draw_classes
from experiments.data.streaming import read_ahead

_EVALUATION_SEED = 0


class Batch(NamedTuple):
    """Examples and a mask that is False for padding. Without padding the mask is None."""

    inputs: np.ndarray
    lengths: np.ndarray | None
    labels: np.ndarray
    mask: np.ndarray | None


class BatchIndices(NamedTuple):
    """The indices of the examples in one or more batches.

    Attributes:
        indices: integers of shape (..., examples).
        mask: False where an index is padding, in the same shape; None if no batch of an epoch has
            padding, so that a run has one program.
    """

    indices: np.ndarray
    mask: np.ndarray | None

    def gather(self, split: Split) -> Batch:
        """Return the examples of a split at these indices."""
        lengths = None if split.lengths is None else split.lengths[self.indices]
        return Batch(split.inputs[self.indices], lengths, split.labels[self.indices], self.mask)

    def at(self, which: int | slice) -> "BatchIndices":
        """Return one batch, or some of the batches."""
        return self._each(lambda array: array[..., which, :])

    def shard(self, examples: slice) -> "BatchIndices":
        """Return a slice of the examples of every batch."""
        return self._each(lambda array: array[..., examples])

    def _each(self, select: Callable[[np.ndarray], np.ndarray]) -> "BatchIndices":
        return BatchIndices(select(self.indices), None if self.mask is None else select(self.mask))


class Batches:
    """The endless sequence of training batches of one seed. A step has the same batch in every run.

    An epoch contains every training example once. With `classes`, each batch is drawn from that
    many classes instead. With `ahead`, threads read batches before they are needed.

    Attributes:
        steps_per_epoch: the number of batches that contain all training examples once.
    """

    def __init__(
        self,
        train: Split,
        batch_size: int,
        *,
        multiple: int,
        seed: int,
        classes: int | None = None,
        ahead: bool = False,
    ) -> None:
        self.steps_per_epoch = math.ceil(len(train.labels) / batch_size)
        self._train, self._batch_size = train, batch_size
        self._multiple, self._seed, self._classes, self._ahead = multiple, seed, classes, ahead
        self._epoch: tuple[int, BatchIndices] | None = None
        if classes is not None:
            self._by_class = [
                np.flatnonzero(train.labels == one) for one in np.unique(train.labels)
            ]

    def from_step(self, step: int, shard: slice = slice(None)) -> Iterator[Batch]:
        """Yield the batches from a step on; steps count from 0. `shard` selects examples."""

        def read(step: int) -> Batch:
            return self.indices(step).shard(shard).gather(self._train)

        yield from read_ahead(read, step) if self._ahead else map(read, count(step))

    def indices(self, step: int) -> BatchIndices:
        """Return the indices of one step."""
        if self._classes is not None:
            return self._indices_of_classes(step)
        number, place = divmod(step, self.steps_per_epoch)
        epoch = self._epoch  # several threads read ahead
        if epoch is None or epoch[0] != number:
            epoch = self._epoch = (number, self._indices_of_epoch(number))
        return epoch[1].at(place)

    def _indices_of_epoch(self, number: int) -> BatchIndices:
        return training_indices(
            len(self._train.labels),
            self._batch_size,
            multiple=self._multiple,
            seed=self._seed,
            epoch=number + 1,
        )

    def _indices_of_classes(self, step: int) -> BatchIndices:
        classes = min(self._classes, len(self._by_class))
        examples = draw_classes(
            self._by_class, classes, self._batch_size, seed=self._seed, step=step
        )
        return _padded(examples, self._batch_size, self._multiple).at(0)


class EvaluationBatches(Sequence[Batch]):
    """Batches that contain every example once. A batch is read when it is accessed."""

    def __init__(self, split: Split, indices: BatchIndices) -> None:
        self._split, self._indices = split, indices

    def __len__(self) -> int:
        return len(self._indices.indices)

    def __getitem__(self, which: int) -> Batch:
        return self._indices.at(which).gather(self._split)


def evaluation_batches(
    split: Split,
    batch_size: int,
    *,
    multiple: int,
    shard: slice = slice(None),
    limit: int | None = None,
    shuffled: bool = False,
) -> EvaluationBatches:
    """Return batches that contain every example once.

    Args:
        shard: the examples of each batch that this process reads.
        limit: use only this many examples, the first ones.
        shuffled: use a fixed random order, because the source can be sorted by class.
    """
    number = min(limit or len(split.labels), len(split.labels))
    indices = evaluation_indices(number, batch_size, multiple=multiple, shuffled=shuffled)
    return EvaluationBatches(split, indices.shard(shard))


def training_indices(
    num_examples: int, batch_size: int, *, multiple: int, seed: int, epoch: int
) -> BatchIndices:
    """Return every example once, in an order that depends on `seed` and `epoch` only."""
    order = np.random.default_rng((seed, epoch)).permutation(num_examples)
    return _padded(order, batch_size, multiple)


def evaluation_indices(
    num_examples: int, batch_size: int, *, multiple: int, shuffled: bool = False
) -> BatchIndices:
    """Return every example once."""
    order = np.arange(num_examples)
    if shuffled:
        order = np.random.default_rng(_EVALUATION_SEED).permutation(order)
    return _padded(order, min(batch_size, num_examples), multiple)


def _padded(order: np.ndarray, batch_size: int, multiple: int) -> BatchIndices:
    """Cut the order into batches of `batch_size` and pad each to a multiple of `multiple`.

    The last batch is padded to the same size. The padding repeats the last example. If all batches
    are whole, there is no mask.
    """
    steps = -(-len(order) // batch_size)
    places = np.arange(steps * batch_size).reshape(steps, batch_size)
    padding = ((0, 0), (0, -batch_size % multiple))
    places = np.pad(places, padding, constant_values=len(order))
    mask = places < len(order)
    indices = order[np.minimum(places, len(order) - 1)]
    return BatchIndices(indices, None if mask.all() else mask)
