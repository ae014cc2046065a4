"""PopArt's correction keeps the values of a layer when the scale of its targets changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import near, normals, ulp

import jaxnorm as jn

pytestmark = pytest.mark.numerical

IN, F = 6, 3
corrected = jax.jit(jn.preserve_outputs, static_argnames=("kernel_axis", "layer"))


def fitted(mean, std):
    """Give a fit to targets with this mean and this deviation."""
    mean, std = (np.broadcast_to(np.float32(value), F) for value in (mean, std))
    return jn.update_input_stats(jn.init_input_stats(F), np.stack([mean - std, mean + std]))


def widened(*arrays):
    """Give arrays in float64."""
    return [np.asarray(array, np.float64) for array in arrays]


def values(kernel, bias, fit, x, epsilon=0.0):
    """Give in float64 what the outputs of a layer stand for."""
    kernel, bias, mean, var = widened(kernel, bias, fit["mean"], fit["var"])
    power = np.where(var + epsilon == 0, 1, var + epsilon)
    return (x @ kernel + bias) * np.sqrt(power) + mean


FITS = [
    (fitted(0.0, 1.0), fitted(0.0, 1.0)),
    (fitted([0.0, -3.0, 1e4], [1.0, 0.1, 1e4]), fitted([1e3, 2.0, 1e4], [1e3, 50.0, 2.0])),
    (jn.init_input_stats(F), fitted(7.0, [3.0, 1e-3, 3e3])),
    (fitted(5.0, 0.0), fitted([5.0, 6.0, 1e2], [0.0, 1.0, 10.0])),
]


@pytest.mark.parametrize(("old", "new"), FITS)
@pytest.mark.parametrize("epsilon", [0.0, 0.25])
def test_outputs_stand_for_the_same_values(old, new, epsilon):
    kernel, bias, x = normals(IN, F), normals(F), normals(20, IN, seed=1).astype(np.float64)
    new_kernel, new_bias = corrected(kernel, bias, old, new, epsilon=epsilon)
    before = values(kernel, bias, old, x, epsilon)
    after = values(new_kernel, new_bias, new, x, epsilon)
    # A unit in the last place of each term that is summed.
    scale = np.sqrt(np.asarray(old["var"]) + epsilon) + (np.asarray(old["var"]) + epsilon == 0)
    terms = (
        scale * (np.abs(x) @ np.abs(kernel) + np.abs(bias))
        + np.abs(old["mean"])
        + np.abs(new["mean"])
    )
    near((after - before) / ulp(terms.astype(np.float32)), np.zeros(before.shape), 3.0)


def test_the_correction_is_the_papers_formula():
    old, new = FITS[1]
    kernel, bias = normals(IN, F), normals(F)
    mean, var, new_mean, new_var = widened(old["mean"], old["var"], new["mean"], new["var"])
    ratio = np.sqrt(var / new_var)
    new_kernel, new_bias = corrected(kernel, bias, old, new)
    near(new_kernel / (kernel * ratio), np.ones((IN, F)), 4 * 2.0**-23)
    expected = (np.sqrt(var) * bias + mean - new_mean) / np.sqrt(new_var)
    near(new_bias, expected, 4 * ulp(np.abs(expected).max()))


@pytest.mark.long
def test_other_layouts_a_missing_bias_and_narrow_kernels():
    old, new = FITS[1]
    kernel, bias = normals(F, IN), normals(F)
    turned, turned_bias = corrected(kernel, bias, old, new, kernel_axis=0)
    straight, straight_bias = corrected(kernel.T, bias, old, new)
    near(turned, np.asarray(straight).T, 0)
    near(turned_bias, straight_bias, 0)
    near(corrected(kernel, bias, old, new, layer="pytorch.Linear")[0], turned, 0)
    without = corrected(kernel.T, None, old, new)[1]
    near(without, corrected(kernel.T, np.zeros(F, np.float32), old, new)[1], 0)
    half, half_bias = corrected(jnp.asarray(kernel.T, jnp.bfloat16), None, old, new)
    assert half.dtype == half_bias.dtype == jnp.bfloat16


def test_a_stream_of_targets_whose_scale_grows_leaves_every_value():
    """As in training, where the fit changes and nothing else."""
    x = normals(20, IN).astype(np.float64)
    fit = jn.update_input_stats(jn.init_input_stats(F), normals(8, F))
    kernel, bias = normals(IN, F), normals(F)
    before = values(kernel, bias, fit, x)

    @jax.jit
    def step(carry, targets):
        fit, kernel, bias = carry
        new = jn.update_input_stats(fit, targets, decay=0.9)
        return new, *jn.preserve_outputs(kernel, bias, fit, new)

    carry = fit, jnp.asarray(kernel), jnp.asarray(bias)
    for size in range(40):
        carry = step(carry, normals(8, F, mean=float(size), std=1.5**size, seed=size))
    fit, kernel, bias = carry
    assert float(fit["var"].min()) > 1e12
    # Each step rounds the bias to the deviation of its fit.
    near(values(kernel, bias, fit, x), before, 4 * ulp(np.sqrt(np.float32(fit["var"].max()))))


def test_the_correction_is_batched_and_differentiable():
    old, new = FITS[1]
    kernels, bias = normals(2, IN, F), normals(F)
    batched = jax.vmap(jn.preserve_outputs, (0, None, None, None))(kernels, bias, old, new)
    near(batched[0][1], corrected(kernels[1], bias, old, new)[0], 0)
    grad = jax.grad(lambda kernel: jn.preserve_outputs(kernel, bias, old, new)[0].sum())(kernels[0])
    ratio = np.sqrt(np.float64(old["var"]) / np.float64(new["var"]))
    near(grad / ratio, np.ones((IN, F)), 1e-6)


KERNEL, FIT, NARROW = np.ones((IN, F), np.float32), jn.init_input_stats(F), jn.init_input_stats(2)
BAD = [
    (ValueError, ["(2,)", "(3,)"], (KERNEL, None, FIT, NARROW), {}),
    (ValueError, ["(2,)", "3 output channels"], (KERNEL, None, NARROW, NARROW), {}),
    (ValueError, ["bias", "(6,)"], (KERNEL, np.ones(IN, np.float32), FIT, FIT), {}),
    (ValueError, ["kernel_axis"], (KERNEL, None, FIT, FIT), {"kernel_axis": 2}),
    (ValueError, ["flax.Dance"], (KERNEL, None, FIT, FIT), {"layer": "flax.Dance"}),
    (ValueError, ["epsilon=-1"], (KERNEL, None, FIT, FIT), {"epsilon": -1.0}),
    (ValueError, ["['count'"], (KERNEL, None, FIT, {"mean": np.ones(3)}), {}),
    (TypeError, ["dict", "ndarray"], (KERNEL, None, KERNEL, FIT), {}),
    (TypeError, ["int32"], (KERNEL.astype(np.int32), None, FIT, FIT), {}),
]


@pytest.mark.parametrize(("error", "words", "args", "options"), BAD)
def test_a_wrong_call_is_an_error_that_names_the_cure(error, words, args, options):
    with pytest.raises(error) as caught:
        jn.preserve_outputs(*args, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
