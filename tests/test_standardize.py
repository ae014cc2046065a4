"""The precision that is promised, for all functions: means, sizes, constants, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import (
    NORMS,
    STATEFUL,
    chances,
    every_norm,
    identical,
    library,
    near,
    normals,
    oracle,
    parameters,
    promised,
    relative,
    seen,
    ulp,
    within,
)

pytestmark = pytest.mark.numerical

# Shapes in which one statistic covers few values, and 100,000.
FEW = {
    **dict.fromkeys(every_norm, (3, 50, 4)),
    **dict.fromkeys(STATEFUL, (16, 5, 4)),
    "layer": (6, 5, 60),
    "rms": (6, 5, 60),
    "group": (3, 20, 8),
}
MANY = {
    **dict.fromkeys(every_norm, (2, 100_000, 2)),
    **dict.fromkeys(STATEFUL, (2, 50_000, 3)),
    "ghost": (4, 50_000, 3),
    "layer": (3, 100_000),
    "rms": (3, 100_000),
    "group": (2, 25_000, 8),
}
SHAPES = {"few": FEW, "many": MANY}


def precise(name, x, **options):
    """Hold the output and the statistics to the oracle's as precisely as is promised."""
    y, stats = library(name, x, **options)
    expected, expected_stats = oracle(name, x, **options)
    merged = promised(name, x, **options)  # with a unit in the last place of the mean
    keep = reference.counted(x, options.get("where"))
    tolerance = merged if name == "renorm" else np.full(x.shape, 1e-5)
    within(np.where(keep, y, 0), np.where(keep, expected, 0), tolerance)
    if stats is not None:
        relative(stats, expected_stats, merged.max() if name == "ghost" else 1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ratio", [0.0, -1e3, 1e6])
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", every_norm)
def test_float32_is_precise_at_any_mean(in_every_form, name, size, ratio, masked):
    if (in_every_form, size, masked, name) == ("gpu", "many", True, "layer"):
        pytest.skip("a GPU merges many values at a time; a CPU merges 100,000 one after another")
    shape = SHAPES[size][name]
    options = {"where": chances(*shape) if masked else None}
    if name in STATEFUL:
        options["stats"] = seen(name, shape[-1], mean=ratio or 1.0)
    precise(name, normals(*shape, mean=ratio), **options)


LAYOUTS = [
    ("batch", {"channel_axis": 1}),
    ("batch", {"channel_axis": 0}),
    ("ghost", {"channel_axis": 1}),
    ("renorm", {"channel_axis": 2}),
    ("layer", {"reduction_axes": (0, 2)}),
    ("layer", {"reduction_axes": (0, 1, 2, 3)}),
    ("group", {"channel_axis": 1}),
    ("group", {"channel_axis": -2, "reduction_axes": (0, 2)}),
    ("instance", {"channel_axis": -3}),
]


@pytest.mark.usefixtures("in_every_form")
@pytest.mark.core
@pytest.mark.parametrize("ratio", [1e3, 1e6])
@pytest.mark.parametrize(("name", "options"), LAYOUTS, ids=str)
def test_float32_is_precise_along_any_axes(name, options, ratio):
    x = normals(4, 6, 2, 9, mean=ratio)
    if name in STATEFUL:
        channels = x.shape[options["channel_axis"]]
        options = {**options, "stats": seen(name, channels, mean=ratio)}
    precise(name, x, **options)


@pytest.mark.usefixtures("in_every_form")
@pytest.mark.parametrize("name", ["batch", "ghost", "instance"])
def test_every_channel_is_precise_beside_unlike_ones(name):
    mean = np.array([0, 1e6, -1e4, 1e3, 3e5, 7e-7])
    std = np.array([1, 1, 1e-1, 1e3, 1e2, 1e-9])
    x = normals(8, 30, 6, mean=mean, std=std)
    options = {"epsilon": 0.0}
    if name in STATEFUL:
        options["stats"] = {**seen(name, 6), "mean": mean.astype(np.float32)}
    precise(name, x, **options)


@pytest.mark.usefixtures("in_every_form")
@pytest.mark.core
@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
@pytest.mark.parametrize("size", [1e15, 1e-18])
@pytest.mark.parametrize("name", every_norm)
def test_extreme_sizes_are_standardized_right(name, size, epsilon):
    x = normals(*SHAPES["few"][name], mean=size, std=size)
    options = {"epsilon": epsilon}
    if name in STATEFUL:
        options["stats"] = seen(name, x.shape[-1], mean=size, var=size**2)
    y, _ = library(name, x, **options)
    expected, _ = oracle(name, x, **options)
    near(y, expected, 1e-5 * max(1.0 if epsilon == 0 else 0.0, np.abs(expected).max()))


# Constants

CONSTANTS = [0.0, 1 / 3, -0.1, 16777217.0, -12345.678, 1e15, 1e-18, 1e-30, 1e30, 3e38, 1e-40]
CENTERED = [name for name in every_norm if not NORMS[name].about_zero]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", CENTERED)
def test_a_constant_gives_exactly_bias(name, size):
    shape = SHAPES[size][name]
    scale, bias = parameters(shape[-1])
    bias[0] = 0.0  # where nothing hides behind the rounding of a sum
    options = {"d_max": 0.0} if name == "renorm" else {}
    wrong = []
    for constant in CONSTANTS:
        y, _ = library(name, np.full(shape, constant, np.float32), scale, bias, **options)
        assert (y.dtype, y.shape) == (np.float32, shape)
        if not np.array_equal(y, np.broadcast_to(bias, shape)):
            wrong.append(constant)
    assert wrong == []


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.complex64])
@pytest.mark.parametrize("name", CENTERED[:2] + CENTERED[3:])
def test_a_constant_of_any_dtype_gives_exactly_bias(name, dtype):
    shape = SHAPES["few"][name]
    bias = normals(shape[-1])
    where = chances(*shape)
    x = np.where(where, 1 / 3, 7.0).astype(dtype)
    y, _ = library(name, x, bias=bias, where=where)
    expected = np.broadcast_to(bias.astype(dtype), shape)
    identical(np.asarray(y)[where], expected[where])


# Dtypes


def within_one_rounding(y, expected, dtype):
    """Hold a half-precision output to the rounding of the oracle's."""
    assert y.dtype == dtype
    near((y.astype(np.float64) - expected) / (0.5 * ulp(expected, dtype) + 1e-5), 0 * expected, 1.0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
@pytest.mark.parametrize("name", every_norm)
def test_half_precision_is_within_one_rounding(name, dtype, mean, masked):
    shape = SHAPES["few"][name]
    x = normals(*shape, mean=mean, std=3.0).astype(dtype)
    options = {"where": chances(*shape) if masked else None}
    args = parameters(shape[-1])
    y, _ = library(name, x, *args, **options)
    expected, _ = oracle(name, x.astype(np.float64), *args, **options)
    within_one_rounding(np.asarray(y), expected, dtype)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
@pytest.mark.parametrize("name", STATEFUL)
def test_half_precision_remembers_in_float32(name, dtype):
    x = normals(16, 5, 4, mean=3.0).astype(dtype)
    _, stats = library(name, x)
    relative(stats, oracle(name, x.astype(np.float64))[1], 2e-6)


@pytest.mark.parametrize("name", every_norm)
def test_half_precision_parameters_are_taken(name):
    x = normals(*SHAPES["few"][name]).astype(jnp.bfloat16)
    scale, bias = (p.astype(jnp.bfloat16) for p in parameters(x.shape[-1]))
    y, _ = library(name, x, scale, bias)
    expected, _ = oracle(name, *(a.astype(np.float64) for a in (x, scale, bias)))
    within_one_rounding(np.asarray(y), expected, jnp.bfloat16)


@pytest.mark.parametrize("complex_scale", [False, True])
@pytest.mark.parametrize("name", [name for name in every_norm if name != "renorm"])
def test_complex_numbers_are_standardized_by_their_modulus(name, complex_scale):
    x = normals(*SHAPES["few"][name], mean=1 - 2j, dtype=np.complex64)
    scale, bias = parameters(x.shape[-1])
    if complex_scale:
        scale, bias = scale * np.complex64(1j), bias + np.complex64(0.5j)
    y, stats = library(name, x, scale, bias)
    expected, expected_stats = oracle(name, x, scale, bias)
    assert y.dtype == np.complex64
    near(y, expected, 2e-5)
    if stats is not None:
        near(stats, expected_stats)


@pytest.mark.core
@pytest.mark.parametrize("name", every_norm)
def test_float64_keeps_its_precision(name):
    with jax.enable_x64(True):
        x = normals(*SHAPES["few"][name], mean=100.0, dtype=np.float64)
        y, stats = library(name, x)
        assert y.dtype == np.float64
        expected, expected_stats = oracle(name, x)
        near(y, expected, 1e-10)
        if stats is not None:
            assert stats["mean"].dtype == stats["var"].dtype == np.float64
            relative(stats, expected_stats, 1e-7 if name == "renorm" else 1e-10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", every_norm)
def test_a_value_that_is_not_finite_spoils_its_own_statistic_only(name, bad):
    x = normals(*SHAPES["few"][name])
    x[0, 0, 0] = bad
    sick, _ = library(name, x)
    with np.errstate(invalid="ignore"):
        expected, _ = oracle(name, x)
    np.testing.assert_array_equal(np.isfinite(sick), np.isfinite(expected))
    assert not np.isfinite(sick).all()
    near(np.where(np.isfinite(expected), sick, 0), np.where(np.isfinite(expected), expected, 0))
