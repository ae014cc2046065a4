"""Whole models, each with the normalizations of several libraries and with none.

A model is written once (`networks.py`). Its training step and its inference are compiled with each
library's modules and called in turn. Flax Linen's are measured against themselves too, as another
program of the same source: what that differs from 1 is what the machine does by itself.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from statistics import geometric_mean
from time import perf_counter
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm.linen as jnn
from benchmarks import networks
from benchmarks.forms import FORMS
from benchmarks.table import SHORT, Table
from benchmarks.timing import interleaved

Shape = tuple[int, ...]
Calls = dict[str, Callable[[], Any]]


class Model(NamedTuple):
    """A network, the shape of its input, and its own arguments.

    Attributes:
        one: whether inference of a single example is measured too.
        pairs: which normalizations are folded into which layers for inference.
    """

    network: Callable[..., nn.Module]
    shape: Shape
    sizes: Mapping[str, Any] = nn.FrozenDict()
    one: bool = False
    pairs: Mapping[str, str] = nn.FrozenDict()


MODELS = {
    "ResNet-20": Model(
        networks.ResNet20, (32, 32, 32, 3), one=True, pairs={"Conv_*": "BatchNorm_*"}
    ),
    "ResNet bottlenecks": Model(
        networks.Bottlenecks,
        (8, 28, 28, 256),
        pairs={"Bottleneck_*/Conv_*": "Bottleneck_*/BatchNorm_*"},
    ),
    "transformer, LayerNorm": Model(networks.Transformer, (4, 128, 256)),
    "transformer, RMSNorm": Model(networks.Transformer, (4, 128, 256), {"kind": "RMSNorm"}),
    "U-Net blocks, GroupNorm": Model(networks.UNetBlocks, (4, 16, 16, 128)),
    "ConvNeXt blocks, LayerNorm": Model(networks.ConvNeXtBlocks, (4, 28, 28, 96)),
    "perceptron, BatchNorm": Model(
        networks.Perceptron,
        (256, 512),
        one=True,
        pairs={f"Dense_{at}": f"BatchNorm_{at}" for at in range(3)},
    ),
}
DTYPES = ("float32", "bfloat16")
LIBRARIES: dict[str, tuple[Any, Callable[[], AbstractContextManager[Any]]]] = {
    "Flax": (nn, nullcontext),  # compiled first: it pays for what all share
    **{name: (jnn, form) for name, form in FORMS.items()},
    "NNX": (networks.NNX(), nullcontext),
    "none": (networks.Nothing(), nullcontext),
    "again": (nn, nullcontext),
}
RATIOS = ("jaxnorm", "plain", "NNX", "PyTorch", "none", "again")
SECONDS, ROUNDS = 5, (7, 201)  # of all rounds of a case; the least and the most of them
LEAST_SECONDS = 0.005  # of one timing, which is of several calls of a small model
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}  # of the largest value

Row = dict[str, Any]


def measure(full: bool) -> list[Table]:
    """Return the ratios of every model to itself with Flax's modules, in training and inference."""
    seconds = 4 * SECONDS if full else SECONDS
    training, inference = [], []
    for name, model in MODELS.items():
        for dtype in DTYPES:
            training.append(trained(name, model, dtype, seconds))
            inference += evaluated(name, model, dtype, seconds)
    return [
        _table("Models: a training step", training, ("compile", "plain compile")),
        _table("Models: inference", inference, ("folded",)),
    ]


def trained(name: str, model: Model, dtype: str, seconds: float) -> Row:
    """Measure a training step: its time, and that of its compilation."""
    x, (variables, optimizer) = drawn(model, dtype)
    calls, compiling = {}, {}
    for library, (norms, form) in LIBRARIES.items():
        step = networks.step(model.network(norms, dtype, **model.sizes))
        state = (variables, optimizer)
        if library == "none":
            state = started(model, dtype, norms, x)
        with form():
            calls[library], compiling[library] = _compiled(step, x, state)
    check_alike(name, dtype, {key: call() for key, call in calls.items() if key != "none"})
    calls |= _in_torch(name, model.shape, dtype, train=True)
    times = _times(calls, seconds)
    compiled = {
        "compile": compiling["jaxnorm"] / compiling["again"],
        "plain compile": compiling["plain"] / compiling["again"],
    }
    return {"model": name, "dtype": dtype, "shape": model.shape, "times": times} | compiled


def evaluated(name: str, model: Model, dtype: str, seconds: float) -> Iterator[Row]:
    """Measure inference of a batch, and of one example of some models."""
    for number in (model.shape[0], 1) if model.one else model.shape[:1]:
        one = model._replace(shape=(number, *model.shape[1:]))
        x, (variables, _) = drawn(one, dtype)
        calls = {}
        for library, (norms, form) in LIBRARIES.items():
            network = model.network(norms, dtype, train=False, **model.sizes)
            own = started(one, dtype, norms, x)[0] if library == "none" else variables
            with form():
                calls[library], _ = _compiled(network.apply, own, x)
        calls |= _folded(one, dtype, variables, x)
        check_alike(name, dtype, {key: call() for key, call in calls.items() if key != "none"})
        calls |= _in_torch(name, one.shape, dtype, train=False)
        times = _times(calls, seconds)
        yield {"model": name, "dtype": dtype, "shape": one.shape, "times": times}


def drawn(model: Model, dtype: str) -> tuple[jax.Array, Any]:
    """Return an input, and a state whose normalizations are not at their initial values."""
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal(model.shape, np.float32), dtype)
    variables, optimizer = started(model, dtype, nn, x)

    def moved(path: Any, leaf: jax.Array) -> jax.Array:
        if path[-1].key not in ("scale", "bias", "mean", "var"):
            return leaf
        return jnp.asarray(generator.uniform(0.5, 1.5, leaf.shape), leaf.dtype)

    return x, (jax.tree_util.tree_map_with_path(moved, variables), optimizer)


def started(model: Model, dtype: str, norms: Any, x: jax.Array) -> Any:
    """Return the initial state with these modules."""
    network = model.network(norms, dtype, **model.sizes)
    return jax.jit(lambda x: networks.initial(network, x))(x)


def check_alike(name: str, dtype: str, results: dict[str, Any]) -> None:
    """Raise an error if a result of a library is not that of Flax's modules."""
    expected = jax.tree.leaves(results["Flax"])
    for library, result in results.items():
        for one, right in zip(jax.tree.leaves(result), expected, strict=True):
            one, right = (array.astype(jnp.float32) for array in (one, right))
            allowed = TOLERANCES[dtype] * float(abs(right).max())
            if not float(abs(one - right).max()) <= allowed + TOLERANCES[dtype]:
                raise ValueError(f"{name} in {dtype} with {library} differs from it with Flax")


def _compiled(function: Any, *operands: Any) -> tuple[Callable[[], Any], float]:
    """Return the program of a function on operands, and the seconds of its compilation."""
    begin = perf_counter()
    program = jax.jit(function).lower(*operands).compile()
    seconds = perf_counter() - begin
    return lambda: jax.block_until_ready(program(*operands)), seconds


def _folded(model: Model, dtype: str, variables: Any, x: jax.Array) -> Calls:
    """Return inference with the batch normalizations folded into the layers before them."""
    if not model.pairs:
        return {}
    network: Any = model.network(jnn, dtype, train=False, **model.sizes)
    own = jnn.fold(network, variables, model.pairs, x, tolerance=TOLERANCES[dtype])

    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return jnn.apply_folded(network, variables, x)

    return {"folded": _compiled(apply, own, x)[0]}


def _in_torch(name: str, shape: Shape, dtype: str, *, train: bool) -> Calls:
    """Return the same model in PyTorch, where there is PyTorch and that is a few lines."""
    if find_spec("torch") is None:
        return {}
    from benchmarks import torch_models

    if name not in torch_models.MODELS:
        return {}
    return {"PyTorch": torch_models.call(name, shape, dtype, train)}


def _times(calls: Calls, seconds: float) -> dict[str, float]:
    """Return the medians of as many rounds as take about so many seconds."""
    for call in calls.values():
        call()
    begin = perf_counter()
    for call in calls.values():
        call()
    taken = perf_counter() - begin
    several = max(math.ceil(LEAST_SECONDS * len(calls) / taken), 1)

    def repeated(call: Callable[[], Any]) -> Callable[[], None]:
        def repeat() -> None:
            for _ in range(several):
                call()

        return repeat

    least, most = ROUNDS
    rounds = min(max(round(seconds / (taken * several)), least), most)
    gc.collect()
    times = interleaved({name: repeated(call) for name, call in calls.items()}, rounds)
    return {name: time / several for name, time in times.items()}


# The tables


def _table(title: str, rows: list[Row], more: tuple[str, ...]) -> Table:
    """Return a table of the ratios to Flax; `more` are further columns."""
    return Table(
        title=title,
        columns=(
            *("model", "input", "dtype"),
            *(f"{name} / Flax" for name in RATIOS),
            *(f"{name} / Flax" for name in more),
            "Flax ms",
        ),
        rows=[_cells(row, more) for row in rows],
        notes=_notes(title.removeprefix("Models: ").capitalize(), rows),
    )


def _cells(row: Row, more: tuple[str, ...]) -> list[str]:
    case = [row["model"], "x".join(map(str, row["shape"])), SHORT[row["dtype"]]]
    found = [_ratio(row, name) for name in (*RATIOS, *more)]
    ratios = ["-" if ratio is None else f"{ratio:.2f}" for ratio in found]
    return [*case, *ratios, f"{row['times']['Flax']:.2f}"]


def _ratio(row: Row, name: str) -> float | None:
    """Return the time of a library over Flax's, or None if it was not measured."""
    times = row["times"]
    return times[name] / times["Flax"] if name in times else row.get(name)


def _notes(what: str, rows: list[Row]) -> str:
    """Return what the ratios are of, their geometric means, the largest, and the noise."""
    ratios = {name: [row["times"][name] / row["times"]["Flax"] for row in rows] for name in FORMS}
    none = [row["times"]["none"] / row["times"]["Flax"] for row in rows]
    noise = max(abs(math.log(row["times"]["again"] / row["times"]["Flax"])) for row in rows)
    largest = max(rows, key=lambda row: row["times"]["jaxnorm"] / row["times"]["Flax"])
    worst = largest["times"]["jaxnorm"] / largest["times"]["Flax"]
    means = {name: geometric_mean(values) for name, values in ratios.items()}
    return (
        f"{what}: median times of interleaved calls, over that with Flax Linen's modules. "
        f"Geometric means: jaxnorm {means['jaxnorm']:.2f}, plain {means['plain']:.2f}, none "
        f"{geometric_mean(none):.2f}. The largest ratio of jaxnorm is {worst:.2f} "
        f"({largest['model']}, {SHORT[largest['dtype']]}). Flax differs from itself by up to "
        f"{math.expm1(noise):.0%}."
    )
