"""Derivatives: of both modes to second order, and equal to the oracle's."""

import functools

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
    fresh,
    gradients,
    near,
    normals,
    oracle,
    parameters,
    seen,
)
from jax.test_util import check_grads

pytestmark = pytest.mark.numerical

SHAPE = (4, 3, 6)
MASKS = {
    "whole": None,
    "masked": chances(*SHAPE),
    "empty groups": chances(*SHAPE) & (np.arange(4) % 2 == 0)[:, None, None],
}


def output(name, stats=None, where=None, **options):
    """Give a function of x and the parameters alone, whose result is the output."""
    function, base = NORMS[name].function, NORMS[name].options
    options = {**base, **options, "where": where}

    def call(x, *rest):
        args = (x, stats, *rest) if name in STATEFUL else (x, *rest)
        result = function(*args, **options)
        return result[0] if name in STATEFUL else result

    return jax.jit(call)


def inputs(name, shape=SHAPE, dtype=np.float32, mean=0.5):
    """Give x and the parameters that the function takes."""
    x = normals(*shape, mean=mean, dtype=dtype)
    scale, bias = (p.astype(dtype) for p in parameters(shape[-1]))
    return (x, scale, bias) if NORMS[name].has_bias else (x, scale)


SECOND_ORDER = [(name, "empty groups") for name in every_norm]
SECOND_ORDER += [("batch", "whole")]


@pytest.mark.parametrize(("name", "mask"), SECOND_ORDER)
def test_derivatives_are_right_to_second_order_in_both_modes(name, mask):
    options = {"r_max": 1.0, "d_max": 0.0} if name == "renorm" else {}
    with jax.enable_x64(True):
        stats = fresh(name, 6, dtype=jnp.float64) if name in STATEFUL else None
        call = output(name, stats, MASKS[mask], epsilon=0.1, **options)
        check_grads(call, inputs(name, dtype=np.float64), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("name", STATEFUL)
def test_derivatives_in_evaluation_are_right(name):
    with jax.enable_x64(True):
        call = output(name, fresh(name, 6, dtype=jnp.float64), train=False, epsilon=0.1)
        check_grads(call, inputs(name, dtype=np.float64), order=1, modes=("fwd", "rev"))


@pytest.mark.parametrize("name", [name for name in every_norm if name != "renorm"])
def test_complex_derivatives_are_right(name):
    with jax.enable_x64(True):
        stats = fresh(name, 6, dtype=jnp.complex128) if name in STATEFUL else None
        call = output(name, stats, epsilon=0.1)
        check_grads(call, inputs(name, dtype=np.complex128), order=1, modes=("fwd", "rev"))


def expected_gradients(name, args, g, stats, where, epsilon):
    """Differentiate the oracle numerically, renorm's corrections held fixed."""
    options = {"where": where, "epsilon": epsilon}
    if name in STATEFUL:
        options["stats"] = stats
    if name == "renorm":
        limits = {k: NORMS[name].options[k] for k in ("r_max", "d_max")}
        common = {"epsilon": epsilon, "channel_axis": -1, "where": where}
        options["frozen"] = reference.corrections(args[0], stats, **limits, **common)

    def moved(position, value):
        changed = [value if i == position else arg for i, arg in enumerate(args)]
        return oracle(name, *changed, **options)[0]

    return [
        reference.gradient(functools.partial(moved, position), arg, g)
        for position, arg in enumerate(args)
    ]


def same_gradients(name, args, g, where=None, epsilon=0.1, tolerance=1e-5):
    """Hold all gradients to those of the oracle."""
    stats = seen(name, args[0].shape[-1]) if name in STATEFUL else None
    expected = expected_gradients(name, args, g, stats, where, epsilon)
    options = {"stats": stats, "where": where, "epsilon": epsilon}
    actual = gradients(name, *(*args, None)[:3], g, **options)
    for one, other in zip(actual, expected, strict=True):
        near(one, other, tolerance * max(1.0, np.abs(other).max()))


@pytest.mark.core
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", every_norm)
def test_gradients_are_those_of_the_oracle(name, mask):
    same_gradients(name, inputs(name), normals(*SHAPE, seed=3), MASKS[mask])


@pytest.mark.core
@pytest.mark.parametrize("name", every_norm)
def test_gradients_with_nan_under_the_mask_are_those_of_the_oracle(name):
    args, where = inputs(name), MASKS["masked"]
    args[0][:2][~where[:2]] = np.nan
    same_gradients(name, args, normals(*SHAPE, seed=3), where)


@pytest.mark.core
@pytest.mark.parametrize("name", every_norm)
def test_gradients_at_a_constant_are_those_of_the_oracle(name):
    args = inputs(name)
    args[0][:] = 1 / 3
    same_gradients(name, args, normals(*SHAPE, seed=3), epsilon=0.01, tolerance=1e-4)


def analytic(x, g, axes, epsilon):
    """Give dx of (x - mean) / sqrt(var + epsilon): what is left of g beside 1 and x."""
    x, g = reference.widen(x), reference.widen(g)
    center = x - x.mean(axes, keepdims=True)
    root = np.sqrt((center**2).mean(axes, keepdims=True) + epsilon)
    y = center / root
    return (g - g.mean(axes, keepdims=True) - y * (g * y).mean(axes, keepdims=True)) / root


AXES = {"batch": (0, 1), "renorm": (0, 1), "layer": 2, "instance": 1}


@pytest.mark.usefixtures("in_every_form")
@pytest.mark.parametrize("ratio", [1e3, 1e5, 1e6])
@pytest.mark.parametrize("name", AXES)
def test_gradients_are_precise_at_a_large_mean(name, ratio):
    options = {"r_max": 1.0, "d_max": 0.0} if name == "renorm" else {}
    x, g = normals(5, 20, 40, mean=ratio), normals(5, 20, 40, seed=3)
    dx = gradients(name, x, None, None, g, epsilon=1e-5, **options)[0]
    tolerance = 2e-5 + 4 * float(np.spacing(np.float32(ratio)))
    near(dx, analytic(x, g, AXES[name], 1e-5), tolerance)


@pytest.mark.parametrize("name", every_norm)
def test_gradients_of_an_empty_batch_are_zero(name):
    empty = np.zeros((0, 3, 6), np.float32)
    dx, *others = gradients(name, empty, *(*inputs(name)[1:], None)[:2], empty)
    assert dx.shape == empty.shape
    assert not any(np.asarray(other).any() for other in others)


@pytest.mark.parametrize("name", every_norm)
def test_half_precision_gradients_have_the_dtypes_of_their_arguments(name):
    x, scale, bias = (*inputs(name), None)[:3]
    half = x.astype(jnp.bfloat16)
    g = normals(*SHAPE, seed=3).astype(jnp.bfloat16)
    dx, dscale, *_ = gradients(name, half, scale, bias, g)
    assert (dx.dtype, dscale.dtype) == (jnp.bfloat16, np.float32)
    full, g = half.astype(np.float32), g.astype(np.float32)
    expected = gradients(name, full, scale, bias, g)
    near(dx, expected[0], 0.05)
    near(dscale, expected[1], 1e-3)


@pytest.mark.parametrize("name", every_norm)
def test_gradients_of_several_with_rematerialization_are_those_of_one(name):
    """tests/test_compositions.py has the second derivatives."""
    args = inputs(name, (2, 2, 4))
    stats = seen(name, 4) if name in STATEFUL else None
    call = output(name, stats)

    def loss(x):
        return jnp.sum(call(x, *args[1:]) ** 3)

    gradient = jax.jit(jax.grad(loss))(args[0])
    many = jax.jit(jax.vmap(jax.grad(jax.checkpoint(loss))))(np.stack([args[0]] * 2))
    near(many[1], gradient, 1e-4)
