"""The two forms of jaxnorm in one process. The form is chosen when a program is lowered."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

from jaxnorm import kernels
from jaxnorm.kernels.library import library
from jaxnorm.kernels.target import as_on


@contextlib.contextmanager
def native_form() -> Iterator[None]:
    """Use the native form, or raise an error if there are no kernels."""
    if not library().loaded:
        raise RuntimeError(f"the native form is not available: {kernels.status()}")
    yield


FORMS = {"jaxnorm": native_form, "plain": partial(as_on, "cpu")}
