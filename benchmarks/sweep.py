"""The native form compared with the plain one over sizes, and the effect of a second thread.

XLA fixes the number of threads when it starts. Therefore the native form with one thread and with
all threads is measured in two separate processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import product

import jax.numpy as jnp
import numpy as np

from benchmarks.forms import FORMS
from benchmarks.ours import NORMS, affine, normalization
from benchmarks.table import ROOT, Table
from benchmarks.timing import PASSES, interleaved, passes

SIZES = tuple(round(10 ** (half / 2)) for half in range(4, 17))  # 1e2 to 1e8 values
CHANNELS, POSITIONS, WIDTH = 64, 1024, 1024
VALUES = 5e7  # approximate number in all rounds of a size
ROUNDS = (3, 101)  # smallest and largest number

Ratios = dict[tuple[str, int, str], float]  # or milliseconds, by norm, size and pass


def shape_of(norm: str, values: int) -> tuple[int, ...]:
    """Return a shape with about `values` values: tokens for layer and RMS, else images."""
    if norm in ("layer", "rms"):
        width = min(values, WIDTH)
        return max(values // width, 1), width
    positions = max(round(values / CHANNELS), 2)
    examples = -(-positions // POSITIONS)  # rounded up
    return examples, positions // examples, CHANNELS


def times(norm: str, values: int, forms: Iterable[str]) -> dict[tuple[str, str], float]:
    """Return the median milliseconds of each form and pass, interleaved."""
    shape = shape_of(norm, values)
    array = np.random.default_rng(0).standard_normal(shape, np.float32)
    x, cotangent = jnp.asarray(array), jnp.asarray(array[::-1, ..., ::-1])
    functions = {}
    for name in forms:
        with FORMS[name]():
            called = passes(normalization(norm, shape[-1]), affine(norm, shape[-1]), x, cotangent)
        functions |= {(name, which): function for which, function in called.items()}
    least, most = ROUNDS
    return interleaved(functions, min(max(round(VALUES / values), least), most))


def measure(full: bool) -> list[Table]:
    """Return ratios for every norm over the sizes, or over half of them."""
    return tables(NORMS, SIZES if full else SIZES[::2])


def tables(norms: Sequence[str], sizes: Sequence[int]) -> list[Table]:
    """Return the ratios of native to plain form, and of one thread to all threads."""
    plain: Ratios = {}
    for norm, values in product(norms, sizes):
        found = times(norm, values, FORMS)
        for which in PASSES:
            plain[norm, values, which] = found["jaxnorm", which] / found["plain", which]
    one, every = (native(norms, sizes, threads) for threads in (1, os.cpu_count() or 1))
    norm, values, which = worst = max(plain, key=plain.__getitem__)
    return [
        _table(
            "The native form's time over the plain one's",
            plain,
            "Native over plain, float32, medians of interleaved calls. At worst "
            f"{plain[worst]:.2f} ({norm}, {which}, {values:,} elements). Layer and RMS have rows "
            f"of up to {WIDTH} elements, the others {CHANNELS} channels and up to {POSITIONS} "
            "positions.",
        ),
        _table(
            "The native form's time with one thread over that with all",
            {case: one[case] / every[case] for case in one},
            f"One thread over {os.cpu_count()}, native form, float32. Each was measured in a "
            "process of its own, one after the other.",
        ),
    ]


def native(norms: Sequence[str], sizes: Sequence[int], threads: int) -> Ratios:
    """Return the milliseconds of the native form from a process with `threads` threads."""
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.sweep", json.dumps([norms, sizes])],
        env=os.environ | {"NPROC": str(threads)},  # sets the number of threads of XLA
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    cases = product(norms, sizes, PASSES)
    return dict(zip(cases, json.loads(process.stdout), strict=True))


def _table(title: str, ratios: Ratios, notes: str) -> Table:
    """Return a table with a row for each size, and a column for each norm and pass."""
    columns = list(dict.fromkeys((norm, which) for norm, _, which in ratios))
    sizes = dict.fromkeys(values for _, values, _ in ratios)
    rows = [
        [f"{values:,}", *(f"{ratios[norm, values, which]:.2f}" for norm, which in columns)]
        for values in sizes
    ]
    return Table(title, ("elements", *(" ".join(column) for column in columns)), rows, notes)


def _print_native(norms: Sequence[str], sizes: Sequence[int]) -> None:
    """Print the milliseconds of every norm, size and pass, in this order."""
    found = (times(norm, values, ["jaxnorm"]) for norm, values in product(norms, sizes))
    print(json.dumps([each["jaxnorm", which] for each in found for which in PASSES]))


if __name__ == "__main__":
    _print_native(*json.loads(sys.argv[1]))
