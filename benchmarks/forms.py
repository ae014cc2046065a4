"""jaxnorm's two forms in one process: a program holds the form chosen when it was lowered."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jaxnorm import kernels
from jaxnorm.kernels.library import library
from jaxnorm.kernels.native import plain_form


@contextlib.contextmanager
def native_form() -> Iterator[None]:
    """Take the native form, or raise an error where there are no kernels to take it from."""
    if not library().loaded:
        raise RuntimeError(f"there is no native form to measure: {kernels.status()}")
    yield


FORMS = {"jaxnorm": native_form, "plain": plain_form}
