"""Checks the values of a configuration before training."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from flax import linen as nn
from omegaconf import OmegaConf

from experiments.config import (
    COMPONENTS,
    FITTED_LOSS,
    GROUPS,
    TARGETS,
    Auto,
    BatchInference,
    Config,
    DistributedConfig,
    GlobalSync,
    GroupSync,
    Local,
    Manual,
    Pmap,
    RecomputedInference,
    RunningInference,
    ShardMap,
    Single,
    Undistributed,
)
from experiments.data.batching import Batch
from experiments.errors import ConfigError, at_least, choice, positive
from experiments.norms.base import Scope
from experiments.runs.directory import program_key
from experiments.training.parallel import axis_name, make_devices
from experiments.training.program import evaluation_group, example, model_of
from experiments.training.setup import Setup, make_setup

CONFIG_DIR = Path(__file__).parent.parent.parent / "configs"
DTYPES = ("float32", "bfloat16")


def validate(config: Config) -> None:
    """Raise a `ConfigError` that lists all problems of a configuration."""
    _raise([*_names(config)])  # the other checks need valid names
    _raise([*_training(config), *_distributed(config.distributed)])
    make_devices(config.parallel)
    setup = make_setup(config)
    problems = [
        *setup.source.problems(config.batch_size),
        *setup.norm.problems(config.batch_size),
        *setup.optimizer.problems(),
        *_model(config, setup),
        *_statistics(config, setup),
        *_inference(config, setup),
    ]
    _raise(problems)
    _check_shapes(program_key(config), config, setup)


def validate_devices(config: Config, num_devices: int, num_processes: int) -> None:
    """Raise a `ConfigError` that lists all problems with the available devices."""
    _raise([*_devices(config, num_devices, num_processes)])


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _names(config: Config) -> Iterator[str]:
    """Check that the values of each component and option belong to the file that is named."""
    for group in COMPONENTS:
        given = getattr(config, group)
        if not (isinstance(given, dict) and {"name", "_target_"} <= set(given)):
            yield f"{group} is {given!r}; choose a file of configs/{group} with {group}=NAME"
            continue
        files = {path.stem: path for path in sorted((CONFIG_DIR / group).glob("*.yaml"))}
        target = _target_of(files[given["name"]]) if given["name"] in files else None
        if given["_target_"] != target:
            yield (
                f"{group}.name is {given['name']!r}, but the other values belong to "
                f"{given['_target_']}; "
                f"choose another with {group}={'|'.join(files)}"
            )
    for group, types in GROUPS.items():
        given = getattr(config, group)
        if type(given) is not types.get(given.name):
            expected = next(name for name, of_name in types.items() if of_name is type(given))
            yield (
                f"{group}.name is {given.name!r}, but the choice was {group}={expected}; "
                f"choose another with {group}={'|'.join(types)}"
            )


@functools.cache
def _target_of(path: Path) -> str:
    """Return the class that the file of a component names."""
    return OmegaConf.load(path)._target_


def _are_some(numbers: Sequence[int], of: int) -> bool:
    """Return whether there are numbers, each from 0 to `of` - 1 and once."""
    return 0 < len(numbers) == len(set(numbers) & set(range(of)))


def _training(config: Config) -> Iterator[str]:
    for key in ("batch_size", "accumulate", "epochs", "seeds", "keep_checkpoints"):
        yield from at_least(key, getattr(config, key), 1)
    for key in ("steps", "checkpoint_every", "steps_per_call", "timed_steps"):
        if getattr(config, key) is not None:
            yield from at_least(key, getattr(config, key), 1)
    if config.only_seeds is not None and not _are_some(config.only_seeds, config.seeds):
        yield (
            f"only_seeds is {config.only_seeds}; give some of the seeds 0 to {config.seeds - 1}, "
            "each once, or null"
        )
    if isinstance(config.launcher, Local) and config.launcher.workers is not None:
        yield from at_least("launcher.workers", config.launcher.workers, 1)
    if config.beside_plain and config.seeds_together:
        yield (
            "timed_steps and step_memory measure the step of one seed, but seeds_together is true; "
            "give seeds_together=false, or null"
        )
    if (virtual := config.parallel.virtual_devices) is not None:
        yield from at_least("parallel.virtual_devices", virtual, 1)
        if not isinstance(config.distributed, Undistributed):
            yield (
                f"parallel.virtual_devices is {virtual}, which needs a single process, but "
                f"distributed={config.distributed.name}; give distributed=off, or "
                "parallel.virtual_devices=null"
            )
    every = config.evaluate_every
    if not (every in (None, "epoch") or (isinstance(every, int) and every >= 1)):
        yield (
            f"evaluate_every is {every!r}; give a number of steps, epoch, or null to evaluate only "
            "at the end"
        )
    yield from _target(config)
    yield from choice("dtype", config.dtype, DTYPES)
    yield from positive("model.init_scale", config.model["init_scale"])
    for key, directory in (("output", config.output), ("data.directory", config.data["directory"])):
        yield from _directory(key, directory)


def _target(config: Config) -> Iterator[str]:
    yield from choice("target_of", config.target_of, TARGETS)
    if config.target is None:
        if config.target_of == FITTED_LOSS:
            yield "target_of is 'fitted_loss', but target is null; give the loss at which to stop"
    elif config.target_of == FITTED_LOSS:
        yield from positive("target", config.target)
    elif not 0 < config.target <= 1:
        yield f"target is {config.target}; give an accuracy above 0 and at most 1, or null"


def _directory(key: str, given: str) -> Iterator[str]:
    if not given.strip():
        yield f"{key} is empty; give a directory"
        return
    there = next(path for path in (Path(given), *Path(given).absolute().parents) if path.exists())
    if not there.is_dir():
        yield f"{key} is {given!r}, but {there} is a file; give a directory"
    elif not os.access(there, os.W_OK):
        yield f"{key} is {given!r}, but {there} cannot be written; give another directory"


def _model(config: Config, setup: Setup) -> Iterator[str]:
    model = model_of(config, setup, Scope())
    name = config.model["name"]
    if (has := _of_sequences(config, setup)) and not model.takes_lengths:
        yield (
            f"data={config.data['name']} has {has}, which model={name} does not accept; "
            "give model=lstm, gru or transformer"
        )
        return
    yield from model.problems(setup.spec.input_shape)
    if config.gradients and not model.numbers_layers:
        yield (
            f"gradients compares the first and the last layer of a chain, which model={name} is "
            "not; give gradients=false, or model=mlp or cnn"
        )
    if setup.spec.max_length is not None and not model.takes_lengths:
        yield (
            f"data.lengths makes sequences of unequal length, which model={name} does not accept; "
            "give data.lengths=full, or model=lstm, gru or transformer"
        )


def _of_sequences(config: Config, setup: Setup) -> str:
    """Return what data always have that only models of sequences accept, or ""."""
    if setup.spec.vocabulary is not None:
        return "words"
    optional = "lengths" in config.data  # images
    return "" if setup.spec.max_length is None or optional else "sequences of unequal length"


def _statistics(config: Config, setup: Setup) -> Iterator[str]:
    """Yield what the normalization cannot do with several devices or micro-batches."""
    name = config.norm["name"]
    syncs = setup.norm.syncs or not setup.norm.of_the_batch
    if not (syncs or isinstance(config.sync, GlobalSync)):
        yield (
            f"sync={config.sync.name} is for norm=batch, but norm={name} cannot normalize by the "
            "examples of only some devices; give sync=global, or norm=batch"
        )
    if not setup.norm.merges and isinstance(config.parallel, Pmap | ShardMap):
        yield (
            f"norm={name} cannot merge the statistics of devices, as parallel="
            f"{config.parallel.name} requires; "
            "give parallel=jit or single"
        )
    if isinstance(config.sync, GroupSync):
        yield from at_least("sync.num_groups", config.sync.num_groups, 1)
    if config.accumulate > 1:
        yield from _accumulated(config, setup)


def _accumulated(config: Config, setup: Setup) -> Iterator[str]:
    """Yield what the normalization cannot do with micro-batches."""
    said = f"accumulate is {config.accumulate}, but norm={config.norm['name']}"
    if setup.norm.of_running or setup.norm.frozen_from is not None:
        yield (
            f"{said} also normalizes by its running statistics, which change only at the end of "
            "a step; give accumulate=1"
        )
    if not setup.norm.merges:
        yield f"{said} cannot merge the statistics of micro-batches; give accumulate=1"
    if setup.norm.of_the_batch and setup.norm.momentum is None:
        yield f"{said} has no momentum, which accumulation needs; give norm.momentum a number"
    if config.batch_size % (config.accumulate * setup.norm.batch_multiple):
        yield (
            f"{said} needs micro-batches whose size is a multiple of "
            f"{setup.norm.batch_multiple}; give a batch_size that is a multiple of "
            f"{config.accumulate * setup.norm.batch_multiple}"
        )


def _inference(config: Config, setup: Setup) -> Iterator[str]:
    """Yield what the normalization cannot do in evaluation."""
    name = config.inference.name
    if isinstance(config.inference, BatchInference):
        yield from at_least("inference.batch_size", config.inference.batch_size, 1)
    if isinstance(config.inference, RecomputedInference):
        yield from at_least("inference.examples", config.inference.examples, 1)
        if not setup.norm.merges:
            yield (
                f"inference=recomputed merges the statistics of batches, and "
                f"norm={config.norm['name']} cannot; give inference=running"
            )
        if isinstance(config.sync, GroupSync) and axis_name(config.parallel):
            yield (
                "inference=recomputed merges statistics of all devices, but with sync=group and "
                f"parallel={config.parallel.name} each group has its own; give sync=global or "
                "local, or parallel=jit"
            )
    if setup.norm.of_running and not isinstance(config.inference, RunningInference):
        yield (
            f"inference={name} normalizes by the batch only, but norm={config.norm['name']} "
            "also uses running statistics in training; give inference=running, or norm=batch"
        )


_fitting: set[str] = set()  # the keys of programs whose shapes fit


def _check_shapes(key: str, config: Config, setup: Setup) -> None:
    """Trace the model with shapes only, and raise `ConfigError` if that fails."""
    if key in _fitting:
        return
    try:
        _trace(model_of(config, setup, Scope()), example(setup, config.batch_size), train=True)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"norm={config.norm['name']} and model={config.model['name']} do not fit "
            f"data={config.data['name']}: {error}"
        ) from error
    if evaluation_group(config, setup) == 1:
        _check_single_examples(config, setup)
    _fitting.add(key)


def _check_single_examples(config: Config, setup: Setup) -> None:
    """Check evaluation with single examples: it can fail where training does not."""
    model = model_of(config, setup, Scope(num_ghosts=1), measures=True)
    try:
        _trace(model, example(setup), train=False)
    except ValueError as error:
        raise ConfigError(
            f"inference.batch_size is 1, but an example has one value for each channel of "
            f"model={config.model['name']}, so its variance is 0; give 2 or more, or model=cnn "
            f"({error})"
        ) from error


def _trace(model: nn.Module, batch: Batch, *, train: bool) -> None:
    def forward(batch: Batch) -> jax.Array:
        rngs = {name: jax.random.key(0) for name in ("params", "dropout", "noise")}
        return model.apply(
            {},
            batch.inputs,
            batch.lengths,
            batch.mask,
            train=train,
            mutable=["params", "batch_stats"],
            rngs=rngs,
        )[0]

    jax.eval_shape(forward, batch)


def _distributed(config: DistributedConfig) -> Iterator[str]:
    if isinstance(config, Auto):
        yield from at_least("distributed.timeout", config.timeout, 1)
    if isinstance(config, Manual):
        host, _, port = config.coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 65536):
            yield (
                f"distributed.coordinator is {config.coordinator!r}; give the host and a free port "
                "of process 0, for example 10.0.0.1:12345"
            )
        yield from at_least("distributed.processes", config.processes, 1)
        if not 0 <= config.index < config.processes:
            yield (
                f"distributed.index is {config.index}, but distributed.processes is "
                f"{config.processes}; give each process a different index from 0 to "
                f"{config.processes - 1}"
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
