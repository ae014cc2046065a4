"""PopArt's correction: a layer gives the same values when the scale of its targets changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import checks as _checks
from jaxnorm import states as _states
from jaxnorm.fold import fold_batch_norm
from jaxnorm.inputs import power_of

__all__ = ["preserve_outputs"]


def preserve_outputs(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    old: _states.BatchStats,
    new: _states.BatchStats,
    *,
    epsilon: ArrayLike = 0.0,
    kernel_axis: int = -1,
    layer: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Correct the last layer of a model when the fit to its standardized targets changes (PopArt).

    The layer's outputs y stand for the values s * y + mean, with the mean and
    s = sqrt(var + epsilon) of the targets. With the corrected kernel and bias,

        kernel' = kernel * s / s'  and  bias' = (s * bias + mean - mean') / s',

    the outputs stand for the same values under the new fit (mean' and s'), whatever the input of
    the layer is.

    Args:
        kernel: that of the last layer, floating, of any shape with F outputs at `kernel_axis`.
        bias: [F]; None if the layer has none, and then the result is the bias that it needs.
        old, new: fits of the targets, [F], before and after `update_input_stats`.
        epsilon: that of `standardize_inputs` for the targets.
        kernel_axis: the axis of the outputs, if no layer is given.
        layer: the type of the layer, "flax.Dense" or another, as for `fold_batch_norm`.

    Returns:
        The new kernel, in the dtype of the old one, and the new bias, in the dtype of the old bias,
        or of the kernel if there was no bias. Both are computed in float32 at least and rounded
        once.

    Raises:
        TypeError: a kernel of integers.
        ValueError: an axis out of range, a bias or a fit of another width, a fit that is narrower
            than float32 or lacks an entry.

    Conventions:
        The divisor of targets that never varied is 1, as in `standardize_inputs`. Keep the state of
        the optimizer as it is, as in the paper.

    References:
        van Hasselt et al., "Learning values across many orders of magnitude", 2016, section 2.1
        ("preserving outputs precisely").

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> kernel, bias, x = jnp.array([[2.0], [1.0]]), jnp.array([0.5]), jnp.array([[1.0, 3.0]])
        >>> fit = lambda *x: jn.update_input_stats(jn.init_input_stats(1), jnp.array(x)[:, None])
        >>> old, new = fit(-1.0, 1.0), fit(2.0, 10.0)
        >>> before = jn.standardize_inputs(x @ kernel + bias, old, invert=True)
        >>> kernel, bias = jn.preserve_outputs(kernel, bias, old, new)
        >>> print(before, jn.standardize_inputs(x @ kernel + bias, new, invert=True))
        [[5.5]] [[5.5]]
    """
    _checks.check_epsilon(epsilon)
    _states.check_fit(old)
    _states.check_fit(new, jnp.shape(old["mean"]))
    deviation = jnp.sqrt(power_of(jnp.asarray(old["var"]), epsilon))
    # y' = (y - (mean' - mean) / s) / s' * s has the form of batch normalization in evaluation.
    change = {
        "mean": (new["mean"] - old["mean"]) / deviation,
        "var": power_of(jnp.asarray(new["var"]), epsilon),
    }
    return fold_batch_norm(
        kernel, bias, change, deviation, None, epsilon=0.0, kernel_axis=kernel_axis, layer=layer
    )
