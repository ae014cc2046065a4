"""Interleaved timing of functions, and the programs that are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax

PASSES = ("forward", "both")

Parameters = list[jax.Array]
Apply = Callable[[Parameters, jax.Array], tuple[jax.Array, Any]]


def interleaved(functions: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """Return the median milliseconds of each function, called in alternating order."""
    times: dict[Any, list[float]] = {key: [] for key in functions}
    for _ in range(2):  # warm up
        for function in functions.values():
            function()
    for index in range(rounds):
        order = list(functions) if index % 2 == 0 else list(functions)[::-1]
        for key in order:
            begin = time.perf_counter()
            functions[key]()
            times[key].append(1e3 * (time.perf_counter() - begin))
    return {key: median(values) for key, values in times.items()}


def programs(
    apply: Apply, parameters: Parameters, x: jax.Array, cotangent: jax.Array
) -> dict[str, Any]:
    """Return the compiled passes of a normalization.

    `forward` maps (parameters, x) to the output and the new state. `both` takes these and the
    cotangent, and returns the output, the gradients of the parameters and of x, and the new state.
    """

    def forward(parameters: Parameters, x: jax.Array) -> Any:
        return apply(
            parameters, x
        )  # a separate function, because JAX caches the lowering of `apply`

    def both(parameters: Parameters, x: jax.Array, cotangent: jax.Array) -> Any:
        y, backward, state = jax.vjp(apply, parameters, x, has_aux=True)
        return y, backward(cotangent), state

    return {
        "forward": jax.jit(forward).lower(parameters, x).compile(),
        "both": jax.jit(both).lower(parameters, x, cotangent).compile(),
    }


def passes(
    apply: Apply, parameters: Parameters, x: jax.Array, cotangent: jax.Array
) -> dict[str, Callable[[], Any]]:
    """Return the compiled passes as functions that wait for their results."""
    compiled = programs(apply, parameters, x, cotangent)
    return {
        "forward": lambda: jax.block_until_ready(compiled["forward"](parameters, x)),
        "both": lambda: jax.block_until_ready(compiled["both"](parameters, x, cotangent)),
    }


def copies(x: jax.Array, cotangent: jax.Array) -> dict[str, Callable[[], Any]]:
    """Time memory traffic only: x + 1 as forward; for both also two arrays read and one written."""
    one_more = jax.jit(lambda x: x + 1).lower(x).compile()
    summed = jax.jit(lambda x, cotangent: x + cotangent).lower(x, cotangent).compile()

    def forward() -> jax.Array:
        return jax.block_until_ready(one_more(x))

    def both() -> tuple[jax.Array, jax.Array]:
        return forward(), jax.block_until_ready(summed(x, cotangent))

    return {"forward": forward, "both": both}
