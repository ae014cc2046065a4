"""Masks: the counted values are treated as if the others had been removed."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    NORMS,
    STATEFUL,
    alike,
    chances,
    every_norm,
    gradients,
    identical,
    library,
    near,
    normals,
    oracle,
    parameters,
    seen,
)

pytestmark = pytest.mark.numerical

SHAPE = (4, 3, 6)


def broadcastable():
    """Give every shape that broadcasts to SHAPE."""
    tails = [SHAPE[start:] for start in range(len(SHAPE) + 1)]
    return [shape for tail in tails for shape in itertools.product(*((1, n) for n in tail))]


def held(name, x, where, **options):
    """Hold output and statistics to the oracle's, whose mask is a removal."""
    args, options = parameters(x.shape[-1]), {"epsilon": 0.1, **options}
    y, stats = library(name, x, *args, where=where, **options)
    expected, expected_stats = oracle(name, x, *args, where=where, **options)
    near(y, expected)
    if stats is not None:
        near(stats, expected_stats)


SOME = [(), (6,), (3, 1), (4, 1, 1), SHAPE]
ALL = [
    (name, shape)
    for name in every_norm
    for shape in (broadcastable() if name in ("ghost", "group") else SOME)
]


@pytest.mark.parametrize(("name", "shape"), ALL, ids=str)
def test_a_mask_of_any_shape_that_broadcasts(name, shape):
    held(name, normals(*SHAPE, mean=2.0), chances(*shape))


FORMS = {
    "int": lambda mask: np.where(mask, np.int32(3), np.int32(0)),
    "negative": lambda mask: np.where(mask, np.int32(-1), np.int32(0)),
    "float": lambda mask: np.where(mask, np.float32(0.25), np.float32(0)),
    "bfloat16": lambda mask: mask.astype(jnp.bfloat16),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["ghost", "layer"])  # the two ways that a mask is read
def test_nonzero_counts_whatever_the_dtype(name, form):
    x, mask = normals(*SHAPE), chances(*SHAPE)
    alike(library(name, x, where=FORMS[form](mask)), library(name, x, where=mask))


@pytest.mark.parametrize("name", every_norm)
def test_a_mask_that_keeps_all_changes_nothing(name):
    x = normals(*SHAPE)
    near(library(name, x, where=np.ones((), bool))[0], library(name, x)[0], 1e-6)


@pytest.mark.core
@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", every_norm)
def test_what_is_masked_is_not_seen(name, fill):
    x, where, args = normals(*SHAPE), chances(*SHAPE), parameters(6)
    g = np.where(where, normals(*SHAPE, seed=3), 0)
    filled = np.where(where, x, np.float32(fill))
    (y, stats), (clean, clean_stats) = (library(name, v, *args, where=where) for v in (filled, x))
    identical(np.asarray(y)[where], np.asarray(clean)[where])
    identical(stats, clean_stats)
    dx, *others = gradients(name, filled, *args, g, where=where)
    clean_dx, *clean_others = gradients(name, x, *args, g, where=where)
    identical(dx, clean_dx)
    identical(others, clean_others)
    assert not np.asarray(dx)[~where].any()


@pytest.mark.core
@pytest.mark.parametrize("name", every_norm)
def test_a_masked_value_is_standardized_if_it_is_finite_and_else_bias(name):
    x, where, (scale, bias) = normals(*SHAPE), chances(*SHAPE), parameters(6)
    x[0, :, :3][~where[0, :, :3]] = np.nan
    held(name, x, where)
    y, _ = library(name, x, scale, bias, where=where)
    bias = bias if NORMS[name].has_bias else np.zeros(6, np.float32)
    sick = np.isnan(x)
    identical(np.asarray(y)[sick], np.broadcast_to(bias, SHAPE)[sick])


# Where nothing counts


def nothing_somewhere():
    """Masks that leave some statistic of some function without a value."""
    row, channel, ghost, block = (np.ones(SHAPE, bool) for _ in range(4))
    row[1], channel[..., 2], ghost[2:], block[1:3, :, :3] = False, False, False, False
    return {"row": row, "channel": channel, "ghost": ghost, "block": block}


NOTHING = nothing_somewhere()


@pytest.mark.core
@pytest.mark.parametrize("where", NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("name", every_norm)
def test_a_statistic_without_values_is_harmless(name, where):
    x, g, args = normals(*SHAPE), normals(*SHAPE, seed=3), parameters(6)
    held(name, x, where)
    for array in gradients(name, x, *args, g, where=where):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("value", [1.0, np.nan])
@pytest.mark.parametrize("name", every_norm)
def test_where_nothing_at_all_counts_the_output_is_bias_and_the_gradients_zero(name, value):
    x, g, (scale, bias) = np.full(SHAPE, value, np.float32), normals(*SHAPE), parameters(6)
    where = np.zeros((), bool)
    y, _ = library(name, x, scale, bias, where=where)
    identical(y, np.broadcast_to(bias if NORMS[name].has_bias else 0 * bias, SHAPE))
    dx, dscale, *dbias = gradients(name, x, scale, bias, g, where=where)
    assert not np.asarray(dx).any()
    assert not np.asarray(dscale).any()
    if dbias:
        near(dbias[0], g.sum((0, 1)))


@pytest.mark.parametrize("name", [name for name in every_norm if not NORMS[name].about_zero])
def test_one_counted_value_gives_bias_there(name):
    x, where, (scale, bias) = normals(*SHAPE), np.zeros(SHAPE, bool), parameters(6)
    where[1, 2, 3] = True
    options = {"d_max": 0.0} if name == "renorm" else {}
    y, _ = library(name, x, scale, bias, where=where, **options)
    assert np.asarray(y)[1, 2, 3] == bias[3]
    assert np.isfinite(y).all()


# Physically removing


@pytest.mark.parametrize("name", STATEFUL)
def test_masked_examples_might_as_well_not_be_there(name):
    x, g, args = normals(8, 3, 4), normals(8, 3, 4, seed=3), parameters(4)
    rows = np.array([True, True, True, False] * 2)
    options, where = {"stats": seen(name, 4)}, rows[:, None, None]
    y, stats = library(name, x, *args, where=where, **options)
    small, small_stats = library(name, x[rows], *args, **options)
    near(np.asarray(y)[rows], small)
    near(stats, small_stats, 1e-6)
    masked = gradients(name, x, *args, np.where(where, g, 0), where=where, **options)
    removed = gradients(name, x[rows], *args, g[rows], **options)
    near(np.asarray(masked[0])[rows], removed[0])
    for actual, expected in zip(masked[1:], removed[1:], strict=True):
        near(actual, expected)


@pytest.mark.parametrize("name", ["layer", "rms", "group", "instance"])
def test_padded_positions_might_as_well_not_be_there(name):
    x, g, args = normals(2, 7, 4), normals(2, 7, 4, seed=3), parameters(4)
    positions, where = slice(0, 5), (np.arange(7) < 5)[:, None]
    options = {"reduction_axes": (1, 2)} if name in ("layer", "rms") else {}
    near(
        library(name, x, *args, where=where, **options)[0][:, positions],
        library(name, x[:, positions], *args, **options)[0],
    )
    masked = gradients(name, x, *args, np.where(where, g, 0), where=where, **options)
    removed = gradients(name, x[:, positions], *args, g[:, positions], **options)
    near(masked[0][:, positions], removed[0])
    for actual, expected in zip(masked[1:], removed[1:], strict=True):
        near(actual, expected)
