"""Online normalization."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax.typing import ArrayLike

import jaxnorm as jn
from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import shells as _shells
from jaxnorm.nnx.variables import (
    Metadata,
    Stateful,
    asked_to_evaluate,
    assign,
    parameter,
    parameters_of,
    promoted,
    values_of,
    variables_of,
)
from jaxnorm.shells import Initializer

__all__ = ["DIFFERENTIATED", "ControlState", "OnlineNorm", "overwrite_control"]


class ControlState(nnx.Variable[Any]):
    """A variable of `OnlineNorm`: the error of a control process; its gradient is its new value."""


class OnlineNorm(Stateful):
    """Online normalization: `jaxnorm.online_norm`, which normalizes by the examples so far.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel. x is [N, ..., C] (C at
    `axis`), N examples in order of time. y has the shape of x and the dtype `dtype`, by default the
    dtype that x and the variables promote to. One value per channel is enough in training.

    `mean` and `var` are `nnx.BatchStat`. The errors of the two control processes, `control_y` and
    `control_x`, are `ControlState`: differentiate with respect to them too, with the filter
    `DIFFERENTIATED`, and give the gradients to `overwrite_control`, which returns the other ones.

    `train()` and `eval()` choose whether the statistics are updated after each example; after
    `freeze_stats`, training does not update them.

    Args:
        use_running_average: True to normalize with the running statistics, False to update them
            after each example; here or in the call, which takes precedence. With True, the gradient
            of the control processes is zero: do not replace them by it.
        axis: the axis or axes of the channels.
        forward_decay: the weight of the old statistics.
        backward_decay: the weight of the old errors of the control processes.
        epsilon: added to the variance.
        stats_dtype: the dtype of the statistics, which updates keep; by default float32, or
            `param_dtype` if that is wider.

    In the call:
        scale, bias: used as the scale and the bias of a module without its own
            (`use_scale=False`, `use_bias=False`); shapes as for the function: [C], or [N, C] with
            one for each example.

    References:
        Chiley et al., "Online normalization for training neural networks", 2019.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import DIFFERENTIATED, OnlineNorm, overwrite_control
        >>> norm = OnlineNorm(1, forward_decay=0.5, rngs=nnx.Rngs(0))
        >>> loss = lambda norm: norm(jnp.array([[2.0]])).sum()
        >>> grads = nnx.grad(loss, argnums=nnx.DiffState(0, DIFFERENTIATED))(norm)
        >>> grads = overwrite_control(norm, grads)
        >>> print(sorted(grads), norm.mean[...], norm.control_y[...].round(2))
        ['bias', 'scale'] [1.] [2.]
    """

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: _axes.Axes = -1,
        forward_decay: ArrayLike = 0.999,
        backward_decay: ArrayLike = 0.99,
        epsilon: ArrayLike = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = nnx.initializers.zeros,
        scale_init: Initializer = nnx.initializers.ones,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = MappingProxyType({}),
        scale_metadata: Metadata = MappingProxyType({}),
        stats_dtype: Any = None,
    ):
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.forward_decay = forward_decay
        self.backward_decay = backward_decay
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.promote_dtype = promote_dtype
        self.stats_dtype = stats_dtype
        self.frozen = False
        stats = jn.init_online_stats(num_features, dtype=_shells.stats_dtype(self))
        self.mean = nnx.BatchStat(stats["mean"])
        self.var = nnx.BatchStat(stats["var"])
        self.control_y = ControlState(stats["control_y"])
        self.control_x = ControlState(stats["control_x"])
        self.scale = parameter(self, use_scale, scale_init, rngs, scale_metadata)
        self.bias = parameter(self, use_bias, bias_init, rngs, bias_metadata)

    @_checks.mask_is_called("mask")
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
    ) -> jax.Array:
        evaluating = asked_to_evaluate(self, use_running_average)
        features = _shells.feature_shape(x, self.axis, "axis")
        variables = variables_of(self, (nnx.BatchStat, ControlState))
        frozen = {"frozen": None} if self.frozen else {}
        x, parameters, stats, dtype = promoted(
            self,
            x,
            parameters_of(self, features, scale=scale, bias=bias),
            values_of(variables, features) | frozen,
            evaluating=evaluating or self.frozen,
        )
        y, new = _shells.normalize_with_stats(
            self,
            jn.online_norm,
            x,
            stats,
            *parameters,
            dtype=dtype,
            mask=mask,
            train=not evaluating,
        )
        if not (evaluating or self.frozen):
            assign({key: variables[key] for key in ("mean", "var")}, new)
        return y


DIFFERENTIATED = nnx.Any(nnx.Param, ControlState)


def overwrite_control(model: nnx.Module, grads: Any) -> Any:
    """Replace the errors of the control processes by their gradients; return the other gradients.

    Args:
        model: with `OnlineNorm` modules; changed in place.
        grads: the result of `nnx.grad(..., argnums=nnx.DiffState(0, DIFFERENTIATED))`.

    Returns:
        `grads` without the control processes, for an optimizer of `nnx.Param`.

    Raises:
        ValueError: `grads` has none for the model's control processes.

    `OnlineNorm` has an example.
    """
    control, rest = nnx.split_state(grads, ControlState, ...)
    if not control and nnx.state(model, ControlState):
        raise ValueError(
            "the model has control processes, but the gradients have none; differentiate with "
            "respect to them too: nnx.grad(loss, argnums=nnx.DiffState(0, "
            "jaxnorm.nnx.DIFFERENTIATED))"
        )
    nnx.update(model, control)
    return rest
