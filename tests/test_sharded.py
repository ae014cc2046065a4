"""Sharded arrays under jit: statistics are global without a name, whatever is split over what."""

import functools

import jax
import numpy as np
import pytest
from cases import (
    KEY,
    NORMS,
    STATEFUL,
    STATEFUL_MODULES,
    allowed,
    chances,
    every_norm,
    fresh,
    gradients,
    library,
    near,
    normals,
    oracle,
    parameters,
    seen,
)
from devices import mesh
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

SPLITS = {
    "batch": P(("i", "j")),
    "positions": P("i", "j"),
    "channels": P("i", None, None, "j"),
    "positions and channels": P(None, "i", None, "j"),
}
KINDS = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}
X, G = normals(8, 16, 2, 8, mean=2.0), normals(8, 16, 2, 8, seed=5)
MASK = chances(8, 16, 2, 1)
SCALE, BIAS = parameters(8)


@functools.cache
def expected(name, masked, **options):
    """Give the oracle's output and statistics, and the gradients on one device."""
    where = MASK if masked else None
    stats = seen(name, 8) if name in STATEFUL else None
    result = oracle(name, X, SCALE, BIAS, stats=stats, where=where, **options)
    g = G if where is None else np.where(where, G, 0)
    return (*result, gradients(name, X, SCALE, BIAS, g, stats=stats, where=where, **options))


def sharded(name, grid, spec, masked, channels=None, **options):
    """Compile and run the output, the statistics and the gradients of sharded arrays.

    Parameters and running statistics are split as `channels` says, or as the channels of x.
    """
    where = MASK if masked else None
    g = G if where is None else np.where(where, G, 0)
    stats = seen(name, 8) if name in STATEFUL else None
    if channels is None:
        channels = P(spec[3]) if len(spec) > 3 else P()
    arguments = [(X, spec), (where, P(*spec[:3])), (SCALE, channels), (BIAS, channels), (g, spec)]
    put = [
        None if array is None else jax.device_put(array, NamedSharding(grid, of))
        for array, of in arguments
    ]
    if stats is not None:
        of_channel = NamedSharding(grid, channels)
        stats |= jax.device_put({key: stats[key] for key in ("mean", "var")}, of_channel)

    @jax.jit
    def run(x, where, scale, bias, g, stats):
        def output(x, *parameters):
            state = () if stats is None else (stats,)
            parameters = parameters[: 2 if NORMS[name].has_bias else 1]
            every = {**NORMS[name].options, **options}
            result = NORMS[name].function(x, *state, *parameters, where=where, **every)
            return result if state else (result, None)

        y, backward, new = jax.vjp(output, x, scale, bias, has_aux=True)
        return y, new, backward(g)

    with jax.set_mesh(grid):
        return run(*put, stats)


def hold(actual, wanted):
    """Hold output, statistics and gradients together; RMS has no bias."""
    near(actual[0], wanted[0])
    if wanted[1] is not None:
        near(actual[1], wanted[1])
    for mine, theirs in zip(actual[2], wanted[2], strict=False):
        near(mine, theirs, 2e-5 * max(1.0, float(np.abs(theirs).max())))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("name", "masked"), [(n, n in ("layer", "instance")) for n in every_norm] + [("batch", True)]
)
def test_any_axis_can_be_split_over_an_explicit_mesh(name, masked, split):
    grid = mesh(AxisType.Explicit, (2, 4), ("i", "j"))
    actual = sharded(name, grid, SPLITS[split], masked)
    hold(actual, expected(name, masked))
    split_over = jax.typeof(actual[0]).sharding.spec
    assert tuple(split_over)[: len(SPLITS[split])] == tuple(SPLITS[split])


@pytest.mark.parametrize("name", every_norm)
def test_parameters_can_be_whole_where_channels_are_split(name):
    grid = mesh(AxisType.Explicit, (2, 4), ("i", "j"))
    actual = sharded(name, grid, SPLITS["channels"], False, channels=P())
    hold(actual, expected(name, False))
    assert all(not any(jax.typeof(gradient).sharding.spec) for gradient in actual[2][1:])


@pytest.mark.parametrize("split", ["batch", "positions and channels"])
@pytest.mark.parametrize("name", every_norm)
def test_any_axis_can_be_split_over_an_automatic_mesh(name, split):
    masked = name not in ("layer", "instance")
    grid = mesh(AxisType.Auto, (2, 4), ("i", "j"))
    hold(sharded(name, grid, SPLITS[split], masked), expected(name, masked))


@pytest.mark.long
@pytest.mark.parametrize("num_ghosts", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_ghosts_of_any_size_are_those_of_one_device(kind, num_ghosts):
    actual = sharded("ghost", mesh(KINDS[kind]), P("i"), True, num_ghosts=num_ghosts)
    hold(actual, expected("ghost", True, num_ghosts=num_ghosts))


@pytest.mark.parametrize("num_groups", [1, 2, 8])
def test_groups_of_channels_can_be_split_over_devices(num_groups):
    grid = mesh(AxisType.Explicit, (2, 4), ("i", "j"))
    actual = sharded("group", grid, SPLITS["channels"], True, num_groups=num_groups)
    hold(actual, expected("group", True, num_groups=num_groups))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_of_sharded_arrays(kind):
    grid = mesh(KINDS[kind], (2, 4), ("i", "j"))
    x, stats = jax.device_put(X, NamedSharding(grid, SPLITS["channels"])), seen("batch", 8)
    with jax.set_mesh(grid):
        y, _ = library("batch", x, stats=stats, train=False)
    near(y, oracle("batch", X, stats=stats, train=False)[0])


@pytest.mark.long
@pytest.mark.parametrize("name", every_norm)
def test_outside_of_jit_no_mesh_need_be_set(name):
    grid = mesh(AxisType.Explicit, (2, 4), ("i", "j"))
    x = jax.device_put(X, NamedSharding(grid, SPLITS["channels"]))
    state = (seen(name, 8),) if name in STATEFUL else ()
    y = NORMS[name].function(x, *state, **NORMS[name].options)
    near(y[0] if state else y, oracle(name, X, stats=state[0] if state else None)[0])


@pytest.mark.parametrize("ratio", [1e3, 1e5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_batch_is_precise_at_a_large_mean(kind, ratio):
    shift = ratio + np.arange(16, dtype=np.float32)[:, None, None] / 8  # another on each device
    x, where = normals(16, 20, 4) + shift, np.broadcast_to(chances(16, 1, 1), (16, 20, 1))
    grid = mesh(KINDS[kind])
    rows = NamedSharding(grid, P("i"))
    with jax.set_mesh(grid):
        y, stats = library("batch", *jax.device_put((x,), rows), where=jax.device_put(where, rows))
    expected_y, expected_stats = oracle("batch", x, where=where)
    near(y, expected_y, allowed(ratio))
    near(stats["mean"], expected_stats["mean"], allowed(ratio))
    near(stats["var"], expected_stats["var"], allowed(ratio))


FRESH = {"decayed": {"momentum": 0.9}, "cumulative": {"momentum": None}}


@pytest.mark.parametrize("fresh_options", FRESH.values(), ids=FRESH)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", STATEFUL)
def test_fresh_statistics_follow_the_channels(name, kind, fresh_options):
    grid = mesh(kind, (2, 4), ("i", "j"))
    stats, spec = fresh(name, 8, **fresh_options), P("i", None, None, "j")
    options = {**NORMS[name].options, **fresh_options}

    @jax.jit
    def step(x, stats):
        return NORMS[name].function(x, stats, SCALE, BIAS, **options)

    expected, expected_stats = oracle(name, X, SCALE, BIAS, stats=stats, **fresh_options)
    with jax.set_mesh(grid):
        x = jax.device_put(X, NamedSharding(grid, spec))
        y, new = step(x, stats)
        near(y, expected)
        near(new, expected_stats)
        again = step(x, new)[1]
        eager, _ = NORMS[name].function(x, stats, SCALE, BIAS, **options)
    assert jax.tree.map(jax.typeof, again) == jax.tree.map(jax.typeof, new)
    near(eager, expected)
    if kind is AxisType.Explicit:
        assert new["mean"].sharding.spec == new["var"].sharding.spec == P("j")


@pytest.mark.long
@pytest.mark.parametrize("fresh_options", FRESH.values(), ids=FRESH)
@pytest.mark.parametrize("module", STATEFUL_MODULES)
def test_fresh_statistics_of_modules_follow_the_channels(module, fresh_options):
    grid = mesh(AxisType.Explicit, (2, 4), ("i", "j"))
    options = {**fresh_options, **STATEFUL_MODULES[module]}
    linen = getattr(jnn, module)(use_running_average=False, **options)
    y, expected = linen.apply(linen.init(KEY, X), X, mutable=["batch_stats"])
    with jax.set_mesh(grid):
        x = jax.device_put(X, NamedSharding(grid, P("i", None, None, "j")))
        variables = linen.init(KEY, x)
        assert variables["batch_stats"]["mean"].sharding.spec == P("j")
        ours, new = jax.jit(functools.partial(linen.apply, mutable=["batch_stats"]))(variables, x)
        norm = getattr(jnnx, module)(8, rngs=nnx.Rngs(0), **options)
        theirs = nnx.jit(lambda norm, x: norm(x))(norm, x)
        assert norm.mean[...].sharding.spec == P("j")
    near(ours, y)
    near(dict(new["batch_stats"]), expected["batch_stats"])
    near(theirs, y)
    near(norm.var[...], expected["batch_stats"]["var"])
