"""Flax Linen modules, which create variables and call the functions.

The five normalizations that Flax has too take Flax's arguments under Flax's names, in its order,
and make Flax's variables: `params` {"scale", "bias"} and `batch_stats` {"mean", "var"}. So to
migrate, it is enough to replace the import. Formulas, conventions and errors are those of the
functions. All modules share these arguments:

    dtype: of the result; by default the dtype that the input and the parameters promote to. Only
        the result is rounded to it.
    param_dtype: of the parameters.
    use_scale, use_bias, scale_init, bias_init: whether there is a scale and a bias, and their
        initializers.
    axis_name, axis_index_groups: mapped axes to merge statistics over; not needed in `init`.
    use_fast_variance: accepted for compatibility, without effect: the exact form is always used.
    force_float32_reductions: accepted for compatibility, without effect: statistics are computed
        and kept in float32 at least.

All calls share these arguments:

    mask: nonzero where a position counts; broadcasts to the input.
    scale, bias: of the normalizations, in the place of parameters that the module does not have;
        also by example.
    segment_ids, num_segments: of layer, RMS, group and instance normalization, to measure each
        segment of the entries along axis 0 by itself.

Statistics are float32 at least: narrower statistics of a checkpoint are converted to float32 in
each call, and training keeps them in float32.
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
