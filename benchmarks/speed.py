"""Forward, and forward and backward, of every library, interleaved in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.candidates import PLAIN, candidates, check_alike
from benchmarks.peers import EVALUATION, LIBRARIES
from benchmarks.table import SHORT, Table

IMAGES, FEATURES, TOKENS = (32, 56, 56, 64), (8192, 1024), (4096, 1024)
SAMPLES = (16, 56, 56, 64)
CASES = [
    ("batch", IMAGES),
    ("batch", FEATURES),
    ("layer", TOKENS),
    ("rms", TOKENS),
    ("group", SAMPLES),
    ("instance", SAMPLES),
    (EVALUATION, IMAGES),
]
MORE_CASES = [  # of a ResNet-50's stages, and of a transformer
    (norm, shape)
    for norm in ("batch", "group", "instance")
    for shape in ((32, 56, 56, 256), (32, 28, 28, 512), (32, 7, 7, 2048))
] + [(norm, shape) for norm in ("layer", "rms") for shape in ((512, 256), (8192, 4096))]
# At most: forward over Flax, both over Flax, both over PyTorch.
ASKED = {
    "batch": (0.9, 0.5, 0.7),
    "layer": (0.7, 0.3, 0.8),
    "rms": (0.7, 0.25, 0.3),
    "group": (0.15, 0.3, 0.9),
    "instance": (0.9, 0.6, 0.7),
    EVALUATION: (1.0, 1.0, 1.0),
}
ASKED_IN_HALF = (0.9, 0.5, 1.0)
ROUNDS = 15
FLOOR = "floor"
LIBRARIES_SHOWN = ["jaxnorm", PLAIN, *(name for name in LIBRARIES if name != "jaxnorm"), "PyTorch"]


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


def plus_one(shape: tuple[int, ...], dtype: str) -> Callable[[], Any]:
    """x + 1: what reading and writing the input once costs."""
    x = jnp.zeros(shape, dtype)
    compiled = jax.jit(lambda x: x + 1).lower(x).compile()
    return lambda: jax.block_until_ready(compiled(x))


def asked(norm: str, dtype: str) -> tuple[float, float, float]:
    """The ratios that were asked for, in bfloat16 alike for all but evaluation."""
    return ASKED[norm] if dtype == "float32" or norm == EVALUATION else ASKED_IN_HALF


def measure(full: bool) -> list[Table]:
    """Medians of every library, and jaxnorm's ratios."""
    rows = []
    for norm, shape in [*CASES, *(MORE_CASES if full else [])]:
        for dtype in ("float32", "bfloat16"):
            rows += _rows(norm, shape, dtype, 2 * ROUNDS if full else ROUNDS)
    ratios = ("/ Flax", "asked", "/ PyTorch", "asked ", "/ floor", "/ plain form")
    return [
        Table(
            title="Speed",
            columns=(
                *("norm", "input", "dtype", "pass"),
                *ratios,
                *(f"{library} ms" for library in (*LIBRARIES_SHOWN, FLOOR)),
            ),
            rows=rows,
            notes=(
                "Median milliseconds of interleaved runs in one process, and jaxnorm's ratios to "
                "Flax Linen and PyTorch (asked: at most), to the traffic floor and to its own "
                "plain form. `both` gives the output, the new state and all gradients. The floor "
                "is x + 1 for the forward pass, and that plus three streams of the input's size "
                "for both. Equinox and PyTorch take channels first. Memory is never given back "
                "to the system, so that no run pays for mapping it."
            ),
        )
    ]


def _rows(norm: str, shape: tuple[int, ...], dtype: str, rounds: int) -> list[tuple[str, ...]]:
    """A row for the forward pass and one for both."""
    several = list(candidates(norm, shape, dtype))
    check_alike(several, dtype)
    functions: dict[Any, Callable[[], Any]] = {(FLOOR, "forward"): plus_one(shape, dtype)}
    functions |= {(c.library, "forward"): c.forward for c in several}
    functions |= {(c.library, "both"): c.both for c in several}
    times = interleaved(functions, rounds)
    times[FLOOR, "both"] = 2.5 * times[FLOOR, "forward"]  # five streams for two
    forward_flax, both_flax, both_torch = asked(norm, dtype)
    rows = []
    for name, of_flax, of_torch in (
        ("forward", f"{forward_flax:.2f}", "-"),
        ("both", f"{both_flax:.2f}", f"{both_torch:.2f}"),
    ):
        own = {library: times.get((library, name)) for library in (*LIBRARIES_SHOWN, FLOOR)}
        over = {
            peer: f"{times['jaxnorm', name] / times[peer, name]:.2f}"
            for peer in ("Flax Linen", "PyTorch", FLOOR, PLAIN)
        }
        milliseconds = ["-" if value is None else f"{value:.2f}" for value in own.values()]
        ratios = (over["Flax Linen"], of_flax, over["PyTorch"], of_torch, over[FLOOR], over[PLAIN])
        case = (norm, "x".join(map(str, shape)), SHORT[dtype], name)
        rows.append((*case, *ratios, *milliseconds))
    return rows
