"""jaxnorm: normalization for JAX, exact, as pure functions.

The Flax modules live in `jaxnorm.linen` and `jaxnorm.nnx`; importing `jaxnorm` imports no flax.
"""

from jaxnorm.batch import batch_norm, batch_renorm, ghost_batch_norm
from jaxnorm.distributed import sync_moments
from jaxnorm.recipes import freeze_stats, sync_batch_stats, weight_decay_mask, zero_scales
from jaxnorm.running import init_batch_stats, init_renorm_stats
from jaxnorm.sample import group_norm, instance_norm, layer_norm, rms_norm
from jaxnorm.statistics import Moments, merge_moments, merge_moments_axis, moments

__version__ = "0.2.0"

__all__ = [
    "Moments",
    "batch_norm",
    "batch_renorm",
    "freeze_stats",
    "ghost_batch_norm",
    "group_norm",
    "init_batch_stats",
    "init_renorm_stats",
    "instance_norm",
    "layer_norm",
    "merge_moments",
    "merge_moments_axis",
    "moments",
    "rms_norm",
    "sync_batch_stats",
    "sync_moments",
    "weight_decay_mask",
    "zero_scales",
]
