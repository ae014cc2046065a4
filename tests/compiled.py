"""The compiled programs of a process: how many it holds, how many it made, and dropping them."""

import ctypes

import jax
from jax.extend.backend import get_backend

# JAX tells of every program, whether it is compiled or read from the disk.
EVENT = "/jax/core/compile/backend_compile_duration"


def note_programs():
    """Give a list that has an entry for every program that is made from now on."""
    made = []

    def note(event, seconds, **_):
        if event == EVENT:
            made.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    return made


def programs():
    """Count the programs that this process holds."""
    return len(get_backend().live_executables())


def drop_programs():
    """Drop the programs of this process, and hand their memory back to the system."""
    jax.clear_caches()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what is free
    if trim is not None:
        trim(0)
