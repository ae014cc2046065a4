"""The axes of the input that the scale and the bias have.

These are the feature axes, and by example further axes of the input, which are called *leading*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm import axes as _axes


class Affine(NamedTuple):
    """A scale and a bias with the same axes of the input, in ascending order.

    Attributes:
        scale, bias: or None.
        axes: their axes; empty if there is neither.
        leading: those of `axes` that are no feature axes.
    """

    scale: jax.Array | None
    bias: jax.Array | None
    axes: tuple[int, ...] = ()
    leading: tuple[int, ...] = ()


def affine_of(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    features: tuple[int, ...],
    mask: jax.Array | None = None,
) -> Affine:
    """The scale and the bias of an input, broadcast to the axes that one of them varies along.

    By example an entry that is not finite is 0 where nothing counts: the condition of an example
    that fills up a batch may be NaN.

    Args:
        scale, bias: as `checks.as_parameter` returns them.
        features: the feature axes of `x`.
        mask: boolean, with as many axes as `x`.
    """
    given = [parameter for parameter in (scale, bias) if parameter is not None]
    if not given:
        return Affine(None, None)
    if features and all(parameter.ndim == len(features) for parameter in given):
        return Affine(scale, bias, features)
    along = features or (x.ndim - 1,)  # a number is broadcast along one axis
    whole = [_with_axes_of(x, parameter, features) for parameter in given]
    if mask is not None:
        whole = [_finite_where_nothing_counts(parameter, mask) for parameter in whole]
    varied = {axis for array in whole for axis in range(x.ndim) if array.shape[axis] != 1}
    leading = tuple(sorted(varied.difference(along)))
    axes = tuple(sorted((*leading, *along)))
    others, shape = _axes.other_axes(x.ndim, axes), [x.shape[axis] for axis in axes]
    same = iter([jnp.broadcast_to(jnp.squeeze(array, others), shape) for array in whole])
    scale, bias = (None if parameter is None else next(same) for parameter in (scale, bias))
    return Affine(scale, bias, axes, leading)


def _with_axes_of(x: jax.Array, parameter: jax.Array, features: Sequence[int]) -> jax.Array:
    """A parameter with as many axes as `x`, to which it broadcasts."""
    number = parameter.ndim - len(features)
    own = (*_axes.leading_axes(x.ndim, features, number), *features)
    ascending = jnp.transpose(parameter, sorted(range(len(own)), key=own.__getitem__))
    return jnp.expand_dims(ascending, _axes.other_axes(x.ndim, own))


def _finite_where_nothing_counts(parameter: jax.Array, mask: jax.Array) -> jax.Array:
    """A parameter with as many axes as the mask, 0 where it is not finite and nothing counts."""
    alike = tuple(axis for axis, size in enumerate(parameter.shape) if size == 1)
    counts = jnp.any(mask, alike, keepdims=True)
    return jnp.where(counts | jnp.isfinite(parameter), parameter, 0)
