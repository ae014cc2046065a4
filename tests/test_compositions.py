"""Derivatives of derivatives: every composition of JAX's modes, held against a formula in jnp."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    NORMS,
    STATEFUL,
    chances,
    every_norm,
    fresh,
    measured_axes,
    near,
    normals,
    parameters,
)

import jaxnorm as jn

pytestmark = [pytest.mark.numerical, pytest.mark.long]

SHAPE = (4, 2, 4)
EPSILON = 0.1
WHERE = chances(*SHAPE, share=0.6) | (np.arange(2) == 0)[:, None]  # every group counts somewhere
X, V = normals(*SHAPE, mean=0.5, dtype=np.float64), normals(*SHAPE, seed=1, dtype=np.float64)
SCALE, BIAS = (parameter.astype(np.float64) for parameter in parameters(4))
OPTIONS = {"renorm": {"r_max": 1.0, "d_max": 0.0}}
# What is measured together: the shape to look at x in, and the axes to measure over there.
MEASURED = {name: (SHAPE, measured_axes(name, SHAPE)) for name in every_norm} | {
    "ghost": ((2, 2, 2, 4), (1, 2)),
    "group": ((4, 2, 2, 2), (1, 3)),
}


def ours(name, where=None, **options):
    """Give the function of x alone, with a scale and a bias."""
    options = NORMS[name].options | OPTIONS.get(name, {}) | options
    options |= {"where": where, "epsilon": EPSILON}
    rest = (SCALE, BIAS) if NORMS[name].has_bias else (SCALE,)

    def call(x):
        if name in STATEFUL:
            return NORMS[name].function(x, fresh(name, 4, dtype=x.dtype), *rest, **options)[0]
        return NORMS[name].function(x, *rest, **options)

    return call


def formula(name, where=None):
    """Give (x - mean) / sqrt(var + epsilon) * scale + bias in jnp."""
    shape, axes = MEASURED[name]
    where = None if where is None else where.reshape(shape)

    def call(x):
        parts = x.reshape(shape)
        mean = 0.0 if NORMS[name].about_zero else parts.mean(axes, where=where, keepdims=True)
        var = jnp.square(parts - mean).mean(axes, where=where, keepdims=True)
        y = ((parts - mean) / jnp.sqrt(var + EPSILON)).reshape(x.shape) * SCALE
        return y + BIAS if NORMS[name].has_bias else y

    return call


# Each makes of a function its derivative along V.
def by_jvp(f):
    return lambda x: jax.jvp(f, (x,), (V,))[1]


def by_linearize(f):
    return lambda x: jax.linearize(f, x)[1](V)


def by_jacfwd(f):
    return lambda x: jnp.vdot(jax.jacfwd(f)(x), V)


def by_jacrev(f):
    return lambda x: jnp.vdot(jax.jacrev(f)(x), V)


def by_vmap(f):
    return lambda x: jnp.vdot(jax.vmap(jax.grad(f))(jnp.stack([x, x]))[1], V)


def by_hessian(f):
    """Give the second derivative along V twice."""
    size = X.size
    return lambda x: V.ravel() @ jax.hessian(f)(x).reshape(size, size) @ V.ravel()


MODES = (by_jvp, by_linearize, by_jacfwd, by_jacrev, by_vmap)


def derived(f, modes):
    """Apply modes one after the other to a loss of f."""
    return functools.reduce(lambda f, mode: mode(f), modes, lambda x: jnp.sum(f(x) ** 3))


def same_derivatives(call, plain, modes, order):
    """Hold every composition of modes to the derivative of the formula, in one program."""
    compositions = list(itertools.product(modes, repeat=order))
    expected = derived(plain, (by_hessian, *(by_jvp,) * (order - 2)))
    with jax.enable_x64(True):
        expected = jax.jit(expected)(X)
        found = jax.jit(lambda x: [derived(call, modes)(x) for modes in compositions])(X)
        assert jnp.abs(expected) > 1e-3
        near(jnp.stack(found) / expected, np.ones(len(compositions)), 1e-10)


# A fused operation, one in steps and one without a mean in all modes. The others differ from the
# first in their view of the input alone, which the operations and their batching rule read.
ALL_MODES = ("batch", "renorm", "rms")


@pytest.mark.parametrize("name", every_norm)
def test_compositions_to_second_order_are_those_of_the_formula(name):
    modes = MODES if name in ALL_MODES else (by_jacfwd, by_vmap)
    same_derivatives(ours(name), formula(name), modes, 2)


@pytest.mark.parametrize("name", ["renorm", "group"])
def test_compositions_under_a_mask_are_those_of_the_formula(name):
    """tests/test_gradients.py has those of all under a mask beside numeric ones."""

    def counted(call):
        return lambda x: jnp.where(WHERE, call(x), 0)

    same = counted(ours(name, WHERE)), counted(formula(name, WHERE))
    same_derivatives(*same, (by_jacfwd, by_jacrev), 2)


@pytest.mark.parametrize("name", STATEFUL)
def test_compositions_in_evaluation_are_those_of_the_formula(name):
    def plain(x):
        return x / np.sqrt(1 + EPSILON) * SCALE + BIAS

    def call(x):
        return ours(name, train=False)(x)

    same_derivatives(call, plain, (by_jacfwd, by_jacrev), 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", every_norm)
def test_compositions_to_third_order_are_those_of_the_formula(name):
    modes = MODES[:4] if name in ALL_MODES else (by_jacfwd, by_jacrev)
    same_derivatives(ours(name), formula(name), modes, 3)


def test_what_is_not_mapped_is_synced_over_a_named_axis():
    x, dx = normals(3, 4, mean=1.0), normals(3, 4, seed=1)

    def over(axis_name):
        def call(x):
            return jn.layer_norm(x, epsilon=EPSILON, axis_name=axis_name)

        return [
            jax.jvp(call, (x,), (dx,))[1],
            jax.linearize(call, x)[1](dx),
            jax.grad(lambda x: jnp.sum(call(x) ** 3))(x),
            jax.jvp(jax.grad(lambda x: jnp.sum(call(x) ** 3)), (x,), (dx,))[1],
        ]

    members = jnp.arange(2.0)
    found = jax.vmap(lambda _: over("members"), axis_name="members", out_axes=None)(members)
    for one, other in zip(found, over(None), strict=True):
        near(one, other, 1e-5)
