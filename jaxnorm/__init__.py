"""jaxnorm: normalization for JAX, exact, as pure functions.

The Flax modules live in `jaxnorm.linen` and `jaxnorm.nnx`; importing `jaxnorm` imports no flax.
"""

from jaxnorm import interop as interop
from jaxnorm.batch import batch_norm, batch_renorm, ghost_batch_norm
from jaxnorm.distributed import sync_moments
from jaxnorm.fold import fold_batch_norm, fold_batch_norm_into_next
from jaxnorm.inputs import (
    init_input_stats,
    merge_input_stats,
    min_max_inputs,
    normalize_observations,
    standardize_inputs,
    update_input_stats,
)
from jaxnorm.kernels.standard import standard_primitives
from jaxnorm.online import init_online_stats, online_norm
from jaxnorm.parameters import weight_decay_mask, zero_scales
from jaxnorm.replicas import sync_batch_stats
from jaxnorm.running import init_batch_stats, init_renorm_stats
from jaxnorm.sample import group_norm, instance_norm, layer_norm, rms_norm
from jaxnorm.statistics import Moments, merge_moments, merge_moments_axis, moments
from jaxnorm.trees import (
    finish_accumulating,
    finish_recomputing,
    freeze_stats,
    start_recomputing,
)

__version__ = "0.2.0"

__all__ = [
    "Moments",
    "batch_norm",
    "batch_renorm",
    "finish_accumulating",
    "finish_recomputing",
    "fold_batch_norm",
    "fold_batch_norm_into_next",
    "freeze_stats",
    "ghost_batch_norm",
    "group_norm",
    "init_batch_stats",
    "init_input_stats",
    "init_online_stats",
    "init_renorm_stats",
    "instance_norm",
    "layer_norm",
    "merge_input_stats",
    "merge_moments",
    "merge_moments_axis",
    "min_max_inputs",
    "moments",
    "normalize_observations",
    "online_norm",
    "rms_norm",
    "standard_primitives",
    "standardize_inputs",
    "start_recomputing",
    "sync_batch_stats",
    "sync_moments",
    "update_input_stats",
    "weight_decay_mask",
    "zero_scales",
]
