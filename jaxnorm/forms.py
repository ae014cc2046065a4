"""The mean and the variance by plain operations, in forms that compilers fuse.

The mean is kept as a pair, `center` + `correction`, until both have been subtracted in turn: near
the center, x - center is exact, so that no unit in the last place of the mean is lost.

**About a center.** For any center c, with d = x - c,

    correction = E[d],    var = E[d^2] - correction^2.

The center is the mean of a *part* of the values, a share f of a fifteenth to an eighth of them. Of
n values with the variance var, the f n of the part have (x - mean)^2 in the sum n var, and the mean
of these squares is at least (c - mean)^2. So correction^2 <= var / f and E[d^2] <= (1 + 1 / f) var,
whatever the values are (and for a center that its own sum has rounded, up to that rounding): the
difference loses log2(1 + 1 / f) bits at most, three to four, and none where the part is all. If
sums of positive numbers have the relative error s u, with u half a unit in the last place of 1,
then in deviations the correction is off by (1 + 1 / f)^(1/2) s u at most, and relatively the
variance by (2 + 3 / f) s u: at an eighth by 3 and 26 times s u, at a fifteenth by 4 and 47 times. A
difference of squares that rounding explains is 0, so that a constant has variance 0; where squares
overflow, the variance is infinite.

**About zero**, where that is near: the mean is the correction, and the same bound is not proved but
looked at (`near.py`).

**Merged.** The count, the mean and the sum of squares about it of two sets give those of their
union (Chan, Golub and LeVeque 1983, equation 2.1), with the mean as a pair. As the operation of one
reduction it cancels nothing, and reads the values once (`merged.py`).

Which form is taken depends on what is compiled for (`docs/accelerators.md` has the counts):

| device | measured over the minor axes (rows) | other axes (columns) | with a mask |
| --- | --- | --- | --- |
| GPU | all values; merged if a gradient is wanted | a part | rows merged, columns all values |
| TPU | about zero, or all values | about zero, or all values | about zero, or all values |
| CPU | a part | a part | all values |

By segment (`segments.py`), on every device: about the mean of all values, which is summed as the
differences from one row of the segment. A scatter sums rows in turn: the mean of such a sum of
values far from zero is off by many deviations, and a difference of squares about it loses digits.

A part is taken only where that moves no row between devices, otherwise all values. Rows on several
GPUs that `jit` might split are measured about the mean of all values.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes
from jaxnorm import dtypes as _dtypes
from jaxnorm.arrays import explicit_spec, masked
from jaxnorm.kernels.target import target
from jaxnorm.merged import merged_mean_and_var, merges_rows
from jaxnorm.near import near_zero_or
from jaxnorm.scope import Scope, count_of, divisor, is_rows
from jaxnorm.segments import Segments
from jaxnorm.squares import UNIT, squared, subtracted, unit_about

SHARE = 8  # of which a part is one


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
    wide = _widened(x, mask)
    if scope.about_zero:
        square = scope.sum(squared(wide, UNIT)) / values
        return jnp.zeros_like(square, wide.dtype), None, square / UNIT**2
    in_registers = for_value and _stays_in_registers(scope, x.ndim)
    by_axis = scope.reduced != () and scope.segments is None
    if by_axis and target().platform == "tpu" and jnp.isrealobj(x):
        center, correction, var = _near_zero(scope, x, wide, values, mask)
    elif not in_registers and merges_rows(scope, x):
        center, correction, var = merged_mean_and_var(scope, wide, mask)
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


def _widened(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The values in the statistics' dtype, 0 where they do not count."""
    return masked(x.astype(_dtypes.statistics_dtype(x.dtype)), mask)


def _near_zero(
    scope: Scope, x: jax.Array, wide: jax.Array, values: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The moments about zero, or about the mean of all values.

    The branch that measures again widens `x` itself, else the wide values would be written out.
    """
    mean = _center(scope, wide, values, mask)
    square = scope.sum(squared(wide, UNIT)) / values

    def measured_far(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        unit = unit_about(mean, UNIT)
        return mean, *_about(scope, _widened(x, mask), mean, unit, values, mask)

    return near_zero_or(measured_far, x, mean, square)


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
    undefined = 0 * correction  # NaN if it is not finite
    var = subtracted(square / values, squared(correction, unit)) / unit**2
    return correction + undefined, var + undefined.real


def sums_of(scope: Scope, *arrays: jax.Array) -> list[jax.Array]:
    """The sums of one or two arrays over the axes `reduced`, in one pass.

    A GPU's compiler may write out what it then sums by column, but not what is made the real and
    the imaginary part of one complex number; so one array is made both.
    """
    real = all(jnp.isrealobj(array) for array in arrays)
    columns = scope.segments is None and not is_rows(scope, arrays[0].ndim)
    if target().platform == "gpu" and real and columns:
        first, second = arrays[0], arrays[-1]
        summed = jnp.sum(jax.lax.complex(first, second), scope.reduced)
        return [summed.real, summed.imag]
    return [scope.sum_channels(array) for array in arrays]


def _stays_in_registers(scope: Scope, ndim: int) -> bool:
    """Whether a row can stay in registers from the first sum to the value.

    A GPU's compiler does that if each step is elementwise of the one before, so the unit cannot
    depend on the center: the variance of a constant above 2e22 is infinite, and the value 0.
    """
    return target().platform == "gpu" and not scope.differentiated and is_rows(scope, ndim)


# The center


def _center(scope: Scope, part: jax.Array, values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The mean of a part, or of all values that count.

    A factor is inside the sum, so that none overflows. What is behind it is a division: a compiler
    may round a product in one place and not in another. The sum does not wait for the count, so
    that one collective sums both over devices.
    """
    if scope.segments is not None:
        return _center_by_segment(scope, scope.segments, part, values, mask)
    number = max(_axes.values_per_channel(part.shape, scope.reduced) * scope.group_size, 1)
    total = scope.sum_groups(sums_of(scope, part * (1 / number))[0])
    return total if mask is None else total / (values * (1 / number)).astype(part.dtype)


def _center_by_segment(
    scope: Scope,
    segments: Segments,
    x: jax.Array,
    values: jax.Array,
    mask: jax.Array | None,
) -> jax.Array:
    """The mean of the values that count, summed as the differences from one row of the segment.

    Sums of many rows one after another drift if these are far from zero and close together.
    """
    row = scope._replace(segments=None)
    counted = count_of(row, x, mask)
    start = _largest(segments, _center(row, x, divisor(counted), mask), counted)
    number = max(_axes.values_per_channel(x.shape, (0, *scope.reduced)) * scope.group_size, 1)
    total = scope.sum(masked(x - scope.broadcast(start, x), mask) * (1 / number))
    return start + total / (values * (1 / number)).astype(x.dtype)


def _largest(segments: Segments, means: jax.Array, counted: jax.Array) -> jax.Array:
    """The largest mean of a row of each segment in which something counts, 0 without one."""
    if jnp.iscomplexobj(means):
        parts = (_largest(segments, part, counted) for part in (means.real, means.imag))
        return jax.lax.complex(*parts)
    least = jnp.finfo(means.dtype).min
    largest = segments.max(jnp.where(counted > 0, means, least))
    return jnp.where(largest == least, 0, largest)


def _part(scope: Scope, x: jax.Array) -> jax.Array:
    """A part of all values that are measured together, in equal steps along one axis."""
    minor = x.ndim - 1
    for axis in sorted(scope.reduced, key=lambda axis: (axis != minor, axis), reverse=True):
        size = x.shape[axis]
        number = size // SHARE if isinstance(size, int) else 0
        if number == 0 or _may_move_rows(scope, x, axis, number):
            continue
        if axis == minor:  # side by side, as steps would read all of it
            return jax.lax.slice_in_dim(x, 0, number, axis=axis)
        step = size // number
        return jax.lax.slice_in_dim(x, 0, step * number, stride=step, axis=axis)
    return x


def _may_move_rows(scope: Scope, x: jax.Array, axis: int, number: int) -> bool:
    """Whether steps along an axis might need rows of other devices.

    They need none if each device has whole steps. Under `jit`, whether an axis is split is not
    known; the width of images whose channels are last is taken not to be.
    """
    spec = explicit_spec(x)
    if any(spec):
        return spec[axis] is not None
    platform, devices = target()
    if devices == 1:
        return platform == "any"
    whole_steps = number * SHARE == x.shape[axis] and number % devices == 0
    width = axis >= 2 and axis == scope.reduced[-1]
    return axis == x.ndim - 1 or not (width or whole_steps)
