"""Flax NNX modules, which create variables and call the functions.

The five normalizations that NNX has too take NNX's arguments under NNX's names and make NNX's
variables: `nnx.Param` `scale` and `bias`, `nnx.BatchStat` `mean` and `var`. So to migrate, it is
enough to replace the import. Formulas, conventions and errors are those of the functions. All
modules share these arguments:

    num_features: the number of values of the scale and the bias, which for several feature axes is
        the product of their sizes.
    dtype: of the result; by default the dtype that the input and the variables promote to. Only the
        result is rounded to it.
    param_dtype: of the parameters.
    use_scale, use_bias, scale_init, bias_init: whether there is a scale and a bias, and their
        initializers.
    scale_metadata, bias_metadata: of their `nnx.Param`, for example its sharding.
    axis_name, axis_index_groups: mapped axes to merge statistics over.
    use_fast_variance: accepted for compatibility, without effect: the exact form is always used.
    promote_dtype: a function of the input and the variables, called as
        `promote_dtype((x, ...), dtype=dtype)`, whose results replace them. Flax's own function, the
        default, would round them, so it determines only the dtype of the result.
    rngs: the keys of the parameters.

All calls share these arguments:

    mask: nonzero where a position counts; broadcasts to the input.
    scale, bias: of the normalizations, in the place of parameters that the module does not have;
        also by example.
    segment_ids, num_segments: of layer, RMS, group and instance normalization, to measure each
        segment of the entries along axis 0 by itself.

Statistics are float32 at least: narrower statistics of a checkpoint are converted to float32 in
each call, and training keeps them in float32.
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
