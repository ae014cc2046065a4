"""What a program is compiled for, as the plain forms see it while they are lowered.

Compilers fuse different forms of the same sums. So the plain form of an operation may ask for the
kind of device, and over how many of them `jit` splits the arrays, which is known only when a
program is lowered.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax


class Target(NamedTuple):
    """A kind of device, and how many of them `jit` splits the arrays over.

    Attributes:
        platform: "cpu", "gpu" or "tpu"; "any" where it is not known.
        devices: 1 also under `pmap` and `shard_map`, where each device has arrays of its own.
    """

    platform: str = "any"
    devices: int = 1


PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}
UNKNOWN = Target()

_current = ContextVar("_current", default=UNKNOWN)
_pretended = jax.make_user_context(None)  # a part of the key of every cache of `jit`


def target() -> Target:
    """What is compiled for now."""
    return _current.get()


def pretended() -> str | None:
    """The platform whose plain forms are wanted on whatever device there is."""
    return _pretended.value  # type: ignore[no-any-return]


@contextlib.contextmanager
def compiling_for(target: Target) -> Iterator[None]:
    """In this context plain forms are traced for `target`."""
    token = _current.set(target)
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def as_on(platform: str) -> Iterator[None]:
    """Run inside the plain forms for "gpu", "tpu" or "cpu", to test them on any device."""
    with _pretended(platform):
        yield


def target_of(module: Any, platform: str) -> Target:
    """The target of a program that is lowered.

    Args:
        module: JAX's context of the lowering.
        platform: as JAX names it.
    """
    return Target(pretended() or PLATFORMS.get(platform, "any"), _devices(module.axis_context))


def _devices(context: Any) -> int:
    if hasattr(context, "num_devices"):  # jit
        return int(context.num_devices)
    if hasattr(context, "manual_axes"):  # pmap and shard_map, which may leave axes to jit
        left = set(context.mesh.axis_names) - context.manual_axes
        return math.prod(context.mesh.shape[name] for name in left)
    return 1
