"""Every function of the library as a function of its input alone."""

import jax
import jax.numpy as jnp
import numpy as np
from cases import NORMS, STATEFUL, every_norm, fresh, normals

import jaxnorm as jn

X = normals(4, 3, 6, mean=1.0)
WHERE = np.ones((4, 3, 1), bool)
WHERE[1, 2] = False
FIT = jn.init_input_stats(6)  # with infinite bounds, which debug_infs does not let in
FUNCTIONS = (*every_norm, "evaluation", "cumulative", "online", "moments", "inputs", "range")


def function(name, where=None):
    """Give a function of x alone."""

    def call(x):
        if name == "evaluation":
            return jn.batch_norm(x, jn.init_batch_stats(6), train=False, where=where)[0]
        if name == "cumulative":
            stats = jn.init_batch_stats(6, momentum=None)
            return jn.batch_norm(x, stats, train=True, momentum=None, where=where)[0]
        if name == "online":
            return jn.online_norm(x, jn.init_online_stats(6), train=True, where=where)[0]
        if name == "moments":
            return jn.moments(x, 1, where=where).var
        if name in ("inputs", "range"):
            fit = jn.update_input_stats(FIT, x, where=where)
            scale = jn.standardize_inputs if name == "inputs" else jn.min_max_inputs
            return scale(x, fit, where=where)
        stats = (fresh(name, 6),) if name in STATEFUL else ()
        y = NORMS[name].function(x, *stats, **NORMS[name].options, where=where)
        return y[0] if stats else y

    return call


def gradient(call):
    """Give the gradient of the sum of squares."""
    return jax.grad(lambda x: jnp.sum(call(x) ** 2))
