"""Where a run lies and what it leaves: config.yaml, history.json, and last of all result.json."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from omegaconf import OmegaConf

import jaxnorm
from experiments.config import Config, LocalSync
from experiments.parallel import devices
from experiments.training import Epoch

CONFIG = "config.yaml"
HISTORY = "history.json"
RESULT = "result.json"


def run_directory(config: Config) -> Path:
    """Return the directory of a run: a readable name and a digest of what determines its result.

    The study that asked for it, the places of files and the processes do not, so studies share
    their runs. The number of devices does where each measures its own examples.
    """
    determining = asdict(config)
    del determining["study"], determining["output"], determining["data"]["directory"]
    del determining["distributed"]
    if isinstance(config.sync, LocalSync):
        determining["devices"] = len(devices(config.parallel))
    digest = hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:8]
    names = (config.data.name, config.model.name, config.norm.name, f"batch{config.batch_size}")
    return Path(config.output) / "-".join((*names, digest))


def is_finished(directory: Path) -> bool:
    """Whether the run's result is there. An interrupted run has none."""
    return (directory / RESULT).exists()


def write_config(directory: Path, config: Config) -> None:
    """Write the resolved configuration, by which an unfinished run can be told."""
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / CONFIG, OmegaConf.to_yaml(OmegaConf.structured(config)))


def write_result(directory: Path, histories: Sequence[Sequence[Epoch]], seconds: float) -> None:
    """Write the history of every seed, and then the result: what each reached at its end."""
    records = [[_record(epoch) for epoch in history] for history in histories]
    result = {
        "seeds": [history[-1] for history in records],
        "seconds": round(seconds, 2),
        "device": _device(),
        "versions": _versions(),
    }
    _write(directory / HISTORY, json.dumps(records, indent=1, allow_nan=False))
    _write(directory / RESULT, json.dumps(result, indent=1, allow_nan=False))


def read_history(directory: Path) -> list[list[dict[str, Any]]]:
    """Return for each seed a record of each epoch; a value that was not finite is None."""
    return json.loads((directory / HISTORY).read_text())


def read_result(directory: Path) -> dict[str, Any]:
    """Return the last record of each seed, the seconds, the device and the versions."""
    return json.loads((directory / RESULT).read_text())


def _record(epoch: Epoch) -> dict[str, Any]:
    values = epoch._asdict()
    return {
        key: value if isinstance(value, int) else _rounded(float(value))
        for key, value in values.items()
    }


def _rounded(value: float) -> float | None:
    """JSON has no NaN, and float32 has no more digits."""
    return round(value, 6) if math.isfinite(value) else None


def _write(path: Path, text: str) -> None:
    """Write a file so that it is either there as a whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _device() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": os.cpu_count(),
    }


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        "jaxnorm": jaxnorm.__version__,
        **{package: version(package) for package in packages},
    }
