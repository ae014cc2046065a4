"""The waves in which all studies are trained: what each asks, and when they end."""

from dataclasses import replace

import pytest
import run_files

from experiments import studies
from experiments.config import Contrast, StudyConfig
from experiments.launch import stages, sweep
from experiments.training.watch import RunFailed

RATES = (0.1, 0.3, 1.0)
CONTRAST = Contrast("norm=batch", "norm=none", "test_accuracy", "greater", 0.5, "points")


@pytest.fixture(autouse=True)
def valid(monkeypatch):
    monkeypatch.setattr(stages, "validate", lambda config: None)


def study(name, output):
    """Give the grid of a study of two arms."""
    settings = StudyConfig(name=name, contrast=CONTRAST)
    return [
        run_files.configuration(
            norm=norm,
            optimizer={"learning_rate": rate},
            batch_size=32 if name == "other" else 16,
            output=str(output),
            seeds=8,
            study=settings,
        )
        for norm in ("batch", "none")
        for rate in RATES
    ]


def key(config):
    return config.norm["name"], config.optimizer["learning_rate"], config.seeds


@pytest.fixture
def waves(monkeypatch):
    """Train made-up runs, of which rate 1 is the best; give the waves, what fails, the codes."""
    asked, fails, codes = [], set(), {}

    def train(wave):
        asked.append({name: sorted(map(key, configs)) for name, configs in wave.items()})
        failures = []
        for config in (config for configs in wave.values() for config in configs):
            norm, rate, _ = key(config)
            if (norm, rate, config.batch_size) in fails:
                failures.append(RunFailed(run_files.run_directory(config).name, "it broke"))
                continue
            accuracy = 0.9 - abs(rate - 1) / 10 - 0.2 * (norm == "none")
            run_files.write_run(config, [accuracy] * config.seeds, code=codes.get(rate))
        return failures

    monkeypatch.setattr(studies, "_train", train)
    return asked, fails, codes


def test_a_study_is_trained_in_waves_until_the_rule_asks_no_more(tmp_path, waves):
    asked, _, _ = waves
    configs = {"one": study("one", tmp_path)}
    assert studies._train_in_waves(configs) == []
    grid = sorted((norm, rate, 8) for norm in ("batch", "none") for rate in RATES)
    beyond = [("batch", 3.0, 8), ("none", 3.0, 8)]
    fresh = [("batch", 1.0, 16), ("none", 1.0, 16)]
    assert asked == [{"one": grid}, {"one": beyond}, {"one": fresh}]
    assert studies._train_in_waves(configs) == []
    assert len(asked) == 3


def test_a_failure_ends_the_waves_of_its_study_alone(tmp_path, waves):
    asked, fails, _ = waves
    fails.add(("none", 3.0, 16))
    configs = {name: study(name, tmp_path) for name in ("one", "other")}
    [failure] = studies._train_in_waves(configs)
    assert failure.error == "it broke"
    assert [sorted(wave) for wave in asked] == [["one", "other"], ["one", "other"], ["other"]]


def test_what_stays_stale_ends_the_waves(tmp_path, waves):
    """A worker that starts later may import other code than this process."""
    asked, _, codes = waves
    codes[0.3] = "other"
    failures = studies._train_in_waves({"one": study("one", tmp_path)})
    assert [failure.error for failure in failures] == [studies.LEFT] * 2
    assert len(asked) == 1


@pytest.mark.parametrize("keep_stale", [False, True])
def test_a_timed_run_has_a_job_for_each_missing_or_stale_seed(tmp_path, monkeypatch, keep_stale):
    monkeypatch.setattr(sweep, "program_key", lambda config: "program")
    config = run_files.configuration(
        output=str(tmp_path), seeds=4, timed_steps=20, keep_stale=keep_stale
    )
    run_files.write_seed(config, run_files.result(0, 0.9, config=config))
    run_files.write_seed(config, run_files.result(2, 0.9, config=config, code="other"))
    jobs = sweep._jobs(config)
    assert [job.config.seeds for job in jobs] == ([2, 4] if keep_stale else [2, 3, 4])
    some = sweep._jobs(replace(config, only_seeds=[0, 1, 3]))
    assert [job.config.seed_numbers for job in some] == [[0, 1], [0, 1, 3]]
    assert all(job.alone for job in jobs)
