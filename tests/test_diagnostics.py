"""What is watched of a network is what its definitions say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KEY, normals
from components import model, placement
from environment import generator

from experiments.training.diagnostics import (
    MAX_VALUES,
    QUANTILES,
    activations,
    decades_between,
    distance_to_running,
    gradient_norms,
    kernel_norms,
    quantiles,
)

CHANNELS = 4


def quantiles_of(captured):
    """Give the quantiles by normalization and side."""
    return {
        name: {side: np.array(quantiles(values)) for side, values in place.items()}
        for name, place in activations(captured).items()
    }


def stats(mean, var, **others):
    return {"model": {"norm_0": {"mean": jnp.asarray(mean), "var": jnp.asarray(var), **others}}}


def test_gradient_norms_are_of_layers():
    grads = {
        "a": {"kernel": jnp.full((3, 3), 2.0), "bias": jnp.zeros(3)},
        "b": {"c": {"w": jnp.ones(4)}},
    }
    norms = gradient_norms(grads)
    assert {name: float(norm) for name, norm in norms.items()} == {"a": 6.0, "b/c": 2.0}


def test_kernels_are_ordered_by_their_numbers():
    grads = {f"Dense_{n}": {"kernel": np.full((2, 2), n, np.float32)} for n in (10, 0, 2)}
    others = {"head": {"kernel": np.ones((2, 3))}, "norm_0": {"scale": np.ones(2)}}
    norms = kernel_norms(grads | others)
    assert [*norms.items()] == [("Dense_0", 0.0), ("Dense_2", 4.0), ("Dense_10", 20.0)]


def test_decades_are_between_the_first_and_the_last_kernel():
    """Norms whose squares leave float32 count, both ways; what left float32 itself is 38."""
    tiny = kernel_norms({"Dense_0": {"kernel": np.full((1, 1), 1e-30, np.float32)}})
    large = kernel_norms({"Dense_1": {"kernel": np.full((1, 1), 1e5, np.float32)}})
    assert decades_between(tiny | large) == pytest.approx(35, abs=1e-6)
    assert decades_between(large | tiny) == pytest.approx(35, abs=1e-6)
    assert decades_between({"Dense_0": 3.0, "Dense_1": 7.0, "Dense_2": 3.0}) == 0
    for lost in (0.0, np.inf, np.nan):
        assert decades_between({"Dense_0": lost, "Dense_1": 1.0}) == 38
    assert decades_between({"Dense_0": 1e-36, "Dense_1": 1e36}) == 38


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_distance_of_a_batch_is_what_moved_the_running_statistics(momentum):
    draws = generator()
    old, batch = draws.uniform(1, 2, (2, 2, CHANNELS)).astype(np.float32)
    new = momentum * old + (1 - momentum) * batch
    [distance] = distance_to_running(stats(*old), stats(*new), momentum).values()
    expected = np.abs(batch[0] - old[0]) / np.sqrt(old[1]), np.abs(batch[1] - old[1]) / old[1]
    np.testing.assert_allclose(distance["mean"], expected[0].mean(), rtol=1e-4)
    np.testing.assert_allclose(distance["var"], expected[1].mean(), rtol=1e-4)


def test_the_distance_where_all_batches_are_merged_is_by_count():
    old = stats(jnp.zeros(CHANNELS), jnp.ones(CHANNELS), count=jnp.float32(90))
    # 10 more of mean 5: the merged mean is 0.5.
    new = stats(jnp.full(CHANNELS, 0.5), jnp.ones(CHANNELS), count=jnp.float32(100))
    [distance] = distance_to_running(old, new, None).values()
    np.testing.assert_allclose(distance["mean"], 5.0, rtol=1e-5)


def test_quantiles_are_those_of_what_goes_in_and_out():
    values = generator().standard_normal((50, 20)).astype(np.float32)
    captured = {"norm_0": {"input": (jnp.asarray(values),), "output": (2 * jnp.asarray(values),)}}
    [place] = quantiles_of(captured).values()
    np.testing.assert_allclose(place["input"], np.quantile(values, QUANTILES), rtol=1e-5)
    np.testing.assert_allclose(place["output"], 2 * np.quantile(values, QUANTILES), rtol=1e-5)
    np.testing.assert_allclose(place["unit"], 2 * np.quantile(values[:, 0], QUANTILES), rtol=1e-5)


ROWS, SHORTER = normals(6, 4, 3), 2


def watched(name, inputs, lengths=None, mask=None, **changes):
    """Give the quantiles of a tiny model in evaluation."""
    net = model(name, placement("layer"), **changes)
    variables = net.init({"params": KEY}, inputs, train=False)
    _, captured = net.apply(
        variables, inputs, lengths, mask, train=False, mutable=["intermediates"]
    )
    return quantiles_of(captured["intermediates"])


def near(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected
    )


@pytest.mark.long
@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_steps_beyond_the_lengths_are_left_out(name, position):
    lengths = np.full(len(ROWS), SHORTER, np.int32)
    padded = watched(name, ROWS, lengths, position=position)
    assert padded
    near(padded, watched(name, ROWS[:, :SHORTER], position=position))


@pytest.mark.long
def test_tokens_beyond_the_lengths_are_left_out():
    captured = {}
    for rows in (ROWS, ROWS[:, :SHORTER]):
        x, valid = rows.reshape(-1, 3), np.tile(np.arange(rows.shape[1]) < SHORTER, len(rows))
        place = placement("layer")(name="norm_0", tokens=rows.shape[1])
        variables = place.init(KEY, x, train=False)
        _, kept = place.apply(variables, x, valid, train=False, mutable=["intermediates"])
        captured[f"norm_{rows.shape[1]}"] = kept["intermediates"]
    padded, cut = quantiles_of(captured).values()
    near(padded, cut)


@pytest.mark.long
@pytest.mark.parametrize("name", ["cnn", "gru"])
def test_examples_that_fill_a_batch_are_left_out(name):
    inputs = normals(6, 4, 4, 1)
    masked = watched(name, inputs, mask=np.arange(6) < 4)
    near(masked, watched(name, inputs[:4]))


def sown(values, mask=None):
    place = {"input": (values,), "output": (values,)}
    return {"norm": place if mask is None else {**place, "mask": (mask,)}}


@pytest.mark.parametrize("mask", [None, np.ones(8, bool)])
def test_they_are_numpys_and_nan_where_one_that_counts_is(mask):
    values = normals(8, 3)
    near(quantiles_of(sown(values, mask))["norm"]["input"], np.quantile(values, QUANTILES))
    values[3, 1] = np.nan
    assert np.isnan(quantiles_of(sown(values, mask))["norm"]["output"]).all()


def test_what_does_not_count_may_be_nan_and_of_nothing_they_are():
    values, mask = normals(8, 3), np.arange(8) < 5
    expected = np.quantile(values[:5], QUANTILES)
    values[5:] = np.nan
    near(quantiles_of(sown(values, mask))["norm"]["input"], expected)
    assert np.isnan(quantiles_of(sown(values, mask & False))["norm"]["input"]).all()


@pytest.mark.long
def test_of_many_values_a_few_are_taken_with_their_masks():
    values = normals(2 * MAX_VALUES, 2)
    mask = np.arange(len(values)) % 2 == 0
    few, counted = values.ravel()[::4], np.repeat(mask, 2)[::4]
    near(quantiles_of(sown(values, mask))["norm"]["input"], np.quantile(few[counted], QUANTILES))
