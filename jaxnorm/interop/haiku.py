"""Conversion of Haiku's parameters and states, by the name of the module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnorm.interop import entries as _entries
from jaxnorm.interop.entries import Array, Arrays, Converted

__all__ = ["from_haiku", "to_haiku"]

_NAMES = {"scale": "scale", "offset": "bias"}
_AVERAGES = {"mean": "mean_ema", "var": "var_ema"}
_AVERAGE = ("average", "counter", "hidden")


def from_haiku(
    params: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
    prefix: str = "batch_norm",
    *,
    decay_rate: float | None = None,
    epsilon: float = 1e-5,
) -> Converted:
    """Convert one normalization of Haiku: return its parameters, statistics and options.

    Haiku's offset becomes bias, its counter steps. Haiku's averages start at 0 and are debiased:
    mean and var are the averages that evaluation uses, average = hidden / (1 - decay_rate^counter).

    Args:
        params, state: those of the whole model, as in `haiku.transform_with_state`.
        prefix: the name of the module, for example "res_net/~/initial_batchnorm".
        decay_rate: the decay rate of the module, which is jaxnorm's momentum. Haiku has no default
            for it.
        epsilon: the epsilon of the module; 1e-5 is the default of all of Haiku's normalizations.

    Returns:
        params {"scale", "bias"}, without those that the module does not have; stats {"mean", "var",
        "steps"}, or {} for layer, group, instance and RMS normalization; options {"momentum",
        "epsilon"}, without momentum if `decay_rate` is not given. BatchNorm's shape [1, ..., 1, C]
        becomes [C]. Statistics are in float32 at least.

    Raises:
        TypeError: a value that does not convert to a NumPy array of floating-point numbers.
        ValueError: a module that is missing or is not a normalization (the message lists the
            normalizations), a missing entry, shapes that differ, two counters that differ.

    References:
        haiku.BatchNorm and haiku.ExponentialMovingAverage, dm-haiku 0.0.17.

    Example:
        >>> import numpy as np, jaxnorm as jn
        >>> ema = {"hidden": np.ones((1, 2)), "average": np.full((1, 2), 2.0), "counter": 1}
        >>> state = {"batch_norm/~/mean_ema": ema, "batch_norm/~/var_ema": ema}
        >>> params, stats, options = jn.interop.from_haiku({}, state, decay_rate=0.5)
        >>> stats["mean"], stats["steps"], options["momentum"]
        (array([2., 2.]), array(1, dtype=int32), 0.5)
    """
    _entries.check_weight("decay_rate", decay_rate)
    _entries.check_epsilon(epsilon)
    state = {} if state is None else state
    _entries.check_mapping("params", params)
    _entries.check_mapping("state", state)
    averages = {ours: f"{prefix}/~/{name}" for ours, name in _AVERAGES.items()}
    own = _parameters(params, state, prefix)
    has_stats = any(module in state for module in averages.values())
    if not has_stats:
        converted, _ = _entries.ours(own, _NAMES)
        return converted, {}, _entries.options_of({}, None, epsilon)
    _entries.check_all_there(prefix, state, list(averages.values()))
    moments = {ours: _average(state[module], module) for ours, module in averages.items()}
    arrays, stats = _entries.ours(
        own | {ours: average for ours, (average, _) in moments.items()},
        _NAMES | {"mean": "mean", "var": "var"},
    )
    counters = {ours: int(counter) for ours, (_, counter) in moments.items()}
    if len(set(counters.values())) > 1:
        raise ValueError(f"the averages at {prefix!r} have counters that differ: {counters}")
    arrays, stats = ({k: _squeezed(v) for k, v in named.items()} for named in (arrays, stats))
    stats["steps"] = moments["mean"][1]
    return arrays, stats, _entries.options_of(stats, decay_rate, epsilon)


def to_haiku(
    params: Mapping[str, Any],
    stats: Mapping[str, Any] | None = None,
    prefix: str = "batch_norm",
    *,
    decay_rate: float | None = None,
    ndim: int = 4,
    channel_axis: int = -1,
) -> tuple[dict[str, Arrays], dict[str, Arrays]]:
    """Convert parameters and statistics to those of one normalization of Haiku.

    This function inverts `from_haiku`: for scale, offset, average and counter bit for bit, for
    hidden = average * (1 - decay_rate^counter) up to rounding. If `stats` have no steps, the
    counter is 2^30 and hidden = average, so that Haiku does not debias.

    Args:
        params: {"scale", "bias"}, one of them or none; NumPy or jax arrays.
        stats: {"mean", "var"}, with or without "steps", which need `decay_rate`; {} or None for
            layer, group, instance and RMS normalization. A "count" is left out: Haiku has no place
            for it.
        prefix: the name of the module.
        decay_rate: the decay rate of the module.
        ndim, channel_axis: the number of axes and the channel axis of the input of a BatchNorm,
            whose arrays have as many axes: 4 and -1 for images [N, H, W, C].

    Returns:
        {prefix: {"scale", "offset"}} and {prefix/~/mean_ema: {"average", "counter", "hidden"},
        prefix/~/var_ema: ...}; merge them into the parameters and the state of the model.

    Raises:
        TypeError: a value that does not convert to a NumPy array of floating-point numbers.
        ValueError: unknown or missing entries, shapes that differ, statistics of several axes,
            an axis out of range, steps without `decay_rate`.

    Example:
        >>> import jaxnorm as jn
        >>> params, state = jn.interop.to_haiku({}, jn.init_batch_stats(3))
        >>> state["batch_norm/~/var_ema"]["average"].shape
        (1, 1, 1, 3)
    """
    _entries.check_weight("decay_rate", decay_rate)
    params, stats, counts = _entries.read(params, stats)
    own = {theirs: params[ours] for theirs, ours in _NAMES.items() if ours in params}
    if not stats:
        return {prefix: own}, {}
    shape = _shape(stats["mean"], ndim, channel_axis)
    counter, weight = _entries.debias_counter(counts, "decay_rate", decay_rate)
    state = {
        f"{prefix}/~/{name}": {
            "average": stats[ours].reshape(shape),
            "counter": counter.copy(),
            "hidden": _entries.scaled(stats[ours], weight).reshape(shape),
        }
        for ours, name in _AVERAGES.items()
    }
    return ({prefix: {k: v.reshape(shape) for k, v in own.items()}} if own else {}), state


def _parameters(params: Mapping[str, Any], state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The parameters of the module; a module with a state may have none."""
    own = dict(params.get(prefix, {}))
    others = [name for name in own if name not in _NAMES]
    has_state = any(f"{prefix}/~/{name}" in state for name in _AVERAGES.values())
    if others or not (own or has_state):
        found = [name for name, group in params.items() if group and set(group) <= set(_NAMES)]
        found += [name.removesuffix("/~/mean_ema") for name in state if "/~/mean_ema" in name]
        raise ValueError(
            f"no normalization is at {prefix!r}, which holds {sorted(own)}; normalizations are at "
            + _entries.listed(list(dict.fromkeys(found)), params)
        )
    return own


def _average(ema: Mapping[str, Any], module: str) -> tuple[Array, Array]:
    """The debiased value of an average, and its counter."""
    _entries.check_all_there(module, ema, _AVERAGE)
    average = _entries.as_array(f"{module} average", ema["average"])
    return average, _entries.as_counter(f"{module} counter", ema["counter"], np.int32)


def _squeezed(array: Array) -> Array:
    """The array without axes of size 1; for one channel it keeps one axis."""
    return array.reshape([width for width in array.shape if width != 1] or [1])


def _shape(mean: Array, ndim: int, channel_axis: int) -> list[int]:
    """The shape of Haiku's arrays: 1 for every axis except that of the channels."""
    if mean.ndim != 1:
        raise ValueError(
            f"the statistics have shape {mean.shape}, but Haiku's BatchNorm has one channel axis"
        )
    if not -ndim <= channel_axis < ndim:
        raise ValueError(f"channel_axis={channel_axis} is out of range for ndim={ndim}")
    shape = [1] * ndim
    shape[channel_axis] = mean.size
    return shape
