"""Batch normalization in evaluation, folded into the dense or convolutional layer before it.

`fold_batch_norm` folds arrays. What `jaxnorm.linen.fold` and `jaxnorm.nnx.fold` do with a whole
model stands here too, as far as it is the same for both: a framework gives `run(around)`, which
evaluates the model and hands each call of a module to `around`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes


def fold_batch_norm(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    stats: _axes.BatchStats,
    norm_scale: ArrayLike | None,
    norm_bias: ArrayLike | None,
    *,
    epsilon: ArrayLike = 1e-5,
    kernel_axis: int = -1,
) -> tuple[jax.Array, jax.Array]:
    """The kernel and the bias of a layer that gives what it and the normalization after it gave.

    kernel * s and (bias - mean) * s + norm_bias, with s = norm_scale / sqrt(var + epsilon) along
    the kernel's output channels: a layer that is linear in its kernel and adds its bias to each
    channel takes the whole of `batch_norm`, `ghost_batch_norm` and `batch_renorm` in evaluation.
    Strides, dilation, padding and groups of the input's channels do not matter.

    Args:
        kernel: of C output channels on `kernel_axis`, any shape, floating or complex.
        bias: of the layer, [C]; None for one without.
        stats: {"mean", "var"}, each [C], as in evaluation; other entries are not read.
        norm_scale, norm_bias: of the normalization, [C]; None for one without.
        epsilon: that of the normalization: 1e-5 in Flax and PyTorch, 1e-3 in Keras.
        kernel_axis: the axis of the output channels. The last in Flax and Keras, depthwise and
            grouped kernels too; -2 for Flax's `ConvTranspose` with `transpose_kernel=True`; 0 in
            OIHW, as PyTorch's `Conv2d` and `Linear`; 1 for PyTorch's `ConvTranspose2d` of one
            group. (Of several, its kernel [in, C / groups, ...] is folded a group at a time: see
            the documentation.)

    Returns:
        The kernel in its dtype and a bias [C] in that of the bias, or of the kernel where there was
        none: a wider one would promote the whole layer. Computed in float32 at least and rounded
        once.

    Raises:
        TypeError: a kernel of integers (fold before quantizing), complex statistics for a real one.
        ValueError: an axis out of range, or a bias, a scale or statistics of another width than
            the kernel's, or statistics without a mean or a variance.

    References:
        Jacob et al., "Quantization and training of neural networks for efficient
        integer-arithmetic-only inference", 2018, section 3.2.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> kernel, x = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, -1.0]])
        >>> stats = {"mean": jnp.array([1.0, 2.0]), "var": jnp.array([4.0, 0.25])}
        >>> y, _ = jn.batch_norm(x @ kernel, stats, train=False, epsilon=0.0)
        >>> kernel, bias = jn.fold_batch_norm(kernel, None, stats, None, None, epsilon=0.0)
        >>> print(y, x @ kernel + bias)
        [[-1.5 -8. ]] [[-1.5 -8. ]]
    """
    _axes.check_epsilon(epsilon)
    kernel = _axes.as_kernel(kernel)
    axis = _axes.single_axis(kernel.ndim, kernel_axis, "kernel_axis")
    mean, var = _axes.kernel_stats(stats, kernel, axis)
    given = {"bias": bias, "norm_scale": norm_scale, "norm_bias": norm_bias}
    vectors = {name: _axes.of_kernel(name, value, kernel, axis) for name, value in given.items()}
    present = [value for value in vectors.values() if value is not None]
    with jax.numpy_dtype_promotion("standard"):
        wide = jnp.result_type(jnp.float32, kernel, mean, var, *present)

    def widened(value: jax.Array | None, missing: float) -> jax.Array:
        return jnp.full(var.shape, missing, wide) if value is None else value.astype(wide)

    ratio = widened(vectors["norm_scale"], 1.0) / jnp.sqrt(var.astype(wide) + epsilon)
    shift = (widened(vectors["bias"], 0.0) - mean.astype(wide)) * ratio
    shift = shift + widened(vectors["norm_bias"], 0.0)
    along = jnp.expand_dims(ratio, _axes.other_axes(kernel.ndim, (axis,)))
    old = kernel if vectors["bias"] is None else vectors["bias"]
    return (kernel.astype(wide) * along).astype(kernel.dtype), shift.astype(old.dtype)


class Call(NamedTuple):
    """A call of a module in the model, with the arrays that went in and came out."""

    path: str
    module: Any
    input: Any
    output: Any


class Pair(NamedTuple):
    """A layer, and the batch normalization of what it gives."""

    layer: Call
    norm: Call


Inner = Callable[..., Any]
Around = Callable[[str, Any, Inner, Sequence[Any], Mapping[str, Any]], Any]


def recorded(run: Callable[[Around], Any]) -> list[Call]:
    """Every call of a module in an abstract evaluation, the inner before the outer."""
    calls: list[Call] = []

    def record(
        path: str, module: Any, inner: Inner, args: Sequence[Any], options: Mapping[str, Any]
    ) -> Any:
        output = inner(*args, **options)
        first = args[0] if args else next(iter(options.values()), None)
        calls.append(Call(path, module, first, output))
        return output

    jax.eval_shape(lambda: run(record))
    return calls


def found_pairs(
    pairs: Mapping[str, str], calls: Sequence[Call], kinds: tuple[Any, ...]
) -> list[Pair]:
    """The calls of the named layers and normalizations, of which each is one after the other."""
    if not isinstance(pairs, Mapping):
        raise TypeError(
            f"the pairs must be a dict from layers to normalizations, got {pairs!r}; give for "
            'example {"Conv_0": "BatchNorm_0"}'
        )
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
            pair = Pair(_only_call(match[0], calls), _only_call(path, calls))
            _check_pair(pair, calls, kinds)
            found[match[0]] = pair
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


def _check_pair(pair: Pair, calls: Sequence[Call], kinds: tuple[Any, ...]) -> None:
    """The second is a batch normalization, over the last axis, of what the first gives."""
    layer, norm = pair
    module: Any = norm.module
    if not isinstance(module, kinds):
        raise TypeError(
            f"{norm.path!r} is a {type(module).__name__}; what can be folded is a batch "
            "normalization, which has running statistics: BatchNorm, GhostBatchNorm or BatchRenorm"
        )
    if norm.input is not layer.output:
        source = next((call.path for call in calls if call.output is norm.input), None)
        between = (
            "of no module: a function such as an activation, an addition, a cast or a reshape "
            "stands between"
            if source is None
            else f"that of {source!r}"
        )
        raise ValueError(
            f"the input of {norm.path!r} is not the output of {layer.path!r} but {between}; only "
            "what directly follows a layer can be folded into it"
        )
    last = norm.input.ndim - 1
    if _axes.channel_axes(norm.input.ndim, module.axis, "axis") != (last,):
        raise ValueError(
            f"{norm.path!r} normalizes the axis {module.axis}; folded into a layer of Flax "
            f"is one over the last axis, where the layer has its channels: axis=-1 or {last}"
        )


def hidden(pairs: Sequence[Pair]) -> Around:
    """Calls in which nobody but its normalization sees what a layer gives: others see NaN."""
    norms = {pair.layer.path: pair.norm.path for pair in pairs}
    seen: dict[str, Any] = {}

    def hide(
        path: str, module: Any, inner: Inner, args: Sequence[Any], options: Mapping[str, Any]
    ) -> Any:
        if path in seen:
            return inner(seen.pop(path), *args[1:], **(options if args else {}))
        output = inner(*args, **options)
        if path not in norms:
            return output
        seen[norms[path]] = output
        return jnp.full_like(output, jnp.nan)

    return hide


def check_folded(results: tuple[Any, Any, Any], tolerance: float) -> None:
    """Raise an error unless a model gives the same: as it is, with its layers hidden, folded."""
    unfolded, alone, folded = results
    if not _distance(alone, unfolded) <= tolerance:
        raise ValueError(
            "the output of a layer in the pairs is used elsewhere too, beside its normalization, "
            "where it would be missed unfolded; leave the pair of that layer out"
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
