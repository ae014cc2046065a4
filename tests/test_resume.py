"""A run that is killed goes on where it was, and ends with the same bits."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from environment import SEED
from runs_of import ROOT
from waiting import PATIENCE

RUN = (
    "model=mlp",
    "model.hidden=[32,32]",
    "model.dropout=0.1",
    "norm=batch_renorm",
    "data.classes_per_batch=5",
    "optimizer=adamw",
    "seeds=2",
    "steps=2000",
    "evaluate_every=200",
    "checkpoint_every=50",
)


def start(output, *overrides):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *RUN, *overrides, f"output={output}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def checkpoints(output):
    """Every checkpoint, and what is being written of one."""
    return {str(path) for path in Path(output).glob("*/seed-*/checkpoints/*")}


def parameters(output):
    results = [json.loads(path.read_text()) for path in Path(output).glob("*/seed-*/result.json")]
    return {result["seed"]: result["parameters"] for result in results}


def killed_after(process, output, delay):
    """Wait for the fourth new checkpoint and a little more, and kill; say whether it still ran.

    A name is there from when writing begins; another, when it is written.
    """
    before, end = checkpoints(output), time.monotonic() + PATIENCE
    seen = set(before)
    while process.poll() is None and len(checkpoints(output) | seen) < len(before) + 7:
        assert time.monotonic() < end
        seen |= checkpoints(output)
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    return process.wait() != 0


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=PATIENCE) == 0
    draws, killed = random.Random(SEED), tmp_path / "killed"
    # While it is saved (which takes some 30 ms), right after, and later.
    delays = [*(draws.uniform(0, 0.03) for _ in range(2)), draws.uniform(0, 0.5)]
    kills = sum(killed_after(start(killed), killed, delay) for delay in delays)
    assert kills >= 2
    last = start(killed)
    assert last.wait(timeout=PATIENCE) == 0
    assert len(parameters(killed)) == 2
    assert parameters(killed) == parameters(tmp_path / "whole")
    [log] = killed.glob("*/log.txt")
    begins = [line for line in log.read_text().splitlines() if "begins at step" in line]
    assert any("begins at step 0 " not in line for line in begins)
    for path in killed.glob("*/seed-*/history.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == list(range(200, 2001, 200)), "none twice, none missing"
