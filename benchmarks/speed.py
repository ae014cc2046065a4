"""Time of the forward pass, and of forward and backward pass, interleaved in one process."""

from __future__ import annotations

import jax.numpy as jnp

from benchmarks.candidates import candidates, check_alike, drawn
from benchmarks.forms import FORMS
from benchmarks.peers import LIBRARIES
from benchmarks.table import SHORT, Table
from benchmarks.timing import PASSES, copies, interleaved

Shape = tuple[int, ...]

IMAGES, TOKENS = (32, 56, 56, 64), (4096, 1024)
SAMPLES = (16, 56, 56, 64)
SHAPES: dict[str, list[Shape]] = {
    "batch": [IMAGES, (8192, 1024)],
    "layer": [TOKENS],
    "rms": [TOKENS],
    "group": [SAMPLES],
    "instance": [SAMPLES],
    "evaluation": [IMAGES],
}
MORE_SHAPES: dict[str, list[Shape]] = {  # stages of a ResNet-50, and layers of a transformer
    norm: [(512, 256), (8192, 4096)]
    if norm in ("layer", "rms")
    else [(32, 56, 56, 256), (32, 28, 28, 512), (32, 7, 7, 2048)]
    for norm in SHAPES
}
COLUMNS = [*FORMS, *(name for name in LIBRARIES if name != "jaxnorm"), "PyTorch", "copy"]
ROUNDS = 15


def measure(full: bool) -> list[Table]:
    """Return the medians of every library, and ratios to Flax Linen and PyTorch."""
    rows = []
    for norm, shapes in SHAPES.items():
        for shape in [*shapes, *(MORE_SHAPES[norm] if full else [])]:
            for dtype in ("float32", "bfloat16"):
                rows += measured(norm, shape, dtype, 2 * ROUNDS if full else ROUNDS)
    ratios = ("jaxnorm / Flax", "jaxnorm / PyTorch")
    return [
        Table(
            title="Speed",
            columns=("norm", "input", "dtype", "pass", *ratios, *(f"{c} ms" for c in COLUMNS)),
            rows=rows,
            notes=(
                "Median milliseconds of interleaved calls in one process. Equinox takes channels "
                "first; so does PyTorch, except for layer and RMS."
            ),
        )
    ]


def measured(norm: str, shape: Shape, dtype: str, rounds: int) -> list[list[str]]:
    """Return a row for the forward pass and one for both passes."""
    several = list(candidates(norm, shape, dtype))
    check_alike(several, norm, dtype)
    functions = {(c.library, which): getattr(c, which) for c in several for which in PASSES}
    copied = copies(*(jnp.asarray(array, dtype) for array in drawn(shape)))
    functions |= {("copy", which): function for which, function in copied.items()}
    times = interleaved(functions, rounds)
    case = [norm, "x".join(map(str, shape)), SHORT[dtype]]
    return [
        [*case, which, *_cells({name: times[name, which] for name in COLUMNS})] for which in PASSES
    ]


def _cells(own: dict[str, float]) -> list[str]:
    """Return the ratios, and the milliseconds."""
    ratios = (own["jaxnorm"] / own[other] for other in ("Flax Linen", "PyTorch"))
    return [f"{number:.2f}" for number in (*ratios, *own.values())]
