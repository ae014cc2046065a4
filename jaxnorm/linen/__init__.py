"""Flax Linen modules: thin shells that create variables and call the functions.

The five normalizations that Flax has take Flax's arguments under Flax's names, in its order, and
make Flax's variables: `params` {"scale", "bias"} and `batch_stats` {"mean", "var"}; so replacing
the import is the whole migration. Formulas, conventions and errors are the functions'. The
arguments that all modules share:

    dtype: of the result; by default what the input and the parameters promote to. Nothing is
        rounded to it before the result is.
    param_dtype: of the parameters.
    use_scale, use_bias, scale_init, bias_init: which parameters there are, and how they start.
    axis_name, axis_index_groups: mapped axes to merge statistics over; not needed in `init`.
    use_fast_variance: taken for compatibility, without effect: the exact form is always used.
    force_float32_reductions: taken for compatibility, without effect: statistics are computed and
        kept in float32 at least.

and in the call

    mask: nonzero where a position counts; broadcasts to the input.

Statistics are float32 at least: narrower ones that a checkpoint brings are widened in each call,
and the first training step keeps them so.
"""

from jaxnorm.linen.batch import *
from jaxnorm.linen.fold import *
from jaxnorm.linen.inputs import *
from jaxnorm.linen.online import *
from jaxnorm.linen.sample import *
from jaxnorm.linen.trees import *
from jaxnorm.public import public_names as _public_names

__all__ = _public_names(globals())
