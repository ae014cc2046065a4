"""The Linen modules create Flax's variables and give the functions' numbers."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
import jaxnorm.linen as jnn

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 6, 5, 8)) * 2 + 1
MASK = jax.random.bernoulli(jax.random.key(2), 0.6, (4, 6, 5, 1))
SOMEWHERE = jax.random.bernoulli(jax.random.key(3), 0.8, X.shape)  # in every row and group
RANDOM = {
    "scale_init": nn.initializers.normal(1.0),
    "bias_init": nn.initializers.normal(1.0),
}
DTYPES = [(jnp.float32, None), (jnp.bfloat16, None), (jnp.bfloat16, jnp.bfloat16)]

SAMPLE = {
    "LayerNorm": (jn.layer_norm, {}),
    "RMSNorm": (jn.rms_norm, {}),
    "GroupNorm": (jn.group_norm, {"num_groups": 4}),
    "InstanceNorm": (jn.instance_norm, {}),
}
STATEFUL = {
    "BatchNorm": (jn.batch_norm, {}),
    "GhostBatchNorm": (jn.ghost_batch_norm, {"ghost_size": 2}),
    "BatchRenorm": (jn.batch_renorm, {"r_max": 1.5, "d_max": 0.5}),
}
OF_FLAX = [
    ("BatchNorm", {"use_running_average": False}),
    ("BatchNorm", {"use_running_average": False, "axis": 1, "momentum": 0.5}),
    ("BatchNorm", {"use_running_average": True, "epsilon": 0.1}),
    ("LayerNorm", {}),
    ("LayerNorm", {"reduction_axes": (1, 2), "feature_axes": (2, 3)}),
    ("LayerNorm", {"use_bias": False, "epsilon": 0.1}),
    ("RMSNorm", {}),
    ("RMSNorm", {"reduction_axes": (2, 3), "use_scale": False}),
    ("GroupNorm", {"num_groups": 2}),
    ("GroupNorm", {"num_groups": None, "group_size": 2, "use_scale": False}),
    ("GroupNorm", {"num_groups": 4, "reduction_axes": (2, 3)}),
    ("InstanceNorm", {}),
    ("InstanceNorm", {"feature_axes": 1}),
]


def parameters(variables):
    """The parameters that the function takes, in its order."""
    params = variables["params"]
    return [params[name] for name in ("scale", "bias") if name in params]


def without_bias(name):
    return {key: value for key, value in RANDOM.items() if (name, key) != ("RMSNorm", "bias_init")}


def taken(stats):
    """Running statistics after some training."""
    return stats | {"mean": stats["mean"] + 0.5, "var": stats["var"] * 3}


@pytest.mark.parametrize(("x_dtype", "dtype"), DTYPES)
@pytest.mark.parametrize("name", SAMPLE)
def test_a_module_gives_its_function(name, x_dtype, dtype):
    function, options = SAMPLE[name]
    module = getattr(jnn, name)(dtype=dtype, **without_bias(name), **options)
    x = X.astype(x_dtype)
    variables = module.init(KEY, x)
    y = module.apply(variables, x, mask=MASK)
    of_dtype = x.astype(y.dtype)
    expected = function(of_dtype, *parameters(variables), where=MASK, **options)
    assert y.dtype == (dtype or jnp.float32)
    chex.assert_trees_all_equal(y, expected)


@pytest.mark.parametrize(("x_dtype", "dtype"), DTYPES)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_stateful_module_gives_its_function(name, train, x_dtype, dtype):
    function, options = STATEFUL[name]
    module = getattr(jnn, name)(dtype=dtype, momentum=0.9, **RANDOM, **options)
    x = X.astype(x_dtype)
    variables = module.init(KEY, x, use_running_average=not train)
    stats = taken(variables["batch_stats"])
    y, updates = module.apply(
        {**variables, "batch_stats": stats},
        x,
        use_running_average=not train,
        mask=MASK,
        mutable=["batch_stats"],
    )
    expected = function(
        x.astype(y.dtype),
        stats,
        *parameters(variables),
        train=train,
        momentum=0.9,
        where=MASK,
        **options,
    )
    assert y.dtype == (dtype or jnp.float32)
    chex.assert_trees_all_equal((y, updates["batch_stats"]), expected)


@pytest.mark.parametrize(("name", "options"), OF_FLAX)
@pytest.mark.parametrize("masked", [False, True])
def test_a_module_is_flax_at_ordinary_scales(name, options, masked):
    ours = getattr(jnn, name)(**without_bias(name), **options)
    flaxs = getattr(nn, name)(**without_bias(name), **options)
    mask = SOMEWHERE if masked else None
    variables = flaxs.init(KEY, X)
    chex.assert_trees_all_equal(ours.init(KEY, X), variables)
    y, updates = ours.apply(variables, X, mask=mask, mutable=["batch_stats"])
    expected, expected_updates = flaxs.apply(variables, X, mask=mask, mutable=["batch_stats"])
    chex.assert_trees_all_close((y, updates), (expected, expected_updates), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", STATEFUL)
def test_init_measures_but_does_not_update(name):
    _, options = STATEFUL[name]
    module = getattr(jnn, name)(use_running_average=False, axis_name="devices", **options)
    y, variables = module.init_with_output(KEY, X)
    if name != "BatchRenorm":
        np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    fresh = jn.init_renorm_stats(8) if name == "BatchRenorm" else jn.init_batch_stats(8)
    chex.assert_trees_all_equal(variables["batch_stats"], fresh)


def test_init_takes_one_value_per_channel():
    variables = jnn.BatchNorm(use_running_average=False).init(KEY, jnp.ones((1, 3)))
    assert variables["batch_stats"]["mean"].shape == (3,)


@pytest.mark.parametrize("name", STATEFUL)
def test_evaluation_follows_training(name):
    """After enough steps on one batch the running statistics are the batch's."""
    _, options = STATEFUL[name]
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
    expected, _ = jn.batch_norm(X, jn.init_batch_stats(8), train=True)
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


def test_running_statistics_of_another_dtype():
    options = {"param_dtype": jnp.bfloat16, "force_float32_reductions": False}
    module = jnn.BatchNorm(use_running_average=False, **options)
    variables = module.init(KEY, X)
    with jax.numpy_dtype_promotion("standard"):
        expected = nn.BatchNorm(use_running_average=False, **options).init(KEY, X)
    chex.assert_trees_all_equal(variables, expected)
    _, updates = module.apply(variables, X, mutable=["batch_stats"])
    assert updates["batch_stats"]["mean"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (jnn.BatchNorm(), "use_running_average"),
        (jnn.BatchNorm(use_running_average=False, axis=4), "axis=4"),
        (jnn.BatchNorm(use_running_average=False, momentum=2.0), "momentum"),
        (jnn.GhostBatchNorm(use_running_average=False), "ghost_size"),
        (jnn.GhostBatchNorm(use_running_average=False, ghost_size=3), r"\[1, 2, 4\]"),
        (jnn.GroupNorm(), "num_groups=32 does not divide the 8 channels"),
        (jnn.GroupNorm(group_size=4), "exactly one"),
        (jnn.InstanceNorm(feature_axes=0), "batch axis"),
    ],
)
def test_a_wrong_module_says_what_would_work(module, message):
    with pytest.raises(ValueError, match=message):
        module.init(KEY, X)
