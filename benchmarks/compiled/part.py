"""The part of `make bench`: count in an environment of its own, and show the counts."""

from __future__ import annotations

import subprocess

from benchmarks import figure
from benchmarks.compiled.kept import kept
from benchmarks.compiled.picture import draw
from benchmarks.compiled.table import tables
from benchmarks.table import ROOT, Table

PYTHON = ROOT / ".venv-3.13-compiled" / "bin" / "python"  # the Makefile makes it
PICTURE = ROOT / "docs" / "compiled.png"


def measure(full: bool) -> list[Table]:
    """Count everything anew, draw the picture, and give the tables."""
    options = ["--full"] if full else []
    subprocess.run([PYTHON, "-m", "benchmarks.compiled", *options], cwd=ROOT, check=True)
    counts = kept()
    figure.save(draw(counts), PICTURE)
    return tables(counts)
