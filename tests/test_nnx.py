"""The NNX modules: variables, modes, views, and the exact result where Flax's is another."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from cases import KEY, MODULES, STATEFUL_MODULES, identical, near, normals
from flax import nnx

import jaxnorm as jn
import jaxnorm.nnx as jnnx

FIVE = ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"]
X = normals(4, 3, 5, 8, mean=1.0, std=2.0)


def build(library, name, **options):
    """Build a layer of eight features with random parameters."""
    options = {"GroupNorm": {"num_groups": 4}, **STATEFUL_MODULES}.get(name, {}) | options
    options |= {"scale_init": nn.initializers.normal(1.0)}
    if name != "RMSNorm":
        options |= {"bias_init": nn.initializers.normal(1.0)}
    return getattr(library, name)(8, rngs=nnx.Rngs(KEY), **options)


def test_the_same_classes_as_in_linen():
    import jaxnorm.linen as jnn

    assert all(issubclass(getattr(jnn, name), nn.Module) for name in MODULES)
    assert all(issubclass(getattr(jnnx, name), nnx.Module) for name in MODULES)


@pytest.mark.parametrize("metadata", [{}, {"out_sharding": ("model",)}])
@pytest.mark.parametrize("name", FIVE)
def test_the_first_variables_are_flaxs_bit_for_bit(name, metadata):
    options = {"scale_metadata": metadata, "bias_metadata": metadata}
    if name == "RMSNorm":
        del options["bias_metadata"]
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        ours, flaxs = (nnx.state(build(library, name, **options)) for library in (jnnx, nnx))
    identical(nnx.to_pure_dict(ours), nnx.to_pure_dict(flaxs))
    for (path, mine), (other, theirs) in zip(
        nnx.to_flat_state(ours), nnx.to_flat_state(flaxs), strict=True
    ):
        assert (path, type(mine), mine.get_metadata()) == (
            other,
            type(theirs),
            theirs.get_metadata(),
        )


@pytest.mark.parametrize("name", FIVE)
def test_the_attributes_that_users_read_are_flaxs(name):
    options = {"num_groups": None, "group_size": 4} if name == "GroupNorm" else {}
    ours, flaxs = (
        vars(getattr(library, name)(8, rngs=nnx.Rngs(KEY), **options)) for library in (jnnx, nnx)
    )
    plain = {
        k for k, v in flaxs.items() if not k.startswith("_") and not isinstance(v, nnx.Variable)
    }
    assert {key: ours[key] for key in plain} == {key: flaxs[key] for key in plain}


@pytest.mark.parametrize("name", FIVE)
def test_parameters_can_be_left_out(name):
    options = {"use_scale": False} | ({} if name == "RMSNorm" else {"use_bias": False})
    ours, flaxs = (build(library, name, **options) for library in (jnnx, nnx))
    assert nnx.state(ours, nnx.Param) == nnx.state(flaxs, nnx.Param) == nnx.State({})
    near(ours(X), flaxs(X), 2e-5)


# Modes


@pytest.mark.parametrize("name", STATEFUL_MODULES)
def test_train_and_eval_choose_the_statistics(name):
    norm = build(jnnx, name, momentum=0.5)
    assert norm.use_running_average is False
    norm.eval()
    before = nnx.to_pure_dict(nnx.clone(nnx.state(norm, nnx.BatchStat)))
    evaluated = norm(X)
    identical(nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)), before)
    norm.train()
    trained = norm(X)
    assert not np.array_equal(norm.var[...], before["var"])
    assert not np.array_equal(trained, evaluated)
    identical(build(jnnx, name, momentum=0.5)(X, use_running_average=True), evaluated)
    norm.set_attributes(use_running_average=True)
    assert norm.use_running_average is True


def test_the_call_takes_precedence_and_a_view_sets_it():
    norm = build(jnnx, "BatchNorm", use_running_average=True)
    view = nnx.view(norm, use_running_average=False)
    assert (norm.use_running_average, view.use_running_average) == (True, False)
    identical(view(X), build(jnnx, "BatchNorm")(X, use_running_average=False))
    assert norm.mean is view.mean
    with pytest.raises(ValueError, match=r"use_running_average.*nnx\.view"):
        build(jnnx, "BatchNorm", use_running_average=None)(X)


@pytest.mark.parametrize("name", STATEFUL_MODULES)
def test_view_info_tells_what_a_view_takes(name):
    ours, flaxs = nnx.view_info(build(jnnx, name)), nnx.view_info(build(nnx, "BatchNorm"))
    assert ours.splitlines()[:2] == [f"{name}:", flaxs.splitlines()[1]]
    assert "running statistics" in ours


@pytest.mark.parametrize("name", STATEFUL_MODULES)
def test_statistics_can_be_measured_and_not_updated(name):
    norm, other = build(jnnx, name), build(jnnx, name)
    before = nnx.to_pure_dict(nnx.clone(nnx.state(norm, nnx.BatchStat)))
    identical(norm(X, update_stats=False), other(X))
    identical(nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)), before)
    assert not np.array_equal(other.var[...], before["var"])


def test_a_module_used_twice_updates_twice():
    ours, flaxs = (build(library, "BatchNorm", momentum=0.5) for library in (jnnx, nnx))
    near(ours(3 * ours(X) + 1), flaxs(3 * flaxs(X) + 1), 2e-5)
    for key in ("mean", "var"):
        near(getattr(ours, key)[...], getattr(flaxs, key)[...], 2e-5)


@pytest.mark.long
@pytest.mark.parametrize("axis", [(1, 3), (-1, 2)])
def test_several_axes_of_channels_are_one_row_of_features(axis):
    shape = tuple(X.shape[a] for a in sorted(a % 4 for a in axis))
    norm = jnnx.BatchNorm(int(np.prod(shape)), axis=axis, momentum=0.5, rngs=nnx.Rngs(KEY))
    y = norm(X)
    expected, stats = jn.batch_norm(
        X, jn.init_batch_stats(shape), train=True, momentum=0.5, channel_axis=axis
    )
    near(y, expected, 1e-6)
    identical(norm.mean[...], stats["mean"].reshape(-1))
    identical(norm.var[...], stats["var"].reshape(-1))


def test_the_cumulative_merge_and_the_schedules_keep_their_state():
    norm = build(jnnx, "BatchRenorm", momentum=None, r_max=optax.linear_schedule(1.0, 3.0, 10))
    for batch in (X[:3], X[3:]):
        norm(batch)
    assert (norm.count[...], norm.steps[...]) == (X[..., 0].size, 2)
    near(norm.var[...], X.var((0, 1, 2)))


def test_skip_nonfinite_reaches_the_module():
    norm = build(jnnx, "BatchNorm", skip_nonfinite=True)
    norm(np.full_like(X, np.inf))
    identical(norm.mean[...], jnp.zeros(8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jnnx.GroupNorm(8, rngs=nnx.Rngs(KEY)), "num_groups=32 does not divide the 8"),
        (lambda: jnnx.GroupNorm(8, 2, 4, rngs=nnx.Rngs(KEY)), "exactly one"),
        (lambda: jnnx.GhostBatchNorm(8, rngs=nnx.Rngs(KEY)), "ghost_size"),
        (lambda: jnnx.LayerNorm(7, rngs=nnx.Rngs(KEY))(X), r"num_features=7.*\(8,\)"),
        (lambda: jnnx.BatchNorm(8, axis=4, rngs=nnx.Rngs(KEY))(X), "axis=4"),
        (lambda: jnnx.BatchNorm(8, momentum=2.0, rngs=nnx.Rngs(KEY)), "momentum"),
        (lambda: jnnx.InstanceNorm(4, feature_axes=0, rngs=nnx.Rngs(KEY))(X), "batch axis"),
        (lambda: jnnx.LayerNorm(1, rngs=nnx.Rngs(KEY))(X[..., :1]), "one value in every group"),
        (lambda: jnnx.GroupNorm(8, 8, rngs=nnx.Rngs(KEY))(X[0, 0]), "one value in every group"),
        (
            lambda: jnnx.InstanceNorm(8, rngs=nnx.Rngs(KEY))(X[:, :1, :1]),
            "one value in every group",
        ),
    ],
)
def test_a_wrong_module_says_what_would_work(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("given", ["no", "", [True], 2, 0.5])
def test_use_running_average_is_a_bool(given):
    message = "use_running_average must be a Python bool"
    with pytest.raises(TypeError, match=message):
        build(jnnx, "BatchNorm")(X, use_running_average=given)
    with pytest.raises(TypeError, match=message):
        build(jnnx, "BatchNorm", use_running_average=nnx.static(given))(X)


def test_a_traced_use_running_average_says_what_to_do():
    norm = build(jnnx, "BatchNorm")
    with pytest.raises(TypeError, match=r"use_running_average.*under jit make it static"):
        nnx.jit(lambda norm, evaluate: norm(X, use_running_average=evaluate))(norm, True)


@pytest.mark.parametrize("yes", [True, 1, np.True_, jnp.ones((), bool)])
def test_use_running_average_may_be_what_flax_takes(yes):
    norm = build(jnnx, "BatchNorm")
    identical(norm(X, use_running_average=yes), norm(X, use_running_average=True))


@pytest.mark.parametrize("name", FIVE)
def test_a_scalar_is_an_error_that_says_what_is_needed(name):
    with pytest.raises(ValueError, match=r"scalar.*x\[None\]"):
        build(jnnx, name)(1.0)


@pytest.mark.parametrize("name", FIVE)
def test_where_is_called_mask_in_a_module(name):
    with pytest.raises(TypeError, match=r"'where'.*here write mask=\.\.\."):
        build(jnnx, name)(X, where=np.ones(X.shape, bool))


@pytest.mark.parametrize("name", STATEFUL_MODULES)
def test_momentum_none_on_a_built_module_says_how_to_start_a_count(name):
    norm = build(jnnx, name)
    norm(100 * X)
    norm.set_attributes(momentum=None)
    with pytest.raises(ValueError, match=r"module\.count = nnx\.BatchStat\(jnp\.zeros\(\(\)\)\)"):
        norm(X)
    norm.count = nnx.BatchStat(jnp.zeros(()))
    for batch in (X[:2], X[2:]):
        norm(batch)
    assert norm.count[...] == X[..., 0].size
    expected = reference.moments(X, (0, 1, 2), about_zero=MODULES[name].about_zero)
    near(norm.mean[...], expected.mean)
    near(norm.var[...], expected.var)


# promote_dtype


@pytest.mark.long
def test_a_promote_dtype_of_ones_own_is_used():
    seen = []

    def promote(arrays, *, dtype=None, inexact=True):
        seen.append([None if a is None else a.shape for a in arrays])
        doubled = [a if a is None else 2 * a for a in arrays]  # the statistics too
        return nnx.nn.dtypes.promote_dtype(doubled, dtype=jnp.bfloat16)

    for name, variables in [("BatchNorm", 4), ("LayerNorm", 2), ("RMSNorm", 1)]:
        layers = [build(library, name, promote_dtype=promote) for library in (jnnx, nnx)]
        for layer in layers:
            layer.eval()
        with jax.numpy_dtype_promotion("standard"):
            ours, flaxs = (layer(X) for layer in layers)
        assert seen[-2:] == [[X.shape] + [(8,)] * variables] * 2
        assert ours.dtype == flaxs.dtype == jnp.bfloat16
        ours, flaxs = ours.astype(jnp.float32), flaxs.astype(jnp.float32)
        near(ours, flaxs, 2.0**-6 * np.abs(flaxs).max())


# Where Flax's own departs from the exact result


def test_bfloat16_does_not_round_the_running_statistics():
    """Flax's subtracts the rounded mean: at mean 100 and deviation 1 it is off by up to a half."""
    x = normals(64, 8, mean=100.3).astype(jnp.bfloat16)
    stats = {"mean": np.float32(100.3) + normals(8, std=0.1), "var": np.exp(normals(8, std=0.1))}
    expected, _ = reference.batch_norm(x, stats, train=False)
    errors = {}
    for library in (jnnx, nnx):
        norm = library.BatchNorm(
            8, dtype=jnp.bfloat16, use_running_average=True, rngs=nnx.Rngs(KEY)
        )
        for key, value in stats.items():
            getattr(norm, key)[...] = jnp.asarray(value)
        with jax.numpy_dtype_promotion("standard"):
            y = norm(x)
        assert y.dtype == jnp.bfloat16
        errors[library] = np.max(np.abs(reference.widen(y) - expected) / (1 + np.abs(expected)))
    assert errors[jnnx] < 2.0**-8
    assert errors[nnx] > 0.1


@pytest.mark.parametrize(
    ("shape", "reduction_axes"), [((2, 4, 4, 8), (2, 3)), ((2, 3, 4, 5, 8), (2, 3, 4))]
)
def test_groups_with_axes_of_their_own_follow_the_oracle(shape, reduction_axes):
    """Flax's repeats the statistics along axis 1, whatever axis the groups have come to."""
    x = normals(*shape, mean=1.0)
    options = {"num_groups": 2, "reduction_axes": reduction_axes}
    expected = reference.group_norm(x, **options)
    near(jnnx.GroupNorm(8, rngs=nnx.Rngs(KEY), **options)(x), expected)
    assert np.max(np.abs(nnx.GroupNorm(8, rngs=nnx.Rngs(KEY), **options)(x) - expected)) > 0.1


@pytest.mark.long
def test_complex_statistics_keep_their_imaginary_part():
    x = normals(6, 8, mean=1j, dtype=np.complex64)
    norm = jnnx.BatchNorm(8, momentum=0.0, stats_dtype=jnp.complex64, rngs=nnx.Rngs(KEY))
    norm(x)
    near(norm.mean[...], x.mean(0))
