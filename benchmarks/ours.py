"""The normalizations of jaxnorm, with the calling convention of `benchmarks.peers`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import jaxnorm as jn
from benchmarks.timing import Apply, Parameters

NORMS = ("batch", "layer", "rms", "group", "instance")
EPSILON = 1e-5
MOMENTUM = 0.99
GROUPS = 32


def affine(norm: str, channels: int) -> Parameters:
    """Return scale and bias; of RMS the scale alone."""
    return [jnp.ones(channels), jnp.zeros(channels)][: 1 if norm == "rms" else 2]


def running_stats(channels: int) -> dict[str, jax.Array]:
    """Return running statistics without zeros and ones, which XLA would optimize away."""
    return {"mean": jnp.linspace(0.1, 1.0, channels), "var": jnp.linspace(0.5, 0.9, channels)}


def normalization(norm: str, channels: int) -> Apply:
    """Return one of `NORMS`, or "evaluation": batch normalization by running statistics."""
    if norm in ("batch", "evaluation"):
        train = norm == "batch"
        stats = jn.init_batch_stats(channels) if train else running_stats(channels)
        return lambda p, x: jn.batch_norm(
            x, stats, *p, train=train, momentum=MOMENTUM, epsilon=EPSILON
        )
    function = {
        "layer": jn.layer_norm,
        "rms": jn.rms_norm,
        "group": lambda *args, **options: jn.group_norm(*args, num_groups=GROUPS, **options),
        "instance": jn.instance_norm,
    }[norm]
    return lambda p, x: (function(x, *p, epsilon=EPSILON), None)
