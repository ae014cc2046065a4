"""What the tests share: the functions under one calling convention, inputs, comparisons."""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import reference
from environment import SEED, generator

import jaxnorm as jn


class Norm(NamedTuple):
    """A function of the library, its oracle, its labels, and options with which it is itself."""

    function: Callable
    oracle: Callable
    labels: Callable
    options: dict
    state: Callable | None
    about_zero: bool
    module: str
    module_options: dict

    @property
    def has_bias(self):
        """Say whether it adds a bias."""
        return "bias" in inspect.signature(self.function).parameters


def norm(description):
    """Find what a description names."""
    state = description.state and getattr(jn, description.state)
    return Norm(
        getattr(jn, description.oracle.__name__),
        description.oracle,
        description.measured_over,
        description.options,
        state,
        description.about_zero,
        description.module,
        description.module_options,
    )


# Those with running statistics first.
NORMS = {
    name: norm(description)
    for name, description in sorted(
        reference.NORMALIZATIONS.items(), key=lambda item: item[1].state is None
    )
}
STATEFUL = tuple(name for name in NORMS if NORMS[name].state)
every_norm = list(NORMS)
MODULES = {norm.module: norm for norm in NORMS.values()}
STATEFUL_MODULES = {NORMS[name].module: NORMS[name].module_options for name in STATEFUL}
KEY = jax.random.key(SEED, impl="rbg")  # whose draws XLA compiles sooner than threefry's


def fresh(name, channels, **options):
    """Give the first running statistics of a stateful function."""
    return NORMS[name].state(channels, **options)


def wider(a, b):
    """Give the dtype that holds both."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def arguments(name, x, stats, scale, bias, channel_axis):
    """Lay out the positional arguments of a function."""
    if name in STATEFUL:
        axes = sorted(reference.axes_of(channel_axis, np.ndim(x)))
        if stats is None:
            dtype = wider(np.float32, jnp.asarray(x).dtype)
            stats = fresh(name, [np.shape(x)[axis] for axis in axes], dtype=dtype)
        return x, stats, scale, bias
    return (x, scale, bias) if NORMS[name].has_bias else (x, scale)


@functools.cache
def compiled(name, options):
    """Compile a function once for its options; where is an argument."""
    function = NORMS[name].function
    return jax.jit(lambda where, *args: function(*args, where=where, **dict(options)))


@functools.cache
def compiled_gradients(name, options):
    """Compile the gradients of the positional arguments, all but the statistics."""
    function = NORMS[name].function

    def gradients(where, cotangent, x, *rest):
        stats, parameters = (rest[:1], rest[1:]) if name in STATEFUL else ((), rest)

        def output(x, *parameters):
            result = function(x, *stats, *parameters, where=where, **dict(options))
            return result[0] if stats else result

        return jax.vjp(output, x, *parameters)[1](cotangent)

    return jax.jit(gradients)


def frozen(name, options):
    """Give all options of a call as something that can be a key."""
    return tuple(sorted({**NORMS[name].options, **options}.items()))


def library(name, x, scale=None, bias=None, *, stats=None, where=None, **options):
    """Call the library, compiled; give the output and the new statistics, if there are any."""
    args = arguments(name, x, stats, scale, bias, options.get("channel_axis", -1))
    result = compiled(name, frozen(name, options))(where, *args)
    return result if name in STATEFUL else (result, None)


def gradients(name, x, scale, bias, cotangent, *, stats=None, where=None, **options):
    """Give the library's gradients of x, scale and bias (RMS: of x and scale)."""
    args = arguments(name, x, stats, scale, bias, options.get("channel_axis", -1))
    return compiled_gradients(name, frozen(name, options))(where, cotangent, *args)


def oracle(name, x, scale=None, bias=None, *, stats=None, where=None, **options):
    """Call the oracle in the way of library."""
    args = arguments(name, x, stats, scale, bias, options.get("channel_axis", -1))
    result = NORMS[name].oracle(*args, where=where, **{**NORMS[name].options, **options})
    return result if name in STATEFUL else (result, None)


def measured_axes(name, shape):
    """Give the axes along which all positions of a shape are measured together."""
    labels = NORMS[name].labels(shape, **NORMS[name].options)
    return tuple(a for a in range(len(shape)) if (labels == labels.take([0], a)).all())


def takes(name, option):
    """Say whether a function has an option."""
    return option in inspect.signature(NORMS[name].function).parameters


# Inputs


def normals(*shape, mean=0.0, std=1.0, seed=0, dtype=np.float32):
    """Draw normal numbers, rounded to the dtype."""
    draws = generator(seed, *shape)
    values = draws.normal(size=shape)
    if np.issubdtype(dtype, np.complexfloating):
        values = values + 1j * draws.normal(size=shape)
    return (mean + std * values).astype(dtype)


def chances(*shape, seed=0, share=0.6):
    """Draw a boolean mask."""
    return generator(seed, *shape).random(shape) < share


def parameters(channels, seed=0):
    """Draw a scale and a bias."""
    scale = normals(channels, mean=1.5, std=0.3, seed=seed)
    return scale, normals(channels, seed=seed + 1)


def seen(name, channels, mean=0.3, var=1.7):
    """Give running statistics that have seen something."""
    stats = dict(fresh(name, channels))
    rise = np.linspace(1.0, 1.2, channels, dtype=np.float32)
    return {**stats, "mean": jnp.asarray(mean * rise), "var": jnp.asarray(var * rise)}


# Comparisons


def close(actual, expected, **tolerances):
    """Hold two arrays, or two dicts of arrays, together within NumPy's tolerances."""
    if isinstance(expected, dict):
        assert set(actual) == set(expected)
        for key in expected:
            close(actual[key], expected[key], **tolerances)
        return
    actual, expected = reference.widen(actual), reference.widen(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, **tolerances)


def near(actual, expected, tolerance=1e-5):
    """Hold them together within an absolute tolerance."""
    close(actual, expected, rtol=0, atol=tolerance)


def within(actual, expected, tolerance):
    """Hold them together within an absolute tolerance of every position."""
    near(actual / tolerance, expected / tolerance, 1.0)


def relative(actual, expected, tolerance=1e-5):
    """Hold them together within a relative tolerance."""
    close(actual, expected, rtol=tolerance, atol=0)


def pairs(actual, expected):
    """Give the leaves of two trees of arrays, whose structures, dtypes and shapes are the same."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        leaf, other = np.asarray(leaf), np.asarray(other)
        assert (leaf.dtype, leaf.shape) == (other.dtype, other.shape)
        yield leaf, other


def identical(actual, expected):
    """Hold two trees together bit for bit.

    For what is promised so, on any processor: a checkpoint, devices alike, evaluation whatever
    the company, a step that is skipped, a constant that gives bias, the same compiled program.
    """
    for leaf, other in pairs(actual, expected):
        np.testing.assert_array_equal(leaf, other)


def alike(actual, expected, ulps=8):
    """Hold what two programs compiled apart give, within units in the last place of the largest."""
    for leaf, other in pairs(actual, expected):
        sizes = np.abs(reference.widen(other))
        largest = sizes.max(initial=0, where=np.isfinite(sizes))
        near(leaf, other, ulps * float(ulp(largest, leaf.real.dtype)))


def ulp(value, dtype=np.float32):
    """Give the distance from the value to the next larger one of the dtype."""
    if dtype == jnp.bfloat16:
        return np.spacing(np.abs(value).astype(np.float32)) * 2.0**16
    return np.spacing(np.abs(value).astype(dtype)).astype(np.float64)


def allowed(mean, std=1.0):
    """Give the promised precision of a float32 value that is standardized by these moments."""
    return 1e-5 + float(ulp(np.float32(mean))) / std


def promised(name, x, *, where=None, **options):
    """Give the promised precision of every position, each by the moments that it shares."""
    result = np.full(x.shape, 1e-5)
    if NORMS[name].about_zero:  # nothing is subtracted
        return result
    labels = NORMS[name].labels(x.shape, **{**NORMS[name].options, **options})
    for label in np.unique(labels):
        members = labels == label
        values = reference.widen(x)[members & reference.counted(x, where)]
        if values.size > 0 and values.std() > 0:
            result[members] = allowed(np.abs(values.mean()), values.std())
    return result
