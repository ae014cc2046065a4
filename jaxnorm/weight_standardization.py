"""Weight standardization: kernels of layers, standardized for each output channel."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm.sample import layer_norm

__all__ = ["standardize_kernel"]


def standardize_kernel(
    kernel: ArrayLike,
    *,
    gain: ArrayLike | None = None,
    epsilon: ArrayLike = 1e-4,
    kernel_axis: _axes.Axes = -1,
) -> jax.Array:
    """Standardize the kernel of each output channel of a dense or convolutional layer.

    The result is (kernel - mean) / sqrt(var + epsilon) * gain, with the mean and the biased
    variance of each output channel's kernel over all other axes. This is `layer_norm` of the kernel
    over these axes: as exact, with the same derivative. In every training step, call it on the
    trained kernel before the layer uses it; in evaluation, you can compute the result once and keep
    it.

    Args:
        kernel: floating or complex, with C output channels and more than one value for each.
        gain: [C], or one number for all channels; None for 1.
        epsilon: added to the variance; a number or a scalar array, which may be traced.
        kernel_axis: the axis of the output channels: the last in Flax, Haiku and Keras, the first
            in PyTorch; or several axes, and C is then their shape, in ascending order.

    Returns:
        The kernel, of the shape and dtype of `kernel`. Its statistics are computed in float32 at
        least.

    Raises:
        TypeError: a kernel of integers.
        ValueError: an axis out of range or given twice, one value for each output channel, a gain
            of the wrong shape, a negative epsilon.

    Conventions:
        Qiao et al. and BiT have no gain and a small epsilon (BiT in PyTorch: 1e-10). An epsilon
        that is not much smaller than the variance shrinks the result, by 1 / sqrt(1 + epsilon * n)
        for n values of variance 1 / n, as most initializers draw them (n = 576: 0.97; n = 4608:
        0.83).
        A normalization after the layer cancels this factor.

        NFNets ("scaled" weight standardization) keep the variance of the input: the result has
        variance gain^2 / n. Give gain=gain / sqrt(n) and epsilon=1e-4 / n. The reference code
        divides by sqrt(max(var * n, 1e-4)), which is the same to 5e-5 / (var * n).

    References:
        Qiao et al., "Micro-batch training with batch-channel normalization and weight
        standardization", 2019. Kolesnikov et al., "Big transfer (BiT): general visual
        representation learning", 2020. Brock et al., "Characterizing signal propagation to close
        the performance gap in unnormalized ResNets", 2021 (the scaled form).

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> kernel = jnp.array([[1.0, 10.0], [3.0, 30.0]])
        >>> print(jn.standardize_kernel(kernel, gain=jnp.array([1.0, 2.0])).round(3))
        [[-1. -2.]
         [ 1.  2.]]
    """
    kernel = _checks.as_kernel(
        kernel, "standardization", "convert it first, for example kernel.astype(jnp.float32)"
    )
    channels = _axes.nonempty_axes(kernel.ndim, kernel_axis, "kernel_axis", "kernel")
    reduced = _axes.other_axes(kernel.ndim, channels)
    if math.prod(kernel.shape[axis] for axis in reduced) == 1:
        raise ValueError(
            f"a kernel of shape {kernel.shape} has one value for each output channel of "
            f"kernel_axis={kernel_axis!r}: its variance is zero, and the result would be zero; "
            "check kernel_axis, or leave this kernel as it is"
        )
    gain = _gain_of_channels(gain, tuple(kernel.shape[axis] for axis in channels))
    _checks.as_parameter("gain", gain, kernel, channels, "kernel")
    return layer_norm(kernel, gain, reduction_axes=reduced, feature_axes=channels, epsilon=epsilon)


def _gain_of_channels(gain: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    """The gain, checked to be one number or to have the shape of the output channels."""
    if gain is None:
        return None
    gain = jnp.asarray(gain)
    if gain.shape not in ((), shape):
        reshaped = f"give gain.reshape({', '.join(map(str, shape))})"
        cure = reshaped if gain.size == math.prod(shape) else "check kernel_axis"
        raise ValueError(
            f"gain has shape {gain.shape}, but must have the shape of the output channels, "
            f"{shape}, or be one number; {cure}"
        )
    return jnp.broadcast_to(gain, shape)
