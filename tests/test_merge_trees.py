"""Trees of clients, replicas and checkpoints are merged by weight, within and between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import alike, identical, near, normals, relative, ulp
from devices import mesh
from flax import nnx
from flax.core import freeze
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
import jaxnorm.nnx as jnnx

pytestmark = pytest.mark.numerical

SIZES = (3, 17, 2, 40)
merge = jax.jit(jn.merge_batch_stats)


def clients(mean=0.0, apart=1.0):
    """Draw the data of clients of different sizes, whose means differ."""
    return [
        normals(size, 3, mean=mean + apart * place, seed=place) for place, size in enumerate(SIZES)
    ]


def measured(x, *keys):
    """Give the statistics of one client, measured in float64 and rounded once."""
    m = reference.moments(x, 0)
    entries = {"mean": m.mean, "var": m.var, "count": np.float64(len(x))}
    return {key: entries[key].astype(np.float32) for key in ("mean", "var", *keys)}


def merged_by(weights, trees):
    """Merge rounded statistics in float64."""
    pairs = [[np.float64(tree[key]) for key in ("mean", "var")] for tree in trees]
    return reference.merge(
        [
            (np.full(np.shape(mean), float(weight)), mean, var)
            for weight, (mean, var) in zip(weights, pairs, strict=True)
        ]
    )


def whole(data):
    """Give the moments of all data together, in float64."""
    return reference.moments(np.concatenate(data), 0)


@pytest.mark.parametrize("mean", [0.0, 1e4, -1e6])
def test_cumulative_statistics_merge_to_those_of_all_data(mean):
    data = clients(mean)
    trees = [measured(x, "count") for x in data]
    merged, expected = merge(trees), whole(data)
    rounded = merged_by(SIZES, trees)
    near(merged["count"], np.float64(sum(SIZES)), 0)
    relative(merged["var"], rounded.var, 2e-6)
    step = float(ulp(np.float32(mean + 3)))  # by which each client's mean was rounded
    near(merged["mean"], expected.mean, 2 * step)
    near(merged["var"], expected.var, 2e-6 * expected.var.max() + 4 * step + step**2)


@pytest.mark.parametrize("scale", [1, 1e-6, 1e9])
def test_weights_take_the_place_of_counts_whatever_their_sum(scale):
    data = clients(apart=3.0)
    weights = jnp.array(SIZES, jnp.float32) * scale
    merged, expected = merge([measured(x) for x in data], weights), whole(data)
    near(merged["mean"], expected.mean, 2e-6)
    relative(merged["var"], expected.var, 2e-6)


def test_without_weights_statistics_without_a_count_are_equal():
    trees = [measured(x) for x in clients()]
    mean, var = (np.stack([t[key] for t in trees]).astype(np.float64) for key in ("mean", "var"))
    merged = merge(trees)
    near(merged["mean"], mean.mean(0), 1e-6)
    relative(merged["var"], var.mean(0) + mean.var(0), 2e-6)


@pytest.mark.long
def test_weights_are_numbers_or_an_array_known_or_traced():
    trees, expected = [measured(x, "count") for x in clients()], None
    for weights in (SIZES, [3.0, np.float32(17), jnp.int32(2), 40], np.array(SIZES)):
        merged = jax.jit(lambda trees, w=weights: jn.merge_batch_stats(trees, w))(trees)
        expected = expected or merge(trees)
        alike(merged, expected, 2)
    alike(merge(trees, list(SIZES)), expected, 2)
    alike(jax.jit(lambda trees: jn.merge_batch_stats(iter(trees)))(trees), expected, 2)


def test_counts_are_summed_whatever_the_weights():
    trees = [measured(x, "count") for x in clients()]
    merged = merge(trees, floats(1.0, 1.0, 0.0, 2.0))
    near(merged["count"], np.float64(3 + 17 + 40), 0)
    expected = merged_by((1, 1, 2), [trees[place] for place in (0, 1, 3)])
    near(merged["mean"], expected.mean, 1e-6)
    relative(merged["var"], expected.var, 2e-6)


def floats(*values):
    """Give a float32 array."""
    return np.array(values, np.float32)


def every_kind(shift=0.0, steps=5, count=10.0):
    """Give a tree with statistics of every kind, after some training."""
    recomputed = {
        "count": floats(count, 0),
        "mean": floats(2 + shift, 0),
        "var": floats(1, 0),
    }
    batch = {"mean": floats(shift, 1), "var": floats(2, 3)}
    fit = {
        "count": floats(2, 2),
        "mean": floats(0.1, 2 + shift / 2),
        "var": floats(0, (1 + shift / 2) ** 2),
        "min": floats(0.1, 1),
        "max": floats(0.1, 3 + shift),
    }
    return {
        "renorm": {**batch, "steps": np.int32(steps), "recomputed": recomputed},
        "frozen": jn.freeze_stats(batch),
        "inner": {
            "fit": fit,
            "stream": {**batch, "control_y": floats(shift, 1), "control_x": floats(0, 0)},
            "other": {"sigma": floats(shift)},
            "cumulative": {**batch, "count": np.float32(count)},
        },
    }


def test_weights_of_any_size_count_by_their_ratio():
    one, other = ({"mean": floats(mean), "var": floats(1)} for mean in (4, 6))
    for weights in ([1e-40, 3e-40], [1e-300, 3e-300], [1e38, 3e38], [1e308, 1.5e308], [1, 3e38]):
        expected = merged_by(np.divide(weights, max(weights)), [one, other])
        merged = jn.merge_batch_stats([one, other], weights)
        near(merged["mean"], expected.mean, 1e-6)
        near(merged["var"], expected.var, 1e-6)
    traced = jax.jit(jn.merge_batch_stats)([one, other], floats(3e38, 3e38))
    near(traced["mean"], np.full(1, 5.0), 1e-6)
    near(traced["var"], np.full(1, 2.0), 1e-6)


def test_arrays_of_no_statistics_must_be_equal():
    """So that whole variables do not give the parameters of the first client."""
    stats = [measured(x) for x in clients()]
    variables = [
        {"params": {"kernel": floats(place, np.nan)}, "batch_stats": one}
        for place, one in enumerate(stats)
    ]
    with pytest.raises(ValueError, match=r"'params/kernel'.*trees\[1\] differ.*'batch_stats'"):
        jn.merge_batch_stats(variables)
    alone = jn.merge_batch_stats(stats)
    equal = [{**one, "params": {"kernel": floats(1, np.nan)}} for one in variables]
    alike(jn.merge_batch_stats(equal)["batch_stats"], alone, 1)
    models = [
        nnx.Dict(norm=jnnx.BatchNorm(3, rngs=nnx.Rngs(0)), w=nnx.Param(jnp.full(2, w)))
        for w in (0.0, 1.0)
    ]
    with pytest.raises(ValueError, match=r"'w.*nnx.BatchStat"):
        jn.merge_batch_stats([nnx.state(model) for model in models])
    with pytest.raises(ValueError, match=r"no running statistics in this tree.*nnx.BatchStat"):
        jn.merge_batch_stats(models)


@pytest.mark.long
def test_one_tree_is_its_own_merge():
    tree = freeze(every_kind(shift=0.7))
    merged = merge([tree])
    unseen = {"mean": floats(2.7, 0), "var": floats(1, 1), "count": floats(10, 0)}
    identical(merged["renorm"]["recomputed"], freeze(unseen))
    identical(merged.pop("renorm")[0], tree.pop("renorm")[0])
    alone = measured(clients()[0])
    identical(merge([alone], floats(49)), alone)


@pytest.mark.parametrize("weights", [None, (1.0, 3.0)])
def test_a_tree_with_statistics_of_every_kind(weights):
    trees = [every_kind(), every_kind(shift=4.0, steps=9, count=30.0)]
    other = {key: trees[1][key] for key in reversed(trees[1])}  # a dict has no order
    merged = merge([trees[0], other], weights and jnp.array(weights))
    assert jax.tree.structure(merged) == jax.tree.structure(trees[0])
    equal, weighed = weights or (1.0, 1.0), weights or (10.0, 30.0)

    def of(weights, *path):
        found = trees
        for key in path:
            found = [tree[key] for tree in found]
        return merged_by(weights, found)

    def has(stats, expected):
        near(stats["mean"], expected.mean, 1e-6)
        relative(stats["var"], expected.var, 2e-6)

    has(merged["renorm"], of(equal, "renorm"))
    has(merged["frozen"], of(equal, "frozen"))
    has(merged["inner"]["cumulative"], of(weighed, "inner", "cumulative"))
    recomputed = merged["renorm"]["recomputed"]
    has(jax.tree.map(lambda leaf: leaf[:1], recomputed), first(of(weighed, "renorm", "recomputed")))
    near(recomputed["count"], np.array([40.0, 0.0]), 0)
    near(merged["inner"]["cumulative"]["count"], np.float64(40), 0)
    assert merged["renorm"]["steps"] == 9
    fit = merged["inner"]["fit"]
    has(fit, of(equal, "inner", "fit"))
    near(fit["min"], np.float32([0.1, 1.0]), 0)
    near(fit["max"], np.float32([0.1, 7.0]), 0)
    near(fit["var"][0], np.float64(0), 0)
    identical(merged["inner"]["other"], trees[0]["inner"]["other"])
    identical(merged["inner"]["stream"]["control_y"], floats(0, 1))


def first(m):
    """Give the moments of the first channel."""
    return reference.Moments(m.count, m.mean[:1], m.var[:1])


def test_what_has_no_weight_or_no_count_adds_nothing_nan_included():
    tree, spoilt = (
        every_kind(),
        jax.tree.map(
            lambda leaf: leaf * leaf.dtype.type(np.nan if leaf.dtype == np.float32 else 0),
            every_kind(),
        ),
    )
    spoilt["renorm"]["steps"] = jnp.int32(1000)
    merged = merge([tree, spoilt, every_kind(shift=2.0)], floats(1.0, 0.0, 3.0))
    alike(merged, merge([tree, every_kind(shift=2.0)], floats(1.0, 3.0)), 2)
    unseen = {"norm": {"mean": np.full(2, np.nan), "var": np.ones(2), "count": np.float32(0)}}
    counted = {"norm": tree["inner"]["cumulative"]}
    for weights in (None, floats(5.0, 1.0)):
        alike(merge([jax.tree.map(np.float32, unseen), counted], weights), counted, 1)
    assert np.isnan(merge([tree, spoilt])["frozen"]["mean"]).all()


def test_where_nothing_is_counted_the_statistics_are_new():
    new = {"batch": jn.init_batch_stats(2, momentum=None), "fit": jn.init_input_stats(2)}
    identical(merge([new, new]), new)
    identical(merge([every_kind()["inner"]["fit"]], jnp.zeros(1)), jn.init_input_stats(2))


@pytest.mark.long
def test_the_merge_is_that_of_devices():
    trees = [every_kind(shift=place, count=4.0 + place) for place in (0.0, 1.0, 5.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    sync = jax.jit(jax.vmap(lambda tree: jn.sync_batch_stats(tree, "i"), axis_name="i"))
    alike(merge(trees), jax.tree.map(lambda leaf: leaf[0], sync(stacked)), 4)


@pytest.mark.long
def test_states_of_nnx_are_merged_and_put_back():
    rngs = nnx.Rngs(0)
    model = nnx.Dict(
        blocks=nnx.List([jnnx.BatchNorm(3, rngs=rngs), jnnx.BatchRenorm(3, rngs=rngs)])
    )
    state = nnx.state(model, nnx.BatchStat)
    other = jax.tree.map(lambda leaf: leaf + leaf.dtype.type(2), state)
    merged = merge([state, other], floats(3.0, 1.0))
    assert jax.tree.structure(merged) == jax.tree.structure(state)
    nnx.update(model, merged)
    near(model.blocks[0].mean[...], np.full(3, 0.5), 1e-6)
    near(model.blocks[0].var[...], np.full(3, 1.5 + 0.75), 1e-6)
    assert model.blocks[1].steps[...] == 2


def test_complex_statistics_and_several_channel_axes():
    mean = normals(2, 3, 4, dtype=np.complex64)
    trees = [{"mean": m, "var": np.ones((3, 4), np.float32)} for m in mean]
    merged = merge(trees)
    near(merged["mean"], mean.mean(0), 1e-6)
    relative(merged["var"], 1 + mean.var(0), 2e-6)
    assert (merged["mean"].dtype, merged["var"].dtype) == (np.complex64, np.float32)


@pytest.mark.long
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_statistics_stay_sharded(kind):
    data = [normals(5, 8, seed=seed) for seed in range(3)]
    trees = [{"plain": measured(x), "cumulative": measured(x, "count")} for x in data]
    grid = mesh(kind)
    by_channel = {
        name: {
            key: NamedSharding(grid, P("i") if value.ndim else P()) for key, value in one.items()
        }
        for name, one in trees[0].items()
    }
    expected = jax.device_get(merge(trees, jnp.arange(3.0)))
    merged = merge([jax.device_put(tree, by_channel) for tree in trees], jnp.arange(3.0))
    assert {one["var"].sharding.spec for one in merged.values()} == {P("i")}
    alike(jax.device_get(merged), expected, 2)


@pytest.mark.long
def test_many_mixtures_are_mapped():
    trees = [measured(x) for x in clients()]
    mixtures = jnp.array([[1.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    merged = jax.jit(jax.vmap(lambda weights: jn.merge_batch_stats(trees, weights)))(mixtures)
    for place in range(2):
        alike(
            jax.tree.map(lambda leaf, at=place: leaf[at], merged), merge(trees, mixtures[place]), 2
        )


def test_errors_say_what_was_given():
    batch, renorm = jn.init_batch_stats(3), jn.init_renorm_stats(3)
    for trees, words in (
        ([], "no trees to merge"),
        ([{"a": {"b": batch}}, {"a": {"c": batch}}], "'a/b/mean': .* trees.1. has nothing"),
        ([{"a": batch}, {"a": batch}, {"a": renorm}], "'a/steps': .*nothing, trees.2. has int32"),
        ([batch, jn.init_batch_stats(4)], r"'mean': trees\[0\] has float32\[3\], .* float32\[4\]"),
        ([batch, {**batch, "mean": jnp.ones(3, jnp.complex64)}], "'mean': .*complex64"),
        ([batch, jn.freeze_stats(batch)], "'frozen': .*nothing, .* a mark"),
        ([{"kernel": jnp.ones(2)}], "no mean and var"),
        ([{**batch, "mean": jnp.ones(3, jnp.bfloat16)}], "bfloat16"),
    ):
        with pytest.raises(ValueError, match=words):
            jn.merge_batch_stats(trees)
    with pytest.raises(TypeError, match=r"sequence of trees, got one dict with the keys .'mean'"):
        jn.merge_batch_stats(batch)
    for weights, error, words in (
        ([1], ValueError, "1 weights for 2 trees"),
        ([1, -1], ValueError, r"weights\[1\]=-1 must be a number >= 0"),
        (np.array([np.nan, 1]), ValueError, r"weights\[0\]=nan"),
        ([1, np.inf], ValueError, r"weights\[1\]=inf"),
        ((0, 0.0), ValueError, "all 0"),
        (jnp.zeros(2), ValueError, "all 0"),
        (3, TypeError, "sequence of numbers, got 3"),
        ({"a": 1, "b": 2}, TypeError, "in the order of the trees, got the dict"),
        ({1, 2}, TypeError, "got the set"),
        (["a", "b"], TypeError, r"weights\[0\] must be one real number, got 'a'"),
        (jnp.ones((2, 2)), TypeError, r"weights\[0\]"),
        ([1, 1j], TypeError, r"weights\[1\]"),
    ):
        with pytest.raises(error, match=words):
            jn.merge_batch_stats([batch, batch], weights)
