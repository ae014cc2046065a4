"""The last place of the mean is kept: results are exact at means far above the deviations."""

import functools

import jax
import numpy as np
import pytest
import reference
from cases import NORMS, STATEFUL, chances, fresh, near, normals, parameters

from jaxnorm import kernels
from jaxnorm.kernels.library import library
from jaxnorm.kernels.native import plain_form

pytestmark = pytest.mark.numerical

NAMES = ["batch", "ghost", "layer", "group", "instance"]
SHAPES = {
    "batch": (16, 5, 4),
    "ghost": (16, 5, 4),
    "renorm": (16, 5, 4),
    "layer": (6, 5, 60),
    "group": (3, 20, 8),
    "instance": (3, 50, 4),
}
NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(not library().loaded, reason=kernels.status())
)
in_both_forms = pytest.mark.parametrize("form", [NATIVE, "plain"])
RATIOS = [1e3, -1e4, 1e5, 1e6]


def function(name, where=None, **options):
    """Give a normalization as a function of x, scale and bias alone, which yields y alone."""
    norm, options = NORMS[name], {**NORMS[name].options, **options}

    def normalized(x, scale, bias):
        if name not in STATEFUL:
            return norm.function(x, scale, bias, where=where, **options)
        stats = fresh(name, x.shape[-1])
        return norm.function(x, stats, scale, bias, where=where, **options)[0]

    return normalized


@functools.cache
def compiled(name, form, **options):
    """Compile y, the cotangents of x, scale and bias, and the tangent of y, for one form."""

    def program(where, operands, tangents, cotangent):
        normalized = function(name, where, **options)
        y, tangent = jax.jvp(normalized, operands, tangents)
        return y, jax.vjp(normalized, *operands)[1](cotangent), tangent

    jitted = jax.jit(program)

    def run(*args):
        if form == "native":
            return jitted(*args)
        with plain_form():
            return jitted(*args)

    return run


class Exact:
    """y and its derivatives in float64, by the formulas."""

    def __init__(self, name, x, where=None, epsilon=None):
        self.labels = np.unique(
            NORMS[name].labels(x.shape, **NORMS[name].options), return_inverse=True
        )[1].reshape(x.shape)
        self.keep = reference.counted(x, where)
        epsilon = epsilon if epsilon is not None else 1e-5 if name in STATEFUL else 1e-6
        self.deviation = x - self.mean(x)
        self.rstd = 1 / np.sqrt(self.mean(self.deviation**2) + epsilon)
        self.unscaled = self.deviation * self.rstd

    def mean(self, values):
        """Average over the positions that share a label and count, at each position."""
        values = np.where(self.keep, values.astype(np.float64), 0)
        sums, counts = (
            np.bincount(self.labels.ravel(), part.ravel()) for part in (values, self.keep)
        )
        return (sums / np.maximum(counts, 1))[self.labels]

    def projected(self, v):
        """Give the derivative of the unscaled value, which is symmetric."""
        return self.rstd * (v - self.mean(v) - self.unscaled * self.mean(self.unscaled * v))

    def y(self, scale, bias):
        """Give the value."""
        return self.unscaled * scale + bias

    def cotangents(self, scale, g):
        """Give the cotangents of x, scale and bias."""
        leading = tuple(range(g.ndim - 1))
        of_scale = (g * self.unscaled).sum(leading)
        return self.projected(scale * g), of_scale, g.sum(leading, dtype=np.float64)

    def tangent(self, scale, dx, dscale, dbias):
        """Give the tangent of y."""
        return self.projected(dx) * scale + self.unscaled * dscale + dbias


def within_largest(actual, expected, tolerance):
    """Hold two arrays together within a part of the largest value."""
    near(actual, expected, tolerance * np.abs(expected).max())


def drawn(name, **options):
    """Draw x and its parameters, their tangents, and a cotangent of y."""
    shape = SHAPES[name]
    operands = normals(*shape, **options), *parameters(shape[-1])
    tangents = normals(*shape, seed=3), *parameters(shape[-1], seed=5)
    return operands, tangents, normals(*shape, seed=4)


@in_both_forms
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", RATIOS)
def test_y_and_its_derivatives_are_exact_at_any_mean(name, form, ratio):
    operands, tangents, cotangent = drawn(name, mean=ratio)
    y, cotangents, tangent = compiled(name, form)(None, operands, tangents, cotangent)
    x, scale, bias = operands
    exact = Exact(name, x)
    expected = exact.y(scale, bias)
    assert np.max(np.abs(y - expected) / np.maximum(1, np.abs(expected))) <= 1e-5
    for actual, right in zip(cotangents, exact.cotangents(scale, cotangent), strict=True):
        within_largest(actual, right, 1e-4)
    within_largest(tangent, exact.tangent(scale, *tangents), 1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", RATIOS)
def test_y_is_exact_under_a_mask(name, ratio):
    operands, tangents, cotangent = drawn(name, mean=ratio)
    where = chances(*SHAPES[name])
    y, cotangents, _ = compiled(name, "plain")(where, operands, tangents, where * cotangent)
    x, scale, bias = operands
    exact = Exact(name, x, where)
    expected = exact.y(scale, bias)
    error = np.abs(y - expected) / np.maximum(1, np.abs(expected))
    assert np.max(error, where=where, initial=0) <= 1e-5
    of_x = exact.cotangents(scale, where * cotangent)[0]
    within_largest(np.where(where, cotangents[0], 0), np.where(where, of_x, 0), 1e-4)


@in_both_forms
def test_renormalization_is_exact_at_a_large_mean(form):
    operands, tangents, cotangent = drawn("renorm", mean=1e6)
    run = compiled("renorm", form, r_max=1.0, d_max=0.0)
    y, cotangents, _ = run(None, operands, tangents, cotangent)
    x, scale, bias = operands
    exact = Exact("renorm", x)
    near(y, exact.y(scale, bias), 4e-5)
    within_largest(cotangents[0], exact.cotangents(scale, cotangent)[0], 1e-4)


@in_both_forms
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("constant", [0.0, 1 / 3, -12345.678, 16777217.0, 1e-30, 3e38])
def test_a_constant_gives_exactly_zero(name, form, constant):
    operands, tangents, cotangent = drawn(name)
    x = np.full(SHAPES[name], constant, np.float32)
    operands = x, operands[1], np.zeros_like(operands[2])
    y, (_, of_scale, _), _ = compiled(name, form)(None, operands, tangents, cotangent)
    assert (np.asarray(y) == 0).all()
    assert (np.asarray(of_scale) == 0).all()


@in_both_forms
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e-18, 1e-9, 1e9, 1e15])
def test_sizes_do_not_matter(name, form, size):
    operands, tangents, cotangent = drawn(name, mean=1e3 * size, std=size)
    run = compiled(name, form, epsilon=0.0)
    y, (_, of_scale, _), _ = run(None, operands, tangents, cotangent)
    x, scale, bias = operands
    exact = Exact(name, x.astype(np.float64), epsilon=0.0)
    expected = exact.y(scale, bias)
    assert np.max(np.abs(y - expected) / np.maximum(1, np.abs(expected))) <= 1e-5
    within_largest(of_scale, exact.cotangents(scale, cotangent)[1], 1e-4)
