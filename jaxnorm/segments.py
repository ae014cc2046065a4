"""Segments: the rows of an input (its entries along axis 0) that are measured together.

A statistic by segment has one entry for each segment along axis 0, where one by row has one for
each row. The rows of a segment may lie anywhere, and a row may be of no segment.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm.arrays import explicit_sharding, explicit_spec

# As many rows are summed one after another, where the sums of all such parts are few.
ROWS_IN_TURN = 256


class Segments(NamedTuple):
    """The segment of each row.

    Attributes:
        ids: int32 [N]; `number` for a row of no segment.
        number: the number of segments.
    """

    ids: jax.Array
    number: int

    def sum(self, rows: jax.Array) -> jax.Array:
        """Sum the rows of each segment: of consecutive parts of the rows, then of the parts.

        A sum in turn of n numbers may be wrong by n units in the last place.
        """
        parts, size = self._parts(rows.shape[0])
        ids, number = self.ids, self.number * parts
        if parts > 1:
            ids = ids * parts + jax.lax.iota(ids.dtype, ids.size) // size
        zeros = jnp.zeros((number, *rows.shape[1:]), rows.dtype)
        sums = _scattered("add", zeros, ids, rows)
        return sums if parts == 1 else jnp.sum(sums.reshape(-1, parts, *rows.shape[1:]), 1)

    def max(self, rows: jax.Array) -> jax.Array:
        """The largest of the rows of each segment; the least finite number without one."""
        least = jnp.full((self.number, *rows.shape[1:]), jnp.finfo(rows.dtype).min, rows.dtype)
        return _scattered("max", least, self.ids, rows)

    def of_rows(self, statistic: jax.Array) -> jax.Array:
        """The entries of a statistic by segment for each row; 0 for a row of no segment."""
        spec = (*explicit_spec(self.ids), *explicit_spec(statistic)[1:])
        sharding = explicit_sharding(self.ids, spec) or explicit_sharding(statistic, spec)
        return statistic.at[self.ids].get(mode="fill", fill_value=0, out_sharding=sharding)

    def counted(self, mask: jax.Array | None, ndim: int) -> jax.Array:
        """The mask of an input with `ndim` axes, false in rows of no segment."""
        in_segment = jnp.expand_dims(self.ids < self.number, range(1, ndim))
        return in_segment if mask is None else in_segment & mask

    def _parts(self, rows: Any) -> tuple[int, Any]:
        """How many parts of the rows are summed, and their size; the sums are a quarter at most."""
        if not isinstance(rows, int):  # a symbolic number, of an exported program
            return 1, rows
        parts = max(min(rows // ROWS_IN_TURN, rows // (4 * self.number)), 1)
        return parts, -(-rows // parts)


def _scattered(operation: str, start: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """Combine the rows with the entries of `start` at their ids; explicit axes stay as they are."""

    def scatter(start: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
        result: jax.Array = getattr(start.at[ids], operation)(rows, mode="drop")
        return result

    sharding = explicit_sharding(rows, (None, *explicit_spec(rows)[1:]))
    if sharding is not None:
        axes = sharding.mesh.explicit_axes
        scatter = jax.sharding.auto_axes(scatter, axes=axes, out_sharding=sharding)
    return scatter(start, ids, rows)


def as_segments(
    segment_ids: ArrayLike | None,
    num_segments: int | None,
    x: jax.Array,
    features: tuple[int, ...] = (),
) -> Segments | None:
    """Return the segments of the rows of `x`, None if neither argument is given.

    Args:
        features: the axes of the scale and the bias, which cannot include axis 0.
    """
    if segment_ids is None and num_segments is None:
        return None
    if segment_ids is None or num_segments is None:
        given = "num_segments" if segment_ids is None else "segment_ids"
        raise ValueError(
            f"give segment_ids and num_segments together, got {given} alone: segment_ids is the "
            "segment of each entry along axis 0, and num_segments a Python int above the largest id"
        )
    if _checks.is_traced(num_segments):
        raise TypeError(
            "num_segments is traced, but shapes depend on it; give a Python int, at least the "
            "largest id + 1 (under jit by static_argnames)"
        )
    number = _axes.check_positive_int("num_segments", num_segments)
    ids = jnp.asarray(segment_ids)
    _check_ids(ids, x, features)
    ids = ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids  # so that it holds `number`
    ids = jnp.where((ids >= 0) & (ids < number), ids, number).astype(jnp.int32)
    sharding = explicit_sharding(x, explicit_spec(x)[:1])
    return Segments(ids if sharding is None else jax.sharding.reshard(ids, sharding), number)


def _check_ids(ids: jax.Array, x: jax.Array, features: tuple[int, ...]) -> None:
    """Check for one integer for each row, and that rows are no features."""
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(
            f"segment_ids has dtype {ids.dtype}; give integers, the segment of each row of the "
            "input"
        )
    if ids.shape != x.shape[:1] or x.ndim == 0:
        raise ValueError(
            f"segment_ids has shape {ids.shape}, but the input has shape {x.shape}; give one id "
            f"for each entry along axis 0, of shape {x.shape[:1]}"
        )
    if 0 in features:
        raise ValueError(
            "with segment_ids, axis 0 holds the rows of all segments and cannot be a feature or "
            f"channel axis, of which the input of shape {x.shape} has {features}; choose other "
            "feature axes, or add an axis in front"
        )
