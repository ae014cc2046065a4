"""State, step, evaluation, and the one training loop."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnorm as jn
from experiments import parallel
from experiments.config import Config
from experiments.data.batching import Batch, Rows, evaluation_rows, training_rows
from experiments.data.loading import Dataset, Split
from experiments.models.cnn import CNN
from experiments.optimizers import make_optimizer
from experiments.parallel import Scope

EVALUATION_BATCH = 512
ACCELERATOR_STEPS_PER_CALL = 50


class State(NamedTuple):
    """What a training step changes."""

    params: Any
    batch_stats: Any
    opt_state: optax.OptState


class Metrics(NamedTuple):
    """Sums over examples: the loss (cross-entropy in nats), and how many are right."""

    loss: jax.Array
    accuracy: jax.Array


class Epoch(NamedTuple):
    """What one seed reached after an epoch, numbered from 1. A loss may be NaN."""

    seed: int
    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float


class Program(NamedTuple):
    """The compiled functions of a run and their devices; its seeds share them.

    `train` and `evaluate` take of a batch what belongs to this process. A batch is filled to a
    multiple of `batch_multiple`.
    """

    init: Callable[[int], State]
    train: Callable[[State, Batch], tuple[State, Metrics]]
    evaluate: Callable[[State, Batch], Metrics]
    devices: Sequence[jax.Device]
    batch_multiple: int


def train(
    config: Config, dataset: Dataset, on_epoch: Callable[[list[Epoch]], None]
) -> list[list[Epoch]]:
    """Train every seed of a run and return the history of each.

    `on_epoch` is given what the seeds trained together reached, after each of their epochs.
    """
    seeds = range(config.seeds)
    together = seeds_together(config)
    program = compile_program(config, dataset)
    groups = [list(seeds)] if together else [[seed] for seed in seeds]
    return [
        history for group in groups for history in _fit(program, config, dataset, group, on_epoch)
    ]


def steps_per_call(config: Config) -> int:
    """Steps in one compiled call. A CPU convolves slowly inside a scan, so there it is 1."""
    if config.steps_per_call is not None:
        return config.steps_per_call
    return 1 if jax.default_backend() == "cpu" else ACCELERATOR_STEPS_PER_CALL


def seeds_together(config: Config) -> bool:
    """Whether one program holds all seeds. A CPU convolves slowly under vmap, so there not."""
    if config.seeds_together is not None:
        return config.seeds_together
    return jax.default_backend() != "cpu"


def compile_program(config: Config, dataset: Dataset) -> Program:
    """Return the functions of a run, compiled as its devices and configuration ask."""
    devices = parallel.devices(config.parallel)
    total_steps = config.epochs * math.ceil(len(dataset.train.labels) / config.batch_size)
    scope = parallel.scope(config, len(devices))
    model = CNN(config.model.channels, config.norm, scope, dataset.num_classes, total_steps)
    optimizer = make_optimizer(
        config.optimizer, batch_size=config.batch_size, total_steps=total_steps
    )
    image = jax.ShapeDtypeStruct((1, *dataset.train.images.shape[1:]), jnp.float32)

    def init(seed: int) -> State:
        variables = model.lazy_init(jax.random.key(seed), image, train=False)
        params = variables["params"]
        return State(params, variables.get("batch_stats", {}), optimizer.init(params))

    step = _train_step(model, optimizer, config.batch_size)
    evaluate = _evaluation_step(model)
    scanned, together = steps_per_call(config) > 1, seeds_together(config)
    if scanned:
        step = _scanned(step)
    if together:
        step, evaluate = jax.vmap(step), jax.vmap(evaluate, in_axes=(0, None))
    compiled = partial(parallel.compile_step, config.parallel, devices=devices)
    return Program(
        init,
        compiled(step, batch_axis=scanned + together, donate=True),
        compiled(evaluate, batch_axis=0, donate=False),
        devices,
        parallel.batch_multiple(config, len(devices)),
    )


def _train_step(
    model: CNN, optimizer: optax.GradientTransformation, batch_size: int
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """Every example weighs the same, so that a smaller last batch makes a smaller step."""

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def loss_of(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = model.apply(
                variables, batch.images, batch.mask, train=True, mutable=["batch_stats"]
            )
            metrics = _metrics(logits, batch)
            return metrics.loss, (updated.get("batch_stats", {}), metrics)

        grads, (batch_stats, metrics) = jax.grad(loss_of, has_aux=True)(state.params)
        grads, metrics = _of_all_devices((grads, metrics), model.sync)
        grads = jax.tree.map(lambda grad: grad / batch_size, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, _of_all_groups(batch_stats, model.sync), opt_state), metrics

    return step


def _evaluation_step(model: CNN) -> Callable[[State, Batch], Metrics]:
    def evaluate(state: State, batch: Batch) -> Metrics:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits = model.apply(variables, batch.images, train=False)
        return _of_all_devices(_metrics(logits, batch), model.sync)

    return evaluate


def _of_all_devices(sums: Any, scope: Scope) -> Any:
    """Add up what each device has of its part of the batch."""
    return sums if scope.axis_name is None else jax.lax.psum(sums, scope.axis_name)


def _of_all_groups(batch_stats: Any, scope: Scope) -> Any:
    """Merge the running statistics, which groups of devices update each by its examples."""
    if scope.axis_index_groups is None:
        return batch_stats
    return jn.sync_batch_stats(batch_stats, scope.axis_name)


def _metrics(logits: jax.Array, batch: Batch) -> Metrics:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    right = (logits.argmax(axis=-1) == batch.labels).astype(jnp.float32)
    return Metrics(*(jnp.sum(values, where=batch.mask) for values in (loss, right)))


def _scanned(step: Callable[..., Any]) -> Callable[..., Any]:
    def steps(state: State, batches: Batch) -> tuple[State, Metrics]:
        return jax.lax.scan(step, state, batches)

    return steps


def _fit(
    program: Program,
    config: Config,
    dataset: Dataset,
    seeds: Sequence[int],
    on_epoch: Callable[[list[Epoch]], None],
) -> list[list[Epoch]]:
    """Train one seed, or several together on a first axis of every array."""
    together = seeds_together(config)
    states = [program.init(seed) for seed in seeds]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if together else states[0]
    state = parallel.replicate(state, program.devices)
    num_train, num_test = len(dataset.train.labels), len(dataset.test.labels)
    histories: list[list[Epoch]] = [[] for _ in seeds]
    for epoch in range(1, config.epochs + 1):
        orders = [
            training_rows(
                num_train,
                config.batch_size,
                multiple=program.batch_multiple,
                seed=seed,
                epoch=epoch,
            )
            for seed in seeds
        ]
        rows = Rows(*map(np.stack, zip(*orders, strict=True))) if together else orders[0]
        state, trained = _train_epoch(program, state, dataset.train, rows, steps_per_call(config))
        tested = _evaluate(program, state, dataset.test)
        trained, tested = jax.device_get((trained, tested))  # the only wait of an epoch
        step = epoch * rows.indices.shape[-2]
        reached = [
            Epoch(seed, epoch, step, *train_metrics, *test_metrics)
            for seed, train_metrics, test_metrics in zip(
                seeds,
                _per_seed(trained, len(seeds)) / num_train,
                _per_seed(tested, len(seeds)) / num_test,
                strict=True,
            )
        ]
        for history, of_seed in zip(histories, reached, strict=True):
            history.append(of_seed)
        on_epoch(reached)
    return histories


def _train_epoch(
    program: Program, state: State, split: Split, rows: Rows, steps_per_call: int
) -> tuple[State, list[Metrics]]:
    """Take the steps of ([seeds,] steps, batch) rows; return the sums of each call."""
    rows = _own(program, rows)
    metrics = []
    for start in range(0, rows.indices.shape[-2], steps_per_call):
        which = start if steps_per_call == 1 else slice(start, start + steps_per_call)
        state, of_call = program.train(state, rows.batches(which).of(split))
        metrics.append(of_call)
    return state, metrics


def _evaluate(program: Program, state: State, split: Split) -> list[Metrics]:
    """Return the sums of each batch."""
    rows = evaluation_rows(len(split.labels), EVALUATION_BATCH, multiple=len(program.devices))
    rows = _own(program, rows)
    batches = (rows.batches(step).of(split) for step in range(len(rows.indices)))
    return [program.evaluate(state, batch) for batch in batches]


def _own(program: Program, rows: Rows) -> Rows:
    """Of every batch, what this process has to read."""
    return rows.part(parallel.own_part(program.devices, rows.indices.shape[-1]))


def _per_seed(metrics: list[Metrics], num_seeds: int) -> np.ndarray:
    """Add up the metrics of an epoch's calls, (seeds, 2): loss and accuracy."""
    calls = [np.reshape(np.stack(of_call, axis=-1), (num_seeds, -1, 2)) for of_call in metrics]
    return np.concatenate(calls, axis=1).sum(axis=1)
