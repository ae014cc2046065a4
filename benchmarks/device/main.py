"""The command: what is most asked of a device first, until the minutes are over."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
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


class Item(NamedTuple):
    """What is measured in one go."""

    part: str
    name: str
    measure: Callable[[], Record]


def items(small: bool) -> Iterator[Item]:
    """All, the most important first."""
    rounds = 3 if small else 10
    for dtype, means in MEANS.items():
        for norm in cases.SHAPES:
            shape = ROWS if norm in ("layer", "rms") else IMAGES
            shape = _small(shape) if small else shape
            for mean in means:
                yield Item(
                    "values",
                    f"{norm} {dtype} mean {mean:g}",
                    partial(measured.values, norm, shape, dtype, mean),
                )
    yield _step("transformer", "bf16", rounds, small)
    yield from _layers(0, rounds, small)
    yield _step("resnet50", "bf16", rounds, small)
    yield _step("transformer", "f32", rounds, small)
    yield from _layers(1, rounds, small)
    yield _step("resnet50", "f32", rounds, small)


def _small(shape: cases.Shape) -> cases.Shape:
    n, *sides, channels = shape
    return (16, *(side // 8 for side in sides), channels) if sides else (n // 64, channels // 4)


def _step(network: str, dtype: str, rounds: int, small: bool) -> Item:
    sizes = SMALL_NETWORKS[network] if small else {}
    measure = partial(measured.step, network, dtype, rounds, **sizes)
    return Item(f"step {network}", dtype, measure)


def _layers(first: int, rounds: int, small: bool) -> Iterator[Item]:
    """The first shape of every norm beside all libraries, or the others beside Flax only."""
    for norm, shapes in cases.SHAPES.items():
        for shape in shapes[first : 1 if first == 0 else None]:
            shape = _small(shape) if small else shape
            for dtype in cases.DTYPES:
                name = f"{norm} {_size(shape)} {dtype}"
                measure = partial(measured.layer, norm, shape, dtype, rounds, first == 0)
                yield Item("layer", name, measure)


def main(given: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks device", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="what does not fit is skipped")
    parser.add_argument("--small", action="store_true", help="small shapes, as a trial on a CPU")
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", OUTPUT)))
    arguments = parser.parse_args(given)
    begin, longest = perf_counter(), dict(GUESSES)
    report = begun(arguments.minutes)
    path = arguments.output / re.sub(r"[^a-z0-9]+", "-", report["device"].lower()).strip("-")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for item in items(arguments.small):
        started = perf_counter() - begin
        if started + longest[item.part] > 60 * arguments.minutes:
            report["skipped"].append(f"{item.part} {item.name}")
            continue
        try:
            record = item.measure()
        except Exception as error:
            record = {"errors": {"all": first_line(error)}}
        taken = perf_counter() - begin - started
        seen = [case["seconds"] for case in report["cases"] if case["part"] == item.part]
        longest[item.part] = max([taken, *seen])
        print(f"{item.part} {item.name}: {taken:.1f} s", flush=True)
        named = {"part": item.part, "name": item.name, "seconds": taken}
        report["cases"].append(named | record)
        report["seconds"] = perf_counter() - begin
        _write(report, path)
    _write(report, path)
    tables = list(shown(report))
    for title, rows in tables:
        print(f"\n{title}\n{plain(rows)}")
    print(f"\n{notes(report)}\nWritten: {path}.json, {path}.md")


def _write(report: Record, path: Path) -> None:
    """After every case, so that little is lost where the device is taken away."""
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report, list(shown(report))))


def begun(minutes: float) -> Record:
    """The device and the versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = ""
    device = jax.devices()[0].device_kind
    about = {"device": device, "versions": versions, "kernels": kernels.status()}
    return about | {"minutes": minutes, "seconds": 0.0, "skipped": [], "cases": []}


# Tables


def shown(report: Record) -> Iterator[tuple[str, list[list[str]]]]:
    """Titles and rows, the first of them the columns."""
    parts = {"values": [], "layer": [], "step": []}
    for case in report["cases"]:
        parts[case["part"].split()[0]].append(case)
    names = ("y", "dx", "dscale", "dbias")
    rows = [["norm", "input", "dtype", "mean", *names]]
    for case in _whole(parts["values"], "error"):
        start = [case["norm"], _size(case["shape"]), case["dtype"], f"{case['mean']:g}"]
        errors = case["error"].values()
        cells = [" / ".join(f"{e[name]:.0e}" for e in errors if name in e) for name in names]
        rows.append([*start, *(cell or "-" for cell in cells)])
    yield "Largest error / largest value: jaxnorm / Flax, against NumPy in float64", rows
    libraries = ("jaxnorm", "Flax", "torch.compile", "tokamax", "copy")
    rows = [["norm", "input", "dtype", "pass", *libraries]]
    for case in _whole(parts["layer"], "times"):
        for which in cases.PASSES:
            found = [case["times"].get(library, {}).get(which) for library in libraries]
            cells = [f"{f['ms']:.3f} ({f['GB/s']:,.0f})" if f else "-" for f in found]
            rows.append([case["norm"], _size(case["shape"]), case["dtype"], which, *cells])
    yield "Layers: milliseconds (GB/s: bytes of the floor over the time)", rows
    rows = [["network", "dtype", "ms", "loss", "program GB", "peak GB"]]
    for case in _whole(parts["step"], "ms"):
        cells = [
            " / ".join(form(case[key][library]) for library in case["ms"])
            for key, form in {
                "ms": "{:.1f}".format,
                "loss": "{:.4g}".format,
                "memory": _gigabytes,
                "peak": _gigabytes,
            }.items()
        ]
        rows.append([case["network"], case["dtype"], *cells])
    yield "Training steps: jaxnorm / Flax", rows


def _whole(records: list[Record], key: str) -> list[Record]:
    return [record for record in records if key in record]


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _gigabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e9:.2f}"


def plain(rows: list[list[str]]) -> str:
    """Columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def markdown(report: Record, tables: list[tuple[str, list[list[str]]]]) -> str:
    """The page."""
    parts = [f"# {report['device']}", notes(report)]
    for title, (columns, *rows) in tables:
        lines = [columns, ["---"] * len(columns), *rows]
        parts += [f"{title}.", "\n".join("| " + " | ".join(line) + " |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def notes(report: Record) -> str:
    """How it was measured, what failed and what was skipped."""
    versions = ", ".join(
        f"{name} {number}" for name, number in report["versions"].items() if number
    )
    failed = [
        f"{case['part']} {case['name']}, {what}: {error}"
        for case in report["cases"]
        for what, error in case.get("errors", {}).items()
    ]
    return "\n\n".join(
        [
            f"Measured in {report['seconds']:.0f} s on {report['device']} with {versions}; "
            f"{report['kernels']}.",
            "Times are medians of interleaved timings, each of several calls, and include the "
            "dispatch, which bounds small inputs; the copy of the input shows it. The memory of a "
            "program is its arguments, results and temporary arrays; the peak is the process's, "
            "where the step has raised it.",
            f"Failed: {'; '.join(failed) or 'nothing'}.",
            f"Skipped: {', '.join(report['skipped']) or 'nothing'}.",
        ]
    )
