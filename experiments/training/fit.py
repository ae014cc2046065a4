"""The training loop for one seed, or for several seeds together."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

import jaxnorm as jn
from experiments.config import FITTED_LOSS, Config
from experiments.data.batching import Batch, evaluation_batches
from experiments.data.splits import Split
from experiments.training import hosts, parallel
from experiments.training.diagnostics import decades_between, kernel_norms, quantiles
from experiments.training.program import Program
from experiments.training.setup import Setup, evaluation_steps
from experiments.training.state import State, Sums
from experiments.training.timing import step_bytes, step_times

EVALUATION_BATCH = 512
FITTED_EXAMPLES = 5_000  # training examples that a model is evaluated on
WATCHED_EXAMPLES = 256  # validation examples that quantiles are computed from
SECONDS_BETWEEN_REPORTS = 1.0
SECONDS_BETWEEN_CHECKPOINTS = 60.0

DONE, DIVERGED, STOPPED = "done", "diverged", "stopped"


class SeedRun(NamedTuple):
    """One seed of one configuration. Seeds that are trained together share a program."""

    config: Config
    seed: int


class Saved(NamedTuple):
    """A checkpoint: the state, with keys and the position in the data, and the seconds so far."""

    state: State
    seconds: Any


class Callbacks(Protocol):
    """The loop calls these methods for each seed; `experiments.launch.run` implements them."""

    def saved_steps(self) -> list[int]:
        """Return the steps of the existing checkpoints, newest first."""

    def restore(self, step: int, like: Saved) -> Saved | None:
        """Return a checkpoint, or None if it is damaged."""

    def save(self, step: int, saved: Saved) -> None:
        """Write a checkpoint."""

    def on_start(self, step: int) -> None:
        """Training starts at this step. Records after it will be written again."""

    def on_progress(self, step: int, loss: float) -> None:
        """Training is at this step, with this mean loss since the last evaluation."""

    def on_evaluation(self, record: dict[str, Any]) -> None:
        """An evaluation gave this record."""

    def on_end(self, result: dict[str, Any], variables: dict[str, Any]) -> None:
        """The seed ended with this result and these parameters and statistics."""


def fit(
    program: Program, setup: Setup, runs: Sequence[SeedRun], callbacks: Sequence[Callbacks]
) -> None:
    """Train seeds to their ends: one, or several together if the program is for several."""
    training = _Training(program, setup, runs, callbacks)
    state = training.start()
    step = int(np.ravel(jax.device_get(state.step))[0])
    for callback in callbacks:
        callback.on_start(step)
    for length, batches in training.calls(step):
        state = program.train(state, batches)
        before, step = step, step + length
        last = step == setup.total_steps
        training.report_progress(state, step)
        if last or step // training.every > before // training.every:
            state = training.evaluate(state, step)
        if training.all_ended:
            break
        if training.is_to_be_saved(before, step):
            training.save(state, step)


class _Training:
    """The loop apart from the state: the data, the results and the time."""

    def __init__(
        self,
        program: Program,
        setup: Setup,
        runs: Sequence[SeedRun],
        callbacks: Sequence[Callbacks],
    ) -> None:
        self.program, self.setup, self.runs, self.callbacks = program, setup, runs, callbacks
        self.config = runs[0].config
        self.datasets = [setup.source.load(run.seed) for run in runs]
        self.every = evaluation_steps(self.config, setup)
        self.ended = [False] * len(runs)
        self.seconds = 0.0
        self.clock = self.reported = self.saved = time.perf_counter()

    @property
    def all_ended(self) -> bool:
        return all(self.ended)

    def start(self) -> State:
        """Return the state of the newest intact checkpoint of all seeds, or the initial state."""
        states = [self.program.init(*run) for run in self.runs]
        first = parallel.replicate(self._stack_runs(states), self.program.devices)
        common = set.intersection(*(set(callback.saved_steps()) for callback in self.callbacks))
        for step in sorted(common, reverse=True):
            like = [Saved(self._select(first, i), np.zeros(())) for i in range(len(states))]
            restored = [
                c.restore(step, saved) for c, saved in zip(self.callbacks, like, strict=True)
            ]
            if hosts.all_agree(all(saved is not None for saved in restored)):
                self.seconds = float(restored[0].seconds)
                states = [jax.device_get(saved.state) for saved in restored]
                return parallel.replicate(self._stack_runs(states), self.program.devices)
        return first

    def calls(self, step: int) -> Iterator[tuple[int, Batch]]:
        """Yield the number of steps and the batches of each call of the program."""
        per_run = self._batches(self.config.batch_size, self.program.batch_multiple, step)
        while step < self.setup.total_steps:
            length = self._call_length(step)
            if self.program.steps_per_call > 1:
                batches = [_stack(list(islice(batches, length))) for batches in per_run]
            else:
                batches = [next(batches) for batches in per_run]
            yield length, self._stack_runs(batches)
            step += length

    def _batches(self, size: int, multiple: int, step: int) -> list[Iterator[Batch]]:
        """Return the training batches of each seed from a step on, as this process reads them."""
        shard = parallel.local_shard(self.program.devices, -(-size // multiple) * multiple)
        return [
            self.setup.source.batches(dataset, size, multiple=multiple, seed=run.seed).from_step(
                step, shard
            )
            for run, dataset in zip(self.runs, self.datasets, strict=True)
        ]

    def _call_length(self, step: int) -> int:
        """Return the number of steps of a call, which ends at an evaluation or the last step."""
        most = min(self.program.steps_per_call, self.config.checkpoint_every or self.every)
        return min(most, self.every - step % self.every, self.setup.total_steps - step)

    def report_progress(self, state: State, step: int) -> None:
        """Report the progress from time to time. Reading the loss waits for the steps."""
        now = time.perf_counter()
        if now - self.reported < SECONDS_BETWEEN_REPORTS:
            return
        self.reported = now
        sums_of_all = jax.device_get(state.sums)
        for i, callback in enumerate(self.callbacks):
            sums = self._select(sums_of_all, i)
            callback.on_progress(step, float(sums.loss) / max(float(sums.examples), 1.0))

    def evaluate(self, state: State, step: int) -> State:
        """Record the results since the last evaluation, and end the seeds that are finished."""
        deployed = self._deployed(state)
        validated = self._evaluated(deployed, [dataset.validation for dataset in self.datasets])
        fitted = self._fitted(deployed) if self.config.target_of == FITTED_LOSS else None
        read = jax.device_get((state.sums, self._activations(deployed), state.watched))
        tested: list[dict[str, float]] = []
        for i, run in enumerate(self.runs):
            if self.ended[i]:
                continue
            sums, activations, layers = self._select(read, i)
            record = self._record(run, step, _of_split("train", _means(sums)), validated[i], layers)
            record["quantiles"] = {
                name: {side: quantiles(values) for side, values in place.items()}
                for name, place in activations.items()
            }
            if fitted:
                record["fitted_loss"] = fitted[i]["loss"]
            self.callbacks[i].on_evaluation(record)
            ended = self._how_it_ends(record, step)
            if ended:
                tested = tested or self._tested(deployed, fitted)
                self._end(deployed, i, ended, record, tested[i])
        nothing = jax.tree.map(np.zeros_like, read[0])
        return state._replace(sums=parallel.replicate(nothing, self.program.devices))

    def _deployed(self, state: State) -> State:
        """Return the state with the statistics that evaluation normalizes by.

        Recomputed statistics are the moments of the first training batches. Each batch is
        normalized by itself, as a training step normalizes its micro-batches, and the moments are
        merged by their counts. The final model is saved with these statistics, but training
        continues without them.
        """
        if self.program.measure is None:
            return state
        size = self.config.batch_size // self.config.accumulate
        multiple = self.program.batch_multiple // self.config.accumulate
        examples = min(self.config.inference.examples, len(self.datasets[0].train.labels))
        kept = jax.device_get(state.batch_stats)
        seen = parallel.replicate(jn.start_recomputing(kept), self.program.devices)
        batches = zip(*self._batches(size, multiple, 0), strict=True)
        for per_run in islice(batches, -(-examples // size)):
            measuring = state._replace(batch_stats=seen)
            seen = self.program.measure(measuring, self._stack_runs(per_run))
        recomputed = jn.finish_recomputing(jax.device_get(seen))
        return state._replace(batch_stats=parallel.replicate(recomputed, self.program.devices))

    def _record(self, run: SeedRun, step: int, *means: dict[str, Any]) -> dict[str, Any]:
        trained, validated, layers = means
        optimizer = self.setup.optimizer.with_numbers(run.config.optimizer)
        rate = optimizer.rate(step - 1, self.config.batch_size, self.setup.total_steps)
        return {
            "step": step,
            "epoch": step / self.setup.epoch_steps,
            "time": round(time.time()),
            "seconds": self._elapsed() / len(self.runs),
            **trained,
            **_of_split("validation", validated),
            "learning_rate": float(rate),
            **jax.tree.map(float, layers),
        }

    def _how_it_ends(self, record: dict[str, Any], step: int) -> str | None:
        losses = (record["train_loss"], record["validation_loss"])
        if not all(math.isfinite(loss) for loss in losses):
            return DIVERGED
        if self._reaches_target(record):
            return STOPPED
        return DONE if step == self.setup.total_steps else None

    def _reaches_target(self, record: dict[str, Any]) -> bool:
        target = self.config.target
        if target is None:
            return False
        if self.config.target_of == FITTED_LOSS:
            return record["fitted_loss"] <= target
        return record["validation_accuracy"] >= target

    def _tested(
        self, state: State, fitted: list[dict[str, float]] | None = None
    ) -> list[dict[str, float]]:
        """Return the final results of each seed on the test data and, if configured, as fitted.

        This is the only use of the test data.

        Args:
            fitted: the results on training examples, if they are known.
        """
        tested = self._evaluated(state, [dataset.test for dataset in self.datasets])
        results = [_of_split("test", means) for means in tested]
        if self.config.has_fitted:
            fitted = fitted or self._fitted(state)
            for result, means in zip(results, fitted, strict=True):
                result |= _of_split("fitted", means)
        return results

    def _fitted(self, state: State) -> list[dict[str, float]]:
        """Return the results of each seed on training examples, in evaluation mode."""
        return self._evaluated(
            state,
            [dataset.train for dataset in self.datasets],
            limit=FITTED_EXAMPLES,
            batch=len(self.datasets[0].test.labels),  # a size that is compiled for the test data
        )

    def _end(
        self,
        state: State,
        i: int,
        ended: str,
        record: dict[str, Any],
        tested: dict[str, float],
    ) -> None:
        """Pass the final result of a seed to its callbacks."""
        keys = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
        result = {key: record[key] for key in keys} | tested
        if ended == DIVERGED:
            chance = 1 / self.setup.spec.num_classes
            result |= {key: chance if "accuracy" in key else math.nan for key in result}
        state = self._select(state, i)
        variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
        self.ended[i] = True
        self.callbacks[i].on_end(
            {
                "seed": self.runs[i].seed,
                "ended": ended,
                "step": record["step"],
                **result,
                "parameters": digest(variables),
                "seconds": self._elapsed() / len(self.runs),
                **self._step_costs(i),
                **self._gradients(state, i),
            },
            variables,
        )

    def _step_costs(self, i: int) -> dict[str, float]:
        """Measure time and memory of the training step of a seed on its first batches, if asked."""
        if not self.config.beside_plain:
            return {}
        length, batches = next(self.calls(0))
        measured = {}
        if self.config.timed_steps is not None:
            measured |= step_times(self.program, *self.runs[i], batches, length)
        if self.config.step_memory:
            measured |= step_bytes(self.program, *self.runs[i], batches)
        return measured

    def _gradients(self, state: State, i: int) -> dict[str, Any]:
        """Measure the gradients of a seed on its first batch before and after training."""
        if self.program.gradients is None:
            return {}
        first = parallel.replicate(self.program.init(*self.runs[i]), self.program.devices)
        batch = next(self._batches(self.config.batch_size, self.program.batch_multiple, 0)[i])
        before, after = (
            kernel_norms(jax.device_get(self.program.gradients(each, batch)))
            for each in (first, state)
        )
        return {
            "gradient_decades": decades_between(before),
            "final_gradient_decades": decades_between(after),
            "gradient_norms": {"before": before, "after": after},
        }

    def is_to_be_saved(self, before: int, step: int) -> bool:
        """Return whether a checkpoint is due, by the step or, in a single process, by time."""
        every = self.config.checkpoint_every
        if every is None:
            return False
        late = time.perf_counter() - self.saved > SECONDS_BETWEEN_CHECKPOINTS
        return step // every > before // every or (late and jax.process_count() == 1)

    def save(self, state: State, step: int) -> None:
        for i, callback in enumerate(self.callbacks):
            if not self.ended[i]:
                callback.save(step, Saved(self._select(state, i), np.asarray(self._elapsed())))
        self.saved = time.perf_counter()

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.clock

    def _evaluated(
        self,
        state: State,
        splits: Sequence[Split],
        *,
        limit: int | None = None,
        batch: int = EVALUATION_BATCH,
    ) -> list[dict[str, float]]:
        """Return the mean loss and the accuracy of each seed on its split, or on `limit` examples.

        If groups of examples are normalized by their own statistics, each group lies on one device.
        The examples are then shuffled, because the composition of the groups matters.
        """
        devices, group = self.program.devices, self.program.group or 1
        multiple = len(devices) * group
        size = -(-min(batch, EVALUATION_BATCH) // group) * group
        padded = -(-min(size, limit or size, len(splits[0].labels)) // multiple) * multiple
        shard = parallel.local_shard(devices, padded)
        batches = [
            evaluation_batches(
                split,
                size,
                multiple=multiple,
                shard=shard,
                limit=limit,
                shuffled=self.program.group is not None,
            )
            for split in splits
        ]
        sums = [
            self.program.evaluate(state, self._stack_runs(per_run))
            for per_run in zip(*batches, strict=True)
        ]
        total = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *jax.device_get(sums))
        return [_means(self._select(total, i)) for i in range(len(splits))]

    def _activations(self, state: State) -> Any:
        few = [
            evaluation_batches(
                jax.tree.map(lambda array: array[:WATCHED_EXAMPLES], dataset.validation),
                WATCHED_EXAMPLES,
                multiple=self.setup.norm.batch_multiple,
            )[0]
            for dataset in self.datasets
        ]
        return self.program.activations(state, self._stack_runs(few))

    def _stack_runs(self, trees: Sequence[Any]) -> Any:
        return _stack(trees) if self.program.together else trees[0]

    def _select(self, tree: Any, i: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[i], tree) if self.program.together else tree


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _means(sums: Sums) -> dict[str, float]:
    examples = max(float(sums.examples), 1.0)
    return {"loss": float(sums.loss) / examples, "accuracy": float(sums.right) / examples}


def _of_split(split: str, means: dict[str, float]) -> dict[str, float]:
    """Return the means under their names in a record."""
    return {f"{split}_{key}": value for key, value in means.items()}


def digest(variables: Any) -> str:
    """Return a digest of parameters and statistics. It is equal only if all bits are equal."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        total.update(jax.tree_util.keystr(path).encode())
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()
