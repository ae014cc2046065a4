"""Nested dicts of inputs, such as observations of several sensors.

Glossary:
    entry: one array of a nested dict of inputs, with the fit at the same keys of a nested dict of
        fits.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

import jax
from jax.typing import ArrayLike

from jaxnorm import states as _states

Inputs = ArrayLike | Mapping[str, Any]
P = ParamSpec("P")
R = TypeVar("R")
A_co = TypeVar("A_co", covariant=True)
D_co = TypeVar("D_co", covariant=True)
_OPTIONS = ("feature_axis", "where")  # of one entry or, as a dict, of each


class OfInputs(Protocol[P, A_co, D_co]):
    """The type of a function that gives one result for arrays, and another for dicts."""

    @overload
    def __call__(
        self, x: ArrayLike, fit: _states.BatchStats, *args: P.args, **options: P.kwargs
    ) -> A_co: ...

    @overload
    def __call__(
        self, x: Mapping[str, Any], fit: _states.BatchStats, *args: P.args, **options: P.kwargs
    ) -> D_co: ...


def of_inputs(
    function: Callable[Concatenate[ArrayLike, _states.BatchStats, P], jax.Array],
) -> OfInputs[P, jax.Array, dict[str, Any]]:
    """Decorate a function of an input and its fit that gives such an input, as `by_entry` does."""
    return cast(Any, by_entry(function))  # type: ignore[no-any-return]


def of_inputs_and_fit(
    function: Callable[Concatenate[ArrayLike, _states.BatchStats, P], tuple[jax.Array, Any]],
) -> OfInputs[P, tuple[jax.Array, Any], tuple[dict[str, Any], Any]]:
    """Declare that a function takes nested dicts too, since those that it calls do."""
    return cast(Any, function)  # type: ignore[no-any-return]


def by_entry(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function whose first two arguments are an input `x` and its fit, or two fits.

    Where they are nested dicts, the function is called for each entry, and the result is the nested
    dict of its results. A `feature_axis` or a `where` that is a dict has a value for each entry.
    """
    names = list(inspect.signature(function).parameters)[:2]
    other = "x" if "x" in names else names[1]
    (fit,) = set(names) - {other}

    @functools.wraps(function, assigned=(*functools.WRAPPER_ASSIGNMENTS, "__kwdefaults__"))
    def mapped(*args: Any, **options: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | options
        complete = len(args) <= 2 and given.keys() >= {*names}
        if not (complete and _is_nested(given, fit, other)):
            return function(*args, **options)
        by_key = [other, *(name for name in _OPTIONS if isinstance(given.get(name), Mapping))]
        for name in by_key:
            _check_keys(name, given[name], fit, given[fit])
        results = {}
        for key in given[fit]:
            of_entry = {name: given[name][key] for name in (fit, *by_key)}
            with naming_entry(key):
                results[key] = mapped(**given | of_entry)
        kind: Any = type(given[names[0]])
        return kind(results)

    return cast("Callable[P, R]", mapped)


@contextlib.contextmanager
def naming_entry(key: Any) -> Iterator[None]:
    """Name the entry in an error of what is done for it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.add_note(f"in the entry {key!r}")
        raise


def _is_nested(given: Mapping[str, Any], fit: str, other: str) -> bool:
    """Whether both arguments have entries, which neither may have alone."""
    of_fit = _has_fits(given[fit])
    of_other = isinstance(given[other], Mapping) if other == "x" else _has_fits(given[other])
    if of_fit and not of_other:
        raise TypeError(
            f"{fit} has a fit for each of the keys {_keys(given[fit])}, so {other} must be a dict "
            f"with these keys, got {_kind(given[other])}"
        )
    if of_other and not of_fit and isinstance(given[fit], Mapping):
        raise TypeError(
            f"{other} is a dict with the keys {_keys(given[other])}, but {fit} has no fits for "
            f"these; {_cure(given[other])}"
        )
    return of_fit


def _has_fits(fit: Any) -> bool:
    """Whether this is a dict of fits, and not one fit."""
    entries = fit.values() if isinstance(fit, Mapping) else ()
    return len(entries) > 0 and all(isinstance(entry, Mapping) for entry in entries)


def _check_keys(name: str, value: Mapping[Any, Any], fit: str, fits: Mapping[Any, Any]) -> None:
    """Check that a dict has the keys of the dict of fits."""
    if value.keys() == fits.keys():
        return
    lacking = {name: fits.keys() - value.keys(), fit: value.keys() - fits.keys()}
    said = [f"{what} lacks {_keys(keys)}" for what, keys in lacking.items() if keys]
    raise ValueError(
        f"{name} has the keys {_keys(value)}, but {fit} has the keys {_keys(fits)}: "
        f"{' and '.join(said)}; give the entries that {fit} has"
        f"{'' if name in _OPTIONS else f', or {_cure(value)}'}"
    )


def _kind(value: Any) -> str:
    """What a value is, for a message."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array of shape {shape}"


def _keys(keys: Iterable[Any]) -> list[str]:
    """Keys in an order, for a message."""
    return sorted(map(str, keys))


def _cure(keys: Iterable[Any]) -> str:
    """How to start fits for these keys, for a message."""
    widths = ", ".join(f"{key!r}: number of features" for key in _keys(keys))
    return f"start a fit for each entry, with jaxnorm.init_input_stats({{{widths}}})"
