"""(x - mean) * rstd * scale + bias."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes
from jaxnorm.statistics import Moments


def standardize(
    x: jax.Array,
    m: Moments,
    reduced: Sequence[int],
    scale: jax.Array | None,
    bias: jax.Array | None,
    features: Sequence[int],
    *,
    epsilon: float,
    counted: jax.Array | None = None,
    renorm: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in the dtype of `x`.

    Args:
        x: the input.
        m: moments over the axes `reduced` of `x`.
        reduced: canonical axes.
        scale, bias: of the shape of the axes `features` of `x`, in the statistics' dtype, or None.
        features: canonical axes.
        epsilon: added to the variance.
        counted: boolean, broadcasts to `x`. A position that does not count and is not finite
            yields the bias.
        renorm: the corrections (r, d) of batch renormalization, of the shape of the moments:
            the standardized value y becomes y * r + d.
    """
    count, mean, var = (jnp.expand_dims(part, reduced) for part in m)
    keep = None if counted is None else counted | jnp.isfinite(x)
    values = x if keep is None else jnp.where(keep, x, 0)
    y = (values.astype(mean.dtype) - mean) * _rstd(count, var, epsilon).astype(mean.dtype)
    if renorm is not None:
        r, d = (jnp.expand_dims(part, reduced) for part in renorm)
        y = y * r + d
    if counted is not None and keep is not None:
        y = jnp.where(counted | (keep & jnp.isfinite(y)), y, 0)
    others = _axes.other_axes(x.ndim, features)
    if scale is not None:
        y = y * jnp.expand_dims(scale, others)
    if bias is not None:
        y = y + jnp.expand_dims(bias, others)
    return y.astype(x.dtype)


def _rstd(count: jax.Array, var: jax.Array, epsilon: float) -> jax.Array:
    """1 / sqrt(var + epsilon), and 0 where nothing counts or nothing varies and epsilon is 0."""
    power = var + epsilon
    nothing = (count == 0) | (power == 0)
    return jnp.where(nothing, 0, jax.lax.rsqrt(jnp.where(nothing, 1, power)))
