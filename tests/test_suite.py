"""What the suite does with itself: no test is of the library."""

import os
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


@pytest.fixture
def run(tmp_path):
    """Run the tests of two files with the options of this suite."""
    for name in "ab":
        (tmp_path / f"test_{name}.py").write_text(FILE)

    def suite(*options):
        common = ("--import-mode=importlib", "-p", "conftest", f"--rootdir={tmp_path}")
        return subprocess.run(
            [sys.executable, "-m", "pytest", *common, *options, str(tmp_path)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    return suite


@pytest.mark.long
def test_programs_are_dropped_between_files(run):
    ended = run()
    assert ended.returncode == 0, ended.stdout
