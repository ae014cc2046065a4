"""How the arms of a contrast are tuned, and what leaves a verdict open."""

import numpy as np
import pytest
import run_files
from run_files import arm, contrast, one

from experiments.reports import arms
from experiments.reports.metrics import metric, report_metric
from experiments.reports.results import collect
from experiments.runs.directory import run_directory

ALIKE = np.ones(16)  # eight that tune, and the fewest fresh ones, where nothing varies


def test_each_arm_is_tuned_on_validation_data_of_the_first_seeds(tmp_path):
    first, fresh = np.repeat([1.0, 0.0], 8), np.repeat([0.0, 1.0], 8)
    configs = [
        arm(tmp_path, "batch", 90 * ALIKE, rate=0.1, validation=80 * ALIKE),
        arm(tmp_path, "batch", 70 * ALIKE, rate=0.3, validation=85 * first + 10 * fresh),
        arm(tmp_path, "none", 60 * ALIKE, rate=0.1, validation=65 * ALIKE),
        arm(tmp_path, "none", 95 * ALIKE, rate=0.3, validation=55 * first + 99 * fresh),
    ]
    result = one(contrast(), configs)
    np.testing.assert_allclose(result.mean, 10.0)  # 70 - 60, whatever test data and others prefer
    assert result.a.chosen == "learning rate 0.3"
    assert [score for _, score in result.a.trials] == pytest.approx([80, 85])
    fixed = contrast(a="norm=batch optimizer.learning_rate=0.1")
    np.testing.assert_allclose(one(fixed, configs).mean, 30.0)


def over_rates(output, rates, batch, none):
    """Write both arms over three rates, with the accuracy of each."""
    return [
        arm(output, norm, accuracy * ALIKE, rate)
        for norm, accuracies in (("batch", batch), ("none", none))
        for rate, accuracy in zip(rates, accuracies, strict=True)
    ]


def test_a_choice_at_the_end_of_a_grid_leaves_the_verdict_open(tmp_path):
    rates = (0.1, 0.3, 1.0)
    configs = over_rates(tmp_path, rates, (80, 90, 85), (70, 75, 80))
    result = one(contrast(), configs)
    assert result.open_because == (
        "norm=none: the learning rate chosen, 1, is the largest of its grid"
    )
    assert (result.a.at_ends, result.b.at_ends) == ([], ["optimizer.learning_rate"])
    configs = over_rates(tmp_path / "other", rates, (80, 90, 85), (80, 75, 70))
    assert "0.1, is the smallest of its grid" in one(contrast(), configs).open_because
    configs = over_rates(tmp_path / "inside", rates, (80, 90, 85), (70, 75, 70))
    assert one(contrast(), configs).open_because is None


def test_zero_is_a_natural_end_of_a_grid():
    assert not arms.is_end(0.0, [0.0, 0.1, 0.3])
    assert arms.is_end(0.3, [0.0, 0.1, 0.3])
    assert not arms.is_end(0.1, [0.1])  # which is not tuned


def test_until_there_are_fresh_seeds_those_that_both_have_are_compared(tmp_path):
    a, b = arm(tmp_path, "batch", [90.0, 91, 92]), arm(tmp_path, "none", [80.0, 82])
    result = one(contrast(), [a, b])
    assert result.seeds == [0, 1]
    assert result.d == pytest.approx([10, 9])
    assert result.open_because == "2 of 8 tuning seeds of both arms are there"


def test_fewer_fresh_seeds_than_the_rule_asks_are_open(tmp_path):
    configs = [arm(tmp_path, "batch", 90 * ALIKE[:11]), arm(tmp_path, "none", 80 * ALIKE[:12])]
    result = one(contrast(), configs)
    assert result.seeds == [8, 9, 10]
    assert result.open_because == "3 of 8 fresh seeds of both arms are there"


def test_an_unfinished_trial_leaves_the_verdict_open(tmp_path):
    configs = over_rates(tmp_path, (0.1, 0.3, 1.0), (80, 90, 80), (70, 80, 70))
    (run_directory(configs[5]) / "seed-4" / "result.json").unlink()
    assert one(contrast(), configs).open_because == "norm=none: 2 of 3 trials are finished"


def test_a_stale_trial_leaves_the_verdict_open(tmp_path):
    configs = [
        arm(tmp_path, "batch", 90 * ALIKE),
        arm(tmp_path, "none", 80 * ALIKE, code="other"),
    ]
    assert "norm=none: 1 of 1 trials are stale, made by other code" in (
        one(contrast(), configs).open_because
    )


def test_overrides_pick_runs_by_value(tmp_path):
    configs = [
        run_files.configuration(model={"hidden": [10, 10]}, output=str(tmp_path)),
        run_files.configuration(model={"hidden": [20]}, optimizer={"learning_rate": 1e-5}),
    ]
    points = collect(configs)
    [found] = arms.matching("model.hidden=[10,10]", points, "a")
    assert found is points[0]
    [found] = arms.matching("optimizer.learning_rate=1e-5 model=mlp", points, "a")
    assert found is points[1]


def test_test_data_are_looked_at_once_where_arms_are_tuned(tmp_path):
    configs = over_rates(tmp_path, (0.1, 0.3, 1.0), (80, 90, 80), (70, 80, 70))
    points = collect(configs)
    assert one(contrast(), configs).tuned
    shown = report_metric(metric("test_accuracy", points), tuned=True, points=points)
    assert shown.label == "validation accuracy (%)"
    assert shown.summary(points[0]).mean == pytest.approx(80)
    fixed = [f"norm={norm} optimizer.learning_rate=0.1" for norm in ("batch", "none")]
    assert not one(contrast(a=fixed[0], b=fixed[1]), configs).tuned


def test_arms_of_unequal_numbers_of_trials_leave_the_verdict_open(tmp_path):
    configs = over_rates(tmp_path, (0.1, 0.3, 1.0), (80, 90, 80), (70, 80, 70))
    more = arm(tmp_path, "none", 60 * ALIKE, 3.0)
    assert one(contrast(), [*configs, more]).open_because == (
        "the arms have unequal numbers of trials, 3 and 4"
    )
