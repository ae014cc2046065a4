"""Checks of arguments. Every error says what was given and what would work."""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import dtypes as _dtypes

P = ParamSpec("P")
R = TypeVar("R")


def mask_is_called(right: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function: the wrong keyword for the mask is an error that names the right one.

    Args:
        right: "where" for functions, "mask" for modules.
    """
    wrong = "mask" if right == "where" else "where"

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function, assigned=(*functools.WRAPPER_ASSIGNMENTS, "__kwdefaults__"))
        def checked(*args: P.args, **options: P.kwargs) -> R:
            if wrong in options:
                raise TypeError(
                    f"{function.__qualname__}() got an unexpected keyword argument {wrong!r}: "
                    "jaxnorm's functions take a mask as where=..., its modules as mask=...; "
                    f"here write {right}=..."
                )
            return function(*args, **options)

        return checked

    return decorated


def as_input(
    x: ArrayLike, each: str = "f(x[key], stats[key]) (or f(x[key]) without statistics)"
) -> jax.Array:
    """Return `x` as an array of a real or complex floating dtype."""
    check_not_dict(x, each)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"the input has dtype {x.dtype}; normalization needs a floating or complex dtype; "
            "convert it first, for example x.astype(jnp.float32)"
        )
    return x


def as_kernel(kernel: ArrayLike, use: str, cure: str) -> jax.Array:
    """Return a kernel as an array of a real or complex floating dtype.

    Args:
        use: what needs the kernel, for the message.
        cure: what to do with a kernel of integers, for the message.
    """
    if isinstance(kernel, Mapping):
        raise TypeError(
            f"the kernel is a dict with the keys {sorted(map(str, kernel))}, but an array is "
            "needed; call once for each kernel"
        )
    kernel = jnp.asarray(kernel)
    if not jnp.issubdtype(kernel.dtype, jnp.inexact):
        raise TypeError(
            f"the kernel has dtype {kernel.dtype}, but {use} needs a floating or complex kernel; "
            f"{cure}"
        )
    return kernel


def check_not_dict(x: Any, each: str) -> None:
    """Check that `x` is not a dict.

    Args:
        each: the call for one entry of a dict of inputs, for the message.
    """
    if not isinstance(x, Mapping):
        return
    given = f"the input is a dict with the keys {sorted(map(str, x))}"
    if {"mean", "var"} <= x.keys():
        raise TypeError(
            f"{given}, which are those of statistics; exchange the two arguments, the input and "
            "the statistics, to follow the function's signature"
        )
    raise TypeError(
        f"{given}, but an array is needed; call once for each entry, with its own state: "
        f"{{key: {each} for key in x}}"
    )


def as_real_input(
    x: ArrayLike, each: str = "jaxnorm.update_input_stats(fit[key], x[key])"
) -> jax.Array:
    """Return `x` as an array of a real floating dtype, whose values have an order."""
    x = as_input(x, each)
    if jnp.iscomplexobj(x):
        raise TypeError(
            f"the input has dtype {x.dtype}; complex values have no minimum and no maximum; give "
            "the real and the imaginary part as features, for example "
            "jnp.concatenate([x.real, x.imag], -1)"
        )
    return x


def check_inexact(name: str, dtype: Any) -> None:
    """Check that a dtype is floating or complex."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"{name}={jnp.dtype(dtype).name} cannot hold statistics; give a floating or complex "
            "dtype, for example jnp.float32"
        )


def check_real(name: str, dtype: Any) -> None:
    """Check that a dtype of online normalization is not complex."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{name} is {jnp.dtype(dtype).name}, but online normalization needs real numbers; give "
            "the real and the imaginary part as separate channels"
        )


def check_choice(name: str, value: Any) -> None:
    """Check that a value is a Python bool, which is known at trace time."""
    if not isinstance(value, bool):
        raise TypeError(
            f"{name} must be a Python bool, known when the function is traced, got {value!r}; "
            f"under jit make it static or call once with {name}=True and once with {name}=False"
        )


def is_traced(value: Any) -> bool:
    """Whether a value is traced, and so known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def is_at_least(value: Any, low: float) -> bool:
    """Whether a number is known to be `low` or more."""
    return not is_traced(value) and float(value) >= low


def as_choice(name: str, value: Any) -> bool:
    """Return a module's option as a Python bool; like Flax, take bools of NumPy and JAX too."""
    if not is_traced(value) and getattr(value, "dtype", None) == jnp.bool_ and jnp.size(value) == 1:
        return bool(value)
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    check_choice(name, value)
    return cast(bool, value)


def check_number(
    name: str, value: Any, low: float, high: float = math.inf, *, finite: bool = True
) -> None:
    """Check for a real number in [low, high], by default finite; a traced one by its kind only."""
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
        at_least = f"a number >= {low:g}" if low > -math.inf else "a finite number"
        bounds = f"in [{low:g}, {high:g}]" if high < math.inf else at_least
        raise ValueError(f"{name}={value!r} must be {bounds}")


def check_positive(name: str, value: Any) -> None:
    """Check for a finite real number above zero; a traced one by its kind only."""
    check_number(name, value, -math.inf)
    if not is_traced(value) and float(value) <= 0:
        raise ValueError(f"{name}={value!r} must be above 0")


def check_range(low: Any, high: Any) -> None:
    """Check for two finite numbers, the first below the second."""
    check_number("low", low, -math.inf)
    check_number("high", high, -math.inf)
    if not (is_traced(low) or is_traced(high) or float(low) < float(high)):
        raise ValueError(f"low={low!r} must be below high={high!r}")


def check_epsilon(epsilon: ArrayLike) -> None:
    """Check for a finite number that is not negative."""
    check_number("epsilon", epsilon, 0.0)


def check_momentum(momentum: ArrayLike | None) -> None:
    """Check for a weight in [0, 1], or None for the cumulative merge."""
    if momentum is not None:
        check_number("momentum", momentum, 0.0, 1.0)


def check_decay(decay: ArrayLike) -> None:
    """Check for a weight in [0, 1] of what a fit has seen before."""
    check_number("decay", decay, 0.0, 1.0)


def as_parameter(
    name: str,
    value: ArrayLike | None,
    x: jax.Array,
    features: Sequence[int],
    array: str = "input",
) -> jax.Array | None:
    """Return a scale or bias, of a shape as `_is_parameter` says, in the statistics' dtype.

    Args:
        name, array: what errors call the value and `x`.
    """
    if value is None:
        return None
    value = jnp.asarray(value)
    if not _is_parameter(value.shape, x.shape, features):
        shape = tuple(x.shape[axis] for axis in features)
        others = tuple(x.shape[axis] for axis in _axes.other_axes(x.ndim, features))
        raise ValueError(
            f"{name} has shape {value.shape}, but the feature axes {tuple(features)} of the "
            f"{array} have shape {shape}; give {name} this shape; or, to give each example its "
            f"own, put leading axes of the {array} in front, up to {others + shape}, each of full "
            f"size or 1 (the feature axes come last, wherever the {array} has them); or None to "
            "leave it out"
        )
    if jnp.iscomplexobj(value) and jnp.isrealobj(x):
        raise TypeError(f"{name} is {value.dtype}, but the {array} is real; give a real {name}")
    return value.astype(_dtypes.statistics_dtype(x.dtype))


def _is_parameter(
    shape: tuple[int, ...], of_input: tuple[int, ...], features: Sequence[int]
) -> bool:
    """Whether it is the shape of the feature axes, behind the first of the other axes, if any.

    An axis in front of those of the features may be 1 too.
    """
    number = len(shape) - len(features)
    leading = _axes.leading_axes(len(of_input), features, max(number, 0))
    allowed = [(of_input[axis], 1) for axis in leading] + [(of_input[axis],) for axis in features]
    return len(shape) == len(allowed) and all(map(operator.contains, allowed, shape))


def as_mask(where: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    """Return `where != 0` with as many axes as `shape`, to which it must broadcast."""
    return None if where is None else as_flags("the mask `where`", where, shape)


def as_flags(what: str, flags: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Return `flags != 0` with as many axes as `shape`, to which it must broadcast."""
    flags = jnp.asarray(flags)
    if not _broadcasts(flags.shape, shape):
        missing = len(shape) - flags.ndim
        of_first_axes = missing > 0 and _broadcasts(flags.shape, shape[: flags.ndim])
        expanded = f"mask[..., {', '.join(['None'] * missing)}]"
        cure = f"; for a mask over the first axes, give {expanded}" if of_first_axes else ""
        raise ValueError(
            f"{what} has shape {flags.shape}, which does not broadcast to the input's shape "
            f"{shape}; counted from the last axis, each size must be 1 or the input's{cure}"
        )
    return flags.astype(bool).reshape((1,) * (len(shape) - flags.ndim) + flags.shape)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return jnp.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def check_values_per_channel(
    shape: Sequence[int], axes: Sequence[int], mapped: int, what: str
) -> None:
    """Check for more than one value per channel: the variance of one is zero."""
    if _axes.values_per_channel(shape, axes) * mapped == 1:
        raise ValueError(
            f"training with one value per channel in {what} of shape {tuple(shape)}: its variance "
            "is zero, and the output would be only the bias; give more examples or positions, or "
            "train=False"
        )


def check_values_per_group(shape: Sequence[int], values: int) -> None:
    """Check for more than one value per group: the variance of one is zero."""
    if values == 1 and math.prod(shape) != 0:
        raise ValueError(
            f"there is one value in every group of an input of shape {tuple(shape)}: its variance "
            "is zero, and the output would be only the bias; measure over more positions or "
            "channels (fewer groups), or leave this normalization out"
        )
