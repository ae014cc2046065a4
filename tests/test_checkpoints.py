"""What Flax's modules wrote loads into ours and back, through orbax, bit for bit."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from cases import KEY, STATEFUL_MODULES, identical, normals
from flax import nnx

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

X = normals(4, 3, 8, mean=1.0)
RANDOM = {"scale_init": nn.initializers.normal(1.0), "param_dtype": jnp.bfloat16}


class Net(nn.Module):
    """Flax's five."""

    library: Any

    @nn.compact
    def __call__(self, x):
        x = self.library.BatchNorm(use_running_average=False, momentum=0.5, **RANDOM)(x)
        x = self.library.LayerNorm(feature_axes=(1, 2), **RANDOM)(x)
        x = self.library.RMSNorm(**RANDOM)(x)
        x = self.library.GroupNorm(num_groups=2, **RANDOM)(x)
        return self.library.InstanceNorm(**RANDOM)(x)


class NnxNet(nnx.Module):
    """Flax's five."""

    def __init__(self, library, rngs):
        self.batch = library.BatchNorm(8, momentum=0.5, rngs=rngs, **RANDOM)
        self.layer = library.LayerNorm(24, feature_axes=(1, 2), rngs=rngs, **RANDOM)
        self.rms = library.RMSNorm(8, rngs=rngs, **RANDOM)
        self.group = library.GroupNorm(8, num_groups=2, rngs=rngs, **RANDOM)
        self.instance = library.InstanceNorm(8, rngs=rngs, **RANDOM)

    def __call__(self, x):
        return self.instance(self.group(self.rms(self.layer(self.batch(x)))))


def through_orbax(tree, target, path):
    """Write a tree, and read it as one of the target's shapes and dtypes."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "checkpoint", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "checkpoint", target)


@pytest.mark.parametrize(("writer", "reader"), [(nn, jnn), (jnn, nn)], ids=["from", "to"])
def test_linen_variables_are_read_bit_for_bit(writer, reader, tmp_path):
    with jax.numpy_dtype_promotion("standard"):
        variables = jax.jit(Net(writer).init)(KEY, X)
        trained = jax.jit(partial(Net(writer).apply, mutable=["batch_stats"]))
        variables |= trained(variables, X)[1]
        target = jax.eval_shape(Net(reader).init, KEY, X)
        read = through_orbax(variables, target, tmp_path)
        identical(read, variables)
        jax.eval_shape(partial(Net(reader).apply, mutable=["batch_stats"]), read, X)


@pytest.mark.long
@pytest.mark.parametrize(("writer", "reader"), [(nnx, jnnx), (jnnx, nnx)], ids=["from", "to"])
def test_nnx_states_are_read_bit_for_bit(writer, reader, tmp_path):
    written, fresh = NnxNet(writer, nnx.Rngs(KEY)), NnxNet(reader, nnx.Rngs(1))
    with jax.numpy_dtype_promotion("standard"):
        nnx.jit(lambda net, x: net(x))(written, X)
        state = nnx.state(written)
        nnx.update(fresh, through_orbax(state, nnx.state(fresh), tmp_path))
        identical(nnx.to_pure_dict(nnx.state(fresh)), nnx.to_pure_dict(state))
        nnx.eval_shape(lambda net, x: net(x), fresh, X)


def frozen_net():
    """Give variables whose batch statistics moved and are frozen, and what init makes."""
    net = Net(jnn)
    with jax.numpy_dtype_promotion("standard"):
        fresh = jax.jit(net.init)(KEY, X)
        moved = fresh | jax.jit(partial(net.apply, mutable=["batch_stats"]))(fresh, X)[1]
    frozen = moved | {"batch_stats": jn.freeze_stats(moved["batch_stats"], "BatchNorm_0")}
    return fresh, moved, frozen


def restated(variables, **options):
    """Freeze all statistics of the variables, or with frozen=False none."""
    return variables | {"batch_stats": jn.freeze_stats(variables["batch_stats"], **options)}


def test_a_frozen_checkpoint_is_read_into_a_target_frozen_alike_and_thawed(tmp_path):
    fresh, moved, frozen = frozen_net()
    read = through_orbax(frozen, restated(fresh), tmp_path)
    identical(restated(read, frozen=False), moved)
    assert "frozen" not in restated(read, frozen=False)["batch_stats"]["BatchNorm_0"]


def test_a_checkpoint_saved_thawed_is_read_into_what_init_makes_and_frozen_again(tmp_path):
    fresh, moved, frozen = frozen_net()
    read = through_orbax(restated(frozen, frozen=False), fresh, tmp_path)
    identical(read, moved)
    assert "frozen" in restated(read)["batch_stats"]["BatchNorm_0"]


@pytest.mark.parametrize("frozen", [True, False])
def test_nnx_states_are_the_same_frozen_or_not(frozen, tmp_path):
    written, fresh = NnxNet(jnnx, nnx.Rngs(KEY)), NnxNet(jnnx, nnx.Rngs(1))
    with jax.numpy_dtype_promotion("standard"):
        nnx.jit(lambda net, x: net(x))(written, X)
    jnnx.freeze_stats(written, frozen=frozen)
    jnnx.freeze_stats(fresh, frozen=not frozen)
    nnx.update(fresh, through_orbax(nnx.state(written), nnx.state(fresh), tmp_path))
    identical(nnx.to_pure_dict(nnx.state(fresh)), nnx.to_pure_dict(nnx.state(written)))
    assert fresh.batch.frozen is not frozen


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in STATEFUL_MODULES if name != "BatchNorm"])
def test_all_that_the_others_remember_comes_back(name, tmp_path):
    options = STATEFUL_MODULES[name]
    module = getattr(jnn, name)(use_running_average=False, momentum=None, **options)
    variables = module.init(KEY, X)
    variables |= module.apply(variables, X, mutable=["batch_stats"])[1]
    variables["batch_stats"] = jn.freeze_stats(variables["batch_stats"])
    read = through_orbax(variables, jax.tree.map(jnp.zeros_like, variables), tmp_path)
    identical(read, variables)
    assert "frozen" in read["batch_stats"]
