"""The user's file whose types `make lint` checks runs, and leaves nothing out."""

from pathlib import Path

import pytest
import typed_user

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx


@pytest.mark.long
def test_the_users_file_runs():
    typed_user.main()


def test_the_users_file_uses_every_function_and_module():
    source = Path(typed_user.__file__).read_text()
    names = {f"jn.{name}" for name in jn.__all__}
    for prefix, module in (("jnn", jnn), ("jnnx", jnnx)):
        names |= {f"{prefix}.{name}" for name in vars(module) if name.endswith(("Norm", "Renorm"))}
    assert len(names) == len(jn.__all__) + 16
    assert all(name in source for name in names), sorted(n for n in names if n not in source)


def test_the_package_says_that_it_is_typed():
    assert (Path(jn.__file__).parent / "py.typed").is_file()
