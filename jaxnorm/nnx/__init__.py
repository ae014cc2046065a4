"""Flax NNX modules: thin shells that create variables and call the functions.

The five normalizations that NNX has take NNX's arguments under NNX's names and make NNX's
variables: `nnx.Param` `scale` and `bias`, `nnx.BatchStat` `mean` and `var`; so replacing the import
is the whole migration. Formulas, conventions and errors are the functions'. The arguments that all
modules share:

    num_features: how many values the scale and the bias have: of several feature axes, their
        product.
    dtype: of the result; by default what the input and the variables promote to. Nothing is rounded
        to it before the result is.
    param_dtype: of the parameters.
    use_scale, use_bias, scale_init, bias_init: which parameters there are, and how they start.
    scale_metadata, bias_metadata: of their `nnx.Param`, for example its sharding.
    axis_name, axis_index_groups: mapped axes to merge statistics over.
    use_fast_variance: taken for compatibility, without effect: the exact form is always used.
    promote_dtype: a function of the input and the variables, called as
        `promote_dtype((x, ...), dtype=dtype)`, whose results are used in their place. Flax's own,
        the default, would round them: of it only the dtype of the result is taken.
    rngs: the keys of the parameters.

and in the call

    mask: nonzero where a position counts; broadcasts to the input.

Statistics are float32 at least: narrower ones that a checkpoint brings are widened in each call,
and the first training step keeps them so.
"""

from jaxnorm.nnx.batch import *
from jaxnorm.nnx.fold import *
from jaxnorm.nnx.inputs import *
from jaxnorm.nnx.online import *
from jaxnorm.nnx.sample import *
from jaxnorm.nnx.trees import *
from jaxnorm.public import public_names as _public_names

__all__ = _public_names(globals())
