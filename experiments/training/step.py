"""A training step: gradients, statistics and update."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jaxnorm as jn
from experiments.data.batching import Batch
from experiments.norms.base import Scope
from experiments.training.diagnostics import watched
from experiments.training.setup import Setup
from experiments.training.state import State, Sums, no_sums, sums_of


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """A training step.

    Every example has the same weight, so a smaller last batch makes a smaller update.

    Attributes:
        model: the model with its normalizations.
        accumulate: the number of micro-batches of a step.
    """

    model: nn.Module
    setup: Setup
    batch_size: int
    accumulate: int
    scope: Scope

    def __call__(self, state: State, batch: Batch, watch: jax.Array | bool = True) -> State:
        """Return the next state; its diagnostics are of this step if `watch`."""
        grads, batch_stats, sums = self.gradients(state, batch)
        updates, opt_state = self._optimizer(state).update(grads, state.opt_state, state.params)
        return State(
            optax.apply_updates(state.params, updates),
            batch_stats,
            opt_state,
            state.step + 1,
            state.key,
            state.numbers,
            jax.tree.map(jnp.add, state.sums, sums),
            jax.lax.cond(watch, self._watched, lambda *_: state.watched, grads, state, batch_stats),
        )

    def _watched(self, grads: Any, state: State, batch_stats: Any) -> dict[str, Any]:
        """Return the diagnostics of a step from `state`."""
        momentum = getattr(self.setup.norm, "momentum", None)
        return watched(grads, state.batch_stats, batch_stats, momentum)

    def gradients(self, state: State, batch: Batch) -> tuple[Any, Any, Sums]:
        """Return the gradient of the mean loss, the new statistics and the sums."""
        grads, batch_stats, sums = self._gradients(state, batch)
        grads, sums = sum_over_devices((grads, sums), self.scope)
        batch_stats = _merge_groups(batch_stats, self.scope)
        return jax.tree.map(lambda grad: grad / self.batch_size, grads), batch_stats, sums

    def _optimizer(self, state: State) -> optax.GradientTransformation:
        optimizer = self.setup.optimizer.with_numbers(state.numbers)
        return optimizer.transformation(self.batch_size, self.setup.total_steps)

    def _gradients(self, state: State, batch: Batch) -> tuple[Any, Any, Sums]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        if self.accumulate > 1:
            return self._accumulated_gradients(state, batch, key)
        model = at_step(self.model, state.step)
        return self._batch_gradients(model, state.params, state.batch_stats, batch, key)

    def _accumulated_gradients(
        self, state: State, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Sums]:
        """Process micro-batches one after the other, with the results of ghosts of one batch."""
        of_the_batch = self.setup.norm.of_the_batch

        def micro_step(carried: Any, micro: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            grads, seen, sums = carried
            of_micro = self._batch_gradients(self.model, state.params, seen, *micro)
            added = jax.tree.map(jnp.add, (grads, sums), (of_micro[0], of_micro[2]))
            return (added[0], of_micro[1], added[1]), None

        none = (
            jax.tree.map(jnp.zeros_like, state.params),
            jn.start_recomputing(state.batch_stats) if of_the_batch else state.batch_stats,
            no_sums(),
        )
        keys = jax.random.split(key, self.accumulate)
        micros = jax.tree.map(partial(_micro_batches, number=self.accumulate), batch)
        (grads, seen, sums), _ = jax.lax.scan(micro_step, none, (micros, keys))
        if of_the_batch:
            seen = jn.finish_accumulating(seen, momentum=self.setup.norm.momentum)
        return grads, seen, sums

    def _batch_gradients(
        self, model: nn.Module, params: Any, batch_stats: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Sums]:
        """Return the gradient of the sum of losses, the new statistics, and the sums."""

        for_dropout, for_noise = jax.random.split(key)
        if self.scope.axis_name is not None:  # the examples differ between devices
            for_dropout = jax.random.fold_in(for_dropout, jax.lax.axis_index(self.scope.axis_name))

        def loss_of(params: Any, batch_stats: Any) -> tuple[jax.Array, tuple[Any, Sums]]:
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                batch.inputs,
                batch.lengths,
                batch.mask,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": for_dropout, "noise": for_noise},
            )
            sums = sums_of(logits, batch)
            return sums.loss, (updated.get("batch_stats", {}), sums)

        overwritten = self.setup.norm.overwritten
        if not overwritten:
            grads, (batch_stats, sums) = jax.grad(loss_of, has_aux=True)(params, batch_stats)
            return grads, batch_stats, sums
        gradients = jax.grad(loss_of, argnums=(0, 1), has_aux=True)
        (grads, moved), (batch_stats, sums) = gradients(params, batch_stats)
        return grads, _overwritten(batch_stats, moved, overwritten), sums


def _micro_batches(array: jax.Array, number: int) -> jax.Array:
    """Split the examples so that each device has a share of every micro-batch."""
    return jnp.moveaxis(array.reshape(-1, number, *array.shape[1:]), 1, 0)


def _overwritten(batch_stats: Any, moved: Any, names: tuple[str, ...]) -> Any:
    """Replace the named entries by their gradients."""

    def chosen(path: tuple[Any, ...], old: jax.Array, new: jax.Array) -> jax.Array:
        return new if path[-1].key in names else old

    return jax.tree_util.tree_map_with_path(chosen, batch_stats, moved)


def at_step(model: nn.Module, step: jax.Array) -> nn.Module:
    """Return the model with the current step in its normalizations, if they need it."""
    if model.norm.norm.frozen_from is None:
        return model
    context = model.norm.context._replace(step=step)
    return model.clone(norm=dataclasses.replace(model.norm, context=context))


def sum_over_devices(sums: Any, scope: Scope) -> Any:
    """Sum over all devices."""
    return sums if scope.axis_name is None else jax.lax.psum(sums, scope.axis_name)


def _merge_groups(batch_stats: Any, scope: Scope) -> Any:
    """Merge the running statistics, which each group of devices updates separately."""
    if scope.axis_index_groups is None:
        return batch_stats
    return jn.sync_batch_stats(batch_stats, scope.axis_name)
