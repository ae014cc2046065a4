"""Inputs that are read from files, or scaled, when training needs them."""

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from experiments.data.scaling import Scaling
from experiments.data.splits import Inputs

THREADS = 4  # threads that read ahead
BATCHES_AHEAD = 8
END = 2**62  # more steps than any run has
Batch = TypeVar("Batch")


def read_ahead(read: Callable[[int], Batch], step: int) -> Iterator[Batch]:
    """Yield `read(step)` for each step from `step` on. Threads of grain read ahead.

    No step before the first one is read.
    """
    import grain  # takes a second

    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BATCHES_AHEAD)
    yield from grain.MapDataset.range(step, END).map(read).to_iter_dataset(options)


class Mapped:
    """The results of a function of inputs and their indices.

    Args:
        raw: the inputs of the source.
        shape: the shape of one result.
        function: maps some inputs and their indices to results.
    """

    def __init__(
        self,
        raw: Inputs,
        shape: tuple[int, ...],
        function: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> None:
        self.shape = (len(raw), *shape)
        self._raw, self._function = raw, function

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, examples: np.ndarray) -> np.ndarray:
        return self._function(self._raw[examples], examples)


class Scaled:
    """Scaled inputs of some examples, as float32, or their words as they are.

    Args:
        raw: the inputs before scaling.
        examples: the indices of the examples.
        lengths: the lengths of all of `raw`.
        scaling: the scaling that is applied; None for words.
    """

    def __init__(
        self,
        raw: Inputs,
        examples: np.ndarray,
        lengths: np.ndarray | None,
        scaling: Scaling | None,
    ) -> None:
        self.shape = (len(examples), *raw.shape[1:])
        self._raw, self._examples = raw, examples
        self._lengths = lengths
        self._scaling = scaling and scaling.repeated(math.prod(raw.shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, examples: np.ndarray | slice) -> np.ndarray:
        chosen = self._examples[examples]
        inputs = self._raw[chosen.ravel()]
        if self._scaling is not None:
            lengths = None if self._lengths is None else self._lengths[chosen.ravel()]
            inputs = self._scaling.apply(inputs, lengths)
        return inputs.reshape(*chosen.shape, *self.shape[1:])
