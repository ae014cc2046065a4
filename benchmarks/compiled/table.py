"""The counts as tables."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.compiled import LIBRARIES, PLATFORMS
from benchmarks.table import Table

Counts = dict[str, Any]
Cell = Callable[[Counts], str]
CELLS: dict[str, Cell] = {
    "streams": lambda counts: f"{counts['streams']:g}",
    "kernels": lambda counts: str(counts["kernels"]),
    "thousand cycles": lambda counts: f"{counts['cycles'] / 1e3:,.0f}",
    "temporary MB": lambda counts: f"{counts['temporary'] / 1e6:.1f}",
    "collectives": lambda counts: _collectives(counts["collectives"]),
}


def tables(counts: dict[str, Counts]) -> list[Table]:
    """Whole training steps; then layers on one device of each kind, and on eight."""
    return [
        _steps(counts),
        _layers(counts, "gpu", ("one",), ("streams", "bytes", "kernels", "temporary MB")),
        _layers(counts, "tpu", ("one",), ("streams", "thousand cycles", "kernels", "temporary MB")),
        _layers(counts, "gpu", ("jit", "shard_map"), ("streams", "kernels", "collectives")),
        _layers(counts, "tpu", ("jit", "shard_map"), ("streams", "thousand cycles", "collectives")),
    ]


def _layers(
    counts: dict[str, Counts], platform: str, ways: tuple[str, ...], shown: tuple[str, ...]
) -> Table:
    """A row for each program, ours beside Flax's."""
    rows: dict[tuple[str, ...], dict[str, Counts]] = {}
    for name, found in counts.items():
        on, *setting, library = name.split()
        if on == platform and len(setting) == 6 and setting[4] in ways:
            rows.setdefault(tuple(setting), {})[library] = found
    several = len(ways) > 1
    device = f"eight {PLATFORMS[platform]}s" if several else f"one {PLATFORMS[platform]}"
    return Table(
        title=f"Layers on {device}",
        columns=("norm", "input", "dtype", "way" if several else "mask", "pass", *shown),
        rows=[
            [
                norm,
                size,
                dtype,
                way if several else {"masked": "yes", "whole": "no"}[masked],
                which,
                *(_beside(CELLS.get(cell, _bytes(size, dtype)), both) for cell in shown),
            ]
            for (norm, size, dtype, masked, way, which), both in rows.items()
        ],
        notes="A cell is jaxnorm's count / Flax's.",
        heading="###",
    )


def _bytes(size: str, dtype: str) -> Cell:
    """The bytes accessed, over the input's bytes."""
    nbytes = prod(map(int, size.split("x"))) * {"f32": 4, "bf16": 2}[dtype]
    return lambda counts: f"{counts['accessed'] / nbytes:.2f}"


def _steps(counts: dict[str, Counts]) -> Table:
    """A row for each network, dtype and kind of device."""
    rows: dict[tuple[str, ...], dict[str, Counts]] = {}
    for name, found in counts.items():
        platform, kind, *setting = name.split()
        if kind == "step":
            network, dtype, library = setting
            rows.setdefault((network, dtype, platform), {})[library] = found
    cells: list[Cell] = [
        lambda counts: f"{counts['moved'] / 1e9:.2f}",
        CELLS["kernels"],
        CELLS["temporary MB"],
        lambda counts: f"{counts['cycles'] / 1e6:,.1f}" if counts["cycles"] else "",
    ]
    return Table(
        title="Training steps",
        columns=("network", "dtype", "device", "GB", "kernels", "temporary MB", "million cycles"),
        rows=[
            [network, dtype, PLATFORMS[platform], *(_beside(cell, both) for cell in cells)]
            for (network, dtype, platform), both in rows.items()
        ],
        notes=(
            "On one device. A cell is jaxnorm's count / Flax's, here and below. All programs were "
            f"compiled with {_versions()}."
        ),
        heading="###",
    )


def _versions() -> str:
    """The versions of the packages that the counts depend on."""
    lines = Path(__file__).with_name("requirements.txt").read_text().splitlines()
    packages = [line.replace("==", " ") for line in lines if "==" in line]
    return ", ".join(p for p in packages if p.split()[0] in ("jax", "flax", "libtpu"))


def _beside(cell: Cell, both: dict[str, Counts]) -> str:
    """Ours, and Flax's where it has the layer."""
    shown = [cell(both[library]) for library in LIBRARIES if library in both]
    return " / ".join(shown) if any(shown) else "-"


def _collectives(found: dict[str, list[int]]) -> str:
    """Such as "2 all-reduce, 0.8 kB"."""
    names = " + ".join(f"{len(sizes)} {kind}" for kind, sizes in found.items())
    return f"{names}, {sum(map(sum, found.values())) / 1e3:.1f} kB" if found else "none"
