"""The states that steps update (running statistics and fits to inputs) and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes

BatchStats = Mapping[str, Any]
CONTROL = ("control_y", "control_x")  # the control processes of online normalization
FIT = ("count", "mean", "var", "min", "max")  # the entries of a fit
_FLOATING = ("mean", "var", "min", "max", "returns", *CONTROL)  # what an integer cannot hold
CONVERSION = (
    "jax.tree.map(lambda leaf: leaf.astype(jnp.float32) "
    "if leaf.dtype.itemsize < 4 else leaf, stats)"
)


def with_entries(stats: BatchStats, new: Mapping[str, Any]) -> BatchStats:
    """`stats`, in its own type of mapping, with new values of some entries."""
    kind: Any = type(stats)
    entries: BatchStats = kind({**stats, **new})
    return entries


def check_stats(
    stats: BatchStats,
    x: jax.Array,
    channels: Sequence[int],
    needed: Sequence[str],
    init_stats: str,
    option: str = "",
) -> None:
    """Check that running statistics have the entries `needed`, of the input's width and kind.

    Args:
        init_stats, option: the function that makes such statistics, and an option of its call, for
            the message.
    """
    shape = tuple(x.shape[axis] for axis in channels)
    shapes: dict[str, list[tuple[int, ...]]] = {"count": [(), shape], "steps": [()]}
    cure = f"make them with jaxnorm.{init_stats}({_width(shape)}{option})"
    _check_entries(
        stats,
        "the running statistics",
        {key: shapes.get(key, [shape]) for key in needed},
        f"the {_width(shape)} channels on the axes {tuple(channels)} of the input",
        f"check channel_axis, or {cure}",
        cure,
    )
    kept = [*needed, "recomputed"] if "recomputed" in stats else needed
    check_at_least_float32({key: stats[key] for key in kept}, "the running statistics")
    if jnp.iscomplexobj(stats["mean"]) and jnp.isrealobj(x):
        raise TypeError(f"the running mean is complex, but the input is real; {cure}")


def check_fit(
    fit: BatchStats, shape: tuple[int, ...] | None = None, of_one_feature: str = ""
) -> None:
    """Check that a fit has every entry, of the shape of the features.

    Args:
        shape: None for the shape of the fit's own mean.
        of_one_feature: what else to do if the fit has one feature, for the message.
    """
    of_one = isinstance(fit, Mapping) and getattr(fit.get("mean"), "shape", None) == (1,)
    given = isinstance(fit, Mapping) and shape is None
    shape = jnp.shape(fit.get("mean", ())) if given else shape or ()
    _check_entries(
        fit,
        "the fit",
        {key: [shape] for key in FIT},
        "the features",
        f"check feature_axis, or start a new fit with jaxnorm.init_input_stats({_width(shape)})"
        f"{of_one_feature if of_one else ''}",
        "make it with jaxnorm.init_input_stats(number of features)",
    )
    check_at_least_float32(fit, "the fit")


def check_return_fit(fit: BatchStats, shape: tuple[int, ...] | None = None) -> None:
    """Check that a fit to returns has every entry, and a return for each environment.

    Args:
        shape: that of the environments; None for the shape of the fit's own returns.
    """
    own = jnp.shape(fit.get("returns", 0.0)) if isinstance(fit, Mapping) else ()
    scalars: dict[str, list[tuple[int, ...]]] = {key: [()] for key in FIT}
    _check_entries(
        fit,
        "the fit to returns",
        {**scalars, "returns": [own]},
        "all returns together",
        "make it with jaxnorm.init_return_stats(number of environments)",
        "make it with jaxnorm.init_return_stats(number of environments)",
    )
    check_at_least_float32(fit, "the fit to returns")
    if shape not in (None, own):
        cure = f"start with jaxnorm.init_return_stats({_width(shape)})"
        of_steps = "give time_axis=0 for a rollout of several steps, or "
        raise ValueError(
            f"the fit is for environments of shape {own}, but one step of `reward` has shape "
            f"{shape}; {of_steps if shape[1:] == own else ''}{cure}"
        )


def _check_entries(
    stats: BatchStats,
    what: str,
    shapes: Mapping[str, Sequence[tuple[int, ...]]],
    features: str,
    shape_cure: str,
    cure: str,
) -> None:
    """Check that a state is a dict of arrays, each of one of its `shapes`."""
    if not isinstance(stats, Mapping):
        raise TypeError(f"{what} must be a dict, got {type(stats).__name__}; {cure}")
    if missing := [key for key in shapes if key not in stats]:
        raise ValueError(f"{missing} missing from {what}, whose keys are {sorted(stats)}; {cure}")
    for key, allowed in shapes.items():
        value = stats[key]
        if not hasattr(value, "dtype"):
            raise TypeError(
                f"{key!r} of {what} must be an array, got {value!r}; convert it, for example by "
                f"jnp.asarray(stats[{key!r}]), or {cure}"
            )
        if value.shape not in allowed:
            raise ValueError(
                f"{key!r} of {what} has shape {value.shape}, but {features} need "
                f"{' or '.join(map(str, allowed))}; {shape_cure}"
            )


def _width(shape: tuple[int, ...]) -> int | tuple[int, ...]:
    """The number of channels, or the shape of several channel axes."""
    return shape[0] if len(shape) == 1 else shape


def check_at_least_float32(stats: BatchStats, what: str) -> None:
    """Check that entries are float32 at least: a narrower dtype loses steps below half an ulp."""
    for key in stats:
        if key == "recomputed":
            check_at_least_float32(stats[key], f"the recomputed part of {what}")
            continue
        for leaf in jax.tree.leaves(stats[key]):
            dtype = jnp.result_type(leaf)
            if key in _FLOATING and not jnp.issubdtype(dtype, jnp.inexact):
                raise TypeError(
                    f"the {key} of {what} is {dtype}, but must be floating; give jnp.float32 or "
                    "wider"
                )
            if _dtypes.is_below_float32(dtype):
                raise ValueError(
                    f"the {key} of {what} is {dtype}, in which small updates are lost; statistics "
                    f"need float32 at least, so widen them once: {CONVERSION}"
                )


def check_fit_dtype(dtype: Any) -> None:
    """Check for a real dtype in which a fit can be kept."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"a fit cannot have dtype={jnp.dtype(dtype).name}, since complex numbers have no "
            "minimum and no maximum; give jnp.float32 or jnp.float64"
        )
    check_stats_dtype(dtype)


def check_stats_dtype(dtype: Any) -> None:
    """Check for a dtype in which statistics can be kept: float32 or wider."""
    _checks.check_inexact("dtype", dtype)
    if _dtypes.is_below_float32(jnp.dtype(dtype)):
        raise ValueError(
            f"dtype={jnp.dtype(dtype).name} is too narrow for statistics: small updates would be "
            "lost; give jnp.float32 or wider (inputs may be narrower; modules: stats_dtype)"
        )


def check_mean_dtype(stats: BatchStats, x: jax.Array) -> None:
    """Check that the running mean can hold the mean of the input."""
    if jnp.iscomplexobj(x) and jnp.isrealobj(stats["mean"]):
        raise TypeError(
            f"the input is {x.dtype}, but the running mean is {stats['mean'].dtype}, and updates "
            f"keep its dtype; start the statistics with dtype=jnp.{x.dtype} (modules: dtype or "
            "stats_dtype)"
        )


def check_count(stats: BatchStats, mask: jax.Array | None, channels: Sequence[int]) -> None:
    """Check for a cumulative count for each channel if the mask differs by channel."""
    if mask is None or jnp.ndim(stats["count"]) > 0:
        return
    if any(mask.shape[axis] > 1 for axis in channels):
        raise ValueError(
            f"the mask of shape {mask.shape} differs by channel, so each channel needs its own "
            "count, but the running count is one number; start the statistics with "
            "momentum=None, count_per_channel=True, or give a mask of size 1 along the channel axes"
        )
