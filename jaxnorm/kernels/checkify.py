"""Results of our primitives under `jax.experimental.checkify`, which looks into them for NaN."""

from __future__ import annotations

from functools import partial

from jax.extend.core import Primitive


def check_nan(primitive: Primitive) -> None:
    """Let `checkify.float_checks` name the primitive where a result of it is NaN.

    JAX has no public way to say so. Where it has changed the private one, the check names a later
    operation instead.
    """
    try:
        from jax._src.checkify import error_checks, nan_error_check
    except ImportError:
        return
    error_checks[primitive] = partial(nan_error_check, primitive)
