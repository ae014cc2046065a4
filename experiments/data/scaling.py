"""Scaling of inputs by what the training examples of one seed measure."""

from typing import NamedTuple

import numpy as np

from experiments.data.splits import Inputs

SCALINGS = ("raw", "standard", "min_max")
CHUNK = 2048  # examples that are measured together


class Measured(NamedTuple):
    """Of each channel of images, or each feature, float32: moments, least and largest value."""

    count: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    min: np.ndarray
    max: np.ndarray


class Scaling(NamedTuple):
    """Inputs become `(inputs - shift) * factor`."""

    shift: np.ndarray
    factor: np.ndarray

    def apply(self, inputs: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
        """Return scaled inputs, float32, that are 0 beyond their lengths."""
        flat = inputs.reshape(len(inputs), -1)  # NumPy is slow where the last axis is short
        shift, factor = (np.tile(array, flat.shape[1] // len(array)) for array in self)
        scaled = np.subtract(flat, shift, dtype=np.float32)
        scaled *= factor
        scaled = scaled.reshape(inputs.shape)
        if lengths is not None:
            scaled[~within(scaled, lengths)] = 0
        return scaled


def within(inputs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return a mask (examples, positions) of the positions within the lengths."""
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
    """Return the scaling: raw as it is, standard to mean 0 and deviation 1, min_max to 0 to 1.

    A constant feature becomes 0, unless it is raw.
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
