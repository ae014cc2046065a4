"""Marked statistics of whole models."""

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
    """Raise an error where statistics are marked and their module does not heed the mark.

    `jaxnorm.freeze_stats` and `jaxnorm.start_recomputing` mark a tree, which does not tell whose
    statistics it holds: those of Flax's own `BatchNorm` go on moving as if nothing were marked, and
    `OnlineNorm` and fits to inputs are not recomputed. The model is traced on shapes alone.

    Args:
        model: the network.
        variables: with marked statistics in `batch_stats`.
        args, options: of `model.apply`, an example in training.

    Raises:
        ValueError: marks that are not heeded; the message lists their paths.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm as jn, jaxnorm.linen as jnn
        >>> model = nn.Sequential([nn.Dense(2), jnn.BatchNorm(use_running_average=False)])
        >>> variables = model.init(jax.random.key(0), x := jnp.ones((4, 3)))
        >>> stats = jn.freeze_stats(variables["batch_stats"])
        >>> jnn.check_marks(model, {**variables, "batch_stats": stats}, x)
    """
    heeding = {"frozen": (BatchNorm, OnlineNorm, InputScaling), "recomputed": (BatchNorm,)}
    unheeded = {}

    def intercepted(inner: Any, args: Any, options: Any, context: Any) -> Any:
        module = context.module
        for mark, kinds in heeding.items():
            if module.has_variable("batch_stats", mark) and not isinstance(module, kinds):
                unheeded["/".join(module.path)] = (mark, type(module))
        return inner(*args, **options)

    options = {"mutable": ["batch_stats"], **options}
    with nn.intercept_methods(intercepted):
        jax.eval_shape(lambda: model.apply(variables, *args, **options))
    if unheeded:
        listed = [
            f"{path!r} ({mark}; {kind.__name__} of {_shells.library_of(kind)})"
            for path, (mark, kind) in unheeded.items()
        ]
        raise ValueError(
            f"statistics are marked that do not heed it: {', '.join(listed)}; jaxnorm.linen's "
            "BatchNorm takes the place of Flax's with the same arguments and variables; of what "
            "cannot be marked name the other parts alone"
        )
