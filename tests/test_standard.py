"""Programs of JAX's own primitives alone, for tools that read them."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from cases import near, within
from functions import FUNCTIONS, WHERE, X, function, gradient

import jaxnorm as jn
from jaxnorm.kernels import standard

pytestmark = pytest.mark.long


def primitives(jaxpr):
    """Give the names of all primitives, at any depth."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for part in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns")):
            if hasattr(part, "eqns"):
                yield from primitives(part)


def own(call, *args):
    """Give the primitives of a program that are jaxnorm's."""
    names = set(primitives(jax.make_jaxpr(jax.jit(call))(*args)))
    assert names
    return {name for name in names if name.startswith("jaxnorm")}


def derivatives(name, where=None):
    """Give a function and its derivatives, by name."""
    call = function(name, where)
    forward = {"tangent": lambda x: jax.jvp(call, (x,), (X,))[1]} if name != "online" else {}
    return {"value": call, "gradient": gradient(call), **forward}


@pytest.mark.parametrize("where", [None, WHERE], ids=["whole", "masked"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_program_traced_inside_holds_no_primitive_of_ours(name, where):
    for call in derivatives(name, where).values():
        with jn.standard_primitives():
            assert not own(call, X)
            assert not own(jax.vmap(call), np.stack([X, X]))


@pytest.mark.parametrize("name", ["batch", "layer", "rms", "group"])
def test_a_program_traced_outside_holds_ours(name):
    call = function(name)
    assert own(call, X)
    with jn.standard_primitives():
        assert not own(call, X)
    assert own(call, X)


def test_a_function_that_was_compiled_outside_is_traced_again():
    call = jax.jit(function("layer"))
    call(X)
    with jn.standard_primitives():
        assert "jaxnorm" not in str(jax.make_jaxpr(call)(X))


@pytest.mark.parametrize("name", ["batch", "layer"])
def test_kernels_that_are_switched_off_leave_no_primitive_of_ours(name, monkeypatch):
    """By the same question as within standard_primitives."""
    monkeypatch.setattr(standard, "switched_off", lambda: True)
    for call in derivatives(name).values():
        assert not own(call, X)


# The functions of one batch or one example differ in their axes alone, which no mask looks at.
MASKED = [name for name in FUNCTIONS if name not in ("ghost", "layer", "instance", "cumulative")]
CASES = [(name, None) for name in FUNCTIONS] + [(name, WHERE) for name in MASKED]


@pytest.mark.parametrize(
    ("name", "where"),
    CASES,
    ids=lambda v: v if isinstance(v, str) else "masked" if v is not None else "whole",
)
def test_values_and_derivatives_are_the_same(name, where):
    x = jnp.asarray(X)
    if where is not None and name not in ("inputs", "range"):
        x = x.at[1, 2].set(jnp.nan)
    for how, call in derivatives(name, where).items():
        expected = np.asarray(jax.jit(call)(x))
        with jn.standard_primitives():
            found = np.asarray(jax.jit(call)(x))
        if how == "tangent" and where is not None and expected.shape == X.shape:
            found, expected = np.where(where, found, 0), np.where(where, expected, 0)
        within(found, expected, 2e-5 * np.maximum(1, np.abs(expected)))


def test_the_derivative_at_a_large_mean_is_as_precise():
    x = 1e4 + X
    with jn.standard_primitives():
        found = jax.jit(gradient(function("layer")))(x)
    near(found, jax.jit(gradient(function("layer")))(x), 2e-2)
