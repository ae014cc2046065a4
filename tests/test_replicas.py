"""Replicas whose running statistics have drifted apart are merged, the between-variance too."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KEY, alike, identical, near, normals, relative, seen
from devices import WAYS, kinds, mapped
from flax import nnx

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

pytestmark = pytest.mark.numerical

DATA = normals(8, 5, 16, 3, mean=4 * np.arange(8)[:, None, None, None], std=2.0)


def merge(stats):
    return jn.sync_batch_stats(stats, "i")


@functools.cache
def drifted(momentum=0.9):
    """Give the statistics of eight replicas that each saw five batches of its own."""

    def train(batches):
        def step(stats, x):
            _, stats = jn.batch_norm(x, stats, train=True, momentum=momentum)
            return stats, None

        return jax.lax.scan(step, jn.init_batch_stats(3, momentum=momentum), batches)[0]

    return jax.jit(jax.vmap(train))(DATA)


def merged_within_and_between(merged, stats):
    """Hold one replica's statistics to the merge; the mean in units of the replicas' size."""
    mean, var = (np.asarray(stats[key], np.float64) for key in ("mean", "var"))
    size = np.sqrt(np.mean(mean**2 + var, 0))
    near(merged["mean"] / size, mean.mean(0) / size, 2e-6)
    relative(merged["var"], var.mean(0) + mean.var(0), 2e-6)


@pytest.mark.parametrize("way", WAYS)
def test_replicas_merge_within_and_between(way):
    stats = drifted()
    merged = mapped(way, merge)(stats)
    for replica in range(8):
        merged_within_and_between({k: v[replica] for k, v in merged.items()}, stats)
        identical(*({k: v[at] for k, v in merged.items()} for at in (0, replica)))


@pytest.mark.parametrize("way", ["vmap", "shard_map"])
def test_cumulative_statistics_merge_to_those_of_all_that_was_seen(way):
    merged = mapped(way, merge)(drifted(momentum=None))
    whole = DATA.reshape(-1, 3).astype(np.float64)
    assert merged["count"].shape == (8,)
    near(merged["count"][0], len(whole), 0)
    relative(merged["mean"][3], whole.mean(0), 2e-6)
    relative(merged["var"][3], whole.var(0), 2e-6)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnn.BatchNorm(use_running_average=False, momentum=0.5)(x)
        x = jnn.GhostBatchNorm(use_running_average=False, num_ghosts=2)(nn.Dense(4)(x))
        return jnn.BatchRenorm(use_running_average=False)(x)


@functools.cache
def drifted_tree():
    """Give the statistics of a net's eight replicas, of which one layer's are frozen."""
    variables = jax.jit(Net().init)(KEY, DATA[0, 0])
    apply = jax.vmap(lambda x: Net().apply(variables, x, mutable=["batch_stats"])[1])
    return jn.freeze_stats(jax.jit(apply)(DATA[:, 0])["batch_stats"], "BatchNorm_0")


@pytest.mark.long
def test_a_whole_tree_is_merged():
    stats = drifted_tree()
    merged = mapped("shard_map", merge)(stats)
    assert jax.tree.structure(merged) == jax.tree.structure(stats)
    for name, layer in stats.items():
        merged_within_and_between({k: merged[name][k][5] for k in ("mean", "var")}, layer)
    assert merged["BatchRenorm_0"]["steps"].tolist() == [1] * 8
    assert "frozen" in merged["BatchNorm_0"]


def test_an_nnx_models_statistics_are_merged():
    model = nnx.Sequential(jnnx.BatchNorm(3, rngs=nnx.Rngs(0)), jnnx.LayerNorm(3, rngs=nnx.Rngs(0)))
    state = nnx.state(model, nnx.BatchStat)
    replicas = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 2]), state)
    merged = jax.vmap(merge, axis_name="i")(replicas)
    nnx.update(model, jax.tree.map(lambda leaf: leaf[0], merged))
    norm = model.layers[0]
    near(norm.mean[...], np.ones(3))
    near(norm.var[...], np.full(3, 3.0))


@pytest.mark.long
@pytest.mark.parametrize("layers", [2, 3])
def test_stacked_layers_are_weighed_by_their_own_counts(layers):
    count = np.ones((4, layers), np.float32)
    count[0, 1] = 100
    mean = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None], (4, layers, 2))
    stats = {"mean": mean, "var": np.ones((4, layers, 2), np.float32), "count": count}
    merged = jax.vmap(merge, axis_name="i")(stats)
    assert merged["count"].shape == count.shape
    near(merged["count"][0], count.sum(0), 0)
    expected = (mean * count[..., None]).sum(0) / count.sum(0)[:, None]
    near(merged["mean"][2], expected, 1e-6)


@pytest.mark.long
def test_real_and_complex_statistics_are_merged_each_in_its_dtype():
    counts = np.arange(1000, 1008, dtype=np.float32)
    stats = {
        "real": {
            "mean": jnp.zeros((8, 2)),
            "var": jnp.full((8, 2), 48.75),
            "count": jnp.asarray(counts),
        },
        "complex": {"mean": jnp.full((8, 2), 1 + 2j), "var": jnp.ones((8, 2))},
    }
    merged = mapped("pmap", merge)(stats)
    assert jax.tree.map(lambda a: a.dtype, merged) == jax.tree.map(lambda a: a.dtype, stats)
    near(merged["real"]["count"], np.full(8, counts.sum()), 0)
    relative(merged["real"]["var"], np.full((8, 2), 48.75), 2e-6)
    near(merged["complex"]["mean"], np.full((8, 2), 1 + 2j))


def test_groups_of_replicas_are_merged_among_themselves():
    stats, halves = drifted(), [[0, 1, 2, 3], [4, 5, 6, 7]]
    merged = mapped("pmap", lambda stats: jn.sync_batch_stats(stats, "i", halves))(stats)
    for half in halves:
        mean = np.asarray(stats["mean"], np.float64)[half]
        relative(merged["mean"][half[2]], mean.mean(0), 2e-6)


def test_the_whole_tree_is_one_collective():
    tree = {"a": drifted(), "b": {"c": drifted(), "d": drifted()}}
    assert kinds(mapped("pmap", merge).lower(tree).compile()) == ["all-gather"]


def test_merging_what_is_alike_changes_nothing():
    stats = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), seen("batch", 3))
    alike(mapped("pmap", merge)(stats), stats)


def test_errors_say_what_is_missing():
    with pytest.raises(ValueError, match="axis_name='i' is not mapped"):
        merge(jn.init_batch_stats(3))
    with pytest.raises(ValueError, match="no mean and var"):
        jax.vmap(merge, axis_name="i")({"a": {"mean": jnp.zeros((2, 3))}})
