"""The handlers of the native library, called directly, beside float64 NumPy."""

import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm.kernels import library
from jaxnorm.kernels.view import View

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not library.library().loaded, reason=library.status())

EPSILON = 1e-6
VIEWS = {
    "batch": (1, 700, 64, 1, 1),
    "batch, three channels": (1, 1000, 3, 1, 1),
    "batch, channels first": (1, 8, 5, 1, 300),
    "batch, wide": (1, 40, 1500, 1, 1),
    "batch, a row more than a chunk": (1, 2049, 32, 1, 1),
    "ghosts": (4, 50, 20, 1, 1),
    "layer": (40, 1, 1, 1000, 1),
    "layer, short": (50, 1, 1, 7, 1),
    "layer, long": (2, 1, 1, 70_000, 1),
    "layer over positions": (6, 30, 1, 64, 1),
    "group": (4, 60, 8, 4, 1),
    "group, channels first": (4, 1, 8, 4, 49),
    "group, short runs": (4, 1, 8, 40, 9),
    "instance": (3, 100, 65, 1, 1),
    "instance, channels first": (3, 1, 6, 1, 3136),
    "one value": (1, 1, 1, 1, 1),
    "layer, channels first": (6, 96, 49, 1, 1, True),
    "layer, channels first, few positions": (5, 70, 3, 1, 1, True),
    "layer, channels first, many positions": (12, 100, 2048, 1, 1, True),
    "layer, channels first, in chunks": (2, 1100, 300, 1, 1, True),
}
TOLERANCES = {"float32": 2e-6, "bfloat16": 1e-2, "float16": 1e-3}


NO_RESULT = jax.ShapeDtypeStruct((0,), jnp.float32)


def call(name, results, *operands, view, along="", **attributes):
    """Call a handler; `along` are the axes of the view that the mask varies along."""
    *extents, by_row, _ = View(*view)
    attributes |= dict(zip("ARGST", map(np.int64, extents), strict=True)) | {"by_row": by_row}
    attributes |= {"mask_rows": np.int64(view[1] if "R" in along else 1)}
    attributes |= {f"mask_{axis.lower()}": axis in along for axis in "GT"}
    return jax.ffi.ffi_call(f"jaxnorm_{name}", results)(*operands, **attributes)


def rows(view):
    return jax.ShapeDtypeStruct((view[0], view[2]), jnp.float32)


def like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def count(view):
    return math.prod(view[:5])


def parameter_shape(view, owners=1):
    return (owners, view[1], 1, 1, 1) if View(*view).by_row else (owners, 1, view[2], view[3], 1)


def parameters(view, owners=1):
    return jax.ShapeDtypeStruct(parameter_shape(view, owners), jnp.float32)


def none():
    return jnp.zeros(0, jnp.float32)


def normalize(
    x, view, scale=None, bias=None, mask=None, *, epsilon=EPSILON, about_zero=False, along=""
):
    operands = (x, *(none() if part is None else part for part in (scale, bias, mask)))
    results = (like(x), *(rows(view),) * 3, NO_RESULT)
    options = {"view": view, "about_zero": about_zero, "along": along}
    return call("normalize", results, *operands, jnp.float32(epsilon), **options)[:-1]


def measure(x, view, mask=None, *, about_zero=False, along=""):
    mask = none() if mask is None else mask
    options = {"view": view, "about_zero": about_zero, "along": along}
    return call("measure", (*(rows(view),) * 3, NO_RESULT), x, mask, **options)[:-1]


def backward_fused(x, g, view, measured, scale, mask=None, *, about_zero=False, owners=1, along=""):
    results = (like(x), parameters(view, owners), parameters(view, owners))
    mask = none() if mask is None else mask
    operands = (x, g, *measured, scale, mask, jnp.float32(EPSILON))
    options = {"view": view, "about_zero": about_zero, "along": along}
    return call("backward_fused", results, *operands, **options)


class Reference:
    """y, the moments and all derivatives in float64, by the formulas."""

    def __init__(self, x, g, view, scale, bias, about_zero=False):
        A, _, G, *_ = view
        x, g = (np.asarray(part, np.float64).reshape(view[:5]) for part in (x, g))
        owners = scale.shape[0]
        scale, bias = (
            np.repeat(np.asarray(part, np.float64), A // owners, 0) for part in (scale, bias)
        )

        def mean(values):
            return values.mean((1, 3, 4), keepdims=True)

        def by_parameter(values):
            kept = (owners, A // owners, *scale.shape[1:])
            summed = tuple(axis for axis in range(1, 6) if axis == 1 or kept[axis] == 1)
            return values.reshape(owners, A // owners, *view[1:5]).sum(summed, keepdims=True)[:, 0]

        center = 0 * mean(x) if about_zero else mean(x)
        deviation = x - center
        var = mean(deviation**2)
        rstd = 1 / np.sqrt(var + EPSILON)
        total = 0 if about_zero else mean(scale * g)
        along = mean(scale * g * deviation)
        self.mean, self.var, self.rstd = (part.reshape(A, G) for part in (center, var, rstd))
        self.y = deviation * rstd * scale + bias
        self.dx = rstd * (scale * g - total - deviation * rstd**2 * along)
        self.dscale = by_parameter(g * deviation * rstd)
        self.dbias = by_parameter(g)


def drawn(view, dtype, owners=1, seed=0):
    generator = np.random.default_rng(seed)
    n = count(view)
    x = jnp.asarray(3 + 2 * generator.normal(size=n), dtype)
    g = jnp.asarray(generator.normal(size=n), dtype)
    shape = parameter_shape(view, owners)
    scale, bias = (jnp.asarray(generator.normal(size=shape), jnp.float32) for _ in range(2))
    return x, g, scale, bias


def close(actual, expected, tolerance):
    actual, expected = np.asarray(actual, np.float64).ravel(), expected.ravel()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * abs(expected).max())


# How a view is walked and how a dtype is read meet in the kernels; neither meets about_zero, which
# only leaves the mean out.
NORMALIZED = [(name, dtype, False) for name in VIEWS for dtype in TOLERANCES]
NORMALIZED += [(name, "float32", True) for name in VIEWS]


@pytest.mark.parametrize(("name", "dtype", "about_zero"), NORMALIZED)
def test_normalizing_and_its_derivative(name, dtype, about_zero):
    view = VIEWS[name]
    x, g, scale, bias = drawn(view, dtype)
    expected = Reference(x, g, view, scale, bias, about_zero)
    y, *measured = normalize(x, view, scale, bias, about_zero=about_zero)
    mean, _, var = measured
    dx, dscale, dbias = backward_fused(x, g, view, measured, scale, about_zero=about_zero)
    magnitude = max(1, abs(expected.dx).max())
    close(y, expected.y, TOLERANCES[dtype])
    np.testing.assert_allclose(mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(var, expected.var, rtol=3e-6, atol=1e-12)
    np.testing.assert_allclose(
        np.asarray(dx, np.float64), expected.dx.ravel(), rtol=0, atol=TOLERANCES[dtype] * magnitude
    )
    summed = np.sqrt(count(view))
    np.testing.assert_allclose(dscale, expected.dscale, rtol=1e-5, atol=1e-6 * summed)
    np.testing.assert_allclose(dbias, expected.dbias, rtol=1e-5, atol=1e-6 * summed)


@pytest.mark.parametrize("center_is", ["the mean", "beside the mean"])
@pytest.mark.parametrize("name", VIEWS)
def test_the_same_in_steps(name, center_is):
    """Measure, apply, sums and backward give what the fused handlers give."""
    view = VIEWS[name]
    x, g, scale, bias = drawn(view, jnp.float32)
    expected = Reference(x, g, view, scale, bias)
    center, correction, var = measure(x, view)
    if center_is == "beside the mean":
        moved = center - jnp.sqrt(var) / 4
        center, correction = moved, correction + (center - moved)
    mean = center, correction
    rstd = 1 / jnp.sqrt(var + EPSILON)
    y = call("apply", like(x), x, *mean, rstd, none(), scale, bias, none(), view=view)
    close(y, expected.y, 2e-6)
    results = (rows(view), rows(view), parameters(view), parameters(view))
    along, total, dscale, _ = call(
        "sums", results, x, g, *mean, rstd, none(), scale, none(), view=view
    )
    n = view[1] * view[3] * view[4]
    operands = (x, g, *mean, rstd, rstd, along / n, total / n, scale, none())
    dx = call("backward", like(x), *operands, view=view)
    np.testing.assert_allclose(
        dx, expected.dx.ravel(), rtol=0, atol=2e-6 * max(1, abs(expected.dx).max())
    )
    summed = np.sqrt(count(view))
    np.testing.assert_allclose(dscale, expected.dscale, rtol=1e-5, atol=1e-6 * summed)


def test_renormalization():
    """y = ((x - mean) * gain + shift) * scale + bias, and the derivative of its scale."""
    view = VIEWS["batch"]
    x, g, scale, bias = drawn(view, jnp.float32)
    gain, shift = (jnp.linspace(low, high, 64)[None] for low, high in ((0.5, 2), (-1, 1)))
    mean, correction, _ = measure(x, view)
    y = call("apply", like(x), x, mean, correction, gain, shift, scale, bias, none(), view=view)
    of_x = (np.asarray(x).reshape(view)[0, :, :, 0, 0] - mean) * gain + shift
    np.testing.assert_allclose(
        y.reshape(of_x.shape), of_x * scale.ravel() + bias.ravel(), atol=1e-5
    )
    results = (rows(view), rows(view), parameters(view), parameters(view))
    operands = (x, g, mean, correction, gain, shift, scale, none())
    _, _, dscale, _ = call("sums", results, *operands, view=view)
    expected = np.sum(g.reshape(of_x.shape) * of_x, 0)
    np.testing.assert_allclose(dscale.ravel(), expected, atol=1e-4)


def test_running_statistics():
    """Rows that are the same for every a."""
    view = (4, 50, 16, 1, 1)
    x, g, scale, bias = drawn(view, jnp.float32)
    mean, gain = (jnp.linspace(low, high, 16)[None] for low, high in ((1, 3), (0.2, 0.9)))
    y = call("apply", like(x), x, mean, none(), gain, none(), scale, bias, none(), view=view)
    expected = (np.asarray(x).reshape(-1, 16) - mean) * gain * scale.ravel() + bias.ravel()
    np.testing.assert_allclose(y.reshape(-1, 16), expected, atol=1e-5)
    absent = (none(), none(), none())
    operands = (x, g, mean, none(), gain, *absent, scale, none())
    dx = call("backward", like(x), *operands, view=view)
    expected = np.asarray(g).reshape(-1, 16) * gain * scale.ravel()
    np.testing.assert_allclose(dx.reshape(-1, 16), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "layer",
        "ghosts",
        "group",
        "group, channels first",
        "layer, channels first",
        "layer, channels first, in chunks",
    ],
)
@pytest.mark.parametrize("shared", [1, 2])
def test_parameters_for_each_slice(name, shared):
    view = VIEWS[name]
    owners = view[0] // shared
    x, g, scale, bias = drawn(view, jnp.float32, owners)
    expected = Reference(x, g, view, scale, bias)
    y, *measured = normalize(x, view, scale, bias)
    dx, dscale, dbias = backward_fused(x, g, view, measured, scale, owners=owners)
    close(y, expected.y, 2e-6)
    close(dx, expected.dx, 2e-6)
    close(dscale, expected.dscale, 1e-5)
    close(dbias, expected.dbias, 1e-5)


def test_without_parameters():
    view = VIEWS["layer"]
    x, g, scale, bias = drawn(view, jnp.float32)
    expected = Reference(x, g, view, 1 + 0 * scale, 0 * bias)
    y, *measured = normalize(x, view)
    close(y, expected.y, 2e-6)
    results = (like(x), jax.ShapeDtypeStruct((0,), jnp.float32))
    operands = (x, g, *measured, none(), none(), jnp.float32(EPSILON))
    dx, *_ = call("backward_fused", (*results, results[1]), *operands, view=view, about_zero=False)
    close(dx, expected.dx, 2e-6)


@pytest.mark.parametrize("ratio", [1e4, 1e6])
@pytest.mark.parametrize(
    "view",
    [(1, 64, 5, 1, 1), (1, 200_000, 3, 1, 1), (3, 1, 1, 64, 1), (2, 1, 1, 100_000, 1),
     (1, 30, 3, 1, 5000), (2, 3000, 8, 2, 1), (2, 700, 50, 1, 1, True), (3, 5, 300, 1, 1, True)],
)  # fmt: skip
@pytest.mark.parametrize("order", ["drawn", "sorted", "outlier first"])
def test_a_mean_far_above_the_deviation(view, ratio, order):
    generator = np.random.default_rng(1)
    values = generator.normal(size=count(view))
    if order == "sorted":
        values = np.sort(values)
    elif order == "outlier first":
        values[0] = 50
    x = jnp.asarray((values + ratio).astype(np.float32))
    ones = np.ones(parameter_shape(view))
    expected = Reference(x, x, view, ones, 0 * ones)
    y, center, correction, _ = normalize(x, view, epsilon=EPSILON)
    error = np.abs(np.asarray(y).ravel() - expected.y.ravel())
    assert (error <= 1e-5 * np.maximum(1, np.abs(expected.y.ravel()))).all()
    mean = np.float64(center) + np.float64(correction)
    np.testing.assert_allclose(mean, expected.mean, rtol=1e-12)


@pytest.mark.parametrize("value", [1e-40, 1.1, -3e38, 1e15, 65504.0])
@pytest.mark.parametrize(
    "view",
    [(1, 999, 7, 1, 1), (4, 1, 1, 1001, 1), (2, 50, 3, 2, 40), (2, 99, 70, 1, 1, True)],
)
def test_a_constant_has_no_variance(view, value):
    x = jnp.full(count(view), value, jnp.float32)
    bias = jnp.full(parameter_shape(view), 0.3, jnp.float32)
    for epsilon in (0.0, EPSILON):
        y, _, correction, var = normalize(x, view, None, bias, epsilon=epsilon)
        assert (np.asarray(correction) == 0).all()
        assert (np.asarray(var) == 0).all()
        assert (np.asarray(y) == np.float32(0.3)).all()


@pytest.mark.parametrize("size", [1e-18, 1e15])
@pytest.mark.parametrize(
    "name",
    ["batch", "layer", "group, channels first", "instance", "layer, channels first"],
)
def test_small_and_large_data(name, size):
    view = VIEWS[name]
    x, _, _, _ = drawn(view, jnp.float32)
    ones = np.ones(parameter_shape(view))
    expected = Reference(x, x, view, ones, 0 * ones)
    y, *_ = normalize(x * size, view, epsilon=0.0)
    close(y, expected.y, 3e-6)


@pytest.mark.parametrize(
    "name",
    ["batch", "layer", "group", "instance, channels first", "layer, channels first"],
)
def test_an_overflow_is_seen(name):
    view = VIEWS[name]
    signs = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], count(view)))
    for size in (1e25, 3e38):
        *_, var = measure(jnp.float32(size) * signs.astype(jnp.float32), view)
        assert not np.isfinite(var).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name",
    ["batch", "layer", "group", "group, channels first", "layer, channels first"],
)
def test_what_is_not_finite_spoils_its_own_statistic(name, bad):
    view = VIEWS[name]
    x, _, scale, bias = drawn(view, jnp.float32)
    spoiled = np.asarray(x).reshape(view[:5]).copy()
    spoiled[-1, -1, 1 % view[2], -1, -1] = bad
    y, mean, _, var = normalize(jnp.asarray(spoiled).ravel(), view, scale, bias)
    clean = normalize(x, view, scale, bias)
    own = np.zeros((view[0], view[2]), bool)
    own[-1, 1 % view[2]] = True
    assert not np.isfinite(np.asarray(var)[own]).any()
    np.testing.assert_array_equal(np.asarray(mean)[~own], np.asarray(clean[1])[~own])
    kept = np.broadcast_to(~own[:, None, :, None, None], view[:5]).ravel()
    np.testing.assert_array_equal(np.asarray(y)[kept], np.asarray(clean[0])[kept])


def test_every_half_is_read_and_rounded_right():
    bits = jnp.arange(1 << 16, dtype=jnp.uint16)
    for dtype in (jnp.float16, jnp.bfloat16):
        x = jax.lax.bitcast_convert_type(bits, dtype)
        exact = np.asarray(x, np.float32)
        scale = jnp.float32(1.0625)
        view = (1, 1, 1, 1, x.size)
        zero, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
        operands = (x, zero, none(), one, none(), scale[None], none(), none())
        y = call("apply", like(x), *operands, view=view)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = (exact * np.float32(scale)).astype(dtype)
        tiny = float(jnp.finfo(dtype).tiny)
        kept = (np.abs(exact) >= tiny) | ~np.isfinite(exact)
        if dtype == jnp.float16:
            kept[:] = True  # subnormal halves are normal floats
        actual, expected = (np.asarray(part, np.float32)[kept] for part in (y, expected))
        np.testing.assert_array_equal(actual, expected)


def test_empty_views():
    for view in [(0, 3, 4, 1, 1), (2, 0, 4, 1, 1), (2, 3, 0, 1, 1), (2, 3, 4, 0, 1)]:
        x = jnp.zeros(0, jnp.float32)
        y, *measured = normalize(x, view)
        assert y.size == 0
        assert not any(np.asarray(statistic).any() for statistic in measured)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ((1, 10, 7, 1, 1), "x has 64 values where the view has 70"),
        ((1 << 40, 1 << 40, 1, 1, 1), "overflow"),
        ((-1, 64, 1, 1, 1), "negative"),
        (
            (1, 16, 1, 4, 1, True),
            "by row and with a mask along G there are neither S and T nor a shift",
        ),
    ],
)
def test_views_that_do_not_fit(view, message):
    x, row = jnp.zeros(64, jnp.float32), jax.ShapeDtypeStruct((1, 1), jnp.float32)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(call("measure", (row,) * 4, x, none(), view=view, about_zero=False))


def test_operands_that_do_not_fit():
    view = VIEWS["batch"]
    x, g, scale, _ = drawn(view, jnp.float32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no rows of 64"):
        jax.block_until_ready(normalize(x, view, scale[:, :, :60]))
    with pytest.raises(jax.errors.JaxRuntimeError, match="scale must be float32"):
        jax.block_until_ready(normalize(x, view, scale.astype(jnp.bfloat16)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="float32, bfloat16, float16 or float64"):
        jax.block_until_ready(measure(x.astype(jnp.int32), view))
    measured = measure(x, view)
    with pytest.raises(jax.errors.JaxRuntimeError, match="not of x's dtype"):
        jax.block_until_ready(backward_fused(x, g.astype(jnp.bfloat16), view, measured, scale))
    by_row = (*view, True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no rows of 700"):
        jax.block_until_ready(normalize(x, by_row, scale))
    center, correction, var = measured
    shifted = (center, correction, var, center, none(), none(), none())
    with pytest.raises(jax.errors.JaxRuntimeError, match="nor a shift"):
        jax.block_until_ready(call("apply", like(x), x, *shifted, view=by_row))


@pytest.mark.long
def test_the_same_bits_every_time():
    for name in ("batch", "layer", "group", "layer, channels first"):
        view = VIEWS[name]
        view = (view[0], 40 * view[1], *view[2:])
        x, g, scale, bias = drawn(view, jnp.float32)

        @jax.jit
        def step(x, g, scale, bias, view=view):
            y, *measured = normalize(x, view, scale, bias)
            return y, backward_fused(x, g, view, measured, scale)

        first = jax.block_until_ready(step(x, g, scale, bias))
        for _ in range(10):
            jax.tree.map(np.testing.assert_array_equal, first, step(x, g, scale, bias))


DIGEST = """
import os
if {cores}: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}])
import hashlib, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import numpy as np
from test_kernels_native import *
digest = hashlib.sha256()
for view in [(1, 9000, 64, 1, 1), (3000, 1, 1, 100, 1), (12, 1500, 8, 2, 1), (1, 20, 9, 1, 2500),
             (40, 96, 400, 1, 1, True), (2, 3000, 912, 1, 1, True)]:
    x, g, scale, bias = drawn(view, jnp.float32)
    y, *measured = normalize(x, view, scale, bias)
    for part in (y, *measured, *backward_fused(x, g, view, measured, scale)):
        digest.update(np.asarray(part).tobytes())
print(digest.hexdigest())
"""


def test_the_same_bits_on_any_number_of_threads():
    def digest(cores, devices):
        flags = f"--xla_force_host_platform_device_count={devices}"
        code = DIGEST.format(cores=cores, root=str(ROOT))
        environment = os.environ | {"XLA_FLAGS": flags}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    assert digest(1, 1) == digest(0, 1) == digest(0, 8)


def test_status_says_what_is_used():
    assert "native kernels" in library.status()

    def status(**environment):
        command = [sys.executable, "-m", "jaxnorm"]
        done = subprocess.run(
            command,
            env=os.environ | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert f"jaxnorm {jaxnorm.__version__}: native kernels" in status()
    assert "plain form (JAXNORM_KERNELS=off)" in status(JAXNORM_KERNELS="off")
    assert "plain form (/nowhere.so does not load" in status(JAXNORM_KERNELS="/nowhere.so")


@pytest.mark.long
def test_eight_devices_at_once_never_wait_for_each_other():
    view = (1, 10000, 32, 1, 1)  # three phases, on several threads
    x, g, scale, bias = drawn(view, jnp.float32)

    @jax.jit
    def step(x, g, scale, bias):
        y, *measured = normalize(x, view, scale, bias)
        return y, backward_fused(x, g, view, measured, scale)

    expected = step(x, g, scale, bias)
    operands = [jax.device_put((x, g, scale, bias), device) for device in jax.devices()]
    for _ in range(1000 // len(operands)):
        results = [step(*own) for own in operands]
        jax.block_until_ready(results)
    for result in results:
        jax.tree.map(np.testing.assert_array_equal, result, expected)
