"""The page that says how to add a component: its examples run as they stand there."""

import importlib
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hydra import initialize_config_dir
from runs_of import result, trained

from experiments.config import register_schemas
from experiments.errors import ConfigError
from experiments.launch import validation
from experiments.launch.study import CONFIG_DIR, grid

PAGE = Path(__file__).parent.parent / "docs" / "experiments-components.md"
FILE = re.compile(r"^`(\S+)`\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
GROUPS = ("data", "models", "norms")
CHOICES = ("data=iris", "model=linear", "norm=center")


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """Overrides for a run of what the page adds, whose files are there meanwhile."""
    root = tmp_path_factory.mktemp("page")
    shutil.copytree(CONFIG_DIR, root / "configs")
    packages = [importlib.import_module(f"experiments.{group}") for group in GROUPS]
    for name, content in FILE.findall(PAGE.read_text()):
        path = root / name
        assert not Path(CONFIG_DIR, "..", name).exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    before = set(sys.modules)
    for group, package in zip(GROUPS, packages, strict=True):
        package.__path__.append(str(root / "experiments" / group))
    register_schemas()
    with (
        pytest.MonkeyPatch.context() as patch,
        initialize_config_dir(version_base="1.3", config_dir=str(root / "configs")),
    ):
        patch.setattr(validation, "CONFIG_DIR", root / "configs")
        yield *CHOICES, f"data.directory={root / 'data'}", f"output={root / 'runs'}"
    for package in packages:
        package.__path__.pop()
    for name in {"data.iris", "models.linear", "norms.center"}:
        assert f"experiments.{name}" not in before
        sys.modules.pop(f"experiments.{name}", None)


def test_the_page_adds_one_file_and_its_configuration_of_each_kind():
    names = [name for name, _ in FILE.findall(PAGE.read_text())]
    assert names == [
        "experiments/norms/center.py",
        "configs/norm/center.yaml",
        "experiments/models/linear.py",
        "configs/model/linear.yaml",
        "experiments/data/iris.py",
        "configs/data/iris.yaml",
    ]


@pytest.mark.long
def test_what_the_page_adds_is_trained(added):
    [config] = grid(
        [*added, "epochs=20", "seeds=1", "parallel=single", "optimizer.learning_rate=0.5"]
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integer steps and floats
        trained(config)
    reached = result(config, 0)
    assert reached["ended"] == "done"
    assert reached["test_accuracy"] > 0.7
    assert np.isfinite(reached["test_loss"])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("norm.share=2", "norm.share is 2.0; give a number from 0 to 1"),
        ("model.dropout=1", "model.dropout is 1.0; give a number from 0 to below 1"),
        ("data.validation=0", "data.validation is 0.0; give the fraction"),
        ("data=digits", "model=linear takes features, not [8, 8, 1]; give model=mlp"),
        ("norm.share=half", "norm.share is 'half': Value 'half' of type 'str'"),
    ],
)
def test_what_cannot_be_right_of_it_is_told(added, override, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        grid([*added, override])
