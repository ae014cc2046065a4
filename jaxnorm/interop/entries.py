"""Reading and checking of named arrays, which the files of all libraries share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = dict[str, Array]
Converted: TypeAlias = tuple[Arrays, Arrays, dict[str, Any]]

PARAMS = ("scale", "bias")
STATS = ("mean", "var")
COUNTS = ("count", "steps")
MARK = "frozen"  # the mark of jaxnorm.freeze_stats, which no other library has
_DEBIASED = 2**30  # steps after which the initial value has no weight, for any decay


def check_mapping(name: str, value: Any) -> None:
    """Check for a dict of named arrays."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict of named arrays, got {type(value).__name__}")


def as_array(name: str, value: Any) -> Array:
    """Return a NumPy copy of floating-point or complex numbers."""
    array = _copied(name, value)
    if array.dtype.kind not in "fcV" or array.dtype.names:  # V: bfloat16 and similar dtypes
        raise TypeError(f"{name} must hold floating-point numbers, got {array.dtype}")
    return array


def as_counter(name: str, value: Any, dtype: Any) -> Array:
    """Return an integer that is not negative as an array of `dtype`, which must hold it."""
    array = _copied(name, value)
    if array.dtype.kind not in "iu" or array.size != 1:
        raise TypeError(
            f"{name} must be one integer, got {array.dtype} of shape {array.shape}: {value!r}"
        )
    if not 0 <= int(array.item()) <= np.iinfo(dtype).max:
        raise ValueError(
            f"{name} must be in [0, {np.iinfo(dtype).max}], which {np.dtype(dtype).name} can hold, "
            f"got {array.item()}"
        )
    return array.reshape(()).astype(dtype)


def _copied(name: str, value: Any) -> Array:
    """Return a NumPy copy."""
    try:
        return np.asarray(value).copy()
    except (TypeError, RuntimeError, ValueError) as error:
        raise TypeError(
            f"{name} cannot be converted to a NumPy array: {str(error).rstrip('.')}. Give "
            "arrays, or tensors as tensor.detach().cpu().numpy(), or bfloat16 tensors, which "
            "PyTorch cannot convert to NumPy, as tensor.detach().cpu().float().numpy()"
        ) from error


def layer(
    entries: Mapping[str, Any], prefix: str, names: Sequence[str], separator: str
) -> dict[str, Any]:
    """The entries of the layer at `prefix`, by the library's own names."""
    check_mapping("the weights", entries)
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a string, got {prefix!r}")
    start = prefix + separator if prefix else ""
    inside = {key[len(start) :]: entries[key] for key in entries if key.startswith(start)}
    others = [key for key in inside if key not in names]
    if inside and not others:
        return inside
    held = f"{others[:5]}{' ...' if len(others) > 5 else ''}" if inside else "nothing"
    raise ValueError(
        f"the prefix {prefix!r} is not that of a normalization, which has entries among "
        f"{list(names)}: it holds {held}; normalizations are at "
        + listed(normalizations(entries, names, separator), groups(entries, separator))
    )


def normalizations(entries: Mapping[str, Any], names: Sequence[str], separator: str) -> list[str]:
    """The prefixes of normalizations, which have only vectors under these names."""
    by_prefix = groups(entries, separator)
    return [prefix for prefix, group in by_prefix.items() if _looks_right(group, names)]


def groups(entries: Mapping[str, Any], separator: str) -> dict[str, dict[str, Any]]:
    """The entries of each prefix, by name."""
    by_prefix: dict[str, dict[str, Any]] = {}
    for key, value in entries.items():
        prefix, _, name = str(key).rpartition(separator)
        by_prefix.setdefault(prefix, {})[name] = value
    return by_prefix


def listed(found: Sequence[str], others: Mapping[str, Mapping[str, Any]]) -> str:
    """The prefixes of normalizations, for messages; without any, the prefixes of other layers."""
    if found or not others:
        return str(list(found))
    layers = [f"{prefix!r} (with {', '.join(map(str, own))})" for prefix, own in others.items()]
    return f"[]; others are {', '.join(layers[:5])}{' ...' if layers[5:] else ''}"


def _looks_right(group: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether entries are vectors of one shape under these names only, beside scalars."""
    shapes = {tuple(getattr(value, "shape", ())) for value in group.values()} - {()}
    return group.keys() <= set(names) and len(shapes) == 1 and len(shapes.pop()) == 1


def check_all_there(prefix: str, own: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Check that no needed entry is missing."""
    missing = [name for name in needed if name not in own]
    if missing:
        raise ValueError(f"the layer at {prefix!r} lacks {missing}; it has {sorted(own)}")


def check_shapes(arrays: Mapping[str, Array]) -> None:
    """Check that all arrays have the same shape."""
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the arrays of a normalization must have the same shape, got {shapes}")


def ours(own: Mapping[str, Any], names: Mapping[str, str]) -> tuple[Arrays, Arrays]:
    """Parameters and statistics under our names; `names` maps theirs to ours."""
    theirs = {name: as_array(name, own[name]) for name in names if name in own}
    check_shapes(theirs)
    by_name = {names[name]: array for name, array in theirs.items()}
    return (
        {key: by_name[key] for key in PARAMS if key in by_name},
        {key: converted(by_name[key]) for key in STATS if key in by_name},
    )


def converted(array: Array) -> Array:
    """A statistic in float32 at least, because a narrower dtype loses small updates."""
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def read(
    params: Mapping[str, Any], stats: Mapping[str, Any] | None
) -> tuple[Arrays, Arrays, Mapping[str, Any]]:
    """Our parameters, mean and variance as arrays, and the counters as given, without a mark."""
    check_mapping("params", params)
    check_mapping("stats", {} if stats is None else stats)
    stats = {key: value for key, value in (stats or {}).items() if key != MARK}
    for name, given, known in (("params", params, PARAMS), ("stats", stats, (*STATS, *COUNTS))):
        unknown = [key for key in given if key not in known]
        if unknown:
            raise ValueError(
                f"{name} of one normalization must have entries among {list(known)}, got {unknown}"
            )
    missing = [key for key in STATS if key not in stats]
    if stats and missing:
        raise ValueError(f"stats lack {missing}; they have {sorted(stats)}")
    arrays = {key: as_array(key, value) for key, value in params.items()}
    moments = {key: as_array(key, stats[key]) for key in STATS if key in stats}
    if not arrays and not moments:
        raise ValueError("params and stats are both empty; give at least one entry")
    check_shapes(arrays | moments)
    return arrays, moments, {key: stats[key] for key in COUNTS if key in stats}


def joined(prefix: str, separator: str, arrays: Mapping[str, Array]) -> Arrays:
    """The arrays by their names with the prefix."""
    start = prefix + separator if prefix else ""
    return {start + name: array for name, array in arrays.items()}


def check_weight(name: str, value: float | None) -> None:
    """Check for a number in [0, 1], or None."""
    if value is not None and not 0 <= _number(name, value) <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")


def check_epsilon(value: float | None) -> None:
    """Check for a finite number that is not negative, or None."""
    if value is not None and not 0 <= _number("epsilon", value) < float("inf"):
        raise ValueError(f"epsilon must be finite and not negative, got {value!r}")


def _number(name: str, value: Any) -> float:
    """Return a Python or NumPy number as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def options_of(stats: Arrays, momentum: float | None, epsilon: float | None) -> dict[str, Any]:
    """The known options under our names; momentum only with statistics."""
    options = {} if momentum is None or not stats else {"momentum": momentum}
    return options | ({} if epsilon is None else {"epsilon": epsilon})


def scaled(array: Array, factor: float) -> Array:
    """The array times a number, rounded once to its dtype."""
    dtype = np.complex128 if np.iscomplexobj(array) else np.float64
    return (array.astype(dtype) * factor).astype(array.dtype)


def debias_counter(
    counts: Mapping[str, Any], name: str, decay: float | None
) -> tuple[Array, float]:
    """The counter of an average that starts at zero, and the total weight of its values so far."""
    if "steps" not in counts:
        return np.asarray(_DEBIASED, np.int32), 1.0
    if decay is None:
        raise ValueError(
            f"stats have steps, so {name} is needed to compute the weight of the average after "
            "them; or leave steps out, as for an average that needs no debiasing"
        )
    counter = as_counter("steps", counts["steps"], np.int32)
    return counter, 1 - float(decay) ** int(counter)
