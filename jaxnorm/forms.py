"""The mean and the variance by plain operations, in forms that compilers fuse.

The mean is kept as a pair, `center` + `correction`, until both have been subtracted in turn: near
the center, x - center is exact, so that no unit in the last place of the mean is lost.

**About a center.** For any center c, with d = x - c,

    correction = E[d],    var = E[d^2] - correction^2.

The center is the mean of a *part* of the values, a share f of them. Of n values with the variance
var, the f n of the part have (x - mean)^2 in the sum n var, and the mean of these squares is at
least (c - mean)^2. So correction^2 <= var / f and E[d^2] <= (1 + 1 / f) var, whatever the values
are: the difference loses log2(1 + 1 / f) bits at most, four at a share of an eighth, and none where
the part is all. If sums of positive numbers have the relative error s u, with u half a unit in the
last place of 1, then in deviations the correction is off by (1 + 1 / f)^(1/2) s u at most, and
relatively the variance by (2 + 3 / f) s u: at an eighth, by 3 and 26 times s u. A difference of
squares that rounding explains is 0, so that a constant has variance 0; where squares overflow, the
variance is infinite.

**Merged.** The count, the mean and the sum of squares about it of two sets give those of their
union (Chan, Golub and LeVeque 1983, equation 2.1), with the mean as a pair. As the operation of one
reduction it loses no bits at all, and reads the values once.

Which form is taken depends on what is compiled for (`docs/accelerators.md` has the counts):

| device | measured over the minor axes (rows) | other axes (columns) | with a mask |
| --- | --- | --- | --- |
| GPU | all values; merged if a gradient is wanted | a part | all values; merged |
| TPU | merged | merged | merged |
| CPU | a part | a part | all values |

A part is taken only where that moves no row between devices, otherwise all values. Rows on several
GPUs that `jit` might split are measured about the mean of all values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import dtypes as _dtypes
from jaxnorm.arrays import broadcast_mask, explicit_spec, masked, split_groups
from jaxnorm.kernels.target import target
from jaxnorm.scope import Scope, count_of, divisor

SHARE = 8  # of which a part is one
UNIT = 16.0  # so that float32 holds the squares of 1e-18, and of what is a hundred times smaller
SET = 128  # values at least that one reduction merges, before another merges such sets


def mean_and_var(
    scope: Scope,
    x: jax.Array,
    count: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    for_value: bool = False,
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Center, correction and variance of the values that count, in the statistics' dtype.

    The count is that of the values unless it is given. About zero, the center is 0, there is no
    correction, and the variance is E[|x|^2].

    Args:
        for_value: whether the standardized value is computed next, and nothing else.
    """
    values = divisor(count_of(scope, x, mask) if count is None else count)
    scope, x, mask = _joined(scope, x, mask)
    wide = masked(x.astype(_dtypes.statistics_dtype(x.dtype)), mask)
    if scope.about_zero:
        square = scope.sum(squared(wide, UNIT)) / values
        return jnp.zeros_like(square, wide.dtype), None, square / UNIT**2
    in_registers = for_value and _stays_in_registers(scope, x.ndim)
    on_tpu = target().platform == "tpu" and jnp.isrealobj(x)
    if not in_registers and (on_tpu or merges_rows(scope, x)):
        center, correction, var = _merged(scope, wide, values, mask)
    else:
        sampled = mask is None and not in_registers
        part = _part(scope, x).astype(wide.dtype) if sampled else wide
        center = _center(scope, part, values, mask)
        unit = UNIT if in_registers else unit_about(center, UNIT)
        correction, var = _about(scope, wide, center, unit, values, mask)
    if mask is not None:
        center, correction = _of_rounded_mean(center, correction, var)
    elif target().platform == "gpu" and scope.differentiated and not is_rows(scope, x.ndim):
        # else the deviations may be written out, as the derivative needs them too
        center, correction, var = jax.lax.optimization_barrier((center, correction, var))
    return center, correction, var


def _of_rounded_mean(
    center: jax.Array, correction: jax.Array, var: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The mean as its rounded value, and what the rounding took off it: 0 where nothing varies."""
    mean = center + correction
    lost = correction - (mean - center)
    return mean, jax.lax.select(var == 0, jnp.zeros_like(lost), lost)


def _joined(
    scope: Scope, x: jax.Array, mask: jax.Array | None
) -> tuple[Scope, jax.Array, jax.Array | None]:
    """The same measurement with ghosts as groups of examples of a batch that is not split."""
    if not (scope.ghosts and len(scope.reduced) > 1):
        return scope, x, mask

    def joined(array: jax.Array) -> jax.Array:
        return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])

    positions = tuple(axis - 1 for axis in scope.reduced[1:])
    mask = None if mask is None else jnp.broadcast_to(mask, (*x.shape[:2], *mask.shape[2:]))
    scope = scope._replace(reduced=positions, group_size=x.shape[1], ghosts=False)
    return scope, joined(x), None if mask is None else joined(mask)


def _about(
    scope: Scope,
    x: jax.Array,
    center: jax.Array,
    unit: float | jax.Array,
    values: jax.Array,
    mask: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """E[x - center], and the variance."""
    deviation = masked(x - scope.broadcast(center, x), mask)
    squares = squared(deviation, unit if isinstance(unit, float) else scope.broadcast(unit, x))
    correction, square = map(scope.sum_groups, sums_of(scope, deviation, squares))
    correction = correction / values.astype(x.dtype)
    var = subtracted(square / values, squared(correction, unit)) / unit**2
    return correction, var


def sums_of(scope: Scope, *arrays: jax.Array) -> list[jax.Array]:
    """The sums of one or two arrays over the axes `reduced`, in one pass.

    A GPU's compiler may write out what it then sums by column, but not what is made the real and
    the imaginary part of one complex number.
    """
    real = all(jnp.isrealobj(array) for array in arrays)
    if target().platform == "gpu" and real and not is_rows(scope, arrays[0].ndim):
        first, second = arrays[0], arrays[-1]
        summed = jnp.sum(jax.lax.complex(first, second), scope.reduced)
        return [summed.real, summed.imag]
    return [jnp.sum(array, scope.reduced) for array in arrays]


def _stays_in_registers(scope: Scope, ndim: int) -> bool:
    """Whether a row can stay in registers from the first sum to the value.

    A GPU's compiler does that if each step is elementwise of the one before, so the unit cannot
    depend on the center: the variance of a constant above 1e23 is infinite, and the value 0.
    """
    return target().platform == "gpu" and not scope.differentiated and is_rows(scope, ndim)


def merges_rows(scope: Scope, x: jax.Array) -> bool:
    """Whether a GPU's rows, each on one device, are measured by reductions that merge."""
    return target() == ("gpu", 1) and is_rows(scope, x.ndim) and jnp.isrealobj(x)


def is_rows(scope: Scope, ndim: int) -> bool:
    """Whether the values that are measured together lie side by side."""
    reduced = scope.reduced
    return scope.group_size == 1 and reduced == tuple(range(ndim - len(reduced), ndim))


# The center


def _center(scope: Scope, part: jax.Array, values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The mean of a part, or of all values that count."""
    number = max(_axes.values_per_channel(part.shape, scope.reduced) * scope.group_size, 1)
    scaled = part * (1 / number)  # no sum overflows
    center = scope.sum_groups(sums_of(scope, scaled)[0])
    if mask is None:
        return center
    center = center * (number / values).astype(part.dtype)
    # else a compiler might round the product in one place and not in another
    return cast(jax.Array, jax.lax.optimization_barrier(center))


def _part(scope: Scope, x: jax.Array) -> jax.Array:
    """A part of all values that are measured together, in equal steps along one axis."""
    minor = x.ndim - 1
    for axis in sorted(scope.reduced, key=lambda axis: (axis != minor, axis), reverse=True):
        size = x.shape[axis]
        number = size // SHARE if isinstance(size, int) else 0
        if number == 0 or _may_move_rows(x, axis, number):
            continue
        if axis == minor:  # side by side, as steps would read all of it
            return jax.lax.slice_in_dim(x, 0, number, axis=axis)
        step = size // number
        return jax.lax.slice_in_dim(x, 0, step * number, stride=step, axis=axis)
    return x


def _may_move_rows(x: jax.Array, axis: int, number: int) -> bool:
    """Whether steps along an axis might need rows of other devices.

    They need none if each device has whole steps. Under `jit`, whether an axis is split is not
    known; the width of images, their axis 2 or a later one, is taken not to be.
    """
    spec = explicit_spec(x)
    if any(spec):
        return spec[axis] is not None
    platform, devices = target()
    if devices == 1:
        return platform == "any"
    whole_steps = number * SHARE == x.shape[axis] and number % devices == 0
    return axis == x.ndim - 1 or (axis < 2 and not whole_steps)


# Merged

State = Sequence[jax.Array]  # count, center, correction, and the sum of squares about their sum


def _merged(
    scope: Scope, x: jax.Array, values: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The moments by reductions whose operation is the merge of two sets."""
    counted = jnp.ones_like(x) if mask is None else broadcast_mask(mask, x).astype(x.dtype)
    state: State = (counted, x, jnp.zeros_like(x), jnp.zeros_like(x))
    first, *rest = scope.reduced
    if target().devices > 1 and not is_rows(scope, x.ndim):
        return _merged_over_devices(scope, state, values)
    if rest and math.prod(x.shape[axis] for axis in rest) >= SET:  # the few sets left are quick
        state = _merge(_merge(state, tuple(rest)), (first,))
    else:
        state = _merge(state, scope.reduced)
    if scope.group_size > 1:
        axis, size = scope.kept_channel, scope.group_size
        state = _merge([split_groups(array, axis, size) for array in state], (axis + 1,))
    count, center, correction, square = state
    return center, correction, square / divisor(count) / UNIT**2


def _merged_over_devices(
    scope: Scope, state: State, values: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The moments of sets of values by one reduction, and their merge by sums.

    The axis of the sets may be split over devices: two collectives sum over it, as few as sum over
    all values, where another reduction would need one for each array of its state.
    """
    first, *rest = scope.reduced
    size = state[0].shape[first]
    if not rest and size % (SET * target().devices) == 0:
        shape = state[0].shape
        shape = (*shape[:first], size // SET, SET, *shape[first + 1 :])
        state, rest = [array.reshape(shape) for array in state], [first + 1]
    if rest:
        state = _merge(state, tuple(rest))
    count, center, correction, square = state

    def total(of_sets: jax.Array) -> jax.Array:
        return scope.sum_groups(jnp.sum(of_sets, first))

    def spread(statistic: jax.Array) -> jax.Array:
        return jnp.expand_dims(scope.per_channel(statistic), first)

    weight = count / spread(values)
    whole = total(weight * center)
    unit = unit_about(whole, UNIT)
    deviation = (center - spread(whole)) + correction
    within = square / spread(values) * spread(unit / UNIT) ** 2
    between = weight * squared(deviation, spread(unit))
    correction, squares = total(weight * deviation), total(within + between)
    return whole, correction, subtracted(squares, squared(correction, unit)) / unit**2


def _merge(state: State, axes: tuple[int, ...]) -> State:
    """The union of all sets along some axes, in one reduction.

    The count is used by who calls this: what nobody uses, XLA may keep in bfloat16.
    """

    def merge(a: State, b: State) -> State:
        count_a, center_a, correction_a, square_a = a
        count_b, center_b, correction_b, square_b = b
        count = count_a + count_b
        weight = count_b / jnp.maximum(count, 1)
        center, correction, difference = _merged_mean(
            (center_a, correction_a), (center_b, correction_b), weight
        )
        both = weight * count_a  # 0 where a set is empty: its center, 0, is no mean
        difference = difference * UNIT
        between = jnp.where(both > 0, (difference * both) * difference, 0)
        return count, center, correction, square_a + square_b + between

    return _reduced(state, merge, axes)


def _merged_mean(a: State, b: State, weight: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mean of two sets as a pair, and the difference of their means; `weight` is that of b."""
    (center_a, correction_a), (center_b, correction_b) = a, b
    difference, more = center_b - center_a, correction_b - correction_a
    step = difference * weight
    center = center_a + step
    correction = (step - (center - center_a)) + (correction_a + more * weight)
    return center, correction, difference + more


def _reduced(state: State, merge: Callable[[State, State], State], axes: tuple[int, ...]) -> State:
    """All sets along some axes merged."""
    initial = (jnp.zeros((), state[0].dtype),) * len(state)
    return jax.lax.reduce(tuple(state), initial, merge, axes)  # type: ignore[no-any-return]


def merged_products(scope: Scope, x: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sum((x - mean) * v) and sum(v), by one reduction that merges both means and the covariance.

    It does not wait for the mean, so that a GPU's compiler takes it in one pass with what measures.
    """

    def merge(a: State, b: State) -> State:
        count_a, center_a, correction_a, v_a, products_a = a
        count_b, center_b, correction_b, v_b, products_b = b
        count = count_a + count_b
        weight = count_b / jnp.maximum(count, 1)
        center, correction, difference = _merged_mean(
            (center_a, correction_a), (center_b, correction_b), weight
        )
        between = difference * (v_b - v_a) * (weight * count_a)
        return (
            count,
            center,
            correction,
            v_a + (v_b - v_a) * weight,
            products_a + products_b + between,
        )

    zeros = jnp.zeros_like(x)
    count, _, _, mean_of_v, products = _reduced(
        (jnp.ones_like(x), x, zeros, v, zeros), merge, scope.reduced
    )
    return products, mean_of_v * count


# Squares


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
