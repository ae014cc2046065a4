"""Selects runs of a study by overrides such as "norm=batch optimizer.learning_rate=0.1"."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf

from experiments.config import Config, flat


def overridden(overrides: str) -> dict[str, Any]:
    """Return the values of overrides by key."""
    pairs = (override.split("=", 1) for override in overrides.split() if "=" in override)
    return {key: _parsed(value) for key, value in pairs}


def _parsed(value: str) -> Any:
    parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
    return tuple(parsed) if isinstance(parsed, list) else parsed


def picks(overrides: str, values: Mapping[str, Any]) -> bool:
    """Return whether the values of a run match the overrides."""
    return all(_same(values.get(key), wanted) for key, wanted in overridden(overrides).items())


def _same(value: Any, wanted: Any) -> bool:
    value = tuple(value) if isinstance(value, list) else value
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def picked(config: Config, overrides: str) -> bool:
    """Return whether the run of a configuration matches the overrides."""
    return picks(overrides, dict(flat(asdict(config))))


def kept(configs: Sequence[Config]) -> list[Config]:
    """Return the runs of a sweep without those that its study leaves out."""
    return [
        config
        for config in configs
        if not any(picked(config, overrides) for overrides in config.study.without)
    ]
