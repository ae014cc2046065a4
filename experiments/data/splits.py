"""Splits of a data set, and random selections of examples."""

from typing import NamedTuple, Protocol

import numpy as np

_VALIDATION = 1  # added to the seed, so that the draws are independent
_CLASSES = 2
_EXAMPLES = 3


class Inputs(Protocol):
    """An array (examples, ...), or an object that reads examples when they are accessed."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, examples: np.ndarray | slice) -> np.ndarray: ...


class Split(NamedTuple):
    """Examples.

    Attributes:
        inputs: float32 (examples, ...), scaled, or int32 words (examples, positions).
        labels: int32 (examples,).
        lengths: int32 (examples,), the number of valid entries along the first axis of an input.
            None if all are valid.
    """

    inputs: Inputs
    labels: np.ndarray
    lengths: np.ndarray | None = None


class Dataset(NamedTuple):
    """The splits of a data set. `validation` is drawn from the training examples of the source."""

    train: Split
    validation: Split
    test: Split
    num_classes: int


def num_validation(num_examples: int, fraction: float) -> int:
    """Return how many training examples of the source are used for validation."""
    return round(num_examples * fraction)


def draw_validation(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a mask of `num_validation` examples, stratified by class."""
    rng = np.random.default_rng((seed, _VALIDATION))
    return draw_stratified(labels, num_validation(len(labels), fraction), rng)


def draw_examples(labels: np.ndarray, drawn: int, seed: int) -> np.ndarray:
    """Return a mask of the training examples to keep, stratified by class."""
    return draw_stratified(labels, drawn, np.random.default_rng((seed, _EXAMPLES)))


def draw_stratified(labels: np.ndarray, drawn: int, rng: np.random.Generator) -> np.ndarray:
    """Return a mask of `drawn` examples; class proportions are kept up to rounding."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, shuffled within each
    places = (np.arange(drawn) + rng.random()) * len(labels) / max(drawn, 1)
    mask = np.zeros(len(labels), bool)
    mask[order[places.astype(int)]] = True
    return mask


def draw_classes(
    by_class: list[np.ndarray], classes: int, drawn: int, *, seed: int, step: int
) -> np.ndarray:
    """Draw examples of a few classes in random order; `seed` and `step` determine the result.

    The classes have equal shares up to rounding. An example repeats only after all examples of its
    class were drawn.

    Args:
        by_class: the indices of the examples of each class.
        classes: the number of classes to draw.
        drawn: the number of examples to draw.
    """
    rng = np.random.default_rng((seed, step, _CLASSES))
    chosen = rng.choice(len(by_class), classes, replace=False)
    shares = np.diff(np.arange(classes + 1) * drawn // classes)
    examples = [_draw(by_class[one], share, rng) for one, share in zip(chosen, shares, strict=True)]
    return rng.permutation(np.concatenate(examples))


def _draw(examples: np.ndarray, drawn: int, rng: np.random.Generator) -> np.ndarray:
    """Draw examples. An example repeats only after all were drawn."""
    rounds, rest = divmod(drawn, len(examples))
    return np.concatenate([np.tile(examples, rounds), rng.choice(examples, rest, replace=False)])
