"""The calls of functions by modules, which the Linen and the NNX modules share.

A `module` is of either framework, and its arguments are its attributes. An option of the function
is the module's attribute of the same name, or of Flax's name for it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype

import jaxnorm as jn
from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes
from jaxnorm import states as _states

Function = Callable[..., Any]
Initializer = Callable[..., Any]

_FLAX_NAMES = {"channel_axis": ("axis", "feature_axes"), "feature_axis": ("axis",)}
_CALL_ARGUMENTS = ("train", "where", "invert", "segment_ids", "num_segments")
_MAPPED_AXIS_OPTIONS = {"axis_name", "axis_index_groups"}


@functools.cache
def entries(init_stats: Function, **options: Any) -> tuple[str, ...]:
    """The names of the statistics that `init_stats` makes, without the use of a device."""
    names: list[str] = []
    jax.eval_shape(lambda: names.extend(init_stats(1, **options)))
    return tuple(names)


def library_of(kind: type) -> str:
    """The module that users import a class from."""
    package, _, rest = kind.__module__.partition(".")
    library = f"{package}.{rest.partition('.')[0]}"
    return library if package in ("flax", "jaxnorm") else kind.__module__


def feature_shape(x: jax.Array, axes: _axes.Axes, name: str = "feature_axes") -> tuple[int, ...]:
    """The shape of the axes of `x` that parameters or statistics have."""
    _checks.check_not_dict(x, "module[key](x[key])")
    channels = _axes.nonempty_axes(jnp.ndim(x), axes, name)
    return tuple(x.shape[axis] for axis in channels)


def own_or_given(module: Any, name: str, own: Any, given: Any) -> Any:
    """A parameter of the module, or what the call gives in its place; None if there is neither."""
    if own is not None and given is not None:
        raise ValueError(
            f"this {type(module).__name__} has a {name} of its own, and the call gives another "
            f"one; build the module with use_{name}=False, or leave {name} out of the call"
        )
    return given if own is None else own


def result_dtype(dtype: Any, *arrays: Any) -> Any:
    """`dtype`, or the dtype that the arrays promote to if it is None."""
    with jax.numpy_dtype_promotion("standard"):
        return canonicalize_dtype(*arrays, dtype=dtype)


def stats_dtype(module: Any, *inputs: Any) -> Any:
    """The dtype of new running statistics: float32, or wider if the parameters are wider.

    It is complex if the parameters, the module's `dtype` or the inputs that are given are complex.
    """
    if module.stats_dtype is not None:
        return module.stats_dtype
    given = [x.dtype for x in inputs] + ([] if module.dtype is None else [module.dtype])
    of_complex = [dtype for dtype in given if jnp.issubdtype(dtype, jnp.complexfloating)]
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, [module.param_dtype, *of_complex], jnp.float32)


def as_float32_at_least(stats: _states.BatchStats) -> Any:
    """Statistics, for example of a checkpoint, with those narrower than float32 converted to it.

    The control processes of online normalization keep their dtype, which their gradient has too.
    """

    def converted(leaf: Any) -> Any:
        narrow = _dtypes.is_below_float32(jnp.result_type(leaf))
        return jnp.asarray(leaf, jnp.float32) if narrow else leaf

    return {
        key: leaf if key in _states.CONTROL else jax.tree.map(converted, leaf)
        for key, leaf in stats.items()
    }


def normalize(
    module: Any,
    function: Function,
    x: jax.Array,
    *parameters: Any,
    dtype: Any,
    mask: Any,
    synced: bool = True,
    **segments: Any,
) -> jax.Array:
    """Return a stateless normalization's result, in `dtype`.

    Args:
        synced: merge statistics over the module's mapped axes, if it has any.
        segments: the arguments `segment_ids` and `num_segments` of the call.
    """
    options = _options(module, function, synced)
    y = function(_promoted(x, dtype), *parameters, where=mask, **segments, **options)
    return jnp.asarray(y, dtype)


def normalize_with_stats(
    module: Any,
    function: Function,
    x: jax.Array,
    stats: _states.BatchStats,
    *parameters: Any,
    dtype: Any,
    mask: Any,
    train: bool,
    synced: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return a stateful normalization's result, in `dtype`, and its new statistics."""
    y, new = function(
        _promoted(x, dtype),
        as_float32_at_least(stats),
        *parameters,
        train=train,
        where=mask,
        **_options(module, function, synced),
    )
    return jnp.asarray(y, dtype), new


def scale_inputs(
    module: Any,
    function: Function,
    x: jax.Array,
    fit: _states.BatchStats,
    *,
    mask: Any,
    train: bool,
    synced: bool = True,
) -> tuple[jax.Array, Any]:
    """Return the inputs scaled by their fit, which training updates first, and the fit."""
    dtype = result_dtype(module.dtype, x)
    x, fit = _promoted(x, dtype), as_float32_at_least(fit)
    if train:
        options = _options(module, jn.update_input_stats, synced)
        fit = jn.update_input_stats(fit, x, where=mask, **options)
    y = function(x, fit, where=mask, **_options(module, function, synced))
    return jnp.asarray(y, dtype), fit


def _options(module: Any, function: Function, synced: bool) -> dict[str, Any]:
    """The options of a function, from the attributes of the module, which must have all of them."""
    options: dict[str, Any] = {}
    for name in _option_names(function):
        attributes = _FLAX_NAMES.get(name, (name,))
        found = [attribute for attribute in attributes if hasattr(module, attribute)]
        if not found:
            raise AttributeError(
                f"{type(module).__name__} lacks the attribute {' or '.join(attributes)}, an option "
                "of its function"
            )
        options[name] = getattr(module, found[0])
    return (
        options if synced else {**options, **dict.fromkeys(_MAPPED_AXIS_OPTIONS & options.keys())}
    )


@functools.lru_cache
def _option_names(function: Function) -> tuple[str, ...]:
    """The keyword arguments except those of a call and those that a `functools.partial` has set."""
    given = (*_CALL_ARGUMENTS, *getattr(function, "keywords", ()))
    return tuple(
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in given
    )


def _promoted(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` in a dtype that holds both `x` and the result, so that only the result is rounded."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), dtype))
