"""The library of native kernels: found beside this file, loaded, and its handlers registered.

`JAXNORM_KERNELS=off` leaves it out; another value is the path of a library to load instead.
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
    """Whether the handlers can be called, and why, in words."""

    loaded: bool
    reason: str


@functools.cache
def library() -> Library:
    """The library, loaded when it is first asked for."""
    if switched_off():
        return Library(False, "JAXNORM_KERNELS=off")
    choice = os.environ.get("JAXNORM_KERNELS")
    path = Path(choice) if choice else _beside()
    if path is None:
        return Library(
            False,
            f"no library beside {Path(__file__).parent}; it is built where jaxnorm is installed "
            "and there is a C++ compiler",
        )
    try:
        return Library(True, f"{_registered(path)}, {path}")
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        return Library(False, f"{path} does not load: {first_line}")


@functools.cache
def switched_off() -> bool:
    """Whether this process was started with `JAXNORM_KERNELS=off`."""
    return os.environ.get("JAXNORM_KERNELS", "").lower() == "off"


def status() -> str:
    """What runs on a CPU, the native kernels or the plain form, and why; a line of text."""
    loaded, reason = library()
    return f"{'native kernels' if loaded else 'plain form'} ({reason})"


def _beside() -> Path | None:
    paths = (Path(__file__).with_name(name) for name in _NAMES)
    return next((path for path in paths if path.exists()), None)


def _registered(path: Path) -> str:
    """Registers the handlers for the CPU; the instruction set that they use."""
    loaded = ctypes.CDLL(str(path))
    for name in HANDLERS:
        handler = jax.ffi.pycapsule(getattr(loaded, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    loaded.jaxnorm_instruction_set.restype = ctypes.c_char_p
    name = loaded.jaxnorm_instruction_set()
    return str(name.decode())
