"""Online normalization."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from jax.typing import ArrayLike

import jaxnorm as jn
from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import shells as _shells
from jaxnorm.linen.variables import (
    asked_to_evaluate,
    assign,
    is_frozen,
    parameters_of,
    values_of,
    variables_of,
)
from jaxnorm.shells import Initializer

__all__ = ["OnlineNorm"]


class OnlineNorm(nn.Module):
    """Online normalization: `jaxnorm.online_norm`, which normalizes by the examples so far.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, for each channel. x is [N, ..., C] (C at
    `axis`), N examples in order of time. y has the shape of x and the dtype `dtype`, by default the
    dtype that x and the parameters promote to. One value per channel is enough in training.

    `batch_stats` holds `mean` and `var`; after `jaxnorm.freeze_stats`, training does not update
    them. The errors of the two control processes, `control_y` and `control_x`, are in the
    collection `_overwrite_with_gradient`, as the state of Flax's fp8 operators is: their gradient
    is their new value, and `flax.training.train_state.TrainState` replaces them by it.

    Attributes:
        use_running_average: True to normalize with the statistics in `batch_stats`, False to
            update them after each example; give it here or in the call, not in both. With True, the
            gradient of the control processes is zero: do not replace them by it.
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
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import OnlineNorm
        >>> norm = OnlineNorm(use_running_average=False, forward_decay=0.5)
        >>> x = jnp.array([[2.0]])
        >>> variables = norm.init(jax.random.key(0), x)
        >>> sorted(variables)
        ['_overwrite_with_gradient', 'batch_stats', 'params']
        >>> y, updates = norm.apply(variables, x, mutable=["batch_stats"])
        >>> print(y.round(2), updates["batch_stats"]["mean"])
        [[2.]] [1.]
    """

    use_running_average: bool | None = None
    axis: _axes.Axes = -1
    forward_decay: ArrayLike = 0.999
    backward_decay: ArrayLike = 0.99
    epsilon: ArrayLike = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    stats_dtype: Any = None

    @nn.compact
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
        initializing = self.is_initializing()
        features = _shells.feature_shape(x, self.axis, "axis")
        collections = dict.fromkeys(("mean", "var"), "batch_stats")
        if initializing or not evaluating:
            collections |= dict.fromkeys(("control_y", "control_x"), OVERWRITE_WITH_GRADIENT)
        variables = variables_of(
            self,
            collections,
            lambda: jn.init_online_stats(features, dtype=_shells.stats_dtype(self)),
            required=not initializing,
        )
        frozen = {"frozen": None} if is_frozen(self) else {}
        parameters = parameters_of(self, features, scale=scale, bias=bias)
        y, new = _shells.normalize_with_stats(
            self,
            jn.online_norm,
            x,
            values_of(variables) | frozen,
            *parameters,
            dtype=_shells.result_dtype(self.dtype, x, *parameters),
            mask=mask,
            train=not evaluating,
        )
        if not (evaluating or frozen or initializing):
            assign({key: variables[key] for key in ("mean", "var")}, new)
        return y
