"""Replacing the normalizations of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm import checks as _checks
from jaxnorm import paths as _paths
from jaxnorm import replacements as _replacements
from jaxnorm.nnx import batch, sample
from jaxnorm.replacements import Path, Replacements, Rule

__all__ = ["list_norms", "replace_norms"]

Model = TypeVar("Model", bound=nnx.Module)

_OURS = {**vars(batch), **vars(sample)}
_SAME_NAMES = {getattr(nnx, name): _OURS[name] for name in _replacements.OF_FLAX}
_DTYPES = {"param_dtype", "stats_dtype"}


def replace_norms(model: Model, rule: Rule | None = None, *, rngs: nnx.Rngs | None = None) -> Model:
    """Replace normalizations of a model, keeping parameters and options: return a new model.

    The new normalization takes over the old `scale` and `bias`, with their metadata, and the
    options that mean the same in both: `epsilon`, `dtype`, `param_dtype`, `use_scale`, `use_bias`,
    `promote_dtype` and the axes of the channels. If both measure over the batch (`BatchNorm`,
    `GhostBatchNorm`, `BatchRenorm`, `OnlineNorm`), it takes over the running statistics,
    `momentum`, `use_running_average`, `axis_name` and the mark of `freeze_stats` too; if both
    measure over the features, the groups or the channels, it also takes over `axis_name`,
    `reduction_axes` and `num_groups`. All else starts as in a new module; for example, `steps` and
    `count` are 0.

    The result is a copy, as by `nnx.clone`; the model does not change. A normalization that several
    parts of the model share has one replacement, which they share too. In a stack, as from
    `nnx.vmap`, new variables get the leading axes of the old ones. Create the optimizer after the
    replacement.

    Args:
        model: the network, or a normalization.
        rule: {type or path: replacement}, of which the first matching key applies. A type includes
            the classes derived from it, except those with a `__call__` of their own, which stay
            unless the rule names them. A path, as a tuple of keys or as a string, is that of a
            normalization or of a part of the model, for example "encoder" or `"blocks/*/norm"`; `*`
            stands for any characters. A replacement is a class, a `functools.partial` of a class
            and its options, or None to keep the old one. Instead of a dict, the rule may be a
            function of the path, as a string, and the module that returns one of these or a module.
            Without a rule, each normalization of Flax becomes the one of jaxnorm with the same
            name.
        rngs: the random keys for new parameters; by default `nnx.Rngs(0)`.

    Raises:
        TypeError: a rule that is neither a dict nor a function, or a key or a replacement of
            another type.
        ValueError: a key that matches no normalization, or a function that replaces none (the
            message lists the normalizations); options that do not fit, for example a `num_groups`
            that does not divide the channels; a normalization in a tuple; statistics that are being
            recomputed.

    Warns:
        UserWarning: values that are lost, for example the running statistics of a trained
            `BatchNorm` that becomes a `GroupNorm`; a normalization that stays because its class has
            its own `__call__`.

    Example:
        >>> from functools import partial
        >>> from flax import nnx
        >>> import jaxnorm.nnx as jnnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs))
        >>> synced = partial(jnnx.BatchNorm, axis_name="devices")
        >>> model = jnnx.replace_norms(model, {nnx.BatchNorm: synced})
        >>> model = jnnx.replace_norms(model, {"layers/1": partial(jnnx.BatchRenorm, r_max=3.0)})
        >>> print(jnnx.list_norms(model))
        path      norm                        measured over  becomes  note
        layers/1  BatchRenorm of jaxnorm.nnx  batch
        >>> print(model.layers[1].axis_name, model.layers[1].steps[...])
        devices 0
    """
    model = nnx.clone(model, graph=True)
    norms, report = _planned(model, rule)
    if rule is not None:
        _replacements.check_matched(rule, [(path, norm) for path, norm, _ in norms], report)
    rngs = nnx.Rngs(0) if rngs is None else rngs
    built = {path: _built(path, norm, new, rngs) for path, norm, new in norms if new is not None}
    _check_not_in_tuples(model, built)
    lost = [
        f"{_paths.joined(path)!r} loses its {', '.join(names)}"
        for path, norm, new in norms
        if not (new is None or isinstance(new, nnx.Module)) and (names := _lost(norm, built[path]))
    ]
    _replacements.warn(report.staying() + lost, stacklevel=2)
    replaced: Model = nnx.recursive_map(lambda p, node: built.get(p, node), model, graph=True)
    return replaced


def list_norms(model: nnx.Module, rule: Rule | None = None) -> Replacements:
    """List the normalizations of a model, and what `replace_norms` would do: return a table.

    Modules of other classes whose names end with "Norm" are listed too, without `measured_over`.
    A rule matches them by their type, not by a path.

    Args:
        model: the network; it does not change.
        rule: as for `replace_norms`; {} to replace nothing.

    Returns:
        A list of tuples (path, norm, measured_over, becomes, note), whose `str()` is a table. Those
        with `measured_over` "batch" mix the examples of a batch.

    Example:
        >>> from flax import nnx
        >>> from jaxnorm.nnx import list_norms
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Dict(a=nnx.BatchNorm(8, rngs=rngs), b=nnx.LayerNorm(8, rngs=rngs))
        >>> print(list_norms(model))
        path  norm                   measured over  becomes                   note
        a     BatchNorm of flax.nnx  batch          BatchNorm of jaxnorm.nnx
        b     LayerNorm of flax.nnx  features       LayerNorm of jaxnorm.nnx
        >>> print([row.path for row in list_norms(model) if row.measured_over == "batch"])
        ['a']
    """
    return _planned(model, rule)[1]


def _planned(
    model: nnx.Module, rule: Rule | None
) -> tuple[list[tuple[Path, Any, Any]], Replacements]:
    """The path of each normalization, the module and what takes its place; and the report."""
    rule = _SAME_NAMES if rule is None else rule
    _replacements.check_rule(rule, nnx.Module)
    norms = [
        (path, module, _replacements.chosen(rule, path, module))
        for path, module in nnx.iter_modules(model, graph=True)
        if _replacements.is_norm(module, rule)
    ]
    rows = (_replacements.described(rule, *planned, nnx.Module) for planned in norms)
    return norms, Replacements(rows)


def _built(path: Path, norm: Any, new: Any, rngs: nnx.Rngs) -> nnx.Module:
    """What takes the place of a normalization, with what it takes over."""
    if isinstance(new, nnx.Module):
        return new
    kind, options = _replacements.kind_and_options(path, norm, new, nnx.Module)
    try:
        module: nnx.Module = kind(_num_features(norm), **{"rngs": rngs} | options)
        _take_over(norm, module, cast=bool(_DTYPES & getattr(new, "keywords", {}).keys()))
    except ValueError as error:
        raise _replacements.cannot_replace(path, error) from error
    return module


def _num_features(norm: Any) -> int:
    """The number of channels, which Flax's `GroupNorm` does not keep."""
    if hasattr(norm, "num_features"):
        return int(norm.num_features)
    if hasattr(norm, "num_groups"):
        return int(norm.num_groups * norm.group_size)
    raise ValueError(
        f"{type(norm).__name__} does not say its num_features; give a function of the path and the "
        "module that returns a new module"
    )


def _take_over(norm: Any, module: Any, *, cast: bool) -> None:
    """Give a new module the old variables that mean the same, in its dtypes if `cast`."""
    if hasattr(norm, "recomputed"):
        raise ValueError("its statistics are being recomputed; call finish_recomputing first")
    families = {_replacements.family(type(each)) for each in (norm, module)}
    old, new = _variables(norm), _variables(module)
    if unknown := old.keys() - new.keys() if "" in families else ():
        raise ValueError(
            f"{type(module).__name__} has no {sorted(unknown)}, which {type(norm).__name__} has; "
            "give a function of the path and the module that returns a new module"
        )
    names = new.keys() & old.keys()
    kept = names if len(families - {""}) < 2 else names & {"scale", "bias"}
    leading = _leading_axes(old, _num_features(norm))
    for name, variable in new.items():
        shape = (*leading, *variable.shape)
        if name not in kept or old[name].shape != shape:
            variable.set_value(jnp.broadcast_to(variable[...], shape))
            continue
        if cast:
            old[name].set_value(old[name][...].astype(variable.dtype))
        setattr(module, name, old[name])
    if hasattr(norm, "frozen") and hasattr(module, "frozen"):
        module.frozen = norm.frozen


def _variables(norm: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(norm).items() if isinstance(value, nnx.Variable)}


def _lost(norm: Any, module: nnx.Module) -> list[str]:
    """The old variables that the new module does not have and that are not as in a new one."""
    return [
        name
        for name, variable in _variables(norm).items()
        if getattr(module, name, None) is not variable and not _is_initial(name, variable[...])
    ]


def _is_initial(name: str, value: Any) -> bool:
    """Whether a value is known to be that of a new module."""
    if not isinstance(value, jax.Array):  # a shape
        return True
    initial = 1 if name in ("scale", "var") else 0
    return not _checks.is_traced(value) and bool((value == initial).all())


def _leading_axes(variables: Mapping[str, Any], features: int) -> tuple[int, ...]:
    """The axes that `nnx.vmap` gave the variables of a stack, which must be the first."""
    shapes = [variables[name].shape for name in ("scale", "bias", "mean") if name in variables]
    if not shapes:
        return ()
    if any(shape[-1:] != (features,) or shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"its variables have the shapes {shapes}, and a stack must have its axes before the "
            f"{features} features: nnx.vmap with out_axes=0"
        )
    return tuple(shapes[0][:-1])


def _check_not_in_tuples(model: nnx.Module, built: Mapping[Path, Any]) -> None:
    """Check that no tuple contains what is replaced."""
    tuples = [path for path, node in nnx.iter_graph(model, graph=True) if isinstance(node, tuple)]
    for path in built:
        if path[:-1] in tuples:
            raise ValueError(
                f"{_paths.joined(path)!r} is in a tuple, which cannot change; make it an nnx.List"
            )
