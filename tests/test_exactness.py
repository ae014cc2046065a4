"""The last place of the mean is kept: results are exact at means far above the deviations."""

import numpy as np
import pytest
from cases import chances, near
from exact import NAMES, PLAIN, Exact, compiled, drawn, error_of, in_every_form, within_largest

pytestmark = pytest.mark.numerical

SHAPES = {
    "batch": (16, 5, 4),
    "ghost": (16, 5, 4),
    "renorm": (16, 5, 4),
    "layer": (6, 5, 60),
    "group": (3, 20, 8),
    "instance": (3, 50, 4),
}
RATIOS = [1e3, -1e4, 1e5, 1e6]


@in_every_form
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", RATIOS)
def test_y_and_its_derivatives_are_exact_at_any_mean(name, form, ratio):
    operands, tangents, cotangent = drawn(SHAPES[name], mean=ratio)
    y, cotangents, tangent = compiled(name, form)(None, operands, tangents, cotangent)
    x, scale, bias = operands
    exact = Exact(name, x)
    expected = exact.y(scale, bias)
    assert error_of(y, expected) <= 1e-5
    for actual, right in zip(cotangents, exact.cotangents(scale, cotangent), strict=True):
        within_largest(actual, right, 1e-4)
    within_largest(tangent, exact.tangent(scale, *tangents), 1e-4)


@pytest.mark.parametrize("form", PLAIN)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", RATIOS)
def test_y_is_exact_under_a_mask(name, form, ratio):
    operands, tangents, cotangent = drawn(SHAPES[name], mean=ratio)
    where = chances(*SHAPES[name])
    y, cotangents, _ = compiled(name, form)(where, operands, tangents, where * cotangent)
    x, scale, bias = operands
    exact = Exact(name, x, where)
    expected = exact.y(scale, bias)
    assert error_of(y, expected, where) <= 1e-5
    of_x = exact.cotangents(scale, where * cotangent)[0]
    within_largest(np.where(where, cotangents[0], 0), np.where(where, of_x, 0), 1e-4)


@in_every_form
def test_renormalization_is_exact_at_a_large_mean(form):
    operands, tangents, cotangent = drawn(SHAPES["renorm"], mean=1e6)
    run = compiled("renorm", form, r_max=1.0, d_max=0.0)
    y, cotangents, _ = run(None, operands, tangents, cotangent)
    x, scale, bias = operands
    exact = Exact("renorm", x)
    near(y, exact.y(scale, bias), 4e-5)
    within_largest(cotangents[0], exact.cotangents(scale, cotangent)[0], 1e-4)


@in_every_form
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("constant", [0.0, 1 / 3, -12345.678, 16777217.0, 1e-30, 3e38])
def test_a_constant_gives_exactly_zero(name, form, constant):
    operands, tangents, cotangent = drawn(SHAPES[name])
    x = np.full(SHAPES[name], constant, np.float32)
    operands = x, operands[1], np.zeros_like(operands[2])
    y, (_, of_scale, _), _ = compiled(name, form)(None, operands, tangents, cotangent)
    assert (np.asarray(y) == 0).all()
    assert (np.asarray(of_scale) == 0).all()


@in_every_form
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e-17, 1e-9, 1e9, 1e15])
def test_sizes_do_not_matter(name, form, size):
    operands, tangents, cotangent = drawn(SHAPES[name], mean=1e3 * size, std=size)
    run = compiled(name, form, epsilon=0.0)
    y, (_, of_scale, _), _ = run(None, operands, tangents, cotangent)
    x, scale, bias = operands
    exact = Exact(name, x.astype(np.float64), epsilon=0.0)
    expected = exact.y(scale, bias)
    assert error_of(y, expected) <= 1e-5
    within_largest(of_scale, exact.cotangents(scale, cotangent)[1], 1e-4)
