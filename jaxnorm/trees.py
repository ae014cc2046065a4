"""Whole trees of running statistics: freezing and recomputing them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import checks as _checks
from jaxnorm import running as _running
from jaxnorm.paths import changed, dicts, joined, matches

__all__ = ["finish_accumulating", "finish_recomputing", "freeze_stats", "start_recomputing"]

STATS = {"mean", "var"}
RECOMPUTED = "statistics that start_recomputing began"
_OF_BATCHES = {"mean", "var", "count", "steps", "frozen", "recomputed"}  # fits have more entries


def freeze_stats(batch_stats: Any, *parts: str, frozen: bool = True) -> Any:
    """The running statistics, to be used and left as they are in training too, as in evaluation.

    Marks the statistics of each named normalization by an entry "frozen" without a value, so the
    tree has the same leaves; `batch_norm`, `ghost_batch_norm`, `batch_renorm` and the Linen
    modules then normalize with them whatever `train` or `use_running_average` is, and update
    nothing; nor does `update_input_stats`. The parameters go on learning; stop those in the
    optimizer. For NNX models there is `jaxnorm.nnx.freeze_stats`.

    A tree does not tell whose statistics it holds, and Flax's own `BatchNorm` takes the mark and
    does not heed it: `jaxnorm.linen.check_marks` says so of a model, and `jaxnorm.linen.BatchNorm`
    takes its place with the same arguments and variables.

    Args:
        batch_stats: the statistics of one normalization, or nested dicts of them, as Linen's
            `variables["batch_stats"]`.
        parts: paths of normalizations, or of what holds them; all where none is given.
        frozen: False takes the mark away. Do so before saving a checkpoint that is to restore into
            what `init` makes; one saved with the mark restores into a target frozen alike.

    Raises:
        TypeError: the state of an NNX model, which would take the mark and not heed it.
        ValueError: a part with no statistics in it; the message lists those that there are.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = {"encoder": {"norm": jn.init_batch_stats(1)}, "head": jn.init_batch_stats(1)}
        >>> stats = jn.freeze_stats(stats, "encoder")
        >>> y, new = jn.batch_norm(jnp.ones((2, 1)), stats["encoder"]["norm"], train=True)
        >>> print(y[:, 0].round(3), new["mean"])
        [1. 1.] [0.]
    """

    _check_not_nnx("freeze_stats", batch_stats)

    def marked(stats: Mapping[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in stats.items() if key != "frozen"}
        return rest | ({"frozen": None} if frozen else {})

    return changed(batch_stats, parts or ("*",), STATS, marked)


def start_recomputing(batch_stats: Any, *parts: str) -> Any:
    """The running statistics, and beside them new ones that merge all that training sees.

    Until `finish_recomputing`, every training step merges the moments of its batch exactly, within
    and between batches and by their counts, whatever the momentum is, and the old statistics stay
    as they are: evaluation and the corrections of batch renormalization go on with them. One pass
    over any batches gives every layer the moments of all that it saw, in each batch after earlier
    layers that normalized by the batch ("precise" statistics). The parameters are the caller's to
    leave as they are.

    Adds to the statistics of each named normalization an entry "recomputed" with a count, a mean
    and a variance for each channel, so a compiled step is compiled once more. Heeded by
    `batch_norm`, `ghost_batch_norm`, `batch_renorm` and the Linen modules; for NNX models there is
    `jaxnorm.nnx.start_recomputing`. Flax's own `BatchNorm` does not heed it
    (`jaxnorm.linen.check_marks`). Frozen statistics do not move; what has other entries (fits of
    inputs) is not marked.

    Args:
        batch_stats: the statistics of one normalization, or nested dicts of them, as Linen's
            `variables["batch_stats"]`.
        parts: paths of normalizations, or of what holds them; all where none is given.

    Raises:
        TypeError: the state of an NNX model.
        ValueError: statistics that are being recomputed already or are narrower than float32; a
            part with no statistics in it.

    Conventions:
        The variance is that of one big batch: between the means of the batches too, and biased.
        PyTorch's `swa_utils.update_bn` averages unbiased variances within batches, each batch
        weighing the same.

    References:
        Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = jn.start_recomputing(jn.init_batch_stats(1))
        >>> for batch in jnp.array([[1.0], [3.0]]), jnp.array([[8.0]] * 6):
        ...     _, stats = jn.batch_norm(batch, stats, train=True)
        >>> stats = jn.finish_recomputing(stats)
        >>> print(stats["mean"], stats["var"])
        [6.5] [7.]
    """
    _check_not_nnx("start_recomputing", batch_stats)
    what = "mean and var of a batch normalization (fits and online statistics stay as they are)"
    return changed(batch_stats, parts or ("*",), STATS, _running.started, _OF_BATCHES, what)


def finish_recomputing(batch_stats: Any, *parts: str) -> Any:
    """The recomputed statistics in the place of the old ones, as from before `start_recomputing`.

    Where nothing counted the old ones stay, and a warning names them, where the counts are known
    (not under `jit`); the `steps` of batch renormalization are as they were.

    Args:
        batch_stats: what `start_recomputing` made, after any number of training steps.
        parts: paths of what is being recomputed; all of it where none is given.

    Raises:
        TypeError: the state of an NNX model.
        ValueError: a part in which nothing is being recomputed, statistics narrower than float32.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = {"norm": jn.start_recomputing(jn.init_batch_stats(1))}
        >>> _, stats["norm"] = jn.batch_norm(jnp.array([[1.0], [3.0]]), stats["norm"], train=True)
        >>> jn.finish_recomputing(stats)
        {'norm': {'mean': Array([2.], dtype=float32), 'var': Array([1.], dtype=float32)}}
    """
    return _finished("finish_recomputing", batch_stats, parts, _running.replaced)


def finish_accumulating(batch_stats: Any, *parts: str, momentum: ArrayLike | None = 0.99) -> Any:
    """The running statistics after one step that came in micro-batches, in one exact update.

    new = momentum * old + (1 - momentum) * merged, with the moments of all that was seen since
    `start_recomputing`: those of one big batch. Batch renormalization counts one step. Where
    nothing counted the old ones stay, with a warning as of `finish_recomputing`.

    Args:
        batch_stats: what `start_recomputing` made, after the micro-batches of a step.
        parts: paths of what is being recomputed; all of it where none is given.
        momentum: the weight of the old value, as that of the normalizations; None merges exactly.

    Raises:
        TypeError: the state of an NNX model.
        ValueError: a part in which nothing is being recomputed, statistics narrower than float32; a
            momentum outside [0, 1], or None for statistics without a count.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = jn.start_recomputing(jn.init_batch_stats(1))
        >>> for micro_batch in jnp.array([[[1.0], [3.0]], [[8.0], [8.0]]]):
        ...     _, stats = jn.batch_norm(micro_batch, stats, train=True)
        >>> print(jn.finish_accumulating(stats, momentum=0.5)["mean"])
        [2.5]
    """
    _checks.check_momentum(momentum)
    change = partial(_running.accumulated, momentum=momentum)
    return _finished("finish_accumulating", batch_stats, parts, change)


def _finished(
    function: str, batch_stats: Any, parts: Sequence[str], change: Callable[[Any], dict[str, Any]]
) -> Any:
    _check_not_nnx(function, batch_stats)
    keys, parts = {*STATS, "recomputed"}, parts or ("*",)
    new = changed(batch_stats, parts, keys, change, what=RECOMPUTED)
    warn_of_nothing_seen(
        path
        for path, stats in dicts(batch_stats)
        if keys <= stats.keys() and "frozen" not in stats and saw_nothing(stats)
        if any(matches(path, part) for part in parts)
    )
    return new


def saw_nothing(stats: Mapping[str, Any]) -> bool:
    """Whether it is known that nothing was counted in statistics that are recomputed."""
    count = stats["recomputed"]["count"]
    if _checks.is_traced(count):
        return False
    with jax.ensure_compile_time_eval():
        return not jnp.any(count > 0)


def warn_of_nothing_seen(paths: Iterable[Sequence[Any]]) -> None:
    """Statistics that stay because nothing was counted, though their recomputing began."""
    if names := [joined(path) for path in paths]:
        where = f" at {names}" if any(names) else ""
        warnings.warn(
            f"nothing was counted since start_recomputing{where}, so the statistics stay as "
            "they were: the model ran in evaluation, or not at all, or a normalization does not "
            "heed the mark, as Flax's own BatchNorm does not (jaxnorm's takes its place with the "
            "same arguments and variables)",
            stacklevel=4,
        )


def _check_not_nnx(function: str, tree: Any) -> None:
    """A state of NNX would take a mark that its model does not heed."""
    if type(tree).__module__.startswith("flax.nnx"):
        raise TypeError(
            f"{function} marks nested dicts, got a {type(tree).__name__} of NNX; give the model "
            f"itself to jaxnorm.nnx.{function}"
        )
