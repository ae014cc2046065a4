"""Inputs as sequences along their first axis."""

import jax
import jax.numpy as jnp

from experiments.models.base import present


def sequence_shape(input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the length of the sequence and the features of an element; a table has one each."""
    length, *rest = input_shape
    width = 1
    for size in rest:
        width *= size
    return length, width


def sequences(
    inputs: jax.Array, lengths: jax.Array | None, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Return sequences (batch, time, features) and a mask (batch, time) of their valid elements.

    Elements beyond `lengths`, or of examples where `mask` is False, are zero.
    """
    batch, length = inputs.shape[:2]
    valid = jnp.ones((batch, length), bool)
    if lengths is not None:
        valid &= jnp.arange(length) < lengths[:, None]
    if mask is not None:
        valid &= mask[:, None]
    return present(inputs, valid).reshape(batch, *sequence_shape(inputs.shape[1:])), valid
