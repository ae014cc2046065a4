"""Conversion of the weights of Keras and of TensorFlow's batch renormalization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxnorm.interop import entries as _entries
from jaxnorm.interop.entries import Arrays, Converted

__all__ = ["from_keras", "from_tensorflow_renorm", "to_keras", "to_tensorflow_renorm"]

_NAMES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
_MOVING = ("moving_mean", "moving_variance")
_RENORM = ("moving_stddev", "renorm_mean", "renorm_stddev")
_Weights = Mapping[str, Any] | Sequence[Any]


def from_keras(
    weights: _Weights,
    prefix: str = "",
    *,
    momentum: float = 0.99,
    epsilon: float | None = None,
    scale: bool = True,
    center: bool = True,
) -> Converted:
    """Convert one normalization of Keras: return its parameters, statistics and options.

    gamma becomes scale, beta bias, moving_mean and moving_variance mean and var. Keras has
    jaxnorm's conventions: momentum is the weight of the old value, and the variance is biased.

    Args:
        weights: a dict by path, {weight.path: weight.numpy() for weight in model.weights}; or the
            list of `layer.get_weights()`: gamma, beta, moving mean, moving variance, without those
            that the layer does not have.
        prefix: the path of the layer, for example "model/batch_normalization"; "" if the dict has
            only the layer's own names.
        momentum, epsilon: those of the layer, if they are not Keras's defaults: 0.99, and 1e-3
            (1e-6 for an RMSNormalization, which is recognized by its weight "scale").
        scale, center: those of the layer, for a list: whether it has gamma and beta. (The list of
            an RMSNormalization has no beta; give its epsilon.) Leave them out for a dict by path.

    Returns:
        params {"scale", "bias"}, without those that the layer does not have, of the shape [C]
        (LayerNormalization: of its axes); stats {"mean", "var"}, or {} for layer, group and RMS
        normalization; options {"momentum", "epsilon"}. Arrays are copies in the given dtype,
        statistics in float32 at least.

    Raises:
        TypeError: a value that does not convert to a NumPy array of floating-point numbers; `scale`
            or `center` with a dict by path.
        ValueError: a prefix that is not that of a normalization (the message lists these), a
            missing entry, a list of another length, shapes that differ, a layer with renorm.

    References:
        keras.layers.BatchNormalization, Keras 3.

    Example:
        >>> import numpy as np, jaxnorm as jn
        >>> weights = [np.ones(2), np.zeros(2), np.zeros(2), np.full(2, 4.0)]
        >>> params, stats, options = jn.interop.from_keras(weights)
        >>> options, stats["var"]
        ({'momentum': 0.99, 'epsilon': 0.001}, array([4., 4.]))
    """
    own = _layer(weights, prefix, scale, center, ())
    if not own.keys().isdisjoint(_RENORM):
        raise ValueError(f"the layer at {prefix!r} has renorm=True; use from_tensorflow_renorm")
    if epsilon is None:
        epsilon = 1e-6 if "scale" in own else 1e-3
    return _converted(own, prefix, momentum, epsilon)


def to_keras(
    params: Mapping[str, Any],
    stats: Mapping[str, Any] | None = None,
    prefix: str = "",
    *,
    rms: bool = False,
) -> Arrays:
    """Convert parameters and statistics to the weights of one normalization of Keras.

    This function inverts `from_keras` bit for bit.

    Args:
        params: {"scale", "bias"}, one of them or none; NumPy or jax arrays.
        stats: {"mean", "var"}; {} or None for layer, group and RMS normalization. "count" and
            "steps" are left out: Keras has no place for them.
        prefix: the path of the layer.
        rms: whether the layer is an RMSNormalization, whose weight is called "scale".

    Returns:
        {"prefix/gamma": array, ...} in the order of `layer.get_weights()`, so that
        `layer.set_weights(list(to_keras(...).values()))` loads them.

    Raises:
        TypeError: a value that does not convert to a NumPy array of floating-point numbers.
        ValueError: unknown or missing entries, shapes that differ, `rms` with more than a scale.

    Example:
        >>> import jaxnorm as jn
        >>> list(jn.interop.to_keras({}, jn.init_batch_stats(2), prefix="norm"))
        ['norm/moving_mean', 'norm/moving_variance']
    """
    params, stats, _ = _entries.read(params, stats)
    if rms and (stats or "bias" in params):
        raise ValueError(
            f"rms=True is for a scale only, got params {sorted(params)} and stats {sorted(stats)}"
        )
    names = {"scale": "scale"} if rms else _NAMES
    return _entries.joined(prefix, "/", _theirs(params | stats, names))


def from_tensorflow_renorm(
    weights: _Weights,
    prefix: str = "",
    *,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
    steps: int = 0,
    scale: bool = True,
    center: bool = True,
) -> Converted:
    """Convert one BatchNormalization with renorm=True: return parameters, statistics and options.

    mean = moving_mean and var = moving_variance, which evaluation uses. TensorFlow averages the
    standard deviation, so its moving_variance is moving_stddev^2 - epsilon; jaxnorm averages the
    variance. TensorFlow keeps a second pair of averages, renorm_mean and renorm_stddev, with its
    `renorm_momentum`, for the corrections in training. jaxnorm corrects by the mean and var of
    evaluation, so the second pair is not used. With the default momentums, both 0.99, the two pairs
    have the same values.

    Args:
        weights, prefix, scale, center: as for `from_keras`; a list ends with moving_stddev,
            renorm_mean and renorm_stddev.
        momentum, epsilon: those of the layer.
        steps: the number of training steps so far, for the schedules of jaxnorm's `r_max` and
            `d_max`; TensorFlow does not count them.

    Returns:
        As `from_keras`, with stats {"mean", "var", "steps"} for `jaxnorm.batch_renorm`. Give it
        rmax and dmax of the layer's `renorm_clipping` as `r_max` and `d_max`; rmin is 1 / `r_max`.

    Raises:
        As `from_keras`; also ValueError for a layer without renorm.

    References:
        BatchNormalization of tf_keras 2.21 and Keras 3.15; Ioffe, "Batch renormalization", 2017.

    Example:
        >>> import numpy as np, jaxnorm as jn
        >>> names = ("moving_mean", "moving_variance", "moving_stddev")
        >>> names += ("renorm_mean", "renorm_stddev")
        >>> weights = {f"norm/{name}": np.ones(2) for name in names}
        >>> _, stats, _ = jn.interop.from_tensorflow_renorm(weights, "norm", steps=100)
        >>> stats["steps"]
        array(100, dtype=int32)
    """
    own = _layer(weights, prefix, scale, center, _RENORM)
    _entries.check_all_there(prefix, own, (*_MOVING, *_RENORM))
    _entries.check_shapes({name: np.asarray(own[name]) for name in (*_MOVING, *_RENORM)})
    params, stats, options = _converted(own, prefix, momentum, epsilon)
    stats["steps"] = _entries.as_counter("steps", steps, np.int32)
    return params, stats, options


def to_tensorflow_renorm(
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    prefix: str = "",
    *,
    epsilon: float = 1e-3,
) -> Arrays:
    """Convert parameters and statistics to the weights of a BatchNormalization with renorm=True.

    moving_stddev = renorm_stddev = sqrt(var + epsilon) and renorm_mean = moving_mean = mean. For
    gamma, beta, moving_mean and moving_variance, this function inverts `from_tensorflow_renorm` bit
    for bit.

    Args:
        params: {"scale", "bias"}, one of them or none.
        stats: {"mean", "var"}. "count" and "steps" are left out: TensorFlow has no place for them.
        prefix: the path of the layer.
        epsilon: the epsilon of the layer.

    Returns:
        As `to_keras`, in the order of `layer.get_weights()`.

    Raises:
        As `to_keras`; also ValueError without statistics.

    Example:
        >>> import jaxnorm as jn
        >>> weights = jn.interop.to_tensorflow_renorm({}, jn.init_renorm_stats(1), epsilon=3.0)
        >>> weights["renorm_stddev"]
        array([2.], dtype=float32)
    """
    _entries.check_epsilon(epsilon)
    params, stats, _ = _entries.read(params, stats)
    if not stats:
        raise ValueError("renorm needs stats with mean and var, got none")
    deviation = np.sqrt(stats["var"].astype(np.float64) + epsilon).astype(stats["var"].dtype)
    renorm = {
        "moving_stddev": deviation,
        "renorm_mean": stats["mean"].copy(),
        "renorm_stddev": deviation.copy(),
    }
    return _entries.joined(prefix, "/", _theirs(params | stats, _NAMES) | renorm)


def _layer(
    weights: _Weights, prefix: str, scale: bool, center: bool, extra: Sequence[str]
) -> dict[str, Any]:
    """The weights of a layer by name; the order of a list determines the names."""
    if isinstance(weights, Mapping):
        if not (scale and center):
            raise TypeError(
                f"scale={scale!r} and center={center!r} describe a list of weights; leave them out "
                "for a dict by path"
            )
        return _entries.layer(weights, prefix, (*_NAMES, "scale", *_RENORM), "/")
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(
            f"the weights must be a dict by path or the list of get_weights(), got "
            f"{type(weights).__name__}"
        )
    if prefix:
        raise TypeError(
            f"prefix={prefix!r} is for a dict by path; leave it out for the list of one layer"
        )
    params = ["gamma"] * scale + ["beta"] * center
    whole = [*params, *_MOVING, *extra]
    if len(weights) not in {len(whole), len(params)} - {0}:
        raise ValueError(
            f"the list holds {len(weights)} weights, where {whole} or {params} are expected with "
            f"scale={scale!r} and center={center!r}; give scale and center as in the layer"
        )
    return dict(zip(whole, weights, strict=False))


def _converted(own: Mapping[str, Any], prefix: str, momentum: float, epsilon: float) -> Converted:
    """Our parameters, statistics and options, from the weights of a layer by name."""
    _entries.check_weight("momentum", momentum)
    _entries.check_epsilon(epsilon)
    if not own.keys().isdisjoint(_MOVING):
        _entries.check_all_there(prefix, own, _MOVING)
    names = {**_NAMES, "scale": "scale"}
    if "scale" in own and len(own) > 1:
        raise ValueError(f"a layer with a weight 'scale' has no other weights, got {sorted(own)}")
    params, stats = _entries.ours(own, names)
    return params, stats, _entries.options_of(stats, momentum, epsilon)


def _theirs(arrays: Arrays, names: Mapping[str, str]) -> Arrays:
    """The arrays under their names; `names` maps theirs to ours."""
    return {theirs: arrays[ours] for theirs, ours in names.items() if ours in arrays}
