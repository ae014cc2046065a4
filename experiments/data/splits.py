"""What a data set gives to training: examples as arrays, in three parts."""

from typing import NamedTuple, Protocol

import numpy as np

_VALIDATION = 1  # what is drawn, beside the seed
_CLASSES = 2
_EXAMPLES = 3


class Inputs(Protocol):
    """An array (examples, ...), or what reads the examples as they are asked for."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, examples: np.ndarray | slice) -> np.ndarray: ...


class Split(NamedTuple):
    """Examples.

    Attributes:
        inputs: float32 (examples, ...), scaled.
        labels: int32 (examples,).
        lengths: int32 (examples,), how many of the first axis of an input count; None: all.
    """

    inputs: Inputs
    labels: np.ndarray
    lengths: np.ndarray | None = None


class Dataset(NamedTuple):
    """The parts of a data set. `validation` is drawn from the source's training examples."""

    train: Split
    validation: Split
    test: Split
    num_classes: int


def num_validation(num_examples: int, fraction: float) -> int:
    """Return how many of the source's training examples are for validation."""
    return round(num_examples * fraction)


def draw_validation(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a mask of `num_validation` examples, of every class its share up to rounding."""
    rng = np.random.default_rng((seed, _VALIDATION))
    return draw_stratified(labels, num_validation(len(labels), fraction), rng)


def draw_examples(labels: np.ndarray, drawn: int, seed: int) -> np.ndarray:
    """Return a mask of the training examples that are kept, of every class its share."""
    return draw_stratified(labels, drawn, np.random.default_rng((seed, _EXAMPLES)))


def draw_stratified(labels: np.ndarray, drawn: int, rng: np.random.Generator) -> np.ndarray:
    """Return a mask of as many examples, of every class its share up to rounding."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, shuffled within each
    places = (np.arange(drawn) + rng.random()) * len(labels) / max(drawn, 1)
    mask = np.zeros(len(labels), bool)
    mask[order[places.astype(int)]] = True
    return mask


def draw_classes(
    by_class: list[np.ndarray], classes: int, drawn: int, *, seed: int, step: int
) -> np.ndarray:
    """Return as many examples of a few classes, in random order, by `seed` and `step` alone.

    The classes have equal shares up to rounding. No example is drawn twice while its class has
    others.

    Args:
        by_class: the examples of each class.
        classes: how many of them to draw.
    """
    rng = np.random.default_rng((seed, step, _CLASSES))
    chosen = rng.choice(len(by_class), classes, replace=False)
    shares = np.diff(np.arange(classes + 1) * drawn // classes)
    examples = [_draw(by_class[one], share, rng) for one, share in zip(chosen, shares, strict=True)]
    return rng.permutation(np.concatenate(examples))


def _draw(examples: np.ndarray, drawn: int, rng: np.random.Generator) -> np.ndarray:
    """Return as many of the examples, all of them before one a second time."""
    rounds, rest = divmod(drawn, len(examples))
    return np.concatenate([np.tile(examples, rounds), rng.choice(examples, rest, replace=False)])
