"""The dtypes of statistics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def statistics_dtype(dtype: Any) -> Any:
    """The dtype in which statistics of `dtype` are computed and kept: float32 at least."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def promoted_dtype(a: Any, b: Any) -> Any:
    """The dtype that both dtypes promote to, float32 at least."""
    with jax.numpy_dtype_promotion("standard"):
        return statistics_dtype(jnp.promote_types(a, b))


def real_dtype(dtype: Any) -> Any:
    """The dtype of the real part."""
    return jnp.finfo(dtype).dtype


def is_below_float32(dtype: Any) -> bool:
    """Whether a dtype is a floating dtype narrower than float32."""
    return jnp.issubdtype(dtype, jnp.inexact) and statistics_dtype(dtype) != dtype
