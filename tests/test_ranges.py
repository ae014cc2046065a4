"""Numbers that several runs, or a whole history, make together; contrasts at several places."""

from dataclasses import replace

import numpy as np
import pytest
import run_files

from experiments.config import Contrast
from experiments.errors import ConfigError
from experiments.reports.comparison import UNINFORMATIVE, compare
from experiments.reports.metrics import input_shift, metric, report_metric
from experiments.reports.ranges import middle, wide_gaps
from experiments.reports.results import collect

X = "optimizer.learning_rate"
RATES = (0.01, 0.1, 1.0, 10.0)


def contrast(**changes):
    values = {"a": "norm=batch", "b": "norm=none", "metric": "highest_that_trains"}
    values |= {"direction": "greater", "delta": 1.0, "unit": "decades"}
    return Contrast(**(values | changes))


def runs_over_rates(output, norm, training, momentum=0.9):
    """Write a run for each rate, whose seeds reach the target where `training` has the rate."""
    configs = []
    for rate in RATES:
        config = run_files.configuration(
            norm=norm,
            optimizer={"learning_rate": rate, "momentum": momentum},
            seeds=len(training),
            target=0.7,
            output=str(output),
        )
        for seed, rates in enumerate(training):
            ended = "stopped" if rate in rates else "diverged"
            run_files.write_seed(config, run_files.result(seed, 0.5, ended=ended, config=config))
        configs.append(config)
    return configs


def test_the_highest_that_trains_is_compared_in_decades(tmp_path):
    batch = runs_over_rates(tmp_path, "batch", [(0.1, 1.0), (0.1, 10.0)])
    none = runs_over_rates(tmp_path, "none", [(0.1,), ()])
    [result] = compare(contrast(), collect(batch + none), X)
    np.testing.assert_allclose(result.d, [1, 1 - -2.5])  # none: half a decade below the grid
    assert result.text(result.mean) == "+2.25 decades"
    assert (
        "norm=batch: seeds train at the end of the grid of the learning rate, 10"
        in result.open_because
    )
    assert "norm=none: a range of the learning rate ends between 0.1 and 1" in result.open_because
    assert "norm=none: seeds train at the end" not in result.open_because
    assert result.remarks == [
        "norm=none: 1 of 2 seeds train at no learning rate of the grid and count as half a decade "
        "below the grid."
    ]


def test_decades_that_train_are_from_the_lowest_to_the_highest(tmp_path):
    batch = runs_over_rates(tmp_path, "batch", [(0.01, 0.1, 10.0), RATES])
    none = runs_over_rates(tmp_path, "none", [(0.1,), ()])
    [result] = compare(contrast(metric="decades_that_train"), collect(batch + none), X)
    np.testing.assert_allclose(result.d, [3 - 0, 3 - 0])
    assert "end of the grid of the learning rate, 0.01" in result.open_because
    assert result.remarks == [
        "norm=none: 1 of 2 seeds train at no learning rate of the grid and count as no decade."
    ]


def test_a_range_ends_in_a_gap_that_is_bisected(tmp_path):
    """Of every seed, and at the lower end if that counts; an eighth of a decade is fine enough."""
    points = collect(runs_over_rates(tmp_path, "batch", [(0.1,), (0.1, 1.0), (1.0, 10.0), ()]))
    highest = metric("highest_that_trains", points, X)
    decades = metric("decades_that_train", points, X)
    assert wide_gaps(highest, points) == [(0.1, 1.0), (1.0, 10.0)]
    assert wide_gaps(decades, points) == [(0.01, 0.1), (0.1, 1.0), (1.0, 10.0)]
    assert middle(0.1, 1.0) == 0.316
    fine = replace(points[2], values=points[2].values | {X: 0.13})
    assert wide_gaps(highest, [*points[:2], fine]) == []
    depths = [replace(p, values=p.values | {X: n + 1}) for n, p in enumerate(points)]
    assert wide_gaps(decades, depths) == []  # there is nothing between integers


def test_other_keys_that_are_swept_make_trials_of_ranges(tmp_path):
    slow = runs_over_rates(tmp_path, "batch", [(0.1,), (0.1,)], momentum=0.0)
    fast = runs_over_rates(tmp_path, "batch", [(1.0,), (10.0,)], momentum=0.9)
    none = runs_over_rates(tmp_path, "none", [(0.1,), (0.1,)], momentum=0.0)
    [result] = compare(contrast(), collect([*slow, *fast, *none]), X)
    assert result.a.trials == [("momentum 0", -1.0), ("momentum 0.9", 0.5)]
    assert result.a.chosen == "momentum 0.9"
    np.testing.assert_allclose(result.d, [1, 2])


@pytest.mark.long
def test_a_range_over_which_nothing_trains_tells_nothing(tmp_path):
    configs = [c for norm in ("batch", "none") for c in runs_over_rates(tmp_path, norm, [()] * 8)]
    [result] = compare(contrast(), collect(configs), X)
    assert result.open_because == UNINFORMATIVE


@pytest.mark.parametrize("over", [None, "norm", "batch_size"])
def test_a_range_needs_a_key_that_is_swept_over_numbers(tmp_path, over):
    points = collect(runs_over_rates(tmp_path, "batch", [(0.1,)]))
    with pytest.raises(ConfigError, match="needs a key that is swept over positive numbers"):
        metric("decades_that_train", points, over)


def at_two_places(output, gains, **changes):
    """Write both arms of 8 seeds for two models, a better by `gains`."""
    configs = []
    for hidden, gain in zip(([10], [20]), gains, strict=True):
        for norm, above in (("batch", gain), ("none", 0)):
            config = run_files.configuration(
                norm=norm, model={"hidden": hidden}, seeds=8, output=str(output)
            )
            run_files.write_run(config, (90 + above + np.arange(8) / 10) / 100)
            configs.append(config)
    asked = contrast(metric="test_accuracy", unit="points", delta=0.5, each=["model.hidden"])
    return asked, collect(configs)


def test_every_place_is_tuned_and_compared(tmp_path):
    asked, points = at_two_places(tmp_path, (1.0, 4.0))
    ten, twenty = compare(asked, points)
    assert (ten.place, twenty.place) == ("hidden 10", "hidden 20")
    np.testing.assert_allclose(ten.d, [1.0] * 8)
    np.testing.assert_allclose(twenty.d, [4.0] * 8)
    assert (ten.tuned, ten.open_because) == (False, "0 of 8 fresh seeds of both arms are there")


def test_places_that_one_arm_lacks_are_left_out(tmp_path):
    asked, points = at_two_places(tmp_path, (1.0, 4.0))
    kept = [p for p in points if p.values["norm"] != "none" or p is points[1]]
    [result] = compare(asked, kept)
    assert result.place == "hidden 10"
    np.testing.assert_allclose(result.d, [1.0] * 8)


def test_the_share_near_the_best_is_of_the_whole_grid(tmp_path):
    configs = []
    for norm, accuracies in (("batch", (90, 89, 88.5, 70)), ("none", (80, 77, 76, 10))):
        for rate, accuracy in zip(RATES, accuracies, strict=True):
            config = run_files.configuration(
                norm=norm, optimizer={"learning_rate": rate}, seeds=2, output=str(tmp_path)
            )
            run_files.write_run(config, [accuracy / 100] * 2)
            configs.append(config)
    asked = contrast(metric="share_near_best", unit="points", delta=10.0)
    [result] = compare(asked, collect(configs))
    np.testing.assert_allclose(result.levels["a"], [75, 75])
    np.testing.assert_allclose(result.levels["b"], [25, 25])
    assert (result.a.chosen, result.a.at_ends) == ("the whole grid", [])


def test_a_difference_of_numbers_is_a_metric(tmp_path):
    config = run_files.configuration(output=str(tmp_path), seeds=1)
    final = run_files.result(0, 0.8, config=config) | {"fitted_accuracy": 0.95}
    run_files.write_seed(config, final)
    points = collect([config])
    gap = metric("fitted_accuracy - test_accuracy", points)
    assert gap.values(points[0]) == {0: pytest.approx(15.0)}
    assert gap.label == "fitted accuracy - test accuracy (points)"
    shown = report_metric(gap, tuned=True, points=points)
    assert shown.key == "fitted_accuracy - validation_accuracy"
    with pytest.raises(ConfigError, match="no result has the metric 'fit'"):
        metric("fit - test_accuracy", points)


def test_the_shift_is_of_one_unit_in_units_of_its_spread():
    units = ([-2, -1, 0, 1, 2], [-2, -1, 1, 1, 2], [-2, -1, 0, 1, 2])
    history = [{"quantiles": {"first": {}, "last": {"unit": unit}}} for unit in units]
    assert input_shift(history) == pytest.approx((1 / 3) / 2)  # one quantile of three moves by 1
    assert input_shift(history[:1]) is None
    assert input_shift([{"quantiles": {"last": {"unit": [None] * 5}}}] * 2) is None
