"""Run benchmark parts, print their tables, and put them into docs/.

python -m benchmarks            # all parts but compiled, and the figure, one size per norm
python -m benchmarks precision  # one part
python -m benchmarks compiled   # counts for accelerators, by compilers that make bench installs
python -m benchmarks --full     # more sizes and rounds
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib import import_module
from importlib.metadata import version

# Large arrays that are mapped and unmapped at every call cost more than the work, so the C library
# is told to keep what it has. It reads this when the process starts.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "OMP_WAIT_POLICY": "PASSIVE",  # PyTorch's threads leave the cores to the next candidate
}
PARTS = ("speed", "sweep", "resnet", "fold", "memory", "precision", "collectives", "scaling")
BY_NAME = ("compiled",)  # in an environment of its own; no machine changes its counts
MODULES = {"compiled": "benchmarks.compiled.part"}
UNTIMED = ("scaling", *BY_NAME)
PACKAGES = ("jax", "flax", "dm-haiku", "equinox", "keras", "torch")


def environment() -> str:
    """Versions, device and threads."""
    import jax
    import torch

    from jaxnorm.kernels.library import library

    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    device = jax.devices()[0].device_kind
    return (
        f"Measured with Python {platform.python_version()}, {versions}; {device}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {_kernels(*library())}."
    )


def _kernels(loaded: bool, reason: str) -> str:
    """Which form ran, and on which instructions; not the path that stands behind them."""
    return f"native kernels ({reason.split(',')[0]})" if loaded else "the plain form"


def run(parts: list[str], full: bool) -> None:
    """Measure the parts, show and publish them, and draw the figure if all are there."""
    from benchmarks.table import publish

    measured = {}
    for part in parts:
        tables = import_module(MODULES.get(part, f"benchmarks.{part}")).measure(full)
        for table in tables:
            table.show()
        text = "\n\n".join(table.markdown() for table in tables)
        publish(part, text if part in UNTIMED else f"{text} {environment()}")
        measured |= {table.title: table for table in tables}
    if set(parts) == set(PARTS):
        from benchmarks import figure

        figure.save(figure.draw(measured))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="part", help=f"of {', '.join((*PARTS, *BY_NAME))}"
    )
    parser.add_argument("--full", action="store_true", help="more sizes and rounds; long")
    arguments = parser.parse_args()
    parts = arguments.parts or list(PARTS)
    if unknown := [part for part in parts if part not in (*PARTS, *BY_NAME)]:
        parser.error(
            f"there is no part {unknown[0]!r}; the parts are {', '.join((*PARTS, *BY_NAME))}"
        )
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        command = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | ALLOCATOR)
    run(parts, arguments.full)


if __name__ == "__main__":
    main()
