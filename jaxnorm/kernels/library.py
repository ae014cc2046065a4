"""The library of native kernels: it is loaded from beside this file, and its handlers registered.

`JAXNORM_KERNELS=off` switches it off; any other value is the path of a library to load instead.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import NamedTuple

import jax.ffi

HANDLERS = (
    "jaxnorm_measure",
    "jaxnorm_apply",
    "jaxnorm_normalize",
    "jaxnorm_sums",
    "jaxnorm_backward",
    "jaxnorm_backward_fused",
)
_NAMES = ("libjaxnorm_kernels.so", "libjaxnorm_kernels.dylib")


class Library(NamedTuple):
    """Whether the handlers can be called, and the reason as text."""

    loaded: bool
    reason: str


@functools.cache
def library() -> Library:
    """The library, which the first call loads."""
    if switched_off():
        return Library(False, "JAXNORM_KERNELS=off")
    choice = os.environ.get("JAXNORM_KERNELS")
    path = Path(choice) if choice else _installed()
    if path is None:
        return Library(
            False,
            f"no library beside {Path(__file__).parent}; it is built where jaxnorm is installed "
            "and there is a C++ compiler",
        )
    try:
        return Library(True, f"{_register(path)}, {path}")
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        return Library(False, f"{path} does not load: {first_line}")


@functools.cache
def switched_off() -> bool:
    """Whether this process was started with `JAXNORM_KERNELS=off`."""
    return os.environ.get("JAXNORM_KERNELS", "").lower() == "off"


def status() -> str:
    """A line of text: whether the native kernels or the plain form runs on a CPU, and why."""
    loaded, reason = library()
    return f"{'native kernels' if loaded else 'plain form'} ({reason})"


def _installed() -> Path | None:
    """The library beside this file."""
    paths = (Path(__file__).with_name(name) for name in _NAMES)
    return next((path for path in paths if path.exists()), None)


def _register(path: Path) -> str:
    """Register the handlers for the CPU; return the name of the instruction set that they use."""
    loaded = ctypes.CDLL(str(path))
    for name in HANDLERS:
        handler = jax.ffi.pycapsule(getattr(loaded, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    loaded.jaxnorm_instruction_set.restype = ctypes.c_char_p
    name = loaded.jaxnorm_instruction_set()
    return str(name.decode())
