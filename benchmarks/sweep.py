"""Both forms of jaxnorm from a hundred values to a hundred million: where threads start to pay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.candidates import PLAIN
from benchmarks.peers import LIBRARIES
from benchmarks.speed import interleaved
from benchmarks.table import Table
from jaxnorm.kernels.native import plain_form

CHANNELS = {"batch": 64, "layer": 256, "group": 64}
SIZES = [10**power for power in range(2, 9)]
ROUNDS = {10**8: 3, 10**7: 7}


def measure(full: bool) -> list[Table]:
    """The time of jaxnorm over that of its plain form, by size."""
    rows = []
    for norm in CHANNELS:
        for size in SIZES:
            rows.append(_row(norm, size, ROUNDS.get(size, 31 if full else 21)))
    return [
        Table(
            title="From small to large",
            columns=("norm", "values", "forward ms", "/ plain form", "both ms", "/ plain form "),
            rows=rows,
            notes=(
                "Median milliseconds of jaxnorm in float32 and its ratio to its plain form in the "
                "same process; below a hundred thousand values or so most of the time is that of "
                "calling a compiled program. Threads are used from 256 KB on."
            ),
        )
    ]


def _row(norm: str, size: int, rounds: int) -> tuple[str, ...]:
    """One norm at about one number of values."""
    shape = _shape(norm, size)
    functions: dict[Any, Callable[[], Any]] = {}
    for form in ("jaxnorm", PLAIN):
        functions |= _compiled(norm, shape, form)
    times = interleaved(functions, rounds)
    shown: list[str] = []
    for name in ("forward", "both"):
        own = times["jaxnorm", name]
        shown += [f"{own:.3f}", f"{own / times[PLAIN, name]:.2f}"]
    return (norm, f"1e{len(str(size)) - 1}", *shown)


def _shape(norm: str, size: int) -> tuple[int, ...]:
    """A shape of about so many values."""
    if norm == "group":
        positions = max(size // CHANNELS[norm], 1)
        return max(positions // 784, 1), min(positions, 784), CHANNELS[norm]
    channels = min(CHANNELS[norm], size // 2)
    return size // channels, channels


def _compiled(norm: str, shape: tuple[int, ...], form: str) -> dict[Any, Callable[[], Any]]:
    """The two passes of one form."""
    apply = LIBRARIES["jaxnorm"](norm, shape[-1], jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    parameters = [jnp.ones(shape[-1]), jnp.zeros(shape[-1])]

    def both(parameters: Any, x: jax.Array) -> Any:
        y, backward, state = jax.vjp(apply, parameters, x, has_aux=True)
        return y, backward(x), state

    def compiled(function: Callable[..., Any]) -> Callable[[], Any]:
        if form == PLAIN:
            with plain_form():
                program = jax.jit(function).lower(parameters, x).compile()
        else:
            program = jax.jit(function).lower(parameters, x).compile()
        return lambda: jax.block_until_ready(program(parameters, x))

    return {
        (form, "forward"): compiled(lambda *arguments: apply(*arguments)),
        (form, "both"): compiled(both),
    }
