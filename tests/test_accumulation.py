"""A step in micro-batches has the values of the whole batch or of ghosts, and updates once."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KEY, fresh, library, near, normals, seen
from flax import nnx

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

pytestmark = pytest.mark.numerical

MICROS, SIZE = 4, 6
X = normals(MICROS, SIZE, 3, mean=np.arange(MICROS)[:, None, None])
Y = normals(MICROS, SIZE, 5, seed=1)
NAMES = ("norm_0", "norm_1", "norm_2")  # from the input on


class Net(nn.Module):
    """Three normalizations, of whichever kind."""

    norm: type = jnn.BatchNorm
    axis_name: str | None = None
    num_ghosts: int | None = None

    @nn.compact
    def __call__(self, x):
        options = {} if self.num_ghosts is None else {"num_ghosts": self.num_ghosts}
        for name in NAMES:
            norm = self.norm(
                use_running_average=False,
                momentum=0.9,
                axis_name=self.axis_name,
                name=name,
                **options,
            )
            x = nn.tanh(norm(nn.Dense(5)(x)))
        return x


def loss(net, params, stats, x, y):
    """Give the loss, and the outputs and the statistics."""
    variables = {"params": params, "batch_stats": stats}
    out, updates = net.apply(variables, x, mutable=["batch_stats"])
    return jnp.mean((out - y) ** 2), (out, updates["batch_stats"])


@functools.cache
def first(norm=jnn.BatchNorm):
    """Give the parameters, and running statistics that have seen something."""
    variables = jax.jit(Net(norm).init)(KEY, X[0])
    stats = jax.tree.map(lambda leaf: leaf, variables["batch_stats"])
    name = "renorm" if norm is jnn.BatchRenorm else "batch"
    return variables["params"], {key: {**stats[key], **seen(name, 5)} for key in NAMES}


def gradients(net):
    return jax.value_and_grad(functools.partial(loss, net), has_aux=True)


@functools.cache
def whole(net):
    """Give what one step with the whole batch gives."""
    (value, (out, stats)), grads = jax.jit(gradients(net))(
        *first(), X.reshape(-1, 3), Y.reshape(-1, 5)
    )
    return value, out, stats, grads


def same(actual, expected):
    value, out, stats, grads = actual
    near(value, expected[0], 1e-6)
    near(np.reshape(out, (-1, 5)), expected[1], 5e-6)
    jax.tree.map(lambda a, b: near(a, b, 2e-6), stats, expected[2])
    jax.tree.map(lambda a, b: near(a, b, 2e-6), grads, expected[3])


def test_members_of_a_vmap_have_the_values_of_the_whole_batch():
    of_micro = gradients(Net(axis_name="micro"))
    step = jax.jit(
        jax.vmap(
            of_micro,
            in_axes=(None, None, 0, 0),
            out_axes=((0, (0, None)), 0),
            axis_name="micro",
        )
    )
    (values, (out, stats)), grads = step(*first(), X, Y)
    grads = jax.tree.map(lambda grad: grad.mean(0), grads)
    same((values.mean(), out, stats, grads), whole(Net()))


def known_statistics(params, stats, xs):
    """Give the statistics of the whole batch, frozen, and the running ones after its step."""
    known = running = stats
    for name in NAMES:

        def measured(tree, x, name=name):
            variables = {"params": params, "batch_stats": tree}
            _, updates = Net().apply(variables, x, mutable=["batch_stats"])
            return {**tree, name: updates["batch_stats"][name]}, None

        started = jn.start_recomputing(known, name)
        tree, _ = jax.lax.scan(jax.checkpoint(measured), started, xs)
        running = {**running, name: {**stats[name], "recomputed": tree[name]["recomputed"]}}
        known = jn.freeze_stats(jn.finish_recomputing(tree, name), name)
    return known, jn.finish_accumulating(running, momentum=0.9)


def loss_of_all(params, stats, xs, ys):
    known, stats = known_statistics(params, stats, xs)

    @jax.checkpoint
    def add(total, batch):
        value, (out, _) = loss(Net(), params, known, *batch)
        return total + value / len(xs), out

    total, out = jax.lax.scan(add, jnp.zeros(()), (xs, ys))
    return total, (out, stats)


@pytest.mark.long
def test_two_scans_have_the_values_of_the_whole_batch():
    step = jax.jit(jax.value_and_grad(loss_of_all, has_aux=True))
    (value, (out, stats)), grads = step(*first(), X, Y)
    same((value, out, stats, grads), whole(Net()))


def one_update(net, params, stats, xs, ys):
    """Accumulate over micro-batches, each normalized by itself; update the statistics once."""

    def add(carried, batch):
        (value, (out, tree)), grads = gradients(net)(params, carried[2], *batch)
        total, grads = jax.tree.map(jnp.add, carried[:2], (value, grads))
        return (total, grads, tree), out

    nothing = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params), jn.start_recomputing(stats)
    (value, grads, tree), out = jax.lax.scan(add, nothing, (xs, ys))
    value, grads = jax.tree.map(lambda leaf: leaf / len(xs), (value, grads))
    return value, out, jn.finish_accumulating(tree, momentum=0.9), grads


@pytest.mark.long
def test_micro_batches_by_themselves_have_the_values_of_ghosts():
    actual = jax.jit(functools.partial(one_update, Net()))(*first(), X, Y)
    same(actual, whole(Net(jnn.GhostBatchNorm, num_ghosts=MICROS)))


@pytest.mark.long
def test_batch_renorm_counts_one_step():
    params, stats = first(jnn.BatchRenorm)
    net = Net(jnn.BatchRenorm)
    _, _, new, _ = jax.jit(functools.partial(one_update, net))(params, stats, X, Y)
    assert new["norm_1"]["steps"] == stats["norm_1"]["steps"] + 1
    dense = X.reshape(-1, 3) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    _, expected = library("renorm", dense, stats=stats["norm_0"], momentum=0.9)
    near({k: new["norm_0"][k] for k in expected}, expected, 1e-6)


# The one update


@pytest.mark.parametrize(
    ("name", "momentum"),
    [
        *(("batch", m) for m in (0.0, 0.9, 1.0, None)),
        ("ghost", 0.9),
        ("renorm", 0.9),
        ("renorm", None),
    ],
)
def test_one_update_is_that_of_the_whole_batch(name, momentum):
    old = {**fresh(name, 3, momentum=momentum), **seen(name, 3)}
    if momentum is None:
        old["count"] = jnp.asarray(10.0)
    stats = jn.start_recomputing({"norm": old})
    for x in X:
        _, stats["norm"] = library(name, x, stats=stats["norm"], momentum=momentum)
    new = jn.finish_accumulating(stats, momentum=momentum)["norm"]
    _, expected = library(name, X.reshape(-1, 3), stats=old, momentum=momentum)
    near(new, expected, 2e-6)
    assert {key: leaf.dtype for key, leaf in new.items()} == {
        key: leaf.dtype for key, leaf in old.items()
    }


@pytest.mark.long
def test_stacked_layers_and_parts():
    layers = [{**fresh("renorm", 3, momentum=None), "count": jnp.asarray(4.0)} for _ in range(2)]
    step = jax.vmap(lambda stats, x: jn.batch_renorm(x, stats, train=True, momentum=None)[1])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    tree = jn.start_recomputing({"a": stacked, "b": stacked})
    tree = {"a": step(tree["a"], X[:2]), "b": tree["b"]}
    new = jn.finish_accumulating(tree, "a", momentum=None)
    assert "recomputed" in new["b"]
    expected = step(stacked, X[:2])
    assert jax.tree.map(jnp.shape, new["a"]) == jax.tree.map(jnp.shape, expected)
    near(new["a"], expected, 2e-6)


def test_where_nothing_counted_nothing_moves():
    old = seen("renorm", 3)
    with pytest.warns(UserWarning, match="nothing was counted"):
        near(jn.finish_accumulating(jn.start_recomputing(old)), old, 0)


@pytest.mark.long
def test_an_nnx_model():
    model, other = (
        nnx.Dict(norm=jnnx.BatchRenorm(3, momentum=0.9, rngs=nnx.Rngs(0))) for _ in range(2)
    )
    other.norm(X.reshape(-1, 3))
    jnnx.start_recomputing(model)
    for x in X:
        model.norm(x)
    jnnx.finish_accumulating(model, momentum=0.9)
    for key in ("mean", "var", "steps"):
        near(getattr(model.norm, key)[...], getattr(other.norm, key)[...], 2e-6)
    assert not hasattr(model.norm, "recomputed")


def test_bad_momentum_is_an_error():
    tree = jn.start_recomputing({"norm": fresh("batch", 3)})
    with pytest.raises(ValueError, match="momentum=2"):
        jn.finish_accumulating(tree, momentum=2.0)
    with pytest.raises(ValueError, match=r"have a count; these have the keys \['mean', 'var'\]"):
        jn.finish_accumulating(tree, momentum=None)
