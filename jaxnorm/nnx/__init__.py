"""Flax NNX modules: each creates its variables and calls the function of the same name.

`BatchNorm`, `LayerNorm`, `RMSNorm`, `GroupNorm` and `InstanceNorm` take the arguments of Flax's
modules and make the same variables: `scale` and `bias` (`nnx.Param`), `mean` and `var`
(`nnx.BatchStat`). To migrate from Flax, replace the import. Formulas, conventions and errors are
those of the functions. All modules share these arguments:

    num_features: the size of the scale and the bias: the number of channels or, for several feature
        axes, the product of their sizes.
    dtype: the dtype of the result; by default the dtype that the input and the variables promote
        to. Only the result is rounded to it.
    param_dtype: the dtype of the parameters.
    use_scale, use_bias, scale_init, bias_init: whether there is a scale and a bias, and their
        initializers.
    scale_metadata, bias_metadata: metadata of the `nnx.Param`, for example its sharding.
    axis_name, axis_index_groups: mapped axes to merge statistics over.
    use_fast_variance: accepted for compatibility, without effect: the exact form is always used.
    promote_dtype: a function of the input and the variables, called as
        `promote_dtype((x, ...), dtype=dtype)`, whose results replace them. Flax's own function, the
        default, would round them, so it determines only the dtype of the result.
    rngs: the random keys for the initializers of the parameters.

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

from jaxnorm.nnx.batch import *
from jaxnorm.nnx.fold import *
from jaxnorm.nnx.inputs import *
from jaxnorm.nnx.online import *
from jaxnorm.nnx.replace import *
from jaxnorm.nnx.sample import *
from jaxnorm.nnx.trees import *
from jaxnorm.public import public_names as _public_names

__all__ = _public_names(globals())
