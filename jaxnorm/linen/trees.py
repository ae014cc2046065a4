"""The check that the modules of a model support the marks on their statistics."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jaxnorm import shells as _shells
from jaxnorm.linen.batch import BatchNorm
from jaxnorm.linen.inputs import InputScaling
from jaxnorm.linen.online import OnlineNorm

__all__ = ["check_marks"]


def check_marks(model: nn.Module, variables: Any, *args: Any, **options: Any) -> None:
    """Raise an error if a module ignores a mark on its statistics.

    `jaxnorm.freeze_stats` and `jaxnorm.start_recomputing` mark statistics in a tree, which does not
    say which modules they belong to. Flax's own `BatchNorm` ignores both marks. `OnlineNorm`,
    `StandardizeInputs` and `MinMaxInputs` ignore that of `start_recomputing`. The model is traced,
    not run.

    Args:
        model: the network.
        variables: the model's variables, with marked statistics in `batch_stats`.
        args, options: the other arguments of `model.apply`, for an example in training.

    Raises:
        ValueError: modules that ignore a mark; the message lists their paths.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm as jn, jaxnorm.linen as jnn
        >>> model = nn.Sequential([nn.Dense(2), jnn.BatchNorm(use_running_average=False)])
        >>> variables = model.init(jax.random.key(0), x := jnp.ones((4, 3)))
        >>> stats = jn.freeze_stats(variables["batch_stats"])
        >>> jnn.check_marks(model, {**variables, "batch_stats": stats}, x)
    """
    supporting = {"frozen": (BatchNorm, OnlineNorm, InputScaling), "recomputed": (BatchNorm,)}
    ignored = {}

    def intercepted(inner: Any, args: Any, options: Any, context: Any) -> Any:
        module = context.module
        for mark, kinds in supporting.items():
            if module.has_variable("batch_stats", mark) and not isinstance(module, kinds):
                ignored["/".join(module.path)] = (mark, type(module))
        return inner(*args, **options)

    options = {"mutable": ["batch_stats"], **options}
    with nn.intercept_methods(intercepted):
        jax.eval_shape(lambda: model.apply(variables, *args, **options))
    if ignored:
        listed = [
            f"{path!r} ({mark}; {kind.__name__} of {_shells.library_of(kind)})"
            for path, (mark, kind) in ignored.items()
        ]
        raise ValueError(
            f"modules ignore the mark on their statistics: {', '.join(listed)}; replace Flax's "
            "BatchNorm by jaxnorm.linen's, with the same arguments and variables, by hand or in "
            "the context of jaxnorm.linen.replace_norms; if others ignore it, mark only the "
            "remaining parts of the model, by their paths"
        )
