"""What is watched of a network is what its definitions say."""

import jax.numpy as jnp
import numpy as np
import pytest
from environment import generator

from experiments.training.diagnostics import (
    QUANTILES,
    distance_to_running,
    gradient_norms,
    quantiles,
)

CHANNELS = 4


def stats(mean, var, **others):
    return {"model": {"norm_0": {"mean": jnp.asarray(mean), "var": jnp.asarray(var), **others}}}


def test_gradient_norms_are_of_layers():
    grads = {
        "a": {"kernel": jnp.full((3, 3), 2.0), "bias": jnp.zeros(3)},
        "b": {"c": {"w": jnp.ones(4)}},
    }
    norms = gradient_norms(grads)
    assert {name: float(norm) for name, norm in norms.items()} == {"a": 6.0, "b/c": 2.0}


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
    [place] = quantiles(captured).values()
    np.testing.assert_allclose(place["input"], np.quantile(values, QUANTILES), rtol=1e-5)
    np.testing.assert_allclose(place["output"], 2 * np.quantile(values, QUANTILES), rtol=1e-5)
