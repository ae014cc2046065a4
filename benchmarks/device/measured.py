"""What is measured of a case: its errors, its times beside other libraries, a training step."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.compiled import FLOOR, LIBRARIES
from benchmarks.compiled import cases as layers
from benchmarks.compiled import steps as networks
from benchmarks.timing import interleaved

STEPS_SO_FAR = 22_500  # of renorm, whose bounds are then neither the first nor the last
MOST_CALLS, LEAST_SECONDS = 20, 0.02  # of one timing

Record = dict[str, Any]
Calls = dict[Any, Callable[[], Any]]


def first_line(error: Exception) -> str:
    """The first line of an error, with its type."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]


def filled(
    tree: Any, scale: float = 1.0, mean: float = 0.0, signed: bool = False, seed: int = 0
) -> Any:
    """Replace the shapes of a tree by arrays of random values."""
    draws = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = scale * draws.standard_normal(leaf.shape, np.float32) + mean
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            values = np.full(leaf.shape, STEPS_SO_FAR)
        values = values if signed else abs(values)
        return jax.device_put(np.asarray(values).astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(draw, tree)


def arguments(shapes: list[Any], mean: float = 0.0) -> list[Any]:
    """The arguments of a layer: x, parameters, statistics, mask and cotangent."""
    x, params, stats, mask, cotangent = shapes
    others = filled([params, stats, mask], seed=1)
    return [filled(x, 1.5, mean, signed=True), *others, filled(cotangent, signed=True, seed=2)]


# Values


def values(norm: str, shape: layers.Shape, dtype: str, mean: float) -> Record:
    """The largest errors of y and of every gradient, over their largest right values."""
    record: Record = {"norm": norm, "shape": shape, "dtype": dtype, "mean": mean, "error": {}}
    for library in layers.libraries(norm):
        case = layers.Case(norm, shape, dtype, "both", library=library)
        function, shapes = layers.program(case, "here")
        x, params, stats, mask, cotangent = arguments(shapes, mean)
        y, _, (dx, gradients) = jax.jit(function)(x, params, stats, mask, cotangent)
        right = expected(norm, *jax.tree.map(in_float64, (x, params, stats, cotangent)))
        got = jax.tree.map(
            in_float64, {"y": y, "dx": dx} | {f"d{k}": v for k, v in gradients.items()}
        )
        record["error"][library] = {
            name: float(abs(got[name] - right[name]).max() / abs(right[name]).max()) for name in got
        }
    return record


def in_float64(array: jax.Array) -> np.ndarray:
    """The array in float64."""
    return np.asarray(array).astype(np.float64)


def expected(
    norm: str, x: np.ndarray, params: Any, stats: Any, cotangent: np.ndarray
) -> dict[str, np.ndarray]:
    """The output and the gradients by the textbook's formula."""
    n, channels, dims = x.shape[0], x.shape[-1], x.ndim
    view, axes = {
        "ghost": ((layers.GHOSTS, n // layers.GHOSTS, *x.shape[1:]), tuple(range(1, dims))),
        "layer": (x.shape, (-1,)),
        "rms": (x.shape, (-1,)),
        "group": (
            (*x.shape[:-1], layers.GROUPS, channels // layers.GROUPS),
            (*range(1, dims - 1), -1),
        ),
        "instance": (x.shape, tuple(range(1, dims - 1))),
    }.get(norm, (x.shape, tuple(range(dims - 1))))
    over = partial(np.mean, axis=axes, keepdims=True)
    centered = norm != "rms"
    mean = over(x.reshape(view)) if centered else 0.0
    # The defaults of jaxnorm and of Flax.
    epsilon = 1e-5 if norm in layers.OVER_BATCH else 1e-6
    std = np.sqrt(over(np.square(x.reshape(view) - mean)) + epsilon)
    unit = (x.reshape(view) - mean) / std
    r, d = 1.0, 0.0
    if norm == "renorm":
        steps = STEPS_SO_FAR - 5_000  # since the bounds began to rise, to step 40,000 and 25,000
        bound_r, bound_d = 1 + 2 * steps / 35_000, 5 * steps / 20_000
        running = np.sqrt(stats["var"] + epsilon)
        r = np.clip(std / running, 1 / bound_r, bound_r)
        d = np.clip((mean - stats["mean"]) / running, -bound_d, bound_d)
    before = (unit * r + d).reshape(x.shape)
    g = (cotangent * params["scale"]).reshape(view) * r
    dx = (g - (over(g) if centered else 0.0) - unit * over(g * unit)) / std
    rows = tuple(range(dims - 1))
    return {
        "y": before * params["scale"] + params.get("bias", 0.0),
        "dx": dx.reshape(x.shape),
        "dscale": (cotangent * before).sum(rows),
        "dbias": cotangent.sum(rows),
    }


# Times


def times(calls: Calls, rounds: int, errors: Record) -> dict[Any, float]:
    """Milliseconds of a call: medians of interleaved timings, each of several calls."""
    counts, timed = {}, {}
    for name, call in calls.items():
        wait = pytorch_wait() if name[0] == "torch.compile" else jax.block_until_ready
        several = partial(lambda call, wait, n: wait([call() for _ in range(n)]), call, wait)
        try:
            several(2)
            begin = perf_counter()
            several(1)
            taken = perf_counter() - begin
        except Exception as error:
            errors[_named(name)] = first_line(error)
            continue
        counts[name] = min(max(math.ceil(LEAST_SECONDS / taken), 1), MOST_CALLS)
        timed[name] = partial(several, counts[name])
    return {name: ms / counts[name] for name, ms in interleaved(timed, rounds).items()}


def pytorch_wait() -> Callable[[Any], Any]:
    """The function that waits for PyTorch, which is imported only if it is timed."""
    from benchmarks.device import pytorch

    return pytorch.wait


def _named(name: Any) -> str:
    return name if isinstance(name, str) else " ".join(name)


def compiled(programs: dict[Any, tuple[Callable[..., Any], list[Any]]]) -> tuple[Any, Record]:
    """Compile the programs together; return their calls, and the errors of those that fail."""
    made, errors = {}, {}
    with ThreadPoolExecutor() as pool:
        futures = {
            name: pool.submit(lambda f, given: jax.jit(f).lower(*given).compile(), f, given)
            for name, (f, given) in programs.items()
        }
    for name, future in futures.items():
        try:
            made[name] = partial(future.result(), *programs[name][1])
        except Exception as error:
            errors[_named(name)] = first_line(error)
    return made, errors


def layer(norm: str, shape: layers.Shape, dtype: str, rounds: int) -> Record:
    """Milliseconds of every library and pass, and the fewest bytes to move over them."""
    _, shapes = layers.program(layers.Case(norm, shape, dtype, "both"), "here")
    given = arguments(shapes)  # the same of all libraries
    x = given[0]
    programs: dict[Any, Any] = {("copy", "forward"): (jnp.copy, [x])}
    for which in layers.PASSES:
        own = given if which == "both" else given[:4]
        for library in layers.libraries(norm):
            case = layers.Case(norm, shape, dtype, which, library=library)
            programs[library, which] = (layers.program(case, "here")[0], own)
        if norm in ("layer", "rms") and find_spec("tokamax"):
            programs["tokamax", which] = (tokamax(norm, which), own)
    calls, errors = compiled(programs)
    if norm not in ("ghost", "renorm") and find_spec("torch"):
        try:
            from benchmarks.device import pytorch

            calls |= pytorch.calls(norm, shape, dtype, layers.GROUPS)
        except Exception as error:
            errors["torch.compile"] = first_line(error)

    found: Record = {}
    for (library, which), ms in times(calls, rounds, errors).items():
        rate = FLOOR[which] * x.nbytes / ms / 1e6
        found.setdefault(library, {})[which] = {"ms": ms, "GB/s": rate}
    return {"norm": norm, "shape": shape, "dtype": dtype, "times": found, "errors": errors}


def tokamax(norm: str, which: str) -> Callable[..., Any]:
    """The layer and RMS normalization of tokamax: a kernel, if it has one for the device."""

    def forward(x: Any, params: Any, *_: Any) -> Any:
        import tokamax

        scale, bias = params["scale"], params.get("bias")
        return tokamax.layer_norm(x, scale, bias, epsilon=1e-6, subtract_mean=norm == "layer")

    def both(x: Any, params: Any, stats: Any, mask: Any, cotangent: Any) -> Any:
        y, backward = jax.vjp(forward, x, params)
        return y, backward(cotangent)

    return forward if which == "forward" else both


# Training steps


def step(network: str, dtype: str, rounds: int, shape: Any = None, **sizes: Any) -> Record:
    """Milliseconds, loss and memory of a step of each library."""
    programs = {}
    for library in LIBRARIES:
        one = networks.Step(network, dtype, library)
        function, (x, state) = networks.program(one, "here", shape, **sizes)
        programs[library] = (function, [filled(x, signed=True), filled(state, 0.02)])
    calls, errors = compiled(programs)
    record: Record = {"network": network, "dtype": dtype, "loss": {}, "memory": {}, "peak": {}}
    for library in list(calls):
        before = peak()
        try:
            record["loss"][library] = float(calls[library]()[0])
        except Exception as error:
            errors[library] = first_line(error)
            del calls[library]
            continue
        record["memory"][library] = needed(calls[library].func)
        record["peak"][library] = peak() if peak() != before else None
    return record | {"ms": times(calls, rounds, errors), "errors": errors}


def needed(program: Any) -> int | None:
    """The bytes of arguments, results and temporary arrays, if the compiler knows them."""
    found = program.memory_analysis()
    parts = ("argument", "output", "temp")
    return found and sum(getattr(found, f"{part}_size_in_bytes") for part in parts)


def peak() -> int | None:
    """The peak of the bytes in use on the device, if the device reports it."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
