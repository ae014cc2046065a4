"""Conversion of the arrays of an Equinox module and of its State, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jaxnorm.interop import entries as _entries
from jaxnorm.interop.entries import Arrays, Converted

__all__ = ["from_equinox", "to_equinox"]

_BATCH = {"hidden_mean": "mean", "hidden_var": "var"}
_EMA = {"running_mean": "mean", "running_var": "var"}
_NAMES = {"weight": "scale", "bias": "bias"}
_ENTRIES = (*_NAMES, *_BATCH, "counter", *_EMA, "first_time")


def from_equinox(
    arrays: Mapping[str, Any],
    prefix: str = "",
    *,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
) -> Converted:
    """Convert one normalization of Equinox: return its parameters, statistics and options.

    The averages of mode "batch" start at 0 and are divided by their total weight: mean =
    hidden_mean / (1 - momentum^counter), and var in the same way. The state of mode "ema" holds the
    running mean and var directly. Variances are biased, and momentum is the weight of the old
    value, as in jaxnorm.

    Args:
        arrays: the arrays of the module, by name: "weight" and "bias"; for a BatchNorm of mode
            "batch" also "hidden_mean" and "hidden_var" (`state.get(norm.batch_state_index)`) and
            "counter" (`state.get(norm.batch_counter)`); for mode "ema" also "running_mean" and
            "running_var" (`state.get(norm.ema_state_index)`) and "first_time"
            (`state.get(norm.ema_first_time_index)`). None stands for a missing array.
        prefix: the start of the names, for example "bn1" of "bn1.weight", if a dict holds several
            modules.
        momentum, epsilon: `norm.momentum` and `norm.eps`, if they are not Equinox's defaults.

    Returns:
        params {"scale", "bias"}, without those that the module does not have (an RMSNorm of Equinox
        has a bias; add it to the result of jaxnorm's); stats {"mean", "var"}, with the counter of
        mode "batch" as "steps", or {} for layer, group and RMS normalization; options {"momentum",
        "epsilon"}. Statistics are in float32 at least.

    Raises:
        TypeError: a value that does not convert to a NumPy array of floating-point numbers.
        ValueError: a prefix that is not that of a normalization (the message lists these), a
            missing entry, both modes at once, shapes that differ, a state of mode "ema" that no
            step has updated.

    References:
        equinox.nn.BatchNorm, Equinox 0.13.8.

    Example:
        >>> import numpy as np, jaxnorm as jn
        >>> arrays = {"hidden_mean": np.ones(2), "hidden_var": np.ones(2), "counter": 1}
        >>> params, stats, options = jn.interop.from_equinox(arrays, momentum=0.5)
        >>> stats["mean"], stats["steps"]
        (array([2., 2.]), array(1, dtype=int32))
    """
    _entries.check_weight("momentum", momentum)
    _entries.check_epsilon(epsilon)
    _entries.check_mapping("the arrays", arrays)
    given = {name: array for name, array in arrays.items() if array is not None}
    own = _entries.layer(given, prefix, _ENTRIES, ".")
    batch = {*_BATCH, "counter"} & own.keys()
    ema = {*_EMA, "first_time"} & own.keys()
    if batch and ema:
        raise ValueError(
            f"the layer at {prefix!r} has {sorted(batch)} of mode 'batch' and {sorted(ema)} of "
            "mode 'ema'; give the arrays of one mode"
        )
    if batch:
        _entries.check_all_there(prefix, own, (*_BATCH, "counter"))
    elif ema:
        _entries.check_all_there(prefix, own, (*_EMA, "first_time"))
        _check_filled(prefix, own["first_time"])
    params, stats = _entries.ours(own, _NAMES | (_BATCH if batch else _EMA))
    if batch:
        steps = _entries.as_counter("counter", own["counter"], np.int32)
        weight = 1 - momentum ** int(steps) if int(steps) else 1.0
        stats = {key: _entries.scaled(value, 1 / weight) for key, value in stats.items()}
        stats["steps"] = steps
    return params, stats, _entries.options_of(stats, momentum, epsilon)


def to_equinox(
    params: Mapping[str, Any],
    stats: Mapping[str, Any] | None = None,
    prefix: str = "",
    *,
    mode: Literal["batch", "ema"] = "batch",
    momentum: float = 0.99,
) -> Arrays:
    """Convert parameters and statistics to the arrays of one normalization of Equinox.

    This function inverts `from_equinox`: for the parameters and mode "ema" bit for bit, for mode
    "batch" up to rounding. If `stats` have no steps, the counter of mode "batch" is 2^30, so that
    Equinox divides by 1.

    Args:
        params: {"scale", "bias"}, one of them or none; NumPy or jax arrays.
        stats: {"mean", "var"}, with or without "steps"; {} or None for layer, group and RMS
            normalization. A "count", and in mode "ema" the steps, are left out: Equinox has no
            place for them.
        prefix: the start of the names.
        mode, momentum: those of the BatchNorm.

    Returns:
        {"weight": array, ...}, with the names that `from_equinox` reads; put parameters into the
        module with `equinox.tree_at`, the others into the State with `state.set`.

    Raises:
        TypeError: a value that does not convert to a NumPy array of floating-point numbers.
        ValueError: unknown or missing entries, shapes that differ, another mode.

    Example:
        >>> import jaxnorm as jn
        >>> jn.interop.to_equinox({}, jn.init_batch_stats(1), mode="ema")["running_var"]
        array([1.], dtype=float32)
    """
    if mode not in ("batch", "ema"):
        raise ValueError(f"mode must be 'batch' or 'ema', got {mode!r}")
    _entries.check_weight("momentum", momentum)
    params, stats, counts = _entries.read(params, stats)
    own = {theirs: params[ours] for theirs, ours in _NAMES.items() if ours in params}
    if stats and mode == "ema":
        own |= {theirs: stats[ours] for theirs, ours in _EMA.items()}
        own["first_time"] = np.asarray(False)
    elif stats:
        counter, weight = _entries.debias_counter(counts, "momentum", momentum)
        weight = weight if int(counter) else 1.0
        own |= {theirs: _entries.scaled(stats[ours], weight) for theirs, ours in _BATCH.items()}
        own["counter"] = counter
    return _entries.joined(prefix, ".", own)


def _check_filled(prefix: str, first_time: Any) -> None:
    """Check that a step has updated the state of mode "ema"."""
    if np.asarray(first_time).dtype != bool or np.size(first_time) != 1:
        raise TypeError(f"first_time must be one bool, got {first_time!r}")
    if bool(np.asarray(first_time).item()):
        raise ValueError(
            f"no step has updated the state of mode 'ema' at {prefix!r} (first_time is True); use "
            "jaxnorm.init_batch_stats instead"
        )
