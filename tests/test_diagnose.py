"""What is wrong with running statistics is found where it is caused, and nowhere else."""

import functools
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import normals
from compiled import programs
from devices import mesh
from environment import generator
from flax import nnx
from flax.core import freeze
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
import jaxnorm.nnx as jnnx
from jaxnorm.diagnosis import WIDTH
from jaxnorm.findings import FALSE_ALARM, FEW_VALUES

pytestmark = pytest.mark.numerical

BATCH, CHANNELS = 32, 3


@jax.jit
def passed(stats, batches, momentum):
    """Give the statistics after training steps on batches (steps, BATCH, CHANNELS)."""

    def step(stats, x):
        return jn.batch_norm(x, stats, train=True, momentum=momentum)[1], None

    return jax.lax.scan(step, stats, batches)[0]


def batches(steps=50, mean=3.0, std=1.0, seed=0):
    return normals(steps, BATCH, CHANNELS, mean=mean, std=std, seed=seed)


def trained(times=4, momentum=0.9, stats=None, **data):
    """Give the statistics after 50 steps, so many times."""
    stats = jn.init_batch_stats(CHANNELS) if stats is None else stats
    for seed in range(times):
        stats = passed(stats, batches(seed=seed, **data), momentum)
    return stats


def measured(stats=None, **data):
    """Give a tree that is being recomputed, after one pass."""
    tree = jn.start_recomputing(jn.init_batch_stats(CHANNELS) if stats is None else stats)
    return passed(tree, batches(seed=100, **data), 0.9)


def only(report, finding):
    """Give the one row, which is of this finding."""
    assert [row.finding for row in report.rows] == [finding]
    return report.rows[0]


def found(report):
    """Give the findings by the normalizations that have them."""
    return {(row.name, row.finding) for row in report.rows}


# No finding


def test_right_statistics_have_no_finding_and_it_says_what_was_looked_at():
    report = jn.diagnose(trained(), measured(), momentum=0.9, steps=200, batch_values=BATCH)
    assert report.rows == ()
    assert report.names == ("",)
    assert report.not_looked_at == ()
    text = " ".join(str(report).split())
    assert text == (
        "Nothing found in 1 normalization. Checked: values, dtypes, marks of freeze_stats and "
        "start_recomputing; distance from measured statistics (at least 1,600 values); "
        "convergence (momentum 0.9, 200 steps); batches of 32 values."
    )
    assert repr(report) == str(report)


def test_it_says_what_it_could_not_look_at():
    report = jn.diagnose(trained())
    assert report.rows == ()
    assert report.looked_at == ("values, dtypes, marks of freeze_stats and start_recomputing",)
    assert report.not_looked_at == (
        "distance from statistics of the present data (give measured)",
        "convergence (give momentum and steps)",
        "size of batches (give batch_values)",
    )
    assert "convergence (give steps)" in jn.diagnose(trained(), momentum=0.9).not_looked_at
    renorm = {"mean": np.ones(2), "var": np.full(2, 2.0), "steps": 9}
    two = jn.diagnose({"a": renorm, "b": ONE, "c": ONE | {"count": 9.0}})
    assert two.not_looked_at[1:3] == (
        "convergence (give momentum) of a",
        "convergence (give momentum and steps) of b",
    )


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for _ in range(2):
            x = nn.Dense(8)(x)
            self.sow("intermediates", "inputs", x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
        return nn.Dense(1)(x)


STEPS = 400


def learned():
    """Give a function that measures a network, its parameters and its statistics.

    The learning rate ends at 0, so that the statistics follow the weights.
    """
    net, x = Net(), jnp.asarray(normals(20, BATCH, 4, mean=1.0))
    y = jnp.sin(x.sum(-1, keepdims=True))

    def loss(params, stats, x, y):
        inputs = {"params": params, "batch_stats": stats}
        out, new = net.apply(inputs, x, train=True, mutable=["batch_stats", "intermediates"])
        return jnp.mean((out - y) ** 2), new

    def step(carried, number):
        params, stats = carried
        grads, new = jax.grad(loss, has_aux=True)(params, stats, x[number % 20], y[number % 20])
        rate = 0.1 * (1 - number.astype(jnp.float32) / STEPS)
        params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
        return (params, new["batch_stats"]), None

    @jax.jit
    def trained():
        variables = net.init(jax.random.key(0), x[0], train=False)
        start = variables["params"], variables["batch_stats"]
        return jax.lax.scan(step, start, jnp.arange(STEPS))[0]

    @jax.jit
    def inputs(params, stats):
        return loss(params, stats, x.reshape(-1, 4), y.reshape(-1, 1))[1]["intermediates"]

    def measured(params, stats):
        values = [np.asarray(one, np.float64) for one in inputs(params, stats)["inputs"]]
        return {
            f"BatchNorm_{i}": jn.Moments(np.full(8, len(one)), one.mean(0), one.var(0))
            for i, one in enumerate(values)
        }

    return measured, *jax.device_get(trained())


@pytest.mark.long
def test_a_model_that_has_learned_has_no_finding_and_one_whose_weights_are_others_has():
    measured, params, stats = learned()
    options = {"momentum": 0.9, "steps": STEPS, "batch_values": BATCH}
    assert jn.diagnose(stats, measured(params, stats), **options).rows == ()
    params = jax.tree.map(lambda leaf: np.float32(1.5) * leaf, params)
    report = jn.diagnose(stats, measured(params, stats), **options)
    assert ("BatchNorm_0", "variance_off") in found(report)


def test_sampling_alone_is_hardly_ever_a_finding_and_a_shift_always_is():
    """Running statistics of batches of 32, measured ones of 400 values, of 1000 normalizations."""
    draws, momentum, many = generator(5), 0.9, 1000
    mean, var = np.zeros((many, 4)), np.ones((many, 4))
    for _ in range(80):
        x = draws.normal(size=(32, many, 4))
        mean = momentum * mean + (1 - momentum) * x.mean(0)
        var = momentum * var + (1 - momentum) * x.var(0)
    x = draws.normal(size=(400, many, 4))
    of_data = jn.Moments(np.full((many, 4), 400.0), x.mean(0), x.var(0))
    by_name = {str(i): jn.Moments(*(leaf[i] for leaf in of_data)) for i in range(many)}

    def alarms(shift):
        stats = {str(i): {"mean": mean[i] + shift, "var": var[i]} for i in range(many)}
        report = jn.diagnose(stats, by_name, momentum=momentum, steps=80, batch_values=32)
        return {name for name, finding in found(report) if finding in ("mean_off", "variance_off")}

    assert len(alarms(0.0)) <= 5  # a Poisson count of mean 1 is more in one of 1,700 draws
    assert FALSE_ALARM * many == 1
    assert len(alarms(0.5)) == many


# Findings


def test_the_first_zeros_and_ones_are_told_by_their_weight():
    stats = trained(times=1, momentum=0.99)
    report = jn.diagnose(stats, measured(), momentum=0.99, steps=50)
    row = only(report, "not_converged")
    assert row.severity == "error"
    assert row.figure == pytest.approx(0.99**50)
    assert row.channels == (0, 1, 2)
    assert "After 50 steps with momentum 0.99, the initial mean 0" in row.cause
    assert "still have a weight of 61 %" in row.cause
    assert "61 % initial values" in str(report)
    # Without the number of steps, the distance is there, and not its cause.
    assert found(jn.diagnose(stats, measured(), momentum=0.99)) == {("", "mean_off")}
    assert only(jn.diagnose(stats, measured()), "mean_off").figure == pytest.approx(
        3 * 0.99**50, rel=0.1
    )


def test_a_small_weight_counts_where_the_mean_is_large():
    small = jn.diagnose(trained(times=10, momentum=0.99), momentum=0.99, steps=500)
    assert small.rows == ()
    large = jn.diagnose(trained(times=10, momentum=0.99, mean=300.0), momentum=0.99, steps=500)
    row = only(large, "not_converged")
    assert row.severity == "error"  # 300 deviations * 0.66 %
    assert row.figure == pytest.approx(0.99**500)


def test_a_momentum_of_one_keeps_the_first_values_and_one_of_zero_nothing():
    kept = {"mean": jnp.zeros(CHANNELS), "var": jnp.full(CHANNELS, 1.01)}
    row = only(jn.diagnose(kept, momentum=1.0, steps=9, batch_values=BATCH), "not_converged")
    assert row.figure == 1.0
    last = trained(times=1, momentum=0.0)
    assert jn.diagnose(last, momentum=0.0, steps=1, batch_values=BATCH).rows == ()


def test_statistics_that_contradict_the_number_of_steps_are_compared_as_they_are():
    """A variance of 0.5 cannot hold 60 % of a first 1."""
    stats = {"mean": np.full(2, 1.0), "var": np.full(2, 0.5)}
    of_data = {"mean": np.full(2, 1.0), "var": np.full(2, 0.5)}
    only(jn.diagnose(stats, of_data, momentum=0.99, steps=50), "not_converged")


def test_other_data_are_told_in_deviations():
    shift = np.array([0.0, 0.0, -1.0], np.float32)
    report = jn.diagnose(trained(), measured(mean=3.0 + shift), momentum=0.9, steps=200)
    row = only(report, "mean_off")
    assert (row.severity, row.channels, row.num_channels) == ("error", (2,), 3)
    x = batches(seed=100, mean=3.0 + shift).astype(np.float64)
    expected = (np.asarray(trained()["mean"], np.float64) - x.mean((0, 1)))[2] / x.std((0, 1))[2]
    assert row.figure == pytest.approx(expected, rel=1e-4)
    scale = np.array([1.0, 2.0, 1.0], np.float32)
    row = only(jn.diagnose(trained(), measured(std=scale)), "variance_off")
    assert (row.severity, row.channels) == ("warning", (1,))
    x = batches(seed=100, std=scale).astype(np.float64)
    expected = np.asarray(trained()["var"], np.float64)[1] / x.var((0, 1))[1]
    assert row.figure == pytest.approx(expected, rel=1e-4)


def test_the_causes_of_a_distance_are_those_that_what_is_given_leaves():
    def cause(**options):
        return jn.diagnose(trained(), measured(mean=4.0), **options).rows[0].cause

    assert cause().startswith("Possible causes: ")
    assert "have not converged (to check, give momentum and steps)" in cause()
    assert "have not converged (to check, give steps)" in cause(momentum=0.9)
    assert "batches are small or have few images (to check, give batch_values)" in cause()
    known = cause(momentum=0.9, steps=200, batch_values=BATCH)
    assert "give" not in known
    assert "few images" in known
    assert "the momentum is too small for channels that are rarely active" in known


def test_batches_that_are_not_shuffled_hide_their_variance():
    """The means of the batches alternate: no batch has the variance between them."""
    steps = np.arange(50)[:, None, None] % 2
    stats, tree = jn.init_batch_stats(CHANNELS), jn.start_recomputing(jn.init_batch_stats(CHANNELS))
    x = (batches() + 4 * steps).astype(np.float32)
    for _ in range(2):
        stats, tree = passed(stats, x, 0.9), passed(tree, x, 0.9)
    within = x.astype(np.float64).var(1).mean(0)
    row = only(jn.diagnose(stats, tree), "variance_off")
    assert row.figure == pytest.approx((within / x.var((0, 1))).min(), rel=0.2)  # of 19 batches


def test_statistics_that_nothing_updated():
    fresh = jn.init_batch_stats(2)
    for stats in (fresh, jn.init_batch_stats(2, momentum=None), jn.init_renorm_stats(2)):
        row = only(jn.diagnose(stats, momentum=0.9, steps=10), "never_updated")
        assert (row.severity, row.channels, row.figure) == ("error", (0, 1), None)
    only(
        jn.diagnose({**fresh, "mean": jnp.zeros(2)}, fresh | {"mean": jnp.ones(2)}), "never_updated"
    )
    loaded = jn.init_renorm_stats(2) | {"mean": jnp.ones(2)}
    assert only(jn.diagnose(loaded), "never_updated").severity == "note"
    half = jn.init_batch_stats(2, momentum=None, count_per_channel=True)
    half |= {"mean": jnp.array([0.0, 2.0]), "count": jnp.array([0.0, 9.0])}
    assert only(jn.diagnose(half), "never_updated").channels == (0,)


def test_what_is_not_finite():
    x = batches()
    x[3, 5, 1] = np.nan
    stats = passed(trained(), x, 0.9)
    row = only(jn.diagnose(stats, measured(), momentum=0.9, steps=250), "not_finite")
    assert (row.severity, row.channels) == ("error", (1,))
    negative = {"mean": np.zeros(2), "var": np.array([-1e-3, 2.0])}
    assert only(jn.diagnose(negative), "not_finite").channels == (0,)
    infinite = {"mean": np.zeros(1), "var": np.full(1, np.inf)}
    of_data = jn.Moments(np.full(1, 99.0), np.zeros(1), np.ones(1))
    only(jn.diagnose(infinite, of_data, momentum=0.9, steps=9), "not_finite")
    bad = passed(jn.start_recomputing(jn.init_batch_stats(CHANNELS)), x, 0.9)
    row = only(jn.diagnose(trained(), bad), "not_finite")
    assert (row.channels, "measured" in row.cause) == ((1,), True)


def test_channels_that_do_not_vary():
    std = np.array([1.0, 0.0, 1.0], np.float32)
    tree = measured(std=std)
    for report in (
        jn.diagnose(trained(times=10, std=std, momentum=0.9)),
        jn.diagnose(trained(times=10, std=std), tree),
        jn.diagnose(trained(times=4, std=std, momentum=0.97), momentum=0.97, steps=200),
    ):
        row = only(report, "constant")
        assert (row.severity, row.channels) == ("note", (1,))
    # A variance that is right by chance, momentum ** steps, is not of a constant where it varies.
    stats = {"mean": np.zeros(1), "var": np.array([0.9**10 * 1.01])}
    assert ("", "constant") not in found(jn.diagnose(stats, momentum=0.9, steps=10))


def test_an_epsilon_that_is_larger_than_the_variance():
    stats = trained(mean=0.0, std=1e-3)
    row = only(jn.diagnose(stats), "epsilon")
    assert row.severity == "note"
    var = np.asarray(stats["var"], np.float64)
    assert row.figure == pytest.approx((1e-5 / var).max())
    text = str(jn.diagnose({"mean": np.zeros(1), "var": np.full(1, 1e-8)}))
    assert "epsilon is 1,000 x the variance" in text
    assert jn.diagnose(stats, epsilon=1e-8).rows == ()


def test_values_beyond_float16():
    row = only(jn.diagnose(trained(std=1e6)), "large")
    assert row.severity == "warning"
    assert row.figure == pytest.approx(1e6, rel=0.2)


def test_batches_of_few_values():
    report = jn.diagnose({"a": trained(), "b": trained()}, batch_values=8)
    assert found(report) == {("a", "small_batch"), ("b", "small_batch")}
    assert report.rows[0].figure == pytest.approx(8**-0.5)
    assert jn.diagnose(trained(), batch_values=2).rows[0].severity == "warning"
    assert jn.diagnose(trained(), batch_values=FEW_VALUES).rows == ()
    scatter = normals(4000, 8, seed=3).mean(1).std()
    assert report.rows[0].figure == pytest.approx(scatter, rel=0.05)


@pytest.mark.parametrize("momentum", [0.9, 0.99])
def test_half_precision_loses_no_more_than_is_said(momentum):
    """Training gets stuck at a distance from the mean that is within the figure."""
    mean = stats = jn.init_batch_stats(CHANNELS) | {"mean": jnp.full(CHANNELS, 2.0)}
    for x in batches(200, mean=3.0):
        new = reference.moments(x, 0)
        mean, var = (
            jnp.asarray(momentum * np.asarray(stats[key], np.float64) + (1 - momentum) * batch)
            for key, batch in (("mean", new.mean), ("var", new.var))
        )
        stats = {"mean": mean.astype(jnp.bfloat16), "var": var.astype(jnp.bfloat16)}
    row = only(jn.diagnose(stats, momentum=momentum), "half_precision")
    assert row.severity == ("warning" if momentum == 0.99 else "note")  # of unknown training
    assert "bfloat16" in row.cause
    stuck = np.abs(np.asarray(stats["mean"], np.float64) - 3).max()
    size, lost = np.asarray(stats["mean"], np.float64).max(), 2.0**-8 / (1 - momentum)
    assert row.figure == pytest.approx(size * lost, rel=0.2)
    assert (stuck > 0.2) == (momentum == 0.99)
    assert stuck < row.figure + 0.1  # and what batches of 32 scatter


def test_half_precision_loses_no_more_than_is_measured():
    x = 3 + np.tile([[-1.0], [1.0]], (500, 2))
    exact = jn.Moments(np.full(2, 1000.0), x.mean(0), x.var(0))
    stored = {"mean": jnp.full(2, 3, jnp.bfloat16), "var": jnp.full(2, 1, jnp.bfloat16)}
    row = only(jn.diagnose(stored, exact, momentum=0.99), "half_precision")
    assert (row.severity, row.figure) == ("note", 0)
    stuck = exact._replace(mean=exact.mean + 0.9)
    off, row = jn.diagnose(stored, stuck, momentum=0.99, epsilon=0).rows
    assert (off.finding, row.finding, row.severity) == ("mean_off", "half_precision", "error")
    assert row.figure == pytest.approx(0.9)
    few = stuck._replace(count=np.array([9.0, 1000.0]))
    assert jn.diagnose(stored, few, momentum=0.999).rows[1].severity == "warning"


def test_statistics_in_the_middle_of_recomputing():
    tree = measured(trained(), mean=5.0)
    report = jn.diagnose({"norm": tree})
    assert found(report) == {("norm", "mean_off"), ("norm", "unfinished")}
    assert [row.figure for row in report.rows] == [pytest.approx(2.0, rel=0.1), 1600]
    assert jn.diagnose(jn.finish_recomputing(tree), measured(mean=5.0)).rows == ()
    row = only(jn.diagnose(measured()), "unfinished")  # beside the initial zeros and ones
    assert (row.severity, row.figure) == ("error", 1600)
    unseen = jn.start_recomputing(jn.init_batch_stats(CHANNELS))
    assert ("", "never_updated") in found(jn.diagnose(unseen))


def test_too_few_measured_values_are_not_compared():
    few = jn.Moments(np.full(CHANNELS, FEW_VALUES - 1.0), np.zeros(CHANNELS), np.ones(CHANNELS))
    row = only(jn.diagnose(trained(), few), "few_measured")
    assert (row.severity, row.figure) == ("note", FEW_VALUES - 1)
    ignored = jn.start_recomputing(trained())  # as Flax's own BatchNorm leaves it
    report = jn.diagnose(trained(), ignored)
    row = only(report, "few_measured")
    assert row.figure == 0
    assert all(cure in row.cure for cure in ("train()", "frozen=False", "replace"))
    assert report.looked_at == ("values, dtypes, marks of freeze_stats and start_recomputing",)
    assert report.not_looked_at[0] == (
        "distance from statistics of the present data (0 values measured)"
    )
    report = jn.diagnose(trained(), few._replace(count=np.array([0.0, 9.0, 99.0])))
    rows = [row for row in report.rows if row.finding == "few_measured"]
    assert [(row.figure, row.channels) for row in rows] == [(0, (0,)), (9, (1,))]
    assert "distance from measured statistics (at least 99 values)" in report.looked_at
    assert ("", "mean_off") in found(jn.diagnose(trained(), few._replace(count=np.full(3, 25.0))))


def test_frozen_statistics_are_the_cause_of_a_distance():
    frozen = jn.freeze_stats(trained())
    assert only(jn.diagnose(frozen), "frozen").severity == "note"
    off, mark = jn.diagnose(frozen, measured(mean=4.0)).rows
    assert (off.finding, mark.finding) == ("mean_off", "frozen")
    assert "frozen" in off.cause
    assert "frozen" not in jn.diagnose(trained(), measured(mean=4.0)).rows[0].cause


# Trees


@jax.jit
def one_step(x):
    """Give statistics of every kind after one step, and other entries."""
    options = {"train": True, "momentum": 0.9}
    off = {"mean": jnp.full(CHANNELS, 9.0), "var": jnp.ones(CHANNELS)}
    cumulative = jn.init_batch_stats(CHANNELS, momentum=None)
    online = jn.init_online_stats(CHANNELS)
    tree = {
        "ghost": jn.ghost_batch_norm(x, off, num_ghosts=2, **options)[1],
        "renorm": jn.batch_renorm(x, jn.init_renorm_stats(CHANNELS), **options)[1],
        "cumulative": jn.batch_norm(x, cumulative, **{**options, "momentum": None})[1],
        "online": jn.online_norm(x, online, train=True, forward_decay=0.9)[1],
        "inputs": {"fit": jn.update_input_stats(jn.init_input_stats(CHANNELS), 1e6 * x)},
        "other": {"u": jnp.ones(3), "sigma": jnp.ones(1)},
    }
    return tree, jn.moments(x + 4.0, 0), jn.moments(2e6 * x, 0)


def test_every_kind_of_statistics_is_looked_at_as_what_it_is():
    """Online statistics have steps of examples; renormalization and cumulative ones count."""
    tree, m, of_inputs = one_step(batches(1)[0])
    report = jn.diagnose(tree, momentum=0.9, steps=1000, batch_values=4)
    assert {*report.names} == {"ghost", "renorm", "cumulative", "online", "inputs/fit"}
    small = {(name, "small_batch") for name in ("ghost", "renorm", "cumulative")}
    assert found(report) == small | {("renorm", "not_converged")}
    assert report.rows[0].figure == pytest.approx(0.9)
    assert report.not_looked_at[1] == (
        "entries without a mean and a variance: other/sigma, other/u"
    )
    of_data = dict.fromkeys(("ghost", "renorm", "cumulative", "online"), m)
    report = jn.diagnose(tree, {**of_data, "inputs": {"fit": of_inputs}})
    assert {name for name, finding in found(report) if finding == "mean_off"} == {*report.names}


def test_trees_of_any_kind_give_the_same():
    stats, off = trained(), measured(mean=4.0)
    rows = jn.diagnose(stats, off, momentum=0.9, steps=200).rows
    assert len(rows) == 1

    def same(tree, of_data, path):
        report = jn.diagnose(tree, of_data, momentum=0.9, steps=200)
        assert report.rows == tuple(row._replace(name=path) for row in rows)

    same({"a": {"b": stats}}, {"a": {"b": off}}, "a/b")
    same(freeze({"a": {"b": stats}}), {"a": {"b": off}}, "a/b")
    same({"a": {"b": stats}}, freeze({"a": {"b": off["recomputed"]}}), "a/b")
    same({"a": jax.tree.map(np.asarray, stats)}, {"a": jn.Moments(**off["recomputed"])}, "a")
    same({"a": jax.device_put(stats, NamedSharding(mesh(), P()))}, {"a": off}, "a")
    boxed = {key: nn.Partitioned(value, ("features",)) for key, value in stats.items()}
    same({"a": boxed}, {"a": off}, "a")
    partly = jn.diagnose({"a": stats, "b": stats}, {"a": off}, momentum=0.9)
    assert found(partly) == {("a", "mean_off")}
    assert "distance from statistics of the present data (give measured) of b" in (
        partly.not_looked_at
    )


def test_shards_of_channels_and_several_axes():
    stats = {"mean": np.zeros((2, 8), np.float32), "var": np.ones((2, 8), np.float32)}
    stats["mean"][1, 6] = 3.0
    of_data = {"mean": np.zeros((2, 8)), "var": np.ones((2, 8)), "count": np.array([1e3, 1e3])}
    placed = jax.device_put(stats, NamedSharding(mesh(), P(None, "i")))
    row = only(jn.diagnose(placed, of_data), "mean_off")
    assert (row.channels, row.num_channels) == (((1, 6),), 16)
    assert row.figure == pytest.approx(3 / np.sqrt(1 + 1e-5))
    rows = jn.diagnose(placed, {**of_data, "count": np.array([1e3, 5.0])}).rows
    assert [(row.finding, len(row.channels)) for row in rows] == [("few_measured", 8)]


def test_complex_statistics():
    x = normals(400, CHANNELS, mean=2.0, dtype=np.complex64)
    stats = {"mean": x.mean(0), "var": x.var(0)}
    assert jn.diagnose(stats, jn.Moments(np.full(CHANNELS, 400.0), x.mean(0), x.var(0))).rows == ()
    row = only(jn.diagnose(stats, {"mean": x.mean(0) + 3j, "var": x.var(0)}), "mean_off")
    assert row.figure == pytest.approx(3 / x.std(0).min(), rel=1e-3)


ONE, WIDER = ({"mean": np.ones(width), "var": np.full(width, 2.0)} for width in (2, 3))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((nnx.BatchNorm(2, rngs=nnx.Rngs(0)),), {}, TypeError, "jaxnorm.nnx.diagnose"),
        ((nnx.state(nnx.BatchNorm(2, rngs=nnx.Rngs(0))),), {}, TypeError, "jaxnorm.nnx.diagnose"),
        (({},), {}, ValueError, "no running statistics in this tree"),
        (({"a": {"u": 1.0}},), {}, ValueError, r"only a/u; give variables\['batch_stats'\]"),
        ((ONE,), {"steps": 5}, ValueError, "give momentum too"),
        ((ONE,), {"steps": -5, "momentum": 0.9}, ValueError, "steps=-5 must be"),
        ((ONE,), {"momentum": 2.0}, ValueError, "momentum=2.0"),
        ((ONE,), {"batch_values": 1}, ValueError, "a number >= 2"),
        ((ONE,), {"epsilon": -1.0}, ValueError, "epsilon=-1.0"),
        (({"a": ONE}, {"b": ONE}), {}, ValueError, r"has statistics at \['b'\], and .* at \['a'\]"),
        ((ONE, WIDER), {}, ValueError, r"has shape \(3,\), and that of batch_stats \(2,\)"),
    ],
)
def test_what_cannot_be_looked_at_is_an_error(arguments, options, error, message):
    with pytest.raises(error, match=message):
        jn.diagnose(*arguments, **options)


def test_traced_statistics_are_an_error_and_nothing_is_compiled():
    with pytest.raises(TypeError, match="outside of jit"):
        jax.eval_shape(jn.diagnose, jn.init_batch_stats(2))
    stats, tree = trained(), measured()
    before = programs()
    jn.diagnose(stats, tree, momentum=0.9, steps=200, batch_values=8)
    assert programs() == before


def test_the_text_fits_a_terminal():
    names = [f"encoder/block_{i}/norm" for i in range(12)]
    tree = dict.fromkeys(names, trained())
    off = dict.fromkeys(names, measured(mean=np.array([4.0, 3.0, 3.0], np.float32)))
    tree["encoder/block_0/norm"] = jn.init_batch_stats(CHANNELS)
    lines = str(jn.diagnose(tree, off, momentum=0.9, steps=200, batch_values=16)).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[0] == "Findings in 12 of 12 normalizations:"
    assert lines[2].split() == ["severity", "normalization", "figure", "channels"]
    first = lines.index("mean_off")
    assert lines[first + 1].split()[:2] == ["error", "encoder/block_1/norm"]
    assert lines[first + 1].endswith("1 of 3: 0")
    assert lines[first + 11] == "... and 1 more"
    assert lines[first + 12].startswith("  cause: ")
    second = lines.index("small_batch")
    assert lines[second + 1].endswith("all 3")


def test_long_names_and_large_numbers_fit_a_terminal():
    norm = {"mean": np.full(3, 1e6), "var": np.full(3, 2e-3)}
    of_data = {"mean": np.zeros(3), "var": np.ones(3)}
    names = [f"backbone/stage_{i}/residual_block_with_a_long_name/branch/norm_{i}" for i in (1, 2)]
    text = str(jn.diagnose(dict.fromkeys(names, norm), dict.fromkeys(names, of_data)))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert re.search(r"backbone/\S+\.\.\.\S+norm_1 ", text)
    assert "mean off by 1,000,000 std" in text
    assert "e+" not in text
    assert "= 140 %" in str(jn.diagnose(norm, batch_values=2))
    alike = [f"{'a' * 40}{i}{'b' * 40}" for i in (1, 2)]  # shortened, they would be the same
    assert all(name in str(jn.diagnose(dict.fromkeys(alike, norm))) for name in alike)


@pytest.mark.long
def test_the_table_of_the_page_is_what_its_snippet_prints(capsys):
    page = (Path(__file__).parent.parent / "docs" / "diagnose.md").read_text()
    snippet = re.search(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[1]
    table = re.search(r"^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[1]
    exec(compile(snippet, "diagnose.md", "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out
    assert re.sub(r"[\d.]+", "#", printed) == re.sub(r"[\d.]+", "#", table)


# NNX


def flax_and_ours():
    """Give a model with a BatchNorm of each library."""
    rngs = nnx.Rngs(0)
    return nnx.Dict(
        ours=jnnx.BatchNorm(CHANNELS, momentum=0.9, rngs=rngs),
        flax=nnx.BatchNorm(CHANNELS, momentum=0.99, epsilon=0.1, rngs=rngs),
        inputs=jnnx.StandardizeInputs(CHANNELS),
    )


@functools.cache
def trained_model():
    model = flax_and_ours()

    @nnx.jit
    def step(model, x):
        for module in (model.ours, model.flax, model.inputs):
            module(x)

    for x in batches(50):
        step(model, x)
    return model


def test_modules_are_looked_at_with_their_own_momentum_and_epsilon():
    report = jnnx.diagnose(trained_model(), steps=50)
    assert report.names == ("flax", "inputs", "ours")
    assert found(report) == {("flax", "not_converged")}
    assert report.rows[0].figure == pytest.approx(0.99**50)
    assert "convergence (momentum 0.9, 50 steps)" in report.looked_at
    narrow = nnx.clone(trained_model())
    narrow.flax.var[...] = narrow.ours.var[...] = jnp.full(CHANNELS, 0.05)
    assert found(jnnx.diagnose(narrow)) == {("flax", "epsilon")}


def test_the_measured_statistics_of_a_model_are_those_of_a_copy():
    model = trained_model()
    copy = nnx.clone(model)
    with pytest.warns(UserWarning, match="does not affect"):
        jnnx.start_recomputing(copy)
    step = nnx.jit(lambda norm, x: norm(x))
    for x in batches(4, mean=5.0, seed=9):
        step(copy.ours, x)
    x = batches(4, mean=5.0, seed=9).astype(np.float64)
    distance = (x.mean((0, 1)) - np.asarray(model.ours.mean)) / x.std((0, 1))
    trees = copy, nnx.state(copy, nnx.BatchStat), nnx.to_pure_dict(nnx.state(copy, nnx.BatchStat))
    reports = [jnnx.diagnose(model, of_data) for of_data in trees]
    assert found(reports[0]) == {("ours", "mean_off")}
    assert reports[0].rows[0].figure == pytest.approx(distance.max(), rel=1e-4)
    assert all(str(report) == str(reports[0]) for report in reports)
    assert found(jnnx.diagnose(copy)) == {("ours", "mean_off"), ("ours", "unfinished")}
    given = jnnx.diagnose(model, {"ours": jn.Moments(*(np.full(3, one) for one in (99, 5, 1)))})
    assert found(given) == {("ours", "mean_off")}
    assert "convergence (give steps) of flax, ours" in given.not_looked_at
    in_a_list = nnx.Sequential(lambda x: x, model.ours)
    moments = jn.Moments(*(np.full(3, one) for one in (99, 5, 1)))
    assert found(jnnx.diagnose(in_a_list, {"layers/1": moments})) == {("layers/1", "mean_off")}


def test_marks_and_errors_of_models():
    model = nnx.clone(trained_model())
    with pytest.warns(UserWarning, match="does not affect"):
        jnnx.freeze_stats(model)
    assert found(jnnx.diagnose(model)) == {("ours", "frozen"), ("inputs", "frozen")}
    fresh = nnx.Dict(
        norm=jnnx.BatchRenorm(2, rngs=nnx.Rngs(0)), online=jnnx.OnlineNorm(2, rngs=nnx.Rngs(0))
    )
    assert found(jnnx.diagnose(fresh)) == {("norm", "never_updated"), ("online", "never_updated")}
    with pytest.raises(ValueError, match="no running statistics in this model"):
        jnnx.diagnose(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
