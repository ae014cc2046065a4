"""In every dtype the Linen module, the NNX module and the function give identical values."""

import inspect
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    KEY,
    NORMS,
    STATEFUL,
    alike,
    chances,
    every_norm,
    fresh,
    identical,
    normals,
    wider,
)
from flax import nnx

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

BF16, F16, F32, F64 = jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64
C64, C128, I32 = jnp.complex64, jnp.complex128, jnp.int32
# input, dtype, param_dtype: the dtype that is computed in, and that of the result
DTYPES = [
    (F32, None, F32, F32, F32),
    (BF16, None, F32, F32, F32),
    (BF16, BF16, F32, BF16, BF16),
    (F32, BF16, F32, F32, BF16),
    (BF16, BF16, BF16, BF16, BF16),
    (BF16, F32, BF16, F32, F32),
    (F16, F16, F32, F16, F16),
    (F16, BF16, F32, F32, BF16),
    (I32, None, F32, F32, F32),
    (C64, None, F32, C64, C64),
]
WIDE = [
    (F64, None, F32, F64, F64),
    (F64, F32, F32, F64, F32),
    (F32, F64, F64, F64, F64),
    (C128, None, F32, C128, C128),
]
RANDOM = {"scale_init": nn.initializers.normal(1.0), "bias_init": nn.initializers.normal(1.0)}
CHANNELS = 4
MODES = [(name, train) for name in STATEFUL for train in (True, False)]
MODES += [(name, None) for name in every_norm if name not in STATEFUL]


def built(name, **options):
    """Give a Linen and an NNX module with the same variables, and these."""
    random = {k: v for k, v in RANDOM.items() if NORMS[name].has_bias or k != "bias_init"}
    options = {**random, **NORMS[name].module_options, **options}
    linen = getattr(jnn, NORMS[name].module)(**options)
    twin = getattr(jnnx, NORMS[name].module)(CHANNELS, rngs=nnx.Rngs(KEY), **options)
    params = {key: value[...] for key, value in vars(twin).items() if isinstance(value, nnx.Param)}
    stats = {k: value[...] for k, value in vars(twin).items() if isinstance(value, nnx.BatchStat)}
    return linen, twin, params, stats


def taken(stats):
    """Give running statistics that bfloat16 does not hold."""
    mean, var = normals(CHANNELS, mean=0.3), np.exp(normals(CHANNELS))
    return {
        **stats,
        "mean": mean.astype(stats["mean"].dtype),
        "var": var.astype(stats["var"].dtype),
    }


def loaded(twin, stats):
    """Put statistics into an NNX module."""
    for key, value in stats.items():
        getattr(twin, key)[...] = jnp.asarray(value)
    return twin


def function(name, params, stats, x, **options):
    """Call the function."""
    options = {**NORMS[name].module_options, **options}
    state = (stats,) if name in STATEFUL else ()
    result = NORMS[name].function(x, *state, *[params[k] for k in params_of(name)], **options)
    return result if state else (result, {})


def params_of(name):
    return ("scale", "bias") if NORMS[name].has_bias else ("scale",)


def case_id(value):
    """Give the name of a case's dtypes; pytest names the rest."""
    if isinstance(value, tuple):
        return "-".join(jnp.dtype(dtype or "O").name for dtype in value)
    return None


# A module's dtypes do not depend on its function: every combination of dtypes with one module that
# keeps statistics and with one that keeps none, and every module, in training and in evaluation,
# with the defaults and with bfloat16.
ALL_DTYPES = (("batch", True), ("rms", None))
CASES = [
    (*mode, dtypes)
    for mode in MODES
    for dtypes in (DTYPES if mode in ALL_DTYPES else (DTYPES[0], DTYPES[2]))
]
CASES += [("renorm", True, DTYPES[-1]), ("batch", False, DTYPES[-1])]
WIDE_CASES = [(*mode, dtypes) for mode in ALL_DTYPES for dtypes in WIDE]
WIDE_CASES += [(*mode, WIDE[2]) for mode in MODES if mode not in ALL_DTYPES]


@pytest.mark.parametrize(("name", "train", "dtypes"), CASES, ids=case_id)
def test_the_two_modules_and_the_function_are_one(name, dtypes, train):
    hold(name, dtypes, train)


@pytest.mark.long
@pytest.mark.parametrize(("name", "train", "dtypes"), WIDE_CASES, ids=case_id)
def test_they_are_one_in_double_precision(name, dtypes, train):
    with jax.enable_x64(True):
        hold(name, dtypes, train)


def hold(name, dtypes, train):
    """Hold the output and the new statistics of the three together: the same operations."""
    of_input, dtype, param_dtype, computed, of_result = dtypes
    kept = {"stats_dtype": wider(F32, computed)} if name in STATEFUL else {}
    linen, twin, params, stats = built(name, dtype=dtype, param_dtype=param_dtype, **kept)
    x = jnp.asarray(normals(4, 5, CHANNELS, mean=1.0, std=3.0, dtype=np.float64)).astype(of_input)
    mask = chances(4, 5, 1, share=0.8)
    moving = {"use_running_average": not train} if name in STATEFUL else {}
    stats = taken(stats) if name in STATEFUL else stats

    variables = {"params": params, "batch_stats": stats}
    y, updates = linen.apply(variables, x, mask=mask, mutable=["batch_stats"], **moving)
    y_nnx = loaded(twin, stats)(x, mask=mask, **moving)
    options = {"train": train} if name in STATEFUL else {}
    expected, new = function(name, params, stats, x.astype(computed), where=mask, **options)

    identical(y, expected.astype(of_result))
    identical(y_nnx, y)
    if name in STATEFUL:
        identical(updates["batch_stats"], new)
        identical({key: getattr(twin, key)[...] for key in new}, new)


@pytest.mark.parametrize("name", ["batch", "rms", "group"])
def test_their_gradients_are_one(name):
    """Of a module with statistics and of two without: the others call the same two functions."""
    linen, twin, params, stats = built(name, dtype=BF16)
    x = jnp.asarray(normals(4, 5, CHANNELS, mean=1.0, std=3.0)).astype(BF16)
    mask = chances(4, 5, 1, share=0.8)
    moving = {"use_running_average": False} if name in STATEFUL else {}
    options = {"train": True} if name in STATEFUL else {}
    graph, _, rest = nnx.split(twin, nnx.Param, ...)

    def of_linen(params, x):
        variables = {"params": params, "batch_stats": stats}
        return linen.apply(variables, x, mask=mask, mutable=["batch_stats"], **moving)[0]

    def of_nnx(params, x):
        state = nnx.State({key: nnx.Param(value) for key, value in params.items()})
        return nnx.merge(graph, state, rest, copy=True)(x, mask=mask)

    def of_function(params, x):
        return function(name, params, stats, x, where=mask, **options)[0]

    cotangent = jnp.asarray(normals(4, 5, CHANNELS)).astype(BF16)
    ours, theirs, expected = (
        jax.vjp(f, params, x)[1](cotangent) for f in (of_linen, of_nnx, of_function)
    )
    identical(ours, expected)
    identical(theirs, expected)
    assert all(jnp.any(gradient != 0) for gradient in jax.tree.leaves(expected))


@pytest.mark.core
@pytest.mark.parametrize("name", every_norm)
def test_they_are_one_under_jit(name):
    linen, twin, params, stats = built(name)
    x = normals(4, 5, CHANNELS, mean=1.0)
    moving = {"use_running_average": False} if name in STATEFUL else {}
    apply = jax.jit(lambda v, x: linen.apply(v, x, mutable=["batch_stats"], **moving)[0])
    y = apply({"params": params, "batch_stats": stats}, x)
    options = {"train": True} if name in STATEFUL else {}
    call = jax.jit(lambda params, stats, x: function(name, params, stats, x, **options)[0])
    alike(nnx.jit(lambda twin, x: twin(x))(twin, x), y)
    alike(call(params, stats, x), y)


@pytest.mark.parametrize("name", STATEFUL)
def test_the_dtype_that_nothing_names_is_each_frameworks_own(name):
    """NNX counts the running statistics, which are float32, among what is promoted."""
    linen, twin, params, stats = built(name, param_dtype=BF16)
    x = normals(4, 5, CHANNELS).astype(BF16)
    y = linen.apply({"params": params, "batch_stats": stats}, x, use_running_average=True)
    y_nnx = twin(x, use_running_average=True)
    assert (y.dtype, y_nnx.dtype) == (BF16, F32)
    identical(y_nnx.astype(BF16), y)


COMPLEX = normals(12, 5, CHANNELS, mean=2 - 3j, std=2.0, dtype=np.complex64)


def in_steps(framework, name, batches, **options):
    """Give what a module that starts afresh gives in training, and its last statistics."""
    options = {**NORMS[name].module_options, **options}
    if framework is jnnx:
        module = jnnx_module(name, dtype=batches[0].dtype, **options)
        results = [module(x) for x in batches]
        return results, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
    library = nn if framework is nn else jnn
    module = getattr(library, NORMS[name].module)(use_running_average=False, **options)
    variables, results = module.init(KEY, batches[0]), []
    for x in batches:
        y, new = module.apply(variables, x, mutable=["batch_stats"])
        variables = {**variables, **new}
        results.append(y)
    return results, variables["batch_stats"]


def jnnx_module(name, **options):
    return getattr(jnnx, NORMS[name].module)(CHANNELS, rngs=nnx.Rngs(KEY), **options)


@pytest.mark.parametrize("momentum", [0.9, None])
@pytest.mark.parametrize("framework", [jnn, jnnx])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_module_that_starts_on_complex_input_trains_on_it(name, framework, momentum):
    batches = [COMPLEX[:4], COMPLEX[4:8], COMPLEX[8:]]
    results, stats = in_steps(framework, name, batches, momentum=momentum)
    expected = fresh(name, CHANNELS, momentum=momentum, dtype=np.complex64)
    options = {**NORMS[name].options, **NORMS[name].module_options, "train": True}
    for x, y in zip(batches, results, strict=True):
        wanted, expected = NORMS[name].function(x, expected, momentum=momentum, **options)
        alike(y, wanted)
    alike(stats, expected)
    assert (stats["mean"].dtype, stats["var"].dtype) == (np.complex64, np.float32)


@pytest.mark.parametrize("framework", [jnn, jnnx])
def test_on_complex_input_the_numbers_are_flaxs(framework):
    batches = [COMPLEX[:6], COMPLEX[6:]]
    with jax.numpy_dtype_promotion("standard"):
        expected, kept = in_steps(nn, "batch", batches, use_fast_variance=False)
    results, stats = in_steps(framework, "batch", batches)
    for y, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(y, wanted, atol=1e-5)
    for key, value in kept.items():
        assert stats[key].dtype == value.dtype
        np.testing.assert_allclose(stats[key], value, rtol=1e-5)


def started(framework, x, **options):
    """Give the dtypes of fresh statistics in each of the three modules."""
    dtypes = set()
    for name in STATEFUL:
        given = {**NORMS[name].module_options, **options}
        if framework is jnn:
            module = getattr(jnn, NORMS[name].module)(use_running_average=False, **given)
            stats = jax.eval_shape(module.init, KEY, x)["batch_stats"]
        else:
            stats = nnx.to_pure_dict(nnx.state(jnnx_module(name, **given), nnx.BatchStat))
        dtypes.add((stats["mean"].dtype, stats["var"].dtype))
    [both] = dtypes
    return both


@pytest.mark.parametrize("framework", [jnn, jnnx])
def test_the_dtype_of_fresh_statistics(framework):
    real, complex_ = COMPLEX.real, COMPLEX
    assert started(framework, real) == (F32, F32)
    assert started(framework, real, dtype=BF16, param_dtype=BF16) == (F32, F32)
    assert started(framework, real, dtype=C64) == (C64, F32)
    assert started(framework, real, param_dtype=C64) == (C64, F32)
    assert started(framework, complex_, stats_dtype=C64) == (C64, F32)
    assert started(framework, complex_) == ((C64, F32) if framework is jnn else (F32, F32))
    with jax.enable_x64(True):
        assert started(framework, real.astype(F64)) == (F32, F32)
        assert started(framework, real, dtype=F64) == (F32, F32)
        assert started(framework, real, param_dtype=F64) == (F64, F64)
        assert started(framework, real, dtype=C64, param_dtype=F64) == (C128, F64)
        assert started(framework, complex_.astype(C128), dtype=C128) == (C128, F64)


def test_fresh_statistics_are_the_functions():
    for name in STATEFUL:
        for momentum in (0.9, None):
            *_, stats = built(name, momentum=momentum)
            identical(stats, fresh(name, CHANNELS, momentum=momentum))


@pytest.mark.parametrize("name", every_norm)
def test_each_docstring_has_what_a_user_looks_for(name):
    for documented in (
        NORMS[name].function,
        *(getattr(m, NORMS[name].module) for m in (jnn, jnnx)),
    ):
        text = inspect.getdoc(documented)
        assert re.search(r"y = .* / (sqrt\(|s_B)", text), "the formula"
        assert re.search(r"x: floating|x is |are those of `|otherwise as `", text), "the shapes"
        assert re.search(r"References:\n(.*\n)?.*\d{4}", text), "the paper"
        assert ">>>" in text
