"""Batch renormalization: the corrections, their schedules, and what must coincide."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from cases import (
    alike,
    fresh,
    gradients,
    identical,
    library,
    near,
    normals,
    oracle,
    parameters,
    promised,
    seen,
    within,
)

import jaxnorm as jn
from jaxnorm.batch import default_d_max, default_r_max

pytestmark = pytest.mark.numerical

R_MAX = optax.linear_schedule(1.0, 3.0, transition_steps=4, transition_begin=1)
D_MAX = optax.linear_schedule(0.0, 5.0, transition_steps=3, transition_begin=1)
SCHEDULES = {"r_max": R_MAX, "d_max": D_MAX}


LIMITS = [(1.0, 0.0), (1.0, 0.4), (1.3, 0.0), (1.3, 0.4), (1.3, 5.0), (4.0, 0.4), (4.0, 5.0)]


@pytest.mark.parametrize(
    ("r_max", "d_max", "masked"), [(*limits, False) for limits in LIMITS] + [(1.3, 0.4, True)]
)
def test_corrections_are_clipped_to_their_limits(r_max, d_max, masked):
    x = normals(8, 4, mean=np.array([0, 1, -3, 9]), std=np.array([1, 0.2, 4, 2]))
    options = {"r_max": r_max, "d_max": d_max, "stats": seen("renorm", 4)}
    options["where"] = np.arange(8)[:, None] % 3 > 0 if masked else None
    args = (x, *parameters(4))
    y, stats = library("renorm", *args, **options)
    expected, expected_stats = oracle("renorm", *args, **options)
    near(y, expected)
    near(stats, expected_stats)


@pytest.mark.parametrize("shape", [(6, 4), (5, 3, 4)], ids=str)
def test_without_corrections_it_is_batch_norm(shape):
    x, args = normals(*shape, mean=2.0, std=3.0), parameters(4)
    stats = seen("renorm", 4)
    limits = {"r_max": 1.0, "d_max": 0.0}
    y, new = library("renorm", x, *args, stats=stats, **limits)
    plain, plain_new = library("batch", x, *args, stats={k: stats[k] for k in ("mean", "var")})
    alike(y, plain)
    alike({k: new[k] for k in ("mean", "var")}, plain_new)


@pytest.mark.parametrize("limit", [1e6, np.inf])
def test_unclipped_it_is_what_evaluation_would_give(limit):
    x, args, stats = normals(8, 4, mean=2.0, std=3.0), parameters(4), seen("renorm", 4)
    y, _ = library("renorm", x, *args, stats=stats, r_max=limit, d_max=limit)
    near(y, library("renorm", x, *args, stats=stats, train=False)[0])


def test_statistics_move_as_those_of_batch_norm():
    x, stats = normals(6, 4, mean=2.0), seen("renorm", 4)
    _, new = library("renorm", x, stats=stats, momentum=0.7)
    plain = {k: stats[k] for k in ("mean", "var")}
    _, plain = library("batch", x, stats=plain, momentum=0.7)
    alike(new, {**plain, "steps": jnp.int32(1)})


def test_no_gradient_flows_through_the_corrections():
    x, g, args = normals(6, 3, mean=1.0, std=2.0), normals(6, 3, seed=1), parameters(3)
    stats, limits = seen("renorm", 3), {"r_max": 10.0, "d_max": 10.0}
    common = {"epsilon": 1e-5, "channel_axis": -1, "where": None}
    held = reference.corrections(x, stats, **limits, **common)

    def still(x):
        return reference.batch_renorm(x, stats, *args, train=True, frozen=held)[0]

    dx = gradients("renorm", x, *args, g, stats=stats, **limits)[0]
    near(dx, reference.gradient(still, x, g))


# Schedules


@pytest.mark.parametrize("step", [0, 5_000, 12_345, 25_000, 40_000, 10**6])
def test_the_defaults_are_the_schedules_of_the_paper(step):
    x = normals(8, 2, mean=30.0, std=np.array([30.0, 0.03]))
    stats = {**fresh("renorm", 2), "steps": np.int32(step)}
    y, new = jn.batch_renorm(x, stats, train=True)
    expected, expected_stats = reference.batch_renorm(x, stats, train=True)
    within(y, expected, promised("renorm", x))
    near(new, expected_stats, 1e-4)


def walk(steps, stats):
    """Take steps under the schedules; give the outputs and the last statistics."""
    outputs = []
    for step in steps:
        y, stats = library("renorm", batch(step), stats=stats, **SCHEDULES)
        outputs.append(y)
    return outputs, stats


def batch(step):
    """Give the batch of a step, far enough from the statistics that every limit is reached."""
    return normals(6, 3, mean=20.0, std=20.0, seed=step)


def test_schedules_move_under_jit():
    outputs, stats = walk(range(7), fresh("renorm", 3))
    assert stats["steps"] == 7
    expected = fresh("renorm", 3)
    for step, output in enumerate(outputs):
        y, expected = oracle("renorm", batch(step), stats=expected, **SCHEDULES)
        near(output, y)
    identical(walk(range(7), fresh("renorm", 3))[0], outputs)


def test_schedules_move_under_scan():
    @jax.jit
    def run(stats, batches):
        def step(stats, x):
            return jn.batch_renorm(x, stats, train=True, **SCHEDULES)[::-1]

        return jax.lax.scan(step, stats, batches)

    stats, outputs = run(fresh("renorm", 3), np.stack([batch(step) for step in range(7)]))
    expected, expected_stats = walk(range(7), fresh("renorm", 3))
    near(outputs, np.stack(expected))
    near(stats, expected_stats, 1e-4)


def test_schedules_go_on_after_a_save_and_a_load():
    expected, expected_stats = walk(range(7), fresh("renorm", 3))
    _, half = walk(range(4), fresh("renorm", 3))
    file = io.BytesIO()
    np.savez(file, **half)
    file.seek(0)
    loaded = dict(np.load(file))
    outputs, stats = walk(range(4, 7), loaded)
    identical(outputs, expected[4:])
    identical(stats, expected_stats)


def test_evaluation_does_not_count_as_a_step():
    stats = {**seen("renorm", 3), "steps": jnp.int32(5)}
    _, new = library("renorm", batch(0), stats=stats, train=False, **SCHEDULES)
    identical(new, stats)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [(default_r_max, reference.paper_r_max), (default_d_max, reference.paper_d_max)],
)
def test_the_default_schedules_are_the_papers(schedule, expected):
    steps = np.array([0, 1, 4_999, 5_000, 5_001, 20_000, 25_000, 40_000, 40_001, 2**31 - 1])
    near(schedule(jnp.asarray(steps, jnp.int32)), expected(steps), 1e-6)
