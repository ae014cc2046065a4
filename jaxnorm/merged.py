"""The mean and the variance by reductions whose operation is the merge of two sets of values.

The count, the mean and the sum of squares about it of two sets give those of their union (Chan,
Golub and LeVeque 1983, equation 2.1). As the operation of one reduction that reads the values once,
the merge cancels nothing, whatever the values are. The mean is a pair, center + correction. What
rounds is the sum of squares, by a unit in the last place for each value that a reduction merges
one after another: a GPU merges many at a time, a CPU one (1e-5 after 100,000).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxnorm.arrays import broadcast_mask, explicit_spec
from jaxnorm.kernels.target import target
from jaxnorm.scope import Scope, divisor, is_rows
from jaxnorm.squares import UNIT

State = Sequence[jax.Array]  # count, center, correction, and the sum of squares about their sum


def merged_mean_and_var(
    scope: Scope, x: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The moments of rows by a reduction whose operation is the merge of two sets."""
    counted = jnp.ones_like(x) if mask is None else broadcast_mask(mask, x).astype(x.dtype)
    state = (counted, x, jnp.zeros_like(x), jnp.zeros_like(x))
    count, center, correction, square = _merge(state, scope.reduced)
    var = square / divisor(count) / UNIT**2
    return center, correction, var + 0 * (center + correction)  # NaN if the mean is


def _merge(state: State, axes: tuple[int, ...]) -> State:
    """The union of all sets along some axes, in one reduction.

    The count is used by who calls this: what nobody uses, XLA may keep in bfloat16.
    """

    def merge(a: State, b: State) -> State:
        *mean_a, square_a = a
        *mean_b, square_b = b
        mean, difference, weight = _merged_mean(mean_a, mean_b)
        both = weight * a[0]  # 0 where a set is empty: its center, 0, is no mean
        scaled = difference * UNIT
        between = jnp.where(both > 0, (scaled * both) * scaled, 0 * difference)  # NaN stays
        return *mean, square_a + square_b + between

    return _reduced(state, merge, axes)


def _merged_mean(a: State, b: State) -> tuple[State, jax.Array, jax.Array]:
    """Count, center and correction of two sets, the difference of their means, the weight of b."""
    count_a, center_a, correction_a = a
    count_b, center_b, correction_b = b
    count = count_a + count_b
    weight = count_b / jnp.maximum(count, 1)
    difference, more = center_b - center_a, correction_b - correction_a
    step = difference * weight
    center = center_a + step
    correction = (step - (center - center_a)) + (correction_a + more * weight)
    return (count, center, correction), difference + more, weight


def _reduced(state: State, merge: Callable[[State, State], State], axes: tuple[int, ...]) -> State:
    """All sets along some axes merged."""
    initial = (jnp.zeros((), state[0].dtype),) * len(state)
    return jax.lax.reduce(tuple(state), initial, merge, axes)  # type: ignore[no-any-return]


def merges_rows(scope: Scope, x: jax.Array) -> bool:
    """Whether a GPU's rows, each on one device, are measured by reductions that merge."""
    on_mesh = any(explicit_spec(x))  # where JAX has no derivative of such a reduction
    return target() == ("gpu", 1) and is_rows(scope, x.ndim) and jnp.isrealobj(x) and not on_mesh


def merged_products(scope: Scope, x: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sum((x - mean) * v) and sum(v), by one reduction that merges both means and the covariance.

    It does not wait for the mean, so that a GPU's compiler takes it in one pass with what measures.
    """

    def merge(a: State, b: State) -> State:
        *mean_a, v_a, products_a = a
        *mean_b, v_b, products_b = b
        mean, difference, weight = _merged_mean(mean_a, mean_b)
        between = difference * (v_b - v_a) * (weight * a[0])
        return *mean, v_a + (v_b - v_a) * weight, products_a + products_b + between

    zeros = jnp.zeros_like(x)
    count, _, _, mean_of_v, products = _reduced(
        (jnp.ones_like(x), x, zeros, v, zeros), merge, scope.reduced
    )
    return products, mean_of_v * count
