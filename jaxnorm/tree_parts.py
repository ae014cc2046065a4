"""What is merged of a tree of running statistics.

Replicas, clients and checkpoints have trees of one structure. Their parts are taken out, merged,
and put back into the structure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes
from jaxnorm import running as _running
from jaxnorm import states as _states
from jaxnorm.input_stats import exact_constants
from jaxnorm.paths import map_dicts
from jaxnorm.statistics import Moments
from jaxnorm.trees import STATS

_CURE = "give variables['batch_stats'] of Linen, nnx.state(model, nnx.BatchStat) of NNX"


class Parts(NamedTuple):
    """What is merged of a tree, in the order of the tree.

    Attributes:
        moments: of each normalization, and after it those that are being recomputed.
        steps: of each batch renormalization.
        extremes: the minimum and the maximum of each fit to inputs.
    """

    moments: list[Moments]
    steps: list[jax.Array]
    extremes: list[tuple[jax.Array, jax.Array]]


def parts_of(batch_stats: Any) -> Parts:
    """What is merged of a tree."""
    _check_has_stats(batch_stats)
    parts = Parts([], [], [])

    def take(stats: Mapping[str, Any]) -> None:
        parts.moments.append(_moments(stats))
        if "steps" in stats:
            parts.steps.append(stats["steps"])
        if {"min", "max"} <= stats.keys():
            parts.extremes.append((stats["min"], stats["max"]))
        if "recomputed" in stats:
            take(stats["recomputed"])

    def found(stats: Mapping[str, Any]) -> dict[str, Any]:
        _states.check_at_least_float32(stats, "the running statistics")
        take(_unboxed(stats))
        return dict(stats)

    map_dicts(batch_stats, ("*",), STATS, found)
    return parts


def _check_has_stats(tree: Any) -> None:
    """Check that a tree has running statistics."""
    try:
        map_dicts(tree, ("*",), STATS, dict)
    except ValueError as error:
        raise ValueError(f"no running statistics in this tree: {error}; {_CURE}") from None


def _is_stats(node: Any) -> bool:
    """Whether this is the dict of the statistics of one normalization."""
    return isinstance(node, Mapping) and node.keys() >= STATS


def with_parts(batch_stats: Any, parts: Parts) -> Any:
    """A tree with the merged parts in place of its own."""
    moments, steps, extremes = iter(parts.moments), iter(parts.steps), iter(parts.extremes)

    def merged(stats: Mapping[str, Any]) -> dict[str, Any]:
        m = next(moments)
        # A new state has a variance of 1.
        var = jnp.where(m.count > 0, m.var, 1).astype(stats["var"].dtype)
        new = {**stats, "mean": m.mean, "var": var}
        if "count" in stats:
            new["count"] = _running.cast_like(stats["count"], m.count)
        if "steps" in stats:
            new["steps"] = next(steps)
        if {"min", "max"} <= stats.keys():
            minimum, maximum = next(extremes)
            mean, var = exact_constants(new["mean"], new["var"], minimum, maximum)
            new |= {"mean": mean, "var": var, "min": minimum, "max": maximum}
        if "recomputed" in stats:
            new["recomputed"] = merged(stats["recomputed"])
        return new

    new = map_dicts(batch_stats, ("*",), STATS, lambda stats: merged(_unboxed(stats)))
    return jax.tree.unflatten(jax.tree.structure(batch_stats), jax.tree.leaves(new))


def _unboxed(stats: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics as nested dicts of arrays, without the variables of NNX around them."""
    return {
        key: _unboxed(value) if isinstance(value, Mapping) else _array_in(value)
        for key, value in stats.items()
    }


def _array_in(box: Any) -> jax.Array | None:
    """The array in a variable of NNX, or the array itself; None for the mark "frozen"."""
    leaves = jax.tree.leaves(box)
    return jnp.asarray(leaves[0]) if leaves else None


def _moments(stats: Mapping[str, Any]) -> Moments:
    """The statistics as moments, with a count of 1 where they have none."""
    real = _dtypes.real_dtype(stats["mean"].dtype)
    var = stats["var"].astype(real)
    if "count" not in stats:
        return Moments(jnp.ones(var.shape, real), stats["mean"], var)
    count = _running.broadcast_count(stats["count"], var)
    return Moments(count.astype(real), stats["mean"], var)


def as_alike(trees: Iterable[Any]) -> list[Any]:
    """The trees, checked to be alike, all in the structure of the first one."""
    if isinstance(trees, Mapping):
        raise TypeError(
            f"trees must be a sequence of trees, got one {type(trees).__name__} with the keys "
            f"{sorted(map(str, trees))}; give [tree, other_tree, ...]"
        )
    trees = list(trees)
    if not trees:
        raise ValueError("there are no trees to merge; give at least one")
    _check_has_stats(trees[0])
    first = _described(trees[0])
    for place, tree in enumerate(trees):
        other = _described(tree)
        for path in first | other:
            ours, theirs = (one.get(path, "nothing") for one in (first, other))
            if ours != theirs:
                raise ValueError(
                    f"the trees differ at {path!r}: trees[0] has {ours}, trees[{place}] has "
                    f"{theirs}; give statistics of one model, with the same marks and dtypes"
                )
    structure = jax.tree.structure(trees[0])
    trees = [jax.tree.unflatten(structure, jax.tree.leaves(tree)) for tree in trees]
    _check_others_equal(trees)
    return trees


def _check_others_equal(trees: Sequence[Any]) -> None:
    """Check that arrays that belong to no statistics, which are not merged, are equal."""
    first, *rest = (jax.tree.leaves_with_path(tree, is_leaf=_is_stats) for tree in trees)
    for place, other in enumerate(rest, 1):
        for (path, ours), (_, theirs) in zip(first, other, strict=True):
            if not (_is_stats(ours) or _may_be_equal(ours, theirs)):
                raise ValueError(
                    f"the arrays at {_name(path)!r} belong to no running statistics, so they are "
                    f"not merged, and those of trees[0] and trees[{place}] differ; "
                    f"{_CURE}"
                )


def _may_be_equal(a: Any, b: Any) -> bool:
    """Whether two arrays are equal, NaN included, or traced, so that this is not known."""
    if a is b or _checks.is_traced(a) or _checks.is_traced(b):
        return True
    with jax.ensure_compile_time_eval():
        return bool(jnp.all((a == b) | ((a != a) & (b != b))))


def _name(path: Any) -> str:
    """A path of JAX as one string."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _described(tree: Any) -> dict[str, str]:
    """The dtype and the shape of every leaf, by path; marks without a value are leaves here."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda leaf: leaf is None)
    return {
        _name(path): (
            "a mark" if leaf is None else f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        )
        for path, leaf in leaves
    }
