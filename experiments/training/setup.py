"""The components of a run, created from its configuration."""

import math
from functools import partial
from typing import Any, NamedTuple

from flax import linen as nn

from experiments.config import Config, component
from experiments.data.source import DataSource, Spec
from experiments.norms.base import Norm
from experiments.training.optimizers import Optimizer


class Setup(NamedTuple):
    """The components of a configuration, before any data are read.

    Attributes:
        spec: the shapes and sizes of the data.
        total_steps: the number of training steps, each of which updates the parameters once.
        epoch_steps: the number of steps that use every training example once.
    """

    source: DataSource
    spec: Spec
    norm: Norm
    optimizer: Optimizer
    model: partial[nn.Module]
    total_steps: int
    epoch_steps: int


def make_setup(config: Config) -> Setup:
    """Return the components of a run.

    Raises:
        ConfigError: a file of the data is missing or damaged, or a value is missing.
        OmegaConfBaseException: a value has the wrong type.
    """
    source = component("data", config.data)()
    spec = source.spec()
    epoch_steps = math.ceil(spec.num_train / config.batch_size)
    return Setup(
        source,
        spec,
        component("norm", config.norm)(),
        component("optimizer", config.optimizer)(),
        component("model", config.model),
        config.epochs * epoch_steps if config.steps is None else config.steps,
        epoch_steps,
    )


def evaluation_steps(config: Config, setup: Setup) -> int:
    """Return the number of steps between evaluations, at most the whole run."""
    every: Any = setup.epoch_steps if config.evaluate_every == "epoch" else config.evaluate_every
    return min(every or setup.total_steps, setup.total_steps)
