"""The normalization of a model's layers, from the configuration."""

import jax
import optax

from experiments import config as c
from jaxnorm import linen


def normalize(norm: c.NormConfig, x: jax.Array, *, train: bool, total_steps: int) -> jax.Array:
    """Normalize activations (batch, height, width, channels), inside a Flax compact method."""
    everything = (1, 2, 3)
    match norm:
        case c.NoNorm():
            return x
        case c.BatchNorm():
            layer = linen.BatchNorm(momentum=norm.momentum, epsilon=norm.epsilon)
        case c.GhostBatchNorm():
            layer = linen.GhostBatchNorm(
                ghost_size=norm.ghost_size, momentum=norm.momentum, epsilon=norm.epsilon
            )
        case c.BatchRenorm():
            layer = linen.BatchRenorm(
                r_max=_relaxation(1, norm.r_max, norm, total_steps),
                d_max=_relaxation(0, norm.d_max, norm, total_steps),
                momentum=norm.momentum,
                epsilon=norm.epsilon,
            )
        case c.LayerNorm():
            return linen.LayerNorm(epsilon=norm.epsilon, reduction_axes=everything)(x)
        case c.RMSNorm():
            return linen.RMSNorm(epsilon=norm.epsilon, reduction_axes=everything)(x)
        case c.GroupNorm():
            return linen.GroupNorm(num_groups=norm.num_groups, epsilon=norm.epsilon)(x)
        case c.InstanceNorm():
            return linen.InstanceNorm(epsilon=norm.epsilon)(x)
        case _:
            raise TypeError(f"no layer for {norm!r}")
    return layer(x, use_running_average=not train)


def has_bias(norm: c.NormConfig) -> bool:
    """Whether `normalize` adds a bias, so that the layer before it needs none."""
    return not isinstance(norm, c.NoNorm | c.RMSNorm)


def _relaxation(
    closed: float, limit: float, norm: c.BatchRenorm, total_steps: int
) -> optax.Schedule:
    """From `closed` to `limit`, linearly between two fractions of the training."""
    begin = round(norm.relax_from * total_steps)
    end = round(norm.relax_to * total_steps)
    return optax.linear_schedule(closed, limit, max(end - begin, 1), begin)
