"""The studies of `configs/study`: what they are made of, and that all of them run."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from waiting import PATIENCE

from experiments.config import register_schemas
from experiments.data import mlbench
from experiments.data.glosses import Glosses
from experiments.errors import ConfigError
from experiments.launch import study as launched
from experiments.launch.contrast import DECADES, HIGHEST
from experiments.launch.study import CONFIG_DIR, composed, fallback, grid
from experiments.report import changes, claimed, studies
from experiments.reports.arms import TUNING_SEEDS
from experiments.reports.metrics import Metric
from experiments.reports.places import places
from experiments.reports.results import Point, values_of
from experiments.reports.rule import CONTRASTS
from experiments.studies import run_all

FILES = sorted(Path(CONFIG_DIR, "study").glob("*.yaml"))


NEEDS = {"text": Glosses.files[0], "input_scaling": mlbench.FOLDER}  # of Debian's packages


@pytest.fixture(autouse=True)
def hydra():
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        yield


def test_each_claim_says_what_it_is():
    for study in claimed():
        assert all(study.get(key) for key in ("question", "claim", "source", "expectation"))
        assert {"a", "b", "metric", "direction", "delta", "unit"} <= set(study.contrast)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_study_opens_with_its_cost_and_what_came_out(path):
    comment = path.read_text().partition("\n\n")[0].partition("defaults:")[0]
    for opening in ("# Shows: ", "# Costs: ", "# Came out"):
        assert re.search(f"^{opening}", comment, re.M), opening
    assert OmegaConf.load(path).study.name == path.stem


@functools.cache
def grid_of(name):
    """Give the metric of a study, and its places as its file states them."""
    configs = composed([f"study={name}"])
    points = [Point(config, Path(), values_of(config), {}) for config in configs]
    study = configs[0].study
    x = study.x if study.contrast.metric in (DECADES, HIGHEST) else None
    measured = Metric(study.contrast.metric, "", over=x)
    return measured, places(study.contrast, points, measured)


@pytest.mark.long
@pytest.mark.parametrize("study", claimed(), ids=lambda study: study.name)
def test_both_arms_have_as_many_trials_over_grids_of_three_values(study):
    measured, found = grid_of(study.name)
    assert all(place.name for place in found) or len(found) == 1
    for place in found:
        assert len(place.a.asked) == len(place.b.asked) > 0
        assert {p.config.seeds for p in (*place.a.points, *place.b.points)} == {TUNING_SEEDS}
        for tuned in (place.a, place.b):
            assert all(len(values) >= 3 for values in tuned.arm.grid.values())
            assert measured.over is None or all(len(trial) >= 3 for trial in tuned.asked)


@pytest.mark.long
def test_the_level_of_the_intervals_is_that_of_all_places():
    """The number of fresh seeds follows from it, so it is fixed before the studies run."""
    assert sum(len(grid_of(study.name)[1]) for study in claimed()) <= CONTRASTS


def contrast(**changes):
    """Give overrides that change the contrast of a study with two arms."""
    return ["study=ghost", *(f"study.contrast.{key}='{value}'" for key, value in changes.items())]


@pytest.mark.long
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (contrast(a="norm=bacth"), "study.contrast.a is 'norm=bacth', which matches no run"),
        (contrast(a="batch"), "study.contrast.a is 'batch', which matches no run"),
        (contrast(a="norm=ghost_batch", b="batch_size=4096"), "match the same run"),
        (contrast(direction="less"), "study.contrast.direction is 'less'"),
        (contrast(unit="ratio"), "study.contrast.delta is 0.5; give 1 or more"),
        (contrast(metric="test_acuracy"), "study.contrast.metric is 'test_acuracy'"),
        (contrast(metric="test_accuracy - speed"), "study.contrast.metric is 'speed'"),
        (contrast(metric="overhead"), "'overhead' needs timed_steps"),
        (contrast(metric="step_bytes"), "'step_bytes' needs step_memory; give step_memory=true"),
        (contrast(metric="fitted_accuracy"), "'fitted_accuracy' needs fitted; give fitted=true"),
        (["study=ghost", "study.secondary_seeds=0"], "study.secondary_seeds is 0; give 1 or more"),
        (["study=convergence", "target=null"], "'steps_to_target' needs a target"),
    ],
)
def test_a_contrast_that_cannot_be_right_is_told_before_training(overrides, message):
    with pytest.raises(ConfigError, match=message):
        grid(overrides)


@pytest.mark.long
def test_a_part_of_a_study_may_be_trained():
    configs = grid(["study=convergence", "norm=none"])  # the arm of norm=batch picks none of these
    assert {config.norm["name"] for config in configs} == {"none"}


def test_runs_that_no_arm_selects_have_the_secondary_seeds():
    seeds = {}
    for config in grid(["study=ghost", "study.secondary_seeds=2"]):
        compared = config.batch_size == 4096
        seeds.setdefault(compared, set()).add(config.seeds)
    assert seeds == {True: {8}, False: {2}}
    few = grid(["study=ghost", "study.secondary_seeds=2", "only_seeds=[3,5,6]"])
    assert {tuple(config.seed_numbers) for config in few} == {(3, 5, 6), (3, 5)}
    assert {config.seeds for config in grid(["study=ghost", "seeds=1"])} == {1}


def test_overrides_may_follow_the_names_of_studies():
    command = [sys.executable, "-m", "experiments.studies", "--smoke", "--only", "ghost", "seeds=x"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: seeds: Value 'x'")


def test_an_error_names_the_study():
    with pytest.raises(ConfigError, match=r"^memory: the metric 'memory_overhead' needs"):
        run_all(["ghost", "memory"], ["step_memory=false"], smoke=False)


def test_a_study_takes_the_place_of_what_stands_in_train():
    [config, *_] = composed(["study=convergence"])
    assert (config.batch_size, config.steps, config.target) == (60, 3000, 0.8)
    [config, *_] = composed(["study=convergence", "batch_size=30"])
    assert config.batch_size == 30


@pytest.mark.long
def test_runs_are_left_out_of_a_sweep():
    sweep = ["model=mlp,cnn", "norm=batch,instance", "study.without=['model=mlp norm=instance']"]
    kept = [(config.model["name"], config.norm["name"]) for config in grid(sweep)]
    assert kept == [("mlp", "batch"), ("cnn", "batch"), ("cnn", "instance")]
    with pytest.raises(ConfigError, match=r"study\.without leaves out every run"):
        grid(["norm=batch", "study.without=['norm=batch']"])


def test_each_choice_of_files_is_composed_once(monkeypatch):
    calls = []
    compose = launched.compose

    def counted(*arguments, **options):
        calls.append(arguments)
        return compose(*arguments, **options)

    monkeypatch.setattr(launched, "compose", counted)
    sweep = ["norm=batch,layer", "optimizer.learning_rate=1,2,3", "batch_size=8,16"]
    configs = composed(sweep)
    assert len(calls) <= 4  # two choices, what is swept, what it falls back to
    rates = {(config.norm["name"], config.optimizer["learning_rate"]) for config in configs}
    assert (len(configs), len(rates)) == (12, 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in studies() if name != "norms"])
def test_without_fashion_mnist_a_study_takes_the_digits_and_says_so(name, monkeypatch):
    asked = [f"study={name}"]
    assert fallback(asked) == []
    monkeypatch.setattr(launched, "DEBIAN", {Path("/nowhere"): "not-there"})
    instead = fallback(asked)
    if name in ("input_scaling", "text"):  # which have data of their own
        assert instead == []
        return
    assert instead[0] == "data=digits"
    assert changes(instead)
    assert {config.data["name"] for config in grid(asked)} == {"digits"}
    assert fallback([*asked, "data=wine"]) == []


@pytest.mark.slow
def test_every_study_runs(tmp_path):
    absent = {name for name, path in NEEDS.items() if not path.exists()}
    names = [name for name in studies() if name not in absent]
    command = [sys.executable, "-m", "experiments.studies", "--smoke", f"output={tmp_path}"]
    command += ["--only", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    pages = {path.stem.removesuffix("-changed") for path in tmp_path.glob("*.html")}
    assert pages == {*names, "index"}
    assert not re.search(r"verdict: (holds|does not hold)", done.stdout)
