"""The error of the float32 output of each library, for growing ratios of mean and deviation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.ours import EPSILON, GROUPS, NORMS
from benchmarks.peers import peers, torch_numpy
from benchmarks.table import Table

RATIOS = (0.0, 1e2, 1e3, 1e4, 1e6)
SHAPES = dict.fromkeys(NORMS, (8, 28, 28, 64)) | {"layer": (64, 1024), "rms": (64, 1024)}


def oracle(norm: str, x: np.ndarray) -> np.ndarray:
    """Return the result of the formula of the paper in float64."""
    x = x.astype(np.float64)
    if norm == "rms":
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + EPSILON)
    groups = GROUPS if norm == "group" else x.shape[-1]
    grouped = x if norm == "layer" else x.reshape(*x.shape[:-1], groups, -1)
    axes = {"batch": (0, 1, 2), "layer": (1,), "group": (1, 2, 4), "instance": (1, 2)}[norm]
    mean = grouped.mean(axes, keepdims=True)
    var = np.mean((grouped - mean) ** 2, axes, keepdims=True)
    return ((grouped - mean) / np.sqrt(var + EPSILON)).reshape(x.shape)


def outputs(norm: str, x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the output of every library."""
    for peer in peers(norm, x.shape):
        yield peer.library, peer.numpy(x)
    yield "PyTorch", torch_numpy(norm, x)


def short(error: float) -> str:
    """Return a number with two digits and an exponent without zeros."""
    return f"{error:.1e}".replace("e-0", "e-").replace("e+0", "e+")


def measure(full: bool) -> list[Table]:
    """Return the largest error of each library, norm and ratio; there is one size only."""
    generator = np.random.default_rng(0)
    rows = []
    for norm in NORMS:
        for ratio in RATIOS:
            x = (generator.normal(size=SHAPES[norm]) + ratio).astype(np.float32)
            expected = oracle(norm, x)
            errors = {library: np.abs(y - expected).max() for library, y in outputs(norm, x)}
            rows.append((norm, f"{ratio:g}", *map(short, errors.values())))
    table = Table(
        title="Largest error of the float32 output against float64",
        columns=("norm", "mean / std", *errors),
        rows=rows,
        notes=(
            "The input is a constant mean plus standard normal values. Its shape is "
            f"{SHAPES['batch']}, for layer and RMS {SHAPES['layer']}. Epsilon is {EPSILON:g}."
        ),
    )
    return [table]
