"""Canonical axes, group splits and the checks of arguments: every error names the cure."""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Axes = int | Sequence[int]
AxisName = Hashable | tuple[Hashable, ...]
AxisIndexGroups = Sequence[Sequence[int]] | None
BatchStats = Mapping[str, Any]
KEPT = ("count", "mean", "var", "min", "max", "control_y", "control_x")  # what steps add up
WIDENED = (
    "jax.tree.map(lambda leaf: leaf.astype(jnp.float32) "
    "if leaf.dtype.itemsize < 4 else leaf, stats)"
)
P = ParamSpec("P")
R = TypeVar("R")

# Flax's words, on which users' code may match.
BATCH_AXIS = (
    "The channel axes cannot include the leading dimension as this is assumed to be the batch axis."
)


def mask_is_called(right: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that names the mask's keyword where it is given the other one."""
    wrong = "mask" if right == "where" else "where"

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function, assigned=(*functools.WRAPPER_ASSIGNMENTS, "__kwdefaults__"))
        def checked(*args: P.args, **options: P.kwargs) -> R:
            if wrong in options:
                raise TypeError(
                    f"{function.__qualname__}() got an unexpected keyword argument {wrong!r}: a "
                    "mask is given to jaxnorm's functions as where=..., to its modules as "
                    f"mask=...; here write {right}=..."
                )
            return function(*args, **options)

        return checked

    return decorated


def canonical_axes(ndim: int, axes: Axes, name: str = "axis") -> tuple[int, ...]:
    """`axes` as a sorted tuple of numbers in [0, ndim)."""
    given = axes if isinstance(axes, Sequence) else (axes,)
    try:
        numbers_given = [operator.index(axis) for axis in given]
    except TypeError:
        raise TypeError(f"{name} must be an int or a sequence of ints, got {axes!r}") from None
    if ndim == 0 and numbers_given:
        raise ValueError(
            f"{name}={axes!r} names an axis, but the input is a scalar, of shape (); give it at "
            "least one axis, for example x[None]"
        )
    for axis in numbers_given:
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"{name}={axes!r} is out of range for an input with {ndim} axes; "
                f"each axis must lie in [{-ndim}, {ndim - 1}]"
            )
    canonical = sorted(axis % ndim for axis in numbers_given)
    if len(set(canonical)) < len(canonical):
        raise ValueError(
            f"{name}={axes!r} names an axis twice in an input with {ndim} axes; "
            "each axis may be given once"
        )
    return tuple(canonical)


def other_axes(ndim: int, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes of an array of `ndim` axes that are not in `axes`."""
    return tuple(axis for axis in range(ndim) if axis not in axes)


def kept_axis(axis: int, reduced: Sequence[int]) -> int:
    """Where `axis` stands once the axes `reduced` are gone."""
    return axis - sum(other < axis for other in reduced)


def reduction_axes(ndim: int, axes: Axes) -> tuple[int, ...]:
    """The axes to measure over: at least one."""
    reduced = canonical_axes(ndim, axes, "reduction_axes")
    if not reduced:
        raise ValueError(f"reduction_axes={axes!r} names no axis to measure over; give one or more")
    return reduced


def single_axis(ndim: int, axis: int, name: str = "channel_axis") -> int:
    """One axis as a number in [0, ndim)."""
    if isinstance(axis, Sequence):
        raise TypeError(f"{name} must be one int, got {axis!r}")
    return canonical_axes(ndim, axis, name)[0]


def channel_axes(ndim: int, axes: Axes, name: str = "channel_axis") -> tuple[int, ...]:
    """The axes of the channels: at least one."""
    channels = canonical_axes(ndim, axes, name)
    if not channels:
        raise ValueError(f"{name}={axes!r} names no axis of channels; give one or more")
    return channels


def sample_axes(
    ndim: int, channels: Sequence[int], *, with_channels: bool = False
) -> tuple[int, ...]:
    """The axes of one example: all but the batch axis 0, with or without the channel axes."""
    reduced = positions(ndim, channels)
    if with_channels:
        reduced = other_axes(ndim, (0,))
    if not reduced:
        raise ValueError(
            f"an input with {ndim} axes has no positions to measure over beside the batch axis 0 "
            f"and the channel axes {tuple(channels)}; give it at least one axis of positions"
        )
    return reduced


def positions(ndim: int, channels: Sequence[int]) -> tuple[int, ...]:
    """The axes of one example without the channel axes, which cannot be the batch axis 0."""
    if 0 in channels:
        raise ValueError(
            f"the channel axis of an input with {ndim} axes is axis 0, which is the batch axis "
            "here: each example of axis 0 is measured by itself; give the input a batch axis in "
            f"front, or choose another channel_axis. {BATCH_AXIS}"
        )
    return other_axes(ndim, (0, *channels))


def as_input(
    x: ArrayLike, each: str = "f(x[key], stats[key]) (or f(x[key]) without statistics)"
) -> jax.Array:
    """`x` as an array of a real or complex floating type."""
    check_not_dict(x, each)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"the input has dtype {x.dtype}; normalization needs a floating or complex dtype, "
            "so convert it first, for example x.astype(jnp.float32)"
        )
    return x


def check_not_dict(x: Any, each: str) -> None:
    """An array is needed; `each` is what is done to an entry of a dict of them."""
    if not isinstance(x, Mapping):
        return
    given = f"the input is a dict with the keys {sorted(map(str, x))}"
    if {"mean", "var"} <= x.keys():
        raise TypeError(
            f"{given}; arrays and statistics stand in the order of the function's signature, so "
            "exchange the two"
        )
    raise TypeError(
        f"{given}, where an array is needed; give each entry by itself, with what is kept of it: "
        f"{{key: {each} for key in x}}"
    )


def as_real_input(x: ArrayLike) -> jax.Array:
    """`x` as an array of a real floating type, whose values have an order."""
    x = as_input(x, "jaxnorm.update_input_stats(fit[key], x[key])")
    if jnp.iscomplexobj(x):
        raise TypeError(
            f"the input has dtype {x.dtype}; complex values have no least and no largest, so give "
            "their parts as features, for example jnp.concatenate([x.real, x.imag], -1)"
        )
    return x


def check_inexact(name: str, dtype: Any) -> None:
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"{name}={jnp.dtype(dtype).name} cannot hold statistics; give a floating or complex "
            "dtype, for example jnp.float32"
        )


def check_real(name: str, dtype: Any) -> None:
    """No complex dtype."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{name} is {jnp.dtype(dtype).name}, but online normalization is of real numbers; give "
            "the real and the imaginary part channels of their own"
        )


def statistics_dtype(dtype: Any) -> Any:
    """The dtype in which statistics of `dtype` are computed and kept: at least float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def real_dtype(dtype: Any) -> Any:
    """The dtype of the real part."""
    return jnp.finfo(dtype).dtype


def check_choice(name: str, value: Any) -> None:
    """A choice made at trace time: a Python bool."""
    if not isinstance(value, bool):
        raise TypeError(
            f"{name} must be a Python bool, known when the function is traced, got {value!r}; "
            f"under jit make it static or call once with {name}=True and once with {name}=False"
        )


def is_traced(value: Any) -> bool:
    """Whether a value is known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def is_at_least(value: Any, low: float) -> bool:
    """Whether a number is known to be `low` or more."""
    return not is_traced(value) and float(value) >= low


def as_choice(name: str, value: Any) -> bool:
    """A choice of a module as a Python bool: as in Flax, of NumPy or JAX where it is known."""
    if not is_traced(value) and getattr(value, "dtype", None) == jnp.bool_ and jnp.size(value) == 1:
        return bool(value)
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    check_choice(name, value)
    return cast(bool, value)


def check_number(
    name: str, value: Any, low: float, high: float = math.inf, *, finite: bool = True
) -> None:
    """A real number in [low, high], by default finite; of a traced one the kind alone."""
    if hasattr(value, "dtype"):
        kinds = (jnp.floating, jnp.integer)
        if value.ndim > 0 or not any(jnp.issubdtype(value.dtype, kind) for kind in kinds):
            raise TypeError(
                f"{name} must be one real number, got an array of shape {value.shape} and dtype "
                f"{value.dtype}"
            )
        if is_traced(value):
            return
    elif not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be one real number, got {value!r}")
    if not low <= float(value) <= high or (finite and math.isinf(value)):
        bounds = f"in [{low:g}, {high:g}]" if high < math.inf else f"a number >= {low:g}"
        raise ValueError(f"{name}={value!r} must be {bounds}")


def check_positive(name: str, value: Any) -> None:
    """A real, finite number above zero; of a traced one the kind alone."""
    check_number(name, value, 0.0)
    if not is_traced(value) and float(value) == 0:
        raise ValueError(f"{name}={value!r} must be above 0")


def check_range(low: Any, high: Any) -> None:
    """Two numbers, the first below the second."""
    check_number("low", low, -math.inf)
    check_number("high", high, -math.inf)
    if not (is_traced(low) or is_traced(high) or float(low) < float(high)):
        raise ValueError(f"low={low!r} must be below high={high!r}")


def check_epsilon(epsilon: ArrayLike) -> None:
    check_number("epsilon", epsilon, 0.0)


def check_momentum(momentum: ArrayLike | None) -> None:
    """The weight of the old value, or None for the cumulative merge."""
    if momentum is not None:
        check_number("momentum", momentum, 0.0, 1.0)


def check_positive_int(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if number <= 0:
        raise ValueError(f"{name}={number} must be positive")
    return number


def as_parameter(
    name: str, value: ArrayLike | None, x: jax.Array, features: Sequence[int]
) -> jax.Array | None:
    """A scale or a bias with the shape of the axes `features` of `x`, in its statistics' dtype."""
    if value is None:
        return None
    value = jnp.asarray(value)
    shape = tuple(x.shape[axis] for axis in features)
    if value.shape != shape:
        raise ValueError(
            f"{name} has shape {value.shape}, but the feature axes {tuple(features)} of the input "
            f"have shape {shape}; give {name} that shape, or None to leave it out"
        )
    if jnp.iscomplexobj(value) and jnp.isrealobj(x):
        raise TypeError(f"{name} is {value.dtype}, but the input is real; give a real {name}")
    return value.astype(statistics_dtype(x.dtype))


def as_mask(where: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    """`where != 0` with as many axes as `shape`, to which it broadcasts."""
    if where is None:
        return None
    where = jnp.asarray(where)
    if not _broadcasts(where.shape, shape):
        missing = len(shape) - where.ndim
        of_first_axes = missing > 0 and _broadcasts(where.shape, shape[: where.ndim])
        expanded = f"mask[..., {', '.join(['None'] * missing)}]"
        cure = f"; a mask of the first axes is given as {expanded}" if of_first_axes else ""
        raise ValueError(
            f"the mask `where` has shape {where.shape}, which does not broadcast to the input's "
            f"{shape}; each of its axes, counted from the last, must be 1 or the input's{cure}"
        )
    return where.astype(bool).reshape((1,) * (len(shape) - where.ndim) + where.shape)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return jnp.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def check_stats(
    stats: BatchStats,
    x: jax.Array,
    channels: Sequence[int],
    momentum: ArrayLike | None,
    renorm: bool,
) -> None:
    """Running statistics with every entry that is needed, of the width and kind of the input."""
    function = "init_renorm_stats" if renorm else "init_batch_stats"
    argument = ", momentum=None" if momentum is None else ""
    needed = ["mean", "var"] + ["count"] * (momentum is None) + ["steps"] * renorm
    _check_entries(stats, x, channels, needed, function, argument)
    if jnp.iscomplexobj(stats["mean"]) and jnp.isrealobj(x):
        cure = f"make them with jaxnorm.{function}({_width(x, channels)}{argument})"
        raise TypeError(f"the running mean is complex, but the input is real; {cure}")


def check_online_stats(
    stats: BatchStats, x: jax.Array, channels: Sequence[int], train: bool
) -> None:
    """Statistics of online normalization, in training with those of its control processes."""
    needed = ["mean", "var"] + ["control_y", "control_x"] * train
    _check_entries(stats, x, channels, needed, "init_online_stats")
    check_real("the dtype of the running mean", stats["mean"].dtype)


def _width(x: jax.Array, channels: Sequence[int]) -> int | tuple[int, ...]:
    """The number of channels, or the shape of several channel axes."""
    shape = tuple(x.shape[axis] for axis in channels)
    return shape[0] if len(channels) == 1 else shape


def _check_entries(
    stats: BatchStats,
    x: jax.Array,
    channels: Sequence[int],
    needed: Sequence[str],
    function: str,
    argument: str = "",
) -> None:
    """Arrays of the width of the input under every key that is needed."""
    needed_shape = tuple(x.shape[axis] for axis in channels)
    width = _width(x, channels)
    cure = f"make them with jaxnorm.{function}({width}{argument})"
    if not isinstance(stats, Mapping):
        raise TypeError(
            f"the running statistics must be a dict, got {type(stats).__name__}; {cure}"
        )
    missing = [key for key in needed if key not in stats]
    if missing:
        raise ValueError(
            f"the running statistics lack {missing}; they have the keys {sorted(stats)}; {cure}"
        )
    also: dict[str, list[tuple[int, ...]]] = {"count": [(), needed_shape], "steps": [()]}
    for key in needed:
        if not hasattr(stats[key], "dtype"):
            raise TypeError(
                f"the running {key} must be an array, got {stats[key]!r}; convert it, for example "
                f"jnp.asarray(stats[{key!r}]), or {cure}"
            )
        shape, shapes = stats[key].shape, also.get(key, [needed_shape])
        if shape not in shapes:
            raise ValueError(
                f"the running {key} has shape {shape}, but the {width} channels on the axes "
                f"{tuple(channels)} of the input need {' or '.join(map(str, shapes))}; "
                f"check channel_axis, or {cure}"
            )
    kept = [*needed, "recomputed"] if "recomputed" in stats else needed
    check_wide({key: stats[key] for key in kept}, "the running statistics")


def check_wide(stats: BatchStats, what: str) -> None:
    """Entries in float32 at least: in narrower ones a step below half of their ulp is lost."""
    kept = {key: leaf for key in KEPT if key in stats for leaf in jax.tree.leaves(stats[key])}
    for key, leaf in kept.items():
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact) and key != "count":
            raise TypeError(
                f"the {key} of {what} is {dtype}, which cannot hold it; give jnp.float32 or wider"
            )
        if is_narrow(dtype):
            raise ValueError(
                f"the {key} of {what} is {dtype}, in which small steps are lost; statistics are "
                f"kept in float32 at least, so widen them once: {WIDENED}"
            )
    if "recomputed" in stats:
        check_wide(stats["recomputed"], f"the recomputed part of {what}")


def is_narrow(dtype: Any) -> bool:
    """Whether a dtype is a floating one narrower than float32."""
    return jnp.issubdtype(dtype, jnp.inexact) and statistics_dtype(dtype) != dtype


def check_fit(fit: BatchStats, shape: tuple[int, ...] | None = None) -> None:
    """A fit to inputs with every entry, of the shape of the features (None: of its own mean)."""
    if not isinstance(fit, Mapping):
        raise TypeError(
            f"the fit must be a dict, got {type(fit).__name__}; make it with "
            "jaxnorm.init_input_stats(number of features)"
        )
    needed = ("count", "mean", "var", "min", "max")
    missing = [key for key in needed if key not in fit]
    if missing:
        raise ValueError(
            f"the fit lacks {missing}; it has the keys {sorted(fit)}; make it with "
            "jaxnorm.init_input_stats(number of features)"
        )
    shape = jnp.shape(fit["mean"]) if shape is None else shape
    width = shape[0] if len(shape) == 1 else shape
    for key in needed:
        if not hasattr(fit[key], "dtype"):
            raise TypeError(
                f"the {key} of the fit must be an array, got {fit[key]!r}; convert it, for example "
                f"jnp.asarray(fit[{key!r}])"
            )
        if fit[key].shape != shape:
            raise ValueError(
                f"the {key} of the fit has shape {fit[key].shape}, but the features have shape "
                f"{shape}; check feature_axis, or fit these with jaxnorm.init_input_stats({width})"
            )
    check_wide(fit, "the fit")


def check_fit_dtype(dtype: Any) -> None:
    """A real dtype in which a fit can be kept."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"dtype={jnp.dtype(dtype).name} has no order; give jnp.float32 or float64")
    check_stats_dtype(dtype)


def check_stats_dtype(dtype: Any) -> None:
    """A dtype in which statistics can be kept: float32 or wider."""
    check_inexact("dtype", dtype)
    if is_narrow(jnp.dtype(dtype)):
        raise ValueError(
            f"dtype={jnp.dtype(dtype).name} is too narrow for statistics, in which small steps "
            "would be lost; give jnp.float32 or wider (inputs may be narrower; modules: "
            "stats_dtype)"
        )


def check_kept_dtype(stats: BatchStats, x: jax.Array) -> None:
    """A running mean that can hold the mean of the input."""
    if jnp.iscomplexobj(x) and jnp.isrealobj(stats["mean"]):
        raise TypeError(
            f"the input is {x.dtype}, but the running mean is {stats['mean'].dtype} and keeps its "
            f"dtype; start the statistics with dtype=jnp.{x.dtype} (modules: dtype or stats_dtype)"
        )


def check_count(stats: BatchStats, counted: jax.Array | None, channels: Sequence[int]) -> None:
    """A cumulative count for each channel, where the mask differs by channel."""
    if counted is None or jnp.ndim(stats["count"]) > 0:
        return
    if any(counted.shape[axis] > 1 for axis in channels):
        raise ValueError(
            f"the mask of shape {counted.shape} differs by channel, so each channel has a count of "
            "its own, but the running count is one number; start the statistics with "
            "momentum=None, count_per_channel=True, or give a mask that is 1 wide along the "
            "channels"
        )


def group_size_of(num_channels: int, num_groups: int | None, group_size: int | None) -> int:
    """Channels per group, from exactly one of `num_groups` and `group_size`."""
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            f"give exactly one of num_groups and group_size, got num_groups={num_groups!r} and "
            f"group_size={group_size!r} (num_groups=None where group_size is given)"
        )
    size = _part_size("channels", num_channels, "num_groups", num_groups, "group_size", group_size)
    return max(size, 1)  # of no channels there are no groups


def check_ghosts(num_ghosts: int | None, ghost_size: int | None) -> None:
    """Exactly one of the two, and positive."""
    if (num_ghosts is None) == (ghost_size is None):
        raise ValueError(
            f"give exactly one of ghost_size and num_ghosts, got ghost_size={ghost_size!r} and "
            f"num_ghosts={num_ghosts!r}"
        )
    name = "num_ghosts" if ghost_size is None else "ghost_size"
    check_positive_int(name, num_ghosts if ghost_size is None else ghost_size)


def ghost_size_of(batch_size: int, num_ghosts: int | None, ghost_size: int | None) -> int:
    """Examples per ghost, from exactly one of `num_ghosts` and `ghost_size`."""
    return _part_size(
        "examples of the batch", batch_size, "num_ghosts", num_ghosts, "ghost_size", ghost_size
    )


def _part_size(
    what: str, total: int, number_name: str, number: int | None, size_name: str, size: int | None
) -> int:
    """The size of the equal parts of `total`, given their number or their size."""
    name, value = (number_name, number) if size is None else (size_name, size)
    divisor = check_positive_int(name, value)
    rest = total % divisor
    if not isinstance(rest, int):
        raise ValueError(
            f"{name}={divisor} is not known to divide the symbolic number {total} of {what}; "
            f"export with a multiple, as in jax.export.symbolic_shape('{divisor}*n')"
        )
    if rest:
        divisors = [d for d in range(1, total + 1) if total % d == 0]
        raise ValueError(
            f"{name}={divisor} does not divide the {total} {what}; choose one of {divisors}"
        )
    return total // divisor if size is None else divisor


def check_axis_index_groups(axis_name: AxisName | None, axis_index_groups: AxisIndexGroups) -> None:
    if not all(isinstance(name, Hashable) for name in axis_names(axis_name)):
        raise TypeError(
            f"axis_name must be a name or a tuple of names, got {axis_name!r}; give it for example "
            "as 'i' or as ('i', 'j')"
        )
    if axis_name is None and axis_index_groups is not None:
        raise ValueError(
            f"axis_index_groups={axis_index_groups!r} needs the axis_name that it divides"
        )


def hashable_groups(axis_index_groups: AxisIndexGroups) -> tuple[tuple[int, ...], ...] | None:
    """The groups as nested tuples."""
    return None if axis_index_groups is None else tuple(map(tuple, axis_index_groups))


def mapped_size(axis_name: AxisName | None, axis_index_groups: AxisIndexGroups) -> int:
    """How many members of the mapped axes are merged (1 without a name)."""
    check_axis_index_groups(axis_name, axis_index_groups)
    if axis_name is None:
        return 1
    names = axis_names(axis_name)
    try:
        size = math.prod(jax.lax.axis_size(name) for name in names)
    except NameError:
        raise ValueError(
            f"axis_name={axis_name!r} is not mapped here: statistics can be merged over it only "
            "inside pmap, shard_map or vmap with that axis name (or leave axis_name out; under "
            "jit with sharded arrays statistics are global without it)"
        ) from None
    if axis_index_groups is None:
        return size
    members = sorted(index for group in axis_index_groups for index in group)
    sizes = {len(group) for group in axis_index_groups}
    if len(names) != 1 or members != list(range(size)) or len(sizes) != 1:
        raise ValueError(
            f"axis_index_groups={axis_index_groups!r} must hold each index of the one axis "
            f"{axis_name!r} (0 to {size - 1}) once, in groups of equal size"
        )
    return sizes.pop()


def axis_names(axis_name: AxisName | None) -> tuple[Hashable, ...]:
    """One name or several, as a tuple."""
    return cast(tuple[Hashable, ...], axis_name) if isinstance(axis_name, tuple) else (axis_name,)


def check_values_per_channel(
    shape: Sequence[int], axes: Sequence[int], mapped: int, what: str
) -> None:
    """More than one value a channel: the variance of one is zero, and the output only bias."""
    if values_per_channel(shape, axes) * mapped == 1:
        raise ValueError(
            f"training with one value per channel in {what} of shape {tuple(shape)}: its variance "
            "is zero and the output would be the bias alone; give more examples or positions, or "
            "train=False"
        )


def check_values_per_group(shape: Sequence[int], values: int) -> None:
    """More than one value a group: the variance of one is zero, and the output only bias."""
    if values == 1 and math.prod(shape) != 0:
        raise ValueError(
            f"one value in every group that is measured, of an input of shape {tuple(shape)}: its "
            "variance is zero and the output would be the bias alone; measure over more positions "
            "or channels (fewer groups), or leave the normalization out here"
        )


def values_per_channel(shape: Sequence[int], axes: Sequence[int]) -> int:
    """The number of values that the statistics of one channel are taken from."""
    return math.prod(shape[axis] for axis in axes)


def as_kernel(kernel: ArrayLike) -> jax.Array:
    """`kernel` as an array of a real or complex floating type."""
    kernel = jnp.asarray(kernel)
    if not jnp.issubdtype(kernel.dtype, jnp.inexact):
        raise TypeError(
            f"the kernel has dtype {kernel.dtype}; folding multiplies it, so give a floating or "
            "complex one: fold first and quantize the result"
        )
    return kernel


def check_kernel_stats(stats: BatchStats) -> None:
    """Running statistics with what folding needs."""
    if not isinstance(stats, Mapping):
        raise TypeError(
            f"the running statistics must be a dict with mean and var, got {type(stats).__name__}"
        )
    if missing := [key for key in ("mean", "var") if key not in stats]:
        raise ValueError(
            f"the running statistics lack {missing}; they have the keys {sorted(stats)}; give "
            "those that batch_norm keeps, with mean and var"
        )


def of_kernel(
    name: str,
    value: ArrayLike | None,
    kernel: jax.Array,
    shape: tuple[int, ...],
    needs: str,
    cure: Callable[[tuple[int, ...]], str],
) -> Any:
    """An array with a number for each channel of a kernel."""
    if value is None:
        return None
    value = jnp.asarray(value)
    if value.shape != shape:
        raise ValueError(
            f"{name} has shape {value.shape}, but {needs}, which need {shape}; {cure(value.shape)}"
        )
    if jnp.iscomplexobj(value) and jnp.isrealobj(kernel):
        raise TypeError(f"{name} is {value.dtype}, but the kernel is real; give a real {name}")
    return value
