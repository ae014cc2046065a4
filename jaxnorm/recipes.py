"""What is done around normalization: weight decay, first scales, what statistics are kept.

Trees are those of Flax or of any functional model: nested dicts whose keys name the parts of a
model. A part is named by its path, as in "encoder/block_0"; `*` and `?` stand for any characters,
and what lies inside a named part belongs to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes
from jaxnorm import running as _running
from jaxnorm import states as _states
from jaxnorm.distributed import sync_extremes, sync_moments
from jaxnorm.inputs import exact_constants
from jaxnorm.statistics import Moments

_STATS = {"mean", "var"}
RECOMPUTED = "statistics that start_recomputing began"
_OF_BATCHES = {"mean", "var", "count", "steps", "frozen", "recomputed"}  # fits have more entries


def weight_decay_mask(params: Any, *, leave_out: Sequence[str] = ("scale", "bias")) -> Any:
    """True for the parameters that weight decay is for: all but scales and biases.

    Decided by the name of the parameter alone, so the biases of dense and convolutional layers are
    left out too, and embeddings are not.

    Args:
        params: parameters of Linen (dict or FrozenDict), an NNX state, or any tree with names.
        leave_out: names of parameters that do not decay.

    Returns:
        A tree of Python bools with the structure of `params`: an optax mask. The function itself
        can be given as the mask too.

    References:
        He et al., "Bag of tricks for image classification with convolutional neural networks",
        2019, section 3.1 ("no bias decay").

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
        >>> jn.weight_decay_mask(params)
        {'dense': {'bias': False, 'kernel': True}}

        With optax: `optax.adamw(1e-3, weight_decay=1e-2, mask=jn.weight_decay_mask)`.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path) not in leave_out, params)


def zero_scales(params: Any, part: str, *parts: str) -> Any:
    """The parameters with zero for every `scale` in the named parts.

    A residual block whose last normalization starts with scale zero starts as the identity, which
    makes deep networks easier to train. Where the model is one's own, the argument
    `scale_init=nn.initializers.zeros` of that normalization is the same.

    Args:
        params: nested dicts of parameters, as Linen's `variables["params"]`, or an NNX state.
        part, parts: paths of normalizations, or of what holds them.

    Raises:
        ValueError: a part with no scale in it; the message lists those that there are.

    References:
        Goyal et al., "Accurate, large minibatch SGD", 2017, section 5.1.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> block = {"norm_0": {"scale": jnp.ones(2)}, "norm_1": {"scale": jnp.ones(2)}}
        >>> params = jn.zero_scales({"block_0": block, "block_1": block}, "block_*/norm_1")
        >>> print(params["block_1"]["norm_1"]["scale"])
        [0. 0.]
    """

    def zeroed(norm: Mapping[str, Any]) -> dict[str, Any]:
        return {**norm, "scale": jax.tree.map(jnp.zeros_like, norm["scale"])}

    return _changed(params, (part, *parts), {"scale"}, zeroed)


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

    return _changed(batch_stats, parts or ("*",), _STATS, marked)


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
    return _changed(batch_stats, parts or ("*",), _STATS, _running.started, _OF_BATCHES, what)


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
    keys, parts = {*_STATS, "recomputed"}, parts or ("*",)
    new = _changed(batch_stats, parts, keys, change, what=RECOMPUTED)
    warn_of_nothing_seen(
        path
        for path, stats in _dicts(batch_stats)
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


def _dicts(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every dict of a tree, by path."""
    if isinstance(node, Mapping):
        yield path, node
        for key, value in node.items():
            yield from _dicts(value, (*path, key))


def sync_batch_stats(
    batch_stats: Any,
    axis_name: _axes.AxisName,
    axis_index_groups: _axes.AxisIndexGroups = None,
) -> Any:
    """The running statistics of all replicas together, on every replica.

    Replicas that normalize by themselves (local or grouped scope) have running statistics of their
    own, which drift apart; merge them before evaluation or saving. The variance between the
    replicas' means is part of the result; averaging the variances would lose it. The whole tree is
    one collective, as in `sync_moments` (the `steps` of batch renormalization, of which the largest
    is taken, one more; the least and largest values of a fit to inputs too).

    Replicas weigh the same, or by their `count` where statistics are cumulative (`momentum=None`,
    or in the middle of recomputing); then the counts add up, so merge what is evaluated or saved,
    and train on with what was not merged.

    Args:
        batch_stats: the statistics of one normalization, or nested dicts of them, as Linen's
            `variables["batch_stats"]` or `nnx.state(model, nnx.BatchStat)`.
        axis_name, axis_index_groups: as for `sync_moments`. Statistics with the replicas on a first
            axis, as `pmap` returns them, are merged by `pmap` again, or by `vmap` on one device.

    Raises:
        ValueError: a name that is not mapped, a tree without statistics or with some narrower than
            float32.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> replicas = {"norm": {"mean": jnp.array([[0.0], [2.0]]), "var": jnp.ones((2, 1))}}
        >>> merge = lambda stats: jn.sync_batch_stats(stats, "devices")
        >>> merged = jax.vmap(merge, axis_name="devices")(replicas)
        >>> print(merged["norm"]["mean"][0], merged["norm"]["var"][0])
        [1.] [2.]
    """
    layers: list[dict[str, Any]] = []

    def found(stats: Mapping[str, Any]) -> dict[str, Any]:
        _states.check_wide(stats, "the running statistics")
        layers.append(dict(stats))
        if "recomputed" in stats:
            found(stats["recomputed"])
        return dict(stats)

    _changed(batch_stats, ("*",), _STATS, found)
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves([stats["mean"] for stats in layers]))
    means, rebuilt_means = _raveled([stats["mean"] for stats in layers], dtype)
    variances, rebuilt_variances = _raveled(
        [stats["var"] for stats in layers], _dtypes.real_dtype(dtype)
    )
    counts, rebuilt_counts = _raveled(
        [_counts(stats, _dtypes.real_dtype(dtype)) for stats in layers], _dtypes.real_dtype(dtype)
    )
    m = sync_moments(Moments(counts, means, variances), axis_name, axis_index_groups)
    rebuilt = rebuilt_counts(m.count), rebuilt_means(m.mean), rebuilt_variances(m.var)
    merged = zip(*rebuilt, strict=True)

    def synced(stats: Mapping[str, Any]) -> dict[str, Any]:
        count, mean, var = next(merged)
        var = jax.tree.map(lambda count, var: jnp.where(count > 0, var, 1), count, var)  # or fresh
        new = {**stats, "mean": mean, "var": var}
        if "count" in stats:
            new["count"] = jax.tree.map(_running.as_before, stats["count"], count)
        if "steps" in stats:
            new["steps"] = jax.lax.pmax(
                stats["steps"], axis_name, axis_index_groups=axis_index_groups
            )
        if {"min", "max"} <= stats.keys():
            new |= _synced_fit(new, axis_name, axis_index_groups)
        if "recomputed" in stats:
            new["recomputed"] = synced(stats["recomputed"])
        return new

    return _changed(batch_stats, ("*",), _STATS, synced)


def _check_not_nnx(function: str, tree: Any) -> None:
    """A state of NNX would take a mark that its model does not heed."""
    if type(tree).__module__.startswith("flax.nnx"):
        raise TypeError(
            f"{function} marks nested dicts, got a {type(tree).__name__} of NNX; give the model "
            f"itself to jaxnorm.nnx.{function}"
        )


def _raveled(parts: Sequence[Any], dtype: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """The leaves one after the other in one dtype, and the way back to theirs."""
    flat, rebuilt = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(dtype), parts))

    def back(flat: jax.Array) -> Any:
        def as_it_was(new: jax.Array, old: jax.Array) -> jax.Array:
            return (new if jnp.iscomplexobj(old) else new.real).astype(old.dtype)

        return jax.tree.map(as_it_was, rebuilt(flat), parts)

    return flat, back


def _counts(stats: Mapping[str, Any], dtype: Any) -> Any:
    """How much each channel's statistics weigh, in the shape of the statistics."""
    ones = jax.tree.map(lambda var: jnp.ones(var.shape, dtype), stats["var"])
    if "count" not in stats:
        return ones

    def spread(ones: jax.Array, count: jax.Array) -> jax.Array:
        return _running.of_channels(count, ones).astype(dtype)

    return jax.tree.map(spread, ones, stats["count"])


def _synced_fit(
    fit: Mapping[str, Any],
    axis_name: _axes.AxisName,
    axis_index_groups: _axes.AxisIndexGroups,
) -> dict[str, Any]:
    """What a fit to inputs has beside merged moments, and what is exact about these."""
    boxed = {key: fit[key] for key in ("mean", "var", "min", "max")}
    mean, var, least, most = (jax.tree.leaves(box)[0] for box in boxed.values())
    least, most = sync_extremes(least, most, axis_name, axis_index_groups)
    mean, var = exact_constants(mean, var, least, most)
    new = dict(zip(boxed, (mean, var, least, most), strict=True))
    return {key: jax.tree.unflatten(jax.tree.structure(boxed[key]), [new[key]]) for key in boxed}


def matches(path: Sequence[Any], part: str) -> bool:
    """Whether a path is a named part, or lies in one."""
    names = [str(name) for name in path]
    return any(fnmatchcase("/".join(names[:end]), part) for end in range(len(names) + 1))


def check_found(
    parts: Sequence[str],
    paths: Sequence[Sequence[Any]],
    what: str,
    others: Mapping[Any, str],
) -> None:
    """Every part names something.

    Args:
        others: what there is of another kind, by path.
    """
    for part in parts:
        if not any(matches(path, part) for path in paths):
            there = [joined(path) for path in paths]
            raise ValueError(
                f"no {what} in the part {part!r}; there are {there}{_instead(part, paths, others)}"
            )


def _instead(part: str, paths: Sequence[Sequence[Any]], others: Mapping[Any, str]) -> str:
    """What the part holds of another kind, or the whole tree where it has nothing of the kind."""
    inside = {path: other for path, other in others.items() if matches(path, part)}
    shown = inside or ({} if paths else others)
    if not shown:
        return ""
    listed = [f"{joined(path)!r} ({other})" for path, other in shown.items()]
    return f"; of another kind there are {', '.join(listed[:5])}{' ...' if len(listed) > 5 else ''}"


def joined(path: Sequence[Any]) -> str:
    """A path as it is given."""
    return "/".join(map(str, path))


def _name(path: Sequence[Any]) -> str:
    """The name of a parameter: the last key that is not the attribute of a box around it."""
    names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    boxed = len(names) > 1 and isinstance(path[-1], jax.tree_util.GetAttrKey)
    return names[-2 if boxed and names[-1] == "value" else -1] if names else ""


def _changed(
    tree: Any,
    parts: Sequence[str],
    keys: set[str],
    change: Callable[[Any], dict[str, Any]],
    among: set[str] | None = None,
    what: str | None = None,
) -> Any:
    """The tree with `change` made to every dict that has the `keys` and lies in a part.

    Args:
        among: the keys that such a dict may have; None for any.
        what: the word for such dicts.
    """
    paths: list[tuple[Any, ...]] = []
    others: dict[Any, str] = {}

    def visited(node: Any, path: tuple[Any, ...]) -> Any:
        if not isinstance(node, Mapping):
            return node
        kind: Any = type(node)
        if keys <= node.keys() and (among is None or node.keys() <= among):
            paths.append(path)
            if any(matches(path, part) for part in parts):
                return kind(change(node))
        elif entries := [str(key) for key in node if not isinstance(node[key], Mapping)]:
            others[path] = "with " + ", ".join(sorted(entries))
        return kind({key: visited(value, (*path, key)) for key, value in node.items()})

    changed = visited(tree, ())
    check_found(parts, paths, what or " and ".join(sorted(keys)), others)
    return changed
