"""NNX's transforms, splits and filters see our modules as they see NNX's own."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import KEY, STATEFUL_MODULES, alike, identical, near, normals
from flax import nnx

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

X = normals(4, 6, 8, mean=1.0, std=2.0)


class Net(nnx.Module):
    """Two dense layers, and a normalization with statistics and one without between."""

    def __init__(self, library, rngs):
        self.first = nnx.Linear(8, 8, rngs=rngs)
        self.batch = library.BatchNorm(8, momentum=0.5, rngs=rngs)
        self.layer = library.LayerNorm(8, rngs=rngs)
        self.last = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return self.last(self.layer(self.batch(self.first(x))))


@nnx.jit(static_argnums=0)
def net(library):
    """Give the net with the layers of a library."""
    return Net(library, nnx.Rngs(KEY))


def nets():
    """Give the net with our layers and with NNX's, of the same variables."""
    return [net(jnnx), net(nnx)]


def state(module, *filters):
    """Give the values of a module's variables, copied."""
    return nnx.to_pure_dict(nnx.clone(nnx.state(module, *filters)))


def hold(ours, flaxs, tolerance=2e-5):
    """Hold two trees together."""
    assert jax.tree.structure(ours) == jax.tree.structure(flaxs)
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(flaxs), strict=True):
        near(mine, theirs, tolerance)


def loss(model, x):
    """Give a scalar that depends on everything."""
    return jnp.mean(jnp.square(model(x) - jnp.sin(x)))


def test_jit_and_grad_train_as_with_flaxs():
    curves, models = [], nets()
    for model in models:
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer, x):
            value, gradients = nnx.value_and_grad(loss)(model, x)
            optimizer.update(model, gradients)
            return value

        curves.append([float(step(model, optimizer, X)) for _ in range(10)])
    near(*curves, 1e-4)
    assert curves[0][-1] < curves[0][0]
    hold(*(state(model) for model in models), 1e-3)


def test_the_state_can_be_carried_by_hand():
    by_hand, by_nnx = net(jnnx), net(jnnx)
    graph, params, stats = nnx.split(by_hand, nnx.Param, nnx.BatchStat)

    @jax.jit
    def step(params, stats, x):
        def of_params(params):
            model = nnx.merge(graph, params, stats, copy=True)
            return loss(model, x), nnx.state(model, nnx.BatchStat)

        (value, stats), gradients = jax.value_and_grad(of_params, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), stats, value

    @nnx.jit
    def step_of_nnx(model, x):
        value, gradients = nnx.value_and_grad(loss)(model, x)
        new = jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(model, nnx.Param), gradients)
        nnx.update(model, new)
        return value

    for _ in range(3):
        params, stats, value = step(params, stats, X)
        near(value, step_of_nnx(by_nnx, X), 1e-6)
    hold(nnx.to_pure_dict(stats), state(by_nnx, nnx.BatchStat), 1e-6)
    hold(nnx.to_pure_dict(params), state(by_nnx, nnx.Param), 1e-6)


@pytest.mark.parametrize("name", [name for name in STATEFUL_MODULES if name != "BatchNorm"])
def test_the_others_are_carried_by_hand_too(name):
    options = STATEFUL_MODULES[name]
    norm = getattr(jnnx, name)(8, momentum=0.5, rngs=nnx.Rngs(KEY), **options)
    graph, carried = nnx.split(norm)

    @jax.jit
    def step(carried, x):
        model = nnx.merge(graph, carried)
        return model(x), nnx.state(model)

    jitted = nnx.jit(lambda norm, x: norm(x))
    for _ in range(2):
        y, carried = step(carried, X)
        alike(jitted(norm, X), y)
    alike(nnx.to_pure_dict(carried), state(norm))


def test_filters_find_the_statistics():
    ours, flaxs = nets()
    assert set(nnx.state(ours, nnx.BatchStat)) == {"batch"}
    for filters in [(nnx.BatchStat,), (nnx.Param,), (nnx.PathContains("batch"),)]:
        identical(state(ours, *filters), state(flaxs, *filters))


def test_eval_shape_makes_an_abstract_model():
    ours, flaxs = (
        nnx.state(nnx.eval_shape(lambda library=library: Net(library, nnx.Rngs(KEY))))
        for library in (jnnx, nnx)
    )
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), s) for s in (ours, flaxs)]
    assert nnx.to_pure_dict(shapes[0]) == nnx.to_pure_dict(shapes[1])
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(ours))


def stacked(library):
    """Give three nets in one, along a first axis of every variable."""

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def create(rngs):
        return Net(library, rngs)

    return create(nnx.Rngs(KEY))


@pytest.mark.long
def test_vmap_trains_several_models_at_once():
    results = []
    for library in (jnnx, nnx):
        models = stacked(library)
        assert models.batch.mean.shape == (3, 8)
        y = nnx.vmap(lambda model, x: model(x), in_axes=(0, None))(models, X)
        results.append((y, state(models, nnx.BatchStat)))
    hold(*results)


@pytest.mark.long
def test_scan_runs_a_stack_of_layers():
    results = []
    for library in (jnnx, nnx):
        models = stacked(library)

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(model, x):
            return jnp.sin(model(x))

        results.append((run(models, X), state(models, nnx.BatchStat)))
    hold(*results)


def test_scan_carries_the_statistics_over_batches():
    batches = np.stack([X, X + 1, 2 * X])
    results = []
    for library in (jnnx, nnx):
        norm = library.BatchNorm(8, momentum=0.5, rngs=nnx.Rngs(KEY))
        axes = nnx.StateAxes({nnx.BatchStat: nnx.Carry, ...: None})

        @nnx.scan(in_axes=(axes, 0), out_axes=0)
        def run(norm, x):
            return norm(x)

        results.append((run(norm, batches), state(norm, nnx.BatchStat)))
    hold(*results)


@pytest.mark.long
def test_no_gradient_goes_through_the_statistics_that_are_kept():
    def evaluated(x, norm):
        norm(x)
        return jnp.sum(jnp.square(norm(2 * X + x, use_running_average=True)))

    layers = [library.BatchNorm(8, momentum=0.5, rngs=nnx.Rngs(KEY)) for library in (jnnx, nnx)]
    hold(*(nnx.grad(evaluated)(X, norm) for norm in layers), 2e-4)


@pytest.mark.long
def test_remat_differentiates_and_updates_once():
    results = []
    for model in nets():
        rematted = nnx.remat(lambda model, x: model(x))
        gradients = nnx.grad(lambda model, x, f=rematted: loss(lambda x: f(model, x), x))(model, X)
        results.append((nnx.to_pure_dict(gradients), state(model, nnx.BatchStat)))
    hold(*results)


def test_the_bridges_carry_them_to_the_other_framework():
    options, results = {"momentum": 0.5}, []
    for linen, library in ((jnn, jnnx), (nn, nnx)):
        module = nnx.bridge.ToNNX(
            linen.BatchNorm(use_running_average=False, **options), rngs=nnx.Rngs(KEY)
        ).lazy_init(X)
        y = module(X, mutable=["batch_stats"])
        wrapped = nnx.bridge.ToLinen(library.BatchNorm, args=(8,), kwargs=options)
        result = wrapped.apply(wrapped.init(KEY, X), X, mutable=["batch_stats"])
        results.append((y, state(module, nnx.BatchStat), result))
    hold(*results)


def test_what_nnx_forbids_is_nnxs_own_error():
    for library in (jnnx, nnx):
        norm = library.BatchNorm(8, rngs=nnx.Rngs(KEY))
        with pytest.raises(flax.errors.TraceContextError, match="BatchStat"):
            jax.jit(norm.__call__)(X)
        norm.eval()
        assert jax.jit(norm.__call__)(X).shape == X.shape


@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"])
def test_devices_merge_what_flaxs_merge(name):
    options = {"num_groups": 2} if name == "GroupNorm" else {}
    x, results = normals(2, 3, 5, 8, mean=1.0), []
    for library in (jnnx, nnx):
        norm = getattr(library, name)(8, axis_name="devices", rngs=nnx.Rngs(KEY), **options)
        graph, values = nnx.split(norm)

        def apply(x, graph=graph, values=values):
            norm = nnx.merge(graph, values, copy=True)
            return norm(x), nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat))

        results.append(jax.jit(jax.vmap(apply, axis_name="devices"))(x))
    hold(*results)
