"""Functions of trees of running statistics: freezing and recomputing the statistics.

Glossary:
    mark: an entry in the dict of a normalization's statistics that changes how training uses them:
        "frozen" (without a value) or "recomputed" (the new statistics).
    recomputed: see `running.py`.
"""

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
from jaxnorm.paths import iter_dicts, joined, map_dicts, matches

__all__ = ["finish_accumulating", "finish_recomputing", "freeze_stats", "start_recomputing"]

STATS = {"mean", "var"}
RECOMPUTED = "statistics that are being recomputed"
_OF_BATCHES = {"mean", "var", "count", "steps", "frozen", "recomputed"}  # fits have more entries


def freeze_stats(batch_stats: Any, *parts: str, frozen: bool = True) -> Any:
    """Freeze running statistics: training uses them and does not update them, like evaluation.

    This function marks the statistics of each named normalization with an entry "frozen" that has
    no value, so the leaves of the tree stay the same. `batch_norm`, `ghost_batch_norm`,
    `batch_renorm`, `online_norm` and the Linen modules then normalize with these statistics and do
    not update them, whatever `train` or `use_running_average` is; `update_input_stats` does not
    update a marked fit either. The parameters are still trained; to freeze them, use the optimizer.
    For NNX models use `jaxnorm.nnx.freeze_stats`.

    Flax's own `BatchNorm` ignores the mark, and the tree does not show which modules its statistics
    belong to. `jaxnorm.linen.check_marks` finds such modules in a model, and
    `jaxnorm.linen.BatchNorm` replaces them, with the same arguments and variables.

    Args:
        batch_stats: the statistics of one normalization, or nested dicts of them, as Linen's
            `variables["batch_stats"]`.
        parts: paths of normalizations, or of parts of the model that contain them, such as
            "encoder/norm" or "block_*" (`*` and `?` stand for any characters); without any, the
            whole tree.
        frozen: False removes the mark. Remove it before saving a checkpoint that will be restored
            into the variables that `init` makes; a checkpoint with the mark must be restored into
            variables with the same mark.

    Returns:
        A new tree with the marks, or without them.

    Raises:
        TypeError: the state of an NNX model, which ignores the mark.
        ValueError: a part without statistics; the message lists the paths of all statistics.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = {"encoder": {"norm": jn.init_batch_stats(1)}, "head": jn.init_batch_stats(1)}
        >>> stats = jn.freeze_stats(stats, "encoder")
        >>> y, new = jn.batch_norm(jnp.ones((2, 1)), stats["encoder"]["norm"], train=True)
        >>> print(y[:, 0].round(3), new["mean"])
        [1. 1.] [0.]
    """

    check_not_nnx("freeze_stats", batch_stats)

    def marked(stats: Mapping[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in stats.items() if key != "frozen"}
        return rest | ({"frozen": None} if frozen else {})

    return map_dicts(batch_stats, parts or ("*",), STATS, marked)


def start_recomputing(batch_stats: Any, *parts: str) -> Any:
    """Start recomputing running statistics: training merges all batches into new ones.

    Until `finish_recomputing`, every training step merges the moments of its batch into the new
    statistics, exactly (within and between batches, weighted by their counts), whatever the
    momentum is. The old statistics do not change; evaluation and the corrections of batch
    renormalization use them. Do not update the parameters during the pass over the data. After one
    pass, each layer has the moments of all inputs that it had in training, where the layers before
    it normalize each batch by its own moments ("precise" statistics).

    This function adds an entry "recomputed" to the statistics of each named normalization, with a
    count, a mean and a variance for each channel, so a jitted step is compiled again. `batch_norm`,
    `ghost_batch_norm`, `batch_renorm` and the Linen modules use the entry; for NNX models use
    `jaxnorm.nnx.start_recomputing`. Flax's own `BatchNorm` ignores it
    (`jaxnorm.linen.check_marks`). Frozen statistics do not change. Fits to inputs, which have other
    entries, are not marked.

    Args:
        batch_stats: the statistics of one normalization, or nested dicts of them, as Linen's
            `variables["batch_stats"]`.
        parts: paths of normalizations, or of parts of the model that contain them, as for
            `freeze_stats`; without any, the whole tree.

    Returns:
        A new tree with the entries.

    Raises:
        TypeError: the state of an NNX model.
        ValueError: statistics that are being recomputed already or are narrower than float32; a
            part without statistics.

    Conventions:
        The variance is that of one large batch: it is biased, and includes the variance between the
        means of the batches. PyTorch's `swa_utils.update_bn` averages the unbiased variances within
        batches, with equal weights.

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
    check_not_nnx("start_recomputing", batch_stats)
    what = "mean and var of a batch normalization (fits and online statistics are not recomputed)"
    return map_dicts(
        batch_stats, parts or ("*",), STATS, _running.start_recomputing, _OF_BATCHES, what
    )


def finish_recomputing(batch_stats: Any, *parts: str) -> Any:
    """Replace the running statistics by the recomputed ones, and remove the entry "recomputed".

    Statistics with a count of 0 are not replaced; outside `jit`, a warning names them. The `steps`
    of batch renormalization do not change.

    Args:
        batch_stats: the result of `start_recomputing`, after any number of training steps.
        parts: paths of normalizations that are being recomputed, or of parts of the model that
            contain them, as for `freeze_stats`; without any, the whole tree.

    Returns:
        A new tree with the recomputed statistics in place of the old ones.

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
    return _finished("finish_recomputing", batch_stats, parts, _running.replace_by_recomputed)


def finish_accumulating(batch_stats: Any, *parts: str, momentum: ArrayLike | None = 0.99) -> Any:
    """Update the running statistics once, exactly, after a step of several micro-batches.

    new = momentum * old + (1 - momentum) * merged, where merged is the mean or the variance of all
    micro-batches since `start_recomputing`, as of one large batch. The `steps` of batch
    renormalization grow by one. Statistics with a count of 0 are not updated; outside `jit`, a
    warning names them.

    Args:
        batch_stats: the result of `start_recomputing`, after the micro-batches of a step.
        parts: paths of normalizations that are being recomputed, or of parts of the model that
            contain them, as for `freeze_stats`; without any, the whole tree.
        momentum: the weight of the old value, as for the normalizations; None merges exactly.

    Returns:
        A new tree with the updated statistics, without the entries "recomputed".

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
    change = partial(_running.accumulate, momentum=momentum)
    return _finished("finish_accumulating", batch_stats, parts, change)


def _finished(
    function: str, batch_stats: Any, parts: Sequence[str], change: Callable[[Any], dict[str, Any]]
) -> Any:
    """Apply `change` to the statistics that are recomputed, and warn where the count is 0."""
    check_not_nnx(function, batch_stats)
    keys, parts = {*STATS, "recomputed"}, parts or ("*",)
    new = map_dicts(batch_stats, parts, keys, change, what=RECOMPUTED)
    warn_of_nothing_seen(
        path
        for path, stats in iter_dicts(batch_stats)
        if keys <= stats.keys() and "frozen" not in stats and saw_nothing(stats)
        if any(matches(path, part) for part in parts)
    )
    return new


def saw_nothing(stats: Mapping[str, Any]) -> bool:
    """Whether the count of recomputed statistics is known to be 0."""
    count = stats["recomputed"]["count"]
    if _checks.is_traced(count):
        return False
    with jax.ensure_compile_time_eval():
        return not jnp.any(count > 0)


def warn_of_nothing_seen(paths: Iterable[Sequence[Any]]) -> None:
    """Warn of statistics that are not replaced because their recomputed count is 0."""
    if names := [joined(path) for path in paths]:
        where = f" at {names}" if any(names) else ""
        warnings.warn(
            f"nothing was counted since start_recomputing{where}, so the statistics are not "
            "replaced: the model ran in evaluation, or did not run, or a normalization ignores the "
            "mark, such as Flax's own BatchNorm (jaxnorm's BatchNorm replaces it, with the same "
            "arguments and variables)",
            stacklevel=4,
        )


def check_not_nnx(function: str, tree: Any) -> None:
    """Check that a tree is not a state of NNX, whose model would ignore the mark."""
    if type(tree).__module__.startswith("flax.nnx"):
        raise TypeError(
            f"{function} takes nested dicts, got a {type(tree).__name__} of NNX; give the model "
            f"itself to jaxnorm.nnx.{function}"
        )
