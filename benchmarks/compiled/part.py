"""The part of `make bench`: compile and count everything, and show the counts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks import figure
from benchmarks.compiled import PLATFORMS, cases, steps
from benchmarks.compiled.devices import counts
from benchmarks.compiled.kept import keep, kept
from benchmarks.compiled.picture import draw
from benchmarks.compiled.table import tables
from benchmarks.table import ROOT, Table

PICTURE = ROOT / "docs" / "compiled.png"
LONG = "tpu step resnet50"


def measure(full: bool) -> list[Table]:
    """Count anew, keep the counts, draw the picture, and give the tables.

    With words in the variable CASES only what has all of them in its name is counted; the other
    counts stay as they are.
    """
    words = set(os.environ.get("CASES", "").split())
    programs, found = dict(everything()), kept()
    for name, count in programs.items():
        if (full or LONG not in name) and words <= set(name.split()):
            begin = time.perf_counter()
            found[name] = count()
            print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
            keep({name: found[name] for name in programs if name in found})
    figure.save(draw(kept()), PICTURE)
    return tables(kept())


def everything() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What can be counted, by name."""
    for platform in PLATFORMS:
        for case in cases.cases():
            yield f"{platform} {case}", partial(_counted, cases.program, platform, case)
    for platform in PLATFORMS:
        for step in steps.steps():
            yield f"{platform} {step}", partial(_counted, steps.program, platform, step)


def _counted(program: Callable[..., Any], platform: str, case: Any) -> dict[str, Any]:
    function, arguments = program(case, platform)
    return counts(platform, function, *arguments)
