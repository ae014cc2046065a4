"""What the values of a configuration must satisfy before anything is trained."""

import math
from collections.abc import Iterator

from experiments.config import (
    NORMS,
    OPTIMIZERS,
    SGD,
    Adam,
    BatchRenorm,
    Config,
    GhostBatchNorm,
    GroupNorm,
    OptimizerConfig,
    RunningNorm,
    SampleNorm,
)
from experiments.data.loading import BUILDERS


class ConfigError(ValueError):
    """A configuration that cannot be right; the message names key, value and cure."""


def validate(config: Config) -> None:
    """Raise `ConfigError` that tells all that cannot be right in a configuration."""
    problems = [*_names(config), *_training(config), *_optimizer(config.optimizer)]
    if not problems:  # the others look the names up
        problems = [*_data(config), *_norm(config)]
    if problems:
        raise ConfigError("\n".join(problems))


def _names(config: Config) -> Iterator[str]:
    yield from _choice("data.name", config.data.name, list(BUILDERS))
    yield from _choice("model.name", config.model.name, ["cnn"])
    for group, given, types in (
        ("norm", config.norm, NORMS),
        ("optimizer", config.optimizer, OPTIMIZERS),
    ):
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
