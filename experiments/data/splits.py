"""What a data set gives to training: examples as arrays, in three parts."""

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Examples.

    Attributes:
        inputs: float32 (examples, ...), scaled.
        labels: int32 (examples,).
        lengths: int32 (examples,), how many of the first axis of an input count; None: all.
    """

    inputs: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray | None = None


class Dataset(NamedTuple):
    """The parts of a data set. `validation` is drawn from the source's training examples."""

    train: Split
    validation: Split
    test: Split
    num_classes: int


def draw_validation(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a mask of the examples that are drawn for validation.

    They are `num_validation(len(labels), fraction)`, of every class its share up to rounding.
    """
    num, drawn = len(labels), num_validation(len(labels), fraction)
    rng = np.random.default_rng((seed, 1))
    order = rng.permutation(num)
    order = order[np.argsort(labels[order], kind="stable")]  # by class, shuffled within each
    mask = np.zeros(num, bool)
    mask[order[((np.arange(drawn) + rng.random()) * num / max(drawn, 1)).astype(int)]] = True
    return mask


def num_validation(num_examples: int, fraction: float) -> int:
    """Return how many of the source's training examples are for validation."""
    return round(num_examples * fraction)
