"""The oracle itself: numbers worked out by hand, and Flax at an ordinary scale."""

import flax.linen as nn
import jax
import numpy as np
import pytest
import reference
from cases import chances, near, normals

pytestmark = pytest.mark.numerical

X = normals(3, 5, 8, mean=0.5)
MASK = chances(*X.shape, share=0.7)


def test_moments_worked_out_by_hand():
    x = np.array([[0.0, 0.0], [4.0, 7.0], [8.0, 9.0]])
    where = np.array([[1, 1], [1, 0], [1, 0]])
    count, mean, var = reference.moments(x, 0, where=where)
    near(np.stack([count, mean, var]), [[3, 1], [4, 0], [32 / 3, 0]])


def test_merging_worked_out_by_hand():
    zeros = reference.Moments(*(np.array([v]) for v in (4, 0.0, 0.0)))
    eight = reference.Moments(*(np.array([v]) for v in (1, 8.0, 0.0)))
    near(np.stack(reference.merge([zeros, eight])), [[5], [1.6], [10.24]])


def test_renorm_worked_out_by_hand():
    x, stats = np.array([[1.0], [5.0]]), {"mean": np.ones(1), "var": np.ones(1), "steps": 0}
    limits = {"r_max": 1.5, "d_max": 0.5, "momentum": 0.5, "epsilon": 0.0}
    y, new = reference.batch_renorm(x, stats, train=True, **limits)
    near(y, [[-1.0], [2.0]])
    near(new, {"mean": [2.0], "var": [2.5], "steps": 1})


def test_the_numeric_gradient_is_that_of_a_cube():
    x, g = normals(2, 3), normals(2, 3, seed=1)
    near(reference.gradient(lambda x: x**3, x, g), 3 * reference.widen(x) ** 2 * g, 1e-8)


PAIRS = {
    "layer": (nn.LayerNorm(), reference.layer_norm, {}),
    "layer axes": (
        nn.LayerNorm(reduction_axes=(0, 2)),
        reference.layer_norm,
        {"reduction_axes": (0, 2)},
    ),
    "rms": (nn.RMSNorm(), reference.rms_norm, {}),
    "group": (nn.GroupNorm(num_groups=4), reference.group_norm, {"num_groups": 4}),
    "instance": (nn.InstanceNorm(), reference.instance_norm, {}),
}


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize(("module", "oracle", "options"), PAIRS.values(), ids=PAIRS)
def test_the_oracle_is_flax_at_an_ordinary_scale(module, oracle, options, mask):
    module, options = module.copy(epsilon=0.1), {**options, "epsilon": 0.1}  # for few that count
    y, _ = module.init_with_output(jax.random.key(0), X, mask=mask)
    near(y, oracle(X, where=mask, **options), 1e-4)


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_batch_norm_is_flax_at_an_ordinary_scale(axis, mask):
    module = nn.BatchNorm(use_running_average=False, axis=axis, momentum=0.9)
    variables = module.init(jax.random.key(0), X)
    y, new = module.apply(variables, X, mask=mask, mutable=["batch_stats"])
    stats = variables["batch_stats"]
    options = {"train": True, "channel_axis": axis, "momentum": 0.9, "where": mask}
    expected, expected_stats = reference.batch_norm(X, stats, **options)
    near(y, expected, 1e-4)
    near(dict(new["batch_stats"]), expected_stats, 1e-4)
