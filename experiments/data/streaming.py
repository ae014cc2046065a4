"""Examples that are read from their files as training needs them."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from experiments.data.scaling import Scaling
from experiments.data.splits import Inputs

THREADS = 4  # that read ahead
BATCHES_AHEAD = 8
END = 2**62  # of the steps
Batch = TypeVar("Batch")


def read_ahead(read: Callable[[int], Batch], step: int) -> Iterator[Batch]:
    """Yield `read(step)` of each step from `step` on; threads of grain read ahead.

    Nothing before the first step is read.
    """
    import grain  # takes a second

    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BATCHES_AHEAD)
    yield from grain.MapDataset.range(step, END).map(read).to_iter_dataset(options)


class Mapped:
    """The results of a function of inputs and their indices.

    Args:
        raw: the inputs of the source.
        shape: of one result.
        function: takes some of the inputs and their indices.
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
    """Some of the inputs of a source, scaled.

    Args:
        raw: the inputs before they are scaled.
        examples: which of them.
        lengths: of all of `raw`.
        scaling: what they are scaled by.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self, raw: Inputs, examples: np.ndarray, lengths: np.ndarray | None, scaling: Scaling
    ) -> None:
        self.shape = (len(examples), *raw.shape[1:])
        self._raw, self._examples = raw, examples
        self._lengths, self._scaling = lengths, scaling

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, examples: np.ndarray | slice) -> np.ndarray:
        chosen = self._examples[examples]
        lengths = None if self._lengths is None else self._lengths[chosen.ravel()]
        scaled = self._scaling.apply(self._raw[chosen.ravel()], lengths)
        return scaled.reshape(*chosen.shape, *self.shape[1:])
