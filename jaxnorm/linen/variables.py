"""The variables of the modules, and the call of a stateless normalization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NoReturn

import flax.linen as nn
import jax

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import shells as _shells
from jaxnorm.sample import one_value_passes
from jaxnorm.shells import Function


def evaluates(module: Any, use_running_average: bool | None) -> bool:
    """Whether the running statistics are used: in evaluation, and where they are frozen."""
    return asked_to_evaluate(module, use_running_average) or is_frozen(module)


def asked_to_evaluate(module: Any, use_running_average: bool | None) -> bool:
    """Whether the call or the module asks for evaluation."""
    name = "use_running_average"
    chosen = nn.merge_param(name, module.use_running_average, use_running_average)
    return _checks.as_choice(name, chosen)


def is_frozen(module: nn.Module) -> bool:
    """Whether `jaxnorm.freeze_stats` marked the statistics of the module."""
    return module.has_variable("batch_stats", "frozen")


def parameters_of(module: Any, features: tuple[int, ...], **given: Any) -> tuple[Any, ...]:
    """The module's scale and bias, or what the call gives in their place."""

    def own(name: str) -> Any:
        if not getattr(module, f"use_{name}"):
            return None
        init = getattr(module, f"{name}_init")
        return module.param(name, init, features, module.param_dtype)

    return tuple(
        _shells.own_or_given(module, name, own(name), value) for name, value in given.items()
    )


def variables_of(
    module: nn.Module,
    collections: Mapping[str, str],
    init_stats: Callable[[], Mapping[str, Any]],
    *,
    required: bool,
) -> dict[str, Any]:
    """The variables of the module's statistics, by name.

    Args:
        collections: the collection of each variable.
        init_stats: makes the values that missing variables start with.
        required: a missing variable is an error.
    """
    missing = [
        key for key, collection in collections.items() if not module.has_variable(collection, key)
    ]
    if missing and required:
        _raise_missing(module, collections, missing, "")
    if not all(module.is_mutable_collection(collections[key]) for key in missing):
        _raise_missing(module, collections, missing, ", or a mutable collection to start them in")
    fresh = init_stats() if missing else {}
    return {
        key: module.variable(collection, key, fresh.get, key)
        for key, collection in collections.items()
    }


def _raise_missing(
    module: nn.Module, collections: Mapping[str, str], missing: list[str], also: str
) -> NoReturn:
    collection = collections[missing[0]]
    there = sorted(module.variables.get(collection, {}))
    lacking = [key for key in missing if collections[key] == collection]
    raise ValueError(
        f"{type(module).__name__} at /{'/'.join(module.path)} lacks {lacking} in the collection "
        f"{collection}{f' (which has {there})' if there else ''}; give apply the "
        f"{' and the '.join(dict.fromkeys(collections.values()))} that init made and training "
        f"updated, beside the params{also}"
    )


def values_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the variables."""
    return {key: variable.value for key, variable in variables.items()}


def assign(variables: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Give the variables the new values."""
    for key, variable in variables.items():
        variable.value = new[key]


def normalize(
    module: Any,
    function: Function,
    x: jax.Array,
    mask: jax.Array | None,
    feature_axes: _axes.Axes,
    given: Mapping[str, Any],
    **segments: Any,
) -> jax.Array:
    """A stateless normalization; `init` takes inputs of any size and merges over no mapped axis.

    Args:
        given: the scale and the bias that the call gives, which may be None.
    """
    features = _shells.feature_shape(x, feature_axes)
    parameters = parameters_of(module, features, **given)
    initializing = module.is_initializing()
    with one_value_passes() if initializing else nullcontext():
        return _shells.normalize(
            module,
            function,
            x,
            *parameters,
            dtype=_shells.result_dtype(module.dtype, x, *parameters),
            mask=mask,
            synced=not initializing,
            **segments,
        )
