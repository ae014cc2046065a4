"""The benchmark of a device at hand, tried with small shapes on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from waiting import PATIENCE

from benchmarks.compiled import LIBRARIES
from benchmarks.compiled.cases import DTYPES, PASSES, SHAPES, libraries
from benchmarks.device import main, measured

MOST = {("f32", 3.0): 2e-6, ("f32", 1000.0): 1e-4, ("bf16", 3.0): 5e-3}


def run(folder, *options):
    """Run the command and read what it wrote."""
    command = [sys.executable, "-m", "benchmarks", "device", "--small", "--output", str(folder)]
    ran = subprocess.run(
        [*command, *options],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"JAX_NUMPY_DTYPE_PROMOTION": "standard"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads((folder / "cpu.json").read_text()), ran.stdout


@pytest.mark.slow
def test_every_case_is_measured(tmp_path):
    report, printed = run(tmp_path, "--minutes", "60")
    parts = {"values": [], "layer": [], "step": []}
    for case in report["cases"]:
        assert not case.get("errors"), case
        parts[case["part"].split()[0]].append(case)
    assert report["skipped"] == []
    found = [(case["norm"], case["dtype"], case["mean"]) for case in parts["values"]]
    assert sorted(found) == sorted((norm, *which) for norm in SHAPES for which in MOST)
    for case in parts["values"]:
        errors = case["error"]["jaxnorm"]
        assert set(errors) == {"y", "dx", "dscale"} | (
            {"dbias"} if case["norm"] != "rms" else set()
        )
        assert max(errors.values()) < MOST[case["dtype"], case["mean"]], case
    assert len(parts["layer"]) == len(DTYPES) * sum(map(len, SHAPES.values()))
    for case in parts["layer"]:
        assert set(case["times"]) >= {"copy", *libraries(case["norm"])}
        for library, times in case["times"].items():
            assert set(times) == ({"forward"} if library == "copy" else set(PASSES))
            assert all(cell["ms"] > 0 and cell["GB/s"] > 0 for cell in times.values())
    found = {(case["network"], case["dtype"]) for case in parts["step"]}
    assert found == {
        (network, dtype) for network in ("transformer", "resnet50") for dtype in DTYPES
    }
    for case in parts["step"]:
        assert set(case["ms"]) == set(LIBRARIES)
        assert all(ms > 0 for ms in case["ms"].values())
        ours, flaxs = case["loss"].values()
        assert ours == pytest.approx(flaxs, rel=1e-2)
    page = (tmp_path / "cpu.md").read_text()
    for text in (page, printed):
        assert "Skipped: nothing" in text
        assert "Failed: nothing" in text


@pytest.mark.slow
def test_what_does_not_fit_is_skipped_and_said(tmp_path):
    report, printed = run(tmp_path, "--minutes", "0")
    assert report["cases"] == []
    assert len(report["skipped"]) == len(list(main.items(small=True)))
    assert "Skipped: values batch f32 mean 3, " in printed


@pytest.mark.long
def test_a_program_that_fails_is_an_error_beside_the_others():
    def fails(x):
        raise ValueError("no kernel\nfor it")

    programs = {("a", "forward"): (fails, [1.0]), ("b", "forward"): (jnp.exp, [1.0])}
    calls, errors = measured.compiled(programs)
    calls["c", "forward"] = lambda: fails(1)
    times = measured.times(calls, 1, errors)
    assert list(times) == [("b", "forward")]
    assert errors == dict.fromkeys(("a forward", "c forward"), "ValueError: no kernel")


def test_the_textbooks_gradient_is_that_of_its_formula():
    draws = np.random.default_rng(0)
    x, cotangent = draws.standard_normal((2, 3, 4))
    params = {"scale": draws.standard_normal(4)}
    got = measured.expected("rms", x, params, None, cotangent)
    with jax.enable_x64(True):

        def apply(x, scale):
            return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale

        y, backward = jax.vjp(apply, x, params["scale"])
        for name, right in zip(("y", "dx", "dscale"), (y, *backward(cotangent)), strict=True):
            np.testing.assert_allclose(got[name], right, rtol=1e-9)
