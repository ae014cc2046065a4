"""One pass over a stream gives every layer the moments of all it saw, and nothing else moves."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from cases import (
    KEY,
    NORMS,
    STATEFUL,
    alike,
    chances,
    fresh,
    identical,
    library,
    near,
    normals,
    relative,
    seen,
    ulp,
)
from devices import WAYS, mapped, mesh
from environment import generator
from flax import nnx
from flax.core import FrozenDict, freeze
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

pytestmark = pytest.mark.numerical

SIZES = (8, 4, 6, 10)  # of the batches


def stream(channels=3, mean=2.0, std=1.0, seed=0):
    """Give batches of different sizes, around different means."""
    return [
        normals(size, 2, channels, mean=mean + 3 * number, std=std, seed=seed + number)
        for number, size in enumerate(SIZES)
    ]


def population(batches, masks=None, about_zero=False):
    """Give the moments of everything together, in float64."""
    values = np.concatenate([reference.widen(x).reshape(-1, x.shape[-1]) for x in batches])
    if masks is not None:
        values = values[np.concatenate([np.ravel(mask) for mask in masks])]
    m = reference.moments(values, 0, about_zero=about_zero)
    return {"mean": m.mean, "var": m.var}


def of_population(stats, expected, tolerance=2e-6):
    """Hold statistics to float64, the mean in units of the values' size."""
    size = np.sqrt(np.abs(expected["mean"]) ** 2 + expected["var"])
    stats = {key: reference.widen(stats[key]) for key in expected}
    near(stats["mean"] / size, expected["mean"] / size, tolerance)
    relative(stats["var"], expected["var"], tolerance * float(np.max(size**2 / expected["var"])))


# Functions


@pytest.mark.parametrize("momentum", [0.9, None])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_pass_gives_the_moments_of_the_whole_stream(name, momentum):
    first = {**fresh(name, 3, momentum=momentum), **seen(name, 3)}
    stats, masks = jn.start_recomputing(first), []
    for number, x in enumerate(stream()):
        masks.append(chances(*x.shape[:2], 1, seed=number))
        y, stats = library(name, x, stats=stats, momentum=momentum, where=masks[-1])
        expected, _ = library(name, x, stats=first, momentum=momentum, where=masks[-1])
        alike(y, expected)
    evaluated, _ = library(name, x, stats=stats, momentum=momentum, train=False)
    alike(evaluated, library(name, x, stats=first, momentum=momentum, train=False)[0])
    identical({key: stats[key] for key in first}, first)
    stats = jn.finish_recomputing(stats)
    assert jax.tree.structure(stats) == jax.tree.structure(first)
    of_population(stats, population(stream(), masks, NORMS[name].about_zero))
    if momentum is None:
        assert float(stats["count"]) == sum(mask.sum() for mask in masks)
    if name == "renorm":
        assert stats["steps"] == first["steps"]


@pytest.mark.long
@pytest.mark.parametrize("mean", [300.0, -1e4])
def test_large_means_lose_no_variance(mean):
    stats = jn.start_recomputing(jn.init_batch_stats(3))
    for x in stream(mean=mean):
        _, stats = library("batch", x, stats=stats)
    expected = population(stream(mean=mean))
    stats = jn.finish_recomputing(stats)
    relative(stats["mean"], expected["mean"], 1e-6)
    rounding = 4 * ulp(np.float32(mean))  # of a mean, times how far the batches' means lie apart
    near(stats["var"], expected["var"], rounding * np.sqrt(expected["var"].max()))


@pytest.mark.long
def test_each_channel_has_a_count_of_its_own():
    stats = jn.start_recomputing(fresh("batch", 3))
    for number, x in enumerate(stream()):
        mask = chances(*x.shape, seed=number)
        mask[..., 2] = False
        _, stats = library("batch", x, stats=stats, where=mask)
    stats = jn.finish_recomputing(stats)
    masks = [chances(*x.shape, seed=number) for number, x in enumerate(stream())]
    for channel in range(2):
        expected = population(
            [x[..., channel, None] for x in stream()], [mask[..., channel] for mask in masks]
        )
        of_population({key: stats[key][channel : channel + 1] for key in stats}, expected)
    assert (stats["mean"][2], stats["var"][2]) == (0, 1)  # nothing counted


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, np.complex64])
def test_statistics_are_recomputed_in_float32_at_least_and_kept_in_their_dtype(dtype):
    kept = jnp.float32 if dtype == jnp.bfloat16 else dtype
    stats = jn.start_recomputing(jn.init_batch_stats(3, dtype=kept))
    assert stats["recomputed"]["mean"].dtype == kept
    assert stats["recomputed"]["var"].dtype == jnp.float32
    batches = [normals(8, 3, mean=3.0, seed=seed).astype(dtype) for seed in range(3)]
    for x in batches:
        _, stats = library("batch", x, stats=stats)
    of_population(stats["recomputed"], population(batches))
    stats = jn.finish_recomputing(stats)
    assert stats["mean"].dtype == kept


@pytest.mark.long
def test_float64_is_recomputed_in_float64():
    with jax.enable_x64(True):
        stats = jn.start_recomputing(jn.init_batch_stats(3, dtype=jnp.float64))
        batches = [normals(8, 3, mean=1e6, seed=seed, dtype=np.float64) for seed in range(3)]
        for x in batches:
            _, stats = jn.batch_norm(x, stats, train=True)
        of_population(jn.finish_recomputing(stats), population(batches), 1e-14)


@pytest.mark.long
def test_where_nothing_counted_the_old_statistics_stay():
    first = seen("batch", 3)
    stats = jn.start_recomputing(first)
    with pytest.warns(UserWarning, match="nothing was counted since start_recomputing, so the"):
        identical(jn.finish_recomputing(stats), first)
    empty, none = np.zeros((0, 3), np.float32), np.zeros((4, 1), bool)
    _, stats = jn.batch_norm(empty, stats, train=True, where=np.ones((0, 1), bool))
    _, stats = library("batch", stream()[0][:4, 0], stats=stats, where=none)
    with pytest.warns(UserWarning, match="nothing was counted"):
        identical(jn.finish_recomputing(stats), first)
    identical(jax.jit(jn.finish_recomputing)(stats), first)  # where it is not known
    identical(jax.jit(lambda: jn.finish_recomputing(jn.start_recomputing(first)))(), first)


def test_a_batch_that_is_not_finite_is_left_out_where_that_is_asked():
    stats = jn.start_recomputing(fresh("batch", 3))
    batches = stream()
    broken = batches[1].copy()
    broken[0, 0, 1] = np.nan
    for x in (batches[0], broken, batches[2]):
        _, stats = library("batch", x, stats=stats, skip_nonfinite=True)
    of_population(jn.finish_recomputing(stats), population([batches[0], batches[2]]))


def test_statistics_that_are_not_finite_are_replaced():
    broken = {"mean": jnp.full(3, jnp.nan), "var": jnp.full(3, jnp.inf)}
    _, stats = library("batch", stream()[0], stats=jn.start_recomputing(broken))
    of_population(jn.finish_recomputing(stats), population(stream()[:1]))


@given(st.permutations(range(12)), st.lists(st.integers(1, 11), max_size=4, unique=True))
def test_any_order_and_any_cut_of_the_stream_give_the_same(order, cuts):
    x = normals(12, 3, mean=np.arange(12.0)[:, None])[np.asarray(order)]
    stats = jn.start_recomputing(fresh("batch", 3))
    for part in np.split(x, sorted(cuts)):
        padded = np.pad(part, ((0, 12 - len(part)), (0, 0)))
        mask = np.arange(12)[:, None] < len(part)
        _, stats = library("batch", padded, stats=stats, where=mask)
    of_population(jn.finish_recomputing(stats), population([x]))


# Trees and models


class Net(nn.Module):
    """A normalization of every kind after a dense layer of its own."""

    train: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        common = {"use_running_average": not self.train, "axis_name": self.axis_name}
        for norm in (
            jnn.BatchNorm(**common, momentum=0.5),
            jnn.GhostBatchNorm(**common, num_ghosts=2),
            jnn.BatchRenorm(**common, momentum=None, r_max=1.5, d_max=0.5),
        ):
            x = nn.relu(norm(nn.Dense(4)(x)))
        return x


PATHS = ["BatchNorm_0", "GhostBatchNorm_0", "BatchRenorm_0"]


def flat_stream():
    return [x[:, 0] for x in stream()]


@functools.cache
def trained():
    """Give a net that was trained a step, and the function of a training step's statistics."""
    step = jax.jit(
        lambda params, stats, x: Net().apply(
            {"params": params, "batch_stats": stats},
            x,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )[1]
    )
    variables = jax.jit(Net().init)(KEY, flat_stream()[0])
    stats = step(variables["params"], variables["batch_stats"], flat_stream()[0])["batch_stats"]
    return variables["params"], stats, step


def passed(step, params, stats, batches):
    """Run the stream through the model: the statistics after it, and each norm's inputs."""
    inputs = {name: [] for name in PATHS}
    for x in batches:
        updates = step(params, stats, x)
        stats = updates["batch_stats"]
        for number, name in enumerate(PATHS):
            inputs[name].append(updates["intermediates"][f"Dense_{number}"]["__call__"][0])
    return stats, inputs


@pytest.mark.long
def test_every_layer_has_the_moments_of_its_own_inputs():
    params, first, step = trained()
    stats, inputs = passed(step, params, jn.start_recomputing(first), flat_stream())
    stats = jn.finish_recomputing(stats)
    assert jax.tree.structure(stats) == jax.tree.structure(first)
    for name in PATHS:
        of_population(stats[name], population(inputs[name]), 5e-6)
    assert stats["BatchRenorm_0"]["count"] == sum(SIZES)
    assert stats["BatchRenorm_0"]["steps"] == first["BatchRenorm_0"]["steps"]


@pytest.mark.long
def test_a_compiled_step_is_compiled_once_more_and_then_goes_on():
    params, first, _ = trained()
    step = jax.jit(
        lambda stats, x: Net().apply(
            {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"]
        )[1]["batch_stats"]
    )
    x, stats = flat_stream()[0], first
    compiled = []
    for change in (lambda s: s, jn.start_recomputing, jn.finish_recomputing):
        stats = step(step(change(stats), x), x)
        compiled.append(step._cache_size())
    assert compiled == [1, 2, 2]


@pytest.mark.long
def test_parts_by_name_and_frozen_ones_and_fits():
    params, first, step = trained()
    fit = {"count": jnp.zeros(()), **fresh("batch", 2), "min": jnp.zeros(2), "max": jnp.zeros(2)}
    started = jn.start_recomputing({**first, "fit": fit}, "Ghost*", "BatchRenorm_0")
    assert sorted(n for n in started if "recomputed" in started[n]) == sorted(PATHS[1:])
    everywhere = jn.start_recomputing({**first, "fit": fit})
    assert sorted(n for n in everywhere if "recomputed" in everywhere[n]) == sorted(PATHS)
    frozen = jn.freeze_stats(jn.start_recomputing(first), "BatchNorm_0")
    stats, inputs = passed(step, params, frozen, flat_stream())
    stats = jn.finish_recomputing(stats, "GhostBatchNorm_0", "BatchNorm_0")
    identical(jn.freeze_stats(stats, frozen=False)["BatchNorm_0"], first["BatchNorm_0"])
    of_population(stats["GhostBatchNorm_0"], population(inputs["GhostBatchNorm_0"]), 5e-6)
    assert "recomputed" in stats["BatchRenorm_0"]
    untouched = jn.freeze_stats(jn.start_recomputing(freeze(first)))
    assert isinstance(jn.finish_recomputing(untouched), FrozenDict)


@pytest.mark.long
def test_stacked_layers_are_recomputed_each_by_itself():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = nn.Dense(3)(x)
            self.sow("intermediates", "inputs", x)
            return jnn.BatchNorm(use_running_average=False, momentum=None)(x), None

    scanned = nn.scan(
        Layer,
        variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
        split_rngs={"params": True},
        length=2,
    )()
    variables = scanned.init(KEY, flat_stream()[0], None)
    stats, inputs = jn.start_recomputing(variables["batch_stats"]), []
    assert stats["BatchNorm_0"]["count"].shape == (2,)
    for x in flat_stream():
        _, updates = scanned.apply(
            {**variables, "batch_stats": stats}, x, None, mutable=["batch_stats", "intermediates"]
        )
        stats = updates["batch_stats"]
        inputs.append(updates["intermediates"]["inputs"][0])
    stats = jn.finish_recomputing(stats)["BatchNorm_0"]
    assert stats["count"].tolist() == [sum(SIZES)] * 2
    for layer in range(2):
        own = {key: stats[key][layer] for key in ("mean", "var")}
        of_population(own, population([x[layer] for x in inputs]), 5e-6)


class NnxNet(nnx.Module):
    """The same net."""

    def __init__(self, params):
        rngs = nnx.Rngs(0)
        self.dense = nnx.List([nnx.Linear(3 if n == 0 else 4, 4, rngs=rngs) for n in range(3)])
        self.norms = nnx.List(
            [
                jnnx.BatchNorm(4, momentum=0.5, rngs=rngs),
                jnnx.GhostBatchNorm(4, num_ghosts=2, rngs=rngs),
                jnnx.BatchRenorm(4, momentum=None, r_max=1.5, d_max=0.5, rngs=rngs),
            ]
        )
        for number, dense in enumerate(self.dense):
            of_dense = params[f"Dense_{number}"]
            dense.kernel[...], dense.bias[...] = of_dense["kernel"], of_dense["bias"]

    def __call__(self, x):
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = nnx.relu(norm(dense(x)))
        return x


@pytest.mark.long
def test_an_nnx_model_as_a_linen_tree():
    params, first, step = trained()
    model = NnxNet(params)
    traced = []

    @nnx.jit
    def train(model, x):
        traced.append(None)
        return model(x)

    train(model, flat_stream()[0])
    jnnx.start_recomputing(model)
    for x in [flat_stream()[0]] * 3:
        train(model, x)
    assert len(traced) == 2
    linen, _ = passed(step, params, jn.start_recomputing(first), [flat_stream()[0]] * 3)
    linen = jn.finish_recomputing(linen)
    jnnx.finish_recomputing(model)
    train(model, flat_stream()[0])
    assert len(traced) == 2
    model = NnxNet(params)
    model(flat_stream()[0])
    jnnx.start_recomputing(model, "norms/*")
    for x in [flat_stream()[0]] * 3:
        model(x)
    jnnx.finish_recomputing(model)
    for name, norm in zip(PATHS, model.norms, strict=True):
        for key, value in linen[name].items():
            near(getattr(norm, key)[...], value, 1e-5)
    assert not hasattr(model.norms[0], "recomputed")


# Devices


@pytest.mark.parametrize("way", WAYS)
def test_devices_with_different_counts(way):
    x = normals(8, 4, 3, mean=np.arange(8.0)[:, None, None])
    masks = np.arange(4)[None, :, None] < np.arange(8)[:, None, None] % 5

    def step(stats, x, mask):
        _, stats = jn.batch_norm(x, stats, train=True, where=mask, axis_name="i")
        return stats

    first = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), fresh("batch", 3))
    step, stats = mapped(way, step), jn.start_recomputing(first)
    for number in range(2):
        stats = step(stats, x + np.float32(number), masks)
    stats = jn.finish_recomputing(stats)
    expected = population([x, x + np.float32(1)], [masks, masks])
    of_population({key: stats[key][5] for key in stats}, expected)
    identical(*({key: stats[key][at] for key in stats} for at in (0, 7)))


@pytest.mark.long
@pytest.mark.parametrize("momentum", [0.9, None])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_statistics_on_a_mesh_are_sharded_as_the_channels(kind, momentum):
    grid = mesh(kind, (2, 4), ("i", "j"))
    batches = [normals(4, 8, mean=number, seed=number) for number in range(2)]

    @jax.jit
    def step(stats, x):
        return jn.batch_norm(x, stats, train=True, momentum=momentum)[1]

    with jax.set_mesh(grid):
        stats = first = step(
            fresh("batch", 8, momentum=momentum),
            jax.device_put(batches[0], NamedSharding(grid, P("i", "j"))),
        )
        stats = jn.start_recomputing(stats)
        for x in batches:
            stats = step(stats, jax.device_put(x, NamedSharding(grid, P("i", "j"))))
        updated = jn.finish_accumulating(stats, momentum=momentum)
        stats = jn.finish_recomputing(stats)
    of_population(stats, population(batches))
    assert jax.tree.map(jnp.shape, updated) == jax.tree.map(jnp.shape, stats)
    if kind is AxisType.Explicit:
        assert jax.tree.map(jax.typeof, stats) == jax.tree.map(jax.typeof, first)
        assert jax.tree.map(jax.typeof, updated) == jax.tree.map(jax.typeof, first)


@pytest.mark.long
@pytest.mark.parametrize("way", ["vmap", "shard_map"])
def test_replicas_in_the_middle_of_recomputing_merge_by_what_they_saw(way):
    x = normals(8, 4, 3, mean=np.arange(8.0)[:, None, None])
    masks = np.arange(4)[None, :, None] < np.arange(8)[:, None, None] % 5

    def replica(x, mask):
        stats = jn.start_recomputing(seen("renorm", 3))
        _, stats = jn.batch_renorm(x, stats, train=True, where=mask)
        return jn.sync_batch_stats({"norm": stats}, "i")

    merged = mapped(way, replica)(x, masks)
    stats = jn.finish_recomputing(merged)["norm"]
    of_population({key: stats[key][3] for key in ("mean", "var")}, population([x], [masks]))
    relative(merged["norm"]["mean"][3], seen("renorm", 3)["mean"])
    assert merged["norm"]["recomputed"]["count"].shape == (8, 3)


# Averaged weights


def test_the_statistics_of_averaged_weights():
    params, first, step = trained()
    batches, average = flat_stream(), params
    for number in range(3):
        moved = jax.tree.map(lambda p, n=number: p * np.float32(1 + 0.2 * n), params)
        average = optax.incremental_update(moved, average, np.float32(0.3))
    stats, inputs = passed(step, average, jn.start_recomputing(first), batches)
    stats = jn.finish_recomputing(stats)
    for name in PATHS:
        of_population(stats[name], population(inputs[name]), 5e-6)
    whole = np.concatenate(batches)
    y = Net(train=False).apply({"params": average, "batch_stats": stats}, whole)
    z = Net(train=False).apply({"params": average, "batch_stats": first}, whole)
    assert np.abs(y - z).max() > 0.1


# Errors


@pytest.mark.parametrize("finish", [jn.finish_recomputing, jn.finish_accumulating])
def test_finish_without_start_is_an_error(finish):
    with pytest.raises(ValueError, match="statistics that are being recomputed"):
        finish({"norm": fresh("batch", 3)})
    started = {"a": jn.start_recomputing(fresh("batch", 3)), "b": fresh("batch", 3)}
    with pytest.raises(ValueError, match=r"in the part 'b'; found only at \['a'\]"):
        finish(started, "b")


def test_start_twice_is_an_error():
    started = {"norm": jn.start_recomputing(fresh("batch", 3))}
    with pytest.raises(ValueError, match="already; end that first, with finish_recomputing"):
        jn.start_recomputing(started)
    model = nnx.Dict(norm=jnnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="statistics that are being recomputed"):
        jnnx.finish_recomputing(model)
    jnnx.start_recomputing(model)
    with pytest.raises(ValueError, match="already"):
        jnnx.start_recomputing(model)


@pytest.mark.parametrize(
    "function", [jn.start_recomputing, jn.finish_recomputing, jn.finish_accumulating]
)
def test_a_state_of_nnx_is_an_error_that_names_the_function_for_models(function):
    state = nnx.state(nnx.Dict(norm=jnnx.BatchNorm(3, rngs=nnx.Rngs(0))), nnx.BatchStat)
    with pytest.raises(TypeError, match=rf"jaxnorm\.nnx\.{function.__name__}"):
        function(state)


def test_a_part_that_is_not_there_is_an_error_that_lists_what_is():
    with pytest.raises(ValueError, match=r"in the part 'head'; found only at \['encoder/norm'\]"):
        jn.start_recomputing({"encoder": {"norm": fresh("batch", 2)}}, "head")
    with pytest.raises(ValueError, match=r"in the part 'head'; found only at \['norm'\]"):
        jnnx.start_recomputing(nnx.Dict(norm=jnnx.BatchNorm(3, rngs=nnx.Rngs(0))), "head")


def test_flaxs_own_statistics_that_did_not_heed_the_mark_are_named():
    x = stream()[0]
    norm = {"use_running_average": False}
    theirs, ours = nn.BatchNorm(**norm), jnn.BatchNorm(**norm)
    fresh_ones = {"a": theirs.init(KEY, x)["batch_stats"], "b": ours.init(KEY, x)["batch_stats"]}
    started, moved = jn.start_recomputing({"part": fresh_ones})["part"], {}
    params = ours.init(KEY, x)["params"]
    for name, module in (("a", theirs), ("b", ours)):
        variables = {"params": params, "batch_stats": started[name]}
        moved[name] = module.apply(variables, x, mutable=["batch_stats"])[1]["batch_stats"]
    for finish in (jn.finish_recomputing, jn.finish_accumulating):
        with pytest.warns(UserWarning, match=r"nothing was counted.* at \['part/a'\].*Flax's own"):
            new = finish({"part": moved})["part"]
        identical(new["a"]["mean"], moved["a"]["mean"])
        assert not np.array_equal(new["b"]["mean"], np.zeros(3))
        finish({"part": moved}, "part/b")  # no warning
        finish(jn.freeze_stats({"part": moved}))


def test_what_there_is_of_another_kind_is_said():
    norm = fresh("batch", 2)
    fit = jn.init_input_stats(2)
    for call, words in (
        (lambda: jn.start_recomputing({"fit": fit}), "'fit' .with count, max, mean, min, var."),
        (lambda: jn.finish_recomputing({"a": {"b": norm}}), "'a/b' .with mean, var."),
        (
            lambda: jn.sync_batch_stats({"Dense_0": {"kernel": jnp.ones(2)}}, "i"),
            "'Dense_0' .with kernel.",
        ),
    ):
        with pytest.raises(ValueError, match=rf"in the part '\*'; found nowhere, but.*{words}"):
            call()


# Beside PyTorch


def torch_stream():
    """Batches of one size, whose means differ by more than their spread."""
    draws = generator(7)
    return [(draws.normal(size=(4, 3)) + 5 * n).astype(np.float32) for n in range(6)]


def recomputed(batches):
    stats = jn.start_recomputing(fresh("batch", 3))
    for x in batches:
        _, stats = library("batch", x, stats=stats)
    return jn.finish_recomputing(stats)


def test_beside_update_bn_which_averages_variances_within_batches():
    torch = pytest.importorskip("torch", reason="no torch to compare with")
    batches = torch_stream()
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    torch.optim.swa_utils.update_bn([torch.tensor(x) for x in batches], model)
    theirs = {"mean": model[0].running_mean.numpy(), "var": model[0].running_var.numpy()}
    expected, ours = population(batches), recomputed(batches)
    of_population(ours, expected)
    within = np.mean([np.var(x.astype(np.float64), 0) for x in batches], 0)
    between = np.var([np.mean(x.astype(np.float64), 0) for x in batches], 0)
    near(theirs["mean"], expected["mean"], 1e-5)
    relative(theirs["var"], within * 4 / 3)  # unbiased, of batches of 4
    relative(theirs["var"] * 3 / 4 + between, ours["var"])


def test_beside_update_bn_which_weighs_batches_alike():
    torch = pytest.importorskip("torch", reason="no torch to compare with")
    batches = [np.full((n, 3), v, np.float32) for n, v in ((2, 0.0), (6, 8.0))]
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    torch.optim.swa_utils.update_bn([torch.tensor(x) for x in batches], model)
    near(model[0].running_mean.numpy(), np.full(3, 4.0))
    near(model[0].running_var.numpy(), np.zeros(3))
    near(recomputed(batches), {"mean": np.full(3, 6.0), "var": np.full(3, 12.0)})


@pytest.mark.parametrize("mean", [0.0, 3e3])
def test_beside_fvcore_which_subtracts_the_squared_mean(mean):
    torch = pytest.importorskip("torch", reason="no torch to compare with")
    precise_bn = pytest.importorskip("fvcore.nn.precise_bn", reason="no fvcore to compare with")
    batches = [x + np.float32(mean) for x in torch_stream()]
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    precise_bn.update_bn_stats(model, [torch.tensor(x) for x in batches], len(batches))
    theirs, expected = model[0].running_var.numpy(), population(batches)
    relative(recomputed(batches)["var"], expected["var"], 2e-4 if mean else 2e-6)
    near(theirs, expected["var"], 1e-4 if mean == 0 else 10.0)
    if mean:  # E[x^2] - E[x]^2 loses what is smaller than the rounding of 1e7
        assert np.abs(theirs - expected["var"]).max() > 2e-3 * expected["var"].max()
