"""Inputs are scaled by the fit to all rows of a stream, in any order and split, over devices."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from cases import KEY, allowed, chances, identical, near, normals, relative, ulp
from devices import DEVICES, WAYS, mapped, mesh
from environment import generator
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

pytestmark = pytest.mark.numerical

BRAX = Path(__file__).with_name("brax_vectors.npz")  # which brax_vectors.py recorded
WIDTH = 3
update = jax.jit(jn.update_input_stats, static_argnames=("skip_nan", "feature_axis"))
standardized = jax.jit(jn.standardize_inputs, static_argnames=("invert", "feature_axis", "center"))
min_maxed = jax.jit(jn.min_max_inputs, static_argnames=("invert", "clip"))


def cars(*shape):
    """Draw ages in years, mileages, and a temperature that is far from zero for its spread."""
    draws = generator(len(shape), *shape)
    columns = [
        draws.uniform(0, 20, shape),
        draws.uniform(0, 3e5, shape),
        draws.normal(300, 2, shape),
    ]
    return np.stack(columns, -1).astype(np.float32)


def measured(x, where=None):
    """Give the fit in float64 of all rows at once."""
    rows = np.asarray(x, np.float64).reshape(-1, np.shape(x)[-1])
    keep = np.ones(np.shape(x), bool) if where is None else np.broadcast_to(where, np.shape(x))
    columns = [
        column[kept] for column, kept in zip(rows.T, keep.reshape(rows.shape).T, strict=True)
    ]
    functions = {"count": len, "mean": np.mean, "var": np.var, "min": np.min, "max": np.max}
    return {key: np.array([f(column) for column in columns]) for key, f in functions.items()}


def fits(actual, expected, ulps=8):
    """Hold a fit to float64: count and extremes exactly, the mean in units of its size."""
    size = np.sqrt(expected["mean"] ** 2 + expected["var"])
    for key in ("count", "min", "max"):
        near(actual[key], expected[key], 0)
    near(actual["mean"] / size, expected["mean"] / size, ulps * 2.0**-24)
    # Means that are off by an ulp move the deviation by as much.
    off = ulp(size.astype(np.float32))
    slack = 2e-6 * expected["var"] + 2 * off * np.sqrt(expected["var"]) + ulps * off**2
    near(actual["var"] / slack, expected["var"] / slack, 1)


@functools.cache
def fitted():
    """Give cars in ten batches, and the fit to them in one pass."""
    x = cars(10, 30)
    fit, _ = jax.lax.scan(lambda fit, x: (update(fit, x), None), jn.init_input_stats(WIDTH), x)
    return x, fit


def at(index, fit):
    """Give one of several fits."""
    return jax.tree.map(lambda leaf: leaf[index], fit)


# Fitting


def test_a_fresh_fit_has_seen_nothing():
    fit = jn.init_input_stats(2)
    values = {"count": 0.0, "mean": 0.0, "var": 1.0, "min": np.inf, "max": -np.inf}
    identical(fit, {key: jnp.full(2, value, jnp.float32) for key, value in values.items()})
    assert list(fit) == list(values)


def test_one_pass_over_batches_is_the_whole_in_float64():
    x, fit = fitted()
    fits(fit, measured(x))


def test_scikit_learns_scalers_agree():
    x, fit = fitted()
    rows = x.reshape(-1, WIDTH).astype(np.float64)
    standard, min_max = StandardScaler(), MinMaxScaler((-1, 2))
    for batch in x.astype(np.float64):
        standard.partial_fit(batch)
        min_max.partial_fit(batch)
    relative(fit["mean"], standard.mean_, 1e-6)
    relative(fit["var"], standard.var_, 4e-6)
    y = standardized(rows.astype(np.float32), fit)
    near(y, standard.transform(rows), allowed(300, 2))
    near(min_maxed(rows.astype(np.float32), fit, low=-1.0, high=2.0), min_max.transform(rows), 2e-6)
    unseen = np.array([[-5.0, 4e5, 310.0]], np.float32)
    expected = min_max.transform(unseen.astype(np.float64))
    near(min_maxed(unseen, fit, low=-1.0, high=2.0), expected, 1e-5)
    assert np.any((expected < -1) | (expected > 2))


@st.composite
def splits(draw):
    """Draw batches of eight rows of a stream, how many of each count, and in which order."""
    sizes = draw(st.lists(st.integers(0, 8), min_size=2, max_size=6).filter(any))
    return sizes, draw(st.permutations(range(len(sizes)))), draw(st.integers(0, 99))


@given(splits())
def test_a_stream_in_any_order_and_split_is_the_whole(drawn):
    sizes, order, seed = drawn
    x = cars(8 * len(sizes)).reshape(-1, 8, WIDTH) + np.float32(seed)
    where = np.arange(8)[None, :, None] < np.array(sizes)[:, None, None]
    fresh = jn.init_input_stats(WIDTH)
    parts = [update(fresh, x[one], where=where[one]) for one in order]
    expected = measured(x, where)
    fits(functools.reduce(merge, parts), expected)
    fits(functools.reduce(merge, parts[::-1]), expected)
    streamed = fresh
    for one in order:
        streamed = update(streamed, x[one], where=where[one])
    fits(streamed, expected)


merge = jax.jit(jn.merge_input_stats)


def test_parts_of_any_size_are_merged_and_a_fresh_one_changes_nothing():
    x, fit = fitted()
    rows, fresh = x.reshape(-1, WIDTH), jn.init_input_stats(WIDTH)
    parts = [update(fresh, rows[s]) for s in (slice(0, 1), slice(1, 7), slice(7, 300))]
    fits(merge(merge(parts[2], parts[0]), parts[1]), measured(rows))
    identical(merge(fit, fresh), fit)
    identical(merge(fresh, fit), fit)
    identical(merge(fresh, fresh), fresh)
    assert "frozen" in jn.merge_input_stats(jn.freeze_stats(fit), fresh)


@pytest.mark.parametrize("where", [None, np.zeros((), bool)], ids=["empty", "masked"])
def test_a_batch_in_which_nothing_counts_changes_nothing(where):
    rows = np.zeros((0, WIDTH)) if where is None else np.full((4, WIDTH), np.nan)
    for fit in (jn.init_input_stats(WIDTH), fitted()[1]):
        identical(update(fit, rows.astype(np.float32), where=where), fit)


def test_a_single_row_is_a_batch():
    x, _ = fitted()
    fit = jn.init_input_stats(WIDTH)
    for row in x[0, :5]:
        fit = update(fit, row)
    fits(fit, measured(x[0, :5]))


def test_masks_and_nan_may_differ_by_feature():
    x, where = cars(6, 10), chances(6, 10, WIDTH)
    fresh = jn.init_input_stats(WIDTH)
    holes = np.where(where, x, np.float32(np.nan))
    fits(update(fresh, holes, where=where), measured(x, where))
    fits(update(fresh, holes, skip_nan=True), measured(x, where))
    rows = np.arange(10)[:, None] < 7
    fits(update(fresh, holes, where=rows, skip_nan=True), measured(x, where & rows))


def test_a_nan_that_is_not_skipped_shows_in_its_feature_for_good():
    x, fit = fitted()
    holed = x[0].copy()
    holed[3, 1] = np.nan
    fit = update(update(fit, holed), x[1])
    for key in ("mean", "var", "min", "max"):
        np.testing.assert_array_equal(np.isnan(fit[key]), [False, True, False])
    for y in (standardized(x[0], fit), min_maxed(x[0], fit)):
        np.testing.assert_array_equal(np.isnan(y).any(0), [False, True, False])


def test_a_fit_that_forgets_weighs_batches_by_their_age():
    x, where = cars(6, 10), np.ones((6, 10, WIDTH), bool)
    where[3, :, 1] = False  # where nothing counts, nothing is forgotten
    fit = jn.init_input_stats(WIDTH)
    for batch, mask in zip(x, where, strict=True):
        fit = update(fit, batch, where=mask, decay=0.7)
    rows, kept = x.reshape(-1, WIDTH).astype(np.float64), where.reshape(-1, WIDTH)
    for feature in range(WIDTH):
        ages = np.cumsum(where[::-1, 0, feature])[::-1] - 1
        column, counted = rows[:, feature], kept[:, feature]
        weights = np.repeat(0.7**ages, 10) * counted
        mean = np.average(column, weights=weights)
        var = np.average((column - mean) ** 2, weights=weights)
        relative(fit["count"][feature], weights.sum(), 1e-6)
        near(fit["mean"][feature], mean, 4 * ulp(np.float32(np.abs(column).max())))
        relative(fit["var"][feature], var, 1e-5)
        near(fit["max"][feature], column[counted].max(), 0)


def test_a_fit_that_keeps_all_or_nothing():
    x, fit = fitted()
    identical(update(fit, x[0], decay=1.0), update(fit, x[0]))
    last = update(fit, x[0], decay=0.0)
    fresh = update(jn.init_input_stats(WIDTH), x[0])
    identical(
        {key: last[key] for key in ("count", "mean", "var")},
        {key: fresh[key] for key in ("count", "mean", "var")},
    )


def test_bfloat16_inputs_are_measured_and_scaled_in_float32():
    x = jnp.asarray(cars(50)).astype(jnp.bfloat16)
    fit = update(jn.init_input_stats(WIDTH), x)
    expected = measured(x)
    fits(fit, expected)
    rows = np.asarray(x, np.float64)
    y = standardized(x, fit)
    assert y.dtype == jnp.bfloat16
    exact = (rows - expected["mean"]) / np.sqrt(expected["var"])
    near(y, exact, float(np.abs(exact).max()) * 2.0**-8)


@pytest.mark.parametrize("axis", [0, 1, (0, 2)])
def test_any_axis_or_axes_are_the_features(axis):
    x = normals(3, 4, 5, mean=2.0)
    axes = axis if isinstance(axis, tuple) else (axis,)
    rest = tuple(a for a in range(3) if a not in axes)
    fit = jn.init_input_stats([x.shape[a] for a in axes])
    fit = jn.update_input_stats(fit, x, feature_axis=axis)
    wide = x.astype(np.float64)
    mean, var = wide.mean(rest, keepdims=True), wide.var(rest, keepdims=True)
    near(fit["mean"], mean.squeeze(rest), 1e-6)
    near(fit["min"], x.min(rest), 0)
    y = jn.standardize_inputs(x, fit, feature_axis=axis)
    near(y, (wide - mean) / np.sqrt(var), 1e-5)
    near(jn.min_max_inputs(x, fit, feature_axis=axis).max(rest), np.ones(fit["max"].shape), 0)


@pytest.mark.long
def test_the_fit_keeps_its_dtypes_and_a_wide_one_counts_on_beyond_2_to_the_24():
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            fit = jn.init_input_stats(WIDTH, dtype=dtype)
            fit = {**fit, "count": jnp.full(WIDTH, 2.0**24, dtype)}
            for given_dtype in (jnp.bfloat16, np.float32, np.float64):
                x = jnp.asarray(cars(3)).astype(given_dtype)
                new = jn.update_input_stats(fit, x[:1])
                assert {leaf.dtype for leaf in new.values()} == {jnp.dtype(dtype)}
                assert jn.standardize_inputs(x, new).dtype == x.dtype
            grown = new["count"] > 2**24
            np.testing.assert_array_equal(grown, np.full(WIDTH, dtype == np.float64))


# Applying


@pytest.mark.parametrize(("mean", "std"), [(1e6, 1.0), (1e5, 100.0), (0.0, 1e-6)])
def test_a_mean_far_above_the_deviation_is_subtracted_first(mean, std):
    x = normals(40, 5, mean=mean, std=std)
    fit = update(jn.init_input_stats(5), x)
    expected = measured(x)
    y = (x.astype(np.float64) - expected["mean"]) / np.sqrt(expected["var"])
    near(standardized(x, fit), y, 2 * allowed(mean, std))


@pytest.mark.parametrize("constant", [0.1, -7e-5, 3e8, 0.0, 1e30])
def test_a_constant_becomes_zero_or_low_and_comes_back(constant):
    fit = jn.init_input_stats(1)
    for size in (3, 7, 1, 8):
        fit = update(fit, np.full((8, 1), constant, np.float32), where=np.arange(8)[:, None] < size)
    identical(fit["mean"], jnp.full(1, constant, jnp.float32))
    identical(fit["var"], jnp.zeros(1))
    x, y = np.full((2, 1), constant, np.float32), np.zeros((2, 1), np.float32)
    identical(standardized(x, fit), jnp.asarray(y))
    identical(standardized(y, fit, invert=True), jnp.asarray(x))
    identical(min_maxed(x, fit, low=-0.3, high=0.7), jnp.full((2, 1), -0.3, jnp.float32))
    identical(min_maxed(y - np.float32(0.3), fit, low=-0.3, high=0.7, invert=True), jnp.asarray(x))
    if constant == 0.1:  # what was not seen is moved, as in scikit-learn
        scaler = MinMaxScaler((-0.3, 0.7)).fit(x)
        other = np.array([[0.4], [-2.0]], np.float32)
        near(min_maxed(other, fit, low=-0.3, high=0.7), scaler.transform(other), 1e-6)
        near(standardized(other, fit), StandardScaler().fit(x).transform(other), 1e-6)


def test_a_fresh_fit_changes_nothing():
    x, fit = cars(4), jn.init_input_stats(WIDTH)
    for y in (standardized(x, fit), min_maxed(x, fit), min_maxed(x, fit, low=-1.0, high=7.0)):
        identical(y, jnp.asarray(x))
    identical(standardized(x, fit, invert=True), jnp.asarray(x))
    identical(min_maxed(x, fit, invert=True), jnp.asarray(x))


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.3, 0.7), (1e-3, 1e5), (-1, 3)])
def test_the_least_becomes_low_and_the_largest_high_exactly(bounds):
    low, high = bounds
    x, fit = normals(50, 40, std=1e3, mean=10.0), jn.init_input_stats(40)
    fit = update(fit, x)
    closed = jax.jit(lambda x: jn.min_max_inputs(x, fit, low=low, high=high))
    for y in (jn.min_max_inputs(x, fit, low=low, high=high), closed(x)):
        near(y.min(0), np.full(40, np.float32(low)), 0)
        near(y.max(0), np.full(40, np.float32(high)), 0)
    ends = np.full((2, 40), np.float32([[low], [high]]))
    closed = jax.jit(lambda y: jn.min_max_inputs(y, fit, low=low, high=high, invert=True))
    near(closed(ends), np.stack([fit["min"], fit["max"]]), 0)


def test_scaling_is_inverted_up_to_rounding():
    x, fit = fitted()
    size = np.abs(x).max((0, 1))
    for scale in (standardized, functools.partial(min_maxed, low=-1.0, high=3.0)):
        back = scale(scale(x, fit), fit, invert=True)
        near(back / size, x / size, 2.0**-21)


def test_epsilon_clip_and_low_are_heeded():
    x, fit = np.array([[-1.0], [1.0]], np.float32), jn.init_input_stats(1)
    fit = update(fit, x)
    near(standardized(x, fit, epsilon=3.0), x / 2, 1e-6)
    near(standardized(x / 2, fit, epsilon=3.0, invert=True), x, 1e-6)
    wide = np.array([[-9.0], [0.5]], np.float32)
    near(standardized(wide, fit, clip=2.0), np.array([[-2.0], [0.5]]), 1e-6)
    near(min_maxed(wide, fit), np.array([[-4.0], [0.75]]), 1e-6)
    near(min_maxed(wide, fit, clip=True), np.array([[0.0], [0.75]]), 1e-6)


def test_without_centering_inputs_are_divided_by_the_deviation_about_the_mean():
    x, fit = fitted()
    scaler = StandardScaler(with_mean=False).fit(x.reshape(-1, WIDTH).astype(np.float64))
    y = standardized(x[0], fit, center=False)
    relative(y, scaler.transform(x[0].astype(np.float64)), 4e-6)
    relative(standardized(y, fit, center=False, invert=True), x[0], 1e-6)
    identical(standardized(x[0], jn.init_input_stats(WIDTH), center=False), jnp.asarray(x[0]))
    bounded = standardized(x[0], fit, center=False, epsilon=3.0, clip=1.0)
    expected = x[0] / np.sqrt(np.float64(fit["var"]) + 3)
    near(bounded, np.clip(expected, -1, 1), 1e-6)
    holed = np.where(np.arange(30)[:, None] == 2, np.float32(np.nan), x[0])
    y = jn.standardize_inputs(holed, fit, center=False, where=np.arange(30)[:, None] != 2)
    identical(y[2], np.zeros(WIDTH, np.float32))


def test_without_centering_a_constant_stays_whatever_epsilon_is():
    x = np.full((3, 1), 0.1, np.float32)
    fit = update(jn.init_input_stats(1), x)
    for epsilon in (0.0, 1e-8):
        identical(standardized(x, fit, center=False, epsilon=epsilon), jnp.asarray(x))
    y, _ = jn.normalize_observations(x, fit, center=False)
    identical(y, jnp.asarray(x))
    near(
        jax.grad(lambda x: jn.standardize_inputs(x, fit, center=False).sum())(x), np.ones((3, 1)), 0
    )


def test_what_does_not_count_is_finite_and_moves_no_gradient():
    x, fit = fitted()
    holed, where = x[0].copy(), np.ones((30, 1), bool)
    holed[2], where[2] = np.nan, False
    scales = ((jn.standardize_inputs, 0.0), (functools.partial(jn.min_max_inputs, low=-1.0), -1.0))

    @functools.partial(jax.jit, static_argnums=0)
    def gradients_of(scale, x, fit):
        y, backward = jax.vjp(functools.partial(scale, where=where), x, fit)
        return backward(jnp.where(where, 1.0, jnp.zeros_like(y)))

    for scale, other in scales:
        y = scale(holed, fit, where=where)
        identical(y[2], np.full(WIDTH, other, np.float32))
        identical(np.delete(y, 2, 0), np.delete(scale(x[0], fit), 2, 0))
        of_x, of_fit = gradients_of(scale, holed, fit)
        assert all(np.isfinite(g).all() for g in (of_x, *of_fit.values()))
        near(of_x[2], np.zeros(WIDTH), 0)
    assert np.isnan(jn.standardize_inputs(holed, fit)[2]).all()


def test_no_gradient_goes_through_the_fit():
    x, fit = fitted()

    def through(x):
        return jn.standardize_inputs(x, jn.update_input_stats(fit, x)).sum()

    new = update(fit, x[0])
    near(jax.grad(through)(x[0]), np.broadcast_to(1 / np.sqrt(new["var"]), x[0].shape), 1e-6)


@pytest.mark.long
def test_fits_are_batched_by_vmap():
    x = cars(4, 6)
    fit = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), jn.init_input_stats(WIDTH))
    fit = jax.vmap(jn.update_input_stats)(fit, x)
    y = jax.vmap(jn.standardize_inputs)(x, fit)
    for one in range(4):
        alone = update(jn.init_input_stats(WIDTH), x[one])
        fits(at(one, fit), measured(x[one]))
        near(y[one], standardized(x[one], alone), 2e-4)


# Devices


@functools.cache
def shards():
    """Give eight shards of cars of which unequal numbers count, in one none."""
    x = cars(8, 9) + 1e4 * np.arange(8, dtype=np.float32)[:, None, None]
    sizes = np.array([9, 0, 1, 5, 9, 2, 7, 3])
    return x, np.arange(9)[None, :, None] < sizes[:, None, None]


@pytest.mark.parametrize("way", WAYS)
def test_devices_with_unequal_counts_share_one_fit(way):
    x, where = shards()

    def step(x, where):
        fit = jn.init_input_stats(WIDTH)
        return jn.normalize_observations(x, fit, where=where, axis_name="i", clip=None)

    y, fit = mapped(way, step)(x, where)
    expected = measured(x, where)
    for device in range(8):
        fits(at(device, fit), expected)
    exact = (x.astype(np.float64) - expected["mean"]) / np.sqrt(expected["var"])
    near(y, exact, 1e-5 + 4 * ulp(np.float32(7e4)) / np.sqrt(expected["var"].min()))


@pytest.mark.long
@pytest.mark.parametrize("way", DEVICES)
def test_groups_of_devices_share_a_fit_each(way):
    x, where = shards()
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]

    def step(x, where):
        fit = jn.init_input_stats(WIDTH)
        return jn.update_input_stats(fit, x, where=where, axis_name="i", axis_index_groups=groups)

    fit = mapped(way, step)(x, where)
    for group in groups:
        for device in group[::3]:
            fits(at(device, fit), measured(x[group], where[group]))


@pytest.mark.parametrize("way", WAYS)
def test_a_nan_on_one_device_shows_on_all(way):
    x = cars(8, 3)
    x[5, 1, 0] = np.nan

    def step(x):
        return jn.update_input_stats(jn.init_input_stats(WIDTH), x, axis_name="i")

    fit = mapped(way, step)(x)
    for key in ("mean", "min", "max"):
        np.testing.assert_array_equal(np.isnan(fit[key]), [[True, False, False]] * 8)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_rows_and_features_are_fitted_without_a_name(kind):
    grid = mesh(kind, (4, 2), ("i", "j"))
    x, where = normals(16, 4, mean=5.0), chances(16, 1)
    expected = measured(x, where)

    @jax.jit
    def step(fit, x, where):
        fit = jn.update_input_stats(fit, x, where=where)
        return fit, jn.standardize_inputs(x, fit), jn.min_max_inputs(x, fit)

    with jax.set_mesh(grid):
        x_split = jax.device_put(x, NamedSharding(grid, P("i", "j")))
        where = jax.device_put(where, NamedSharding(grid, P("i")))
        fit, y, scaled = step(jn.init_input_stats(4), x_split, where)
        assert tuple(jax.typeof(y).sharding.spec) in (("i", "j"), (None, None))
        fits(jax.device_get(fit), expected)
        near(y, (x - expected["mean"]) / np.sqrt(expected["var"]), 1e-5)
        width = expected["max"] - expected["min"]
        near(scaled, (x - expected["min"]) / width, 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("way", ["vmap", "shard_map"])
def test_replicas_that_fitted_alone_are_merged_in_a_tree(way):
    x, where = shards()
    alone = jax.vmap(
        lambda x, where: jn.update_input_stats(jn.init_input_stats(WIDTH), x, where=where)
    )
    unseen = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), jn.init_input_stats(1))
    tree = {"inputs": alone(x, where), "other": unseen}
    merged = mapped(way, lambda tree: jn.sync_batch_stats(tree, "i"))(tree)
    fits(at(3, merged["inputs"]), measured(x, where))
    identical(merged["other"], unseen)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_a_constant_over_devices_has_no_variance(way):
    x, where = np.full((8, 9, 1), 0.1, np.float32), shards()[1]

    def step(x, where):
        fit = jn.init_input_stats(1)
        together = jn.update_input_stats(fit, x, where=where, axis_name="i")
        alone = jn.update_input_stats(fit, x, where=where)
        return together, jn.sync_batch_stats(alone, "i")

    for fit in mapped(way, step)(x, where):
        near(fit["var"], np.zeros((8, 1)), 0)
        near(fit["mean"], np.full((8, 1), np.float32(0.1)), 0)


@pytest.mark.long
def test_what_was_merged_is_known_to_be_alike_on_every_device():
    """Where shard_map checks, an out_spec of P() needs it to be."""
    x, where = shards()

    def step(x, where):
        fit = jn.init_input_stats(WIDTH)
        together = jn.update_input_stats(fit, x, where=where, axis_name="i")
        return together, jn.sync_batch_stats(jn.update_input_stats(fit, x, where=where), "i")

    share = jax.shard_map(step, mesh=mesh(), in_specs=P("i"), out_specs=P())
    for fit in jax.jit(share)(x, where):
        fits(fit, measured(x, where))


@pytest.mark.long
def test_replicas_of_an_nnx_model_are_merged_into_its_state():
    x, where = shards()
    model = nnx.Dict(scale=jnnx.StandardizeInputs(WIDTH))
    graph, state = nnx.split(model)

    def alone(state, x, where):
        twin = nnx.merge(graph, state)
        twin.scale(x, mask=where)
        return nnx.state(twin, nnx.BatchStat)

    replicas = jax.vmap(alone, (None, 0, 0))(state, x, where)
    merged = jax.vmap(lambda state: jn.sync_batch_stats(state, "i"), axis_name="i")(replicas)
    assert {type(leaf) for leaf in merged["scale"].values()} == {nnx.BatchStat}
    nnx.update(model, at(2, merged))
    entries = jn.init_input_stats(1)
    fits({key: getattr(model.scale, key)[...] for key in entries}, measured(x, where))


# Observations


def observations(steps=60):
    """Draw a stream of observations (steps, environments, features)."""
    return normals(steps, 5, WIDTH, mean=np.array([0.0, -3.0, 40.0]), std=np.array([1.0, 0.1, 9.0]))


def streamed(x, fit, where=None, **options):
    """Give the normalized observations and the fit of every step."""

    def step(fit, pair):
        y, fit = jn.normalize_observations(pair[0], fit, where=pair[1], **options)
        return fit, (y, fit)

    return jax.jit(lambda fit, pairs: jax.lax.scan(step, fit, pairs))(fit, (x, where))[1]


@pytest.mark.long
def test_gymnasiums_running_moments_agree_from_the_same_start():
    utils = pytest.importorskip("gymnasium.wrappers.utils", reason="gymnasium is not installed")
    x, peer = observations(), utils.RunningMeanStd(shape=(WIDTH,))
    start = jn.init_input_stats(WIDTH)
    start = {**start, "count": jnp.full(WIDTH, peer.count, jnp.float32)}
    y, fit = streamed(x, start, clip=None)
    for step, batch in enumerate(x.astype(np.float64)):
        peer.update(batch)
        near(fit["mean"][step], peer.mean, 4 * ulp(np.float32(40)))
        relative(fit["var"][step], peer.var, 2e-5)
        near(y[step], (batch - peer.mean) / np.sqrt(peer.var + 1e-8), 1e-4)
    # from no count the stream alone is remembered, which a count of 1e-4 comes close to
    ours = streamed(x, jn.init_input_stats(WIDTH))[1]
    fits(at(-1, ours), measured(x))
    relative(ours["var"][-1], peer.var, 1e-3)


def test_a_prior_count_is_not_taken_for_a_constant():
    prior = {**jn.init_input_stats(1), "count": jnp.full(1, 2.0)}  # two of mean 0 and variance 1
    fit = update(update(prior, np.full((1, 1), 3.0, np.float32)), np.full((1, 1), 3.0, np.float32))
    near(fit["mean"], np.array([1.5]), 1e-6)
    near(fit["var"], np.array([0.5 + 2.25]), 1e-6)


def test_gymnasiums_wrapper_agrees_on_an_environment():
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    env = gymnasium.wrappers.NormalizeObservation(gymnasium.make("CartPole-v1"))
    raw, theirs = [], []
    y, _ = env.reset(seed=3)
    for step in range(12):
        theirs.append(y)
        raw.append(np.array(env.unwrapped.state, np.float32))
        y, *_ = env.step(step % 2)
    start = {**jn.init_input_stats(4), "count": jnp.full(4, 1e-4)}
    ours, _ = streamed(np.stack(raw), start)
    near(ours, np.stack(theirs), 2e-4)


@pytest.mark.parametrize("name", ["all", "weighted"])
def test_braxs_running_statistics_agree(name):
    recorded = np.load(BRAX)
    x = recorded["x"]
    where = recorded["weights"][..., None] if name == "weighted" else None
    y, fit = streamed(x, jn.init_input_stats(4), where=where, clip=2.0)
    theirs = {key: recorded[f"{name}/{key}"] for key in ("mean", "std", "y")}
    moving = slice(0, 3)  # brax keeps the deviation of a constant at 1e-6
    size = np.abs(theirs["mean"]).max(0) + theirs["std"].max(0)
    near(fit["mean"] / size, theirs["mean"] / size, 1e-6)
    near(
        jnp.sqrt(fit["var"])[:, moving] / size[moving],
        theirs["std"][:, moving] / size[moving],
        4e-6,
    )
    near(y, theirs["y"], 2e-5)
    if name == "all":
        fits(at(-1, fit), measured(x))


def test_observations_are_clipped_and_left_alone_in_evaluation():
    x, fit = observations(), jn.init_input_stats(WIDTH)
    far = x[0].copy()
    far[0] = 1e4
    _, fit = jn.normalize_observations(x[0], fit)
    y, same = jn.normalize_observations(far, fit, update=False)
    assert float(y.max()) == 10.0
    identical(same, fit)
    y, _ = jn.normalize_observations(far, fit, update=False, clip=None)
    near(y, jn.standardize_inputs(far, fit, epsilon=1e-8), 0)
    assert float(y.max()) > 10.0


# Modules


OPTIONS = {
    "StandardizeInputs": (
        jn.standardize_inputs,
        {"epsilon": 0.1, "clip": 1.5, "center": False},
    ),
    "MinMaxInputs": (jn.min_max_inputs, {"low": -1.0, "high": 2.0, "clip": True}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_two_modules_and_the_functions_are_one(name):
    function, options = OPTIONS[name]
    x, where = cars(6, 4), chances(6, 4, 1)
    x[np.broadcast_to(~where, x.shape)] = np.nan
    x[0, 0, 0], where[0, 0] = np.nan, True
    fit = jn.update_input_stats(jn.init_input_stats(WIDTH), cars(20))
    linen = getattr(jnn, name)(skip_nan=True, decay=0.5, **options)
    twin = getattr(jnnx, name)(WIDTH, skip_nan=True, decay=0.5, **options)
    for key, value in fit.items():
        getattr(twin, key)[...] = value
    variables = {"batch_stats": fit}

    new = jn.update_input_stats(fit, x, where=where, skip_nan=True, decay=0.5)
    expected = function(x, new, where=where, **options)
    y, updates = linen.apply(variables, x, False, mask=where, mutable=["batch_stats"])
    identical((y, updates["batch_stats"]), (expected, new))
    identical(twin(x, mask=where), expected)
    identical({key: getattr(twin, key)[...] for key in new}, new)

    twin.eval()
    expected = function(cars(5), new, **options)
    identical(linen.apply(updates, cars(5), True), expected)
    identical(twin(cars(5)), expected)
    identical({key: getattr(twin, key)[...] for key in new}, new)


@pytest.mark.parametrize("name", OPTIONS)
def test_init_does_not_update_and_makes_no_parameters(name):
    x, linen = cars(4), getattr(jnn, name)(use_running_average=False, axis_name="i")
    variables = linen.init(KEY, x)
    identical(variables, {"batch_stats": jn.init_input_stats(WIDTH)})
    with pytest.raises(ValueError, match="'i' is not mapped"):
        linen.apply(variables, x, mutable=["batch_stats"])
    with pytest.raises(ValueError, match=rf"{name} at / lacks \['count'"):
        getattr(jnn, name)().apply({}, x, True)
    assert not jax.tree.leaves(nnx.state(getattr(jnnx, name)(WIDTH), nnx.Param))


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIONS)
def test_modules_take_integers_another_axis_and_another_dtype(name):
    x = np.arange(24).reshape(2, 3, 4)
    options = {"axis": (1, 2), "use_running_average": False}
    y, updates = getattr(jnn, name)(**options).apply({}, x, mutable=["batch_stats"])
    twin = getattr(jnnx, name)(12, **options)
    assert (y.dtype, y.shape) == (jnp.float32, x.shape)
    assert (updates["batch_stats"]["count"].shape, twin.count[...].shape) == ((3, 4), (12,))
    identical(twin(x), y)
    near(y[0], np.full((3, 4), -1.0 if name == "StandardizeInputs" else 0.0), 0)
    half = getattr(jnnx, name)(12, dtype=jnp.bfloat16, **options)
    assert half(x).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", OPTIONS)
def test_a_frozen_fit_is_used_and_left(name):
    function, _ = OPTIONS[name]
    x, fit = fitted()
    frozen = jn.freeze_stats({"scale": fit})["scale"]
    identical(jn.update_input_stats(frozen, x[0]), frozen)
    far = x[0] + 100
    linen = getattr(jnn, name)(use_running_average=False)
    y, updates = linen.apply({"batch_stats": frozen}, far, mutable=["batch_stats"])
    identical(y, function(far, fit))
    identical(updates["batch_stats"], frozen)
    model = nnx.Dict(scale=getattr(jnnx, name)(WIDTH))
    model.scale(x[0])
    jnnx.freeze_stats(model, "scale")
    before = model.scale.mean[...]
    model.scale(far)
    identical(model.scale.mean[...], before)
    jnnx.freeze_stats(model, frozen=False)
    model.scale(far)
    assert not np.array_equal(model.scale.mean[...], before)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_modules_share_their_fit_over_devices(way):
    x, where = shards()
    linen = jnn.StandardizeInputs(use_running_average=False, axis_name="i")

    def step(x, where):
        return linen.apply({}, x, mask=where, mutable=["batch_stats"])

    _, updates = mapped(way, step)(x, where)
    fits(at(1, updates["batch_stats"]), measured(x, where))


def test_a_fit_survives_a_checkpoint_bit_for_bit(tmp_path):
    x, fit = fitted()
    tree = {"fit": fit, "fresh": jn.init_input_stats(2)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "fit", tree)
        checkpointer.wait_until_finished()
        target = {"fit": jn.init_input_stats(WIDTH), "fresh": jn.init_input_stats(2)}
        restored = checkpointer.restore(tmp_path / "fit", target)
    identical(restored, tree)
    identical(update(restored["fit"], x[0]), update(fit, x[0]))


# Errors


X, FIT = np.ones((4, WIDTH), np.float32), jn.init_input_stats(WIDTH)
VIEWS = {"camera": X, "joints": X}  # a gymnasium.spaces.Dict
EACH = ["['camera', 'joints']", "init_input_stats({'camera': number of features, 'joints': "]
BAD = [
    (TypeError, EACH, jn.update_input_stats, (FIT, VIEWS), {}),
    (TypeError, EACH, jn.standardize_inputs, (VIEWS, FIT), {}),
    (TypeError, EACH, jn.min_max_inputs, (VIEWS, FIT), {}),
    (TypeError, EACH, jn.normalize_observations, (VIEWS, FIT), {}),
    (TypeError, ["exchange the two", "'mean'"], jn.update_input_stats, (X, FIT), {}),
    (TypeError, ["exchange the two", "'mean'"], jn.standardize_inputs, (FIT, X), {}),
    (TypeError, ["int32", "astype"], jn.update_input_stats, (FIT, X.astype(np.int32)), {}),
    (TypeError, ["complex64", "x.real"], jn.update_input_stats, (FIT, X.astype(np.complex64)), {}),
    (TypeError, ["int32"], jn.standardize_inputs, (X.astype(np.int32), FIT), {}),
    (ValueError, ["(2,)", "init_input_stats(2)"], jn.update_input_stats, (FIT, X[:, :2]), {}),
    (
        ValueError,
        ["['var']", "'count'"],
        jn.standardize_inputs,
        (X, {k: v for k, v in FIT.items() if k != "var"}),
        {},
    ),
    (TypeError, ["dict", "tuple"], jn.min_max_inputs, (X, (1, 2)), {}),
    (TypeError, ["mean", "array", "0.0"], jn.min_max_inputs, (X, {**FIT, "mean": 0.0}), {}),
    (ValueError, ["(2,)", "(3,)"], jn.merge_input_stats, (FIT, jn.init_input_stats(2)), {}),
    (ValueError, ["['count'"], jn.merge_input_stats, (FIT, {"mean": X}), {}),
    (ValueError, ["feature_axis=2"], jn.update_input_stats, (FIT, X), {"feature_axis": 2}),
    (ValueError, ["where", "(3, 4)"], jn.update_input_stats, (FIT, X), {"where": np.ones((3, 4))}),
    (TypeError, ["'mask'", "where=..."], jn.update_input_stats, (FIT, X), {"mask": X}),
    (TypeError, ["'mask'", "where=..."], jn.standardize_inputs, (X, FIT), {"mask": X}),
    (ValueError, ["'absent'", "mapped"], jn.update_input_stats, (FIT, X), {"axis_name": "absent"}),
    (
        ValueError,
        ["axis_index_groups"],
        jn.update_input_stats,
        (FIT, X),
        {"axis_index_groups": [[0]]},
    ),
    (TypeError, ["skip_nan", "1"], jn.update_input_stats, (FIT, X), {"skip_nan": 1}),
    (TypeError, ["update", "None"], jn.normalize_observations, (X, FIT), {"update": None}),
    (ValueError, ["decay=1.5", "[0, 1]"], jn.update_input_stats, (FIT, X), {"decay": 1.5}),
    (TypeError, ["decay", "(3,)"], jn.update_input_stats, (FIT, X), {"decay": X[0]}),
    (TypeError, ["center", "bool"], jn.standardize_inputs, (X, FIT), {"center": 0}),
    (ValueError, ["epsilon=-1"], jn.standardize_inputs, (X, FIT), {"epsilon": -1.0}),
    (ValueError, ["clip=0", "above 0"], jn.standardize_inputs, (X, FIT), {"clip": 0}),
    (ValueError, ["clip=-2"], jn.normalize_observations, (X, FIT), {"clip": -2.0}),
    (
        ValueError,
        ["clip=2.0", "inverted"],
        jn.standardize_inputs,
        (X, FIT),
        {"clip": 2.0, "invert": True},
    ),
    (
        ValueError,
        ["clip=True", "inverted"],
        jn.min_max_inputs,
        (X, FIT),
        {"clip": True, "invert": True},
    ),
    (TypeError, ["clip", "bool"], jn.min_max_inputs, (X, FIT), {"clip": 2.0}),
    (TypeError, ["invert", "bool"], jn.min_max_inputs, (X, FIT), {"invert": 1}),
    (ValueError, ["low=1.0", "high=1.0"], jn.min_max_inputs, (X, FIT), {"low": 1.0}),
    (TypeError, ["high", "(3,)"], jn.min_max_inputs, (X, FIT), {"high": X[0]}),
    (ValueError, ["num_features=0", "positive"], jn.init_input_stats, (0,), {}),
    (TypeError, ["num_features", "2.5"], jn.init_input_stats, (2.5,), {}),
    (TypeError, ["int32"], jn.init_input_stats, (2,), {"dtype": np.int32}),
    (TypeError, ["complex64"], jn.init_input_stats, (2,), {"dtype": np.complex64}),
    (ValueError, ["bfloat16", "float32"], jn.init_input_stats, (2,), {"dtype": jnp.bfloat16}),
]


@pytest.mark.parametrize(("error", "words", "function", "args", "options"), BAD)
def test_a_wrong_call_is_an_error_that_names_the_cure(error, words, function, args, options):
    attempt = functools.partial(function, *args, **options)
    for call in (attempt, jax.jit(attempt)):
        with pytest.raises(error) as caught:
            call()
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_dict_given_as_observation_is_fitted_by_what_the_error_says():
    x = {"camera": cars(4), "joints": cars(7)}
    fit = {key: jn.init_input_stats(WIDTH) for key in x}
    fit = {key: jn.update_input_stats(fit[key], x[key]) for key in x}
    for key in x:
        fits(fit[key], measured(x[key]))


@pytest.mark.parametrize("framework", [jnn, jnnx])
def test_a_dict_given_to_a_module_is_an_error_that_names_the_cure(framework):
    module = framework.StandardizeInputs(*([WIDTH] if framework is jnnx else []))
    call = functools.partial(module.init, KEY) if framework is jnn else module
    with pytest.raises(TypeError, match=r"'camera', 'joints'.*module\[key\]\(x\[key\]\) for key"):
        call(VIEWS, use_running_average=False)


def test_an_unmatched_width_of_an_nnx_module_is_an_error():
    with pytest.raises(ValueError, match="num_features=2"):
        jnnx.StandardizeInputs(2)(X)
