"""Squares of deviations, in a unit in which they neither underflow nor overflow.

The *unit* is the factor by which deviations are multiplied before they are squared.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

UNIT = 64.0  # so that float32 holds the squares of 1e-18, and of what is 500 times smaller


def unit_about(center: jax.Array, unit: float) -> jax.Array:
    """The unit of squared deviations from a center: `unit`, or less about a huge center.

    About a huge center the square of the rounding error of a deviation would overflow. With the
    smaller unit a constant has variance 0, and only a variance that overflows is infinite.
    """
    size = jnp.abs(center)
    huge = jnp.full_like(size, 2.0 ** (jnp.finfo(center.dtype).maxexp // 2 - 2))
    return unit * (huge / jnp.maximum(size, huge))


def squared(x: jax.Array, unit: ArrayLike) -> jax.Array:
    """|x * unit|^2, real."""
    if jnp.isrealobj(x):
        return (x * unit) ** 2
    return (x.real * unit) ** 2 + (x.imag * unit) ** 2


def subtracted(square: jax.Array, correction: jax.Array) -> jax.Array:
    """square - correction: 0 if they differ by rounding only, infinite if squares overflow."""
    difference = square - correction
    rounding = 8 * float(jnp.finfo(square.dtype).eps) * square
    difference = jax.lax.select(difference <= rounding, jnp.zeros_like(difference), difference)
    return jax.lax.select(square == jnp.inf, square, difference)
