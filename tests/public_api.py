"""The public interface: `python tests/public_api.py > tests/public_api.txt` writes the list.

docs/api-policy.md says what is public. A line is a function, a class, a method, an argument with
its default, or a variable or an entry of statistics with its dtype.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

MODULES = ("jaxnorm", "jaxnorm.interop", "jaxnorm.linen", "jaxnorm.nnx")
CHANNELS = 32
GIVEN = {"use_running_average": True, "num_ghosts": 1}  # without which a module does not run
REQUIRED = {"num_features": CHANNELS, "dtype": jnp.float32, "rngs": nnx.Rngs(0)}


def public_names(module: ModuleType) -> list[str]:
    """The functions and the classes of `__all__`."""
    values = {name: getattr(module, name) for name in module.__all__}
    return sorted(
        name for name, value in values.items() if inspect.isroutine(value) or inspect.isclass(value)
    )


def default(value: Any) -> str:
    """A default as text that no run changes: functions and types by their names."""
    text = getattr(value, "__name__", None) or repr(value)
    assert " at 0x" not in text, f"a default without a name: {text}"
    return f"={text}"


def arguments(function: Any, leave_out: frozenset[str] = frozenset()) -> Iterator[str]:
    """A line for each argument, a lone * before those that are keywords alone."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    starred = False
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self" or name in leave_out:
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            yield "*"
        starred |= parameter.kind in (
            inspect.Parameter.KEYWORD_ONLY,
            inspect.Parameter.VAR_POSITIONAL,
        )
        has_default = parameter.default is not inspect.Parameter.empty
        yield (
            stars.get(parameter.kind, "")
            + name
            + (default(parameter.default) if has_default else "")
        )


def methods(cls: type) -> list[str]:
    """`__call__` and the methods without an underscore that jaxnorm defines."""
    names = {
        name
        for base in cls.__mro__
        if base.__module__.startswith("jaxnorm")
        for name, value in vars(base).items()
        if inspect.isfunction(value)
        and value.__qualname__ == f"{base.__qualname__}.{name}"  # no function as a field's default
        and (name == "__call__" or not name.startswith("_"))
    }
    return sorted(names)


def constructor(cls: type) -> Iterator[str]:
    """The arguments of a class; Linen's own `parent` and `name` are Flax's."""
    if issubclass(cls, tuple):
        return arguments(cls.__new__, frozenset({"_cls"}))
    flax_own = frozenset({"parent", "name"}) if issubclass(cls, nn.Module) else frozenset()
    return arguments(cls.__init__, flax_own)


def entries(tree: Any) -> Iterator[str]:
    """A line for each leaf: its keys and its dtype."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        yield f"{keys}: {leaf.dtype}"


def variables(cls: type) -> Iterator[str]:
    """The variables that a module makes, by their collections or their kinds."""
    parameters = inspect.signature(cls.__init__).parameters
    required = {name for name, one in parameters.items() if one.default is inspect.Parameter.empty}
    needed = {name: GIVEN[name] for name in GIVEN.keys() & parameters}
    needed |= {name: REQUIRED[name] for name in REQUIRED.keys() & required}
    if issubclass(cls, nn.Module):
        x = jnp.ones((2, 3, CHANNELS))
        yield from entries(cls(**needed).init(jax.random.key(0), x))
    elif issubclass(cls, nnx.Module):
        for path, variable in nnx.to_flat_state(nnx.state(cls(**needed))):
            kind, name = type(variable).__name__, "/".join(map(str, path))
            yield f"{kind}/{name}: {variable.get_value().dtype}"


def indented(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield title
    yield from (f"    {line}" for line in lines)


def described(title: str, value: Any) -> Iterator[str]:
    """The lines of a function or of a class."""
    if not inspect.isclass(value):
        yield from indented(title, arguments(value))
        if value.__name__.startswith("init_") and value.__name__.endswith("_stats"):
            yield from indented(f"{title}: entries", entries(value(CHANNELS)))
            if "momentum" in inspect.signature(value).parameters:
                cumulative = entries(value(CHANNELS, momentum=None))
                yield from indented(f"{title}: entries with momentum=None", cumulative)
        return
    yield from indented(title, constructor(value))
    for method in methods(value):
        yield from indented(f"{title}.{method}", arguments(getattr(value, method)))
    if made := sorted(variables(value)):
        yield from indented(f"{title}: variables", made)


def public_api() -> Iterator[str]:
    """The whole list, line by line."""
    for module in map(importlib.import_module, filter(importlib.util.find_spec, MODULES)):
        for name in public_names(module):
            yield from described(f"{module.__name__}.{name}", getattr(module, name))


if __name__ == "__main__":
    print(*public_api(), sep="\n")
