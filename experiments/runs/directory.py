"""Where a run lies: a readable name and a digest of what determines its result."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.config import Config, LocalSync, component
from experiments.training.parallel import num_devices

# What a run's results do not depend on: how many seeds there are, how steps and seeds are carried,
# what is saved, the places of files, the processes, the study that asked.
OF_NO_RESULT = (
    "seeds",
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
OF_NO_BATCH = ("directory", "stream", "memory")  # of the data


def identity(config: Config) -> dict[str, Any]:
    """Return what determines the result of each seed of a run.

    The number of devices does where each measures its own examples.
    """
    determining = {key: value for key, value in asdict(config).items() if key not in OF_NO_RESULT}
    determining["data"] = {k: v for k, v in config.data.items() if k not in OF_NO_BATCH}
    determining["parallel"] = {"name": config.parallel.name}
    if config.steps is not None:
        del determining["epochs"]
    if config.timed_steps is None:
        del determining["timed_steps"]
    if isinstance(config.sync, LocalSync):
        determining["devices"] = num_devices(config.parallel)
    return determining


def run_directory(config: Config) -> Path:
    """Return the directory of a run. Studies share their runs."""
    names = (config.data["name"], config.model["name"], config.norm["name"])
    return Path(config.output) / "-".join(
        (*names, f"batch{config.batch_size}", _digest(identity(config)))
    )


def program_key(config: Config) -> str:
    """Return a digest of what determines a run's compiled program: all but its numbers."""
    shared = identity(config)
    for name in component("optimizer", config.optimizer).func.NUMBERS:
        del shared["optimizer"][name]
    del shared["model"]["init_scale"]
    carried = {"per_call": config.steps_per_call, "together": config.seeds_together}
    return _digest(shared | carried)


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
