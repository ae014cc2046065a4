"""Canonical axes, mapped axes and group splits."""

from __future__ import annotations

import math
import operator
from collections.abc import Hashable, Sequence
from typing import Any, cast

import jax

Axes = int | Sequence[int]
AxisName = Hashable | tuple[Hashable, ...]
AxisIndexGroups = Sequence[Sequence[int]] | None


# The wording of Flax's own error, which users' code may search for.
BATCH_AXIS = (
    "The channel axes cannot include the leading dimension as this is assumed to be the batch axis."
)


def canonical_axes(
    ndim: int, axes: Axes, name: str = "axis", array: str = "input"
) -> tuple[int, ...]:
    """Return `axes` as a sorted tuple of numbers in [0, ndim).

    Args:
        name, array: what errors call the axes, and the array that has them.
    """
    given = axes if isinstance(axes, Sequence) else (axes,)
    try:
        numbers_given = [operator.index(axis) for axis in given]
    except TypeError:
        raise TypeError(f"{name} must be an int or a sequence of ints, got {axes!r}") from None
    if ndim == 0 and numbers_given:
        raise ValueError(
            f"{name}={axes!r} names an axis, but the {array} is a scalar, of shape (); give it at "
            f"least one axis, for example {'x' if array == 'input' else array}[None]"
        )
    for axis in numbers_given:
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"{name}={axes!r} is out of range: the {array} has {ndim} axes; "
                f"each axis must lie in [{-ndim}, {ndim - 1}]"
            )
    canonical = sorted(axis % ndim for axis in numbers_given)
    if len(set(canonical)) < len(canonical):
        raise ValueError(
            f"{name}={axes!r} names an axis twice: the {array} has {ndim} axes; "
            "each axis may be given once"
        )
    return tuple(canonical)


def other_axes(ndim: int, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes of an array of `ndim` axes that are not in `axes`."""
    return tuple(axis for axis in range(ndim) if axis not in axes)


def leading_axes(ndim: int, features: Sequence[int], number: int) -> tuple[int, ...]:
    """The first `number` axes of an input that are not in `features`, fewer if it has fewer."""
    return other_axes(ndim, features)[:number]


def kept_axis(axis: int, reduced: Sequence[int]) -> int:
    """The position of `axis` after the axes `reduced` are removed."""
    return axis - sum(other < axis for other in reduced)


def single_axis(ndim: int, axis: int, name: str = "channel_axis", array: str = "input") -> int:
    """Return one axis as a number in [0, ndim)."""
    if isinstance(axis, Sequence):
        raise TypeError(f"{name} must be one int, got {axis!r}")
    return canonical_axes(ndim, axis, name, array)[0]


def nonempty_axes(ndim: int, axes: Axes, name: str, array: str = "input") -> tuple[int, ...]:
    """Return canonical axes, of which there must be at least one."""
    canonical = canonical_axes(ndim, axes, name, array)
    if not canonical:
        raise ValueError(f"{name}={axes!r} names no axis; give one or more")
    return canonical


def sample_axes(ndim: int, channels: Sequence[int]) -> tuple[int, ...]:
    """The axes of one example except the channel axes, of which there must be at least one."""
    reduced = positions(ndim, channels)
    if not reduced:
        raise ValueError(
            f"an input with {ndim} axes has no axis to measure over besides the batch axis 0 and "
            f"the channel axes {tuple(channels)}; give it at least one axis of positions"
        )
    return reduced


def positions(ndim: int, channels: Sequence[int]) -> tuple[int, ...]:
    """The axes of one example except the channel axes, which cannot include the batch axis 0."""
    if 0 in channels:
        raise ValueError(
            f"the channel axis of an input with {ndim} axes is axis 0, which is the batch axis "
            "here: each example along axis 0 is measured separately; add a batch axis in front of "
            f"the input, or choose another channel_axis. {BATCH_AXIS}"
        )
    return other_axes(ndim, (0, *channels))


def check_positive_int(name: str, value: Any) -> int:
    """Return `value` as a positive int."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if number <= 0:
        raise ValueError(f"{name}={number} must be positive")
    return number


def as_shape(name: str, widths: int | Sequence[int]) -> tuple[int, ...]:
    """Return one width or several as a shape."""
    given = widths if isinstance(widths, Sequence) else (widths,)
    return tuple(check_positive_int(name, width) for width in given)


def group_size_of(num_channels: int, num_groups: int | None, group_size: int | None) -> int:
    """Channels per group, from exactly one of `num_groups` and `group_size`."""
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            f"give exactly one of num_groups and group_size, got num_groups={num_groups!r} and "
            f"group_size={group_size!r} (with group_size, pass num_groups=None)"
        )
    size = _equal_size("channels", num_channels, "num_groups", num_groups, "group_size", group_size)
    return max(size, 1)  # zero channels have zero groups of size 1


def check_ghosts(num_ghosts: int | None, ghost_size: int | None) -> None:
    """Check that exactly one of the two is given, and that it is positive."""
    if (num_ghosts is None) == (ghost_size is None):
        raise ValueError(
            f"give exactly one of ghost_size and num_ghosts, got ghost_size={ghost_size!r} and "
            f"num_ghosts={num_ghosts!r}"
        )
    name = "num_ghosts" if ghost_size is None else "ghost_size"
    check_positive_int(name, num_ghosts if ghost_size is None else ghost_size)


def ghost_size_of(batch_size: int, num_ghosts: int | None, ghost_size: int | None) -> int:
    """Examples per ghost, from exactly one of `num_ghosts` and `ghost_size`."""
    return _equal_size(
        "examples of the batch", batch_size, "num_ghosts", num_ghosts, "ghost_size", ghost_size
    )


def _equal_size(
    what: str, total: int, number_name: str, number: int | None, size_name: str, size: int | None
) -> int:
    """The size of each slice when `total` is split into equal slices, by their number or size."""
    name, value = (number_name, number) if size is None else (size_name, size)
    divisor = check_positive_int(name, value)
    remainder = total % divisor
    if not isinstance(remainder, int):
        raise ValueError(
            f"{name}={divisor} is not known to divide the symbolic number {total} of {what}; "
            f"export with a multiple, for example jax.export.symbolic_shape('{divisor}*n')"
        )
    if remainder:
        divisors = [d for d in range(1, total + 1) if total % d == 0]
        raise ValueError(
            f"{name}={divisor} does not divide the {total} {what}; choose one of {divisors}"
        )
    return total // divisor if size is None else divisor


def check_axis_index_groups(axis_name: AxisName | None, axis_index_groups: AxisIndexGroups) -> None:
    """Check that names are hashable, and that groups are given with a name only."""
    if not all(isinstance(name, Hashable) for name in axis_names(axis_name)):
        raise TypeError(
            f"axis_name must be a name or a tuple of names, got {axis_name!r}; give for example "
            "'i' or ('i', 'j')"
        )
    if axis_name is None and axis_index_groups is not None:
        raise ValueError(
            f"axis_index_groups={axis_index_groups!r} needs an axis_name; give the name of the "
            "axis whose indices are grouped"
        )


def hashable_groups(axis_index_groups: AxisIndexGroups) -> tuple[tuple[int, ...], ...] | None:
    """The groups as nested tuples."""
    return None if axis_index_groups is None else tuple(map(tuple, axis_index_groups))


def mapped_size(axis_name: AxisName | None, axis_index_groups: AxisIndexGroups) -> int:
    """The number of indices of the mapped axes that are merged; 1 without a name."""
    check_axis_index_groups(axis_name, axis_index_groups)
    if axis_name is None:
        return 1
    names = axis_names(axis_name)
    try:
        size = math.prod(jax.lax.axis_size(name) for name in names)
    except NameError:
        raise ValueError(
            f"axis_name={axis_name!r} is not mapped here: statistics can be merged over it only "
            "inside pmap, shard_map or vmap with that axis name; under jit with sharded arrays, "
            "leave axis_name out, since statistics are global without it"
        ) from None
    if axis_index_groups is None:
        return size
    indices = sorted(index for group in axis_index_groups for index in group)
    sizes = {len(group) for group in axis_index_groups}
    if len(names) != 1 or indices != list(range(size)) or len(sizes) != 1:
        raise ValueError(
            f"axis_index_groups={axis_index_groups!r} must hold each index of the one axis "
            f"{axis_name!r} (0 to {size - 1}) once, in groups of equal size"
        )
    return sizes.pop()


def axis_names(axis_name: AxisName | None) -> tuple[Hashable, ...]:
    """Return one name or several as a tuple."""
    return cast(tuple[Hashable, ...], axis_name) if isinstance(axis_name, tuple) else (axis_name,)


def values_per_channel(shape: Sequence[int], axes: Sequence[int]) -> int:
    """The number of values that the statistics of one channel are taken from."""
    return math.prod(shape[axis] for axis in axes)
