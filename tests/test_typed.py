"""The user's file whose types `make lint` checks runs, and leaves nothing out."""

import inspect
from pathlib import Path

import pytest
import typed_user

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx


@pytest.mark.long
def test_the_users_file_runs():
    typed_user.main()


def is_norm(name):
    """Say whether a name is that of a module that normalizes."""
    return name.endswith(("Norm", "Renorm"))


def test_the_users_file_uses_every_function_and_module_or_one_of_its_signature():
    source = Path(typed_user.__file__).read_text()
    every = {f"jn.{name}": getattr(jn, name) for name in jn.__all__}
    for prefix, library in (("jnn", jnn), ("jnnx", jnnx)):
        every |= {f"{prefix}.{n}": getattr(library, n) for n in library.__all__ if is_norm(n)}
    assert len(every) >= len(jn.__all__) + 16
    used = [signature(value) for name, value in every.items() if name in source]
    assert len(used) >= len(jn.__all__) + 16 - 1
    missing = [name for name in every if name not in source]
    assert [name for name in missing if signature(every[name]) not in used] == []


def signature(value):
    """Give the arguments and their types, of a class those that it is built and called with."""
    if isinstance(value, type):
        return [inspect.signature(part) for part in (value.__init__, value.__call__)]
    return inspect.signature(value)


def test_the_package_says_that_it_is_typed():
    assert (Path(jn.__file__).parent / "py.typed").is_file()
