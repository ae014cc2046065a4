"""The directory of a run: its name has a digest of all that determines the result."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.config import Config, LocalSync, component
from experiments.training.parallel import num_devices

# The result of a seed does not depend on these keys: which seeds there are, how steps and seeds are
# grouped, what is saved, the paths of files, the processes, and the study.
NOT_IN_IDENTITY = (
    "seeds",
    "only_seeds",
    "steps_per_call",
    "seeds_together",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_stale",
    "output",
    "study",
    "distributed",
    "launcher",
)
DATA_NOT_IN_IDENTITY = ("directory", "stream", "memory")  # keys of the data
# Values that mean the same as their absence, so that runs keep the names from before these keys.
AS_ABSENT = {
    "timed_steps": None,
    "step_memory": False,
    "target_of": "validation_accuracy",
    "fitted": False,
    "gradients": False,
}
MODEL_AS_ABSENT = {"mlp": {"residual": False, "depth": None}, "resnet": {"residual": True}}


def determining(config: Config) -> dict[str, Any]:
    """Return the values that determine the result of each seed of a run.

    They include the number of devices if each device measures its own examples.
    """
    values = {key: value for key, value in asdict(config).items() if key not in NOT_IN_IDENTITY}
    values["data"] = {k: v for k, v in config.data.items() if k not in DATA_NOT_IN_IDENTITY}
    values["parallel"] = {"name": config.parallel.name}
    if config.steps is not None:
        del values["epochs"]
    if isinstance(config.sync, LocalSync):
        values["devices"] = num_devices(config.parallel)
    return values


def identity(config: Config) -> dict[str, Any]:
    """Return the values that the name of a run is a digest of."""
    values = _without(determining(config), AS_ABSENT)
    model = values["model"]
    return values | {"model": _without(model, MODEL_AS_ABSENT.get(model["name"], {}))}


def _without(values: dict[str, Any], absent: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in absent or v != absent[k]}


def run_directory(config: Config) -> Path:
    """Return the directory of a run. Studies can share runs."""
    names = (config.data["name"], config.model["name"], config.norm["name"])
    return Path(config.output) / "-".join(
        (*names, f"batch{config.batch_size}", _digest(identity(config)))
    )


def program_key(config: Config) -> str:
    """Return a digest of the values that determine the compiled program of a run."""
    shared = identity(config)
    for name in component("optimizer", config.optimizer).func.NUMBERS:
        del shared["optimizer"][name]
    del shared["model"]["init_scale"]
    carried = {"per_call": config.steps_per_call, "together": config.seeds_together}
    return _digest(shared | carried)


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
