"""Moments: measured right at any scale, and merged in any way without loss."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import allowed, chances, identical, near, normals, relative

import jaxnorm as jn

pytestmark = pytest.mark.numerical


@functools.cache
def measuring(axis):
    return jax.jit(lambda x, where: jn.moments(x, axis, where=where))


def measured(x, axis, where=None):
    """Measure with the library, compiled."""
    return measuring(axis)(x, where)


merge = jax.jit(jn.merge_moments)
merge_axis = jax.jit(jn.merge_moments_axis, static_argnums=1)


def same_moments(actual, expected, tolerance=2e-6):
    """Hold count exactly, variance relatively, the mean in units of the spread."""
    np.testing.assert_array_equal(actual.count, expected.count)
    size = np.sqrt(np.abs(expected.mean) ** 2 + expected.var)
    error = np.abs(reference.widen(actual.mean) - expected.mean)
    assert np.all(error <= tolerance * size)
    relative(actual.var, expected.var, tolerance)


AXES = [0, -1, 1, (0, 1), (0, 2), (-1, 0), (1, -1), (0, 1, 2)]


@pytest.mark.core
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_moments_are_those_of_the_counted_values(axis, masked):
    x = normals(4, 5, 6, mean=0.5)
    where = chances(4, 5, 6) if masked else None
    actual, expected = measured(x, axis, where), reference.moments(x, axis, where=where)
    same_moments(actual, expected)
    assert actual.count.shape == actual.mean.shape == actual.var.shape == expected.mean.shape


@pytest.mark.parametrize("count", [100, 100_000])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 1e3, -1e4, 1e5, 1e6])
def test_moments_are_precise_at_a_large_mean(in_every_form, ratio, count):
    x = normals(count, 3, mean=ratio)
    actual, expected = measured(x, 0), reference.moments(x, 0)
    near(actual.mean, expected.mean, allowed(ratio))
    relative(actual.var, expected.var)


@pytest.mark.usefixtures("in_every_form")
@pytest.mark.parametrize("size", [1e15, 1e-18])
def test_moments_are_precise_at_extreme_sizes(size):
    x = normals(64, 999, mean=2 * size, std=size)
    actual, expected = measured(x, 0), reference.moments(x, 0)
    relative(actual.mean, expected.mean)
    relative(actual.var, expected.var)


@pytest.mark.usefixtures("in_every_form")
@pytest.mark.parametrize("constant", [0.0, 1 / 3, -12345.678, 16777215.0, 1e30, 1e-30])
def test_moments_of_a_constant_are_the_constant_and_zero(constant):
    x = np.full((1001, 2), constant, np.float32)
    actual = measured(x, 0)
    np.testing.assert_array_max_ulp(np.asarray(actual.mean), x[0], 1)
    identical(actual.var, np.zeros(2, np.float32))


def test_moments_of_nothing_are_zeros():
    for x, where in [
        (np.zeros((0, 3), np.float32), None),
        (np.full((4, 3), np.nan, np.float32), False),
    ]:
        identical(tuple(measured(x, 0, where)), (np.zeros(3, np.float32),) * 3)


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 3e38])
def test_moments_do_not_see_what_is_masked(fill):
    x, where = normals(6, 5), chances(6, 5)
    filled = np.where(where, x, np.float32(fill))
    identical(measured(filled, 0, where), measured(x, 0, where))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_statistics_are_float32_at_least(dtype):
    x = normals(50, 4, mean=3.0).astype(dtype)
    actual = measured(x, 0)
    assert {leaf.dtype for leaf in actual} == {np.dtype(np.float32)}
    same_moments(actual, reference.moments(x.astype(np.float64), 0))


def test_complex_moments_have_a_complex_mean_and_a_real_variance():
    x = normals(50, 4, mean=1 - 2j, dtype=np.complex64)
    actual = measured(x, 0)
    assert (actual.mean.dtype, actual.var.dtype) == (np.complex64, np.float32)
    same_moments(actual, reference.moments(x, 0))


def test_float64_keeps_its_precision():
    with jax.enable_x64(True):
        x = normals(50, 4, mean=1e6, dtype=np.float64)
        actual = measured(x, 0)
        assert (actual.mean.dtype, actual.var.dtype) == (np.float64, np.float64)
        relative(actual.var, reference.moments(x, 0).var, 1e-9)


# Merging


def splits(length, sizes):
    """Give the slices of consecutive pieces of the sizes."""
    ends = np.cumsum(sizes)
    assert ends[-1] == length
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


SPLITS = {
    "halves": [12, 12],
    "ones": [1] * 24,
    "empty first": [0, 24],
    "empty last": [24, 0],
    "all sorts": [1, 0, 7, 2, 0, 0, 13, 1],
}


@pytest.mark.core
@pytest.mark.parametrize("mean", [0.0, 3.0])
@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
def test_merging_any_split_gives_the_whole(sizes, mean):
    x = normals(24, 3, mean=mean)
    pieces = [measured(x[s], 0) for s in splits(24, sizes)]
    expected = reference.moments(x, 0)
    same_moments(functools.reduce(merge, pieces), expected)
    same_moments(functools.reduce(merge, pieces[::-1]), expected)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pieces)
    same_moments(merge_axis(stacked, 0), expected)


@pytest.mark.parametrize("size", [1e15, 1e-15])
def test_merging_is_precise_at_extreme_sizes(size):
    x = normals(24, 3, mean=size, std=size)
    pieces = [measured(x[s], 0) for s in splits(24, SPLITS["ones"])]
    same_moments(functools.reduce(merge, pieces), reference.moments(x, 0))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pieces)
    same_moments(merge_axis(stacked, 0), reference.moments(x, 0))


def test_merging_many_pieces_of_unlike_moments_gives_the_whole():
    x = np.concatenate([normals(100, 2, mean=m, std=s, seed=s) for m, s in [(0, 1), (9, 3)] * 20])
    pieces = measured(x.reshape(40, 100, 2), 1)
    same_moments(merge_axis(pieces, 0), reference.moments(x, 0))
    one_by_one = [jn.Moments(*(leaf[i] for leaf in pieces)) for i in range(40)]
    same_moments(functools.reduce(merge, one_by_one), reference.moments(x, 0))


def test_merging_is_associative_and_commutative():
    a, b, c = (measured(normals(n, 3, mean=n, seed=n), 0) for n in (2, 5, 11))
    for trio in itertools.permutations([a, b, c]):
        expected = reference.merge([a, b, c])
        same_moments(merge(merge(trio[0], trio[1]), trio[2]), expected)
        same_moments(merge(trio[0], merge(trio[1], trio[2])), expected)


def test_merging_with_nothing_changes_nothing():
    some = measured(normals(5, 3, mean=1e5), 0)
    nothing = measured(np.zeros((0, 3), np.float32), 0)
    identical(merge(some, nothing), some)
    identical(merge(nothing, some), some)
    identical(merge(nothing, nothing), nothing)
    identical(merge_axis(jax.tree.map(lambda *v: jnp.stack(v), nothing, nothing), 0), nothing)


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (0, 1, 2)], ids=str)
def test_merging_along_an_axis_gives_the_moments_along_it(axis):
    x, where = normals(4, 3, 2, 9), chances(4, 3, 2, 9)
    pieces = measured(x, -1, where)
    axes = reference.axes_of(axis, 3)
    same_moments(merge_axis(pieces, axis), reference.moments(x, (*axes, 3), where=where))


def test_merging_complex_moments_gives_the_whole():
    x = normals(24, 3, mean=2j, dtype=np.complex64)
    a, b = measured(x[:5], 0), measured(x[5:], 0)
    same_moments(merge(a, b), reference.moments(x, 0))


def test_merging_passes_gradients_of_the_whole():
    x = normals(8, 3)

    def whole(x):
        return jnp.sum(jn.moments(x, 0).var)

    def parts(x):
        return jnp.sum(jn.merge_moments(jn.moments(x[:3], 0), jn.moments(x[3:], 0)).var)

    expected = jax.jit(jax.grad(whole))(x)
    near(expected, 2 * (x - x.mean(0)) / 8)
    near(jax.jit(jax.grad(parts))(x), expected)
