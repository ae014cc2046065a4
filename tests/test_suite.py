"""What the suite does with itself: no test is of the library."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import PATIENCE

TESTS = Path(__file__).parent
FILE = """
import jax
import numpy as np
from compiled import programs

double = jax.jit(lambda x: 2 * x)


def test_double():
    assert programs() == 0
    assert double(np.ones(3)).sum() == 6
    assert programs() > 0
"""
MANY = """
import conftest
import jax
import numpy as np
from compiled import programs


def test_few():
    assert jax.jit(lambda x: 2 * x)(np.ones(3)).sum() == 6


def test_many():
    assert programs() > 0
    conftest.MOST_HELD = 0


def test_none():
    assert programs() == 0
"""


@pytest.fixture
def run(tmp_path):
    """Run the tests of three files with the options of this suite."""
    for name, text in {"a": FILE, "b": FILE, "c": MANY}.items():
        (tmp_path / f"test_{name}.py").write_text(text)

    def suite(*options):
        common = ("--import-mode=importlib", "-p", "conftest", f"--rootdir={tmp_path}")
        return subprocess.run(
            [sys.executable, "-m", "pytest", *common, *options, str(tmp_path)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "PYTEST_ADDOPTS": ""},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    return suite


@pytest.mark.long
def test_programs_are_dropped_and_counted_and_too_many_are_a_failure(run):
    """In one process they are dropped between files; the workers' are counted together."""
    allowed = run("--most-programs=100")
    assert allowed.returncode == 0, allowed.stdout
    [made] = re.findall(r"^(\d+) programs were compiled, of at most 100$", allowed.stdout, re.M)
    ended = run(f"--most-programs={int(made) - 1}", "--numprocesses=2", "--dist=loadfile")
    assert ended.returncode == 1
    assert "5 passed" in ended.stdout
    assert f"{made} programs were compiled, of at most {int(made) - 1}" in ended.stdout
