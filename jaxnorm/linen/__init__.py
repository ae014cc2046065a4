"""Flax Linen modules: each creates its variables and calls the function of the same name.

`BatchNorm`, `LayerNorm`, `RMSNorm`, `GroupNorm` and `InstanceNorm` take the arguments of Flax's
modules, in the same order, and make the same variables: `params` {"scale", "bias"} and
`batch_stats` {"mean", "var"}. To migrate from Flax, replace the import. Formulas, conventions and
errors are those of the functions. All modules share these arguments:

    dtype: the dtype of the result; by default the dtype that the input and the parameters promote
        to. Only the result is rounded to it.
    param_dtype: the dtype of the parameters.
    use_scale, use_bias, scale_init, bias_init: whether there is a scale and a bias, and their
        initializers.
    axis_name, axis_index_groups: mapped axes to merge statistics over; not needed in `init`.
    use_fast_variance: accepted for compatibility, without effect: the exact form is always used.
    force_float32_reductions: accepted for compatibility, without effect: statistics are computed
        and kept in float32 at least.

All calls share these arguments:

    mask: nonzero at the positions to measure; broadcasts to the input.
    scale, bias: a scale and a bias for a module that has none of its own (`use_scale=False`,
        `use_bias=False`), the same for all examples or one for each. Not in modules that scale
        inputs.
    segment_ids, num_segments: in layer, RMS, group and instance normalization, measure the rows
        (the entries along axis 0) of each segment together, instead of each example.

Statistics are kept in float32 at least. Narrower statistics, for example of a checkpoint, are
converted to float32 in each call.
"""

from jaxnorm.linen.batch import *
from jaxnorm.linen.fold import *
from jaxnorm.linen.inputs import *
from jaxnorm.linen.online import *
from jaxnorm.linen.replace import *
from jaxnorm.linen.sample import *
from jaxnorm.linen.trees import *
from jaxnorm.public import public_names as _public_names

__all__ = _public_names(globals())
