"""The files of a run: config.yaml, and for each seed history.jsonl and then result.json."""

import functools
import json
import math
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from omegaconf import OmegaConf

import jaxnorm
from experiments.config import GROUPS, Config
from experiments.errors import ConfigError
from experiments.runs.code import made_from

CONFIG = "config.yaml"
HISTORY = "history.jsonl"
RESULT = "result.json"


def seed_directory(directory: Path, seed: int) -> Path:
    """Return the directory of a seed."""
    return directory / f"seed-{seed}"


def existing_seeds(directory: Path) -> list[int]:
    """Return the seeds that have started."""
    return sorted(int(path.name.removeprefix("seed-")) for path in directory.glob("seed-*"))


def finished(directory: Path, seed: int) -> bool:
    """Return whether a seed has a result. An interrupted seed has none."""
    return (seed_directory(directory, seed) / RESULT).exists()


def is_stale(result: dict[str, Any], today: dict[str, str]) -> bool:
    """Return whether the code or the data have changed since a result was made.

    Args:
        today: `made_from` of the configuration of the run, which takes a while.
    """
    return any(result.get(key) != digest for key, digest in today.items())


def write_config(directory: Path, config: Config) -> None:
    """Write the resolved configuration."""
    _write(directory / CONFIG, OmegaConf.to_yaml(OmegaConf.structured(config)))


def read_config(directory: Path) -> Config:
    """Return the configuration of a run."""
    written = OmegaConf.load(directory / CONFIG)
    schema = OmegaConf.structured(Config)
    for group, types in GROUPS.items():
        schema[group] = OmegaConf.structured(types[written[group].name])
    config = OmegaConf.to_object(OmegaConf.merge(schema, written))
    assert isinstance(config, Config)
    return config


def read_history(directory: Path, seed: int) -> list[dict[str, Any]]:
    """Return a record of each evaluation. A value that was not finite is None."""
    path = seed_directory(directory, seed) / HISTORY
    if not path.exists():
        return []
    complete = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in complete]


def cut_history(directory: Path, seed: int, step: int) -> list[dict[str, Any]]:
    """Remove the records after a step from which a seed resumes, and return the others."""
    kept = [record for record in read_history(directory, seed) if record["step"] <= step]
    lines = [json.dumps(record, allow_nan=False) + "\n" for record in kept]
    _write(seed_directory(directory, seed) / HISTORY, "".join(lines))
    return kept


def add_to_history(directory: Path, seed: int, record: dict[str, Any]) -> None:
    """Append the record of an evaluation."""
    with (seed_directory(directory, seed) / HISTORY).open("a") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def write_result(directory: Path, seed: int, config: Config, result: dict[str, Any]) -> None:
    """Write the result of a seed, with the device, the versions and the code."""
    made_by = {"device": _device(), "versions": _versions(), **made_from(config)}
    text = json.dumps(finite(result) | made_by, indent=1, allow_nan=False)
    _write(seed_directory(directory, seed) / RESULT, text)


def read_result(directory: Path, seed: int) -> dict[str, Any] | None:
    """Return the result of a seed with device, versions and code, or None without a result.

    Raises:
        ConfigError: the file is damaged.
    """
    path = seed_directory(directory, seed) / RESULT
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(
            f"{path} is damaged ({error}); delete it to train the seed again"
        ) from error


def finite(values: Any) -> Any:
    """Convert numbers in dicts and lists for JSON: one that is not finite becomes None."""
    if isinstance(values, dict):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    if isinstance(values, float):
        return float(f"{values:.9g}") if math.isfinite(values) else None
    return values


def _write(path: Path, text: str) -> None:
    """Write a file atomically."""
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
        "cores": _cores(),
    }


def _cores() -> int | None:
    """Return how many cores this process may use. XLA splits a sum among that many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@functools.cache
def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "python": platform.python_version(),
        "jaxnorm": jaxnorm.__version__,
        **{package: version(package) for package in packages},
    }
