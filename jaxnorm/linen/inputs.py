"""Scaling of inputs by a fit (see `jaxnorm/input_stats.py`)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import jaxnorm as jn
from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import shells as _shells
from jaxnorm.linen.variables import assign, evaluates, values_of, variables_of
from jaxnorm.shells import Function

__all__ = ["MinMaxInputs", "StandardizeInputs"]


class InputScaling(nn.Module):
    """The base of `StandardizeInputs` and `MinMaxInputs`, with a fit in `batch_stats`."""

    use_running_average: bool | None = None
    axis: _axes.Axes = -1
    dtype: Any = None
    axis_name: _axes.AxisName | None = None
    axis_index_groups: Any = None
    skip_nan: bool = False
    stats_dtype: Any = jnp.float32

    @property
    def _function(self) -> Function:
        raise NotImplementedError

    @nn.compact
    @_checks.mask_is_called("mask")
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        evaluating = evaluates(self, use_running_average)
        initializing = self.is_initializing()
        features = _shells.feature_shape(x, self.axis, "axis")
        variables = variables_of(
            self,
            dict.fromkeys(_shells.entries(jn.init_input_stats), "batch_stats"),
            lambda: jn.init_input_stats(features, dtype=self.stats_dtype),
            required=evaluating and not initializing,
        )
        y, new = _shells.scale_inputs(
            self,
            self._function,
            x,
            values_of(variables),
            mask=mask,
            train=not evaluating,
            synced=not initializing,
        )
        if not (evaluating or initializing):
            assign(variables, new)
        return y


class StandardizeInputs(InputScaling):
    """Standardize inputs: `jaxnorm.standardize_inputs` with its fit in `batch_stats`.

    y = (x - mean) / sqrt(var + epsilon), for each feature, clipped to [-clip, clip]. x is [..., F]
    (F at `axis`) of any real dtype. y has the shape of x and the dtype `dtype`, by default that of
    x, or float32 for integers. There are no parameters.

    The fit is the statistics of all inputs so far. Training updates it with the batch
    (`jaxnorm.update_input_stats`) and scales the batch by the new fit. `init` does not update it;
    after `jaxnorm.freeze_stats`, training does not either.

    Attributes:
        use_running_average: True to use the fit in `batch_stats`, False to update it first; give it
            here or in the call, not in both.
        axis: the axis or axes of the features.
        epsilon, clip, center: as for `jaxnorm.standardize_inputs`.
        skip_nan: leave NaN out of the fit; the result is NaN where x is.
        stats_dtype: the dtype of the fit: float32 or float64.
        decay: as for `jaxnorm.update_input_stats`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import StandardizeInputs
        >>> x = jnp.array([[3.0, 1e5], [5.0, 3e5]])
        >>> scale = StandardizeInputs(use_running_average=False)
        >>> y, variables = scale.apply({}, x, mutable=["batch_stats"])
        >>> print(y, variables["batch_stats"]["mean"])
        [[-1. -1.]
         [ 1.  1.]] [4.e+00 2.e+05]
    """

    epsilon: ArrayLike = 0.0
    clip: ArrayLike | None = None
    decay: ArrayLike = 1.0
    center: bool = True

    @property
    def _function(self) -> Function:
        return jn.standardize_inputs


class MinMaxInputs(InputScaling):
    """Scale inputs to the range from `low` to `high`: `jaxnorm.min_max_inputs` as a module.

    y = low + (high - low) * (x - min) / (max - min), for each feature; x is [..., F] (F at `axis`).
    All else is as in `StandardizeInputs`.

    Attributes:
        low, high, clip: as for `jaxnorm.min_max_inputs`.
        decay: as for `jaxnorm.update_input_stats`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.linen import MinMaxInputs
        >>> scale = MinMaxInputs(use_running_average=False, low=-1.0)
        >>> y, _ = scale.apply({}, jnp.array([[0.0], [5.0], [20.0]]), mutable=["batch_stats"])
        >>> print(y[:, 0])
        [-1.  -0.5  1. ]
    """

    low: ArrayLike = 0.0
    high: ArrayLike = 1.0
    clip: bool = False
    decay: ArrayLike = 1.0

    @property
    def _function(self) -> Function:
        return jn.min_max_inputs
