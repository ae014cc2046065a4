"""Freezing and recomputing the running statistics of whole models."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from flax import nnx
from jax.typing import ArrayLike

from jaxnorm import checks as _checks
from jaxnorm import paths as _paths
from jaxnorm import running as _running
from jaxnorm import shells as _shells
from jaxnorm import trees as _trees
from jaxnorm.nnx.batch import BatchNorm
from jaxnorm.nnx.inputs import InputScaling
from jaxnorm.nnx.online import OnlineNorm
from jaxnorm.nnx.variables import Stateful, assign, values_of, variables_of

__all__ = ["finish_accumulating", "finish_recomputing", "freeze_stats", "start_recomputing"]

_EXCHANGE = "whose place jaxnorm.nnx.BatchNorm takes with the same arguments and variables"


def freeze_stats(model: nnx.Module, *parts: str, frozen: bool = True) -> None:
    """Use the running statistics and leave them as they are in training too, as in evaluation.

    It sets the attribute `frozen` of every `BatchNorm` and kin, and of every fit to inputs, in the
    named parts, which `train()` and `eval()` do not touch. The parameters go on learning; stop
    those in the optimizer.

    Args:
        model: changed in place, as by `train()` and `eval()`.
        parts: paths of normalizations, or of what holds them, as in "encoder/block_0"; `*` stands
            for any characters. All where none is given.
        frozen: False makes them move again.

    Raises:
        ValueError: a part with no `BatchNorm` in it; the message lists those that there are.

    Warns:
        UserWarning: a `BatchNorm` of Flax in the parts, whose statistics go on moving.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import BatchNorm, freeze_stats
        >>> model = nnx.Dict(encoder=BatchNorm(1, rngs=nnx.Rngs(0)))
        >>> freeze_stats(model, "encoder")
        >>> print(model.encoder(jnp.ones((2, 1)))[:, 0].round(3), model.encoder.mean[...])
        [1. 1.] [0.]
    """
    norms = _named(model, parts, (BatchNorm, OnlineNorm, InputScaling))
    for norm in norms.values():
        norm.frozen = frozen
    if frozen:
        _warn_of_flaxs("freeze_stats", model, parts)


def start_recomputing(model: nnx.Module, *parts: str) -> None:
    """Merge all that training sees in new statistics beside the running ones, which stay.

    As `jaxnorm.start_recomputing`, in the model: every `BatchNorm` and kin in the named parts takes
    an attribute `recomputed` with `nnx.BatchStat` `count`, `mean` and `var`, and its momentum does
    not matter until `finish_recomputing`.

    Args:
        model: changed in place; a compiled step is compiled once more.
        parts: paths of normalizations, or of what holds them; all where none is given.

    Raises:
        ValueError: statistics that are being recomputed already; a part with no `BatchNorm` in it.

    Warns:
        UserWarning: a `BatchNorm` of Flax in the parts, whose statistics are not recomputed.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import BatchNorm, finish_recomputing, start_recomputing
        >>> model = nnx.Dict(norm=BatchNorm(1, rngs=nnx.Rngs(0)))
        >>> start_recomputing(model)
        >>> for batch in jnp.array([[1.0], [3.0]]), jnp.array([[8.0]] * 6):
        ...     y = model.norm(batch)
        >>> finish_recomputing(model)
        >>> print(model.norm.mean[...], model.norm.var[...])
        [6.5] [7.]
    """
    for norm in _named(model, parts).values():
        new = _running.started(_stats_of(norm))["recomputed"]
        norm.recomputed = nnx.Dict({key: nnx.BatchStat(value) for key, value in new.items()})
    _warn_of_flaxs("start_recomputing", model, parts)


def finish_recomputing(model: nnx.Module, *parts: str) -> None:
    """Put the recomputed statistics in the place of the running ones, where anything counted.

    As `jaxnorm.finish_recomputing`, in the model, with its warning.

    Args:
        model: changed in place.
        parts: paths of what is being recomputed; all of it where none is given.

    Raises:
        ValueError: a part in which nothing is being recomputed.

    There is an example in `start_recomputing`.
    """
    _finish(model, parts, _running.replaced)


def finish_accumulating(model: nnx.Module, *parts: str, momentum: ArrayLike | None = 0.99) -> None:
    """Update the running statistics once, by all that was seen since `start_recomputing`.

    As `jaxnorm.finish_accumulating`, in the model, with its warning.

    Args:
        model: changed in place.
        parts: paths of what is being recomputed; all of it where none is given.
        momentum: the weight of the old value, as that of the normalizations; None merges exactly.

    Raises:
        ValueError: a part in which nothing is being recomputed; a momentum outside [0, 1], or None
            for statistics without a count.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import BatchNorm, finish_accumulating, start_recomputing
        >>> model = nnx.Dict(norm=BatchNorm(1, rngs=nnx.Rngs(0)))
        >>> start_recomputing(model)
        >>> for micro_batch in jnp.array([[[1.0], [3.0]], [[8.0], [8.0]]]):
        ...     y = model.norm(micro_batch)
        >>> finish_accumulating(model, momentum=0.5)
        >>> print(model.norm.mean[...])
        [2.5]
    """
    _checks.check_momentum(momentum)
    _finish(model, parts, partial(_running.accumulated, momentum=momentum))


def _finish(model: nnx.Module, parts: Sequence[str], change: Callable[[Any], Any]) -> None:
    unseen = []
    for path, norm in _named(model, parts, recomputed=True).items():
        old = _stats_of(norm)
        if not norm.frozen and _trees.saw_nothing(old):
            unseen.append(path)
        new = change(old)
        del norm.recomputed
        assign(variables_of(norm), new)
    _trees.warn_of_nothing_seen(unseen)


def _stats_of(norm: Stateful) -> Any:
    """The statistics, in float32 at least."""
    return _shells.as_float32_at_least(values_of(variables_of(norm)))


def _named(
    model: nnx.Module, parts: Sequence[str], kinds: Any = BatchNorm, *, recomputed: bool = False
) -> dict[Any, Any]:
    """Every module of the kinds and their kin in the parts, by path."""
    norms, others = {}, {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, kinds) and (hasattr(module, "recomputed") or not recomputed):
            norms[path] = module
        elif path[-1:] != ("recomputed",) and _keeps_statistics(module):
            others[path] = _described(module)
    what = _trees.RECOMPUTED if recomputed else "BatchNorm of jaxnorm.nnx"
    _paths.check_found(parts or ("*",), list(norms), what, others)
    return {path: norm for path, norm in norms.items() if _in_parts(path, parts)}


def _in_parts(path: Sequence[Any], parts: Sequence[str]) -> bool:
    return any(_paths.matches(path, part) for part in parts or ("*",))


def _keeps_statistics(module: nnx.Module) -> bool:
    return any(isinstance(variable, nnx.BatchStat) for variable in vars(module).values())


def _described(module: nnx.Module) -> str:
    """The class of a module, and of Flax's what takes its place."""
    kind = type(module)
    if isinstance(module, nnx.BatchNorm):
        return f"{kind.__name__} of flax.nnx, {_EXCHANGE}"
    return f"{kind.__name__} of {_shells.library_of(kind)}"


def _warn_of_flaxs(function: str, model: nnx.Module, parts: Sequence[str]) -> None:
    """Statistics in the parts that go on moving, as they are Flax's own."""
    names = [
        _paths.joined(path)
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.BatchNorm) and _in_parts(path, parts)
    ]
    if names:
        warnings.warn(
            f"{function} does not reach {names}, whose statistics go on moving: each is a "
            f"BatchNorm of flax.nnx, {_EXCHANGE}",
            stacklevel=3,
        )
