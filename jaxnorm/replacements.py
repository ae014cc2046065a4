"""Which normalization takes the place of which, for `replace_norms` of both frameworks.

Glossary:
    rule: a dict {type or path: what takes its place}, or a function of a path and a module.
    family: what a normalization measures over.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial
from typing import Any, NamedTuple

from jaxnorm import paths as _paths
from jaxnorm import shells as _shells

FAMILIES = {
    "BatchNorm": "batch",
    "OnlineNorm": "batch",
    "LayerNorm": "features",
    "RMSNorm": "features",
    "GroupNorm": "group",
    "InstanceNorm": "channel",
}
OF_FLAX = tuple(name for name in FAMILIES if name != "OnlineNorm")
Rule = Mapping[Any, Any] | Callable[[str, Any], Any]
Path = tuple[Any, ...]

_NAMED_NORM = re.compile(r"[Nn]orm(\dd)?$")
_OF_EVERY_FAMILY = {
    *("epsilon", "dtype", "param_dtype", "use_scale", "use_bias", "scale_init", "bias_init"),
    *("promote_dtype", "use_fast_variance", "force_float32_reductions"),
}
_OF_NO_OTHER = {"self", "num_features", "rngs", "parent", "name"}
_EXCLUSIVE = ({"num_groups", "group_size"}, {"num_ghosts", "ghost_size"})
_MAPPED_AXES = ("axis_name", "axis_index_groups")


class Replacement(NamedTuple):
    """A normalization of a model, and what takes its place.

    Args:
        path: of the normalization.
        norm: its class.
        measured_over: "batch", "features", "group" or "channel"; "" if that is not known.
        becomes: the class that takes its place; "" if none does.
        note: what is lost, or why the normalization stays.
    """

    path: str
    norm: str
    measured_over: str
    becomes: str
    note: str


class Replacements(list[Replacement]):
    """The normalizations of a model, and what takes their places; `str()` gives a table."""

    def __str__(self) -> str:
        rows = [tuple(name.replace("_", " ") for name in Replacement._fields), *self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)

    def staying(self) -> list[str]:
        """What a type in the rule selects but what stays, in words."""
        return [f"{row.path!r} {row.note}" for row in self if row.note and not row.becomes]


def warn(what: list[str], stacklevel: int) -> None:
    """Warn of things, of which the message lists the first."""
    if what:
        more = f"; and {len(what) - 5} more" if len(what) > 5 else ""
        message = f"replace_norms: {'; '.join(what[:5])}{more}"
        warnings.warn(message, stacklevel=stacklevel + 1)


def check_rule(rule: Any, base: type) -> None:
    """Check the keys and the values of a rule, whose classes must be derived from `base`."""
    no_function = isinstance(rule, type | partial | base) or not callable(rule)
    if no_function and not isinstance(rule, Mapping):
        raise TypeError(
            "the rule must be a dict or a function of a path and a module, got "
            f"{_given(rule, base)}; give for example "
            '{BatchNorm: GroupNorm} or {"encoder/norm": GroupNorm}'
        )
    if not isinstance(rule, Mapping):
        return
    for key, new in rule.items():
        if not isinstance(key, type | str | tuple):
            raise TypeError(f"a key of the rule must be a class or a path, got {key!r}")
        if new is not None:
            _check_replacement(new, base)


def _check_replacement(new: Any, base: type) -> None:
    """Check that what takes the place of a normalization is a class, or a partial of one."""
    kind, args = (new.func, new.args) if isinstance(new, partial) else (new, ())
    if not (isinstance(kind, type) and issubclass(kind, base)) or args:
        library = "jaxnorm.nnx" if "nnx" in base.__module__ else "jaxnorm.linen"
        raise TypeError(
            f"{_given(new, base)} cannot take the place of a normalization; give a class of "
            f"{library}, for example GroupNorm, or a functools.partial of a class and options by "
            "name, for example partial(GroupNorm, num_groups=8), or None to keep what is there"
        )


def _given(value: Any, base: type) -> str:
    return (
        f"a module of the class {type(value).__name__}" if isinstance(value, base) else repr(value)
    )


def is_norm(module: Any, rule: Rule) -> bool:
    """Whether a module is a normalization by its family, by the rule or by its name."""
    kind = type(module)
    return bool(_NAMED_NORM.search(kind.__name__) or family(kind) or _is_derived(module, rule))


def _is_derived(module: Any, rule: Rule) -> bool:
    """Whether a module is of a type in the rule, or of one derived from it."""
    keys = rule if isinstance(rule, Mapping) else ()
    return any(isinstance(key, type) and isinstance(module, key) for key in keys)


def family(kind: type) -> str:
    """What a class of Flax or jaxnorm, or one derived from it, measures over, or ""."""
    base = _base_of(kind)
    return FAMILIES[base.__name__] if base else ""


def _base_of(kind: type) -> Any:
    """The class of Flax or jaxnorm that a normalization is derived from, or None."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in ("flax", "jaxnorm") and base.__name__ in FAMILIES:
            return base
    return None


def chosen(rule: Rule, path: Path, norm: Any) -> Any:
    """What the rule has for a normalization, of a dict the first key that matches; or None."""
    if isinstance(rule, Mapping):
        return next((new for key, new in rule.items() if _matches(key, path, norm)), None)
    return rule(_paths.joined(path), norm)


def _matches(key: Any, path: Path, norm: Any) -> bool:
    """Whether a key is the type, or the path of the normalization or of a part that contains it.

    A type includes the classes derived from it, except those with a `__call__` of their own.
    """
    if isinstance(key, type):
        return isinstance(norm, key) and _call(type(norm)) is _call(key)
    part = key if isinstance(key, str) else _paths.joined(key)
    return bool(family(type(norm))) and _paths.matches(path, part)


def _call(kind: Any) -> Any:
    return getattr(kind, "__call__", None)  # noqa: B004


def check_matched(rule: Rule, norms: Iterable[tuple[Path, Any]], rows: Replacements) -> None:
    """Check that each key of a rule matches a normalization, and that a function replaces one."""
    norms = list(norms)
    known = ", ".join(f"{row.path!r} ({row.norm})" for row in rows) or "none"
    if not isinstance(rule, Mapping):
        if not any(row.becomes for row in rows):
            raise ValueError(f"the rule replaces no normalization; there are {known}")
        return
    for key in rule:
        if not any(_matches(key, path, norm) for path, norm in norms):
            what = class_name(key) if isinstance(key, type) else repr(key)
            raise ValueError(f"no normalization matches the rule's {what}; there are {known}")


def class_name(kind: type) -> str:
    """The name of a class, and the module that users import it from."""
    return f"{kind.__name__} of {_shells.library_of(kind)}"


def described(rule: Rule, path: Path, norm: Any, new: Any, base: type) -> Replacement:
    """The row of a normalization."""
    old, becomes, note = type(norm), "", ""
    if isinstance(new, base):
        becomes = class_name(type(new))
    elif new is not None:
        kind, options = kind_and_options(path, norm, new, base)
        becomes, note = class_name(kind), _losses(norm, kind, options)
    elif _stays_by_its_call(rule, path, norm):
        note = "stays, because its class has its own __call__; the rule may name that class"
    return Replacement(_paths.joined(path), class_name(old), family(old), becomes, note)


def _stays_by_its_call(rule: Rule, path: Path, norm: Any) -> bool:
    """Whether a type in the rule would match without the normalization's own `__call__`."""
    keys = rule if isinstance(rule, Mapping) else ()
    return _is_derived(norm, rule) and not any(_matches(key, path, norm) for key in keys)


def _losses(norm: Any, kind: Any, options: Mapping[str, Any]) -> str:
    """What the class does not take over from the normalization, in words."""
    old, base = type(norm), _base_of(type(norm))
    lost = []
    if family(old) == "batch" != family(kind):
        lost.append("its running statistics")
    if family(kind):
        of = [name for name in ("scale", "bias") if getattr(norm, f"use_{name}", False)]
        lost += [f"its {name}" for name in of if not options.get(f"use_{name}", False)]
    for name in _MAPPED_AXES:
        if getattr(norm, name, None) is not None and name not in options:
            lost.append(f"{name}={getattr(norm, name)!r}")
    if base and _call(old) is not _call(base):
        lost.append(f"the __call__ of {old.__name__}")
    return f"{kind.__name__} does not take over {', '.join(lost)}" if lost else ""


def kind_and_options(path: Path, norm: Any, new: Any, base: type) -> tuple[Any, dict[str, Any]]:
    """The class that takes the place of a normalization, and all its options."""
    _check_replacement(new, base)
    kind = new.func if isinstance(new, partial) else new
    given = new.keywords if isinstance(new, partial) else {}
    try:
        options = _inherited(norm, kind, given.keys()) | given
        _check_scale_offset(norm, kind, options)
    except ValueError as error:
        raise cannot_replace(path, error) from error
    return kind, options


def cannot_replace(path: Path, error: Exception) -> ValueError:
    """The error of a normalization that cannot be replaced."""
    return ValueError(f"{_paths.joined(path)!r} cannot be replaced: {error}")


def _inherited(norm: Any, kind: Any, given: Set[str]) -> dict[str, Any]:
    """The options that a class takes over from the normalization whose place it takes.

    In the same family these are all that both have; otherwise those that mean the same in every
    family, and the axes of the channels.
    """
    accepted = _accepted(kind) - given
    same = family(type(norm)) in ("", family(kind))
    names = accepted if same else accepted & _OF_EVERY_FAMILY
    for pair in _EXCLUSIVE:
        if pair & given:
            names = names - pair
    options = {name: getattr(norm, name) for name in names if hasattr(norm, name)}
    if options.get("num_groups") is not None:  # an NNX module has both
        options.pop("group_size", None)
    return options if same else options | _channel_axes(norm, kind, accepted)


def _accepted(kind: Any) -> set[str]:
    """The options of a class, including those of its bases if it passes options on."""
    names: set[str] = set()
    for base in kind.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values()
        names |= {parameter.name for parameter in parameters}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names - _OF_NO_OTHER


def _channel_axes(norm: Any, kind: Any, accepted: set[str]) -> dict[str, Any]:
    """The options of a class of another family that say where the channels are."""
    axes = getattr(norm, "axis", getattr(norm, "feature_axes", -1))
    names = {"axis", "feature_axes"} & accepted
    if family(kind) == "group" and axes not in (-1, (-1,), [-1]):
        raise ValueError(
            f"the channels are at axis {axes}, and GroupNorm has them at the last axis (-1); leave "
            "this normalization out, or transpose its input in a module of your own"
        )
    if family(kind) == "features":
        names |= {"reduction_axes"} & accepted
    return dict.fromkeys(names, axes)


def _check_scale_offset(norm: Any, kind: Any, options: Mapping[str, Any]) -> None:
    """Check that the scale means the same."""
    old, new = getattr(norm, "scale_offset", 0.0), options.get("scale_offset", 0.0)
    if old is not new and old != new:
        raise ValueError(
            f"the scale is stored less scale_offset={old}, and {kind.__name__} would read it with "
            f"scale_offset={new}; replace it by RMSNorm with the same scale_offset"
        )
