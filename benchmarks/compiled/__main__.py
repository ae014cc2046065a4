"""Compile and count everything, and keep the counts in counts.json.

python -m benchmarks.compiled              # all but what takes long
python -m benchmarks.compiled gpu layer    # what has these words in its name; the others stay
python -m benchmarks.compiled --full       # the steps that compile for a quarter of an hour too
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.compiled import PLATFORMS, cases, steps
from benchmarks.compiled.devices import counts
from benchmarks.compiled.kept import keep, kept

LONG = "tpu step resnet50"


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("words", nargs="*", help="of the names of what is counted; all")
    parser.add_argument("--full", action="store_true", help="what takes long too")
    arguments = parser.parse_args()
    programs, found = dict(everything()), kept()
    for name, count in programs.items():
        if (arguments.full or LONG not in name) and set(arguments.words) <= set(name.split()):
            begin = time.perf_counter()
            found[name] = count()
            print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
            keep({name: found[name] for name in programs if name in found})


if __name__ == "__main__":
    main()
