"""Which examples make a batch: shuffled for training, complete for evaluation."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from experiments.data.loading import Split


class Batch(NamedTuple):
    """Images, labels and the weight of each example: 1, or 0 where it only fills the batch."""

    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def epoch_indices(num_examples: int, batch_size: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the examples of an epoch's batches, shape (steps, batch_size).

    The order depends on `seed` and `epoch` alone. Every batch is full: the examples that are left
    over when `batch_size` does not divide `num_examples` sit out this epoch.
    """
    order = np.random.default_rng((seed, epoch)).permutation(num_examples)
    steps = num_examples // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def evaluation_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """Yield every example exactly once, in batches of one size; weights mark the filling."""
    num_examples = len(split.labels)
    size = min(batch_size, num_examples)
    for start in range(0, num_examples, size):
        indices = np.arange(start, start + size)
        weights = (indices < num_examples).astype(np.float32)
        indices = np.minimum(indices, num_examples - 1)
        yield Batch(split.images[indices], split.labels[indices], weights)
