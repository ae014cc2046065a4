"""The pairs of a layer and a normalization in a model that are folded, and the check of the result.

`jaxnorm.linen.fold` and `jaxnorm.nnx.fold` use this file. Each gives a function `run(interceptor)`,
which evaluates the model and passes each call of a module to the interceptor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes


class Call(NamedTuple):
    """A call of a module in the model: its first argument, its other arguments and its output."""

    path: str
    module: Any
    input: Any
    rest: tuple[Any, ...]
    output: Any


class Pair(NamedTuple):
    """A layer and the normalization of its output or (`into_next`) of its input."""

    layer: Call
    norm: Call
    into_next: bool


Inner = Callable[..., Any]
Interceptor = Callable[[str, Any, Inner, Sequence[Any], Mapping[str, Any]], Any]


def record_calls(run: Callable[[Any, Interceptor], Any], variables: Any) -> list[Call]:
    """Record every call of a module in an abstract evaluation, inner calls before outer calls.

    Args:
        run: a function of the variables and an interceptor.
    """
    calls: list[Call] = []

    def record(
        path: str, module: Any, inner: Inner, args: Sequence[Any], options: Mapping[str, Any]
    ) -> Any:
        output = inner(*args, **options)
        first, *rest = (*args, *options.values(), None)
        calls.append(Call(path, module, first, tuple(rest), output))
        return output

    jax.eval_shape(lambda given: run(given, record), variables)
    return calls


def find_pairs(
    pairs: Mapping[str, str], calls: Sequence[Call], kinds: tuple[Any, ...]
) -> list[Pair]:
    """Find the calls of the named layers and normalizations, which must be adjacent."""
    if not isinstance(pairs, Mapping):
        raise TypeError(
            f"the pairs must be a dict from layers to normalizations, got {pairs!r}; give for "
            'example {"Conv_0": "BatchNorm_0"}'
        )
    if not pairs:
        raise ValueError(f"there are no pairs to fold; the model calls {_paths(calls)}")
    found: dict[str, Pair] = {}
    for layer, norm in pairs.items():
        pattern = re.compile(re.escape(layer).replace(r"\*", "([^/]*)"))
        matched = [match for call in calls if (match := pattern.fullmatch(call.path))]
        if not matched:
            raise ValueError(f"the model does not call {layer!r}; it calls {_paths(calls)}")
        for match in {match[0]: match for match in matched}.values():
            if match[0] in found:
                raise ValueError(f"two of the pairs {pairs} name the layer {match[0]!r}")
            path = norm
            for text in match.groups():
                path = path.replace("*", text, 1)
            both = _only_call(match[0], calls), _only_call(path, calls)
            found[match[0]] = _pair(*both, calls, kinds)
    _check_each_folded_once(list(found.values()))
    return list(found.values())


def _paths(calls: Sequence[Call]) -> list[str]:
    """The paths of all modules that are called."""
    return sorted({call.path for call in calls} - {""})


def _only_call(path: str, calls: Sequence[Call]) -> Call:
    """The one call of the module at a path."""
    found = [call for call in calls if call.path == path]
    if not found:
        raise ValueError(f"the model does not call {path!r}; it calls {_paths(calls)}")
    if len(found) > 1:
        raise ValueError(
            f"{path!r} is called {len(found)} times; a pair can be folded only if its layer and "
            "its normalization are each called once, so leave this pair out"
        )
    return found[0]


def _pair(layer: Call, norm: Call, calls: Sequence[Call], kinds: tuple[Any, ...]) -> Pair:
    """Make a pair of adjacent calls: a layer, and a normalization over the last axis."""
    module: Any = norm.module
    if not isinstance(module, kinds):
        raise TypeError(
            f"{norm.path!r} is a {type(module).__name__}; only normalizations with running "
            "statistics can be folded: BatchNorm, GhostBatchNorm, BatchRenorm and "
            "StandardizeInputs"
        )
    into_next = layer.input is norm.output
    if norm.input is not layer.output and not into_next:
        raise ValueError(
            f"the input of {norm.path!r} is not the output of {layer.path!r} but "
            f"{_source(norm, calls)}, and the input of {layer.path!r} is not the output of "
            f"{norm.path!r} but {_source(layer, calls)}; only a normalization directly after or "
            "directly before a layer can be folded into it"
        )
    last = norm.input.ndim - 1
    if _axes.nonempty_axes(norm.input.ndim, module.axis, "axis") != (last,):
        raise ValueError(
            f"{norm.path!r} normalizes the axis {module.axis}; only a normalization over the last "
            f"axis, where a layer of Flax has its channels, can be folded: axis=-1 or {last}"
        )
    if getattr(module, "clip", None) is not None:
        raise ValueError(
            f"{norm.path!r} clips its output, clip={module.clip}, which a layer cannot do; only "
            "clip=None can be folded"
        )
    return Pair(layer, norm, into_next)


def _source(call: Call, calls: Sequence[Call]) -> str:
    """The module whose output is the input of a call, in words."""
    source = next((other.path for other in calls if other.output is call.input), None)
    if source is None:
        return "the output of a function such as an activation, an addition, a cast or a reshape"
    return f"that of {source!r}"


def _check_each_folded_once(pairs: Sequence[Pair]) -> None:
    """Check that no normalization is folded both into the layer before it and into one after it."""
    before = {pair.norm.path: pair.layer.path for pair in pairs if not pair.into_next}
    for pair in pairs:
        if pair.into_next and pair.norm.path in before:
            raise ValueError(
                f"{pair.norm.path!r} is in the pairs twice, to be folded into "
                f"{before[pair.norm.path]!r} before it and into {pair.layer.path!r} after it; "
                "leave one of the two out; folding into the layer before works with any padding"
            )


def hide_intermediates(pairs: Sequence[Pair]) -> Interceptor:
    """Return an interceptor that passes the output of each pair's first module to its second only.

    Everything else gets NaN in place of this output, so the model's result is NaN if the output is
    used elsewhere.
    """
    seconds: dict[str, list[str]] = {}
    for pair in pairs:
        first, second = (pair.norm, pair.layer) if pair.into_next else (pair.layer, pair.norm)
        seconds.setdefault(first.path, []).append(second.path)
    outputs: dict[str, Any] = {}

    def hide(
        path: str, module: Any, inner: Inner, args: Sequence[Any], options: Mapping[str, Any]
    ) -> Any:
        if path in outputs and args:
            args = (outputs.pop(path), *args[1:])
        elif path in outputs:
            options = {**options, next(iter(options)): outputs.pop(path)}
        output = inner(*args, **options)
        if path not in seconds:
            return output
        outputs.update(dict.fromkeys(seconds[path], output))
        return jnp.full_like(output, jnp.nan)

    return hide


def check_folded(results: tuple[Any, Any, Any], tolerance: float) -> None:
    """Check that a model's results unfolded, with hidden intermediates, and folded are the same."""
    unfolded, hidden, folded = results
    if not _distance(hidden, unfolded) <= tolerance:
        raise ValueError(
            "the output of the first module of a pair is used elsewhere too, in the model or in a "
            "collection that is mutable, so folding would change the result; leave that pair out, "
            "or name all the layers that a normalization feeds"
        )
    distance = _distance(folded, unfolded)
    if not distance <= tolerance:
        raise ValueError(
            f"the folded model's output differs from the unfolded model's by {distance:.1e} of its "
            f"largest value, more than tolerance={tolerance:g}; check that the model is in "
            "evaluation (the running statistics are folded), and that each layer is linear in its "
            "kernel and adds its bias last; for kernels or results less precise than float32 give "
            "a larger tolerance, for example tolerance=0.05 for bfloat16"
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
