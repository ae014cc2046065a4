"""The activations, statistics and inputs of a trained network as arrays."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.config import Config
from experiments.data.scaling import SCALINGS, measure, scaling
from experiments.data.splits import Split
from experiments.errors import ConfigError
from experiments.norms.base import Scope
from experiments.training.checkpoints import FINAL, restore_final
from experiments.training.diagnostics import is_normalization, layers
from experiments.training.program import model_of
from experiments.training.setup import Setup, make_setup

SEED = 0  # the seed whose parameters are kept
EXAMPLES = 256  # validation examples, as for the quantiles in training
MAX_INPUTS = 1000  # training examples


class Place(NamedTuple):
    """One normalization of a network.

    Attributes:
        before: its input for some validation examples.
        after: its output for these.
        running: the running mean and variance of each channel; None if there are none.
        batch: mean and variance of one batch.
    """

    name: str
    before: np.ndarray
    after: np.ndarray
    running: tuple[np.ndarray, np.ndarray] | None
    batch: tuple[np.ndarray, np.ndarray] | None


def places(config: Config, directory: Path) -> list[Place]:
    """Return the normalizations of a trained network, in order of depth.

    Raises:
        ConfigError: the parameters of the run were not kept, or do not fit its model.
    """
    seed = directory / f"seed-{SEED}"
    if not (seed / FINAL).exists():
        raise ConfigError(f"{seed / FINAL} does not exist; train the run again to create it")
    setup = make_setup(config)
    variables = restore_final(seed)
    split = setup.source.load(SEED).validation
    seen = _captured(config, setup, variables, split, EXAMPLES)
    of_batch = _captured(config, setup, variables, split, config.batch_size)
    return [
        Place(
            name,
            _within(sown["input"], sown.get("mask")),
            _within(sown["output"], sown.get("mask")),
            *_statistics(variables.get("batch_stats") or {}, name, of_batch[name]),
        )
        for name, sown in seen.items()
    ]


def _captured(
    config: Config, setup: Setup, variables: Any, split: Split, examples: int
) -> dict[str, dict[str, np.ndarray]]:
    """Return the input, output and mask of each place in evaluation."""
    inputs = split.inputs[:examples]
    lengths = None if split.lengths is None else split.lengths[:examples]
    model = model_of(config, setup, Scope())
    _, captured = model.apply(variables, inputs, lengths, train=False, mutable=["intermediates"])
    sown = captured.get("intermediates", {})
    return {
        name: {
            key: np.asarray(place[key][0], bool if key == "mask" else np.float32)
            for key in ("input", "output", "mask")
            if key in place
        }
        for name, place in layers(sown, is_normalization)
    }


def _within(values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return the unmasked values; `mask` covers the first axes."""
    return values if mask is None else values[mask]


def _statistics(
    batch_stats: Any, name: str, sown: dict[str, np.ndarray]
) -> tuple[tuple[np.ndarray, np.ndarray] | None, tuple[np.ndarray, np.ndarray] | None]:
    """Return mean and variance, running and of the batch, separately for each time step.

    Those of a time step that no example has are NaN.
    """
    stats = batch_stats
    for key in name.split("/"):
        stats = stats.get(key, {})
    if "mean" not in stats:
        return None, None
    running = tuple(np.asarray(stats[key], np.float32) for key in ("mean", "var"))
    values = _masked(sown["input"], sown.get("mask"))
    axes = tuple(range(running[0].ndim - 1, values.ndim - 1))
    return running, (values.mean(axes).filled(np.nan), values.var(axes).filled(np.nan))


def _masked(values: np.ndarray, mask: np.ndarray | None) -> np.ma.MaskedArray:
    left = np.ones_like(values, bool)
    if mask is not None:
        left &= mask.reshape(*mask.shape, *(1,) * (values.ndim - mask.ndim))
    return np.ma.array(values, mask=~left)


class ScaledInputs(NamedTuple):
    """Training inputs (examples, features) with one scaling."""

    kind: str
    values: np.ndarray
    labels: np.ndarray


def scaled_inputs(config: Config) -> list[ScaledInputs]:
    """Return some training inputs raw, scaled by min and max, and standardized."""
    source = make_setup(config).source
    train = dataclasses.replace(source, scaling="raw").load(SEED).train
    raw = train.inputs[:]
    measured = measure(raw, train.lengths, np.arange(len(raw)))
    chosen = slice(0, MAX_INPUTS)
    lengths = None if train.lengths is None else train.lengths[chosen]
    return [
        ScaledInputs(
            kind,
            scaling(kind, measured).apply(raw[chosen], lengths).reshape(len(raw[chosen]), -1),
            train.labels[chosen],
        )
        for kind in SCALINGS
    ]
