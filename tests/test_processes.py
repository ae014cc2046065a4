"""Several processes over JAX's distributed runtime: what one device with the whole batch gives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import allowed, near
from process_worker import CHANNELS, MEAN, WAYS, batch
from test_distributed import in_float64
from waiting import PATIENCE

TESTS = Path(__file__).parent


def run_processes(processes, devices, directory):
    """Run the workers to their end, and end what is left of them; give what they wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(TESTS.parent),
    }
    command = [sys.executable, str(TESTS / "process_worker.py"), address, str(processes)]
    workers = [
        subprocess.Popen(
            [*command, str(index), str(directory)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]
    try:
        for worker in workers:
            output, _ = worker.communicate(timeout=PATIENCE)
            assert worker.returncode == 0, output
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stdout.close()


def merged_in_float64(x, where):
    """Give the mean and the variance of what counts."""
    values = x[where[:, 0]].astype(np.float64)
    return values.mean(0), values.var(0)


@pytest.mark.long
@pytest.mark.parametrize(
    ("processes", "devices"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.slow)]
)
def test_processes_give_what_one_device_gives(processes, devices, tmp_path):
    run_processes(processes, devices, tmp_path)
    x, where, g = batch()
    counted = where[:, 0]
    mean, var = merged_in_float64(x, where)
    expected_y = (x - mean) / np.sqrt(var + 1e-5)
    gradient = np.zeros(x.shape)
    ones = np.ones(CHANNELS, np.float32)
    gradient[counted] = in_float64(x[counted], ones, None, g[counted])[0]
    precision = allowed(MEAN + len(x), np.sqrt(var.min()))
    for way in WAYS:
        parts = [np.load(tmp_path / f"{way}-{index}.npz") for index in range(processes)]
        near(np.concatenate([part["y"] for part in parts]), expected_y, precision)
        near(np.concatenate([part["gradient"] for part in parts]), gradient, precision)
        for key, batch_value, start in (("mean", mean, 0.0), ("var", var, 1.0)):
            held = np.concatenate([part[key] for part in parts])
            assert held.shape == (processes * devices, CHANNELS)
            np.testing.assert_array_equal(held, np.broadcast_to(held[0], held.shape))
            np.testing.assert_allclose(held[0], 0.99 * start + 0.01 * batch_value, rtol=1e-5)
        values = x[counted]
        fit = {"count": np.full(CHANNELS, len(values)), "min": values.min(0), "max": values.max(0)}
        for key, expected in fit.items():
            held = np.concatenate([part[f"fit_{key}"] for part in parts])
            np.testing.assert_array_equal(held, np.broadcast_to(expected, held.shape))
        for key, expected in (("mean", mean), ("var", var)):
            held = np.concatenate([part[f"fit_{key}"] for part in parts])
            np.testing.assert_allclose(held, np.broadcast_to(expected, held.shape), rtol=1e-5)
