"""The compiled functions of a run: initial state, training steps and evaluation."""

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
from experiments.training.diagnostics import Activations, activations
from experiments.training.setup import Setup
from experiments.training.state import State, Sums, first_state, sums_of
from experiments.training.step import TrainStep, at_step, sum_over_devices

ACCELERATOR_STEPS_PER_CALL = 50


class Program(NamedTuple):
    """The compiled functions of a run and its devices. The seeds of the run share them.

    `train` takes the batches of several steps, and the other functions take one batch. Each batch
    contains the examples of this process; only `activations` takes a whole batch. The size of a
    batch is a multiple of `batch_multiple`. If seeds are trained `together`, all arrays have a
    first axis for them, except in `gradients`, which is for one seed.

    Attributes:
        measure: returns the running statistics after a batch and changes no parameters. None if
            evaluation does not use recomputed statistics.
        group: the number of consecutive examples that `evaluate` normalizes by their own
            statistics. None if it uses running statistics.
        gradients: returns the gradient of the mean loss of a training batch; None if it is not
            configured.
        plain: the same program without normalization, to compare the step with;
            None if it is not configured.
    """

    init: Callable[[Config, int], State]
    train: parallel.CompiledStep
    evaluate: Callable[[State, Batch], Sums]
    activations: Callable[[State, Batch], dict[str, dict[str, Activations]]]
    measure: Callable[[State, Batch], Any] | None
    devices: Sequence[jax.Device]
    batch_multiple: int
    group: int | None
    steps_per_call: int
    together: bool
    gradients: Callable[[State, Batch], Any] | None = None
    plain: "Program | None" = None


def steps_per_call(config: Config, setup: Setup) -> int:
    """Return the number of steps of one compiled call, if nothing interrupts them.

    Convolutions inside a scan are slow on a CPU, so there the model determines the number.
    """
    if config.steps_per_call is not None:
        return config.steps_per_call
    if jax.default_backend() == "cpu":
        return setup.model.func.cpu_steps_per_call
    return ACCELERATOR_STEPS_PER_CALL


def seeds_together(config: Config) -> bool:
    """Return whether one program trains all seeds.

    It does not if time or memory of a step is measured. No model is faster with vmap on a CPU.
    """
    if config.seeds_together is not None:
        return config.seeds_together
    return not config.beside_plain and jax.default_backend() != "cpu"


def evaluation_group(config: Config, setup: Setup) -> int | None:
    """Return how many examples evaluation normalizes by their own statistics, or None."""
    by_batches = setup.norm.of_the_batch and isinstance(config.inference, BatchInference)
    return config.inference.batch_size if by_batches else None


def model_of(config: Config, setup: Setup, scope: Scope, *, measures: bool = False) -> nn.Module:
    """Return the model of a run.

    Args:
        measures: whether evaluation measures the batch.
    """
    context = Context(  # a training step sets its own step
        scope, setup.total_steps, config.dtype, step=0, measures=measures
    )
    return setup.model(
        norm=Placement(setup.norm, context),
        num_classes=setup.spec.num_classes,
        vocabulary=setup.spec.vocabulary,
        dtype=config.dtype,
    )


def example(setup: Setup, batch_size: int = 1) -> Batch:
    """Return the shapes of a batch."""
    shape = jax.ShapeDtypeStruct
    dtype = jnp.float32 if setup.spec.vocabulary is None else jnp.int32
    inputs = shape((batch_size, *setup.spec.input_shape), dtype)
    integers = shape((batch_size,), jnp.int32)
    lengths = None if setup.spec.max_length is None else integers
    return Batch(inputs, lengths, integers, shape((batch_size,), bool))


def compile_program(config: Config, setup: Setup) -> Program:
    """Return the compiled functions of a run for its devices and configuration."""
    program = _compile(config, setup)
    if not config.beside_plain:
        return program
    return program._replace(plain=_compile(config, setup._replace(norm=NoNorm())))


def _compile(config: Config, setup: Setup) -> Program:
    devices = parallel.devices(config.parallel)
    scope = parallel.scope(config.parallel, config.sync, len(devices))
    model = model_of(config, setup, scope)
    recomputes = setup.norm.of_the_batch and isinstance(config.inference, RecomputedInference)
    per_call, together = steps_per_call(config, setup), seeds_together(config)

    step = TrainStep(model, setup, config.batch_size, config.accumulate, scope)
    train = _scanned(step) if per_call > 1 else step
    if evaluation_group(config, setup) is None:
        evaluate = partial(_evaluate, model, scope)
    else:
        evaluate = partial(_evaluate_groups, config, setup, scope)
    measure = partial(_measure, model_of(config, setup, scope, measures=True))
    activated = partial(_activations, model_of(config, setup, Scope()))
    if together:
        train, evaluate, measure, activated = map(jax.vmap, (train, evaluate, measure, activated))
    compiled = partial(parallel.compile_step, config.parallel, devices=devices)
    return Program(
        first_state(model, setup, example(setup)),
        compiled(train, batch_axis=(per_call > 1) + together, donate=True),
        compiled(evaluate, batch_axis=int(together), donate=False),
        jax.jit(activated),
        compiled(measure, batch_axis=int(together), donate=False) if recomputes else None,
        devices,
        len(devices) * config.accumulate * setup.norm.batch_multiple,
        evaluation_group(config, setup),
        per_call,
        together,
        compiled(partial(_gradients, step), batch_axis=0, donate=False)
        if config.gradients
        else None,
    )


def _evaluate(model: nn.Module, scope: Scope, state: State, batch: Batch) -> Sums:
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = model.apply(variables, batch.inputs, batch.lengths, batch.mask, train=False)
    return sum_over_devices(sums_of(logits, batch), scope)


def _evaluate_groups(
    config: Config, setup: Setup, scope: Scope, state: State, batch: Batch
) -> Sums:
    """Normalize each group of the batch by its own statistics, as a ghost on one device."""
    groups = len(batch.labels) // config.inference.batch_size
    model = model_of(config, setup, Scope(num_ghosts=groups), measures=True)
    logits, _ = _measured(model, state, batch)
    return sum_over_devices(sums_of(logits, batch), scope)


def _gradients(step: TrainStep, state: State, batch: Batch) -> Any:
    return step.gradients(state, batch)[0]


def _measure(model: nn.Module, state: State, batch: Batch) -> Any:
    return _measured(model, state, batch)[1]["batch_stats"]


def _measured(model: nn.Module, state: State, batch: Batch) -> tuple[jax.Array, Any]:
    """Return the logits of a model that measures the batch, and the updated variables."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return model.apply(
        variables,
        batch.inputs,
        batch.lengths,
        batch.mask,
        train=False,
        mutable=["batch_stats"],
    )


def _activations(model: nn.Module, state: State, batch: Batch) -> dict[str, dict[str, Activations]]:
    """Return values of the input and output of every normalization in training mode."""
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
    return activations(captured.get("intermediates", {}))


def _scanned(step: TrainStep) -> Callable[[State, Batch], State]:
    """Return a function of the batches of several steps, of which the last one is watched."""

    def steps(state: State, batches: Batch) -> State:
        number = len(batches.labels)

        def one(state: State, each: tuple[Batch, jax.Array]) -> tuple[State, None]:
            batch, place = each
            return step(state, batch, watch=place == number - 1), None

        return jax.lax.scan(one, state, (batches, jnp.arange(number)))[0]

    return steps
