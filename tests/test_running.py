"""Running statistics: decayed or exact over ten thousand steps, untouched where nothing is seen."""

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
    alike,
    chances,
    compiled,
    fresh,
    frozen,
    identical,
    library,
    near,
    normals,
    oracle,
    relative,
    seen,
    wider,
)
from environment import generator
from flax import nnx

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

pytestmark = pytest.mark.numerical

STEPS = 10_000


@functools.cache
def stream(mean):
    """Ten thousand small batches whose mean wanders, and masks of unequal counts."""
    wander = np.sin(np.arange(STEPS) / 700)[:, None, None]
    x = normals(STEPS, 8, 3, mean=mean) + wander.astype(np.float32)
    size = generator().integers(0, 9, STEPS)
    return x, np.arange(8)[None, :, None] < size[:, None, None]


def remembered(momentum, x, where):
    """Run batch_norm over a stream of batches and give the last statistics."""
    step = compiled("batch", frozen("batch", {"momentum": momentum}))

    @jax.jit
    def run(stats, x, where):
        return jax.lax.scan(
            lambda stats, pair: (step(pair[1], pair[0], stats)[1], None), stats, (x, where)
        )

    return run(jn.init_batch_stats(x.shape[-1], momentum=momentum), x, where)[0]


@pytest.mark.long
@pytest.mark.parametrize("mean", [2.0, 300.0])
@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999])
def test_ten_thousand_decayed_steps_agree_with_float64(momentum, mean):
    x, where = stream(mean)
    expected = {"mean": np.zeros(3), "var": np.ones(3)}
    keep = np.broadcast_to(where, x.shape)
    for step in range(STEPS):
        batch = reference.moments(x[step], 0, where=keep[step])
        expected = reference.updated(expected, batch, momentum)
    relative(remembered(momentum, x, where), expected)


@pytest.mark.parametrize("mean", [2.0, 10.0])
def test_ten_thousand_cumulative_steps_are_the_population(mean):
    x, where = stream(mean)
    values = x[where[..., 0]].astype(np.float64)
    actual = remembered(None, x, where)
    relative(actual["mean"], values.mean(0))
    relative(actual["var"], values.var(0))
    np.testing.assert_array_equal(actual["count"], len(values))


def test_cumulative_statistics_merge_batches_of_any_size():
    stats = jn.init_batch_stats(3, momentum=None)
    batches = [normals(size, 3, mean=2.0, seed=size) for size in (2, 64, 7, 0, 31)]
    for batch in batches:
        _, stats = library("batch", batch, stats=stats, momentum=None)
    whole = np.concatenate(batches).astype(np.float64)
    expected = {"mean": whole.mean(0), "var": whole.var(0), "count": np.array(len(whole))}
    relative(stats, expected, 2e-6)


@pytest.mark.parametrize("name", STATEFUL)
def test_the_first_statistics_are_zero_and_one(name):
    stats = jn.init_renorm_stats(4) if name == "renorm" else jn.init_batch_stats(4)
    expected = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
    if name == "renorm":
        expected["steps"] = jnp.zeros((), jnp.int32)
    assert isinstance(stats, dict)
    identical(stats, expected)


def test_cumulative_statistics_start_at_count_zero():
    stats = jn.init_batch_stats(4, momentum=None)
    identical(stats["count"], jnp.zeros(()))
    assert set(stats) == {"mean", "var", "count"}


@pytest.mark.parametrize("name", STATEFUL)
def test_statistics_start_in_the_dtype_that_is_asked_for(name):
    start = jn.init_renorm_stats if name == "renorm" else jn.init_batch_stats
    stats = start(4, dtype=jnp.complex64)
    assert (stats["mean"].dtype, stats["var"].dtype) == (jnp.complex64, jnp.float32)


@pytest.mark.core
@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", STATEFUL)
def test_momentum_is_the_weight_of_the_old_value(name, momentum):
    x, stats = normals(6, 4, mean=2.0, std=3.0), seen(name, 4)
    _, new = library(name, x, stats=stats, momentum=momentum)
    relative(new, oracle(name, x, stats=stats, momentum=momentum)[1], 1e-6)
    if momentum == 1:
        identical((new["mean"], new["var"]), (stats["mean"], stats["var"]))


@pytest.mark.parametrize("name", STATEFUL)
def test_the_remembered_variance_is_biased(name):
    x = np.array([[0.0], [2.0], [0.0], [2.0]], np.float32)
    _, new = library(name, x, momentum=0.0)
    alike(new["var"], np.full(1, 2.0 if NORMS[name].about_zero else 1.0, np.float32))


GIVEN = [jnp.bfloat16, np.float16, np.float32, np.float64, np.complex64, np.complex128]
KEPT = [np.float32, np.float64, np.complex64, np.complex128]


def drawn(dtype):
    """Draw an input of any dtype."""
    wide = wider(np.float64, dtype)
    return normals(6, 4, dtype=wide).astype(dtype)


def kind(tree):
    """Give the dtypes and shapes of a tree."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("momentum", [0.5, None])
@pytest.mark.parametrize("name", STATEFUL)
def test_no_step_changes_the_dtype_or_the_shape_of_any_entry(name, momentum, kept):
    with jax.enable_x64(True):
        for given in GIVEN:
            x = drawn(given)
            if jnp.iscomplexobj(x) != jnp.issubdtype(kept, jnp.complexfloating):
                continue
            for mask in (None, chances(6, 1), chances(6, 4)):
                per_channel = momentum is None and mask is not None and mask.shape[1] > 1
                options = {"momentum": momentum, "count_per_channel": per_channel}
                stats = fresh(name, 4, dtype=kept, **options)
                options = {"where": mask, "momentum": momentum, "skip_nonfinite": True}
                step = functools.partial(NORMS[name].function, **NORMS[name].options, **options)
                y, new = jax.eval_shape(step, x, stats)
                assert (y.dtype, kind(new)) == (x.dtype, kind(stats))


@pytest.mark.long
@pytest.mark.parametrize("framework", [jnn, jnnx])
@pytest.mark.parametrize("given", GIVEN)
def test_no_step_of_a_module_changes_the_dtype_of_its_statistics(given, framework):
    with jax.enable_x64(True):
        x = drawn(given)
        for dtype in (None, wider(np.float32, given)):
            if jnp.iscomplexobj(x) and dtype is None:
                continue
            options = {"momentum": None, "stats_dtype": dtype}
            if framework is jnn:
                norm = jnn.BatchRenorm(use_running_average=False, **options)
                variables = norm.init(KEY, x)
                _, new = norm.apply(variables, x, mutable=["batch_stats"])
                old, new = variables["batch_stats"], new["batch_stats"]
            else:
                norm = jnnx.BatchRenorm(4, **options, rngs=nnx.Rngs(KEY))
                old = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)))
                norm(x)
                new = nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat))
            assert kind(new) == kind(old)
            assert old["mean"].dtype == (dtype or np.float32)
            near(new["mean"], np.mean(x, 0), 1e-2 if x.dtype.itemsize == 2 else 1e-6)


def test_nnx_statistics_that_start_wide_scan_and_trace_once():
    with jax.enable_x64(True):
        norm = jnnx.BatchNorm(4, stats_dtype=jnp.float64, momentum=0.5, rngs=nnx.Rngs(KEY))
        traces = []

        @nnx.jit
        def step(norm, x):
            traces.append(x.dtype)
            return norm(x)

        batches = normals(3, 6, 4, dtype=np.float64)
        for x in batches:
            step(norm, x)
        assert len(traces) == 1
        scanned = jnnx.BatchNorm(4, stats_dtype=jnp.float64, momentum=0.5, rngs=nnx.Rngs(KEY))
        scan = nnx.scan(lambda norm, x: (norm, norm(x)), in_axes=(nnx.Carry, 0))
        scan(scanned, batches)
        assert scanned.mean[...].dtype == np.float64
        near(scanned.mean[...], norm.mean[...], 1e-14)


def test_a_real_mean_of_complex_input_is_an_error_that_says_what_to_do():
    x, stats = normals(6, 4, dtype=np.complex64), jn.init_batch_stats(4)
    with pytest.raises(TypeError, match=r"running mean is float32.*dtype=jnp.complex64"):
        jn.batch_norm(x, stats, train=True)
    near(jn.batch_norm(x, stats, train=False, epsilon=0.0)[0], x)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_count_for_each_channel_where_the_mask_differs_by_channel(name):
    batches, masks = normals(3, 8, 4, mean=2.0), chances(3, 8, 4)
    options = {**NORMS[name].options, "momentum": None}

    def step(stats, batch):
        x, mask = batch
        return NORMS[name].function(x, stats, where=mask, **options)[1], None

    stats = fresh(name, 4, momentum=None, count_per_channel=True)
    stats, _ = jax.lax.scan(step, stats, (batches, masks))
    about_zero = NORMS[name].about_zero
    expected = reference.moments(batches, (0, 1), where=masks, about_zero=about_zero)
    near(stats["count"], expected.count, 0)
    near(stats["mean"], expected.mean)
    near(stats["var"], expected.var)


def test_one_count_for_unlike_channels_is_an_error_that_says_what_to_do():
    x, stats = normals(6, 4), jn.init_batch_stats(4, momentum=None)
    with pytest.raises(ValueError, match="count_per_channel=True"):
        jn.batch_norm(x, stats, train=True, momentum=None, where=chances(6, 4))
    with pytest.raises(ValueError, match=r"count_per_channel=True needs momentum=None"):
        jn.init_batch_stats(4, count_per_channel=True)


@pytest.mark.parametrize("momentum", [0.99, None])
def test_evaluation_gives_the_statistics_as_it_got_them(momentum):
    stats = {**jn.init_batch_stats(4, momentum=momentum), "mean": normals(4)}
    _, new = library("batch", normals(6, 4), stats=stats, momentum=momentum, train=False)
    identical(new, stats)


@pytest.mark.parametrize("name", STATEFUL)
def test_fresh_statistics_divide_by_the_root_of_one_and_epsilon(name):
    x = normals(6, 4)
    y, _ = library(name, x, train=False, epsilon=0.5)
    near(y, x / np.sqrt(1.5), 1e-6)


def nothing_counts():
    """Inputs in which nothing counts: a length of zero, and a mask without a one."""
    yield "empty", np.zeros((0, 5, 4), np.float32), None
    yield "masked", normals(4, 5, 4), np.zeros((4, 1, 1), bool)
    yield "masked nan", np.full((4, 5, 4), np.nan, np.float32), np.zeros((), bool)


NOTHING = list(nothing_counts())


@pytest.mark.parametrize("momentum", [0.9, None])
@pytest.mark.parametrize(("label", "x", "where"), NOTHING, ids=[n[0] for n in NOTHING])
@pytest.mark.parametrize("name", STATEFUL)
def test_where_nothing_counts_the_statistics_stay(name, label, x, where, momentum):
    stats = seen(name, 4)
    if momentum is None:
        stats["count"] = jnp.float32(7)
    bias = normals(4)
    y, new = library(name, x, bias=bias, stats=stats, where=where, momentum=momentum)
    identical(new, stats)
    identical(y, np.broadcast_to(bias, x.shape))


@pytest.mark.parametrize("name", STATEFUL)
def test_a_channel_without_values_keeps_its_statistics(name):
    x, where = normals(6, 4), chances(6, 4) & np.array([True, False, True, True])
    stats = seen(name, 4)
    _, new = library(name, x, stats=stats, where=where)
    assert new["mean"][1] == stats["mean"][1]
    assert new["var"][1] == stats["var"][1]
    near(new, oracle(name, x, stats=stats, where=where)[1], 1e-6)


@pytest.mark.parametrize("momentum", [0.9, None])
def test_micro_batches_merged_are_the_full_batch(momentum):
    x, stats = normals(24, 4, mean=3.0), {**seen("batch", 4), "count": jnp.float32(5)}
    pieces = [jn.moments(x[s], 0) for s in (slice(0, 8), slice(8, 11), slice(11, 24))]
    whole = functools.reduce(jn.merge_moments, pieces)
    expected = reference.updated(stats, reference.Moments(*map(np.asarray, whole)), momentum)
    _, new = library("batch", x, stats=stats, momentum=momentum)
    relative(new, expected, 2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_value_that_is_not_finite_shows_in_the_statistics(name, bad):
    x = normals(6, 4)
    x[2, 1] = bad
    _, new = library(name, x)
    finite = np.isfinite(new["mean"]) & np.isfinite(new["var"])
    np.testing.assert_array_equal(finite, [True, False, True, True])


@pytest.mark.parametrize("momentum", [0.9, None])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_step_that_is_not_finite_can_be_skipped(name, bad, momentum):
    x, stats = normals(6, 4), {**seen(name, 4)}
    if momentum is None:
        stats["count"] = jnp.float32(7)
    options = {"stats": stats, "skip_nonfinite": True, "momentum": momentum}
    _, good = library(name, x, **options)
    near(good, library(name, x, **{**options, "skip_nonfinite": False})[1], 1e-6)
    x[2, 1] = bad
    y, new = library(name, x, **options)
    identical(new, stats)
    assert not np.all(np.isfinite(y))


HUGE = [1e19, -1e24, 1e28, 3e37, np.inf]


@pytest.mark.parametrize("examples", [6, 300])
@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("name", STATEFUL)
def test_a_moment_that_overflows_is_not_finite(name, huge, examples):
    x, stats = normals(examples, 4), seen(name, 4)
    x[2, 1] = huge
    _, new = library(name, x, stats=stats)
    np.testing.assert_array_equal(np.isfinite(new["var"]), [True, False, True, True])
    _, skipped = library(name, x, stats=stats, skip_nonfinite=True)
    identical(skipped, stats)


@pytest.mark.parametrize("huge", HUGE)
def test_moments_that_overflow_stay_so_when_they_are_merged(huge):
    x = normals(8, 6, 4)
    x[2, 1, 1] = huge
    m = jn.merge_moments_axis(jn.moments(x, 1), 0)
    np.testing.assert_array_equal(np.isfinite(m.var), [True, False, True, True])
    far = jn.moments(np.stack([normals(6, 4), normals(6, 4) + np.float32(10 * huge)]), 1)
    assert not np.isfinite(jn.merge_moments_axis(far, 0).var).any()


@pytest.mark.parametrize("constant", [3e38, 1e30, -1e19])
def test_moments_of_a_huge_constant_merge_to_no_variance(constant):
    pieces = jn.moments(np.full((7, 30, 4), constant, np.float32), 1)
    m = jn.merge_moments_axis(pieces, 0)
    near(m.var, np.zeros(4), 0)
    relative(m.mean, np.full(4, constant), 1e-6)
