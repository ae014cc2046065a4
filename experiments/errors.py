"""Errors in a configuration, and their messages."""

import math
from collections.abc import Iterator, Sequence


class ConfigError(ValueError):
    """An invalid configuration. The message names the key, the value and a solution."""


def choice(key: str, value: str, choices: Sequence[str]) -> Iterator[str]:
    """Yield a problem if a value is not one of the choices."""
    if value not in choices:
        yield f"{key} is {value!r}; the choices are {', '.join(choices)}"


def at_least(key: str, value: float, least: float) -> Iterator[str]:
    """Yield a problem if a value is not finite or is below `least`."""
    if not (math.isfinite(value) and value >= least):
        yield f"{key} is {value}; give {least} or more"


def positive(key: str, value: float) -> Iterator[str]:
    """Yield a problem if a value is not finite or not above 0."""
    if not (math.isfinite(value) and value > 0):
        yield f"{key} is {value}; give a positive number"


def fraction(key: str, value: float, *, below_one: bool = False) -> Iterator[str]:
    """Yield a problem if a value is not from 0 to 1, or is 1 where that is excluded."""
    if not (0 <= value < 1 or (value == 1 and not below_one)):
        yield f"{key} is {value}; give a number from 0 to {'below 1' if below_one else '1'}"


def divides(key: str, value: int, sizes: Sequence[int]) -> Iterator[str]:
    """Yield a problem if a value does not divide every size."""
    if value < 1 or any(size % value for size in sizes):
        common = math.gcd(*sizes)
        fitting = [str(n) for n in range(1, common + 1) if common % n == 0]
        yield f"{key} is {value}, which does not divide {sizes}; give one of {', '.join(fitting)}"
