"""The ways of running a step on devices, one function for each.

A step is a function of a state, which all devices have alike, and of a batch, which is cut into one
part for each device. Under `pmap` and `shard_map` a step sees the part of its device, and merges
what is to be of all devices over the axis `AXIS`. Under `jit` it sees the whole batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.config import (
    GlobalSync,
    GroupSync,
    Jit,
    LocalSync,
    ParallelConfig,
    Pmap,
    Single,
    SyncConfig,
)
from experiments.errors import ConfigError
from experiments.norms.base import Scope

AXIS = "devices"
Step = Callable[[Any, Any], Any]


def devices(config: ParallelConfig) -> list[jax.Device]:
    """Return the devices of a run, those of a process next to each other."""
    make_devices(config)
    ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return ordered[:1] if isinstance(config, Single) else ordered


def num_devices(config: ParallelConfig) -> int:
    """Return how many devices a run has, without making virtual ones."""
    if isinstance(config, Single):
        return 1
    return config.virtual_devices or jax.device_count()


def make_devices(config: ParallelConfig) -> None:
    """Make the virtual devices that are asked for, of the CPU, before jax starts.

    Raises:
        ConfigError: jax has started with others.
    """
    number = config.virtual_devices
    if number is None:
        return
    try:
        jax.config.update("jax_num_cpu_devices", number)
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError as error:
        there = jax.local_devices()
        if len(there) != number or there[0].platform != "cpu":
            raise ConfigError(
                f"parallel.virtual_devices is {number}, but jax has started with {len(there)} "
                f"of {there[0].platform}; give it in a process of its own, or null"
            ) from error


def axis_name(config: ParallelConfig) -> str | None:
    """Return the axis by which a step knows that it sees the part of its device only."""
    return None if isinstance(config, Single | Jit) else AXIS


def scope(config: ParallelConfig, sync: SyncConfig, num_devices: int) -> Scope:
    """Return what the normalization layers must know of the devices."""
    name = axis_name(config)
    match sync:
        case GlobalSync():
            return Scope(axis_name=name)
        case LocalSync():
            return Scope(num_ghosts=1 if name else num_devices, axis_name=name)
        case GroupSync(num_groups=num_groups) if name:
            groups = np.arange(num_devices).reshape(num_groups, -1).tolist()
            return Scope(axis_name=name, axis_index_groups=groups)
        case GroupSync(num_groups=num_groups):
            return Scope(num_ghosts=num_groups)
        case _:
            raise TypeError(f"no scope for {sync!r}")


def local_shard(devices: Sequence[jax.Device], size: int) -> slice:
    """Return which of the examples of a batch belong to the devices of this process."""
    share = size // len(devices)
    own = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    return slice(share * own[0], share * (own[-1] + 1))


def replicate(state: Any, devices: Sequence[jax.Device]) -> Any:
    """Give a state to all devices."""
    replicated = NamedSharding(_mesh(devices), PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(state, replicated)
    return _assembled(state, replicated)


def compile_step(
    config: ParallelConfig,
    step: Step,
    devices: Sequence[jax.Device],
    *,
    batch_axis: int,
    donate: bool,
) -> Step:
    """Return the step, compiled for the devices, as a function of this process' part of a batch.

    Args:
        batch_axis: of the examples in every array of a batch.
        donate: whether the step may reuse the memory of its state.
    """
    match config:
        case Single() | Jit():
            compiled = _jit(step, devices, batch_axis, donate)
        case Pmap():
            compiled = _pmap(step, devices, batch_axis, donate)
        case _:
            compiled = _shard_map(step, devices, batch_axis, donate)
    several_of_a_cpu = len(devices) > 1 and devices[0].platform == "cpu"
    return _one_at_a_time(compiled) if several_of_a_cpu else compiled


def _one_at_a_time(step: Step) -> Step:
    """Wait for every step.

    The devices of a CPU share its threads: of two programs in flight, each could hold those that
    the other's collective waits for, and XLA ends the process after a minute.
    """
    return lambda state, batch: jax.block_until_ready(step(state, batch))


def _jit(step: Step, devices: Sequence[jax.Device], batch_axis: int, donate: bool) -> Step:
    replicated, sharded = _shardings(devices, batch_axis)
    compiled = jax.jit(
        step,
        in_shardings=(replicated, sharded),
        out_shardings=replicated,
        donate_argnums=0 if donate else (),
    )
    if jax.process_count() == 1:
        return compiled  # which itself cuts a NumPy batch, ten times as fast as device_put
    return lambda state, batch: compiled(state, _assembled(batch, sharded))


def _shard_map(step: Step, devices: Sequence[jax.Device], batch_axis: int, donate: bool) -> Step:
    replicated, sharded = _shardings(devices, batch_axis)
    mapped = jax.shard_map(
        step,
        mesh=sharded.mesh,
        in_specs=(replicated.spec, sharded.spec),
        out_specs=replicated.spec,
        check_vma=False,  # the step merges gradients itself, as under pmap
    )
    return _jit(mapped, devices, batch_axis, donate)


def _pmap(step: Step, devices: Sequence[jax.Device], batch_axis: int, donate: bool) -> Step:
    mapped = jax.pmap(
        step,
        AXIS,
        in_axes=(None, batch_axis),
        out_axes=None,
        devices=devices,
        donate_argnums=0 if donate else (),
    )
    own = sum(device.process_index == jax.process_index() for device in devices)

    def cut(array: np.ndarray) -> np.ndarray:
        shape = array.shape
        return array.reshape(*shape[:batch_axis], own, -1, *shape[batch_axis + 1 :])

    return lambda state, batch: mapped(state, jax.tree.map(cut, batch))


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))


def _shardings(
    devices: Sequence[jax.Device], batch_axis: int
) -> tuple[NamedSharding, NamedSharding]:
    """All on every device; and cut along the examples."""
    mesh = _mesh(devices)
    spec = PartitionSpec(*(None,) * batch_axis, AXIS)
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, spec)


def _assembled(tree: Any, sharding: NamedSharding) -> Any:
    """Make arrays of all processes, of which this one has its part."""
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), tree
    )
