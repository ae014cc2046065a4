"""Scopes: which values of an input are measured together, and their count.

A *statistic* is an array with one entry for each set of values that is measured together. A value
*counts* where the mask is true, or if there is no mask.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes
from jaxnorm import dtypes as _dtypes
from jaxnorm.arrays import (
    broadcast_mask,
    broadcast_over,
    explicit_spec,
    full_without,
    masked,
    repeat_groups,
    split_groups,
)
from jaxnorm.kernels.native import has_native
from jaxnorm.kernels.view import View, view_of
from jaxnorm.segments import Segments


class Scope(NamedTuple):
    """Which values of an input are measured together (hashable but for the ids of segments).

    Attributes:
        reduced: the canonical axes of the input that are measured over.
        channel, group_size: if `group_size` is above 1, the axis `channel` is measured over too, in
            groups of this many channels.
        about_zero: whether the mean is 0 by definition.
        axis_name, axis_index_groups: the mapped axes over which the moments are merged.
        differentiated: whether a backward pass will read the input again.
        ghosts: whether the first two axes are a batch, split into ghosts.
        segments: the rows that are measured together too; axis 0 is not among `reduced` then.
    """

    reduced: tuple[int, ...]
    channel: int = 0
    group_size: int = 1
    about_zero: bool = False
    axis_name: _axes.AxisName | None = None
    axis_index_groups: Any = None
    differentiated: bool = False
    ghosts: bool = False
    segments: Segments | None = None

    def per_channel(self, statistic: jax.Array) -> jax.Array:
        """Repeat a statistic of groups for the channels of each group."""
        if self.group_size == 1:
            return statistic
        return repeat_groups(statistic, self.kept_channel, self.group_size)

    def broadcast(self, statistic: jax.Array, x: jax.Array) -> jax.Array:
        """Broadcast a statistic to the values of `x` that it was measured over."""
        statistic = self.per_channel(statistic)
        if self.segments is not None:
            statistic = self.segments.of_rows(statistic)
        return broadcast_over(statistic, x, self.reduced)

    def deviation(self, x: jax.Array, center: jax.Array, correction: jax.Array | None) -> jax.Array:
        """x - mean, in turn: far from zero the first difference is exact, so nothing is lost."""
        deviation = x.astype(center.dtype) - self.broadcast(center, x)
        return deviation if correction is None else deviation - self.broadcast(correction, x)

    def sum_channels(self, x: jax.Array) -> jax.Array:
        """Sum over all that is measured together but the channels of a group."""
        sums = jnp.sum(x, self.reduced)
        return sums if self.segments is None else self.segments.sum(sums)

    def sum_groups(self, sums: jax.Array) -> jax.Array:
        """Sum over the channels of each group what `sum_channels` returns."""
        if self.group_size == 1:
            return sums
        split = split_groups(sums, self.kept_channel, self.group_size)
        return jnp.sum(split, self.kept_channel + 1)

    def sum(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Sum the values of this device that count."""
        return self.sum_groups(self.sum_channels(masked(x, mask)))

    def view(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        features: tuple[int, ...] = (),
        leading: tuple[int, ...] = (),
    ) -> View | None:
        """The view in which the kernels take the input, None if they do not."""
        if self.segments is not None:
            return None
        axes = (self.reduced, features, self.channel, self.group_size)
        view = view_of(x.shape, *axes, None if mask is None else mask.shape, leading)
        return view if has_native(x, view) else None

    def statistic_shape(self, x: jax.Array) -> tuple[int, ...]:
        """The shape of a statistic."""
        shape = list(x.shape)
        if self.segments is not None:
            shape[0] = self.segments.number
        if self.group_size != 1:
            shape[self.channel] //= self.group_size
        return tuple(shape[axis] for axis in _axes.other_axes(x.ndim, self.reduced))

    @property
    def kept_channel(self) -> int:
        """The channel axis of an array without the axes `reduced`."""
        return _axes.kept_axis(self.channel, self.reduced)


def by_segment(
    scope: Scope, segments: Segments | None, mask: jax.Array | None, ndim: int
) -> tuple[Scope, jax.Array | None]:
    """The scope over all rows of each segment, and the mask of the rows of segments."""
    if segments is None:
        return scope, mask
    reduced = tuple(axis for axis in scope.reduced if axis != 0)
    return scope._replace(reduced=reduced, segments=segments), segments.counted(mask, ndim)


def is_rows(scope: Scope, ndim: int) -> bool:
    """Whether the values that are measured together lie side by side."""
    last = tuple(range(ndim - len(scope.reduced), ndim))
    return scope.group_size == 1 and scope.segments is None and scope.reduced == last != ()


def count_of(scope: Scope, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The number of values that count, a statistic."""
    dtype = _dtypes.real_dtype(_dtypes.statistics_dtype(x.dtype))
    if mask is None:
        number = _axes.values_per_channel(x.shape, scope.reduced)
        return scope.sum_groups(full_without(x, scope.reduced, number, dtype))
    if any(explicit_spec(x)) or not all(isinstance(size, int) for size in x.shape):
        return scope.sum(broadcast_mask(mask, x).astype(dtype))
    return _count_by_axes(scope, x, mask, dtype)


def _count_by_axes(scope: Scope, x: jax.Array, mask: jax.Array, dtype: Any) -> jax.Array:
    """The count from the mask in its own shape."""
    number = jnp.sum(mask, scope.reduced, dtype=dtype)
    number *= math.prod(x.shape[axis] for axis in scope.reduced if mask.shape[axis] == 1)
    if scope.segments is not None:
        number = scope.segments.sum(number)
    of_channels = scope._replace(group_size=1).statistic_shape(x)
    return scope.sum_groups(jnp.broadcast_to(number, of_channels))


def mask_operand(view: View | None, mask: jax.Array | None) -> jax.Array | None:
    """The mask as the kernels take it, if there is a view, and the plain form too."""
    if mask is None or view is None or view.mask is None:
        return mask
    return jnp.broadcast_to(mask, view.mask.shape)


def divisor(count: jax.Array) -> jax.Array:
    """The count, or 1 where nothing counts: a sum divided by it is the mean."""
    return jnp.maximum(count, jnp.ones_like(count))
