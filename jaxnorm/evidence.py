"""What is known of a normalization: its running statistics and measured ones, in NumPy.

Glossary:
    initial weight: the weight w = momentum ** steps that the first mean 0 and variance 1 still have
        in running statistics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import dtypes as _dtypes
from jaxnorm import states as _states
from jaxnorm.statistics import Moments

Array = np.ndarray[Any, Any]
FLOAT32_UNIT = 2.0**-23  # the rounding of each step of a running variance, relative


class Sample(NamedTuple):
    """The count, mean and variance of each channel, in float64; an unknown count is infinite."""

    count: Array  # type: ignore[assignment]  # hides tuple.count
    mean: Array
    var: Array


class Evidence(NamedTuple):
    """What is known of a normalization; each array has the shape of the channels.

    Attributes:
        kind: "batch", "online" or "fit" (to inputs).
        running: the running statistics; only those of cumulative ones have a known count.
        measured: the statistics of the present data, or None.
        steps: the number of training steps, or None.
        momentum: None if it is unknown, and for cumulative and online statistics.
        narrow: the name of a dtype below float32, and the distance from 1 to its next number.
        merged: the counts of recomputed statistics beside the running ones, or None.
        batch_values: the number of values of a channel in a training batch, or None.
    """

    name: str
    kind: str
    running: Sample
    measured: Sample | None
    steps: Array | None
    momentum: float | None
    epsilon: float
    narrow: tuple[str, float] | None
    merged: Array | None
    frozen: bool
    batch_values: float | None

    @property
    def decays(self) -> bool:
        """Whether momentum decides how much each batch weighs; an online one's is of examples."""
        return self.kind == "batch" and bool(np.all(np.isinf(self.running.count)))

    @property
    def unknown(self) -> tuple[str, ...]:
        """The names of the arguments that are needed to see whether the statistics converged."""
        known = {"momentum": self.momentum, "steps": self.steps}
        return tuple(name for name, one in known.items() if self.decays and one is None)

    @property
    def merged_any(self) -> bool:
        """Whether recomputed statistics have seen any values."""
        return self.merged is not None and bool(np.any(self.merged > 0))

    @property
    def decay(self) -> tuple[float, float] | None:
        """The momentum and the number of steps, if both are known."""
        if self.momentum is None or self.steps is None:
            return None
        return self.momentum, float(self.steps.max(initial=0))

    @property
    def initial_weight(self) -> Array:
        """momentum ** steps; 0 where it is unknown, and where statistics come from elsewhere."""
        if self.momentum is None or self.steps is None:
            return np.zeros(self.running.var.shape)
        return np.where(self.steps > 0, self.momentum**self.steps, 0.0)

    @property
    def seen(self) -> Sample:
        """The statistics of the batches alone: mean / (1 - w) and (var - w) / (1 - w).

        A variance below w contradicts momentum and steps, so there they are the running ones.

        The count is that of equally weighted values with the same scatter, the square of the sum of
        the weights over the sum of their squares: (1 + m) / (1 - m) (1 - w) / (1 + w) batches, for
        a momentum m.
        """
        w, m = self.initial_weight, self.momentum
        count, mean, var = self.running
        if m is not None and self.batch_values is not None:
            batches = np.divide((1 + m) * (1 - w), (1 - m) * (1 + w))
            count = np.asarray(self.batch_values * batches)
        rest = var - w
        if self.steps is not None:
            rest = np.where(np.abs(rest) <= self.steps * FLOAT32_UNIT * w, 0, rest)
        known = (w < 1) & (rest >= 0)
        mean, var = np.where(known, mean / (1 - w), mean), np.where(known, rest / (1 - w), var)
        return Sample(count, mean, var)

    @property
    def fresh(self) -> bool:
        """Whether these are the zeros and ones that `init` makes."""
        count, mean, var = self.running
        updated = np.isfinite(count) & (count > 0)
        return bool(np.all((mean == 0) & (var == 1) & ~updated))


def evidence(
    name: str,
    stats: _states.BatchStats,
    measured: Sample | None,
    *,
    momentum: Any,
    steps: Any,
    epsilon: Any,
    batch_values: Any,
) -> Evidence:
    """What is known of the normalization that has these statistics.

    Args:
        measured: None if there are none, or else those that are being recomputed beside `stats`.
        momentum, epsilon: of the normalization; without effect where the statistics say otherwise.
        steps: without effect for batch renormalization, which counts its steps, and for online
            normalization, whose steps are examples.
    """
    kind = "fit" if {"min", "max"} <= stats.keys() else "batch"
    kind = "online" if set(_states.CONTROL) & stats.keys() else kind
    running = sample({key: value for key, value in stats.items() if key != "recomputed"})
    recomputed = sample(stats) if "recomputed" in stats else None
    steps = stats.get("steps", None if kind == "online" else steps)
    decays = kind == "batch" and "count" not in stats and momentum is not None
    return Evidence(
        name=name,
        kind=kind,
        running=running,
        measured=recomputed if measured is None else measured,
        steps=None if steps is None else _by_channel(steps, running.var.shape),
        momentum=float(momentum) if decays else None,
        epsilon=0.0 if kind == "fit" else float(epsilon),
        narrow=_narrow(stats),
        merged=None if recomputed is None else recomputed.count,
        frozen="frozen" in stats,
        batch_values=None if batch_values is None else float(batch_values),
    )


def sample(stats: Any) -> Sample:
    """The moments of a dict or of `Moments`; if the dict has recomputed ones, these."""
    if isinstance(stats, Moments):
        stats = stats._asdict()
    stats = stats.get("recomputed", stats)
    mean, var = _leaf(stats["mean"]), _leaf(stats["var"])
    mean = mean.astype(np.complex128 if np.iscomplexobj(mean) else np.float64)
    count = _by_channel(stats.get("count", np.inf), var.shape)
    var = var.astype(np.float64)
    return Sample(count, mean, np.where(var < 0, np.nan, var))  # of which the root is NaN


def _leaf(boxed: Any) -> Array:
    """The array of an entry, which may be in a box of metadata."""
    [leaf] = jax.tree.leaves(boxed)
    return np.asarray(leaf)


def _by_channel(boxed: Any, shape: tuple[int, ...]) -> Array:
    """One number, or one for each index of the first axes, for each channel."""
    number = _leaf(boxed).astype(np.float64)
    missing = (1,) * (len(shape) - number.ndim)
    return np.broadcast_to(number.reshape(number.shape + missing), shape)


def _narrow(stats: _states.BatchStats) -> tuple[str, float] | None:
    """The first dtype below float32 among the mean and the variance, and its unit."""
    for key in ("mean", "var"):
        dtype = _leaf(stats[key]).dtype
        if _dtypes.is_below_float32(dtype):
            return dtype.name, float(jnp.finfo(dtype).eps)
    return None
