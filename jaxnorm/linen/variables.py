"""The variables of the modules, and the call of a stateless one."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import flax.linen as nn
import jax

from jaxnorm import checks as _checks
from jaxnorm import shells as _shells
from jaxnorm.sample import one_value_passes
from jaxnorm.shells import Function


def evaluates(module: Any, use_running_average: bool | None) -> bool:
    """Whether evaluation is asked for, by the call or by the module."""
    name = "use_running_average"
    return _checks.as_choice(
        name, nn.merge_param(name, module.use_running_average, use_running_average)
    )


def raise_missing(module: nn.Module, missing: list[str]) -> None:
    there = sorted(module.variables.get("batch_stats", {}))
    held = f" (which has {there})" if there else ""
    raise ValueError(
        f"{type(module).__name__} at /{'/'.join(module.path)} lacks {missing} in the collection "
        f"batch_stats{held}; give apply the batch_stats that init made and training updated, "
        "beside the params (in training, a mutable batch_stats may start empty)"
    )


def scale_of(module: Any, features: tuple[int, ...]) -> Any:
    if not module.use_scale:
        return None
    return module.param("scale", module.scale_init, features, module.param_dtype)


def bias_of(module: Any, features: tuple[int, ...]) -> Any:
    if not module.use_bias:
        return None
    return module.param("bias", module.bias_init, features, module.param_dtype)


def normalize(
    module: Any, function: Function, x: jax.Array, mask: jax.Array | None, *parameters: Any
) -> jax.Array:
    """A stateless normalization; in `init`, not synced, and of inputs of any size."""
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
        )
