"""The steps that batch normalization, ghost batch normalization and renormalization share.

Each function in `batch.py` checks its arguments by `checked`. In evaluation it returns
`Arguments.evaluated`; in training it measures moments, standardizes with them, and returns
`Arguments.updated` as the new running statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes
from jaxnorm import states as _states
from jaxnorm.arrays import full_without
from jaxnorm.running import running_moments, sharded, update
from jaxnorm.scope import Scope
from jaxnorm.standardize import normalize, standardize
from jaxnorm.statistics import Centered, Moments, without_correction


class Arguments(NamedTuple):
    """Checked arguments.

    Attributes:
        channels: canonical axes of the channels.
        reduced: canonical axes that the statistics are taken over.
        evaluates: whether the running statistics are used and not updated.
    """

    x: jax.Array
    stats: _states.BatchStats
    scale: jax.Array | None
    bias: jax.Array | None
    mask: jax.Array | None
    channels: tuple[int, ...]
    reduced: tuple[int, ...]
    momentum: ArrayLike | None
    epsilon: ArrayLike
    skip_nonfinite: bool
    evaluates: bool

    def normalized(self, scope: Scope) -> tuple[jax.Array, Moments]:
        """`x` standardized by its own moments over `scope`, and these moments."""
        y, m = normalize(
            self.x,
            scope,
            self.scale,
            self.bias,
            self.channels,
            epsilon=self.epsilon,
            mask=self.mask,
        )
        return y, m.moments

    def standardized(self, m: Centered, scope: Scope, **options: Any) -> jax.Array:
        """`x` standardized by the moments `m`."""
        return standardize(
            self.x,
            m,
            scope,
            self.scale,
            self.bias,
            self.channels,
            epsilon=self.epsilon,
            mask=self.mask,
            **options,
        )

    def evaluated(self) -> jax.Array:
        """`x` standardized by the running statistics."""
        running = running_moments(self.stats, _dtypes.statistics_dtype(self.x.dtype))
        return self.standardized(without_correction(running), Scope(self.reduced), given=True)

    def whole_batch(
        self, axis_name: _axes.AxisName | None, axis_index_groups: _axes.AxisIndexGroups
    ) -> tuple[Scope, int]:
        """The scope of the moments of the batch, and the size of the mapped axes they span."""
        axis_size = _axes.mapped_size(axis_name, axis_index_groups)
        _checks.check_values_per_channel(self.x.shape, self.reduced, axis_size, "an input")
        groups = _axes.hashable_groups(axis_index_groups)
        return Scope(self.reduced, axis_name=axis_name, axis_index_groups=groups), axis_size

    def split(self, number: int, size: int) -> Arguments:
        """The same with the batch axis split in two: `number` slices of `size` examples."""
        batch = self.x.shape[0]

        def split(array: jax.Array) -> jax.Array:
            whole = jnp.broadcast_to(array, (batch, *array.shape[1:]))
            return whole.reshape(number, size, *array.shape[1:])

        def split_parameter(parameter: jax.Array | None) -> jax.Array | None:
            if parameter is None or parameter.ndim == len(self.channels):
                return parameter
            return split(parameter)

        return self._replace(
            x=split(self.x),
            scale=split_parameter(self.scale),
            bias=split_parameter(self.bias),
            mask=None if self.mask is None else split(self.mask),
            channels=tuple(axis + 1 for axis in self.channels),
            reduced=tuple(axis + 1 for axis in self.reduced),
        )

    def with_known_count(self, m: Moments, axis_size: int) -> Moments:
        """The merged moments; without a mask, the count is replaced by its known value.

        A constant is the same on all devices, which JAX then knows too.
        """
        if self.mask is not None:
            return m
        number = axis_size * _axes.values_per_channel(self.x.shape, self.reduced)
        return m._replace(count=full_without(self.x, self.reduced, number, m.count.dtype))

    def updated(self, m: Moments) -> Any:
        """The running statistics after a step with the moments `m`."""
        number = _axes.values_per_channel(self.x.shape, self.reduced)
        return update(
            self.stats,
            m,
            momentum=self.momentum,
            skip_nonfinite=self.skip_nonfinite,
            all_seen=self.mask is None and isinstance(number, int) and number > 0,
        )


def checked(
    x: ArrayLike,
    stats: _states.BatchStats,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    train: bool,
    momentum: ArrayLike | None,
    epsilon: ArrayLike,
    channel_axis: _axes.Axes,
    where: ArrayLike | None,
    axis_name: _axes.AxisName | None,
    axis_index_groups: _axes.AxisIndexGroups,
    skip_nonfinite: bool,
    entries: Sequence[str] = ("mean", "var"),
    init_stats: str = "init_batch_stats",
) -> Arguments:
    """The arguments of a normalization over the batch, once they are checked.

    Args:
        entries: the entries that the statistics must have, beside the count that `momentum=None`
            needs.
        init_stats: the function that makes such statistics, for error messages.
    """
    x = _checks.as_input(x)
    channels = _axes.nonempty_axes(x.ndim, channel_axis, "channel_axis")
    _checks.check_choice("train", train)
    _checks.check_choice("skip_nonfinite", skip_nonfinite)
    _checks.check_momentum(momentum)
    _checks.check_epsilon(epsilon)
    _axes.check_axis_index_groups(axis_name, axis_index_groups)
    if momentum is None:
        _states.check_stats(stats, x, channels, (*entries, "count"), init_stats, ", momentum=None")
    else:
        _states.check_stats(stats, x, channels, entries, init_stats)
    mask = _checks.as_mask(where, x.shape)
    evaluates = not train or "frozen" in stats
    if not evaluates:
        _states.check_mean_dtype(stats, x)
        if momentum is None:
            _states.check_count(stats, mask, channels)
    reduced = _axes.other_axes(x.ndim, channels)
    return Arguments(
        x=x,
        stats=sharded(stats, x, reduced),
        scale=_checks.as_parameter("scale", scale, x, channels),
        bias=_checks.as_parameter("bias", bias, x, channels),
        mask=mask,
        channels=channels,
        reduced=reduced,
        momentum=momentum,
        epsilon=epsilon,
        skip_nonfinite=skip_nonfinite,
        evaluates=evaluates,
    )
