"""Several processes, on one machine or many, that train a run together."""

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from typing import NoReturn

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

from experiments.config import Auto, Config, DistributedConfig, Manual
from experiments.errors import ConfigError


def join(config: DistributedConfig) -> None:
    """Meet the other processes, if there are any. No JAX device may have been touched before.

    Raises:
        ConfigError: the others cannot be found.
    """
    match config:
        case Manual():
            arguments = {
                "coordinator_address": config.coordinator,
                "num_processes": config.processes,
                "process_id": config.index,
            }
        case Auto():
            arguments = {}
        case _:
            return
    notice = f"waiting up to {config.timeout} s for the other processes"
    print(notice, file=sys.stderr, flush=True)  # JAX aborts when they do not come
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=config.timeout,
            heartbeat_timeout_seconds=config.timeout,
            shutdown_timeout_seconds=config.timeout,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"distributed={config.name} failed ({str(error).splitlines()[0]}); give auto where "
            "Slurm, Open MPI, Kubernetes or a Cloud TPU starts the processes, else manual with "
            "distributed.coordinator, distributed.processes and distributed.index"
        ) from error


def are_several() -> bool:
    """Whether this process has met others."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def meet(where: str) -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def of_the_first(numbers: Sequence[int]) -> list[int]:
    """Return the numbers that the first process was given."""
    length = int(multihost_utils.broadcast_one_to_all(np.array(len(numbers))))
    own = np.resize([*numbers, 0], length)  # only the first process sends its own
    return multihost_utils.broadcast_one_to_all(own).tolist() if length else []


def all_agree(value: bool) -> bool:
    """Whether the value is true in every process."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.array(value))))


def check_alike(config: Config, name: str) -> None:
    """Raise `ConfigError` in a process whose run is not that of the first: they would not meet."""
    values = asdict(config)
    values["distributed"].pop("index", None)
    digest = np.frombuffer(hashlib.sha256(json.dumps(values).encode()).digest(), np.uint8)
    if not np.array_equal(multihost_utils.broadcast_one_to_all(digest), digest):
        raise ConfigError(
            f"process {jax.process_index()} was to train {name}, and process 0 another run, or the "
            "same otherwise; give all processes the same configuration, distributed.index apart"
        )


def end_all(error: Exception) -> NoReturn:
    """End this process at once where there are others, and thereby those; else raise the error.

    An orderly end would wait for the others, which wait in a step for this process.
    """
    if not are_several():
        raise error
    if isinstance(error, JaxRuntimeError):
        message = (
            f"error: process {jax.process_index()} of {jax.process_count()} ends, because a step "
            "of all processes failed; most likely another process has ended, and its output says "
            f"why ({str(error).splitlines()[0]})"
        )
    elif isinstance(error, ConfigError):
        message = f"error: {error}"
    else:
        message = "".join(traceback.format_exception(error))
    print(message, file=sys.stderr, flush=True)
    os._exit(1)
