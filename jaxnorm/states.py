"""The states that steps update, running statistics and fits to inputs, and the checks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes

BatchStats = Mapping[str, Any]
CONTROL = ("control_y", "control_x")  # the control processes of online normalization
KEPT = ("count", "mean", "var", "min", "max", *CONTROL)  # what steps add up
CONVERSION = (
    "jax.tree.map(lambda leaf: leaf.astype(jnp.float32) "
    "if leaf.dtype.itemsize < 4 else leaf, stats)"
)


def check_stats(
    stats: BatchStats,
    x: jax.Array,
    channels: Sequence[int],
    momentum: ArrayLike | None,
    renorm: bool,
) -> None:
    """Running statistics with every entry that is needed, of the width and kind of the input."""
    function = "init_renorm_stats" if renorm else "init_batch_stats"
    argument = ", momentum=None" if momentum is None else ""
    needed = ["mean", "var"] + ["count"] * (momentum is None) + ["steps"] * renorm
    _check_entries(stats, x, channels, needed, function, argument)
    if jnp.iscomplexobj(stats["mean"]) and jnp.isrealobj(x):
        cure = f"make them with jaxnorm.{function}({_width(x, channels)}{argument})"
        raise TypeError(f"the running mean is complex, but the input is real; {cure}")


def check_online_stats(
    stats: BatchStats, x: jax.Array, channels: Sequence[int], train: bool
) -> None:
    """Statistics of online normalization, in training with those of its control processes."""
    needed = ["mean", "var"] + ["control_y", "control_x"] * train
    _check_entries(stats, x, channels, needed, "init_online_stats")
    _checks.check_real("the dtype of the running mean", stats["mean"].dtype)


def _width(x: jax.Array, channels: Sequence[int]) -> int | tuple[int, ...]:
    """The number of channels, or the shape of several channel axes."""
    shape = tuple(x.shape[axis] for axis in channels)
    return shape[0] if len(channels) == 1 else shape


def _check_entries(
    stats: BatchStats,
    x: jax.Array,
    channels: Sequence[int],
    needed: Sequence[str],
    function: str,
    argument: str = "",
) -> None:
    """Arrays of the width of the input under every key that is needed."""
    needed_shape = tuple(x.shape[axis] for axis in channels)
    width = _width(x, channels)
    cure = f"make them with jaxnorm.{function}({width}{argument})"
    if not isinstance(stats, Mapping):
        raise TypeError(
            f"the running statistics must be a dict, got {type(stats).__name__}; {cure}"
        )
    missing = [key for key in needed if key not in stats]
    if missing:
        raise ValueError(
            f"the running statistics lack {missing}; they have the keys {sorted(stats)}; {cure}"
        )
    also: dict[str, list[tuple[int, ...]]] = {"count": [(), needed_shape], "steps": [()]}
    for key in needed:
        if not hasattr(stats[key], "dtype"):
            raise TypeError(
                f"the running {key} must be an array, got {stats[key]!r}; convert it, for example "
                f"jnp.asarray(stats[{key!r}]), or {cure}"
            )
        shape, shapes = stats[key].shape, also.get(key, [needed_shape])
        if shape not in shapes:
            raise ValueError(
                f"the running {key} has shape {shape}, but the {width} channels on the axes "
                f"{tuple(channels)} of the input need {' or '.join(map(str, shapes))}; "
                f"check channel_axis, or {cure}"
            )
    kept = [*needed, "recomputed"] if "recomputed" in stats else needed
    check_at_least_float32({key: stats[key] for key in kept}, "the running statistics")


def check_at_least_float32(stats: BatchStats, what: str) -> None:
    """Entries in float32 at least: in narrower ones a step below half of their ulp is lost."""
    kept = {key: leaf for key in KEPT if key in stats for leaf in jax.tree.leaves(stats[key])}
    for key, leaf in kept.items():
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact) and key != "count":
            raise TypeError(
                f"the {key} of {what} is {dtype}, which cannot hold it; give jnp.float32 or wider"
            )
        if _dtypes.is_below_float32(dtype):
            raise ValueError(
                f"the {key} of {what} is {dtype}, in which small steps are lost; statistics are "
                f"kept in float32 at least, so widen them once: {CONVERSION}"
            )
    if "recomputed" in stats:
        check_at_least_float32(stats["recomputed"], f"the recomputed part of {what}")


def check_fit(fit: BatchStats, shape: tuple[int, ...] | None = None) -> None:
    """A fit to inputs with every entry, of the shape of the features (None: of its own mean)."""
    if not isinstance(fit, Mapping):
        raise TypeError(
            f"the fit must be a dict, got {type(fit).__name__}; make it with "
            "jaxnorm.init_input_stats(number of features)"
        )
    needed = ("count", "mean", "var", "min", "max")
    missing = [key for key in needed if key not in fit]
    if missing:
        raise ValueError(
            f"the fit lacks {missing}; it has the keys {sorted(fit)}; make it with "
            "jaxnorm.init_input_stats(number of features)"
        )
    shape = jnp.shape(fit["mean"]) if shape is None else shape
    width = shape[0] if len(shape) == 1 else shape
    for key in needed:
        if not hasattr(fit[key], "dtype"):
            raise TypeError(
                f"the {key} of the fit must be an array, got {fit[key]!r}; convert it, for example "
                f"jnp.asarray(fit[{key!r}])"
            )
        if fit[key].shape != shape:
            raise ValueError(
                f"the {key} of the fit has shape {fit[key].shape}, but the features have shape "
                f"{shape}; check feature_axis, or fit these with jaxnorm.init_input_stats({width})"
            )
    check_at_least_float32(fit, "the fit")


def check_fit_dtype(dtype: Any) -> None:
    """A real dtype in which a fit can be kept."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"dtype={jnp.dtype(dtype).name} has no order; give jnp.float32 or float64")
    check_stats_dtype(dtype)


def check_stats_dtype(dtype: Any) -> None:
    """A dtype in which statistics can be kept: float32 or wider."""
    _checks.check_inexact("dtype", dtype)
    if _dtypes.is_below_float32(jnp.dtype(dtype)):
        raise ValueError(
            f"dtype={jnp.dtype(dtype).name} is too narrow for statistics, in which small steps "
            "would be lost; give jnp.float32 or wider (inputs may be narrower; modules: "
            "stats_dtype)"
        )


def check_kept_dtype(stats: BatchStats, x: jax.Array) -> None:
    """A running mean that can hold the mean of the input."""
    if jnp.iscomplexobj(x) and jnp.isrealobj(stats["mean"]):
        raise TypeError(
            f"the input is {x.dtype}, but the running mean is {stats['mean'].dtype} and keeps its "
            f"dtype; start the statistics with dtype=jnp.{x.dtype} (modules: dtype or stats_dtype)"
        )


def check_count(stats: BatchStats, mask: jax.Array | None, channels: Sequence[int]) -> None:
    """A cumulative count for each channel, where the mask differs by channel."""
    if mask is None or jnp.ndim(stats["count"]) > 0:
        return
    if any(mask.shape[axis] > 1 for axis in channels):
        raise ValueError(
            f"the mask of shape {mask.shape} differs by channel, so each channel has a count of "
            "its own, but the running count is one number; start the statistics with "
            "momentum=None, count_per_channel=True, or give a mask that is 1 wide along the "
            "channels"
        )
