"""jaxnorm: normalization for JAX, exact, as pure functions.

The Flax modules live in `jaxnorm.linen`; importing `jaxnorm` does not import flax.
"""

from jaxnorm.batch import batch_norm, batch_renorm, ghost_batch_norm
from jaxnorm.distributed import sync_moments
from jaxnorm.running import init_batch_stats, init_renorm_stats
from jaxnorm.sample import group_norm, instance_norm, layer_norm, rms_norm
from jaxnorm.statistics import Moments, merge_moments, merge_moments_axis, moments

__version__ = "0.1.0"

__all__ = [
    "Moments",
    "batch_norm",
    "batch_renorm",
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
    "sync_moments",
]
