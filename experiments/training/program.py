"""The compiled functions of a run: its first state, a step, an evaluation."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jaxnorm as jn
from experiments.config import Config
from experiments.data.batching import Batch
from experiments.norms.base import Context, Norm, Placement, Scope
from experiments.training import parallel
from experiments.training.diagnostics import distance_to_running, gradient_norms, quantiles
from experiments.training.optimizers import BATCH
from experiments.training.setup import Setup

ACCELERATOR_STEPS_PER_CALL = 50


class Sums(NamedTuple):
    """Sums over examples: the loss (cross-entropy in nats), how many are right, and how many."""

    loss: jax.Array
    right: jax.Array
    examples: jax.Array

    @classmethod
    def none(cls) -> "Sums":
        return cls(*(jnp.zeros(()) for _ in cls._fields))

    def __add__(self, other: "Sums") -> "Sums":  # type: ignore[override]
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


class State(NamedTuple):
    """All that a training step changes, and what makes one run of a program another.

    Attributes:
        step: the number of steps taken, which is also the position in the data.
        key: the data of a random key, from which each step draws its own.
        numbers: those of the optimizer.
        sums: of the steps since the last evaluation.
        watched: what the last step showed of gradients and statistics.
    """

    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    step: jax.Array
    key: jax.Array
    numbers: dict[str, jax.Array]
    sums: Sums
    watched: dict[str, Any]


class Program(NamedTuple):
    """The compiled functions of a run and their devices; its seeds share them.

    `train` takes the batches of several steps, `evaluate` and `watch` one batch; of each batch what
    belongs to this process. A batch is filled to a multiple of `batch_multiple`. Where several
    seeds are `together` all arrays have a first axis for them.
    """

    init: Callable[[Config, int], State]
    train: Callable[[State, Batch], State]
    evaluate: Callable[[State, Batch], Sums]
    quantiles: Callable[[State, Batch], dict[str, Any]]
    devices: Sequence[jax.Device]
    batch_multiple: int
    steps_per_call: int
    together: bool


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
    """Whether one program holds all seeds. No model gains from vmap on a CPU."""
    if config.seeds_together is not None:
        return config.seeds_together
    return jax.default_backend() != "cpu"


def model_of(config: Config, made: Setup, scope: Scope, norm: Norm | None = None) -> nn.Module:
    """Return the run's model, with another normalization where one is given."""
    context = Context(scope, made.total_steps, config.dtype)
    return made.model(
        norm=Placement(norm or made.norm, context),
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
    devices = parallel.devices(config.parallel)
    scope = parallel.scope(config.parallel, config.sync, len(devices))
    model = model_of(config, made, scope)
    cumulating = None
    if config.accumulate > 1 and made.norm.of_the_batch:
        cumulating = model_of(config, made, scope, dataclasses.replace(made.norm, momentum=None))
    per_call, together = steps_per_call(config, made), seeds_together(config)

    step = _Step(model, cumulating, made, config.batch_size, config.accumulate, scope)
    train = _scanned(step) if per_call > 1 else step
    evaluate, watch = partial(_evaluate, model, scope), partial(_quantiles, model)
    if together:
        train, evaluate, watch = (jax.vmap(function) for function in (train, evaluate, watch))
    compiled = partial(parallel.compile_step, config.parallel, devices=devices)
    return Program(
        _first_state(model, made),
        compiled(train, batch_axis=(per_call > 1) + together, donate=True),
        compiled(evaluate, batch_axis=int(together), donate=False),
        jax.jit(watch),
        devices,
        len(devices) * config.accumulate * getattr(made.norm, "ghost_size", 1),
        per_call,
        together,
    )


def _first_state(model: nn.Module, made: Setup) -> Callable[[Config, int], State]:
    """Return a function to the state before the first step."""

    @jax.jit
    def state(key: jax.Array, numbers: dict[str, Any], scale: float) -> State:
        for_params, for_steps = jax.random.split(key)
        batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example(made))
        variables = model.init({"params": for_params}, batch.inputs, batch.lengths, train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        params = _scaled(params, scale)
        optimizer = made.optimizer.with_numbers(numbers)
        nothing = {
            "gradient_norm": gradient_norms(params),
            "statistics": distance_to_running(batch_stats, batch_stats, 0.0),
        }
        return State(
            params,
            batch_stats,
            optimizer.transformation(BATCH, made.total_steps).init(params),
            jnp.zeros((), jnp.int32),
            jax.random.key_data(for_steps),
            jax.tree.map(jnp.float32, numbers),
            Sums.none(),
            jax.tree.map(jnp.zeros_like, nothing),
        )

    def first_state(config: Config, seed: int) -> State:
        numbers = {name: config.optimizer[name] for name in made.optimizer.NUMBERS}
        return state(jax.random.key(seed), numbers, config.model["init_scale"])

    return first_state


def _scaled(params: Any, scale: jax.Array) -> Any:
    """All weights times a scale, which is one more number that runs of a program differ in."""

    def scaled(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf * scale if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(scaled, params)


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """A step of training.

    Every example weighs the same, so that a smaller last batch makes a smaller step.
    """

    model: nn.Module
    cumulating: nn.Module | None  # whose running statistics merge all that they see
    made: Setup
    batch_size: int
    accumulate: int
    scope: Scope

    def __call__(self, state: State, batch: Batch) -> State:
        grads, batch_stats, sums = self._gradients(state, batch)
        grads, sums = _of_all_devices((grads, sums), self.scope)
        batch_stats = _of_all_groups(batch_stats, self.scope)
        grads = jax.tree.map(lambda grad: grad / self.batch_size, grads)
        updates, opt_state = self._optimizer(state).update(grads, state.opt_state, state.params)
        momentum = getattr(self.made.norm, "momentum", None)
        return State(
            optax.apply_updates(state.params, updates),
            batch_stats,
            opt_state,
            state.step + 1,
            state.key,
            state.numbers,
            state.sums + sums,
            {
                "gradient_norm": gradient_norms(grads),
                "statistics": distance_to_running(state.batch_stats, batch_stats, momentum),
            },
        )

    def _optimizer(self, state: State) -> optax.GradientTransformation:
        optimizer = self.made.optimizer.with_numbers(state.numbers)
        return optimizer.transformation(self.batch_size, self.made.total_steps)

    def _gradients(self, state: State, batch: Batch) -> tuple[Any, Any, Sums]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        if self.accumulate > 1:
            return self._accumulated(state, batch, key)
        model = self.model
        if self.made.norm.frozen_from is not None:
            context = model.norm.context._replace(step=state.step)
            model = model.clone(norm=dataclasses.replace(model.norm, context=context))
        return _gradients(model, state.params, state.batch_stats, batch, key)

    def _accumulated(self, state: State, batch: Batch, key: jax.Array) -> tuple[Any, Any, Sums]:
        """Of micro-batches one after the other, as ghosts of one batch would give."""
        model = self.cumulating or self.model

        def micro_step(carried: Any, micro: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            grads, seen, sums = carried
            of_micro = _gradients(model, state.params, seen, *micro)
            added = jax.tree.map(jnp.add, (grads, sums), (of_micro[0], of_micro[2]))
            return (added[0], of_micro[1], added[1]), None

        none = jax.tree.map(jnp.zeros_like, state.params), _nothing_seen(state), Sums.none()
        keys = jax.random.split(key, self.accumulate)
        micros = jax.tree.map(partial(_micro_batches, number=self.accumulate), batch)
        (grads, seen, sums), _ = jax.lax.scan(micro_step, none, (micros, keys))
        if self.cumulating:
            seen = _decayed(state.batch_stats, seen, self.made.norm.momentum)
        return grads, seen, sums


def _micro_batches(array: jax.Array, number: int) -> jax.Array:
    """Deal the examples out, so that each device has its part of every micro-batch."""
    return jnp.moveaxis(array.reshape(-1, number, *array.shape[1:]), 1, 0)


def _is_statistics(tree: Any) -> bool:
    return isinstance(tree, dict) and "mean" in tree


def _nothing_seen(state: State) -> Any:
    """Return statistics of no example at all, which merge all that they will see."""

    def empty(stats: Any) -> Any:
        return {**jax.tree.map(jnp.zeros_like, stats), "count": jnp.zeros(stats["mean"].shape[:-1])}

    return jax.tree.map(empty, state.batch_stats, is_leaf=_is_statistics)


def _decayed(old: Any, seen: Any, momentum: float) -> Any:
    """momentum * old + (1 - momentum) * seen, where anything was seen."""

    def decayed(old: Any, seen: Any) -> Any:
        new = {key: momentum * old[key] + (1 - momentum) * seen[key] for key in ("mean", "var")}
        counted = seen["count"][..., None] > 0
        return {**old, **{key: jnp.where(counted, new[key], old[key]) for key in new}}

    return jax.tree.map(decayed, old, seen, is_leaf=_is_statistics)


def _gradients(
    model: nn.Module, params: Any, batch_stats: Any, batch: Batch, key: jax.Array
) -> tuple[Any, Any, Sums]:
    """Return the gradient of the sum of the losses, the new statistics, and the sums."""

    def loss_of(params: Any) -> tuple[jax.Array, tuple[Any, Sums]]:
        for_dropout, for_noise = jax.random.split(key)
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch.inputs,
            batch.lengths,
            batch.mask,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": for_dropout, "noise": for_noise},
        )
        sums = _sums(logits, batch)
        return sums.loss, (updated.get("batch_stats", {}), sums)

    grads, (batch_stats, sums) = jax.grad(loss_of, has_aux=True)(params)
    return grads, batch_stats, sums


def _evaluate(model: nn.Module, scope: Scope, state: State, batch: Batch) -> Sums:
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = model.apply(variables, batch.inputs, batch.lengths, batch.mask, train=False)
    return _of_all_devices(_sums(logits, batch), scope)


def _quantiles(model: nn.Module, state: State, batch: Batch) -> dict[str, Any]:
    """Return the quantiles of what goes in and out of every normalization, in evaluation."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    _, captured = model.apply(
        variables,
        batch.inputs,
        batch.lengths,
        batch.mask,
        train=False,
        mutable=["intermediates"],
    )
    return quantiles(captured.get("intermediates", {}))


def _of_all_devices(sums: Any, scope: Scope) -> Any:
    """Add up what each device has of its part of the batch."""
    return sums if scope.axis_name is None else jax.lax.psum(sums, scope.axis_name)


def _of_all_groups(batch_stats: Any, scope: Scope) -> Any:
    """Merge the running statistics, which groups of devices update each by its examples."""
    if scope.axis_index_groups is None:
        return batch_stats
    return jn.sync_batch_stats(batch_stats, scope.axis_name)


def _sums(logits: jax.Array, batch: Batch) -> Sums:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    right = (logits.argmax(axis=-1) == batch.labels).astype(jnp.float32)
    values = (loss, right, jnp.ones_like(right))
    return Sums(*(jnp.sum(value, where=batch.mask) for value in values))


def _scanned(step: Callable[[State, Batch], State]) -> Callable[[State, Batch], State]:
    def steps(state: State, batches: Batch) -> State:
        return jax.lax.scan(lambda state, batch: (step(state, batch), None), state, batches)[0]

    return steps
