"""Ways of running a step on devices.

A step is a function of a state, which is replicated on all devices, and of a batch, which is
sharded. Under `pmap` and `shard_map` a step sees the shard of its device, and merges values of all
devices over the axis `AXIS`. Under `jit` it sees the whole batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


class CompiledStep(NamedTuple):
    """A compiled step, as a function of the part of a batch that this process has.

    Attributes:
        compiled: the function of a state and of a batch as jax takes it.
        prepared: returns this batch for the part of this process.
        waits: whether each call waits for its result.
    """

    compiled: Any
    prepared: Callable[[Any], Any]
    waits: bool = False

    def __call__(self, state: Any, batch: Any) -> Any:
        stepped = self.compiled(state, self.prepared(batch))
        return jax.block_until_ready(stepped) if self.waits else stepped

    def num_bytes(self, state: Any, batch: Any) -> int:
        """Return the memory of a call on one device: arguments, results and temporary values.

        Results that take the place of arguments count once.
        """
        sizes = self.compiled.lower(state, self.prepared(batch)).compile().memory_analysis()
        return (
            sizes.argument_size_in_bytes
            + sizes.output_size_in_bytes
            - sizes.alias_size_in_bytes
            + sizes.temp_size_in_bytes
        )


def devices(config: ParallelConfig) -> list[jax.Device]:
    """Return the devices of a run. Those of a process are next to each other."""
    make_devices(config)
    ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return ordered[:1] if isinstance(config, Single) else ordered


def num_devices(config: ParallelConfig) -> int:
    """Return the number of devices of a run, without creating virtual ones."""
    if isinstance(config, Single):
        return 1
    return config.virtual_devices or jax.device_count()


def make_devices(config: ParallelConfig) -> None:
    """Create the configured virtual devices of the CPU. JAX must not have started before.

    Raises:
        ConfigError: JAX has started with other devices.
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
                f"parallel.virtual_devices is {number}, but JAX has started with {len(there)} "
                f"{there[0].platform} devices; give it in a separate process, or null"
            ) from error


def axis_name(config: ParallelConfig) -> str | None:
    """Return the axis name if a step sees the shard of its device only, else None."""
    return None if isinstance(config, Single | Jit) else AXIS


def scope(config: ParallelConfig, sync: SyncConfig, num_devices: int) -> Scope:
    """Return the scope of the batch statistics on these devices."""
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
    """Return the slice of a batch that belongs to the devices of this process."""
    share = size // len(devices)
    own = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    return slice(share * own[0], share * (own[-1] + 1))


def replicate(state: Any, devices: Sequence[jax.Device]) -> Any:
    """Put a state on all devices."""
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
) -> CompiledStep:
    """Return the compiled step.

    The devices of a CPU share its threads. With two programs in flight, each could block the
    threads that the collective of the other needs, and XLA aborts the process after a minute.
    Therefore each call of a step on several of them waits.

    Args:
        batch_axis: the axis of the examples in every array of a batch.
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
    return compiled._replace(waits=several_of_a_cpu)


def _jit(step: Step, devices: Sequence[jax.Device], batch_axis: int, donate: bool) -> CompiledStep:
    replicated, sharded = _shardings(devices, batch_axis)
    compiled = jax.jit(
        step,
        in_shardings=(replicated, sharded),
        out_shardings=replicated,
        donate_argnums=0 if donate else (),
    )
    if jax.process_count() == 1:
        return CompiledStep(compiled, lambda batch: batch)  # jit shards faster than device_put
    return CompiledStep(compiled, lambda batch: _assembled(batch, sharded))


def _shard_map(
    step: Step, devices: Sequence[jax.Device], batch_axis: int, donate: bool
) -> CompiledStep:
    replicated, sharded = _shardings(devices, batch_axis)
    mapped = jax.shard_map(
        step,
        mesh=sharded.mesh,
        in_specs=(replicated.spec, sharded.spec),
        out_specs=replicated.spec,
        check_vma=False,  # the step merges gradients itself, as under pmap
    )
    return _jit(mapped, devices, batch_axis, donate)


def _pmap(step: Step, devices: Sequence[jax.Device], batch_axis: int, donate: bool) -> CompiledStep:
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

    return CompiledStep(mapped, lambda batch: jax.tree.map(cut, batch))


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))


def _shardings(
    devices: Sequence[jax.Device], batch_axis: int
) -> tuple[NamedSharding, NamedSharding]:
    """Return the replicated sharding, and the one that is split along the examples."""
    mesh = _mesh(devices)
    spec = PartitionSpec(*(None,) * batch_axis, AXIS)
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, spec)


def _assembled(tree: Any, sharding: NamedSharding) -> Any:
    """Return global arrays; each process passes its own part."""
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), tree
    )
