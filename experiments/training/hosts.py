"""Several processes, on one or more machines, that train a run together."""

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
    """Connect to the other processes, if there are any. Must come before any use of a JAX device.

    Raises:
        ConfigError: the other processes cannot be found.
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
    print(notice, file=sys.stderr, flush=True)  # JAX aborts the process on a timeout
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


def is_distributed() -> bool:
    """Return whether this process is connected to others."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Return whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def meet(where: str) -> None:
    """Wait until all processes have called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def from_first_process(numbers: Sequence[int]) -> list[int]:
    """Return the numbers that the first process passed."""
    length = int(multihost_utils.broadcast_one_to_all(np.array(len(numbers))))
    own = np.resize([*numbers, 0], length)  # the values of other processes are ignored
    return multihost_utils.broadcast_one_to_all(own).tolist() if length else []


def all_agree(value: bool) -> bool:
    """Return whether the value is true in every process."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.array(value))))


def check_same_run(config: Config, name: str) -> None:
    """Raise `ConfigError` in a process whose run differs from that of the first process."""
    values = asdict(config)
    values["distributed"].pop("index", None)
    digest = np.frombuffer(hashlib.sha256(json.dumps(values).encode()).digest(), np.uint8)
    if not np.array_equal(multihost_utils.broadcast_one_to_all(digest), digest):
        raise ConfigError(
            f"process {jax.process_index()} has another configuration of {name} than process 0; "
            "give all processes the same configuration except for distributed.index"
        )


def end_all(error: Exception) -> NoReturn:
    """Exit this process, which ends the others too. Without others, raise the error.

    A regular exit would wait for the other processes, and these wait in a step for this process.
    """
    if not is_distributed():
        raise error
    if isinstance(error, JaxRuntimeError):
        message = (
            f"error: process {jax.process_index()} of {jax.process_count()} ends because a step "
            "of all processes failed; most likely another process has ended, and its output says "
            f"why ({str(error).splitlines()[0]})"
        )
    elif isinstance(error, ConfigError):
        message = f"error: {error}"
    else:
        message = "".join(traceback.format_exception(error))
    print(message, file=sys.stderr, flush=True)
    os._exit(1)
