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
    measured_axes,
    near,
    normals,
    oracle,
    parameters,
    promised,
    relative,
    seen,
    within,
)
from devices import DEVICES, WAYS, flat, mapped, mesh, over_devices
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from jaxnorm import distributed

pytestmark = pytest.mark.numerical

HALVES = [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.fixture(params=["gathered", "reduced"])
def merging(request, monkeypatch):
    """Merge by the all-gather of few moments, and by the all-reduces of many."""
    if request.param == "reduced":
        monkeypatch.setattr(distributed, "GATHERED_BYTES", 0)


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


UNEVEN = np.arange(4) < np.array([4, 0, 1, 3, 2, 4, 0, 1])[:, None]
SHARDS = normals(8, 4, 3, mean=3 * np.arange(8)[:, None, None])


@pytest.mark.parametrize("way", WAYS)
def test_moments_of_all_devices_are_those_of_the_whole(way, merging):
    def whole(x, where):
        return jn.sync_moments(jn.moments(x, 0, where=where), "i")

    actual = over_devices(way, whole, SHARDS, UNEVEN[..., None])
    expected = jn.moments(flat(SHARDS), 0, where=flat(UNEVEN[..., None]))
    for leaf, value in zip(actual, expected, strict=True):
        relative(leaf, np.broadcast_to(value, leaf.shape), 2e-6)
        identical(leaf, np.broadcast_to(leaf[0], leaf.shape))


@pytest.mark.parametrize("way", WAYS)
def test_counts_are_merged_with_the_means(way, merging):
    x = np.array([0, 0, 0, 0, 8, 5, 5, 5], np.float32)[:, None]
    where = np.array([1, 1, 1, 1, 1, 0, 0, 0])[:, None]

    def whole(x, where):
        return jn.sync_moments(jn.moments(x, 0, where=where), "i")

    count, mean, var = over_devices(way, whole, x, where)
    near(np.stack([count[0], mean[0], var[0]]), [5, 1.6, 10.24])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["batch", "renorm"])
def test_synced_statistics_are_those_of_the_whole_batch(name, way):
    stats, args = seen(name, 3), parameters(3)
    call = mapped(way, synced(name, stats, args))
    for mask in (np.ones((8, 4), bool), UNEVEN, np.zeros((8, 4), bool)):
        where = mask[..., None]
        y, new = call(SHARDS, where)
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
    within(flat(y), expected, promised("ghost", flat(x), num_ghosts=16))
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


@pytest.mark.parametrize("way", WAYS)
def test_a_masked_rms_norm_has_a_gradient_on_the_device(way):
    x, where, g = normals(8, 5, 4), chances(8, 5, 4), normals(8, 5, 4, seed=5)

    def local(x, where, g):
        return jax.grad(lambda x: jnp.sum(jn.rms_norm(x, where=where) * g))(x)

    g = np.where(where, g, 0)
    expected = gradients("rms", flat(x), None, None, flat(g), where=flat(where))[0]
    near(flat(over_devices(way, local, x, where, g)), expected)


@pytest.mark.parametrize("way", WAYS)
def test_synced_statistics_are_precise_at_a_large_mean(way, merging):
    call, where = mapped(way, synced("batch", fresh("batch", 3))), chances(8, 50, 3)
    for ratio in (1e3, 1e5, 1e6):
        x = normals(8, 50, 3, mean=ratio)
        y, _ = call(x, where)
        near(flat(y), oracle("batch", flat(x), where=flat(where))[0], allowed(ratio))


@pytest.mark.parametrize("way", WAYS)
def test_one_example_a_device_is_enough(way):
    x = normals(8, 1, 3)
    y, _ = over_devices(way, synced("batch", fresh("batch", 3)), x, np.ones((8, 1, 1), bool))
    near(flat(y), oracle("batch", flat(x))[0])


SKIPPING = [("batch", way) for way in WAYS] + [("ghost", "shard_map"), ("renorm", "shard_map")]


@pytest.mark.parametrize("skip_nonfinite", [False, True])
@pytest.mark.parametrize(("name", "way"), SKIPPING)
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
            assert not np.isfinite(var[1])
            assert NORMS[name].about_zero or not np.isfinite(mean[1])


@pytest.mark.parametrize("name", [name for name in every_norm if name != "ghost"])
def test_every_normalization_merges_over_a_mapped_axis(name):
    """Ghosts have statistics of their own on each device."""
    x = normals(4, 6, 4, mean=1.0, std=2.0)
    axis = measured_axes(name, x.shape)[-1] if name != "group" else 1
    shards = np.stack(np.split(x, 2, axis))
    mask = np.ones((2, 1, 1, 1), bool)
    stats = fresh(name, 4) if name in STATEFUL else None
    y, new = over_devices("vmap", synced(name, stats), shards, mask)
    expected, expected_stats = oracle(name, x, stats=stats)
    near(np.concatenate(y, axis), expected)
    if name in STATEFUL:
        near(jax.tree.map(lambda leaf: leaf[0], new), expected_stats)


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


@pytest.mark.parametrize("way", DEVICES)
def test_groups_of_devices_are_ghosts_of_the_whole_batch(way, merging):
    args, where = parameters(3), UNEVEN[..., None]
    call = synced("batch", fresh("batch", 3), args, axis_index_groups=HALVES)
    y, new = over_devices(way, call, SHARDS, where)
    options = {"num_ghosts": 2, "where": flat(where)}
    near(flat(y), library("ghost", flat(SHARDS), *args, **options)[0])
    for group in HALVES:
        half = {"where": flat(where[group])}
        for device in group:
            stats = {k: v[device] for k, v in new.items()}
            near(stats, oracle("batch", flat(SHARDS[group]), **half)[1])
            identical(stats, {k: v[group[0]] for k, v in new.items()})


@pytest.mark.parametrize("way", DEVICES)
def test_gradients_of_groups_are_those_of_ghosts(way):
    args, where, g = parameters(3), UNEVEN[..., None], normals(8, 4, 3, seed=5)
    g = np.where(where, g, 0)

    def loss(x, *args):
        call = synced("batch", fresh("batch", 3), args, axis_index_groups=HALVES)
        return jnp.sum(over_devices(way, call, x, where)[0] * g)

    actual = jax.grad(loss, argnums=(0, 1, 2))(SHARDS, *args)
    options = {"num_ghosts": 2, "where": flat(where)}
    expected = gradients("ghost", flat(SHARDS), *args, flat(g), **options)
    near(flat(actual[0]), expected[0])
    near(actual[1], expected[1], 5e-5)
    near(actual[2], expected[2])


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_each_device_by_itself_is_a_ghost_of_the_whole_batch(way):
    stats, args, where = seen("ghost", 3), parameters(3), UNEVEN[..., None]
    y, new = over_devices(way, synced("ghost", stats, args, num_ghosts=1), SHARDS, where)
    options = {"num_ghosts": 8, "where": flat(where), "stats": stats}
    expected, expected_stats = library("ghost", flat(SHARDS), *args, **options)
    precision = promised("ghost", flat(SHARDS), num_ghosts=8, where=flat(where))
    within(flat(y), expected, precision * np.abs(args[0]).max())
    for device in range(8):
        near({k: v[device] for k, v in new.items()}, expected_stats)
        identical({k: v[device] for k, v in new.items()}, {k: v[0] for k, v in new.items()})


@pytest.mark.long
@pytest.mark.parametrize("ratio", [1e3, 1e5])
@pytest.mark.parametrize("way", DEVICES)
def test_gradients_are_precise_at_a_large_mean(way, ratio):
    x, g, args = normals(8, 20, 3, mean=ratio), normals(8, 20, 3, seed=5), parameters(3)

    def loss(x, *args):
        stats = fresh("batch", 3)
        return jnp.sum(over_devices(way, synced("batch", stats, args), x, MANY)[0] * g)

    actual = jax.grad(loss, argnums=(0, 1, 2))(x, *args)
    exact = in_float64(flat(x), *args, flat(g))
    near(flat(actual[0]), exact[0], allowed(ratio))
    for mine, theirs in zip(actual[1:], exact[1:], strict=True):
        near(mine, theirs, allowed(ratio) * np.abs(g).sum((0, 1)).max())


MANY = np.ones((8, 20, 1), bool)


def in_float64(x, scale, bias, g):
    """Give the gradients by the formula of the paper, in double precision."""
    x, scale, g = (np.asarray(array, np.float64) for array in (x, scale, g))
    rstd = 1 / np.sqrt(x.var(0) + 1e-5)
    y = (x - x.mean(0)) * rstd
    gy = g * scale
    return rstd * (gy - gy.mean(0) - y * (gy * y).mean(0)), (g * y).sum(0), g.sum(0)


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("spec", [P(("i", "j")), P("i", "j"), P(None, ("j", "i"))], ids=str)
def test_two_axes_are_given_as_a_tuple(spec, check_vma, merging):
    x, where = normals(8, 8, 3, mean=2.0), chances(8, 8, 1)
    names = ("i", "j")
    call = synced("batch", fresh("batch", 3), axis_name=names)
    sharded = jax.shard_map(
        call,
        mesh=mesh(shape=(2, 4), names=names),
        in_specs=spec,
        out_specs=(spec, P()),
        check_vma=check_vma,
    )
    y, new = jax.jit(sharded)(x, where)
    expected, expected_stats = oracle("batch", x, where=where)
    near(y, expected)
    near(new, expected_stats)


@pytest.mark.parametrize("check_vma", [False, True])
def test_a_batch_split_over_one_of_two_names_is_counted_once_on_each(check_vma, merging):
    x, names = normals(8, 3, mean=2.0), ("i", "j")
    call = synced("batch", fresh("batch", 3), axis_name=names)
    sharded = jax.shard_map(
        lambda x: call(x, None),
        mesh=mesh(shape=(2, 4), names=names),
        in_specs=P("i"),
        out_specs=(P("i"), P()),
        check_vma=check_vma,
    )
    y, new = jax.jit(sharded)(x)
    expected, expected_stats = oracle("batch", x)
    near(y, expected)
    near(new, expected_stats)


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize(("name", "momentum"), [("batch", 0.9), ("batch", None), ("renorm", 0.9)])
def test_channels_can_be_split_over_the_other_axis(name, momentum, check_vma):
    x, args, g = normals(8, 5, 8, mean=2.0), parameters(8), normals(8, 5, 8, seed=5)
    spec, channels = P("i", None, "j"), P("j")
    stats = fresh(name, 8, momentum=momentum)
    specs = {key: channels if value.ndim else P() for key, value in stats.items()}
    options = NORMS[name].options | {"momentum": momentum}

    def block(x, stats, scale, bias):
        return NORMS[name].function(x, stats, scale, bias, axis_name="i", **options)

    sharded = jax.shard_map(
        block,
        mesh=mesh(shape=(2, 4), names=("i", "j")),
        in_specs=(spec, specs, channels, channels),
        out_specs=(spec, specs),
        check_vma=check_vma,
    )
    call = jax.jit(sharded)
    y, backward, new = jax.vjp(lambda x, *args: call(x, stats, *args), x, *args, has_aux=True)
    expected, expected_stats = oracle(name, x, *args, stats=stats, momentum=momentum)
    near(y, expected)
    near(new, expected_stats)
    wanted = gradients(name, x, *args, g, stats=stats, momentum=momentum)
    for mine, theirs in zip(backward(g), wanted, strict=True):
        near(mine, theirs, 5e-5)


@pytest.mark.long
def test_a_name_of_vmap_inside_a_checked_shard_map_is_an_error():
    call = synced("batch", fresh("batch", 3), axis_name=("i", "j"))
    inner = jax.vmap(lambda x: call(x, None)[0], axis_name="j")
    rows = {"mesh": mesh(), "in_specs": P("i"), "out_specs": P("i")}
    x = normals(8, 4, 3)
    with pytest.raises(ValueError, match="check_vma=False"):
        jax.shard_map(inner, **rows)(x)
    y = jax.jit(jax.shard_map(inner, check_vma=False, **rows))(x)
    near(y.reshape(-1, 3), oracle("batch", x.reshape(-1, 3))[0])


@pytest.mark.long
def test_names_of_pmap_and_vmap_together():
    x, g = normals(2, 4, 5, 3, mean=2.0), normals(2, 4, 5, 3, seed=5)

    def loss(x):
        call = synced("batch", fresh("batch", 3), axis_name=("i", "j"))
        inner = jax.vmap(lambda x: call(x, None), axis_name="j")
        y, new = jax.pmap(inner, axis_name="i", devices=jax.devices()[:2])(x)
        return jnp.sum(y * g), (y, new)

    actual, (y, new) = jax.grad(loss, has_aux=True)(x)
    whole = x.reshape(-1, 3)
    near(y.reshape(-1, 3), oracle("batch", whole)[0])
    near({k: v[1, 2] for k, v in new.items()}, oracle("batch", whole)[1])
    near(actual.reshape(-1, 3), gradients("batch", whole, None, None, g.reshape(-1, 3))[0])


@pytest.mark.parametrize("check_vma", [False, True])
def test_statistics_leave_shard_map_as_one_value(check_vma):
    rows, one = P("i"), P()
    call = synced("batch", fresh("batch", 3))
    sharded = jax.shard_map(
        call, mesh=mesh(), in_specs=rows, out_specs=(rows, one), check_vma=check_vma
    )
    _, new = jax.jit(sharded)(flat(SHARDS), flat(UNEVEN[..., None]))
    near(new, oracle("batch", flat(SHARDS), where=flat(UNEVEN[..., None]))[1])


# Where the axis is not there


@pytest.mark.parametrize("name", STATEFUL)
def test_evaluation_works_outside_the_axis(name):
    x, stats = normals(6, 4), seen(name, 4)
    options = {**NORMS[name].options, "train": False}
    y, new = NORMS[name].function(x, stats, axis_name="i", **options)
    identical(new, stats)
    near(y, library(name, x, stats=stats, train=False)[0], 1e-6)
