"""The primitives under `jax.experimental.checkify`, which searches their results for NaN."""

from __future__ import annotations

from functools import partial

from jax.extend.core import Primitive


def register_nan_check(primitive: Primitive) -> None:
    """Make `checkify.float_checks` report a primitive that yields NaN.

    JAX has no public function for this. In a version of JAX without the private one that is used
    here, the check reports a later operation instead.
    """
    try:
        from jax._src.checkify import error_checks, nan_error_check
    except ImportError:
        return
    error_checks[primitive] = partial(nan_error_check, primitive)
