"""The normalization of a model's layers, from the configuration."""

import jax
import optax

from experiments import config as c
from experiments.parallel import Scope
from jaxnorm import linen


def normalize(
    norm: c.NormConfig,
    x: jax.Array,
    mask: jax.Array | None,
    *,
    train: bool,
    scope: Scope,
    total_steps: int,
) -> jax.Array:
    """Normalize activations (batch, height, width, channels), inside a Flax compact method."""
    everything = (1, 2, 3)
    match norm:
        case c.NoNorm():
            return x
        case c.LayerNorm():
            return linen.LayerNorm(epsilon=norm.epsilon, reduction_axes=everything)(x)
        case c.RMSNorm():
            return linen.RMSNorm(epsilon=norm.epsilon, reduction_axes=everything)(x)
        case c.GroupNorm():
            return linen.GroupNorm(num_groups=norm.num_groups, epsilon=norm.epsilon)(x)
        case c.InstanceNorm():
            return linen.InstanceNorm(epsilon=norm.epsilon)(x)
        case c.RunningNorm():
            layer = _batch_norm(norm, scope, total_steps)
            mask = None if mask is None else mask[:, None, None, None]
            return layer(x, use_running_average=not train, mask=mask)
        case _:
            raise TypeError(f"no layer for {norm!r}")


def _batch_norm(norm: c.RunningNorm, scope: Scope, total_steps: int) -> linen.BatchNorm:
    options = {
        "momentum": norm.momentum,
        "epsilon": norm.epsilon,
        "axis_name": scope.axis_name,
        "axis_index_groups": scope.axis_index_groups,
    }
    match norm:
        case c.BatchNorm() if scope.num_ghosts is None:
            return linen.BatchNorm(**options)
        case c.BatchNorm():
            return linen.GhostBatchNorm(num_ghosts=scope.num_ghosts, **options)
        case c.GhostBatchNorm():
            return linen.GhostBatchNorm(ghost_size=norm.ghost_size, **options)
        case c.BatchRenorm():
            return linen.BatchRenorm(
                r_max=_relaxation(1, norm.r_max, norm, total_steps),
                d_max=_relaxation(0, norm.d_max, norm, total_steps),
                **options,
            )
        case _:
            raise TypeError(f"no layer for {norm!r}")


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
