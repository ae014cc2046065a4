"""The variables of the modules, and the call of a stateless normalization."""

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


class Stateful(nnx.Module):
    """A module with statistics that training updates and evaluation uses."""

    use_running_average: bool | None
    frozen: bool  # whether `jaxnorm.nnx.freeze_stats` marked the statistics

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Called by `nnx.view`. (`nnx.view_info` reads the arguments indented by two.)

        Args:
          use_running_average: True to use the running statistics or the fit, False to update them.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


def evaluates(module: Stateful, use_running_average: bool | None) -> bool:
    """Whether the running statistics are used: in evaluation, and where they are frozen."""
    return asked_to_evaluate(module, use_running_average) or module.frozen


def asked_to_evaluate(module: Stateful, use_running_average: bool | None) -> bool:
    """Whether the call or the module asks for evaluation."""
    chosen = first_from(
        use_running_average,
        module.use_running_average,
        error_msg=(
            f"use_running_average of {type(module).__name__} is None; give True or False when the "
            "module is built, in the call or by nnx.view, or call train() or eval() of the model"
        ),
    )
    return _checks.as_choice("use_running_average", chosen)


def parameter(
    module: Any, use: bool, init: Initializer, rngs: nnx.Rngs, metadata: Metadata
) -> nnx.Param[jax.Array] | None:
    """A new scale or bias of the module, or None if it does not use one."""
    if not use:
        return nnx.data(None)
    return nnx.Param(init(rngs.params(), (module.num_features,), module.param_dtype), **metadata)


def parameters_of(module: Any, features: tuple[int, ...], **given: Any) -> tuple[Any, ...]:
    """The values of the module's scale and bias, or what the call gives in their place."""
    return tuple(
        _shells.own_or_given(module, name, _value_of(getattr(module, name), features), value)
        for name, value in given.items()
    )


def variables_of(module: Stateful, kinds: Any = nnx.BatchStat) -> dict[str, Any]:
    """The variables of the module's statistics, by name; the recomputed ones in a dict."""
    variables: dict[str, Any] = {k: v for k, v in vars(module).items() if isinstance(v, kinds)}
    if hasattr(module, "recomputed"):
        variables["recomputed"] = dict(module.recomputed.items())
    return variables


def values_of(variables: Mapping[str, Any], features: tuple[int, ...] | None = None) -> Any:
    """The values of the variables, in the shape of the features if these are given."""
    if features is None:
        return _each(lambda variable: variable[...], variables)
    return _each(lambda variable: _value_of(variable, features), variables)


def assign(variables: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Give the variables the new values."""

    def assigned(variable: Any, value: jax.Array) -> None:
        flat = value.reshape(-1) if value.ndim else value
        variable.set_value(jax.lax.stop_gradient(flat))

    _each(assigned, variables, {key: new[key] for key in variables})


def _each(function: Callable[..., Any], variables: Any, *others: Any) -> Any:
    """The results of a function of each variable, and of the values at its place in `others`."""
    return jax.tree.map(
        function, variables, *others, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )


def _value_of(variable: Any, features: tuple[int, ...]) -> Any:
    """The value of a variable in the shape of the features; a scalar or None as it is."""
    value = None if variable is None else variable[...]
    if value is None or value.ndim == 0:
        return value
    if value.size != math.prod(features):
        raise ValueError(
            f"num_features={value.size}, but the feature axes of the input have shape {features}; "
            "give num_features that size, or check the feature axes"
        )
    return value.reshape(features)


def promoted(
    module: Any,
    x: jax.Array,
    parameters: tuple[Any, ...],
    stats: Mapping[str, Any],
    *,
    evaluating: bool = False,
) -> tuple[jax.Array, tuple[Any, ...], Mapping[str, Any], Any]:
    """The arrays to compute from, as `promote_dtype` gives them, and the dtype of the result.

    Args:
        stats: promoted in evaluation only; in training they keep their dtype.
    """
    moments = {key: stats[key] for key in ("mean", "var") if key in stats}
    arrays = (x, *moments.values(), *parameters)
    if module.promote_dtype is dtypes.promote_dtype:
        return x, parameters, stats, _shells.result_dtype(module.dtype, *arrays)
    x, *others = module.promote_dtype(arrays, dtype=module.dtype)
    parameters = tuple(others[len(moments) :])
    if evaluating:
        stats = {**stats, **dict(zip(moments, others, strict=False))}
    return x, parameters, stats, _shells.result_dtype(module.dtype, x, *parameters)


def normalize(
    module: Any,
    function: Function,
    x: jax.Array,
    mask: jax.Array | None,
    feature_axes: _axes.Axes,
    given: Mapping[str, Any],
    **segments: Any,
) -> jax.Array:
    """A stateless normalization.

    Args:
        given: the scale and the bias that the call gives, which may be None.
    """
    features = _shells.feature_shape(x, feature_axes)
    x, parameters, _, dtype = promoted(module, x, parameters_of(module, features, **given), {})
    return _shells.normalize(module, function, x, *parameters, dtype=dtype, mask=mask, **segments)
