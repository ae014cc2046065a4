"""Numbers that are known only at run time: swept, scheduled, differentiated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KEY, NORMS, STATEFUL, close, every_norm, library, near, normals, seen
from flax import nnx

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

X = normals(6, 3, 4, mean=2.0)
NUMBERS = [(name, "epsilon", 0.3) for name in every_norm]
NUMBERS += [(name, "momentum", 0.6) for name in STATEFUL]
NUMBERS += [("renorm", "r_max", 1.2), ("renorm", "d_max", 0.3), ("rms", "scale_offset", 0.5)]


def call(name, option, value):
    """Call a function with one option changed; give its output and statistics."""
    state = (seen(name, 4),) if name in STATEFUL else ()
    scale = (np.ones(4, np.float32),)
    return NORMS[name].function(X, *state, *scale, **{**NORMS[name].options, option: value})


# Of the others test_the_derivative_by_epsilon_is_right traces it; momentum is read in one place.
READ = [case for case in NUMBERS if case[:2] == ("batch", "momentum") or case[1] != "momentum"]
READ = [case for case in READ if case[1] != "epsilon" or case[0] in ("batch", "renorm", "group")]


@pytest.mark.long
@pytest.mark.parametrize(("name", "option", "value"), READ)
def test_a_number_may_be_an_array_or_traced(name, option, value):
    expected = call(name, option, value)
    compare = functools.partial(jax.tree.map, functools.partial(close, rtol=1e-5, atol=1e-5))
    compare(call(name, option, jnp.float32(value)), expected)
    compare(call(name, option, np.float32(value)), expected)
    traced = jax.jit(functools.partial(call, name, option))
    compare(traced(value), expected)
    swept = jax.vmap(functools.partial(call, name, option))(jnp.array([2 * value, value]))
    compare(jax.tree.map(lambda leaf: leaf[1], swept), expected)


KINDS = [(*case, jnp.asarray) for case in NUMBERS] + [(*NUMBERS[0], np.asarray)]


@pytest.mark.parametrize(("name", "option", "value", "kind"), KINDS)
def test_an_array_whose_value_is_known_is_checked(name, option, value, kind):
    if option != "scale_offset":
        with pytest.raises(ValueError, match=f"{option}=.*must be"):
            call(name, option, kind(-1.0, np.float32))
    for wrong in ([value], 1j, True):
        with pytest.raises(TypeError, match=f"{option} must be one real number"):
            call(name, option, kind(wrong))
        with pytest.raises(TypeError, match=f"{option} must be one real number"):
            jax.jit(functools.partial(call, name, option))(kind(wrong))


def test_a_function_compiles_with_train_alone_static():
    step = jax.jit(jn.batch_norm, static_argnames="train")
    stats = seen("batch", 4)
    y, new = step(X, stats, train=True, momentum=0.6, epsilon=0.3)
    expected, expected_new = library("batch", X, stats=stats, momentum=0.6, epsilon=0.3)
    near(y, expected)
    near(new, expected_new)


def test_a_schedule_of_momentum_goes_through_a_scan():
    def step(carry, x):
        count, stats = carry
        _, stats = jn.batch_norm(x, stats, train=True, momentum=count / (count + 1))
        return (count + 1, stats), None

    batches = normals(5, 6, 4, mean=1.0)
    (_, stats), _ = jax.lax.scan(step, (jnp.float32(0), seen("batch", 4)), batches)
    near(stats["mean"], batches.mean((0, 1)))
    near(stats["var"], batches.var(1).mean(0))


@pytest.mark.parametrize("name", every_norm)
def test_the_derivative_by_epsilon_is_right(name):
    x = normals(4, 3, 4).astype(np.float64)
    with jax.enable_x64(True):

        def loss(epsilon, x):
            state = (seen(name, 4),) if name in STATEFUL else ()
            options = {**NORMS[name].options, "epsilon": epsilon}
            if name == "renorm":
                options |= {"r_max": 1.0, "d_max": 0.0}
            result = NORMS[name].function(x, *state, **options)
            return jnp.sum(jnp.sin(result[0] if state else result) * x)

        def slope(function, epsilon):
            return (function(epsilon + 1e-5) - function(epsilon - 1e-5)) / 2e-5

        first = jax.jit(jax.grad(loss))
        by_x = jax.jit(lambda epsilon: jax.grad(loss, 1)(epsilon, x))
        mixed = jax.jit(jax.jacrev(jax.grad(loss, 1)))(0.3, x)
        near(first(0.3, x), slope(lambda e: jax.jit(loss)(e, x), 0.3), 1e-7)
        near(jax.jit(jax.jacfwd(loss))(0.3, x), first(0.3, x), 1e-12)
        near(mixed, slope(by_x, 0.3), 1e-7)


def test_traced_numbers_reach_the_modules():
    @jax.jit
    def linen(momentum, epsilon):
        norm = jnn.BatchNorm(use_running_average=False, momentum=momentum, epsilon=epsilon)
        y, new = norm.apply(norm.init(KEY, X), X, mutable=["batch_stats"])
        return y, new["batch_stats"]

    @jax.jit
    def by_nnx(momentum, epsilon):
        norm = jnnx.BatchNorm(4, momentum=momentum, epsilon=epsilon, rngs=nnx.Rngs(0))
        return norm(X), {"mean": norm.mean[...], "var": norm.var[...]}

    y, stats = library("batch", X, momentum=0.6, epsilon=0.3)
    for framework in (linen, by_nnx):
        actual, new = framework(0.6, 0.3)
        near(actual, y)
        near(new, stats)
