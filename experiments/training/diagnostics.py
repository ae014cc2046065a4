"""Gradients, statistics and distributions of each layer during training."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

QUANTILES = (0.05, 0.15, 0.5, 0.85, 0.95)  # Ioffe & Szegedy 2015, figure 1, plot three of them
MOST_DECADES = 38.0  # the largest exponent of a float32
MAX_VALUES = 4_096  # values of a layer that are used for quantiles


def watched(grads: Any, old: Any, new: Any, momentum: float | None) -> dict[str, Any]:
    """Return the diagnostics of a step, given its gradient and the statistics before and after."""
    return {
        "gradient_norm": gradient_norms(grads),
        "statistics": distance_to_running(old, new, momentum),
    }


def gradient_norms(grads: Any) -> dict[str, jax.Array]:
    """Return the Euclidean norm of the gradient of the parameters of each layer."""
    return {name: optax.tree.norm(layer) for name, layer in layers(grads, _is_layer)}


def kernel_norms(grads: Any) -> dict[str, float]:
    """Return the Euclidean norm of the gradient of each kernel except that of the head.

    The order is that of the numbers in the names. The norms are computed in float64, because the
    squares of a float32 underflow and overflow sooner than its values.
    """
    numbered = {
        name: layer for name, layer in grads.items() if name != "head" and "kernel" in layer
    }
    return {
        name: float(np.linalg.norm(np.asarray(numbered[name]["kernel"], np.float64)))
        for name in sorted(numbered, key=lambda name: int(re.sub(r"\D", "", name)))
    }


def decades_between(norms: dict[str, float]) -> float:
    """Return |log10(first / last)| of positive norms, at most `MOST_DECADES`.

    A norm that is 0 or not finite gives `MOST_DECADES`.
    """
    ends = np.array([*norms.values()])[[0, -1]]
    if not (np.isfinite(ends).all() and (ends > 0).all()):
        return MOST_DECADES
    return min(float(abs(np.diff(np.log10(ends))[0])), MOST_DECADES)


def distance_to_running(old: Any, new: Any, momentum: float | None) -> dict[str, Any]:
    """Return the distance of the batch of a step from the running statistics, by normalization.

    It shows how much batches scatter in training. `jaxnorm.diagnose` says whether the running
    statistics are right in the end.

    It follows from the change in the step: batch - old = (new - old) / share. The share of the
    batch is 1 - momentum, or that of its count if all batches are merged. (Then the difference
    between batch means is not part of the variance.) `mean` is the average over channels of
    |mean_B - mean| / sqrt(var), and `var` that of |var_B - var| / var. Frozen statistics give 0.
    """
    after = dict(layers(new, _is_statistics))

    def distance(name: str, stats: Any) -> dict[str, jax.Array]:
        share = jnp.maximum(_share(stats, after[name], momentum), 1e-6)
        mean, var = ((after[name][key] - stats[key]) / share for key in ("mean", "var"))
        tiny = jnp.finfo(stats["var"].dtype).tiny
        scale = jnp.maximum(stats["var"], tiny)
        return {
            "mean": jnp.mean(jnp.abs(mean) / jnp.sqrt(scale)),
            "var": jnp.mean(jnp.abs(var) / scale),
        }

    return {name: distance(name, stats) for name, stats in layers(old, _is_statistics)}


def _share(old: Any, new: Any, momentum: float | None) -> Any:
    if momentum is not None:
        return 1 - momentum
    return jnp.mean(1 - old["count"] / jnp.maximum(new["count"], 1))


class Activations(NamedTuple):
    """Some values of a layer, and which of them count. None means all."""

    values: jax.Array
    counted: jax.Array | None


def activations(captured: Any) -> dict[str, dict[str, Activations]]:
    """Return values of the input, of the output and of one unit of each normalization.

    The unit is the first channel of the output. Masked positions, which are padding, do not count.
    """
    return {
        name: {
            side: _some_of(values, *place.get("mask", ()))
            for side, values in (
                ("input", place["input"][0]),
                ("output", place["output"][0]),
                ("unit", place["output"][0][..., :1]),
            )
        }
        for name, place in layers(captured, is_normalization)
    }


def _some_of(values: jax.Array, mask: jax.Array | None = None) -> Activations:
    """Return at most `MAX_VALUES` values, and where `mask`, of their first axes, is True."""
    few = _few(values).astype(jnp.float32)
    if mask is None:
        return Activations(few, None)
    mask = mask.reshape(*mask.shape, *(1,) * (values.ndim - mask.ndim))
    return Activations(few, _few(jnp.broadcast_to(mask, values.shape)))


def _few(values: jax.Array) -> jax.Array:
    return jnp.ravel(values)[:: -(-values.size // MAX_VALUES)]


def quantiles(of: Activations) -> list[float]:
    """Return `QUANTILES` of the values that count. No values, and NaN among them, give NaN.

    NumPy computes them, because XLA sorts slowly on a CPU.
    """
    values = np.asarray(of.values)
    counted = values if of.counted is None else values[of.counted]
    if not counted.size:
        return [math.nan] * len(QUANTILES)
    with np.errstate(invalid="ignore"):  # between infinite values
        return np.quantile(counted, QUANTILES).tolist()


def _is_layer(tree: Any) -> bool:
    return any(not isinstance(value, dict) for value in tree.values())


def _is_statistics(tree: Any) -> bool:
    return "mean" in tree


def is_normalization(tree: Any) -> bool:
    """Return whether this dict holds the intermediates of a normalization."""
    return "input" in tree


def layers(tree: Any, is_one: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the path and the dict of every layer in a tree of dicts."""
    if is_one(tree):
        yield "/".join(path), tree
        return
    for name, branch in tree.items():
        if isinstance(branch, dict):
            yield from layers(branch, is_one, (*path, name))
