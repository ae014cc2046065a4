"""Statistics across devices: what one device with all the examples would give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    NORMS,
    STATEFUL,
    allowed,
    chances,
    every_norm,
    fresh,
    gradients,
    identical,
    library,
    near,
    normals,
    oracle,
    parameters,
    relative,
    seen,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnorm as jn

WAYS = ["vmap", "pmap", "shard_map"]
HALVES = [[0, 1, 2, 3], [4, 5, 6, 7]]


def mesh(kind=AxisType.Auto, shape=(8,), names=("i",)):
    """Give a mesh of the eight devices."""
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


def over_devices(way, function, *arrays):
    """Call the function on every device with its row of the arrays, under the axis name i."""
    if way == "vmap":
        return jax.jit(jax.vmap(function, axis_name="i"))(*arrays)
    if way == "pmap":
        return jax.pmap(function, axis_name="i")(*arrays)

    def block(*rows):
        results = function(*(row[0] for row in rows))
        return jax.tree.map(lambda leaf: leaf[None], results)

    spec = PartitionSpec("i")
    return jax.jit(jax.shard_map(block, mesh=mesh(), in_specs=spec, out_specs=spec))(*arrays)


def synced(name, stats=None, args=(), **options):
    """Give a function of a shard and its mask that normalizes over the axis i."""
    function = functools.partial(
        NORMS[name].function, **{**NORMS[name].options, "axis_name": "i", **options}
    )

    def call(x, where):
        if name in STATEFUL:
            return function(x, stats, *args, where=where)
        return function(x, *args, where=where), None

    return call


def flat(array):
    """Lay the shards of a batch one after the other."""
    return np.reshape(array, (-1, *np.shape(array)[2:]))


UNEVEN = np.arange(4) < np.array([4, 0, 1, 3, 2, 4, 0, 1])[:, None]
SHARDS = normals(8, 4, 3, mean=3 * np.arange(8)[:, None, None])


@pytest.mark.parametrize("way", WAYS)
def test_moments_of_all_devices_are_those_of_the_whole(way):
    def whole(x, where):
        return jn.sync_moments(jn.moments(x, 0, where=where), "i")

    actual = over_devices(way, whole, SHARDS, UNEVEN[..., None])
    expected = jn.moments(flat(SHARDS), 0, where=flat(UNEVEN[..., None]))
    for leaf, value in zip(actual, expected, strict=True):
        relative(leaf, np.broadcast_to(value, leaf.shape), 2e-6)
        identical(leaf, np.broadcast_to(leaf[0], leaf.shape))


@pytest.mark.parametrize("way", WAYS)
def test_counts_are_merged_with_the_means(way):
    x = np.array([0, 0, 0, 0, 8, 5, 5, 5], np.float32)[:, None]
    where = np.array([1, 1, 1, 1, 1, 0, 0, 0])[:, None]

    def whole(x, where):
        return jn.sync_moments(jn.moments(x, 0, where=where), "i")

    count, mean, var = over_devices(way, whole, x, where)
    near(np.stack([count[0], mean[0], var[0]]), [5, 1.6, 10.24])


@pytest.mark.parametrize("mask", ["whole", "uneven", "nothing"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["batch", "renorm"])
def test_synced_statistics_are_those_of_the_whole_batch(name, way, mask):
    where = {"whole": np.ones((8, 4)), "uneven": UNEVEN, "nothing": np.zeros((8, 4))}[mask]
    where, stats, args = where[..., None] != 0, seen(name, 3), parameters(3)
    y, new = over_devices(way, synced(name, stats, args), SHARDS, where)
    options = {"stats": stats, "where": flat(where)}
    expected, expected_stats = oracle(name, flat(SHARDS), *args, **options)
    near(flat(y), expected)
    for device in range(8):
        near({k: v[device] for k, v in new.items()}, expected_stats)
        identical({k: v[device] for k, v in new.items()}, {k: v[0] for k, v in new.items()})


@pytest.mark.parametrize("way", WAYS)
def test_ghosts_stay_on_their_device_and_the_statistics_do_not(way):
    x, stats = normals(8, 4, 3, mean=3 * np.arange(8)[:, None, None]), seen("ghost", 3)
    y, new = over_devices(way, synced("ghost", stats, num_ghosts=2), x, np.ones((8, 1, 1), bool))
    expected, expected_stats = oracle("ghost", flat(x), stats=stats, num_ghosts=16)
    near(flat(y), expected)
    near({k: v[3] for k, v in new.items()}, expected_stats)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_whole_batch(way):
    stats, args, g = fresh("batch", 3), parameters(3), normals(8, 4, 3, seed=5)
    where = np.ones((8, 4, 1), bool) & UNEVEN[..., None]
    g = np.where(where, g, 0)

    def loss(x, *args):
        return jnp.sum(over_devices(way, synced("batch", stats, args), x, where)[0] * g)

    actual = jax.grad(loss, argnums=(0, 1, 2))(SHARDS, *args)
    expected = gradients("batch", flat(SHARDS), *args, flat(g), where=flat(where))
    near(flat(actual[0]), expected[0])
    near(actual[1], expected[1], 5e-5)
    near(actual[2], expected[2])


@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_taken_on_the_device_is_that_of_the_whole_batch(way):
    stats, g = fresh("batch", 3), normals(8, 4, 3, seed=5)

    def local(x, g):
        return jax.grad(lambda x: jnp.sum(synced("batch", stats)(x, None)[0] * g))(x)

    expected = gradients("batch", flat(SHARDS), None, None, flat(g))[0]
    near(flat(over_devices(way, local, SHARDS, g)), expected)


@pytest.mark.parametrize("ratio", [1e3, 1e5, 1e6])
@pytest.mark.parametrize("way", WAYS)
def test_synced_statistics_are_precise_at_a_large_mean(way, ratio):
    x = normals(8, 50, 3, mean=ratio)
    where = chances(8, 50, 3)
    y, _ = over_devices(way, synced("batch", fresh("batch", 3)), x, where)
    near(flat(y), oracle("batch", flat(x), where=flat(where))[0], allowed(ratio))


@pytest.mark.parametrize("way", WAYS)
def test_one_example_a_device_is_enough(way):
    x = normals(8, 1, 3)
    y, _ = over_devices(way, synced("batch", fresh("batch", 3)), x, np.ones((8, 1, 1), bool))
    near(flat(y), oracle("batch", flat(x))[0])


@pytest.mark.parametrize("skip_nonfinite", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STATEFUL)
def test_a_step_is_skipped_on_every_device_alike(name, way, skip_nonfinite):
    x, stats = SHARDS.copy(), seen(name, 3)
    x[5, 2, 1] = np.inf
    call = synced(name, stats, skip_nonfinite=skip_nonfinite)
    _, new = over_devices(way, call, x, np.ones((8, 1, 1), bool))
    for device in range(8):
        mean, var = new["mean"][device], new["var"][device]
        if skip_nonfinite:
            identical((mean, var), (stats["mean"], stats["var"]))
        else:
            assert not np.isfinite(mean[1])


# Features, positions and groups of devices


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["layer", "rms"])
def test_features_can_be_sharded(name, way):
    x, mask = normals(5, 8, 4, mean=1.0), chances(5, 8, 4)
    shards, masks = np.swapaxes(x, 0, 1), np.swapaxes(mask, 0, 1)
    y, _ = over_devices(way, synced(name), shards, masks)
    expected, _ = oracle(name, x.reshape(5, 32), where=mask.reshape(5, 32))
    near(np.swapaxes(y, 0, 1).reshape(5, 32), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["group", "instance"])
def test_positions_can_be_sharded(name, way):
    x, mask = normals(2, 8, 3, 4, mean=1.0), chances(2, 8, 3, 1)
    y, _ = over_devices(way, synced(name), np.swapaxes(x, 0, 1), np.swapaxes(mask, 0, 1))
    expected, _ = oracle(name, x.reshape(2, 24, 4), where=mask.reshape(2, 24, 1))
    near(np.swapaxes(y, 0, 1).reshape(2, 24, 4), expected)


@pytest.mark.parametrize("way", ["pmap", "shard_map"])
def test_groups_of_devices_are_ghosts_of_the_whole_batch(way):
    call = synced("batch", fresh("batch", 3), axis_index_groups=HALVES)
    y, new = over_devices(way, call, SHARDS, UNEVEN[..., None])
    options = {"num_ghosts": 2, "where": flat(UNEVEN[..., None])}
    near(flat(y), library("ghost", flat(SHARDS), **options)[0])
    for group in HALVES:
        half = {"where": flat(UNEVEN[group][..., None])}
        near(
            {k: v[group[1]] for k, v in new.items()},
            oracle("batch", flat(SHARDS[group]), **half)[1],
        )


def test_two_axes_are_given_as_a_tuple():
    grid = mesh(shape=(2, 4), names=("a", "b"))
    spec = PartitionSpec(("a", "b"))
    call = synced("batch", fresh("batch", 3), axis_name=("a", "b"))
    sharded = jax.shard_map(call, mesh=grid, in_specs=spec, out_specs=(spec, PartitionSpec()))
    with_check = jax.jit(sharded)(flat(SHARDS), flat(UNEVEN[..., None]))
    near(with_check[0], oracle("batch", flat(SHARDS), where=flat(UNEVEN[..., None]))[0])


@pytest.mark.parametrize("check_vma", [False, True])
def test_statistics_leave_shard_map_as_one_value(check_vma):
    rows, one = PartitionSpec("i"), PartitionSpec()
    call = synced("batch", fresh("batch", 3))
    sharded = jax.shard_map(
        call, mesh=mesh(), in_specs=rows, out_specs=(rows, one), check_vma=check_vma
    )
    _, new = jax.jit(sharded)(flat(SHARDS), flat(UNEVEN[..., None]))
    near(new, oracle("batch", flat(SHARDS), where=flat(UNEVEN[..., None]))[1])


# Sharded arrays under jit


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("name", every_norm)
def test_a_sharded_batch_under_jit_needs_no_name(name, kind, masked):
    x, args = normals(16, 3, 4, mean=np.arange(16)[:, None, None]), parameters(4)
    where = chances(16, 3, 4) if masked else None
    options = {"epsilon": 0.1, **({"num_ghosts": 8} if name == "ghost" else {})}
    expected, expected_stats = oracle(name, x, *args, where=where, **options)
    grid = mesh(kind)
    with jax.set_mesh(grid):
        rows = NamedSharding(grid, PartitionSpec("i"))
        x, where = jax.device_put((x, where), rows)
        y, stats = library(name, x, *args, where=where, **options)
    near(y, expected)
    if stats is not None:
        near(stats, expected_stats)


# Where the axis is not there


@pytest.mark.parametrize("name", STATEFUL)
def test_evaluation_works_outside_the_axis(name):
    x, stats = normals(6, 4), seen(name, 4)
    options = {**NORMS[name].options, "train": False}
    y, new = NORMS[name].function(x, stats, axis_name="i", **options)
    identical(new, stats)
    near(y, library(name, x, stats=stats, train=False)[0], 1e-6)


def collectives(function, *shards):
    """Count the collectives in the compiled program of a function of shards."""
    spec = PartitionSpec("i")
    sharded = jax.shard_map(function, mesh=mesh(), in_specs=spec, out_specs=spec)
    text = jax.jit(sharded).lower(*shards).compile().as_text()
    return sum(text.count(f" {kind}(") for kind in ("all-reduce", "all-gather", "all-to-all"))


def test_training_takes_one_collective_and_evaluation_none():
    def step(train, x):
        call = jn.batch_norm(x, fresh("batch", 3), train=train, axis_name="i")
        return jax.tree.map(lambda leaf: jnp.atleast_2d(leaf), call)

    x = flat(SHARDS)
    assert collectives(functools.partial(step, True), x) == 1
    assert collectives(functools.partial(step, False), x) == 0
