"""Which layer and which normalization of a model follow each other, and what folding them changes.

For `jaxnorm.linen.fold` and `jaxnorm.nnx.fold`: a framework gives `run(around)`, which evaluates
the model and hands each call of a module to `around`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes


class Call(NamedTuple):
    """A call of a module in the model: the first of its arguments, the others, what came out."""

    path: str
    module: Any
    input: Any
    rest: tuple[Any, ...]
    output: Any


class Pair(NamedTuple):
    """A layer and the normalization of what it gives, or (`into_next`) of what it is given."""

    layer: Call
    norm: Call
    into_next: bool


Inner = Callable[..., Any]
Around = Callable[[str, Any, Inner, Sequence[Any], Mapping[str, Any]], Any]


def recorded(run: Callable[[Around], Any]) -> list[Call]:
    """Every call of a module in an abstract evaluation, the inner before the outer."""
    calls: list[Call] = []

    def record(
        path: str, module: Any, inner: Inner, args: Sequence[Any], options: Mapping[str, Any]
    ) -> Any:
        output = inner(*args, **options)
        first, *rest = (*args, *options.values(), None)
        calls.append(Call(path, module, first, tuple(rest), output))
        return output

    jax.eval_shape(lambda: run(record))
    return calls


def found_pairs(
    pairs: Mapping[str, str], calls: Sequence[Call], kinds: tuple[Any, ...]
) -> list[Pair]:
    """The calls of the named layers and normalizations, of which one directly follows the other."""
    if not isinstance(pairs, Mapping):
        raise TypeError(
            f"the pairs must be a dict from layers to normalizations, got {pairs!r}; give for "
            'example {"Conv_0": "BatchNorm_0"}'
        )
    if not pairs:
        raise ValueError(f"there is no pair to fold; the model calls {_paths(calls)}")
    found: dict[str, Pair] = {}
    for layer, norm in pairs.items():
        pattern = re.compile(re.escape(layer).replace(r"\*", "([^/]*)"))
        matched = [match for call in calls if (match := pattern.fullmatch(call.path))]
        if not matched:
            raise ValueError(f"the model calls no {layer!r}; it calls {_paths(calls)}")
        for match in {match[0]: match for match in matched}.values():
            if match[0] in found:
                raise ValueError(f"the layer {match[0]!r} is named by two of the pairs {pairs}")
            path = norm
            for part in match.groups():
                path = path.replace("*", part, 1)
            both = _only_call(match[0], calls), _only_call(path, calls)
            found[match[0]] = _pair(*both, calls, kinds)
    _check_each_folded_once(list(found.values()))
    return list(found.values())


def _paths(calls: Sequence[Call]) -> list[str]:
    return sorted({call.path for call in calls} - {""})


def _only_call(path: str, calls: Sequence[Call]) -> Call:
    """The one call of the module at a path."""
    its = [call for call in calls if call.path == path]
    if not its:
        raise ValueError(f"the model calls no {path!r}; it calls {_paths(calls)}")
    if len(its) > 1:
        raise ValueError(
            f"{path!r} is called {len(its)} times; a layer and a normalization are folded where "
            "each is called once, so leave this pair out"
        )
    return its[0]


def _pair(layer: Call, norm: Call, calls: Sequence[Call], kinds: tuple[Any, ...]) -> Pair:
    """The two as a pair: a normalization over the last axis, directly after the layer or before."""
    module: Any = norm.module
    if not isinstance(module, kinds):
        raise TypeError(
            f"{norm.path!r} is a {type(module).__name__}; what can be folded is a normalization "
            "that has running statistics: BatchNorm, GhostBatchNorm, BatchRenorm or "
            "StandardizeInputs"
        )
    into_next = layer.input is norm.output
    if norm.input is not layer.output and not into_next:
        raise ValueError(
            f"the input of {norm.path!r} is not the output of {layer.path!r} but "
            f"{_source(norm, calls)}, and the input of {layer.path!r} is not the output of "
            f"{norm.path!r} but {_source(layer, calls)}; only what directly follows a layer, or "
            "directly goes before it, can be folded into it"
        )
    last = norm.input.ndim - 1
    if _axes.channel_axes(norm.input.ndim, module.axis, "axis") != (last,):
        raise ValueError(
            f"{norm.path!r} normalizes the axis {module.axis}; folded into a layer of Flax "
            f"is one over the last axis, where the layer has its channels: axis=-1 or {last}"
        )
    if getattr(module, "clip", None) is not None:
        raise ValueError(
            f"{norm.path!r} clips what it gives, clip={module.clip}, which no layer does; fold one "
            "with clip=None"
        )
    return Pair(layer, norm, into_next)


def _source(call: Call, calls: Sequence[Call]) -> str:
    """Whose output a call is given."""
    source = next((other.path for other in calls if other.output is call.input), None)
    if source is None:
        return (
            "of no module: a function such as an activation, an addition, a cast or a reshape "
            "stands between"
        )
    return f"that of {source!r}"


def _check_each_folded_once(pairs: Sequence[Pair]) -> None:
    """A normalization goes into the layer before it, or into those after it."""
    before = {pair.norm.path: pair.layer.path for pair in pairs if not pair.into_next}
    for pair in pairs:
        if pair.into_next and pair.norm.path in before:
            raise ValueError(
                f"{pair.norm.path!r} is in the pairs twice, to be folded into "
                f"{before[pair.norm.path]!r} before it and into {pair.layer.path!r} after it; "
                "leave one of the two out: the one before takes it with any padding"
            )


def hidden(pairs: Sequence[Pair]) -> Around:
    """Calls in which only the second of a pair sees what the first gives: others see NaN."""
    seconds: dict[str, list[str]] = {}
    for pair in pairs:
        first, second = (pair.norm, pair.layer) if pair.into_next else (pair.layer, pair.norm)
        seconds.setdefault(first.path, []).append(second.path)
    seen: dict[str, Any] = {}

    def hide(
        path: str, module: Any, inner: Inner, args: Sequence[Any], options: Mapping[str, Any]
    ) -> Any:
        if path in seen and args:
            args = (seen.pop(path), *args[1:])
        elif path in seen:
            options = {**options, next(iter(options)): seen.pop(path)}
        output = inner(*args, **options)
        if path not in seconds:
            return output
        seen.update(dict.fromkeys(seconds[path], output))
        return jnp.full_like(output, jnp.nan)

    return hide


def check_folded(results: tuple[Any, Any, Any], tolerance: float) -> None:
    """Raise an error unless a model gives the same: as it is, with its layers hidden, folded."""
    unfolded, alone, folded = results
    if not _distance(alone, unfolded) <= tolerance:
        raise ValueError(
            "the output of a layer in the pairs is used elsewhere too, beside its normalization, "
            "or that of a normalization beside the layers after it, where it would be missed "
            "unfolded; leave that pair out, or name all the layers that a normalization feeds"
        )
    far = _distance(folded, unfolded)
    if not far <= tolerance:
        raise ValueError(
            f"the folded model's output is {far:.1e} of the output's largest value away from the "
            f"unfolded one's, more than tolerance={tolerance:g}; is it in evaluation (the running "
            "statistics are folded), and is each layer linear in its kernel, with a bias that "
            "is added last? For kernels or results coarser than float32 give the tolerance that "
            "they have, for example tolerance=0.05 for bfloat16"
        )


def _distance(result: Any, expected: Any) -> float:
    """The largest difference of two outputs, relative to the largest value of each array."""

    def distance(leaf: jax.Array, other: jax.Array) -> float:
        if leaf.size == 0:
            return 0.0
        if not jnp.issubdtype(other.dtype, jnp.inexact):
            return 0.0 if bool((leaf == other).all()) else float("inf")
        same = (leaf == other) | (jnp.isnan(leaf) & jnp.isnan(other))
        difference = float(jnp.where(same, 0, abs(leaf - other)).max())
        size = float(jnp.where(jnp.isfinite(other), abs(other), 0).max())
        return difference / size if size > 0 else difference

    leaves = jax.tree.leaves(jax.tree.map(distance, result, expected))
    return float(jnp.max(jnp.array(leaves, jnp.float32))) if leaves else 0.0
