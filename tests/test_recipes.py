"""The recipes do to a model's trees what they say, in Linen, in NNX and without a framework."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import KEY, STATEFUL, alike, fresh, identical, library, near, normals, parameters, seen
from flax import nnx
from flax.core import freeze

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

X = normals(4, 8, mean=1.0)


class Block(nn.Module):
    """A residual block with a normalization before and one at the end."""

    train: bool = True

    @nn.compact
    def __call__(self, x):
        norm = {"use_running_average": not self.train, "momentum": 0.5}
        y = nn.relu(jnn.BatchNorm(**norm)(nn.Dense(8)(x)))
        return x + jnn.BatchNorm(**norm)(nn.Dense(8)(y))


class Net(nn.Module):
    """Two blocks and a head."""

    train: bool = True

    @nn.compact
    def __call__(self, x):
        for number in range(2):
            x = Block(self.train, name=f"block_{number}")(x)
        return nn.Dense(2, name="head")(jnn.RMSNorm(name="last")(x))


class NnxBlock(nnx.Module):
    """The same block."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(8, 8, rngs=rngs)
        self.norm_0 = jnnx.BatchNorm(8, momentum=0.5, rngs=rngs)
        self.norm_1 = jnnx.BatchNorm(8, momentum=0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.norm_1(self.dense(nnx.relu(self.norm_0(x))))


class NnxNet(nnx.Module):
    """Two of them in a list."""

    def __init__(self, rngs):
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(2)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(scope="module")
def variables():
    return jax.jit(Net().init)(KEY, X)


# Weight decay


def decays(path):
    return path[-1].key in ("kernel", "embedding")


@pytest.mark.long
@pytest.mark.parametrize("kind", [dict, freeze])
def test_weight_decay_leaves_out_scales_and_biases(variables, kind):
    params = jax.tree.map(lambda leaf: leaf + 1, kind(variables["params"]))
    mask = jn.weight_decay_mask(params)
    expected = jax.tree_util.tree_map_with_path(lambda path, _: decays(path), params)
    assert mask == expected
    assert sum(jax.tree.leaves(mask)) == 5  # the kernels
    transform = optax.adamw(0.1, weight_decay=0.5, mask=jn.weight_decay_mask)
    zero = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):  # which adam needs
        updates, _ = transform.update(zero, transform.init(params), params)
    moved = jax.tree.map(lambda update: bool(jnp.any(update != 0)), updates)
    assert moved == mask


def test_weight_decay_of_an_nnx_model():
    model = NnxNet(nnx.Rngs(KEY))
    model.embed = nnx.Embed(3, 8, rngs=nnx.Rngs(KEY))
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 1, nnx.state(model, nnx.Param)))
    before = nnx.to_pure_dict(nnx.clone(nnx.state(model, nnx.Param)))
    transform = optax.adamw(0.1, weight_decay=0.5, mask=jn.weight_decay_mask)
    optimizer = nnx.Optimizer(model, transform, wrt=nnx.Param)
    with jax.numpy_dtype_promotion("standard"):
        optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
    assert moved == jax.tree_util.tree_map_with_path(lambda path, _: decays(path), before)


def test_weight_decay_looks_into_metadata_and_takes_other_names():
    logical = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
    params = jnn.LayerNorm(scale_init=logical).init(KEY, X)["params"]
    assert not any(jax.tree.leaves(jn.weight_decay_mask(params)))
    params = {"linear": {"w": X, "b": X}, "value": X}
    mask = jn.weight_decay_mask(params, leave_out=["b"])
    assert mask == {"linear": {"w": True, "b": False}, "value": True}


# The last scale


def test_zero_scales_make_a_residual_block_the_identity(variables):
    params = jn.zero_scales(variables["params"], "block_*/BatchNorm_1")
    y, _ = Block().apply(
        {"params": params["block_0"], "batch_stats": variables["batch_stats"]["block_0"]},
        X,
        mutable=["batch_stats"],
    )
    identical(y, jnp.asarray(X))
    untouched = jn.zero_scales(params, "last")
    identical(untouched["block_0"]["BatchNorm_0"], variables["params"]["block_0"]["BatchNorm_0"])
    identical(untouched["last"]["scale"], jnp.zeros(8))
    identical(params["last"]["scale"], jnp.ones(8))


def test_zero_scales_of_an_nnx_model_and_of_partitioned_parameters():
    model = NnxNet(nnx.Rngs(KEY))
    nnx.update(model, jn.zero_scales(nnx.state(model, nnx.Param), "blocks/*/norm_1"))
    identical(model(X), jnp.asarray(X))
    logical = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
    params = jnn.LayerNorm(scale_init=logical).init(KEY, X)["params"]
    zeroed = jn.zero_scales({"norm": params}, "norm")["norm"]
    chex.assert_trees_all_equal(
        zeroed, {**params, "scale": params["scale"].replace(value=jnp.zeros(8))}
    )


# Frozen statistics


@pytest.mark.parametrize("name", STATEFUL)
def test_a_function_uses_frozen_statistics_and_leaves_them(name):
    stats = jn.freeze_stats(seen(name, 8))
    args = (X, *parameters(8))
    y, new = library(name, *args, stats=stats)
    expected, _ = library(name, *args, stats=seen(name, 8), train=False)
    alike(y, expected)
    identical(new, stats)
    moved = library(name, *args, stats=jn.freeze_stats(stats, frozen=False))
    identical(moved, library(name, *args, stats=seen(name, 8)))


def test_a_frozen_part_of_a_linen_model_is_in_evaluation(variables):
    frozen = {**variables, "batch_stats": jn.freeze_stats(variables["batch_stats"], "block_0")}
    assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(variables))
    apply = jax.jit(
        lambda v: Net().apply(v, X, mutable=["batch_stats"], capture_intermediates=True)
    )
    (_, updates), (_, free) = apply(frozen), apply(variables)
    stats = updates["batch_stats"]
    identical(stats["block_0"], frozen["batch_stats"]["block_0"])
    assert not np.array_equal(free["batch_stats"]["block_0"]["BatchNorm_0"]["mean"], np.zeros(8))
    assert not np.array_equal(stats["block_1"]["BatchNorm_0"]["mean"], np.zeros(8))
    block = {key: value["block_0"] for key, value in variables.items()}
    near(
        updates["intermediates"]["block_0"]["__call__"][0], Block(train=False).apply(block, X), 1e-6
    )
    whole = jn.freeze_stats(variables["batch_stats"])
    y, _ = Net().apply({**variables, "batch_stats": whole}, X, mutable=["batch_stats"])
    near(y, Net(train=False).apply(variables, X), 1e-6)
    thawed = jn.freeze_stats(jn.freeze_stats(stats), frozen=False)
    assert jax.tree.structure(thawed) == jax.tree.structure(variables["batch_stats"])


def test_a_frozen_part_of_an_nnx_model_is_in_evaluation():
    model, other = NnxNet(nnx.Rngs(KEY)), NnxNet(nnx.Rngs(KEY))
    jnnx.freeze_stats(model, "blocks/0")
    model.train()
    before = nnx.to_pure_dict(nnx.clone(nnx.state(model, nnx.BatchStat)))
    y = nnx.jit(lambda model, x: model(x))(model, X)
    after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    identical(after["blocks"][0], before["blocks"][0])
    assert not np.array_equal(after["blocks"][1]["norm_0"]["mean"], np.zeros(8))
    other.blocks[0].eval()
    near(y, other(X), 1e-6)
    jnnx.freeze_stats(model, "*/norm_?", frozen=False)
    model(X)
    assert not np.array_equal(model.blocks[0].norm_0.mean[...], np.zeros(8))


def test_a_state_of_nnx_is_not_marked():
    """An NNX model would take the mark and go on updating."""
    state = nnx.state(NnxNet(nnx.Rngs(KEY)), nnx.BatchStat)
    with pytest.raises(TypeError, match=r"jaxnorm\.nnx\.freeze_stats"):
        jn.freeze_stats(state)


def test_a_frozen_dict_stays_one(variables):
    stats = freeze(variables["batch_stats"])
    assert isinstance(jn.freeze_stats(stats, "block_1"), type(stats))


class Mixed(nnx.Module):
    """A normalization of Flax, one of ours, one of a stream, and a part of Flax's alone."""

    def __init__(self, rngs):
        self.theirs = nnx.BatchNorm(8, rngs=rngs)
        self.ours = jnnx.BatchNorm(8, rngs=rngs)
        self.stream = jnnx.OnlineNorm(8, rngs=rngs)
        self.head = nnx.Dict(norm=nnx.BatchNorm(8, rngs=rngs))


@pytest.mark.parametrize("function", [jnnx.freeze_stats, jnnx.start_recomputing])
def test_statistics_of_flaxs_own_that_do_not_heed_are_named(function):
    name, exchange = function.__name__, "jaxnorm.nnx.BatchNorm replaces with the same arguments"
    model = Mixed(nnx.Rngs(KEY))
    with pytest.raises(
        ValueError, match=r"found only at \['ours'.*'head/norm' \(BatchNorm of flax"
    ) as e:
        function(model, "head")
    assert exchange in str(e.value)
    assert "theirs" not in str(e.value)
    function(model, "ours")  # no warning
    model = Mixed(nnx.Rngs(KEY))
    with pytest.warns(UserWarning, match=rf"{name} does not affect") as caught:
        function(model)
    assert "['head/norm', 'theirs']" in str(caught[0].message)
    assert exchange in str(caught[0].message)
    assert caught[0].filename == __file__
    model.ours(X)
    if function is jnnx.freeze_stats:
        identical(model.ours.mean[...], jnp.zeros(8))
        jnnx.freeze_stats(model, frozen=False)  # no warning


def test_what_an_nnx_model_has_of_another_kind_is_said():
    alone = nnx.Dict(norm=nnx.BatchNorm(8, rngs=nnx.Rngs(KEY)))
    streams = nnx.Dict(norm=jnnx.OnlineNorm(8, rngs=nnx.Rngs(KEY)), fit=jnnx.StandardizeInputs(8))
    ours = nnx.Dict(norm=jnnx.BatchNorm(8, rngs=nnx.Rngs(KEY)))
    for call, words in (
        (lambda: jnnx.freeze_stats(alone), "'norm' .BatchNorm of flax.nnx, which jaxnorm"),
        (lambda: jnnx.start_recomputing(alone), "'norm' .BatchNorm of flax.nnx, which jaxnorm"),
        (lambda: jnnx.finish_recomputing(alone), "'norm' .BatchNorm of flax.nnx, which jaxnorm"),
        (lambda: jnnx.finish_accumulating(alone), "'norm' .BatchNorm of flax.nnx, which jaxnorm"),
        (lambda: jnnx.start_recomputing(streams), "StandardizeInputs of jaxnorm.*OnlineNorm of"),
        (lambda: jnnx.finish_recomputing(ours), "'norm' .BatchNorm of jaxnorm.nnx"),
    ):
        with pytest.raises(ValueError, match=rf"in the part '\*'; found nowhere, but.*{words}"):
            call()


def test_what_a_tree_has_of_another_kind_is_said():
    params = {"Dense_0": {"kernel": X, "bias": X}, "norm": {"bias": X}}
    for call in (
        lambda: jn.zero_scales(params, "norm"),
        lambda: jn.freeze_stats(params, "norm"),
    ):
        with pytest.raises(ValueError, match=r"found nowhere, but there is 'norm' \(with bias\)$"):
            call()
    with pytest.raises(ValueError, match=r"'Dense_0' \(with bias, kernel\), 'norm' \(with bias\)"):
        jn.freeze_stats(params)


class Marked(nn.Module):
    """Normalizations of Flax and of ours, by streams too."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, name="theirs")(x)
        x = jnn.BatchNorm(use_running_average=not train, name="ours")(x)
        return jnn.OnlineNorm(use_running_average=not train, name="stream")(x)


def test_marks_that_are_not_heeded_are_found():
    variables = Marked().init(KEY, X, True)
    check = functools.partial(jnn.check_marks, Marked())

    def marked(function, *parts):
        return {**variables, "batch_stats": function(variables["batch_stats"], *parts)}

    check(variables, X, True)
    check(marked(jn.freeze_stats, "ours", "stream"), X, train=True)
    check(marked(jn.start_recomputing, "ours"), X, train=True)
    with pytest.raises(
        ValueError, match=r"'theirs' \(frozen; BatchNorm of flax.*jaxnorm"
    ) as caught:
        check(marked(jn.freeze_stats), X, True)
    assert "'stream'" not in str(caught.value)
    with pytest.raises(ValueError, match=r"'theirs' \(rec.*'stream' \(recomputed; OnlineNorm"):
        check(marked(jn.start_recomputing), X, True)


@pytest.mark.parametrize(
    "call",
    [
        lambda: jn.freeze_stats({"encoder": {"norm": fresh("batch", 2)}}, "decoder"),
        lambda: jn.zero_scales({"encoder": {"norm": {"scale": X}}}, "encoder/norm", "norm"),
        lambda: jnnx.freeze_stats(nnx.Dict(encoder=NnxBlock(nnx.Rngs(KEY))), "encoder/norm"),
    ],
)
def test_a_part_that_is_not_there_is_an_error_that_lists_what_is(call):
    with pytest.raises(ValueError, match=r"in the part '.*'; found only at \['encoder/norm"):
        call()
