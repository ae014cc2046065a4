"""docs/layout.md's example: a normalization is added in seven files, and held to what all are."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import PATIENCE

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "layout.md").read_text()
STEP = re.compile(r"^\d\. (.*?)(?=^\d\. |\Z)", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"`[^`]*?([\w/]+\.(?:py|md|txt))`")
BLOCK = re.compile(r"^```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHARED = (
    *("collectives", "compositions", "debugging", "distributed", "errors", "export", "gradients"),
    *("imports", "linen", "masks", "modules", "narrow", "nnx", "nnx_transforms", "options"),
    *("public_api", "recompute", "running", "sharded", "standardize", "traced", "typed"),
)


def steps():
    """Give the files of the example, and what goes into each, None where there is no block."""
    section = PAGE.partition("## How to add a normalization")[2]
    found = [step[1] for step in STEP.finditer(section)]
    return {
        FILE.search(step)[1]: block[1] if (block := BLOCK.search(step)) else None for step in found
    }


def add(path, text):
    """Put a block at the end of a file, and its public names into the list at the top."""
    old = path.read_text() if path.exists() else ""
    names = [node.name for node in ast.parse(text).body] if path.suffix == ".py" else []
    if "\n__all__ = [" in old:
        listed = re.search(r"^__all__ = (\[.*?\])", old, re.DOTALL | re.MULTILINE)[1]
        every = ", ".join(f'"{name}"' for name in sorted([*ast.literal_eval(listed), *names]))
        old = old.replace(f"__all__ = {listed}", f"__all__ = [{every}]")
    path.write_text(f"{old}\n\n{text}" if old else text)


def test_the_example_takes_seven_files_of_which_three_are_code():
    assert len(steps()) == 7
    assert len([file for file in steps() if file.startswith("jaxnorm/")]) == 3
    assert all((ROOT / file).exists() for file in steps() if "power" not in file)


@pytest.mark.slow
def test_the_example_passes_the_shared_tests(tmp_path):
    copy = tmp_path / "jaxnorm"
    leave_out = shutil.ignore_patterns(".*", "_build", "__pycache__", "runs")
    shutil.copytree(ROOT, copy, ignore=leave_out)
    for file, text in steps().items():
        if text is not None:
            add(copy / file, text)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    places = os.pathsep.join(map(str, [copy, copy / "tests", *packages]))
    environment = {**os.environ, "PYTHONPATH": places}

    def run(*command):
        """Run a command of Python without an editable install, which would come first."""
        return subprocess.run(
            [sys.executable, "-S", *command],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    api = run("tests/public_api.py")
    assert "jaxnorm.power_norm" in api.stdout, api.stderr
    assert "jaxnorm.linen.PowerNorm: variables" in api.stdout
    (copy / "tests" / "public_api.txt").write_text(api.stdout)
    files = [f"tests/test_{name}.py" for name in SHARED]
    chosen = ("-k", "power or Power or imports or public_api or typed", "-m", "not slow")
    tests = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, "jaxnorm", *files)
    assert tests.returncode == 0, tests.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", tests.stdout)[1]) > 150, tests.stdout[-500:]
