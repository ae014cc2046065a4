"""The verdict on made-up seeds: each word of the rule, Holm's correction, what counts."""

from dataclasses import replace

import numpy as np
import pytest
import run_files
from run_files import arm, contrast, one
from scipy import stats

from experiments.errors import ConfigError
from experiments.launch.contrast import DIRECTIONS
from experiments.reports import comparison
from experiments.reports.comparison import compare
from experiments.reports.metrics import metric
from experiments.reports.results import collect
from experiments.reports.rule import (
    CANNOT_TELL,
    DOES_NOT_HOLD,
    HOLDS,
    OPEN,
    adjusted,
    fresh_seeds,
    overall,
    p_value,
)
from experiments.reports.verdicts import Entry, judge, verdict_text

NOISE = np.array([-0.3, 0.2, 0.1, -0.1, 0.3, -0.2, 0.25, -0.25])  # points, of mean 0
ALIKE = np.ones(16)  # eight that tune, and the fewest fresh ones, where nothing varies


def reported(name, places, open_because=None):
    """Give the entry of a study."""
    return Entry(name, None, None, None, None, "", "mlp on digits", places, open_because)


def compared(output, gain, noise=NOISE, **changes):
    """Compare two arms of which a is better by `gain` points and its noise."""
    asked = contrast(**changes)
    shared = 90 + np.arange(72.0) / 20  # what a seed has in common is much larger than the gain
    d = gain + np.tile(noise, 9)
    configs = [arm(output, "batch", shared + d), arm(output, "none", shared)]
    [result] = compare(asked, collect(configs))
    return result


@pytest.mark.long
def test_the_differences_are_paired_by_seed_and_of_fresh_seeds(tmp_path):
    result = compared(tmp_path, 2.0)
    n = len(result.seeds)
    assert result.seeds == list(range(8, 8 + n))
    d = 2 + np.tile(NOISE, 9)[8 : 8 + n]
    np.testing.assert_allclose(result.d, d)
    np.testing.assert_allclose(result.mean, np.mean(d))
    test = stats.ttest_1samp(d, 0)
    np.testing.assert_allclose(result.interval95, test.confidence_interval(0.95))
    np.testing.assert_allclose(result.interval90, test.confidence_interval(0.90))
    np.testing.assert_allclose(result.p, stats.ttest_1samp(d, 0.5).pvalue)
    np.testing.assert_allclose(result.spread, np.std(NOISE, ddof=1))
    np.testing.assert_allclose(result.levels["b"], 90 + np.arange(8, 8 + n) / 20)
    np.testing.assert_allclose(np.subtract(result.levels["a"], result.levels["b"]), d)


def expected_half_width(n, spread):
    return stats.t.isf(0.05 / 48 / 2, n - 1) * spread / np.sqrt(n)


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.3, 0.45])
def test_the_fresh_seeds_are_as_many_as_the_interval_needs(spread):
    n = fresh_seeds(spread, 0.5)
    assert 8 <= n < 64
    assert expected_half_width(n, spread) <= 0.25
    assert n == 8 or expected_half_width(n - 1, spread) > 0.25


def test_the_fresh_seeds_are_eight_to_sixty_four():
    assert (fresh_seeds(0.0, 0.5), fresh_seeds(100.0, 0.5)) == (8, 64)


@pytest.mark.parametrize(
    ("gain", "spread", "word", "note"),
    [
        (2.0, 1, HOLDS, ""),
        (0.55, 1, CANNOT_TELL, ""),  # above delta, but not surely
        (0.0, 1, DOES_NOT_HOLD, "no difference"),
        (0.25, 0.5, DOES_NOT_HOLD, "real, but smaller than delta"),
        (-0.25, 0.5, DOES_NOT_HOLD, "reversed"),
        (0.12, 1, DOES_NOT_HOLD, ""),  # the 90 % interval lies above zero
        (-2.0, 1, DOES_NOT_HOLD, "reversed"),
        (0.75, 5, CANNOT_TELL, ""),
    ],
)
def test_the_words_of_a_claim_of_more(tmp_path, gain, spread, word, note):
    result = compared(tmp_path, gain, spread * NOISE)
    assert result.verdict(result.p) == word
    assert comparison.note(result, word) == note


@pytest.mark.parametrize(
    ("gain", "spread", "word"),
    [(0.1, 1, HOLDS), (1.0, 1, DOES_NOT_HOLD), (-1.0, 1, DOES_NOT_HOLD), (0.4, 4, CANNOT_TELL)],
)
def test_the_words_of_a_claim_of_equality(tmp_path, gain, spread, word):
    result = compared(tmp_path, gain, spread * NOISE, direction="equal")
    assert result.verdict(result.p) == word
    assert comparison.note(result, word) == ""


@pytest.mark.parametrize(
    ("gain", "spread", "word"),
    [(0.0, 1, HOLDS), (2.0, 1, HOLDS), (-1.0, 1, DOES_NOT_HOLD), (-0.5, 1, CANNOT_TELL)],
)
def test_the_words_of_a_claim_of_no_loss(tmp_path, gain, spread, word):
    result = compared(tmp_path, gain, spread * NOISE, direction="at_least")
    np.testing.assert_allclose(result.p, stats.ttest_1samp(result.d, -0.5).pvalue)
    assert result.verdict(result.p) == word
    assert comparison.note(result, word) == ""


def test_equality_is_two_one_sided_tests():
    d = 0.1 + NOISE
    above = stats.ttest_1samp(d, -0.5, alternative="greater").pvalue
    below = stats.ttest_1samp(d, 0.5, alternative="less").pvalue
    np.testing.assert_allclose(p_value(d, [-0.5, 0.5]), max(above, below))


@pytest.mark.long
def test_a_correction_for_others_can_take_a_verdict_away(tmp_path):
    result = compared(tmp_path, 0.65).earlier
    assert 0.017 < result.p < 0.05
    alone = reported("one", [result])
    judged = judge([alone], ["one"])["one"]
    assert (judged.word, judged.family) == (HOLDS, 1)
    assert judged.places == [(HOLDS, pytest.approx(result.p))]
    judged = judge([alone, reported("two", [result, result])], ["one", "two"])["one"]
    assert judged.places == [(CANNOT_TELL, pytest.approx(3 * result.p))]
    assert (judged.word, judged.family) == (CANNOT_TELL, 3)


@pytest.mark.long
def test_the_family_is_of_all_studies_reported_or_not(tmp_path):
    result = compared(tmp_path, 2.0)
    waiting = reported("waiting", [], "no seed is finished")
    judged = judge([reported("one", [result]), waiting], ["one", "waiting", "unreported"])
    assert judged["one"].places[0].p == pytest.approx(3 * result.p)
    assert judged["one"].family == 3
    assert set(judged) == {"one", "waiting"}


@pytest.mark.long
def test_a_study_that_is_no_longer_there_corrects_nothing(tmp_path):
    result = compared(tmp_path, 2.0)
    gone = reported("gone", [result])
    judged = judge([reported("one", [result]), gone], ["one"])
    assert list(judged) == ["one"]
    assert judged["one"].places[0].p == pytest.approx(result.p)
    assert verdict_text(gone, None).startswith("no verdict: configs/study has no study")


@pytest.mark.long
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_open_comparison_gets_no_verdict_but_its_numbers(tmp_path, direction):
    result = compared(tmp_path, 2.0, direction=direction)
    entry = reported("one", [replace(result, open_because="a seed is missing")])
    judged = judge([entry, reported("two", [result])], ["one", "two"])
    assert judged["one"] == (OPEN, [(OPEN, None)], 2)
    assert judged["two"].places[0].p == pytest.approx(min(1, 2 * result.p))  # the open one has 1
    text = verdict_text(entry, judged["one"])
    assert text.startswith("open: a seed is missing; so far 9")
    assert "mean +2.0" in text


def test_a_claim_is_of_all_its_places():
    assert overall([HOLDS, HOLDS]) == HOLDS
    assert overall([HOLDS, CANNOT_TELL]) == CANNOT_TELL
    assert overall([HOLDS, CANNOT_TELL, OPEN]) == OPEN
    assert overall([OPEN, DOES_NOT_HOLD, HOLDS]) == DOES_NOT_HOLD


def test_the_correction_is_holms():
    np.testing.assert_allclose(adjusted([0.01, 0.04, 0.02]), [0.03, 0.04, 0.04])
    assert adjusted([]) == []


@pytest.mark.long
def test_a_study_without_enough_seeds_is_open(tmp_path):
    configs = [arm(tmp_path, "batch", [90.0]), arm(tmp_path, "none", [91.0])]
    reason = compare(contrast(), collect(configs))
    assert reason == "finished in both arms: 1 seed, and a comparison needs two"
    entries = [reported("waiting", [], reason), reported("plain", [])]
    assert judge(entries, ["waiting"]) == {"waiting": (OPEN, [], 1)}


def staged(output, second, third=None, spread=1):
    """Compare arms of one difference in the second stage and another one in the third."""
    n, most = fresh_seeds(spread * float(np.std(NOISE, ddof=1)), 0.5), 8 + 2 * 64
    d = second + spread * np.tile(NOISE, 17)
    if third is not None:
        d[8 + n :] += third - second
    number = 8 + n if third is None else most
    configs = [arm(output, "batch", 60 + d[:number]), arm(output, "none", np.full(number, 60.0))]
    return one(contrast(), configs), n, d


def test_a_second_stage_that_cannot_tell_calls_for_a_third(tmp_path):
    result, n, d = staged(tmp_path, 0.6)
    assert result.open_because.startswith("0 of ")
    asked = int(result.open_because.split()[2])
    second = d[8 : 8 + n]
    distance = np.mean(second) - 0.5

    def half_width(number):
        return stats.t.isf(0.05 / 48 / 2, number - 1) * np.std(second, ddof=1) / np.sqrt(number)

    assert 8 < asked <= 64
    assert asked == 64 or half_width(asked) <= distance / 2
    assert half_width(asked - 1) > distance / 2
    assert result.earlier is None
    assert result.seeds == list(range(8, 8 + n))


def test_the_third_stage_alone_decides_and_both_are_corrected_for(tmp_path):
    result, n, d = staged(tmp_path, 0.55, 0.9)
    assert result.open_because is None
    assert result.seeds == list(range(8 + n, 8 + n + len(result.seeds)))
    np.testing.assert_allclose(result.d, d[8 + n : 8 + n + len(result.seeds)])
    assert result.earlier.seeds == list(range(8, 8 + n))
    np.testing.assert_allclose(result.earlier.d, d[8 : 8 + n])
    judged = judge([reported("one", [result])], ["one", "two"])["one"]
    assert (judged.word, judged.family) == (HOLDS, 3)
    assert judged.places[0].p == pytest.approx(3 * result.p)
    assert "before" not in verdict_text(reported("one", [result]), judged)


def test_a_second_stage_that_decides_is_the_last(tmp_path):
    for gain in (2.0, -2.0):
        result, n, _ = staged(tmp_path / str(gain), gain)
        assert (result.open_because, result.earlier, len(result.seeds)) == (None, None, n)
    result, n, _ = staged(tmp_path / "most", 0.55, spread=20)
    assert (result.open_because, result.earlier, n) == (None, None, 64)


def test_several_arms_b_are_compared_one_by_one(tmp_path):
    configs = [
        arm(tmp_path, norm, accuracy * ALIKE)
        for norm, accuracy in (("batch", 90), ("layer", 88), ("none", 91))
    ]
    layer, none = compare(contrast(b="norm=layer or norm=none"), collect(configs))
    assert (layer.place, none.place) == ("against layer", "against none")
    np.testing.assert_allclose([layer.mean, none.mean], [2, -1])
    assert (layer.b.overrides, none.b.overrides) == ("norm=layer", "norm=none")


def test_divergence_counts_as_chance_and_is_counted(tmp_path):
    configs = [
        arm(tmp_path, "batch", 90 * ALIKE),
        arm(tmp_path, "none", 10 * ALIKE, ended="diverged"),
    ]
    result = one(contrast(), configs)
    assert result.d == pytest.approx([80.0] * 8)
    assert result.remarks == ["norm=none: 8 of 8 seeds diverged."]
    assert (result.p, result.verdict(result.p)) == (0.0, HOLDS)  # no spread at all


def test_seeds_that_miss_a_training_loss_are_counted(tmp_path):
    configs = [
        run_files.configuration(
            norm=norm, seeds=8, output=str(tmp_path), target=0.2, target_of="fitted_loss"
        )
        for norm in ("batch", "none")
    ]
    for config, missed in zip(configs, (0, 3), strict=True):
        for seed in range(8):
            ended = "done" if seed < missed else "stopped"
            run_files.write_seed(config, run_files.result(seed, 0.9, ended=ended, config=config))
    result = one(contrast(metric="test_loss", unit="nats"), configs)
    assert result.remarks == ["norm=none: 3 of 8 seeds did not fall to the training loss."]


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
    result = one(asked, configs)
    np.testing.assert_allclose(result.d, [2, 2, 3, 2])
    np.testing.assert_allclose(result.margin, np.log2(1.5))
    np.testing.assert_allclose(result.level_means, (100 * 2**2.25 * 2**0.75, 100 * 2**0.75))
    np.testing.assert_allclose(result.p, stats.ttest_1samp([2, 2, 3, 2], np.log2(1.5)).pvalue)
    [remark] = result.remarks
    assert remark == (
        "norm=none: 1 of 4 seeds did not reach the target and count as the budget of 1600 steps."
    )
    assert result.text(result.mean) == f"{2**2.25:.3g}x"


def test_finished_trials_inside_their_grids_are_judged(tmp_path):
    assert compared(tmp_path, 2.0).open_because is None


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_seeds_that_all_diverged_tell_nothing(tmp_path, direction):
    chance = 10 * np.ones(8)
    configs = [arm(tmp_path, norm, chance, ended="diverged") for norm in ("batch", "none")]
    result = one(contrast(direction=direction), configs)
    assert result.open_because == comparison.UNINFORMATIVE
    assert judge([reported("one", [result])], ["one"])["one"].word == OPEN


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_target_that_no_seed_reached_tells_nothing(tmp_path, direction):
    configs = [
        run_files.configuration(norm=norm, seeds=8, steps=200, target=0.99, output=str(tmp_path))
        for norm in ("batch", "none")
    ]
    for config, ended in zip(configs, ("done", "diverged"), strict=True):
        run_files.write_run(config, [0.5] * 8, ended=ended)
    asked = contrast(metric="steps_to_target", unit="ratio", delta=1.5, direction=direction)
    result = one(asked, configs)
    assert result.open_because == comparison.UNINFORMATIVE
    entry = reported("one", [result])
    assert "no difference" not in verdict_text(entry, judge([entry], ["one"])["one"])


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
    [result] = compare(contrast(metric="test_loss", unit="nats"), points)
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
