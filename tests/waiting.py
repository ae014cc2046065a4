"""Waiting for other processes, on a machine of any speed and load."""

import time

PATIENCE = 900  # seconds: what takes longer hangs


def until(condition, what):
    """Wait until a condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"no {what} within {PATIENCE} s"
        time.sleep(0.02)
