"""Statistics are float32 at least: functions refuse narrower ones, modules widen them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import (
    KEY,
    NORMS,
    STATEFUL,
    STATEFUL_MODULES,
    alike,
    fresh,
    identical,
    library,
    near,
    normals,
    relative,
)
from flax import nnx

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

pytestmark = pytest.mark.numerical

HALVES = [jnp.bfloat16, np.float16, jnp.float8_e4m3fn]
STARTS = [jn.init_batch_stats, jn.init_renorm_stats, jn.init_online_stats, jn.init_input_stats]
X = normals(6, 4, mean=3.0, std=10.0)


def halved(stats, dtype, *keys):
    """Round these entries of statistics, or all floating ones, to a narrow dtype."""
    keys = keys or [key for key, leaf in stats.items() if leaf.dtype == jnp.float32]
    return {**stats, **{key: stats[key].astype(dtype) for key in keys}}


def widened(tree):
    """Widen statistics by the code that the error has."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf, tree
    )


def refused(function, *words):
    """Hold that a call is refused, with the code that widens the statistics."""
    with pytest.raises(ValueError, match=r"widen them once: jax\.tree\.map") as caught:
        function()
    assert "leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def dtypes(tree):
    """Give the dtypes of a tree."""
    return jax.tree.map(lambda leaf: jnp.dtype(leaf.dtype), tree)


# Functions


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("start", STARTS)
def test_statistics_do_not_start_narrower_than_float32(start, dtype):
    with pytest.raises(ValueError, match=f"dtype={jnp.dtype(dtype).name}.*float32 or wider"):
        start(4, dtype=dtype)


NARROW = [
    ("batch", key, dtype) for key, dtype in zip(("mean", "var", "count"), HALVES, strict=True)
]
NARROW += [("ghost", "var", jnp.bfloat16), ("renorm", "count", jnp.bfloat16)]


@pytest.mark.parametrize(("name", "key", "dtype"), NARROW)
def test_narrow_statistics_are_refused_and_the_code_in_the_error_widens_them(name, key, dtype):
    stats = fresh(name, 4, momentum=None) | {"count": jnp.full((), 3.0)}
    narrow = halved(stats, dtype, key)
    for train in (True, False):
        options = {**NORMS[name].options, "momentum": None, "train": train}
        call = functools.partial(NORMS[name].function, **options)
        refused(lambda call=call: call(X, narrow), f"{key} of", f"is {jnp.dtype(dtype)}")
        refused(lambda call=call: jax.eval_shape(call, X, narrow), f"is {jnp.dtype(dtype)}")
    assert dtypes(widened(narrow)) == dtypes(stats)
    y, new = library(name, X, stats=widened(narrow), momentum=None)
    expected = library(name, X, stats=stats, momentum=None)
    identical((y, new), expected)


@pytest.mark.parametrize("key", ["mean", "var"])
def test_integer_statistics_are_refused(key):
    stats = fresh("batch", 4) | {key: np.ones(4, np.int32)}
    with pytest.raises(TypeError, match=f"the {key} of the running statistics is int32"):
        jn.batch_norm(X, stats, train=True)


@pytest.mark.parametrize("key", ["mean", "var", "control_y", "control_x"])
def test_narrow_statistics_of_a_stream_are_refused(key):
    stats = halved(jn.init_online_stats(4), jnp.bfloat16, key)
    refused(lambda: jn.online_norm(X, stats, train=True), f"{key} of", "bfloat16")
    if key in ("mean", "var"):
        refused(lambda: jn.online_norm(X, stats, train=False), f"{key} of", "bfloat16")


FITTED = jn.update_input_stats(jn.init_input_stats(4), X)


@pytest.mark.parametrize("key", FITTED)
def test_a_narrow_fit_is_refused(key):
    fit = halved(FITTED, jnp.bfloat16, key)
    for call in (
        lambda: jn.update_input_stats(fit, X),
        lambda: jn.standardize_inputs(X, fit),
        lambda: jn.min_max_inputs(X, fit),
        lambda: jn.normalize_observations(X, fit, update=False),
        lambda: jn.merge_input_stats(fit, FITTED),
        lambda: jn.merge_input_stats(FITTED, fit),
    ):
        refused(call, f"the {key} of the fit is bfloat16")
    identical(jn.standardize_inputs(X, widened(FITTED)), jn.standardize_inputs(X, FITTED))


def test_narrow_statistics_in_a_tree_are_marked_but_neither_recomputed_nor_merged():
    tree = {"a": fresh("batch", 4), "b": {"c": halved(fresh("renorm", 4), jnp.bfloat16)}}
    refused(lambda: jn.start_recomputing(tree), "bfloat16")
    started = jn.start_recomputing(widened(tree))
    later = {**started, "b": {"c": halved(started["b"]["c"], jnp.bfloat16, "mean")}}
    refused(lambda: jn.finish_recomputing(later), "bfloat16")
    refused(lambda: jn.finish_accumulating(later), "bfloat16")
    merge = jax.vmap(lambda tree: jn.sync_batch_stats(tree, "i"), axis_name="i")
    refused(lambda: merge(jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), tree)), "bfloat16")
    frozen = jn.freeze_stats(tree)
    assert "frozen" in frozen["b"]["c"]
    refused(lambda: jn.batch_renorm(X, frozen["b"]["c"], train=True), "bfloat16")
    jn.batch_renorm(X, jn.freeze_stats(widened(tree))["b"]["c"], train=True)


def test_what_is_recomputed_is_refused_where_it_is_narrow():
    stats = jn.start_recomputing(fresh("batch", 4))
    stats["recomputed"] = halved(stats["recomputed"], jnp.bfloat16, "count")
    for train in (True, False):
        refused(
            lambda train=train: jn.batch_norm(X, stats, train=train),
            "the count of the recomputed part of the running statistics is bfloat16",
        )


def test_folding_reads_narrow_statistics():
    kernel = normals(3, 4)
    stats = halved({"mean": normals(4), "var": np.full(4, 1.7, np.float32)}, jnp.bfloat16, "mean")
    stats = halved(stats, jnp.bfloat16, "var")
    identical(
        jn.fold_batch_norm(kernel, None, stats, None, None),
        jn.fold_batch_norm(kernel, None, widened(stats), None, None),
    )


# Modules


def linen(name, dtype, **options):
    """Give a step of a Linen module with narrow statistics, and a look at these."""
    norm = getattr(jnn, name)(**options)
    variables = norm.init(KEY, X, use_running_average=False)
    stats = halved(variables["batch_stats"], dtype)

    def step(x, evaluating=False):
        nonlocal stats
        given = {**variables, "batch_stats": stats}
        y, new = norm.apply(given, x, use_running_average=evaluating, mutable=["batch_stats"])
        stats = new["batch_stats"]
        return y

    return step, lambda: stats


def in_nnx(name, dtype, **options):
    """Give the same of an NNX module."""
    norm = getattr(jnnx, name)(4, **options, rngs=nnx.Rngs(KEY))
    nnx.update(norm, halved(nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)), dtype))
    return (
        lambda x, evaluating=False: norm(x, use_running_average=evaluating),
        lambda: nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)),
    )


FRAMEWORKS = pytest.mark.parametrize("module", [linen, in_nnx])


@FRAMEWORKS
@pytest.mark.parametrize(("name", "momentum"), [*((n, 0.9) for n in STATEFUL), ("batch", None)])
def test_a_module_widens_what_a_checkpoint_brings(name, momentum, module):
    options = {key: value for key, value in NORMS[name].options.items() if key != "train"}
    step, kept = module(NORMS[name].module, jnp.bfloat16, momentum=momentum, **options)
    narrow = kept()
    y = step(X, evaluating=True)
    alike(y, library(name, X, stats=widened(narrow), momentum=momentum, train=False)[0])
    assert dtypes(kept()) == dtypes(narrow)  # evaluation leaves them
    expected = widened(narrow)
    for _ in range(2):
        y = step(X)
        wanted, expected = library(name, X, stats=expected, momentum=momentum)
        alike((y, kept()), (wanted, expected))


@FRAMEWORKS
def test_a_module_widens_what_is_kept_of_inputs_and_streams(module):
    if module is linen:
        scale = jnn.StandardizeInputs(use_running_average=False)
        fit = scale.init(KEY, X)["batch_stats"]
        y, new = scale.apply({"batch_stats": halved(fit, jnp.bfloat16)}, X, mutable=["batch_stats"])
        fit = new["batch_stats"]
    else:
        scale = jnnx.StandardizeInputs(4)
        nnx.update(scale, halved(nnx.to_pure_dict(nnx.state(scale)), jnp.bfloat16))
        y = scale(X)
        fit = nnx.to_pure_dict(nnx.state(scale))
    expected = jn.update_input_stats(jn.init_input_stats(4), X)
    alike(fit, expected)
    alike(y, jn.standardize_inputs(jnp.asarray(X), expected))


def test_online_modules_widen_the_mean_and_the_variance():
    """The control processes keep their dtype: it is that of their gradient."""
    expected = jn.online_norm(X, jn.init_online_stats(4), train=True)[1]
    norm = jnn.OnlineNorm(use_running_average=False)
    variables = norm.init(KEY, X)
    narrow = {**variables, "batch_stats": halved(variables["batch_stats"], jnp.bfloat16)}
    stats = norm.apply(narrow, X, mutable=["batch_stats"])[1]["batch_stats"]
    twin = jnnx.OnlineNorm(4, rngs=nnx.Rngs(KEY))
    nnx.update(twin, narrow["batch_stats"])
    twin(X)
    for key in ("mean", "var"):
        alike(stats[key], expected[key])
        alike(getattr(twin, key)[...], expected[key])
    control = {k: halved(v, jnp.bfloat16) for k, v in variables.items() if k.startswith("_")}
    refused(lambda: norm.apply({**variables, **control}, X, mutable=["batch_stats"]), "control_y")


@FRAMEWORKS
@pytest.mark.parametrize("name", STATEFUL_MODULES)
def test_a_modules_statistics_start_in_float32_whatever_its_parameters_are(name, module):
    options = {**STATEFUL_MODULES[name], "param_dtype": jnp.bfloat16}
    if module is linen:
        norm = getattr(jnn, name)(
            use_running_average=False, force_float32_reductions=False, **options
        )
        stats = norm.init(KEY, X)["batch_stats"]
    else:
        norm = getattr(jnnx, name)(4, **options, rngs=nnx.Rngs(KEY))
        stats = nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat))
    assert stats["mean"].dtype == stats["var"].dtype == jnp.float32


@FRAMEWORKS
def test_a_module_cannot_ask_for_narrow_statistics(module):
    with pytest.raises(ValueError, match=r"bfloat16 is too narrow.*modules: stats_dtype"):
        module("BatchNorm", jnp.bfloat16, stats_dtype=jnp.bfloat16)


def test_recomputing_in_an_nnx_model_widens():
    norm = jnnx.BatchNorm(4, rngs=nnx.Rngs(KEY))
    nnx.update(norm, halved(nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)), jnp.bfloat16))
    jnnx.start_recomputing(norm)
    with pytest.warns(UserWarning, match="nothing was counted"):
        jnnx.finish_recomputing(norm)  # before any step
    assert norm.mean[...].dtype == jnp.float32
    nnx.update(norm, halved(nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)), jnp.bfloat16))
    jnnx.start_recomputing(norm)
    norm(X)
    jnnx.finish_recomputing(norm)
    relative(norm.mean[...], X.astype(np.float64).mean(0), 2e-6)
    relative(norm.var[...], X.astype(np.float64).var(0), 2e-6)


@pytest.mark.parametrize("dtype", HALVES[:2])
def test_three_thousand_steps_from_a_half_checkpoint_arrive(dtype):
    """Kept in bfloat16 they stall at about three quarters of the mean and the variance."""
    entries = {"running_mean": np.zeros(4, dtype), "running_var": np.ones(4, dtype)}
    _, stats, _ = jn.interop.from_pytorch(entries)

    @jax.jit
    def trained(stats):
        def step(stats, _):
            return jn.batch_norm(X, stats, train=True)[1], None

        return jax.lax.scan(step, stats, length=3000)[0]

    mean, var = reference.moments(X, 0)[1:]
    end = trained({key: jnp.asarray(value) for key, value in stats.items()})
    near(end["mean"] / np.sqrt(var), mean / np.sqrt(var), 1e-5)
    relative(end["var"], var, 1e-5)
