"""The variables of the modules, and the call of a stateless one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from flax.nnx.module import first_from
from flax.nnx.nn import dtypes

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import shells as _shells
from jaxnorm.shells import Function, Initializer

Metadata = Mapping[str, Any]


def variables_of(norm: Any) -> dict[str, Any]:
    """The variables of the statistics, those that are recomputed in a dict of their own."""
    variables: dict[str, Any] = {
        k: v for k, v in vars(norm).items() if isinstance(v, nnx.BatchStat)
    }
    if hasattr(norm, "recomputed"):
        variables["recomputed"] = dict(norm.recomputed.items())
    return variables


def values_of(norm: Any) -> Any:
    """The statistics, in float32 at least."""
    return _shells.as_float32_at_least(each(lambda variable: variable[...], variables_of(norm)))


def each(function: Callable[..., Any], variables: Any, *others: Any) -> Any:
    """What a function gives of each variable, and of what stands at its place in other dicts."""
    return jax.tree.map(
        function, variables, *others, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )


def evaluates(module: Any, use_running_average: bool | None) -> bool:
    """Whether the running statistics are used: in evaluation, and where they are frozen."""
    return asked_to_evaluate(module, use_running_average) or module.frozen


def asked_to_evaluate(module: Any, use_running_average: bool | None) -> bool:
    """Whether evaluation is asked for, by the call or by the module."""
    chosen = first_from(
        use_running_average,
        module.use_running_average,
        error_msg=(
            f"give use_running_average to {type(module).__name__}, when it is built, in the call "
            "or by nnx.view, or call train() or eval() of the model"
        ),
    )
    return _checks.as_choice("use_running_average", chosen)


def parameter(
    module: Any, use: bool, init: Initializer, rngs: nnx.Rngs, metadata: Metadata
) -> nnx.Param[jax.Array] | None:
    if not use:
        return nnx.data(None)
    return nnx.Param(init(rngs.params(), (module.num_features,), module.param_dtype), **metadata)


def value_of(variable: Any, features: tuple[int, ...]) -> Any:
    """The value of a variable in the shape of the features; of one number or none, as it is."""
    value = None if variable is None else variable[...]
    if value is None or value.ndim == 0:
        return value
    if value.size != math.prod(features):
        raise ValueError(
            f"num_features={value.size}, but the feature axes of the input have shape {features}; "
            "give num_features that size, or check the feature axes"
        )
    return value.reshape(features)


def flat(value: jax.Array) -> jax.Array:
    """A statistic in the shape of its variable."""
    return value.reshape(-1) if value.ndim else value


def promoted(
    module: Any, x: jax.Array, stats: tuple[Any, ...], parameters: tuple[Any, ...]
) -> tuple[jax.Array, tuple[Any, ...], tuple[Any, ...], Any]:
    """The arrays to compute from, and the dtype of the result."""
    arrays = (x, *stats, *parameters)
    if module.promote_dtype is dtypes.promote_dtype:
        return x, stats, parameters, _shells.result_dtype(module.dtype, *arrays)
    x, *others = module.promote_dtype(arrays, dtype=module.dtype)
    stats, parameters = tuple(others[: len(stats)]), tuple(others[len(stats) :])
    return x, stats, parameters, _shells.result_dtype(module.dtype, x, *parameters)


def normalize(
    module: Any,
    function: Function,
    x: jax.Array,
    mask: jax.Array | None,
    feature_axes: _axes.Axes,
    *variables: Any,
) -> jax.Array:
    """A stateless normalization with the module's parameters."""
    features = _shells.feature_shape(x, feature_axes)
    parameters = tuple(value_of(variable, features) for variable in variables)
    x, _, parameters, dtype = promoted(module, x, (), parameters)
    return _shells.normalize(module, function, x, *parameters, dtype=dtype, mask=mask)
