"""What the values of a configuration must satisfy before anything is trained."""

import math
from collections.abc import Iterator

from experiments.config import (
    GROUPS,
    SGD,
    Adam,
    Auto,
    BatchRenorm,
    Config,
    DistributedConfig,
    GhostBatchNorm,
    GlobalSync,
    GroupNorm,
    GroupSync,
    Manual,
    OptimizerConfig,
    RunningNorm,
    SampleNorm,
    Single,
)
from experiments.data.loading import BUILDERS


class ConfigError(ValueError):
    """A configuration that cannot be right; the message names key, value and cure."""


def validate(config: Config) -> None:
    """Raise `ConfigError` that tells all that cannot be right in a configuration."""
    problems = [*_names(config), *_training(config), *_optimizer(config.optimizer)]
    if not problems:  # the others look the names up
        problems = [
            *_data(config),
            *_norm(config),
            *_sync(config),
            *_distributed(config.distributed),
        ]
    _raise(problems)


def validate_devices(config: Config, num_devices: int, num_processes: int) -> None:
    """Raise `ConfigError` that tells all that cannot be right on the devices that are there."""
    _raise([*_devices(config, num_devices, num_processes)])


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _names(config: Config) -> Iterator[str]:
    yield from _choice("data.name", config.data.name, list(BUILDERS))
    yield from _choice("model.name", config.model.name, ["cnn"])
    for group, types in GROUPS.items():
        given = getattr(config, group)
        expected = next(name for name, cls in types.items() if type(given) is cls)
        if given.name != expected:
            yield (
                f"{group}.name is {given.name!r}, but the choice was {group}={expected}; "
                f"choose another with {group}={'|'.join(types)}"
            )


def _choice(key: str, value: str, choices: list[str]) -> Iterator[str]:
    if value not in choices:
        yield f"{key} is {value!r}; the choices are {', '.join(choices)}"


def _training(config: Config) -> Iterator[str]:
    for key in ("batch_size", "epochs", "seeds"):
        yield from _at_least(key, getattr(config, key), 1)
    if config.steps_per_call is not None:
        yield from _at_least("steps_per_call", config.steps_per_call, 1)
    for channels in config.model.channels:
        yield from _at_least("every entry of model.channels", channels, 1)
    for key, directory in (("output", config.output), ("data.directory", config.data.directory)):
        if not directory.strip():
            yield f"{key} is empty; give a directory"
    if not config.model.channels:
        yield "model.channels is empty; give one number of channels for each layer"


def _optimizer(config: OptimizerConfig) -> Iterator[str]:
    yield from _positive("optimizer.learning_rate", config.learning_rate)
    yield from _fraction("optimizer.warmup", config.warmup, below_one=True)
    decays = {SGD: ("momentum",), Adam: ("b1", "b2")}[type(config)]
    for key in decays:
        yield from _fraction(f"optimizer.{key}", getattr(config, key), below_one=True)


def _data(config: Config) -> Iterator[str]:
    builder = BUILDERS[config.data.name]
    if config.batch_size > builder.NUM_TRAIN:
        yield (
            f"batch_size is {config.batch_size}, but {config.data.name} has {builder.NUM_TRAIN} "
            f"training examples; give 1 to {builder.NUM_TRAIN}"
        )
    # Below 2x2 positions, instance normalization would have a single value to measure.
    layers = len(config.model.channels)
    most = int(math.log2(min(builder.IMAGE_SHAPE[:2])))
    if layers > most:
        yield (
            f"model.channels has {layers} layers, but images of {config.data.name} can be halved "
            f"to 2x2 only; give at most {most}"
        )


def _norm(config: Config) -> Iterator[str]:
    norm = config.norm
    if isinstance(norm, RunningNorm):
        yield from _fraction("norm.momentum", norm.momentum)
    if isinstance(norm, RunningNorm | SampleNorm):
        yield from _positive("norm.epsilon", norm.epsilon)
    match norm:
        case GhostBatchNorm():
            yield from _divides("norm.ghost_size", norm.ghost_size, [config.batch_size])
        case GroupNorm():
            yield from _divides("norm.num_groups", norm.num_groups, config.model.channels)
        case BatchRenorm():
            yield from _at_least("norm.r_max", norm.r_max, 1)
            yield from _at_least("norm.d_max", norm.d_max, 0)
            yield from _fraction("norm.relax_from", norm.relax_from)
            yield from _fraction("norm.relax_to", norm.relax_to)
            if norm.relax_from > norm.relax_to:
                yield (
                    f"norm.relax_from is {norm.relax_from}, after norm.relax_to "
                    f"({norm.relax_to}); give an earlier fraction of the run"
                )


def _sync(config: Config) -> Iterator[str]:
    if isinstance(config.norm, GhostBatchNorm | BatchRenorm) and not isinstance(
        config.sync, GlobalSync
    ):
        why = (
            "measures every ghost by itself on any device"
            if isinstance(config.norm, GhostBatchNorm)
            else "is defined over the whole batch"
        )
        yield (
            f"sync={config.sync.name} is of norm=batch, but norm={config.norm.name} {why}; "
            f"give sync=global, or norm=batch"
        )
    if isinstance(config.sync, GroupSync):
        yield from _at_least("sync.num_groups", config.sync.num_groups, 1)


def _distributed(config: DistributedConfig) -> Iterator[str]:
    if isinstance(config, Auto):
        yield from _at_least("distributed.timeout", config.timeout, 1)
    if isinstance(config, Manual):
        host, _, port = config.coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 65536):
            yield (
                f"distributed.coordinator is {config.coordinator!r}; give the host and a free port "
                "of process 0, for example 10.0.0.1:12345"
            )
        yield from _at_least("distributed.processes", config.processes, 1)
        if not 0 <= config.index < config.processes:
            yield (
                f"distributed.index is {config.index}, but distributed.processes is "
                f"{config.processes}; give each process another of 0 to {config.processes - 1}"
            )


def _devices(config: Config, num_devices: int, num_processes: int) -> Iterator[str]:
    if isinstance(config.parallel, Single) and num_processes > 1:
        yield (
            f"parallel=single uses one device, but there are {num_processes} processes; "
            "give parallel=jit, shard_map or pmap, or distributed=off"
        )
    elif isinstance(config.sync, GroupSync) and num_devices % config.sync.num_groups:
        fitting = [str(n) for n in range(1, num_devices + 1) if num_devices % n == 0]
        yield (
            f"sync.num_groups is {config.sync.num_groups}, which does not divide the "
            f"{num_devices} devices of parallel={config.parallel.name}; "
            f"give one of {', '.join(fitting)}"
        )


def _at_least(key: str, value: float, least: int) -> Iterator[str]:
    if not (math.isfinite(value) and value >= least):
        yield f"{key} is {value}; give {least} or more"


def _positive(key: str, value: float) -> Iterator[str]:
    if not (math.isfinite(value) and value > 0):
        yield f"{key} is {value}; give a positive number"


def _fraction(key: str, value: float, *, below_one: bool = False) -> Iterator[str]:
    if not (0 <= value < 1 or (value == 1 and not below_one)):
        yield f"{key} is {value}; give a number from 0 to {'below 1' if below_one else '1'}"


def _divides(key: str, value: int, sizes: list[int]) -> Iterator[str]:
    if value < 1 or any(size % value for size in sizes):
        common = math.gcd(*sizes)
        fitting = [str(n) for n in range(1, common + 1) if common % n == 0]
        yield f"{key} is {value}, which does not divide {sizes}; give one of {', '.join(fitting)}"
