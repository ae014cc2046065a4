"""The compiled functions of a run: its first state, its steps, an evaluation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.config import BatchInference, Config, RecomputedInference
from experiments.data.batching import Batch
from experiments.norms.base import Context, Placement, Scope
from experiments.norms.none import NoNorm
from experiments.training import parallel
from experiments.training.diagnostics import quantiles
from experiments.training.setup import Setup
from experiments.training.state import State, Sums, first_state, sums_of
from experiments.training.step import TrainStep, at_step, of_all_devices

ACCELERATOR_STEPS_PER_CALL = 50


class Program(NamedTuple):
    """The compiled functions of a run and their devices; its seeds share them.

    `train` takes the batches of several steps, the others one batch; of each batch what belongs to
    this process, but `quantiles` a whole one. A batch is filled to a multiple of `batch_multiple`.
    Where several seeds are `together` all arrays have a first axis for them.

    Attributes:
        measure: returns the running statistics of a state after a batch, by which no parameter
            moves; None where they are not recomputed for an evaluation.
        group: how many examples, one after the other, `evaluate` normalizes by their own
            statistics; None where by running ones.
        plain: the same program without normalization, where steps are timed beside its.
    """

    init: Callable[[Config, int], State]
    train: Callable[[State, Batch], State]
    evaluate: Callable[[State, Batch], Sums]
    quantiles: Callable[[State, Batch], dict[str, Any]]
    measure: Callable[[State, Batch], Any] | None
    devices: Sequence[jax.Device]
    batch_multiple: int
    group: int | None
    steps_per_call: int
    together: bool
    plain: "Program | None" = None


def steps_per_call(config: Config, made: Setup) -> int:
    """Return how many steps one compiled call takes, where nothing interrupts them.

    A CPU convolves slowly inside a scan, so there the model says what it gains from.
    """
    if config.steps_per_call is not None:
        return config.steps_per_call
    if jax.default_backend() == "cpu":
        return made.model.func.cpu_steps_per_call
    return ACCELERATOR_STEPS_PER_CALL


def seeds_together(config: Config) -> bool:
    """Whether one program holds all seeds: not where its steps are timed.

    No model gains from vmap on a CPU.
    """
    if config.seeds_together is not None:
        return config.seeds_together
    return config.timed_steps is None and jax.default_backend() != "cpu"


def evaluation_group(config: Config, made: Setup) -> int | None:
    """Return how many examples evaluation normalizes by their own statistics."""
    by_batches = made.norm.of_the_batch and isinstance(config.inference, BatchInference)
    return config.inference.batch_size if by_batches else None


def model_of(config: Config, made: Setup, scope: Scope, *, measures: bool = False) -> nn.Module:
    """Return the run's model.

    Args:
        measures: whether evaluation measures the batch.
    """
    context = Context(  # a step of training gives its own
        scope, made.total_steps, config.dtype, step=0, measures=measures
    )
    return made.model(
        norm=Placement(made.norm, context),
        num_classes=made.spec.num_classes,
        dtype=config.dtype,
    )


def example(made: Setup, batch_size: int = 1) -> Batch:
    """Return the shapes of a batch."""
    shape = jax.ShapeDtypeStruct
    inputs = shape((batch_size, *made.spec.input_shape), jnp.float32)
    integers = shape((batch_size,), jnp.int32)
    lengths = None if made.spec.max_length is None else integers
    return Batch(inputs, lengths, integers, shape((batch_size,), bool))


def compile_program(config: Config, made: Setup) -> Program:
    """Return the functions of a run, compiled as its devices and configuration ask."""
    program = _compile(config, made)
    if config.timed_steps is None:
        return program
    return program._replace(plain=_compile(config, made._replace(norm=NoNorm())))


def _compile(config: Config, made: Setup) -> Program:
    devices = parallel.devices(config.parallel)
    scope = parallel.scope(config.parallel, config.sync, len(devices))
    model = model_of(config, made, scope)
    recomputes = made.norm.of_the_batch and isinstance(config.inference, RecomputedInference)
    per_call, together = steps_per_call(config, made), seeds_together(config)

    step = TrainStep(model, made, config.batch_size, config.accumulate, scope)
    train = _scanned(step) if per_call > 1 else step
    if evaluation_group(config, made) is None:
        evaluate = partial(_evaluate, model, scope)
    else:
        evaluate = partial(_evaluate_groups, config, made, scope)
    measure = partial(_measure, model_of(config, made, scope, measures=True))
    watch = partial(_quantiles, model_of(config, made, Scope()))
    if together:
        train, evaluate, measure, watch = map(jax.vmap, (train, evaluate, measure, watch))
    compiled = partial(parallel.compile_step, config.parallel, devices=devices)
    return Program(
        first_state(model, made, example(made)),
        compiled(train, batch_axis=(per_call > 1) + together, donate=True),
        compiled(evaluate, batch_axis=int(together), donate=False),
        jax.jit(watch),
        compiled(measure, batch_axis=int(together), donate=False) if recomputes else None,
        devices,
        len(devices) * config.accumulate * made.norm.batch_multiple,
        evaluation_group(config, made),
        per_call,
        together,
    )


def _evaluate(model: nn.Module, scope: Scope, state: State, batch: Batch) -> Sums:
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = model.apply(variables, batch.inputs, batch.lengths, batch.mask, train=False)
    return of_all_devices(sums_of(logits, batch), scope)


def _evaluate_groups(config: Config, made: Setup, scope: Scope, state: State, batch: Batch) -> Sums:
    """Normalize each group of the batch by its own statistics: as a ghost, of one device alone."""
    groups = len(batch.labels) // config.inference.batch_size
    model = model_of(config, made, Scope(num_ghosts=groups), measures=True)
    logits, _ = _measured(model, state, batch)
    return of_all_devices(sums_of(logits, batch), scope)


def _measure(model: nn.Module, state: State, batch: Batch) -> Any:
    return _measured(model, state, batch)[1]["batch_stats"]


def _measured(model: nn.Module, state: State, batch: Batch) -> tuple[jax.Array, Any]:
    """Return the logits of a model that measures, and what it measured."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return model.apply(
        variables,
        batch.inputs,
        batch.lengths,
        batch.mask,
        train=False,
        mutable=["batch_stats"],
    )


def _quantiles(model: nn.Module, state: State, batch: Batch) -> dict[str, Any]:
    """Return the quantiles of what goes in and out of every normalization, as training sees it."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    for_dropout, for_noise = jax.random.split(key)
    _, captured = at_step(model, state.step).apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        batch.inputs,
        batch.lengths,
        batch.mask,
        train=True,
        mutable=["intermediates", "batch_stats"],
        rngs={"dropout": for_dropout, "noise": for_noise},
    )
    return quantiles(captured.get("intermediates", {}))


def _scanned(step: Callable[[State, Batch], State]) -> Callable[[State, Batch], State]:
    def steps(state: State, batches: Batch) -> State:
        return jax.lax.scan(lambda state, batch: (step(state, batch), None), state, batches)[0]

    return steps
