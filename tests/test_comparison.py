"""The verdict on made-up seeds: each word of the rule, Holm's correction, tuning, what counts."""

import numpy as np
import pytest
import run_files
from scipy import stats

from experiments.config import Contrast
from experiments.errors import ConfigError
from experiments.launch.contrast import DIRECTIONS
from experiments.reports import arms, comparison
from experiments.reports.comparison import (
    CANNOT_TELL,
    DOES_NOT_HOLD,
    HOLDS,
    OPEN,
    compare,
    verdict,
)
from experiments.reports.metrics import metric, report_metric
from experiments.reports.results import collect
from experiments.reports.verdicts import Entry, Verdict, judge, verdict_text
from experiments.runs.directory import run_directory

NOISE = np.array([-0.3, 0.2, 0.1, -0.1, 0.3, -0.2, 0.25, -0.25])  # points, of mean 0


def contrast(**changes):
    values = {"a": "norm=batch", "b": "norm=none", "metric": "test_accuracy"}
    values |= {"direction": "greater", "delta": 0.5, "unit": "points"}
    return Contrast(**(values | changes))


def arm(output, norm, accuracies, rate=0.1, validation=None, **others):
    """Write a run of a seed for each accuracy in percent, and give its configuration."""
    optimizer = {"learning_rate": rate}
    config = run_files.configuration(norm=norm, optimizer=optimizer, seeds=8, output=str(output))
    validation = accuracies if validation is None else validation
    for seed, (reached, validated) in enumerate(zip(accuracies, validation, strict=True)):
        final = run_files.result(
            seed, reached / 100, validation=validated / 100, config=config, **others
        )
        run_files.write_seed(config, final)
    return config


def reported(name, result, open_because=None):
    """Give the entry of a study."""
    return Entry(name, None, None, None, None, "", result, open_because)


def compared(output, gain, noise=NOISE, **changes):
    """Compare two arms of which a is better by `gain` points and its noise."""
    shared = 90 + np.arange(8.0) / 2  # what a seed has in common is much larger than the gain
    configs = [arm(output, "batch", shared + gain + noise), arm(output, "none", shared)]
    return compare(contrast(**changes), collect(configs))


@pytest.mark.long
def test_the_differences_are_paired_by_seed(tmp_path):
    result = compared(tmp_path, 2.0)
    np.testing.assert_allclose(result.d, 2 + NOISE)
    np.testing.assert_allclose(result.mean, 2.0)
    test = stats.ttest_1samp(2 + NOISE, 0)
    np.testing.assert_allclose(result.interval95, test.confidence_interval(0.95))
    np.testing.assert_allclose(result.interval90, test.confidence_interval(0.90))
    np.testing.assert_allclose(result.p, stats.ttest_1samp(2 + NOISE, 0.5).pvalue)
    of_a, of_b = result.levels[""]
    np.testing.assert_allclose(of_b, 90 + np.arange(8.0) / 2)
    np.testing.assert_allclose(np.subtract(of_a, of_b), result.d)


@pytest.mark.parametrize(
    ("gain", "spread", "word", "note"),
    [
        (2.0, 1, HOLDS, ""),
        (0.7, 1, CANNOT_TELL, ""),  # above delta, but not surely
        (0.0, 1, DOES_NOT_HOLD, "no difference"),
        (0.25, 0.5, DOES_NOT_HOLD, "real, but smaller than delta"),
        (-0.25, 0.5, DOES_NOT_HOLD, "reversed"),
        (0.2, 1, DOES_NOT_HOLD, ""),  # the 90 % interval lies above zero
        (-2.0, 1, DOES_NOT_HOLD, "reversed"),
        (1.0, 10, CANNOT_TELL, ""),
    ],
)
def test_the_words_of_a_claim_of_more(tmp_path, gain, spread, word, note):
    result = compared(tmp_path, gain, spread * NOISE)
    assert verdict(result, result.p) == word
    assert comparison.note(result, word) == note


@pytest.mark.parametrize(
    ("gain", "spread", "word"),
    [(0.1, 1, HOLDS), (1.0, 1, DOES_NOT_HOLD), (-1.0, 1, DOES_NOT_HOLD), (0.1, 5, CANNOT_TELL)],
)
def test_the_words_of_a_claim_of_equality(tmp_path, gain, spread, word):
    result = compared(tmp_path, gain, spread * NOISE, direction="equal")
    assert verdict(result, result.p) == word
    assert comparison.note(result, word) == ""


def test_equality_is_two_one_sided_tests():
    d = 0.1 + NOISE
    above = stats.ttest_1samp(d, -0.5, alternative="greater").pvalue
    below = stats.ttest_1samp(d, 0.5, alternative="less").pvalue
    np.testing.assert_allclose(comparison.p_value(d, 0.5, "equal"), max(above, below))


@pytest.mark.long
def test_a_correction_for_others_can_take_a_verdict_away(tmp_path):
    result = compared(tmp_path, 0.73)
    assert 0.025 < result.p < 0.05
    assert verdict(result, result.p) == HOLDS
    alone = reported("one", result)
    assert judge([alone], ["one"])["one"].word == HOLDS
    assert judge([alone], ["one"])["one"].p == pytest.approx(result.p)
    judged = judge([alone, reported("two", result)], ["one", "two"])
    assert judged["one"].p == pytest.approx(2 * result.p)
    assert judged["one"].family == 2
    assert judged["one"].word == CANNOT_TELL


@pytest.mark.long
def test_the_family_is_of_all_studies_reported_or_not(tmp_path):
    result = compared(tmp_path, 2.0)
    waiting = reported("waiting", None, "no seed is finished")
    judged = judge([reported("one", result), waiting], ["one", "waiting", "unreported"])
    assert judged["one"].p == pytest.approx(3 * result.p)
    assert judged["one"].family == 3
    assert set(judged) == {"one", "waiting"}


@pytest.mark.long
def test_a_study_that_is_no_longer_there_corrects_nothing(tmp_path):
    result = compared(tmp_path, 2.0)
    gone = reported("gone", result)
    judged = judge([reported("one", result), gone], ["one"])
    assert list(judged) == ["one"]
    assert judged["one"].p == pytest.approx(result.p)
    assert verdict_text(gone, None).startswith("no verdict: configs/study has no study")


@pytest.mark.long
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_open_comparison_gets_no_verdict_but_its_numbers(tmp_path, direction):
    result = compared(tmp_path, 2.0, direction=direction)
    entry = reported("one", result, "a seed is missing")
    judged = judge([entry, reported("two", result)], ["one", "two"])
    assert judged["one"] == (OPEN, None, 2)
    assert judged["two"].p == pytest.approx(min(1, 2 * result.p))  # the open one counts with 1
    text = verdict_text(entry, judged["one"])
    assert text.startswith("open: a seed is missing; so far mean +2.00 points")


def test_the_correction_is_holms():
    np.testing.assert_allclose(comparison.adjusted([0.01, 0.04, 0.02]), [0.03, 0.04, 0.04])
    assert comparison.adjusted([]) == []


@pytest.mark.long
def test_a_study_without_enough_seeds_is_open(tmp_path):
    configs = [arm(tmp_path, "batch", [90.0]), arm(tmp_path, "none", [91.0])]
    reason = compare(contrast(), collect(configs))
    assert reason == "1 seeds of both arms are finished, and a comparison needs two"
    entries = [reported("waiting", None, reason), reported("plain", None)]
    assert judge(entries, ["waiting"]) == {"waiting": (OPEN, None, 1)}


def test_each_arm_is_tuned_on_validation_data(tmp_path):
    seeds = np.ones(8)
    configs = [
        arm(tmp_path, "batch", 90 * seeds + NOISE, rate=0.1, validation=80 * seeds),
        arm(tmp_path, "batch", 70 * seeds, rate=1.0, validation=85 * seeds),
        arm(tmp_path, "none", 60 * seeds, rate=0.1, validation=65 * seeds),
        arm(tmp_path, "none", 95 * seeds, rate=1.0, validation=55 * seeds),
    ]
    result = compare(contrast(), collect(configs))
    np.testing.assert_allclose(result.mean, 10.0)  # 70 - 60, whatever the test data prefer
    assert result.a.chosen == "learning rate 1"
    assert [score for _, score in result.a.trials] == pytest.approx([80, 85])
    fixed = contrast(a="norm=batch optimizer.learning_rate=0.1")
    result = compare(fixed, collect(configs))
    np.testing.assert_allclose(result.mean, 30.0)
    assert result.open_because == (
        "the arms have unequal numbers of trials, 1 and 2 (give both arms as many)"
    )


@pytest.mark.parametrize("rates", [(0.1, 0.3, 1.0), (0.3, 1.0)])
def test_a_choice_at_the_end_of_a_grid_is_told(tmp_path, rates):
    seeds = np.ones(8)
    configs = [
        arm(tmp_path, norm, accuracy * seeds + NOISE, rate)
        for norm, accuracies in (("batch", (80, 90, 85)), ("none", (70, 75, 80)))
        for rate, accuracy in zip((0.1, 0.3, 1.0), accuracies, strict=True)
        if rate in rates
    ]
    *_, remark = compare(contrast(), collect(configs)).remarks
    assert remark == "norm=none: the learning rate chosen, 1, is the largest of its grid."


def test_divergence_counts_as_chance_and_is_counted(tmp_path):
    seeds = np.ones(8)
    configs = [
        arm(tmp_path, "batch", 90 * seeds),
        arm(tmp_path, "none", 10 * seeds, ended="diverged"),
    ]
    result = compare(contrast(), collect(configs))
    assert result.d == pytest.approx([80.0] * 8)
    assert result.remarks == ["norm=none: 8 of 8 seeds diverged."]
    assert (result.p, verdict(result, result.p)) == (0.0, HOLDS)  # no spread at all


def test_steps_are_compared_by_their_ratio_and_the_budget_counts(tmp_path):
    configs = [
        run_files.configuration(norm=norm, seeds=4, steps=1600, target=0.8, output=str(tmp_path))
        for norm in ("none", "batch")
    ]
    reached = {"none": (800, 400, 1600, 800), "batch": (200, 100, 200, 200)}
    for config in configs:
        for seed, step in enumerate(reached[config.norm["name"]]):
            ended = "done" if step == 1600 else "stopped"
            final = run_files.result(seed, 0.8, ended=ended, step=step, config=config)
            run_files.write_seed(config, final)
    asked = contrast(
        a="norm=none", b="norm=batch", metric="steps_to_target", unit="ratio", delta=1.5
    )
    result = compare(asked, collect(configs))
    np.testing.assert_allclose(result.d, [2, 2, 3, 2])
    np.testing.assert_allclose(result.delta, np.log2(1.5))
    np.testing.assert_allclose(result.p, stats.ttest_1samp([2, 2, 3, 2], np.log2(1.5)).pvalue)
    [remark] = result.remarks
    assert remark == (
        "norm=none: 1 of 4 seeds did not reach the target and count as the budget of 1600 steps."
    )
    assert result.text(result.mean) == f"{2**2.25:.3g}x"


def test_only_the_seeds_that_both_have_are_compared(tmp_path):
    a, b = arm(tmp_path, "batch", [90.0, 91, 92]), arm(tmp_path, "none", [80.0, 82])
    result = compare(contrast(), collect([a, b]))
    assert result.seeds == [0, 1]
    assert result.d == pytest.approx([10, 9])
    assert result.open_because == (
        "2 of 8 seeds of both arms are there; norm=batch: 0 of 1 trials are finished; "
        "norm=none: 0 of 1 trials are finished "
        "(train with: python -m experiments.train --multirun study=made_up seeds=8)"
    )


def test_eight_seeds_of_trials_alike_are_judged(tmp_path):
    assert compared(tmp_path, 2.0).open_because is None


def test_fewer_than_eight_seeds_are_open_though_no_more_were_asked_for(tmp_path):
    configs = [
        run_files.configuration(norm=norm, seeds=5, output=str(tmp_path))
        for norm in ("batch", "none")
    ]
    for config, accuracy in zip(configs, (0.9, 0.8), strict=True):
        run_files.write_run(config, accuracy + NOISE[:5] / 100)
    result = compare(contrast(), collect(configs))
    assert result.open_because.startswith("5 of 8 seeds of both arms are there (train")
    assert result.mean == pytest.approx(10)


def test_an_unfinished_trial_leaves_the_verdict_open(tmp_path):
    seeds = np.ones(8)
    configs = [
        arm(tmp_path, norm, accuracy * seeds + NOISE, rate)
        for norm, accuracy in (("batch", 90), ("none", 80))
        for rate in (0.1, 1.0)
    ]
    (run_directory(configs[3]) / "seed-4" / "result.json").unlink()
    result = compare(contrast(), collect(configs))
    assert result.open_because.startswith("norm=none: 1 of 2 trials are finished (train")


def test_a_stale_trial_leaves_the_verdict_open(tmp_path):
    shared = 80 + NOISE
    configs = [arm(tmp_path, "batch", 90 + NOISE), arm(tmp_path, "none", shared, code="other")]
    result = compare(contrast(), collect(configs))
    assert "norm=none: 1 of 1 trials are stale, made by other code" in result.open_because


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_seeds_that_all_diverged_tell_nothing(tmp_path, direction):
    chance = 10 * np.ones(8)
    configs = [arm(tmp_path, norm, chance, ended="diverged") for norm in ("batch", "none")]
    result = compare(contrast(direction=direction), collect(configs))
    assert (result.p, result.open_because) == (1.0, comparison.UNINFORMATIVE)
    assert verdict(result, result.p) == CANNOT_TELL


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_target_that_no_seed_reached_tells_nothing(tmp_path, direction):
    configs = [
        run_files.configuration(norm=norm, seeds=8, steps=200, target=0.99, output=str(tmp_path))
        for norm in ("batch", "none")
    ]
    for config, ended in zip(configs, ("done", "diverged"), strict=True):
        run_files.write_run(config, [0.5] * 8, ended=ended)
    asked = contrast(metric="steps_to_target", unit="ratio", delta=1.5, direction=direction)
    result = compare(asked, collect(configs))
    assert (result.p, result.open_because) == (1.0, comparison.UNINFORMATIVE)
    entry = reported("one", result, result.open_because)
    text = verdict_text(entry, Verdict(OPEN, None, 1))
    assert "no difference" not in text


def test_steps_need_a_target(tmp_path):
    points = collect([arm(tmp_path, "batch", [90.0, 91]), arm(tmp_path, "none", [80.0, 82])])
    with pytest.raises(ConfigError, match="'steps_to_target' needs a target, and target is null"):
        compare(contrast(metric="steps_to_target", unit="ratio", delta=1.5), points)


def test_a_loss_that_diverged_counts_as_that_of_chance(tmp_path):
    configs = [
        arm(tmp_path, "batch", 90 * np.ones(8)),
        arm(tmp_path, "none", 10 * np.ones(8), ended="diverged"),
    ]
    points = collect(configs)
    assert metric("validation_loss", points).values(points[0]) == dict.fromkeys(range(8), 0.5)
    loss = pytest.approx({n: np.log(10) for n in range(8)})
    assert metric("validation_loss", points).values(points[1]) == loss
    result = compare(contrast(metric="test_loss"), points)
    assert result.d == pytest.approx([0.5 - np.log(10)] * 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"a": "norm=layer"},
            "contrast.a is 'norm=layer', which matches no run.*norm: batch",
        ),
        ({"a": "batch"}, "matches no run"),
        ({"direction": "less"}, "study.contrast.direction is 'less'; the choices are greater"),
        ({"unit": "ratio", "delta": 0.5}, "study.contrast.delta is 0.5; give 1 or more"),
        ({"metric": "speed"}, "no result has the metric 'speed'; there are .*test_accuracy"),
    ],
)
def test_a_contrast_that_cannot_be_right_is_told(tmp_path, changes, message):
    points = collect([arm(tmp_path, "batch", [90.0, 91]), arm(tmp_path, "none", [80.0, 82])])
    with pytest.raises(ConfigError, match=message):
        compare(contrast(**changes), points)


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


def test_the_same_contrast_elsewhere_is_secondary(tmp_path):
    configs = []
    for size, gain in ((2, 5), (16, 1)):
        for norm, accuracy in (("batch", 90 + gain), ("none", 90)):
            config = run_files.configuration(norm=norm, batch_size=size, output=str(tmp_path))
            run_files.write_run(config, [accuracy / 100, (accuracy + 1) / 100, accuracy / 100])
            configs.append(config)
    points = collect(configs)
    at_two = contrast(a="norm=batch batch_size=2", b="batch_size=2 norm=none")
    rows = comparison.along(at_two, points, "batch_size")
    assert [(name, round(each.mean)) for name, each in rows] == [
        ("batch size 2", 5),
        ("batch size 16", 1),
    ]
    assert comparison.along(contrast(), points, "batch_size") == []  # over all sizes already
    assert comparison.along(at_two, points, None) == []


def test_test_data_are_looked_at_once_where_arms_are_tuned(tmp_path):
    seeds = np.ones(8)
    configs = [
        arm(tmp_path, "batch", 90 * seeds, rate=0.1, validation=80 * seeds),
        arm(tmp_path, "batch", 70 * seeds, rate=1.0, validation=85 * seeds),
        arm(tmp_path, "none", 60 * seeds, rate=0.1, validation=65 * seeds),
    ]
    points = collect(configs)
    assert compare(contrast(), points).tuned
    shown = report_metric(metric("test_accuracy", points), tuned=True, points=points)
    assert shown.label == "validation accuracy (%)"
    assert shown.summary(points[0]).mean == pytest.approx(80)
    one = contrast(a="norm=batch optimizer.learning_rate=0.1")
    assert not compare(one, points).tuned
