"""Run benchmarks, print their tables, and write them into docs/.

python -m benchmarks            # all benchmarks except compiled, and the figure; one size of each
python -m benchmarks precision  # one benchmark
python -m benchmarks compiled   # counts for accelerators, by compilers that make bench installs
python -m benchmarks device     # values, times and steps on this device, in eight minutes
python -m benchmarks --full     # more sizes and rounds
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib import import_module
from importlib.metadata import version

# Mapping and unmapping large arrays in every call takes longer than the work itself. These settings
# make the C library keep its memory. It reads them when the process starts.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "OMP_WAIT_POLICY": "PASSIVE",  # idle threads of PyTorch do not block the next candidate
}
BENCHMARKS = ("speed", "sweep", "models", "memory", "precision", "collectives", "scaling")
ON_REQUEST = ("compiled",)  # has its own environment, and is the same on every machine
MODULES = {"compiled": "benchmarks.compiled.part"}
OWN = "device"  # what a device at hand does: it has arguments of its own and needs no peers
UNMEASURED = ("collectives", "scaling", *ON_REQUEST)
UNTIMED = ("precision",)  # the number of cores does not change it
PACKAGES = ("jax", "flax", "dm-haiku", "equinox", "keras", "torch")


def environment(*, timed: bool = True) -> str:
    """Return the versions, the device and, for times, the number of cores and threads."""
    import jax
    import torch

    from jaxnorm.kernels.library import library

    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    device = jax.devices()[0].device_kind
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, " if timed else ""
    return (
        f"Measured with Python {platform.python_version()}, {versions}; {device}, "
        f"{cores}{_kernels(*library())}."
    )


def _kernels(loaded: bool, reason: str) -> str:
    """Return which form ran and its instruction set, without the path of the library."""
    return f"native kernels ({reason.split(',')[0]})" if loaded else "the plain form"


def run(names: list[str], full: bool) -> None:
    """Run the benchmarks, print and publish their tables, and draw the figure if all were run."""
    from benchmarks.table import publish

    measured, everything = {}, set(names) == set(BENCHMARKS)
    if everything:
        publish("environment", environment())
    for name in names:
        tables = import_module(MODULES.get(name, f"benchmarks.{name}")).measure(full)
        for table in tables:
            table.show()
        text = "\n\n".join(table.markdown() for table in tables)
        publish(name, text, "" if name in UNMEASURED else environment(timed=name not in UNTIMED))
        measured |= {table.title: table for table in tables}
    if everything:
        from benchmarks import figure

        figure.save(figure.draw(measured))


def main() -> None:
    if sys.argv[1:2] == [OWN]:
        return import_module("benchmarks.device.main").main(sys.argv[2:])
    every = (*BENCHMARKS, *ON_REQUEST)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="benchmark",
        help=f"any of {', '.join(every)}; by default all except {', '.join(ON_REQUEST)}",
    )
    parser.add_argument("--full", action="store_true", help="measure more sizes and rounds; slow")
    arguments = parser.parse_args()
    names = arguments.names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in every]:
        parser.error(f"there is no benchmark {unknown[0]!r}; the benchmarks are {', '.join(every)}")
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        command = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | ALLOCATOR)
    run(names, arguments.full)


if __name__ == "__main__":
    main()
