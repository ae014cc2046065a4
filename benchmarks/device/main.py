"""The command: the most important cases first, until the minutes are over."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import jax

from benchmarks.compiled import cases
from benchmarks.device import measured
from benchmarks.device.measured import Record, first_line
from jaxnorm import kernels

OUTPUT = Path(__file__).parents[2] / "docs" / "devices"
PACKAGES = ("jax", "jaxlib", "flax", "torch", "tokamax", "numpy")
GUESSES = {"values": 10, "layer": 20, "step transformer": 40, "step resnet50": 120}  # seconds
MEANS = {"f32": (3.0, 1000.0), "bf16": (3.0,)}
IMAGES, ROWS = (32, 28, 28, 64), (1024, 4096)  # of values, which NumPy computes too
SMALL_NETWORKS: dict[str, Any] = {
    "transformer": {"shape": (2, 16, 64), "layers": 1},
    "resnet50": {"shape": (2, 32, 32, 3), "blocks": (1, 1, 1, 1)},
}
GRADIENTS = ("y", "dx", "dscale", "dbias")
COMPARED = ("jaxnorm", "Flax", "torch.compile", "tokamax", "copy")
STEP_CELLS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "ms": ("ms", "{:.1f}".format),
    "loss": ("loss", "{:.4g}".format),
    "program GB": ("memory", lambda count: f"{count / 1e9:.2f}"),
    "peak GB": ("peak", lambda count: f"{count / 1e9:.2f}"),
}


class Item(NamedTuple):
    """A case to measure."""

    part: str
    name: str
    measure: Callable[[], Record]


def items(small: bool) -> Iterator[Item]:
    """Every case, the most important first."""
    rounds = 3 if small else 10

    def values() -> Iterator[Item]:
        for (dtype, means), norm in product(MEANS.items(), cases.SHAPES):
            shape = ROWS if norm in ("layer", "rms") else IMAGES
            for mean in means:
                measure = partial(measured.values, norm, _sized(shape, small), dtype, mean)
                yield Item("values", f"{norm} {dtype} mean {mean:g}", measure)

    def layers(which: slice) -> Iterator[Item]:
        for norm, shapes in cases.SHAPES.items():
            for shape, dtype in product(shapes[which], cases.DTYPES):
                own = _sized(shape, small)
                measure = partial(measured.layer, norm, own, dtype, rounds)
                yield Item("layer", f"{norm} {_size(own)} {dtype}", measure)

    def step(network: str, dtype: str) -> Item:
        sizes = SMALL_NETWORKS[network] if small else {}
        measure = partial(measured.step, network, dtype, rounds, **sizes)
        return Item(f"step {network}", dtype, measure)

    yield from values()
    yield step("transformer", "bf16")
    yield from layers(slice(1))
    yield step("resnet50", "bf16")
    yield step("transformer", "f32")
    yield step("resnet50", "f32")
    yield from layers(slice(1, None))


def _sized(shape: cases.Shape, small: bool) -> cases.Shape:
    """The shape, or one that is small enough for a CPU."""
    n, *sides, channels = shape
    if not small:
        return shape
    return (16, *(side // 8 for side in sides), channels) if sides else (n // 64, channels // 4)


def _size(shape: cases.Shape) -> str:
    return "x".join(map(str, shape))


def main(given: list[str]) -> None:
    """Measure what fits into the minutes, write after every case, and print the tables."""
    begin, expected = perf_counter(), dict(GUESSES)
    parser = argparse.ArgumentParser(prog="python -m benchmarks device", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="what does not fit is skipped")
    parser.add_argument("--small", action="store_true", help="small shapes, as a trial on a CPU")
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", OUTPUT)))
    arguments = parser.parse_args(given)
    report = begun(arguments.minutes)
    path = arguments.output / re.sub(r"[^a-z0-9]+", "-", report["device"].lower()).strip("-")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for item in items(arguments.small):
        started = perf_counter() - begin
        if started + expected[item.part] > 60 * arguments.minutes:
            report["skipped"].append(f"{item.part} {item.name}")
            continue
        try:
            record = item.measure()
        except Exception as error:
            record = {"errors": {"all": first_line(error)}}
        report["seconds"] = perf_counter() - begin
        expected[item.part] = taken = report["seconds"] - started
        report["cases"].append({"part": item.part, "name": item.name, "seconds": taken, **record})
        print(f"{item.part} {item.name}: {taken:.1f} s", flush=True)
        _write(report, path)
    _write(report, path)
    print(f"\n{page(report)}\nWritten: {path}.json, {path}.md")


def _write(report: Record, path: Path) -> None:
    """Write the report as JSON, and its tables as Markdown."""
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(report))


def begun(minutes: float) -> Record:
    """A report of the device and the versions, without cases."""
    versions = {"python": platform.python_version()}
    for package in filter(find_spec, PACKAGES):
        versions[package] = version(package)
    device = jax.devices()[0].device_kind
    about = {"device": device, "versions": versions, "kernels": kernels.status()}
    return about | {"minutes": minutes, "seconds": 0.0, "skipped": [], "cases": []}


# Tables


def page(report: Record) -> str:
    """The report as Markdown, with columns of equal width so that it reads as plain text too."""
    versions = ", ".join(" ".join(pair) for pair in report["versions"].items())
    failed = [
        f"{case['part']} {case['name']}, {what}: {error}"
        for case in report["cases"]
        for what, error in case.get("errors", {}).items()
    ]
    parts = [
        f"# {report['device']}",
        f"Measured in {report['seconds']:.0f} s with {versions}; {report['kernels']}.",
        "Values: the largest error over the largest value, jaxnorm / Flax, against NumPy in "
        "float64.",
        _table(("norm", "input", "dtype", "mean", *GRADIENTS), _values(report)),
        "Layers: milliseconds (GB/s: the fewest bytes to move, over the time), medians of "
        "interleaved timings, each of several calls. They include the dispatch, which bounds "
        "small inputs: the copy of the input shows it.",
        _table(("norm", "input", "dtype", "pass", *COMPARED), _layers(report)),
        "Training steps: jaxnorm / Flax. The memory of the program is its arguments, results and "
        "temporary arrays; the peak is the process's, where the step has raised it.",
        _table(("network", "dtype", *STEP_CELLS), _steps(report)),
        f"Failed: {'; '.join(failed) or 'nothing'}.",
        f"Skipped: {', '.join(report['skipped']) or 'nothing'}.",
    ]
    return "\n\n".join(parts) + "\n"


def _of(report: Record, part: str, key: str) -> Iterator[Record]:
    """The cases of a part that did not fail as a whole."""
    return (case for case in report["cases"] if case["part"].startswith(part) and key in case)


def _values(report: Record) -> Iterator[list[str]]:
    for case in _of(report, "values", "error"):
        found = case["error"].values()
        cells = [" / ".join(f"{e[name]:.0e}" for e in found if name in e) for name in GRADIENTS]
        yield [case["norm"], _size(case["shape"]), case["dtype"], f"{case['mean']:g}", *cells]


def _layers(report: Record) -> Iterator[list[str]]:
    for case, which in product(_of(report, "layer", "times"), cases.PASSES):
        found = [case["times"].get(library, {}).get(which) for library in COMPARED]
        cells = [f"{cell['ms']:.3f} ({cell['GB/s']:,.0f})" if cell else "-" for cell in found]
        yield [case["norm"], _size(case["shape"]), case["dtype"], which, *cells]


def _steps(report: Record) -> Iterator[list[str]]:
    for case in _of(report, "step", "ms"):
        cells = [
            " / ".join(
                "-" if case[key][name] is None else form(case[key][name]) for name in case["ms"]
            )
            for key, form in STEP_CELLS.values()
        ]
        yield [case["network"], case["dtype"], *cells]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, *rows]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
