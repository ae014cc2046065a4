"""Programs that consist of JAX's own primitives, for tools that read programs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from jaxnorm.kernels.library import switched_off

__all__ = ["standard_primitives"]

_wanted = jax.make_user_context(False)  # a part of the key of every cache of `jit`


@contextlib.contextmanager
def standard_primitives() -> Iterator[None]:
    """Use JAX's own primitives only, in all functions that are traced inside this context.

    Otherwise jaxnorm's functions and modules use two primitives of their own: one becomes a native
    kernel when a program is compiled for a CPU, and one holds a derivative with its transpose.
    Tools that convert a jaxpr (to ONNX, to TensorFlow) or interpret it do not know them. The values
    are the same up to rounding. Gradients that are traced inside are JAX's own derivatives of the
    operations, so the backward pass keeps more arrays.

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
    """Whether functions are now traced to JAX's own primitives only."""
    return bool(_wanted.value) or switched_off()
