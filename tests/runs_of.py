"""Small runs for tests: configurations, and what watching them told."""

import dataclasses
from pathlib import Path

from hydra import initialize_config_dir

from experiments.config import register_schemas
from experiments.launch.run import run
from experiments.launch.study import CONFIG_DIR, grid
from experiments.runs import records
from experiments.runs.directory import run_directory

ROOT = Path(__file__).parent.parent


def composed(*overrides):
    """The one configuration of the overrides."""
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        [config] = grid(overrides)
    return config


def trained(*configs):
    """Train, and return the events that were told."""
    events = []
    run(configs, events.append)
    return events


def curves(config, seed=0):
    """Train loss and accuracy, validation loss and accuracy at every evaluation."""
    keys = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    history = records.read_history(run_directory(config), seed)
    return [[record[key] for key in keys] for record in history]


def result(config, seed=0):
    """What a seed left."""
    return records.read_result(run_directory(config), seed)


def replaced(config, **changes):
    """The configuration with other values at the top, and those of components in dicts."""
    merged = {
        key: {**getattr(config, key), **value} if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return dataclasses.replace(config, **merged)
