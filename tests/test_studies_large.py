"""The studies for a GPU: they are run by name only, and vmap over seeds changes no result."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from experiments.config import register_schemas
from experiments.launch.run import run
from experiments.launch.study import CONFIG_DIR, composed, grid
from experiments.report import changes, claimed, family, studies
from experiments.reports.metrics import Metric
from experiments.reports.places import places
from experiments.reports.results import Point, values_of
from experiments.runs import records
from experiments.runs.directory import run_directory

NAMES = studies("large/*.yaml")
HEADERS = {
    name: Path(CONFIG_DIR, "study", f"{name}.yaml").read_text().partition("defaults:")[0]
    for name in NAMES
}
TRIED = {name: re.search("^# Try: (.*)$", text, re.M)[1] for name, text in HEADERS.items()}
TINY = {
    "large/resnet": ["norm=ghost/2,ghost/32", "optimizer.learning_rate=0.1", "model.width=4"],
    "large/depth": ["model.depth=8", "optimizer.learning_rate=0.1"],
    "large/glosses": ["norm=layer,batch", "model=small/lstm", "optimizer.learning_rate=0.001"],
}


@pytest.fixture(autouse=True)
def hydra():
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        yield


def test_large_studies_are_a_family_of_their_own():
    assert set(NAMES) == {"large/depth", "large/glosses", "large/resnet"}
    assert not set(NAMES) & {*studies(), *(study.name for study in claimed())}
    assert family("large") == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_large_study_says_what_it_costs_and_how_to_try_it(name):
    for opening in ("# Shows: ", "# Costs: ", "# Try: ", "# Came out: "):
        assert re.search(f"^{opening}", HEADERS[name], re.M), opening
    assert f"--only {name} " in TRIED[name]
    assert OmegaConf.load(Path(CONFIG_DIR, "study", f"{name}.yaml")).study.name == name


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_both_arms_of_a_large_study_have_three_trials_of_eight_seeds(name):
    configs = composed([f"study={name}"])
    assert {config.seeds for config in configs} == {8}
    points = [Point(config, Path(), values_of(config), {}) for config in configs]
    for place in places(configs[0].study.contrast, points, Metric("test_accuracy", "")):
        assert len(place.a.asked) == len(place.b.asked) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_seeds_trained_together_have_the_results_of_single_ones(name, tmp_path):
    tried = [word for word in TRIED[name].split() if "=" in word]
    assert changes(tried)
    smaller = ["seeds=2", "steps=3", "data.examples=384", "steps_per_call=3", "fitted=true"]
    configs = grid([f"study={name}", *tried, *smaller, *TINY[name]])
    assert len(configs) == 2
    for config in configs:
        both = []
        for together in (True, False):
            own = dataclasses.replace(
                config, seeds_together=together, output=str(tmp_path / str(together))
            )
            with jax.numpy_dtype_promotion("standard"):
                run([own], lambda event: None)
            both.append([records.read_result(run_directory(own), seed) for seed in range(2)])
        for together, single in zip(*both, strict=True):
            for key in ("train_loss", "validation_loss", "test_loss", "fitted_loss"):
                np.testing.assert_allclose(together[key], single[key], rtol=2e-5, err_msg=key)
        assert both[0][0]["test_loss"] != both[0][1]["test_loss"]
