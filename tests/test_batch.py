"""Batch and ghost batch normalization: the formula, evaluation, ghosts, and what must coincide."""

import functools

import flax
import jax
import numpy as np
import pytest
from cases import (
    NORMS,
    STATEFUL,
    alike,
    chances,
    fresh,
    gradients,
    identical,
    library,
    near,
    normals,
    oracle,
    parameters,
    promised,
    seen,
    within,
)

import jaxnorm as jn

pytestmark = pytest.mark.numerical

SHAPES = [((6, 4), -1), ((4, 5, 3), -1), ((4, 3, 5), 1), ((4, 3, 2, 5), -3), ((2, 2, 3, 2, 4), 2)]


# In evaluation the three are one; test_evaluation_does_not_depend_on_the_company calls each.
MODES = [(name, True) for name in STATEFUL] + [("batch", False)]


@pytest.mark.parametrize(("shape", "channel_axis"), SHAPES, ids=str)
@pytest.mark.parametrize(("name", "train"), MODES)
def test_any_axis_can_hold_the_channels(name, shape, channel_axis, train):
    x, channels = normals(*shape, mean=2.0, std=3.0), shape[channel_axis]
    args = (x, *parameters(channels))
    options = {"stats": seen(name, channels), "channel_axis": channel_axis, "train": train}
    y, stats = library(name, *args, **options)
    expected, expected_stats = oracle(name, *args, **options)
    near(y, expected)
    near(stats, expected_stats)


def test_the_first_axis_can_hold_the_channels_of_a_batch():
    x = normals(4, 6)
    y, stats = library("batch", x, *parameters(4), channel_axis=0)
    expected, expected_stats = oracle("batch", x, *parameters(4), channel_axis=0)
    near(y, expected)
    near(stats, expected_stats)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("name", "channel_axis", "train"),
    [(name, (3, 1), train) for name, train in MODES] + [("batch", (0, 2), True)],
)
def test_several_axes_can_hold_the_channels(name, channel_axis, masked, train):
    x = normals(4, 3, 4, 5, mean=2.0, std=3.0)
    shape = tuple(x.shape[axis] for axis in sorted(channel_axis))
    stats = {**fresh(name, shape), "mean": normals(*shape), "var": np.exp(normals(*shape, seed=1))}
    args = (x, normals(*shape, mean=1.5), normals(*shape, seed=2))
    where = chances(*x.shape, share=0.8) if masked else None
    options = {"stats": stats, "channel_axis": channel_axis, "train": train, "where": where}
    y, stats = library(name, *args, **options)
    expected, expected_stats = oracle(name, *args, **options)
    near(y, expected)
    near(stats, expected_stats)


@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_scale_and_bias_are_each_optional(with_scale, with_bias):
    x, (scale, bias) = normals(6, 4), parameters(4)
    args = (x, scale if with_scale else None, bias if with_bias else None)
    near(library("batch", *args)[0], oracle("batch", *args)[0])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tiny_batches(count):
    x = normals(count, 2, 4, mean=5.0)
    near(library("batch", x, epsilon=0.1)[0], oracle("batch", x, epsilon=0.1)[0])


# Evaluation


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, (33, 5)) for name in STATEFUL] + [("batch", (9, 3, 5)), ("batch", (7, 4, 4, 16))],
)
def test_evaluation_does_not_depend_on_the_company(name, shape):
    x, channels = normals(*shape, mean=1.0), shape[-1]
    args, options = parameters(channels), {"stats": seen(name, channels), "train": False}
    whole, _ = library(name, x, *args, **options)
    for size in (1, 2, 5):
        identical(library(name, x[:size], *args, **options)[0], whole[:size])
    identical(library(name, x[:0], *args, **options)[0], whole[:0])
    sick = x.copy()
    sick[1:] = np.nan
    identical(library(name, sick, *args, **options)[0][:1], whole[:1])


@pytest.mark.parametrize("name", STATEFUL)
def test_a_frozen_layer_passes_the_gradient_of_a_constant_factor(name):
    x, g, (scale, bias) = normals(6, 4), normals(6, 4, seed=1), parameters(4)
    stats = seen(name, 4)
    dx, dscale, dbias = gradients(name, x, scale, bias, g, stats=stats, train=False, epsilon=0.1)
    root = np.sqrt(np.asarray(stats["var"], np.float64) + 0.1)
    near(dx, g * scale / root, 1e-6)
    near(dscale, np.sum(g * (x - stats["mean"]) / root, 0))
    near(dbias, g.sum(0, dtype=np.float64))


@pytest.mark.parametrize("options", [{"ghost_size": 4}, {"num_ghosts": 4}], ids=str)
def test_evaluation_takes_a_batch_of_any_size(options):
    options = {"num_ghosts": None, "train": False, **options}
    x, stats = normals(7, 4), seen("ghost", 4)
    y, _ = library("ghost", x, stats=stats, **options)
    alike(y, library("batch", x, stats=stats, train=False)[0])


def test_masked_values_in_evaluation():
    x, where, (scale, bias) = normals(6, 4), chances(6, 4), parameters(4)
    options = {"stats": seen("batch", 4), "train": False}
    plain, _ = library("batch", x, scale, bias, **options)
    near(library("batch", x, scale, bias, where=where, **options)[0], plain, 1e-6)
    sick = np.where(where, x, np.float32(np.nan))
    y, _ = library("batch", sick, scale, bias, where=where, **options)
    near(y, np.where(where, plain, bias), 1e-6)


# Ghosts


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_ghosts", [1, 2, 4])
def test_ghosts_are_batch_norm_on_each_slice(num_ghosts, masked):
    x, args = normals(8, 3, 4, mean=np.arange(8)[:, None, None]), parameters(4)
    where = chances(8, 3, 1) if masked else None
    options = {"where": where, "num_ghosts": num_ghosts}
    y, stats = library("ghost", x, *args, **options)
    precision = promised("ghost", x, **options) * np.abs(args[0]).max()
    for s in np.split(np.arange(8), num_ghosts):
        alone = library("batch", x[s], *args, where=None if where is None else where[s])
        within(y[s], alone[0], precision[s])
    near(stats, library("batch", x, where=where)[1], 1e-6)


def test_ghost_size_is_the_other_way_to_say_num_ghosts():
    x = normals(8, 3, 4)
    alike(library("ghost", x, ghost_size=2, num_ghosts=None), library("ghost", x, num_ghosts=4))


def test_one_ghost_is_the_whole_batch():
    x, g, args = normals(8, 3, 4), normals(8, 3, 4, seed=1), parameters(4)
    ghost, batch = library("ghost", x, *args, num_ghosts=1), library("batch", x, *args)
    near(ghost[0], batch[0], 1e-6)
    near(ghost[1], batch[1], 1e-6)
    pairs = zip(
        gradients("ghost", x, *args, g, num_ghosts=1), gradients("batch", x, *args, g), strict=True
    )
    for actual, expected in pairs:
        near(actual, expected)


@pytest.mark.parametrize("momentum", [0.9, None])
def test_ghosts_remember_the_whole_batch(momentum):
    x = normals(8, 4, mean=10 * np.arange(8)[:, None])
    stats = jn.init_batch_stats(4, momentum=momentum)
    options = {"stats": stats, "momentum": momentum}
    near(library("ghost", x, num_ghosts=4, **options)[1], oracle("batch", x, **options)[1], 1e-4)


def test_a_fully_masked_ghost_is_bias_and_adds_nothing():
    x, (scale, bias) = normals(6, 4), parameters(4)
    where = np.array([1, 1, 0, 0, 1, 1])[:, None]
    y, stats = library("ghost", x, scale, bias, where=where, num_ghosts=3)
    near(y, oracle("ghost", x, scale, bias, where=where, num_ghosts=3)[0])
    identical(y[2:4], np.broadcast_to(bias, (2, 4)))
    near(stats, library("batch", x[[0, 1, 4, 5]])[1], 1e-6)


@pytest.mark.parametrize("options", [{"ghost_size": 2, "num_ghosts": None}, {"num_ghosts": 4}])
def test_an_empty_batch_has_empty_ghosts(options):
    y, _ = library("ghost", np.zeros((0, 3, 4), np.float32), **options)
    assert y.shape == (0, 3, 4)


def program(num_ghosts):
    """Give the compiled forward and backward program for the number of ghosts."""

    def loss(x):
        y, stats = jn.ghost_batch_norm(x, fresh("ghost", 4), train=True, num_ghosts=num_ghosts)
        return (y**3).sum(), stats

    lowered = jax.jit(jax.grad(loss, has_aux=True)).lower(np.zeros((1024, 3, 4), np.float32))
    return lowered.as_text(), lowered.compile().as_text()


def test_the_program_does_not_grow_with_the_number_of_ghosts():
    few, many = ([text.count("\n") for text in program(n)] for n in (2, 32))
    assert many[0] == few[0]
    assert many[1] <= 1.2 * few[1]


# One function for all


@pytest.mark.parametrize("name", STATEFUL)
def test_jit_vmap_scan_and_remat_change_nothing(name):
    x, stats = normals(3, 6, 4, mean=1.0), seen(name, 4)
    function = functools.partial(NORMS[name].function, **NORMS[name].options)
    expected = [oracle(name, batch, stats=stats)[0] for batch in x]

    def step(stats, batch):
        y, new = function(batch, stats)
        return {**new, "mean": stats["mean"], "var": stats["var"]}, y

    for actual in (
        [function(batch, stats)[0] for batch in x],
        jax.jit(jax.vmap(function, in_axes=(0, None)))(x, stats)[0],
        jax.jit(jax.vmap(jax.checkpoint(function), in_axes=(0, None)))(x, stats)[0],
        jax.lax.scan(step, stats, x)[1],
    ):
        near(np.stack(actual), np.stack(expected))


@pytest.mark.parametrize("kind", [dict, flax.core.FrozenDict])
def test_flax_statistics_go_in_and_out_unchanged_in_structure(kind):
    stats = kind({"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)})
    for train in (True, False):
        _, new = library("batch", normals(6, 4), stats=stats, train=train)
        assert jax.tree.structure(new) == jax.tree.structure(stats)
