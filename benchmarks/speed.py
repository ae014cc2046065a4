"""Time of the forward pass, and of forward and backward pass, interleaved in one process."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from benchmarks.candidates import candidates, check_alike, drawn
from benchmarks.forms import FORMS
from benchmarks.peers import LIBRARIES
from benchmarks.table import SHORT, Table
from benchmarks.timing import PASSES, floor, interleaved

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
COLUMNS = [*FORMS, *(name for name in LIBRARIES if name != "jaxnorm"), "PyTorch", "floor"]
ROUNDS = 15


class Asked(NamedTuple):
    """The largest allowed ratios."""

    forward_of_flax: float
    both_of_flax: float
    both_of_torch: float


FLOAT32 = {
    "batch": Asked(0.9, 0.5, 0.7),
    "layer": Asked(0.7, 0.3, 0.8),
    "rms": Asked(0.7, 0.25, 0.3),
    "group": Asked(0.15, 0.3, 0.9),
    "instance": Asked(0.9, 0.6, 0.7),
}
BFLOAT16, EVALUATION = Asked(0.9, 0.5, 1.0), Asked(1.0, 1.0, 1.0)


def asked(norm: str, dtype: str) -> Asked:
    """Return the largest allowed ratios of a norm and a dtype."""
    if norm == "evaluation":
        return EVALUATION
    return FLOAT32[norm] if dtype == "float32" else BFLOAT16


def measure(full: bool) -> list[Table]:
    """Return the medians of every library, and ratios to Flax Linen, PyTorch and the floor."""
    rows = []
    for norm, shapes in SHAPES.items():
        for shape in [*shapes, *(MORE_SHAPES[norm] if full else [])]:
            for dtype in ("float32", "bfloat16"):
                rows += measured(norm, shape, dtype, 2 * ROUNDS if full else ROUNDS)
    ratios = ("/ Flax (asked)", "/ PyTorch (asked)", "/ floor")
    return [
        Table(
            title="Speed",
            columns=("norm", "input", "dtype", "pass", *ratios, *(f"{c} ms" for c in COLUMNS)),
            rows=rows,
            notes=(
                "Median milliseconds of interleaved runs in one process, and the ratio of jaxnorm, "
                "which runs its native form, to Flax Linen and to PyTorch (asked: at most), and to "
                "the floor of memory traffic; `plain` is jaxnorm's plain form. `both` gives the "
                "output, the new state and all gradients; its floor is x + 1, and then two arrays "
                "of the input's size read and one written. Evaluation is batch normalization by "
                "running statistics. Equinox, and PyTorch but for layer and RMS, take channels "
                "first. Memory is never given back to the system, so that no run pays for mapping "
                "it."
            ),
        )
    ]


def measured(norm: str, shape: Shape, dtype: str, rounds: int) -> list[list[str]]:
    """Return a row for the forward pass and one for both passes."""
    several = list(candidates(norm, shape, dtype))
    check_alike(several, norm, dtype)
    functions = {(c.library, which): getattr(c, which) for c in several for which in PASSES}
    least = floor(*(jnp.asarray(array, dtype) for array in drawn(shape)))
    functions |= {("floor", which): function for which, function in least.items()}
    times = interleaved(functions, rounds)
    case = [norm, "x".join(map(str, shape)), SHORT[dtype]]
    limits = asked(norm, dtype)
    return [
        [*case, which, *_cells({name: times[name, which] for name in COLUMNS}, limits, which)]
        for which in PASSES
    ]


def _cells(own: dict[str, float], limits: Asked, which: str) -> list[str]:
    """Return the ratios with their limits, and the milliseconds."""
    flax, pytorch, least = (
        f"{own['jaxnorm'] / own[other]:.2f}" for other in ("Flax Linen", "PyTorch", "floor")
    )
    if which == "both":
        flax = f"{flax} ({limits.both_of_flax:.2f})"
        pytorch = f"{pytorch} ({limits.both_of_torch:.2f})"
    else:
        flax = f"{flax} ({limits.forward_of_flax:.2f})"
    return [flax, pytorch, least, *(f"{milliseconds:.2f}" for milliseconds in own.values())]
