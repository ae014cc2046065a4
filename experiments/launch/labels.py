"""What tells the runs of a sweep apart."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from experiments.config import Config


def labels(configs: Sequence[Config]) -> list[str]:
    """Return for each configuration what it has another value of than the others, as overrides."""
    values = [dict(_flat(asdict(config))) for config in configs]
    keys = list(dict.fromkeys(key for each in values for key in each))
    differing = [key for key in keys if len({repr(each.get(key)) for each in values}) > 1]
    named = {key.removesuffix(".name") for key in differing if key.endswith(".name")}
    shown = [key for key in differing if key.partition(".")[0] not in named or _is_name(key)]
    return [
        " ".join(f"{key.removesuffix('.name')}={each[key]}" for key in shown if key in each)
        for each in values
    ]


def _is_name(key: str) -> bool:
    return key.endswith(".name")


def _flat(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, (*path, key))
        elif key != "_target_" and path[:1] != ("study",):
            yield ".".join((*path, key)), value
