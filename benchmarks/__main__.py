"""Run benchmark parts, print their tables, and put them into the README.

python -m benchmarks precision
"""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import version

from benchmarks import precision
from benchmarks.table import publish

PARTS = {"precision": precision.measure}
PACKAGES = ("jax", "flax", "dm-haiku", "equinox", "keras", "torch")


def environment() -> str:
    """Versions, device and threads."""
    import jax

    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    device = jax.devices()[0].device_kind
    return f"Measured with Python {platform.python_version()}, {versions}; {device}, " + (
        f"{os.cpu_count()} cores."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all")
    parts = parser.parse_args().parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    for part in parts:
        table = PARTS[part]()
        table.show()
        publish(part, f"{table.markdown()} {environment()}")


if __name__ == "__main__":
    main()
