"""The activations, statistics and inputs of a trained network as arrays."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxnorm as jn
from experiments.config import Config, RecomputedInference
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
        stats: the running statistics with all their entries; None if there are none.
        measured: the moments of the input for all these examples; None if there are none.
    """

    name: str
    before: np.ndarray
    after: np.ndarray
    running: tuple[np.ndarray, np.ndarray] | None
    batch: tuple[np.ndarray, np.ndarray] | None
    stats: dict[str, Any] | None
    measured: jn.Moments | None


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
    batch_stats = variables.get("batch_stats") or {}
    return [
        Place(
            name,
            _within(sown["input"], sown.get("mask")),
            _within(sown["output"], sown.get("mask")),
            *_statistics(batch_stats, name, of_batch[name]),
            stats := _stats_at(batch_stats, name),
            _moments(sown, stats) if stats else None,
        )
        for name, sown in seen.items()
    ]


def diagnosis(config: Config, found: Sequence[Place], steps: int) -> jn.Diagnosis | None:
    """Return what is wrong with the running statistics of a network, if it has any.

    The validation examples, in evaluation, are the present data. Of statistics that were recomputed
    or frozen before the end it is not known how many steps they had.
    """
    stats = {place.name: place.stats for place in found if place.stats}
    if not stats:
        return None
    recomputed = isinstance(config.inference, RecomputedInference)
    ended_early = recomputed or config.norm.get("frozen_from") is not None
    momentum = None if ended_early else config.norm["momentum"]
    return jn.diagnose(
        stats,
        {place.name: place.measured for place in found if place.stats},
        momentum=momentum,
        steps=None if momentum is None else steps,
        epsilon=config.norm["epsilon"],
    )


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
    stats = _stats_at(batch_stats, name)
    if stats is None:
        return None, None
    running = tuple(np.asarray(stats[key], np.float32) for key in ("mean", "var"))
    values = _masked(sown["input"], sown.get("mask"))
    axes = tuple(range(running[0].ndim - 1, values.ndim - 1))
    return running, (values.mean(axes).filled(np.nan), values.var(axes).filled(np.nan))


def _stats_at(batch_stats: Any, name: str) -> dict[str, Any] | None:
    """Return the running statistics of a place, or None if it has none."""
    for key in name.split("/"):
        batch_stats = batch_stats.get(key, {})
    return batch_stats if "mean" in batch_stats else None


def _moments(sown: dict[str, np.ndarray], stats: dict[str, Any]) -> jn.Moments:
    """Return the moments of the unmasked inputs, separately for each time step."""
    values, mask = sown["input"], sown.get("mask")
    if mask is not None:
        mask = mask.reshape(*mask.shape, *(1,) * (values.ndim - mask.ndim))
    axes = tuple(range(np.ndim(stats["mean"]) - 1, values.ndim - 1))
    return jn.moments(values, axes, where=mask)


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
