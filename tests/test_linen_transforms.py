"""Flax's lifted transforms, metadata and tables see our modules as they see Flax's."""

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KEY, alike, normals

import jaxnorm.linen as jnn

X = normals(4, 6, 8, mean=1.0, std=2.0)
MUTABLE = ["batch_stats"]
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


class Block(nn.Module):
    """A dense layer, and a normalization with statistics and one without behind it."""

    library: Any
    train: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        random = {"scale_init": nn.initializers.normal(1.0)}
        x = nn.Dense(8)(x)
        x = self.library.BatchNorm(use_running_average=not self.train, momentum=0.5, **random)(x)
        return self.library.LayerNorm(**random)(x), None


def lifted(transform, library):
    """Give the block under a transform."""
    if transform == "remat":
        return nn.remat(Block)(library)
    if transform == "jit":
        return nn.jit(Block)(library)
    over = {"params": 0, "batch_stats": 0}
    split = {"params": True}
    if transform == "scan":
        return nn.scan(Block, variable_axes=over, split_rngs=split, length=3)(library)
    return nn.vmap(Block, variable_axes=over, split_rngs=split, in_axes=0, axis_size=4)(library)


def trained(module, variables, x):
    """Give the output, the new statistics and the gradients of the parameters and the input."""

    @jax.jit
    def step(params, x):
        inputs = {**variables, "params": params}
        (y, _), updates = module.apply(inputs, x, mutable=MUTABLE)
        return jnp.sum(y * jnp.sin(3 * y)), (y, updates)

    return jax.grad(step, argnums=(0, 1), has_aux=True)(variables["params"], x)


@pytest.mark.long
@pytest.mark.parametrize("transform", ["remat", "jit", "scan", "vmap"])
def test_a_transformed_block_is_flaxs(transform):
    ours, flaxs = (lifted(transform, library) for library in (jnn, nn))
    x = np.stack([X, 2 * X, X - 1, -X]) if transform == "vmap" else X
    variables = jax.jit(flaxs.init)(KEY, x)
    assert jax.eval_shape(ours.init, KEY, x) == jax.eval_shape(flaxs.init, KEY, x)
    gradients, (y, updates) = trained(ours, variables, x)
    expected_gradients, expected = trained(flaxs, variables, x)
    chex.assert_trees_all_close((y, updates), expected, **CLOSE)
    chex.assert_trees_all_close(gradients, expected_gradients, atol=2e-4, rtol=2e-3)


def test_scan_carries_the_statistics_of_one_layer():
    results = []
    for library in (jnn, nn):
        variables = Block(library).init(KEY, X)
        module = nn.scan(
            Block,
            variable_carry="batch_stats",
            variable_broadcast="params",
            split_rngs={"params": False},
            length=3,
        )(library)
        results.append(jax.jit(partial(module.apply, mutable=MUTABLE))(variables, X))
    chex.assert_trees_all_close(*results, **CLOSE)


def test_remat_changes_nothing():
    plain, remat = Block(jnn), nn.remat(Block)(jnn)
    variables = jax.jit(plain.init)(KEY, X)
    ours, expected = (
        jax.jit(partial(module.apply, mutable=MUTABLE))(variables, X) for module in (remat, plain)
    )
    alike(ours, expected)


class Wrapped(nn.Module):
    """A normalization whose variables stand where the wrapper stands."""

    library: Any

    def setup(self):
        self.inner = self.library.BatchNorm(use_running_average=False, momentum=0.5)
        nn.share_scope(self, self.inner)

    def __call__(self, x):
        return 2 * self.inner(x)


def test_share_scope_lays_the_variables_where_the_wrapper_is():
    ours, flaxs = Wrapped(jnn), Wrapped(nn)
    variables = flaxs.init(KEY, X)
    assert set(variables["params"]) == {"scale", "bias"}
    chex.assert_trees_all_equal(ours.init(KEY, X), variables)
    result = ours.apply(variables, X, mutable=MUTABLE)
    chex.assert_trees_all_close(result, flaxs.apply(variables, X, mutable=MUTABLE), **CLOSE)


LOGICAL = {
    "scale_init": nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
    "bias_init": nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
}


@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"])
def test_logical_partitioning_reaches_the_variables(name):
    options = {k: v for k, v in LOGICAL.items() if (name, k) != ("RMSNorm", "bias_init")}
    options |= {"GroupNorm": {"num_groups": 2}, "BatchNorm": {"use_running_average": False}}.get(
        name, {}
    )
    ours, flaxs = (getattr(library, name)(**options) for library in (jnn, nn))
    variables = ours.init(KEY, X)
    assert isinstance(variables["params"]["scale"], nn.LogicallyPartitioned)
    chex.assert_trees_all_equal(variables, flaxs.init(KEY, X))
    assert nn.get_partition_spec(variables) == nn.get_partition_spec(flaxs.init(KEY, X))
    result = ours.apply(variables, X, mutable=MUTABLE)
    chex.assert_trees_all_close(result, flaxs.apply(variables, X, mutable=MUTABLE), **CLOSE)


def test_tabulate_shows_what_it_shows_of_flaxs():
    table = {
        library: nn.tabulate(Block(library), KEY, console_kwargs={"width": 200})(X)
        for library in (jnn, nn)
    }
    assert table[jnn] == table[nn]
    assert "BatchNorm_0" in table[jnn]


@pytest.mark.parametrize("groups", [[[0, 1], [2, 3]], None])
@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"])
def test_devices_merge_what_flaxs_merge(name, groups):
    options = {"axis_name": "devices", "axis_index_groups": groups}
    options |= {"GroupNorm": {"num_groups": 2}, "BatchNorm": {"use_running_average": False}}.get(
        name, {}
    )
    ours, flaxs = (getattr(library, name)(**options) for library in (jnn, nn))
    x = normals(4, 2, 3, 8, mean=1.0)
    variables = ours.init(KEY, x[0])
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))

    def apply(module):
        spec = jax.P("devices")
        inner = lambda x: module.apply(variables, x, mutable=MUTABLE)[0]  # noqa: E731
        mapped = jax.shard_map(
            inner, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=groups is None
        )
        return jax.jit(mapped)(x.reshape(8, 3, 8))

    np.testing.assert_allclose(apply(ours), apply(flaxs), atol=2e-5)
