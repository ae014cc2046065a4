"""The oracle: every function of jaxnorm in plain NumPy and double precision.

It is written to be believed, not to be fast. One picture serves all normalizations: every position
of the input carries a *label*, and the positions with the same label share one mean and variance.
Batch normalization labels a position with its channel, layer normalization with its example, and
so on. A masked position is physically left out of the values that are measured. Real inputs are
computed in float64, complex ones in complex128; the names and the defaults of the arguments are
those of the library.

The oracle of a normalization carries its description, from which the tests make their tables.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Description(NamedTuple):
    """What the tests need to know of a normalization.

    Attributes:
        oracle: its function here; that of jaxnorm has the same name.
        module: its class in jaxnorm.linen and in jaxnorm.nnx.
        measured_over: a function of the shape that labels the positions: those that are measured
            together have the same label.
        state: the function of jaxnorm that starts its running statistics, or None.
        about_zero: whether it measures about zero, and subtracts no mean.
        options: arguments with which it is itself and no other.
        module_options: the same of its modules.
    """

    oracle: Callable
    module: str
    measured_over: Callable
    state: str | None = None
    about_zero: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012
    module_options: dict[str, Any] = {}  # noqa: RUF012


NORMALIZATIONS: dict[str, Description] = {}


def normalization(name, **description):
    """Describe the normalization whose oracle follows."""

    def described(oracle):
        NORMALIZATIONS[name] = Description(oracle, **description)
        return oracle

    return described


class Moments(NamedTuple):
    """How many values were counted, their mean, and their biased variance."""

    count: np.ndarray
    mean: np.ndarray
    var: np.ndarray


# Measuring and merging


def widen(values):
    """Give the array in float64, or in complex128 where it is complex."""
    values = np.asarray(values)
    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)


def measure(values, about_zero=False):
    """Measure a flat array: its size, mean and variance; zeros where it is empty."""
    if values.size == 0:
        return Moments(0, 0.0, 0.0)
    mean = 0.0 if about_zero else values.mean()
    return Moments(values.size, mean, np.mean(np.abs(values - mean) ** 2))


def counted(x, where):
    """Give a boolean array of x's shape that says which positions count."""
    if where is None:
        return np.ones(np.shape(x), bool)
    return np.broadcast_to(np.asarray(where) != 0, np.shape(x))


def axes_of(axis, ndim):
    """Give the axes as a tuple of non-negative integers."""
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    return tuple(a % ndim for a in axes)


def moments(x, axis, *, where=None, about_zero=False):
    """Measure along the axes, leaving out what is masked; about zero, the mean is 0."""
    x = widen(x)
    axes = axes_of(axis, x.ndim)
    kept = [a for a in range(x.ndim) if a not in axes]
    shape = [x.shape[a] for a in kept]
    rows = [x.shape[a] for a in axes]

    def to_rows(array):
        return array.transpose(*kept, *axes).reshape(math.prod(shape), math.prod(rows))

    keep = to_rows(counted(x, where))
    measured = [measure(row[k], about_zero) for row, k in zip(to_rows(x), keep, strict=True)]
    return Moments(*(np.array([m[i] for m in measured]).reshape(shape) for i in range(3)))


def merge(pieces):
    """Merge moments: the moments of a population that is given by its parts."""
    count, mean, var = (np.stack([np.asarray(p[i]) for p in pieces]) for i in range(3))
    total = count.sum(0)
    weight = count / np.maximum(total, 1)
    center = (weight * mean).sum(0)
    within, between = (weight * var).sum(0), (weight * np.abs(mean - center) ** 2).sum(0)
    return Moments(total, center, within + between)


# Standardizing


def shared_over(shape, axes):
    """Label the positions so that those that differ only along the axes have one label."""
    kept = [1 if a in axes_of(axes, len(shape)) else n for a, n in enumerate(shape)]
    return np.broadcast_to(np.arange(math.prod(kept)).reshape(kept), shape)


def all_but(axis, ndim):
    """Give every axis but one or several."""
    return tuple(a for a in range(ndim) if a not in axes_of(axis, ndim))


def batch_labels(shape, *, channel_axis=-1, **_):
    """Label a position with its channel."""
    return shared_over(shape, all_but(channel_axis, len(shape)))


def ghost_labels(shape, *, channel_axis=-1, ghost_size=None, num_ghosts=None, **_):
    """Label a position with its channel and its ghost, a contiguous slice of the batch."""
    size = ghost_size or max(shape[0] // num_ghosts, 1)
    ghost = np.indices(shape)[0] // size
    return ghost * math.prod(shape) + batch_labels(shape, channel_axis=channel_axis)


def layer_labels(shape, *, reduction_axes=-1, **_):
    """Label a position with its place along the axes that are not reduced."""
    return shared_over(shape, reduction_axes)


def group_labels(
    shape, *, num_groups=32, group_size=None, channel_axis=-1, reduction_axes=None, **_
):
    """Label a position with its group and its place along the axes that are not reduced."""
    channel = channel_axis % len(shape)
    size = group_size or shape[channel] // num_groups
    axes = tuple(range(1, len(shape))) if reduction_axes is None else reduction_axes
    outer = shared_over(shape, (*axes_of(axes, len(shape)), channel))
    return outer * shape[channel] + np.indices(shape)[channel] // size


def instance_labels(shape, *, channel_axis=-1, **_):
    """Label a position with its example and its channel."""
    return shared_over(shape, all_but((0, *axes_of(channel_axis, len(shape))), len(shape)))


def along(parameter, shape, axes):
    """Lay a scale or bias along the axes, so that it broadcasts to the shape.

    Axes that it has in front of these are the first of the others.
    """
    axes, parameter = sorted(axes_of(axes, len(shape))), widen(parameter)
    others = all_but(axes, len(shape))
    own = [*others[: parameter.ndim - len(axes)], *axes]
    rest = [a for a in range(len(shape)) if a not in own]
    return np.expand_dims(np.transpose(parameter, np.argsort(own)), rest)


def standardize(x, labels, *, where=None, epsilon, centered=True):
    """Standardize the positions of every label by the moments of those of them that count.

    Zero stands where nothing counts, and where a position does not count and is not finite.
    """
    x, keep = widen(x), counted(x, where)
    y = np.zeros_like(x)
    for label in np.unique(labels):
        members = labels == label
        values = x[members & keep]
        if values.size == 0:
            continue
        mean = values.mean() if centered else 0.0
        var = np.mean(np.abs(values - mean) ** 2)
        shown = members & (keep | np.isfinite(x))
        y[shown] = (x[shown] - mean) / np.sqrt(var + epsilon)
    return y


def affine(y, scale, bias, axes):
    """Multiply by the scale and add the bias, both laid along the axes."""
    y = y if scale is None else y * along(scale, y.shape, axes)
    return y if bias is None else y + along(bias, y.shape, axes)


# Normalizing by the statistics of one example


@normalization("layer", module="LayerNorm", measured_over=layer_labels)
def layer_norm(
    x, scale=None, bias=None, *, reduction_axes=-1, feature_axes=-1, epsilon=1e-6, where=None
):
    """Ba et al. 2016: the features of one example."""
    labels = layer_labels(np.shape(x), reduction_axes=reduction_axes)
    y = standardize(x, labels, where=where, epsilon=epsilon)
    return affine(y, scale, bias, feature_axes)


@normalization(
    "rms",
    module="RMSNorm",
    measured_over=layer_labels,
    about_zero=True,
    module_options={"scale_offset": 0.5},
)
def rms_norm(
    x,
    scale=None,
    *,
    reduction_axes=-1,
    feature_axes=-1,
    epsilon=1e-6,
    scale_offset=0.0,
    where=None,
):
    """Zhang & Sennrich 2019: the features of one example, about zero."""
    scale = None if scale is None else widen(scale) + scale_offset
    labels = layer_labels(np.shape(x), reduction_axes=reduction_axes)
    y = standardize(x, labels, where=where, epsilon=epsilon, centered=False)
    return affine(y, scale, None, feature_axes)


@normalization(
    "group",
    module="GroupNorm",
    measured_over=group_labels,
    options={"num_groups": 2},
    module_options={"num_groups": 2},
)
def group_norm(x, scale=None, bias=None, *, channel_axis=-1, epsilon=1e-6, where=None, **grouping):
    """Wu & He 2018: the positions and channels of one group of one example."""
    labels = group_labels(np.shape(x), channel_axis=channel_axis, **grouping)
    y = standardize(x, labels, where=where, epsilon=epsilon)
    return affine(y, scale, bias, channel_axis)


@normalization("instance", module="InstanceNorm", measured_over=instance_labels)
def instance_norm(x, scale=None, bias=None, *, channel_axis=-1, epsilon=1e-6, where=None):
    """Ulyanov et al. 2016: the positions of one channel of one example."""
    labels = instance_labels(np.shape(x), channel_axis=channel_axis)
    y = standardize(x, labels, where=where, epsilon=epsilon)
    return affine(y, scale, bias, channel_axis)


# Normalizing by the statistics of the batch, which are remembered


def updated(stats, batch, momentum):
    """Take a batch into the running statistics; a channel without values keeps its own."""
    old = {name: widen(value) for name, value in stats.items()}
    if momentum is None:
        count = np.broadcast_to(old["count"], old["mean"].shape)
        total, mean, var = merge([(count, old["mean"], old["var"]), batch])
        keep, count = batch.count == 0, total.max(initial=0)
        old = {**old, "count": count}
    else:
        mean = momentum * old["mean"] + (1 - momentum) * batch.mean
        var = momentum * old["var"] + (1 - momentum) * batch.var
        keep = batch.count == 0
    return {
        **old,
        "mean": np.where(keep, old["mean"], mean),
        "var": np.where(keep, old["var"], var),
    }


def running_norm(x, stats, scale, bias, *, epsilon, channel_axis, where):
    """Standardize with the running statistics, as every stateful function does in evaluation."""
    x = widen(x)
    mean, var = (along(stats[name], x.shape, channel_axis) for name in ("mean", "var"))
    y = (x - mean) / np.sqrt(var + epsilon)
    y = np.where(counted(x, where) | np.isfinite(x), y, 0)
    return affine(y, scale, bias, channel_axis)


@normalization(
    "batch",
    module="BatchNorm",
    measured_over=batch_labels,
    state="init_batch_stats",
    options={"train": True},
)
def batch_norm(
    x,
    stats,
    scale=None,
    bias=None,
    *,
    train,
    momentum=0.99,
    epsilon=1e-5,
    channel_axis=-1,
    where=None,
):
    """Ioffe & Szegedy 2015: every example and position of a channel."""
    common = {"epsilon": epsilon, "where": where}
    if not train:
        return running_norm(x, stats, scale, bias, channel_axis=channel_axis, **common), stats
    y = standardize(x, batch_labels(np.shape(x), channel_axis=channel_axis), **common)
    batch = moments(x, all_but(channel_axis, np.ndim(x)), where=where)
    return affine(y, scale, bias, channel_axis), updated(stats, batch, momentum)


@normalization(
    "ghost",
    module="GhostBatchNorm",
    measured_over=ghost_labels,
    state="init_batch_stats",
    options={"train": True, "num_ghosts": 2},
    module_options={"num_ghosts": 2},
)
def ghost_batch_norm(
    x, stats, scale=None, bias=None, *, train, ghost_size=None, num_ghosts=None, **options
):
    """Hoffer et al. 2017: batch_norm of every slice; the whole batch is remembered."""
    whole, new_stats = batch_norm(x, stats, scale, bias, train=train, **options)
    if not train:
        return whole, new_stats
    size = ghost_size or max(len(x) // num_ghosts, 1)
    where = np.broadcast_to(counted(x, options.pop("where", None)), np.shape(x))
    slices = [slice(start, start + size) for start in range(0, len(x), size)]
    ghosts = [batch_norm(x[s], stats, train=True, where=where[s], **options)[0] for s in slices]
    y = np.concatenate([whole[:0], *ghosts])
    return affine(y, scale, bias, options.get("channel_axis", -1)), new_stats


def paper_r_max(step):
    """Ioffe 2017: 1 for 5,000 steps, then linearly to 3 at step 40,000."""
    return np.interp(step, [5_000, 40_000], [1.0, 3.0])


def paper_d_max(step):
    """Ioffe 2017: 0 for 5,000 steps, then linearly to 5 at step 25,000."""
    return np.interp(step, [5_000, 25_000], [0.0, 5.0])


def corrections(x, stats, *, r_max, d_max, epsilon, channel_axis, where):
    """Give the clipped r and d of every channel."""
    r_max, d_max = (m(stats["steps"]) if callable(m) else m for m in (r_max, d_max))
    batch = moments(x, all_but(channel_axis, np.ndim(x)), where=where)
    s_batch, s = (np.sqrt(widen(var) + epsilon) for var in (batch.var, stats["var"]))
    r = np.clip(s_batch / s, 1 / r_max, r_max)
    d = np.clip((batch.mean - widen(stats["mean"])) / s, -d_max, d_max)
    return r, np.where(batch.count == 0, 0, d)


@normalization(
    "renorm",
    module="BatchRenorm",
    measured_over=batch_labels,
    state="init_renorm_stats",
    options={"train": True, "r_max": 1.5, "d_max": 0.5},
    module_options={"r_max": 1.5, "d_max": 0.5},
)
def batch_renorm(
    x,
    stats,
    scale=None,
    bias=None,
    *,
    train,
    r_max=paper_r_max,
    d_max=paper_d_max,
    momentum=0.99,
    epsilon=1e-5,
    channel_axis=-1,
    where=None,
    frozen=None,
):
    """Ioffe 2017: the running moments correct the batch's; frozen gives r and d as constants."""
    common = {"epsilon": epsilon, "channel_axis": channel_axis, "where": where}
    y, new_stats = batch_norm(x, stats, train=train, momentum=momentum, **common)
    if not train:
        return affine(y, scale, bias, channel_axis), stats
    r, d = frozen or corrections(x, stats, r_max=r_max, d_max=d_max, **common)
    y = affine(y, r, d, channel_axis)
    y = np.where(counted(x, where) | np.isfinite(widen(x)), y, 0)
    steps = int(stats["steps"]) + int(counted(x, where).any())
    return affine(y, scale, bias, channel_axis), {**new_stats, "steps": steps}


# Differentiating


def gradient(function, x, cotangent, step=1e-5):
    """Differentiate sum(cotangent * function(x)) by central differences, one entry at a time.

    An entry that is not finite has no derivative to measure; its gradient is zero.
    """
    x = np.array(widen(x))
    result = np.zeros_like(x)
    for index in zip(*np.nonzero(np.isfinite(x)), strict=True):
        value = x[index]
        sides = []
        for moved in (value + step, value - step):
            x[index] = moved
            sides.append(np.sum(cotangent * function(x)))
        x[index] = value
        result[index] = (sides[0] - sides[1]) / (2 * step)
    return result
