"""Freezing, recomputing and diagnosing the running statistics of models."""

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
from jaxnorm.diagnose import check_any, diagnosed, statistics_by_path
from jaxnorm.diagnosis import Diagnosis
from jaxnorm.nnx.batch import BatchNorm
from jaxnorm.nnx.inputs import InputScaling
from jaxnorm.nnx.online import ControlState, OnlineNorm
from jaxnorm.nnx.variables import Stateful, assign, values_of, variables_of

__all__ = [
    "diagnose",
    "finish_accumulating",
    "finish_recomputing",
    "freeze_stats",
    "start_recomputing",
]

_REPLACE = (
    "which jaxnorm.nnx.BatchNorm replaces with the same arguments and variables, by hand or by "
    "jaxnorm.nnx.replace_norms"
)


def freeze_stats(model: nnx.Module, *parts: str, frozen: bool = True) -> None:
    """Freeze running statistics: training uses them and does not update them, like evaluation.

    This function sets the attribute `frozen` of every `BatchNorm` (including subclasses),
    `OnlineNorm`, `StandardizeInputs` and `MinMaxInputs` in the named parts; `train()` and `eval()`
    do not change this attribute. The parameters are still trained; to freeze them, use the
    optimizer.

    Args:
        model: changed in place, as by `train()` and `eval()`.
        parts: paths of normalizations, or of parts of the model that contain them, for example
            "encoder/block_0"; `*` stands for any characters. Without any, the whole model.
        frozen: False lets training update them again.

    Raises:
        ValueError: a part without such a module; the message lists the paths of all of them.

    Warns:
        UserWarning: a `BatchNorm` of Flax in the parts, whose statistics training still updates.

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
        _warn_of_flax_batch_norm("freeze_stats", model, parts)


def start_recomputing(model: nnx.Module, *parts: str) -> None:
    """Start recomputing running statistics: new ones, beside the old ones, merge all batches.

    This is `jaxnorm.start_recomputing` for NNX models. Every `BatchNorm` (including
    subclasses) in the named parts gets an attribute `recomputed` with the `nnx.BatchStat` variables
    `count`, `mean` and `var`, and its momentum has no effect until `finish_recomputing`.

    Args:
        model: changed in place; a jitted step is compiled again.
        parts: paths of normalizations, or of parts of the model that contain them; without any, the
            whole model.

    Raises:
        ValueError: statistics that are being recomputed already; a part without a `BatchNorm`.

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
        new = _running.start_recomputing(_stats_of(norm))["recomputed"]
        norm.recomputed = nnx.Dict({key: nnx.BatchStat(value) for key, value in new.items()})
    _warn_of_flax_batch_norm("start_recomputing", model, parts)


def finish_recomputing(model: nnx.Module, *parts: str) -> None:
    """Replace the running statistics by the recomputed ones.

    This is `jaxnorm.finish_recomputing` for NNX models. Statistics that no value has entered since
    `start_recomputing` are not replaced.

    Args:
        model: changed in place.
        parts: paths of normalizations that are being recomputed, or of parts of the model that
            contain them. Without any, the whole model.

    Raises:
        ValueError: a part in which nothing is being recomputed.

    Warns:
        UserWarning: statistics that no value has entered; the message names them.

    `start_recomputing` has an example.
    """
    _finish(model, parts, _running.replace_by_recomputed)


def finish_accumulating(model: nnx.Module, *parts: str, momentum: ArrayLike | None = 0.99) -> None:
    """Update the running statistics once, exactly, after a step of several micro-batches.

    This is `jaxnorm.finish_accumulating` for NNX models. Call `start_recomputing` before the
    micro-batches. Statistics that no value has entered since then are not updated.

    Args:
        model: changed in place.
        parts: paths of normalizations that are being recomputed, or of parts of the model that
            contain them. Without any, the whole model.
        momentum: the weight of the old value, as for the normalizations; None merges exactly.

    Raises:
        ValueError: a part in which nothing is being recomputed; a momentum outside [0, 1], or None
            for statistics without a count.

    Warns:
        UserWarning: statistics that no value has entered; the message names them.

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
    _finish(model, parts, partial(_running.accumulate, momentum=momentum))


def diagnose(
    model: nnx.Module,
    measured: Any = None,
    *,
    steps: ArrayLike | None = None,
    batch_values: ArrayLike | None = None,
) -> Diagnosis:
    """Say what is wrong with running statistics: why a model is good in training and bad in use.

    This is `jaxnorm.diagnose` for NNX models. It looks at every module that has a `mean` and a
    `var` in `nnx.BatchStat`, Flax's own `BatchNorm` too, with the momentum and the epsilon of each.

    Args:
        model: the model after training.
        measured: the statistics of the present data at the present weights, to compare with. Give a
            copy of the model, best after `start_recomputing` and a pass over some hundred examples
            or more; or its statistics as an `nnx.State` or as nested dicts; or `Moments` by path,
            such as `{"layers/1": jaxnorm.moments(x, 0)}`.
        steps, batch_values: as for `jaxnorm.diagnose`.

    Raises:
        TypeError: statistics that are traced.
        ValueError: a model without statistics, measured statistics of another model.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm.nnx import BatchNorm, diagnose, start_recomputing
        >>> model = nnx.Dict(norm=BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0)))
        >>> for _ in range(100):
        ...     y = model.norm(jnp.linspace(0.0, 1.0, 64)[:, None])
        >>> start_recomputing(measured := nnx.clone(model))
        >>> y = measured.norm(jnp.linspace(2.0, 3.0, 64)[:, None])
        >>> report = diagnose(model, measured, steps=100)
        >>> [(row.name, row.finding, round(row.figure, 1)) for row in report.rows]
        [('norm', 'mean_off', 6.8)]
    """
    modules, others = _with_statistics(model)
    check_any(modules, others, "model", "diagnose looks at these in nnx.BatchStat")
    if isinstance(measured, nnx.Module):
        among: Any = {path: _marked(one) for path, one in _with_statistics(measured)[0].items()}
    elif measured is not None:
        tree = nnx.to_pure_dict(measured) if isinstance(measured, nnx.State) else measured
        among = statistics_by_path(tree)[0]
    else:
        among = None
    return diagnosed(
        {path: _marked(module) for path, module in modules.items()},
        {path: _options(module) for path, module in modules.items()},
        among,
        others,
        steps=steps,
        batch_values=batch_values,
    )


def _with_statistics(model: nnx.Module) -> tuple[dict[Any, Any], dict[Any, str]]:
    """The modules with a mean and a variance, and descriptions of others, by path."""
    modules: dict[Any, Any] = {}
    others: dict[Any, str] = {}
    module: Any
    for path, module in nnx.iter_modules(model):
        if path[-1:] != ("recomputed",) and _keeps_statistics(module):
            if variables_of(module).keys() >= _trees.STATS:
                modules[path] = module
            else:
                others[path] = _described(module)
    return modules, others


def _marked(module: Any) -> dict[str, Any]:
    """The statistics of a module, with the mark of frozen ones, as a tree has them."""
    stats = values_of(variables_of(module, (nnx.BatchStat, ControlState)))
    return {**stats, **({"frozen": None} if getattr(module, "frozen", False) else {})}


def _options(module: Any) -> dict[str, Any]:
    """The options of a module that its statistics depend on; fits to inputs have none."""
    return {"momentum": getattr(module, "momentum", None), "epsilon": getattr(module, "epsilon", 0)}


def _finish(model: nnx.Module, parts: Sequence[str], change: Callable[[Any], Any]) -> None:
    """Apply `change` to the statistics that are recomputed, and warn where the count is 0."""
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
    """Every module of the kinds, or of subclasses of them, in the named parts, by path."""
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
    """Whether a path lies in one of the parts; without any, in the whole model."""
    return any(_paths.matches(path, part) for part in parts or ("*",))


def _keeps_statistics(module: nnx.Module) -> bool:
    """Whether a module has an `nnx.BatchStat`."""
    return any(isinstance(variable, nnx.BatchStat) for variable in vars(module).values())


def _described(module: nnx.Module) -> str:
    """The class of a module and, for Flax's `BatchNorm`, what replaces it."""
    kind = type(module)
    if isinstance(module, nnx.BatchNorm):
        return f"{kind.__name__} of flax.nnx, {_REPLACE}"
    return f"{kind.__name__} of {_shells.library_of(kind)}"


def _warn_of_flax_batch_norm(function: str, model: nnx.Module, parts: Sequence[str]) -> None:
    """Warn of a `BatchNorm` of Flax in the parts, whose statistics training still updates."""
    names = [
        _paths.joined(path)
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.BatchNorm) and _in_parts(path, parts)
    ]
    if names:
        warnings.warn(
            f"{function} does not affect {names}, whose statistics training still updates: each is "
            f"a BatchNorm of flax.nnx, {_REPLACE}",
            stacklevel=3,
        )
