"""Inputs as sequences of rows."""

import jax
import jax.numpy as jnp

from experiments.models.base import present


def sequence_shape(input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows that an input has and the numbers of a row; of features, one each."""
    length, *rest = input_shape
    width = 1
    for size in rest:
        width *= size
    return length, width


def sequences(
    inputs: jax.Array, lengths: jax.Array | None, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Return the rows (batch, rows, width) of inputs, and which of them count (batch, rows).

    Those that do not, beyond `lengths` or of examples at which `mask` is False, hold zeros.
    """
    batch, length = inputs.shape[:2]
    valid = jnp.ones((batch, length), bool)
    if lengths is not None:
        valid &= jnp.arange(length) < lengths[:, None]
    if mask is not None:
        valid &= mask[:, None]
    return present(inputs, valid).reshape(batch, *sequence_shape(inputs.shape[1:])), valid
