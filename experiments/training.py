"""State, step, evaluation, and the one training loop."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.config import Config
from experiments.data.batching import Batch, epoch_indices, evaluation_batches
from experiments.data.loading import Dataset, Split
from experiments.models.cnn import CNN
from experiments.optimizers import make_optimizer

EVALUATION_BATCH = 512
ACCELERATOR_STEPS_PER_CALL = 50


class State(NamedTuple):
    """What a training step changes."""

    params: Any
    batch_stats: Any
    opt_state: optax.OptState


class Metrics(NamedTuple):
    """Loss (cross-entropy in nats) and accuracy (0 to 1), as weighted means or sums."""

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
    """The compiled functions of a run; its seeds share them."""

    init: Callable[[int], State]
    train: Callable[[State, Split], tuple[State, Metrics]]
    evaluate: Callable[[State, Batch], Metrics]


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
    """Return the functions of a run, jitted as its device and configuration ask."""
    total_steps = config.epochs * (len(dataset.train.labels) // config.batch_size)
    model = CNN(config.model.channels, config.norm, dataset.num_classes, total_steps)
    optimizer = make_optimizer(
        config.optimizer, batch_size=config.batch_size, total_steps=total_steps
    )
    image = jax.ShapeDtypeStruct((1, *dataset.train.images.shape[1:]), jnp.float32)

    def init(seed: int) -> State:
        variables = model.lazy_init(jax.random.key(seed), image, train=False)
        params = variables["params"]
        return State(params, variables.get("batch_stats", {}), optimizer.init(params))

    step = _train_step(model, optimizer)
    evaluate = _evaluation_step(model)
    if steps_per_call(config) > 1:
        step = _scanned(step)
    if seeds_together(config):
        step, evaluate = jax.vmap(step), jax.vmap(evaluate, in_axes=(0, None))
    return Program(init, jax.jit(step, donate_argnums=0), jax.jit(evaluate))


def _train_step(
    model: nn.Module, optimizer: optax.GradientTransformation
) -> Callable[[State, Split], tuple[State, Metrics]]:
    def step(state: State, batch: Split) -> tuple[State, Metrics]:
        def loss_of(params: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = model.apply(
                variables, batch.images, train=True, mutable=["batch_stats"]
            )
            loss, accuracy = (m.mean() for m in _metrics(logits, batch.labels))
            return loss, (updated.get("batch_stats", {}), accuracy)

        grad_of = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (batch_stats, accuracy)), grads = grad_of(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, batch_stats, opt_state), Metrics(loss, accuracy)

    return step


def _evaluation_step(model: nn.Module) -> Callable[[State, Batch], Metrics]:
    def evaluate(state: State, batch: Batch) -> Metrics:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits = model.apply(variables, batch.images, train=False)
        metrics = _metrics(logits, batch.labels)
        return Metrics(*(jnp.sum(m, where=batch.weights > 0) for m in metrics))

    return evaluate


def _metrics(logits: jax.Array, labels: jax.Array) -> Metrics:
    """The loss and whether it is right, for each example."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Metrics(loss, (logits.argmax(axis=-1) == labels).astype(jnp.float32))


def _scanned(step: Callable[..., Any]) -> Callable[..., Any]:
    def steps(state: State, batches: Split) -> tuple[State, Metrics]:
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
    histories: list[list[Epoch]] = [[] for _ in seeds]
    for epoch in range(1, config.epochs + 1):
        orders = [
            epoch_indices(len(dataset.train.labels), config.batch_size, seed=seed, epoch=epoch)
            for seed in seeds
        ]
        order = np.stack(orders) if together else orders[0]
        state, trained = _train_epoch(program, state, dataset.train, order, steps_per_call(config))
        tested = _evaluate(program, state, dataset.test)
        trained, tested = jax.device_get((trained, tested))  # the only wait of an epoch
        step = epoch * order.shape[-2]
        reached = [
            Epoch(seed, epoch, step, *train_metrics, *test_metrics)
            for seed, train_metrics, test_metrics in zip(
                seeds,
                _per_seed(trained, len(seeds), np.mean),
                _per_seed(tested, len(seeds), np.sum) / len(dataset.test.labels),
                strict=True,
            )
        ]
        for history, of_seed in zip(histories, reached, strict=True):
            history.append(of_seed)
        on_epoch(reached)
    return histories


def _train_epoch(
    program: Program, state: State, split: Split, order: np.ndarray, steps_per_call: int
) -> tuple[State, list[Metrics]]:
    """Take the steps whose examples stand in `order`, ([seeds,] steps, batch_size)."""
    metrics = []
    for start in range(0, order.shape[-2], steps_per_call):
        stop = start + steps_per_call
        indices = order[..., start, :] if steps_per_call == 1 else order[..., start:stop, :]
        batch = Split(split.images[indices], split.labels[indices])
        state, of_call = program.train(state, batch)
        metrics.append(of_call)
    return state, metrics


def _evaluate(program: Program, state: State, split: Split) -> list[Metrics]:
    """Return the sums over the examples of each batch."""
    return [program.evaluate(state, batch) for batch in evaluation_batches(split, EVALUATION_BATCH)]


def _per_seed(metrics: list[Metrics], num_seeds: int, reduce: Callable[..., Any]) -> np.ndarray:
    """Reduce the metrics of an epoch's calls to (seeds, 2): loss and accuracy."""
    calls = [np.reshape(np.stack(of_call, axis=-1), (num_seeds, -1, 2)) for of_call in metrics]
    return reduce(np.concatenate(calls, axis=1), axis=1)
