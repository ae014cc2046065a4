"""The runs that the rule adds to a study: extended grids, bisected ranges, fresh seeds."""

from dataclasses import replace

import numpy as np
import pytest
import run_files
from run_files import contrast

from experiments.config import StudyConfig
from experiments.errors import ConfigError
from experiments.launch import stages
from experiments.launch.stages import EXTENSIONS, next_value
from experiments.reports.comparison import compare
from experiments.reports.results import collect
from experiments.reports.rule import fresh_seeds
from experiments.runs.directory import run_directory

RATE = "optimizer.learning_rate"
NOISE = np.array([-0.3, 0.2, 0.1, -0.1, 0.3, -0.2, 0.25, -0.25])  # points, of mean 0


@pytest.fixture(autouse=True)
def valid(monkeypatch):
    """Check one option alone, as these made-up runs have few."""

    def validate(config):
        if config.model.get("dropout", 0) > 1:
            raise ConfigError("model.dropout is a share")

    monkeypatch.setattr(stages, "validate", validate)


def planned(configs):
    """Give the configurations of the planned runs."""
    return [point.config for point in stages.planned(configs)]


def run(output, norm, asked, accuracy, rate=0.1, seeds=8, ended=None, **others):
    """Write a run with one accuracy in percent, or one for each seed, and give what asks for it."""
    config = run_files.configuration(
        norm=norm,
        study=StudyConfig(name="made_up", contrast=asked, x=RATE),
        output=str(output),
        **{"seeds": seeds, "optimizer": {"learning_rate": rate, "momentum": 0.9}} | others,
    )
    accuracies = np.broadcast_to(accuracy, seeds) / 100
    ends = ["done"] * seeds if ended is None else ended
    for seed, (reached, how) in enumerate(zip(accuracies.tolist(), ends, strict=True)):
        run_files.write_seed(config, run_files.result(seed, reached, ended=how, config=config))
    return config


def over_rates(output, asked, of_batch, of_none):
    """Write both arms with an accuracy for each rate."""
    return [
        run(output, norm, asked, accuracy, rate)
        for norm, accuracies in (("batch", of_batch), ("none", of_none))
        for rate, accuracy in accuracies.items()
    ]


def added(configs, every):
    """Give the norm and the rate of the runs that are added."""
    there = {run_directory(config) for config in configs}
    new = [config for config in every if run_directory(config) not in there]
    return sorted((c.norm["name"], c.optimizer["learning_rate"]) for c in new)


def seeds_of(every):
    return {(c.norm["name"], c.optimizer["learning_rate"]): c.seeds for c in every}


# ---- grids


@pytest.mark.parametrize(
    ("grid", "following"),
    [
        ((0.03, 0.1, 0.3), 1.0),
        ((0.1, 0.3, 1.0), 3.0),
        ((1.0, 0.3, 0.1), 0.03),
        ((0.01, 0.02, 0.04), 0.08),
        ((0.004, 0.02, 0.1), 0.5),
        ((1.0, 10.0), 100.0),
        ((16, 32, 64), 128),
        ((5, 10, 25), 50),
    ],
)
def test_a_grid_goes_on_by_its_own_factors(grid, following):
    value = next_value(grid)
    assert value == pytest.approx(following, rel=1e-3)
    assert type(value) is type(following)


def test_an_end_that_one_arm_chose_extends_both(tmp_path):
    inside = {0.1: 80, 0.3: 90, 1.0: 80}
    configs = over_rates(tmp_path, contrast(), inside, {0.1: 70, 0.3: 75, 1.0: 80})
    assert added(configs, planned(configs)) == [("batch", 3.0), ("none", 3.0)]
    configs = over_rates(tmp_path / "low", contrast(), {0.1: 90, 0.3: 80, 1.0: 70}, inside)
    assert added(configs, planned(configs)) == [("batch", 0.03), ("none", 0.03)]


def test_a_grid_ends_after_its_extensions(tmp_path):
    inside, rising = {0.1: 70, 0.3: 80, 1.0: 70}, {0.1: 70, 0.3: 75, 1.0: 80}
    configs = over_rates(tmp_path, contrast(), rising, inside)
    for extension in range(1, EXTENSIONS + 1):
        every = planned(configs)
        assert len(added(configs, every)) == 2 * extension
        run(tmp_path, "batch", contrast(), 80 + extension, every[-2].optimizer["learning_rate"])
        run(tmp_path, "none", contrast(), 70, every[-1].optimizer["learning_rate"])
    every = planned(configs)
    rates = [rate for norm, rate in added(configs, every) if norm == "batch"]
    assert len(rates) == EXTENSIONS
    assert max(rates) == pytest.approx(1000.0)
    chosen = {key: seeds for key, seeds in seeds_of(every).items() if seeds > 8}
    assert {norm for norm, _ in chosen} == {"batch", "none"}


def test_an_end_goes_on_by_the_values_that_the_study_states():
    """Values in between, such as those of a bisection, change neither the factor nor the limit."""
    stated = [0.1, 1.0, 10.0]
    assert stages._beyond([*stated, 100.0, 50.0, 70.0, 84.0], stated, 100.0) == {1000.0}
    assert stages._beyond([*stated, 0.01, 0.05], stated, 0.01) == {0.001}
    assert stages._beyond([*stated, 1e6], stated, 1e6) == {1e7}
    assert stages._beyond([*stated, 1e7], stated, 1e7) == set()
    assert stages._beyond([0.0, 0.1, 0.3], [0.0, 0.1, 0.3], 0.3) == {0.9}
    assert stages._beyond([0.0, 0.3], [0.0, 0.3], 0.3) == set()  # which have no factor


def test_a_value_that_cannot_be_ends_the_grid(tmp_path):
    configs = [
        run(tmp_path, norm, contrast(), accuracy, model={"name": "mlp", "dropout": dropout})
        for norm in ("batch", "none")
        for dropout, accuracy in ((0.1, 70), (0.3, 75), (0.9, 80))
    ]
    assert added(configs, planned(configs)) == []  # 2.7 is no dropout


def test_the_arms_b_of_a_place_are_extended_like_a(tmp_path):
    asked = contrast(b="norm=layer or norm=none")
    inside, rising = {0.1: 80, 0.3: 90, 1.0: 80}, {0.1: 70, 0.3: 75, 1.0: 80}
    configs = [
        run(tmp_path, norm, asked, accuracy, rate)
        for norm, grid in (("batch", inside), ("layer", rising), ("none", inside))
        for rate, accuracy in grid.items()
    ]
    assert added(configs, planned(configs)) == [("batch", 3.0), ("layer", 3.0)]
    for norm in ("batch", "layer"):
        run(tmp_path, norm, asked, 10, 3.0)
    assert added(configs, planned(configs)) == [("batch", 3.0), ("layer", 3.0), ("none", 3.0)]


# ---- ranges


def range_runs(output, asked, highest, rates, seeds=8):
    """Write a run of each arm for each rate, which trains up to the highest of its norm."""
    return [
        run(
            output,
            norm,
            asked,
            80,
            rate,
            seeds=seeds,
            target=0.7,
            ended=["stopped" if rate <= highest[norm] else "diverged"] * seeds,
        )
        for norm in ("batch", "none")
        for rate in rates
    ]


HIGHEST = contrast(metric="highest_that_trains", unit="decades", delta=1.0)


def test_a_range_is_extended_in_the_arm_whose_end_trains(tmp_path):
    configs = range_runs(tmp_path, HIGHEST, {"batch": 10, "none": 0.5}, (0.1, 1.0, 10.0))
    assert added(configs, planned(configs)) == [("batch", 100.0)]


def test_a_trial_that_was_added_is_extended_like_the_others(tmp_path):
    """Its runs are all beyond the grid of a tuned number, and its range may go on."""
    asked = replace(HIGHEST, metric="decades_that_train")

    def run_all(momentum, trains):
        return [
            run(
                tmp_path,
                norm,
                asked,
                80,
                rate,
                target=0.7,
                ended=["stopped" if rate in trains else "diverged"] * 8,
                optimizer={"learning_rate": rate, "momentum": momentum},
            )
            for norm in ("batch", "none")
            for rate in (0.1, 1.0, 10.0, 100.0)
        ]

    configs = [*run_all(0.1, ()), *run_all(0.2, ()), *run_all(0.4, (1.0, 10.0))]
    every = planned(configs)  # momentum 0.8
    assert len(added(configs, every)) == 8
    run_all(0.8, (1.0, 10.0, 100.0))
    wanted = {(c.optimizer["momentum"], c.optimizer["learning_rate"]) for c in planned(configs)}
    assert (0.8, 1000.0) in wanted


def test_a_range_is_bisected_to_an_eighth_of_a_decade(tmp_path):
    highest = {"batch": 5.0, "none": 0.15}
    configs = range_runs(tmp_path, HIGHEST, highest, (0.1, 1.0, 10.0))
    for _ in range(10):
        every = planned(configs)
        if added(configs, every) and every[-1].seeds > 8:
            break
        for config in every:
            norm, rate = config.norm["name"], config.optimizer["learning_rate"]
            range_runs(tmp_path, HIGHEST, highest, (rate,), seeds=config.seeds)
    for norm, value in highest.items():
        rates = sorted(c.optimizer["learning_rate"] for c in every if c.norm["name"] == norm)
        below = max(rate for rate in rates if rate <= value)
        above = min(rate for rate in rates if rate > value)
        assert np.log10(above / below) <= 0.13
        assert len(rates) <= 3 + 4
    [coarse] = compare(HIGHEST, collect(configs), RATE)
    assert "a range of the learning rate ends between 1 and 10" in coarse.open_because
    for config in every:
        rate, seeds = config.optimizer["learning_rate"], config.seeds
        range_runs(tmp_path, HIGHEST, highest, (rate,), seeds=seeds)
    assert {run_directory(config) for config in planned(configs)} == set(map(run_directory, every))
    [result] = compare(HIGHEST, collect(every), RATE)
    assert (result.open_because, result.seeds) == (None, list(range(8, 16)))
    assert result.mean == pytest.approx(np.log10(5 / 0.15), abs=0.13)


def range_of_seeds(output, asked, trains):
    """Train what the rule asks for, where `trains` tells if a norm trains at a rate with a seed.

    Give the comparison, and which share of all runs have the seeds from 8 on.
    """

    def trained(config):
        norm, rate = config.norm["name"], config.optimizer["learning_rate"]
        for seed in set(config.seed_numbers) - done.get((norm, rate), set()):
            ended = "stopped" if trains(norm, rate, seed) else "diverged"
            run_files.write_seed(config, run_files.result(seed, 0.8, ended=ended, config=config))
        done[norm, rate] = set(config.seed_numbers)

    done = {}
    configs = range_runs(output, asked, {"batch": 0, "none": 0}, (0.01, 0.1, 1.0, 10.0, 100.0))
    every = configs
    while True:
        for config in every:
            trained(config)
        following = planned(configs)
        if following == every:
            break
        every = following
    [result] = compare(asked, collect(every), RATE)
    fresh = {seed for config in every for seed in config.seed_numbers if seed >= 8}
    runs = sum(len(fresh & set(config.seed_numbers)) for config in every)
    return result, runs / (len(fresh) * len(every))


@pytest.mark.long
@pytest.mark.parametrize("metric", ["highest_that_trains", "decades_that_train"])
def test_each_seed_is_trained_where_its_own_range_ends(tmp_path, metric):
    """A fresh seed that ends far from those that tune is trained until its range is known, too."""
    lowest, of_none = 0.008, 0.06
    of_batch = 5.0 * 10 ** (np.arange(80) % 8 / 10)
    of_batch[9], of_batch[10] = 0.9, 120.0

    def trains(norm, rate, seed):
        return lowest <= rate <= (of_batch[seed] if norm == "batch" else of_none)

    asked = replace(HIGHEST, metric=metric)
    result, share = range_of_seeds(tmp_path, asked, trains)
    assert result.open_because is None
    assert {9, 10} <= set(result.seeds)
    sides = 1 if asked == HIGHEST else 2
    assert share < 0.4
    from_decade = np.log10(1.0 if asked == HIGHEST else lowest)
    for level, end in zip(result.levels["a"], of_batch[result.seeds], strict=True):
        assert 0 <= np.log10(end) - from_decade - level < 0.13 * sides


# ---- stages


def test_the_chosen_runs_get_their_fresh_seeds(tmp_path):
    noisy = 90 + NOISE
    configs = [
        run(tmp_path, "batch", contrast(), accuracy, rate)
        for rate, accuracy in ((0.1, 80), (0.3, noisy), (1.0, 80))
    ]
    configs += [
        run(tmp_path, "none", contrast(), accuracy, rate)
        for rate, accuracy in ((0.1, 70), (0.3, 75), (1.0, 70))
    ]
    every = planned(configs)
    fresh = fresh_seeds(float(np.std(NOISE, ddof=1)), 0.5)
    assert fresh > 8
    assert seeds_of(every) == {
        (norm, rate): 8 + fresh if rate == 0.3 else 8
        for norm in ("batch", "none")
        for rate in (0.1, 0.3, 1.0)
    }
    run(tmp_path, "batch", contrast(), 50, 0.3, seeds=8 + fresh)  # whatever they are, it ends
    run(tmp_path, "none", contrast(), 75, 0.3, seeds=8 + fresh)
    assert set(seeds_of(planned(configs)).values()) <= {8, 8 + fresh, 16}


def test_nothing_follows_from_runs_that_are_missing_or_stale(tmp_path):
    rising = {0.1: 70, 0.3: 75, 1.0: 80}
    configs = over_rates(tmp_path, contrast(), rising, rising)
    (run_directory(configs[0]) / "seed-7" / "result.json").unlink()
    assert planned(configs) == configs
    stale = run_files.result(7, 0.7, code="other", config=configs[0])
    run_files.write_seed(configs[0], stale)
    assert planned(configs) == configs
    kept = [replace(config, keep_stale=True) for config in configs]
    assert len(planned(kept)) == 8


def test_few_seeds_or_no_contrast_have_no_further_stage(tmp_path):
    rising = {0.1: 70, 0.3: 75, 1.0: 80}
    configs = over_rates(tmp_path, contrast(), rising, rising)
    few = [replace(config, seeds=2) for config in configs]
    assert planned(few) == few
    without = [replace(c, study=replace(c.study, contrast=None)) for c in configs]
    assert planned(without) == without
