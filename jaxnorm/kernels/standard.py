"""Programs of JAX's own primitives alone, for tools that read a program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from jaxnorm.kernels.library import switched_off

__all__ = ["standard_primitives"]

_wanted = jax.make_user_context(False)  # a part of the key of every cache of `jit`


@contextlib.contextmanager
def standard_primitives() -> Iterator[None]:
    """Functions that are traced inside consist of JAX's own primitives alone.

    jaxnorm's functions and modules otherwise bind two primitives of their own: one that becomes a
    native kernel where a program is compiled for a CPU, and one that holds a derivative with its
    transpose. Tools that convert a jaxpr (to ONNX, to TensorFlow) or interpret it know neither.
    The values are the same up to rounding. A gradient that is traced inside is the one that JAX
    finds from the operations, so its backward pass keeps more arrays.

    The environment variable `JAXNORM_KERNELS=off` does the same for a whole process.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> with jn.standard_primitives():
        ...     program = jax.make_jaxpr(jn.rms_norm)(jnp.ones((2, 4)))
        >>> "jaxnorm" in str(program)
        False
    """
    with _wanted(True):
        yield


def only_standard() -> bool:
    """Whether what is traced now may hold no primitive of jaxnorm's own."""
    return bool(_wanted.value) or switched_off()
