"""Scaling of inputs by a fit (see `jaxnorm/input_stats.py`)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

import jaxnorm as jn
from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import shells as _shells
from jaxnorm.nnx.variables import Stateful, assign, evaluates, values_of, variables_of
from jaxnorm.shells import Function

__all__ = ["MinMaxInputs", "StandardizeInputs"]


class InputScaling(Stateful):
    """The base of `StandardizeInputs` and `MinMaxInputs`, with a fit in `nnx.BatchStat`."""

    count: nnx.BatchStat[jax.Array]
    mean: nnx.BatchStat[jax.Array]
    var: nnx.BatchStat[jax.Array]
    min: nnx.BatchStat[jax.Array]
    max: nnx.BatchStat[jax.Array]

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: _axes.Axes = -1,
        dtype: Any = None,
        axis_name: _axes.AxisName | None = None,
        axis_index_groups: Any = None,
        skip_nan: bool = False,
        stats_dtype: Any = jnp.float32,
        decay: ArrayLike = 1.0,
    ):
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.dtype = dtype
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.skip_nan = skip_nan
        self.stats_dtype = stats_dtype
        self.decay = decay
        self.frozen = False
        for key, value in jn.init_input_stats(num_features, dtype=stats_dtype).items():
            setattr(self, key, nnx.BatchStat(value))

    @property
    def _function(self) -> Function:
        raise NotImplementedError

    @_checks.mask_is_called("mask")
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        evaluating = evaluates(self, use_running_average)
        features = _shells.feature_shape(x, self.axis, "axis")
        variables = variables_of(self)
        y, new = _shells.scale_inputs(
            self,
            self._function,
            x,
            values_of(variables, features),
            mask=mask,
            train=not evaluating,
        )
        if not evaluating:
            assign(variables, new)
        return y


class StandardizeInputs(InputScaling):
    """Standardize inputs: `jaxnorm.standardize_inputs` with its fit in `nnx.BatchStat`.

    y = (x - mean) / sqrt(var + epsilon), for each feature, clipped to [-clip, clip]. x is [..., F]
    (F at `axis`) of any real dtype. y has the shape of x and the dtype `dtype`, by default that of
    x, or float32 for integers. There are no parameters.

    The fit is the statistics of all inputs so far. Training updates it with the batch
    (`jaxnorm.update_input_stats`) and scales the batch by the new fit. `train()` and `eval()`
    choose whether the fit is updated; after `freeze_stats`, training does not update it.

    Args:
        num_features: the number of features F; for several feature axes, the product of their
            sizes.
        use_running_average: True to use the fit, False to update it first; here or in the call,
            which takes precedence.
        axis: the axis or axes of the features.
        epsilon, clip, center: as for `jaxnorm.standardize_inputs`.
        skip_nan: leave NaN out of the fit; the result is NaN where x is.
        stats_dtype: the dtype of the fit: float32 or float64.
        decay: as for `jaxnorm.update_input_stats`.
        options: the arguments above that the signature does not show, and `dtype`, `axis_name` and
            `axis_index_groups` as in all modules.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.nnx import StandardizeInputs
        >>> scale = StandardizeInputs(2)
        >>> print(scale(jnp.array([[3.0, 1e5], [5.0, 3e5]])), scale.mean[...])
        [[-1. -1.]
         [ 1.  1.]] [4.e+00 2.e+05]
        >>> scale.eval()
        >>> print(scale(jnp.array([[4.0, 4e5]])))
        [[0. 2.]]
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: ArrayLike = 0.0,
        clip: ArrayLike | None = None,
        center: bool = True,
        **options: Any,
    ):
        super().__init__(num_features, **options)
        self.epsilon = epsilon
        self.clip = clip
        self.center = center

    @property
    def _function(self) -> Function:
        return jn.standardize_inputs


class MinMaxInputs(InputScaling):
    """Scale inputs to the range from `low` to `high`: `jaxnorm.min_max_inputs` as a module.

    y = low + (high - low) * (x - min) / (max - min), for each feature; x is [..., F] (F at `axis`).
    All else is as in `StandardizeInputs`.

    Args:
        low, high, clip: as for `jaxnorm.min_max_inputs`.
        options: the other arguments of `StandardizeInputs`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.nnx import MinMaxInputs
        >>> print(MinMaxInputs(1, low=-1.0)(jnp.array([[0.0], [5.0], [20.0]]))[:, 0])
        [-1.  -0.5  1. ]
    """

    def __init__(
        self,
        num_features: int,
        *,
        low: ArrayLike = 0.0,
        high: ArrayLike = 1.0,
        clip: bool = False,
        **options: Any,
    ):
        super().__init__(num_features, **options)
        self.low = low
        self.high = high
        self.clip = clip

    @property
    def _function(self) -> Function:
        return jn.min_max_inputs
