"""Scaling of inputs by statistics of the training examples of one seed."""

from typing import NamedTuple

import numpy as np

from experiments.data.splits import Inputs

SCALINGS = ("raw", "standard", "min_max")
CHUNK = 2048  # the number of examples that are measured together


class Measured(NamedTuple):
    """Statistics of each feature, or of each channel of images, as float32."""

    count: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    min: np.ndarray
    max: np.ndarray


class Scaling(NamedTuple):
    """The scaling `(inputs - shift) * factor`."""

    shift: np.ndarray
    factor: np.ndarray

    def repeated(self, size: int) -> "Scaling":
        """Return the scaling of all `size` values of an input."""
        times = size // len(self.shift)
        return self if times == 1 else Scaling(*(np.tile(array, times) for array in self))

    def apply(self, inputs: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
        """Return scaled inputs as float32, with zeros beyond their lengths."""
        flat = inputs.reshape(len(inputs), -1)  # NumPy is slow where the last axis is short
        shift, factor = self.repeated(flat.shape[1])
        scaled = np.subtract(flat, shift, dtype=np.float32)
        scaled *= factor
        scaled = scaled.reshape(inputs.shape)
        if lengths is not None:
            scaled[~within(scaled, lengths)] = 0
        return scaled


def within(inputs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return a mask (examples, positions) that is True within the lengths."""
    return np.arange(inputs.shape[1]) < lengths[:, None]


def measure(inputs: Inputs, lengths: np.ndarray | None, examples: np.ndarray) -> Measured:
    """Measure some of the inputs (examples, ..., channels) within their lengths, in one pass."""
    chunks = []
    for start in range(0, len(examples), CHUNK):
        chosen = examples[start : start + CHUNK]
        values = inputs[chosen]
        counted = values if lengths is None else values[within(values, lengths[chosen])]
        chunks.append(_measure(counted.reshape(-1, values.shape[-1]).astype(np.float64)))
    return _merged(Measured(*map(np.stack, zip(*chunks, strict=True))))


def _measure(values: np.ndarray) -> Measured:
    count = np.full(values.shape[1], len(values))
    stats = (count, values.mean(0), values.var(0), values.min(0), values.max(0))
    return Measured(*(array.astype(np.float32) for array in stats))


def _merged(chunks: Measured) -> Measured:
    """Merge along the first axis."""
    import jax  # takes most of a second

    import jaxnorm as jn

    merge = jax.jit(jn.merge_moments_axis, static_argnums=1)
    moments = map(np.asarray, merge(jn.Moments(*chunks[:3]), 0))
    return Measured(*moments, chunks.min.min(0), chunks.max.max(0))


def scaling(kind: str, measured: Measured) -> Scaling:
    """Return a scaling.

    "raw" changes nothing, "standard" gives mean 0 and standard deviation 1, and "min_max" gives the
    range 0 to 1. The last two map a constant feature to 0.
    """
    constant = measured.min == measured.max
    if kind == "raw":
        return Scaling(np.zeros_like(measured.mean), np.ones_like(measured.mean))
    if kind == "standard":
        shift, width = measured.mean, np.sqrt(measured.var)
    else:
        shift, width = measured.min, measured.max - measured.min
    factor = np.where(constant, 0, 1 / np.where(constant, 1, width))
    return Scaling(shift, factor.astype(np.float32))
