"""Forward, and forward and backward, of every library, interleaved in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.candidates import candidates, check_alike
from benchmarks.table import SHORT, Table

IMAGES, TOKENS = (32, 56, 56, 64), (4096, 1024)
SAMPLES = (16, 56, 56, 64)
SHAPES = {"batch": IMAGES, "layer": TOKENS, "rms": TOKENS, "group": SAMPLES, "instance": SAMPLES}
MORE_SHAPES = {  # of a ResNet-50's stages, and of a transformer
    norm: [(32, 56, 56, 256), (32, 28, 28, 512), (32, 7, 7, 2048)]
    for norm in ("batch", "group", "instance")
} | {norm: [(512, 256), (8192, 4096)] for norm in ("layer", "rms")}
FORWARD = 1.1
BOTH = {"batch": 0.8, "layer": 0.5, "rms": 0.5, "group": 0.4, "instance": 0.9}
ROUNDS = 15


def interleaved(functions: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """The median milliseconds of each function, called in turn, in alternating order."""
    times: dict[Any, list[float]] = {key: [] for key in functions}
    for _ in range(2):  # warm up
        for function in functions.values():
            function()
    for index in range(rounds):
        order = list(functions) if index % 2 == 0 else list(functions)[::-1]
        for key in order:
            begin = time.perf_counter()
            functions[key]()
            times[key].append(1e3 * (time.perf_counter() - begin))
    return {key: median(values) for key, values in times.items()}


def measure(full: bool) -> list[Table]:
    """Medians of every library, and jaxnorm's ratio to Flax Linen and to PyTorch."""
    rows = []
    for norm, shape in SHAPES.items():
        for size in [shape, *(MORE_SHAPES[norm] if full else [])]:
            for dtype in ("float32", "bfloat16"):
                rows += _rows(norm, size, dtype, 2 * ROUNDS if full else ROUNDS)
    libraries = [f"{library} ms" for library in _names()]
    return [
        Table(
            title="Speed",
            columns=("norm", "input", "dtype", "pass", "asked", "/ Flax", "/ PyTorch", *libraries),
            rows=rows,
            notes=(
                "Median milliseconds of interleaved runs in one process, and jaxnorm's ratio to "
                "Flax Linen (asked: at most) and to PyTorch. `both` gives the output, the new "
                "state and all gradients. Equinox and PyTorch take channels first. Memory is "
                "never given back to the system, so that no run pays for mapping it."
            ),
        )
    ]


def _names() -> list[str]:
    from benchmarks.peers import LIBRARIES

    return [*LIBRARIES, "PyTorch"]


def _rows(norm: str, shape: tuple[int, ...], dtype: str, rounds: int) -> list[tuple[str, ...]]:
    """A row for the forward pass and one for both."""
    several = list(candidates(norm, shape, dtype))
    check_alike(several, dtype)
    functions = {(c.library, "forward"): c.forward for c in several}
    functions |= {(c.library, "both"): c.both for c in several}
    times = interleaved(functions, rounds)
    rows = []
    for name, asked in (("forward", FORWARD), ("both", BOTH[norm])):
        own = {library: times[library, name] for library in _names()}
        ratios = (own["jaxnorm"] / own[peer] for peer in ("Flax Linen", "PyTorch"))
        shown = [f"{number:.2f}" for number in (asked, *ratios)]
        milliseconds = [f"{number:.1f}" for number in own.values()]
        rows.append((norm, "x".join(map(str, shape)), SHORT[dtype], name, *shown, *milliseconds))
    return rows
