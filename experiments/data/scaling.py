"""Scaling of inputs by what the training examples of one seed measure."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

import jaxnorm as jn

SCALINGS = ("raw", "standard", "min_max")


class Range(NamedTuple):
    """Of each channel of images, or each feature: moments, and the least and largest value."""

    moments: jn.Moments
    least: np.ndarray
    most: np.ndarray


class Scaling(NamedTuple):
    """Inputs become `(inputs - shift) * factor`, float32."""

    shift: np.ndarray
    factor: np.ndarray

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        return (inputs - self.shift) * self.factor


def measure(chunks: Iterable[np.ndarray]) -> Range:
    """Measure the last axis of arrays (values, channels), one after the other."""
    total = None
    for chunk in chunks:
        values = chunk.astype(np.float64)
        mean = values.mean(axis=0)
        moments = jn.Moments(
            np.full(mean.shape, len(values), np.float32),
            mean.astype(np.float32),
            np.square(values - mean).mean(axis=0).astype(np.float32),
        )
        part = Range(moments, values.min(axis=0), values.max(axis=0))
        total = part if total is None else _merged(total, part)
    return total


def _merged(a: Range, b: Range) -> Range:
    moments = jn.merge_moments(a.moments, b.moments)
    return Range(moments, np.minimum(a.least, b.least), np.maximum(a.most, b.most))


def scaling(kind: str, measured: Range) -> Scaling:
    """Return the scaling: raw as it is, standard to mean 0 and deviation 1, min_max to 0 to 1.

    What is constant becomes 0 by either of the last.
    """
    if kind == "raw":
        shift, width = np.zeros_like(measured.least), np.ones_like(measured.least)
    elif kind == "standard":
        shift, width = np.asarray(measured.moments.mean), np.sqrt(measured.moments.var)
    else:
        shift, width = measured.least, measured.most - measured.least
    constant = measured.least == measured.most if kind != "raw" else np.zeros_like(shift, bool)
    shift = np.where(constant, measured.least, shift)
    factor = np.where(constant, 0, 1 / np.where(constant, 1, width))
    return Scaling(shift.astype(np.float32), factor.astype(np.float32))
