"""The Linen modules create Flax's variables and give the functions' numbers."""

import functools
import re
import subprocess
import sys
from typing import Any

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import KEY, MODULES, STATEFUL_MODULES, normals
from waiting import PATIENCE

import jaxnorm as jn
import jaxnorm.linen as jnn

X = jnp.asarray(normals(4, 6, 5, 8, mean=1.0, std=2.0))
RANDOM = {
    "scale_init": nn.initializers.normal(1.0),
    "bias_init": nn.initializers.normal(1.0),
}
SAMPLE = {
    "LayerNorm": RANDOM,
    "RMSNorm": {"scale_init": RANDOM["scale_init"]},
    "GroupNorm": {**RANDOM, "num_groups": 4},
    "InstanceNorm": RANDOM,
}


@pytest.mark.parametrize("name", ["BatchNorm", *SAMPLE])
def test_the_first_variables_are_flaxs_bit_for_bit(name):
    options = SAMPLE.get(name, {**RANDOM, "use_running_average": False})
    variables = getattr(nn, name)(**options).init(KEY, X)
    chex.assert_trees_all_equal(getattr(jnn, name)(**options).init(KEY, X), variables)


@pytest.mark.long
def test_group_norm_takes_one_example_without_a_batch():
    x, options = X[0, 0, 0], {"num_groups": 2, **RANDOM}
    ours, flaxs = (
        library.GroupNorm(**options).init_with_output(KEY, x)[0] for library in (jnn, nn)
    )
    np.testing.assert_allclose(ours, flaxs, atol=2e-5)


@pytest.mark.parametrize("name", SAMPLE)
def test_init_needs_no_mapped_axis(name):
    options = {**SAMPLE[name], "axis_name": "devices", "axis_index_groups": [[0, 1], [2, 3]]}
    module = getattr(jnn, name)(**options)
    assert module.init(KEY, X)["params"]["scale"].shape == (8,)
    with pytest.raises(ValueError, match="devices"):
        module.apply(module.init(KEY, X), X)


@pytest.mark.parametrize("name", STATEFUL_MODULES)
def test_init_measures_but_does_not_update(name):
    options = STATEFUL_MODULES[name]
    module = getattr(jnn, name)(use_running_average=False, axis_name="devices", **options)
    y, variables = module.init_with_output(KEY, X)
    norm = MODULES[name]
    chex.assert_trees_all_equal(variables["batch_stats"], norm.state(8))
    one_ghost = {"num_ghosts": 1} if "num_ghosts" in options else {}
    expected, _ = norm.oracle(np.asarray(X), norm.state(8), train=True, **{**options, **one_ghost})
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"ghost_size": 3}, {"num_ghosts": 3}, {"num_ghosts": 4}])
@pytest.mark.parametrize("size", [1, 4])
def test_init_needs_no_ghosts(options, size):
    """Neither that they divide the batch nor that one has several values; training does."""
    module = jnn.GhostBatchNorm(use_running_average=False, **options)
    x = X[:size, 0, 0]
    y, variables = module.init_with_output(KEY, x)
    stats = jn.init_batch_stats(8)
    chex.assert_trees_all_equal(variables["batch_stats"], stats)
    np.testing.assert_allclose(y, jn.batch_norm(x, stats, train=size > 1)[0], atol=1e-6)
    with pytest.raises(ValueError, match=r"does not divide|one value per channel"):
        module.apply(variables, x, mutable=["batch_stats"])


def test_init_takes_one_value_per_channel():
    variables = jnn.BatchNorm(use_running_average=False).init(KEY, jnp.ones((1, 3)))
    assert variables["batch_stats"]["mean"].shape == (3,)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (jnn.LayerNorm(), (3, 1)),
        (jnn.GroupNorm(num_groups=4), (2, 4)),
        (jnn.InstanceNorm(), (2, 1, 1, 4)),
    ],
)
def test_one_value_in_every_group_is_an_error_but_in_init(module, shape):
    x = jnp.ones(shape)
    for init in (module.init, functools.partial(jax.eval_shape, module.init)):
        assert init(KEY, x)["params"]["scale"].shape == shape[-1:]
    assert module.init_with_output(KEY, x)[0].shape == shape
    variables = module.init(KEY, x)
    with pytest.raises(ValueError, match="one value in every group"):
        module.apply(variables, x)


@pytest.mark.parametrize("name", STATEFUL_MODULES)
def test_evaluation_follows_training(name):
    """After enough steps on one batch the running statistics are the batch's."""
    options = STATEFUL_MODULES[name]
    module = getattr(jnn, name)(momentum=0.5, **options)
    variables = module.init(KEY, X, use_running_average=False)
    step = jax.jit(
        lambda variables: module.apply(
            variables, X, use_running_average=False, mutable=["batch_stats"]
        )[1]
    )
    for _ in range(30):
        variables = {**variables, **step(variables)}
    y = module.apply(variables, X, use_running_average=True)
    norm = MODULES[name]
    labels, centered = reference.batch_labels(X.shape), not norm.about_zero
    expected = reference.standardize(X, labels, epsilon=1e-5, centered=centered)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_momentum_none_keeps_a_count():
    module = jnn.BatchNorm(use_running_average=False, momentum=None)
    variables = module.init(KEY, X)
    for batch in (X[:3], X[3:]):
        _, updates = module.apply(variables, batch, mutable=["batch_stats"])
        variables = {**variables, **updates}
    stats = variables["batch_stats"]
    assert stats["count"] == X[..., 0].size
    np.testing.assert_allclose(stats["var"], X.var((0, 1, 2)), rtol=1e-5)


def test_statistics_sync_over_the_named_axis():
    module = jnn.BatchNorm(use_running_average=False, axis_name="devices")
    variables = module.init(KEY, X)

    def apply(x):
        return module.apply(variables, x, mutable=["batch_stats"])

    y, updates = jax.vmap(apply, axis_name="devices")(X.reshape(2, 2, *X.shape[1:]))
    expected, stats = jn.batch_norm(X, variables["batch_stats"], train=True)
    np.testing.assert_allclose(y.reshape(X.shape), expected, atol=1e-5)
    for key in stats:
        np.testing.assert_allclose(updates["batch_stats"][key][0], stats[key], rtol=1e-5)


def test_skip_nonfinite_reaches_the_module():
    module = jnn.BatchNorm(use_running_average=False, skip_nonfinite=True)
    variables = module.init(KEY, X)
    _, updates = module.apply(variables, X.at[0].set(jnp.inf), mutable=["batch_stats"])
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])


def test_running_statistics_are_float32_also_where_flaxs_are_not():
    options = {"param_dtype": jnp.bfloat16, "force_float32_reductions": False}
    module = jnn.BatchNorm(use_running_average=False, **options)
    variables = module.init(KEY, X)
    with jax.numpy_dtype_promotion("standard"):
        expected = nn.BatchNorm(use_running_average=False, **options).init(KEY, X)
    chex.assert_trees_all_equal(variables["params"], expected["params"])
    chex.assert_trees_all_equal(variables["batch_stats"], jn.init_batch_stats(8))
    _, updates = module.apply(expected, X, mutable=["batch_stats"])  # Flax's are in bfloat16
    assert updates["batch_stats"]["mean"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (jnn.BatchNorm(), "use_running_average"),
        (jnn.BatchNorm(use_running_average=False, axis=4), "axis=4"),
        (jnn.BatchNorm(use_running_average=False, momentum=2.0), "momentum"),
        (jnn.GhostBatchNorm(use_running_average=False), "ghost_size"),
        (jnn.GhostBatchNorm(use_running_average=False, ghost_size=0), "ghost_size=0"),
        (jnn.GhostBatchNorm(use_running_average=False, ghost_size=2, num_ghosts=2), "exactly one"),
        (jnn.GhostBatchNorm(use_running_average=False, ghost_size=2, axis=0), "batch axis"),
        (jnn.GroupNorm(), "num_groups=32 does not divide the 8 channels"),
        (jnn.GroupNorm(group_size=4), "exactly one"),
        (jnn.InstanceNorm(feature_axes=0), "batch axis"),
    ],
)
def test_a_wrong_module_says_what_would_work(module, message):
    with pytest.raises(ValueError, match=message):
        module.init(KEY, X)


# Statistics that are used, updated, shared or missing


class Twice(nn.Module):
    """One normalization in two places."""

    library: Any

    @nn.compact
    def __call__(self, x, train):
        norm = self.library.BatchNorm(use_running_average=not train, momentum=0.5)
        return norm(3 * norm(x) + 1)


def test_a_module_used_twice_updates_twice():
    ours, flaxs = Twice(jnn), Twice(nn)
    variables = flaxs.init(KEY, X, True)
    chex.assert_trees_all_equal(ours.init(KEY, X, True), variables)
    y, updates = ours.apply(variables, X, True, mutable=["batch_stats"])
    expected = flaxs.apply(variables, X, True, mutable=["batch_stats"])
    chex.assert_trees_all_close((y, updates), expected, atol=2e-5, rtol=2e-5)
    variables = {**variables, **updates}
    y, expected = (module.apply(variables, X, False) for module in (ours, flaxs))
    np.testing.assert_allclose(y, expected, atol=2e-5)


@pytest.mark.parametrize("name", STATEFUL_MODULES)
def test_statistics_can_be_measured_and_not_updated(name):
    module = getattr(jnn, name)(use_running_average=False, **STATEFUL_MODULES[name])
    variables = module.init(KEY, X)
    y, updates = module.apply(variables, X, update_stats=False, mutable=["batch_stats"])
    expected, moved = module.apply(variables, X, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, expected)
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])
    assert not np.array_equal(moved["batch_stats"]["var"], variables["batch_stats"]["var"])
    np.testing.assert_array_equal(module.apply(variables, X, update_stats=False), expected)
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        module.apply(variables, X)


@pytest.mark.parametrize("mutable", [False, ["batch_stats"]])
@pytest.mark.parametrize("name", STATEFUL_MODULES)
def test_missing_statistics_in_evaluation_are_an_error_that_names_them(name, mutable):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return getattr(jnn, name)(use_running_average=not train, **STATEFUL_MODULES[name])(x)

    variables = Net().init(KEY, X, True)
    lost = {"params": variables["params"]}
    keys = list(variables["batch_stats"][f"{name}_0"])
    with pytest.raises(ValueError, match=rf"{name}_0 lacks {re.escape(str(keys))}.*batch_stats"):
        Net().apply(lost, X, False, mutable=mutable)
    stats = {key: variables["batch_stats"][f"{name}_0"][key] for key in keys if key != "var"}
    with pytest.raises(ValueError, match=r"lacks \['var'\]"):
        Net().apply({**lost, "batch_stats": {f"{name}_0": stats}}, X, False, mutable=mutable)
    _, fresh = Net().apply(lost, X, True, mutable=["batch_stats"])  # training may start afresh
    assert set(fresh["batch_stats"][f"{name}_0"]) == set(keys)


def test_use_running_average_is_given_once():
    variables = jnn.BatchNorm().init(KEY, X, use_running_average=True)
    with pytest.raises(ValueError, match="use_running_average"):
        jnn.BatchNorm().apply(variables, X)
    with pytest.raises(ValueError, match="use_running_average"):
        jnn.BatchNorm(use_running_average=True).apply(variables, X, use_running_average=True)


@pytest.mark.parametrize("given", ["no", "", [True], 2, 0.5])
def test_use_running_average_is_a_bool(given):
    variables = jnn.BatchNorm(use_running_average=True).init(KEY, X)
    with pytest.raises(TypeError, match=r"use_running_average must be a Python bool"):
        jnn.BatchNorm().apply(variables, X, use_running_average=given)
    with pytest.raises(TypeError, match=r"use_running_average must be a Python bool"):
        jnn.BatchNorm(use_running_average=given).init(KEY, X)


@pytest.mark.parametrize("yes", [True, 1, np.True_, jnp.ones((), bool)])
def test_use_running_average_may_be_what_flax_takes(yes):
    variables = jnn.BatchNorm(use_running_average=True).init(KEY, X)
    y = jnn.BatchNorm().apply(variables, X, use_running_average=yes)
    np.testing.assert_array_max_ulp(y, X / jnp.sqrt(jnp.float32(1 + 1e-5)), maxulp=1)


def test_a_traced_use_running_average_says_what_to_do():
    variables = jnn.BatchNorm(use_running_average=True).init(KEY, X)
    with pytest.raises(TypeError, match=r"use_running_average.*under jit make it static"):
        jax.jit(jnn.BatchNorm().apply)(variables, X, use_running_average=True)


@pytest.mark.parametrize("name", ["BatchNorm", *SAMPLE])
def test_where_is_called_mask_in_a_module(name):
    options = {"num_groups": 2} if name == "GroupNorm" else {}
    options |= {"use_running_average": True} if name == "BatchNorm" else {}
    module = getattr(jnn, name)(**options)
    with pytest.raises(TypeError, match=r"'where'.*here write mask=\.\.\."):
        module.init(KEY, X, where=jnp.ones(X.shape, bool))


@pytest.mark.parametrize("name", ["BatchNorm", *SAMPLE])
def test_a_scalar_is_an_error_that_says_what_is_needed(name):
    options = {"use_running_average": True} if name == "BatchNorm" else {}
    with pytest.raises(ValueError, match=r"scalar.*x\[None\]"):
        getattr(jnn, name)(**options).init(KEY, 1.0)


def test_update_stats_is_a_python_bool():
    module = jnn.BatchNorm(use_running_average=False)
    with pytest.raises(TypeError, match="update_stats"):
        module.init(KEY, X, update_stats=None)


def test_the_cumulative_count_is_exact_whatever_the_statistics_are():
    options = {"param_dtype": jnp.bfloat16, "force_float32_reductions": False, "momentum": None}
    module = jnn.BatchNorm(use_running_average=False, **options)
    variables = module.init(KEY, X)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["batch_stats"])
    variables = {**variables, "batch_stats": narrow}
    for _ in range(5):
        variables = {**variables, **module.apply(variables, X, mutable=["batch_stats"])[1]}
    assert variables["batch_stats"]["count"] == 5 * X[..., 0].size
    assert variables["batch_stats"]["mean"].dtype == jnp.float32


def test_shapes_are_found_without_a_device():
    """Processes find each other after they have checked a model, and before they use a device."""
    code = """
import jax, jax.numpy as jnp, jaxnorm.linen as jnn
from jax._src import xla_bridge
x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
for name, options in MODULES.items():
    model = getattr(jnn, name)(use_running_average=False, **options)
    init = lambda key, x: model.init(jax.random.wrap_key_data(key), x)
    jax.eval_shape(init, jax.ShapeDtypeStruct((2,), jnp.uint32), x)
assert not xla_bridge.backends_are_initialized()
"""
    code = code.replace("MODULES", repr(STATEFUL_MODULES))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
