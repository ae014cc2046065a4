"""The mean and the variance about zero where every mean is near zero, else about the means.

About zero the sums wait for no center: a TPU's compiler makes them part of the convolution or the
product of matrices that yields the values, so that they cost nothing. Afterwards is known whether
zero was a center near enough: with mean^2 < 8 var the mean square is at most 9 var, which is the
bound of a center from an eighth of the values (`forms.py`). Where one mean is farther, all are
measured again; a program for a TPU runs only the branch that it takes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnorm.squares import UNIT, squared

FARTHEST = 8  # the largest mean^2 / var that is near

Measured = tuple[jax.Array, jax.Array, jax.Array]


def near_zero_or(
    measured_far: Callable[[jax.Array], Measured], x: jax.Array, mean: jax.Array, square: jax.Array
) -> Measured:
    """Center, correction and variance, given E[x] and E[(x * UNIT)^2], or `measured_far(x)`.

    The branch near zero computes the variance itself, which saves a kernel.
    """

    def scaled_var() -> jax.Array:
        return square - squared(mean, UNIT)

    def measured_near(_: jax.Array) -> Measured:
        return jnp.zeros_like(mean), mean, scaled_var() / UNIT**2

    var = scaled_var()
    near = (squared(mean, UNIT) < FARTHEST * var) & (var < jnp.inf)  # not where one is NaN
    near |= (mean == 0) & (square == 0)
    measured: Measured = jax.lax.cond(_everywhere(jnp.all(near)), measured_near, measured_far, x)
    return measured


@jax.custom_batching.custom_vmap
def _everywhere(near: jax.Array) -> jax.Array:
    """The same, but over a batch of `vmap` all of them: else both branches would run."""
    return near


@_everywhere.def_vmap
def _everywhere_in_batch(size: int, batched: list[bool], near: jax.Array) -> tuple[jax.Array, bool]:
    del size, batched
    return _everywhere(jnp.all(near, 0)), False
