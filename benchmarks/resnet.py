"""A whole training step of a ResNet-20 with the modules of Flax and of jaxnorm in both forms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnorm.linen as jnn
from benchmarks.forms import FORMS
from benchmarks.table import SHORT, Table
from benchmarks.timing import interleaved
from experiments.models.resnet import ResNet

IMAGES = (64, 28, 28, 1)  # a batch of Fashion-MNIST images
DEPTH, WIDTH = 20, 16
NORMS, DTYPES = ("BatchNorm",), ("float32",)
MORE_NORMS, MORE_DTYPES = ("BatchNorm", "GroupNorm", "LayerNorm"), ("float32", "bfloat16")
ROUNDS = 15
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}


@dataclass(frozen=True)
class Modules:
    """Creates the normalizations of the network from the module of a library and its options."""

    module: Any
    options: Any
    adds_bias: bool = True

    def __call__(self, *, name: str, **options: Any) -> Any:
        layer = self.module(**dict(self.options), **options, name=name)
        return lambda x, mask, *, train: layer(x)


def model(
    library: Any,
    norm: str,
    dtype: str,
    *,
    train: bool = True,
    depth: int = DEPTH,
    width: int = WIDTH,
) -> ResNet:
    """Return the network with a library's modules of this name, for training or evaluation."""
    options: dict[str, Any] = {"dtype": dtype}
    if norm == "BatchNorm":
        options["use_running_average"] = not train
    if norm == "GroupNorm":
        options["num_groups"] = 8
    return ResNet(
        norm=Modules(getattr(library, norm), tuple(options.items())),
        num_classes=10,
        dtype=dtype,
        dropout=0.0,
        depth=depth,
        width=width,
        position="before",
    )


def initial(net: ResNet, images: jax.Array) -> dict[str, Any]:
    """Return parameters, statistics and the state of the optimizer."""
    variables = net.init(jax.random.key(0), images, train=True)
    return {**variables, "optimizer": OPTIMIZER.init(variables["params"])}


def compiled(net: ResNet, state: Any, images: jax.Array, labels: jax.Array) -> Any:
    """Return the program of one step: loss, gradients, new statistics and the update."""

    def step(state: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        params, optimizer = state["params"], state["optimizer"]
        stats = {key: value for key, value in state.items() if key == "batch_stats"}

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, new = net.apply(
                {"params": params, **stats}, images, train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), labels
            )
            return losses.mean(), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, optimizer = OPTIMIZER.update(gradients, optimizer, params)
        params = optax.apply_updates(params, updates)
        return value, {**state, **new, "params": params, "optimizer": optimizer}

    return jax.jit(step).lower(state, images, labels).compile()


def measure(full: bool) -> list[Table]:
    """Return the median milliseconds of a step, and the ratios of both forms of jaxnorm to Flax."""
    norms, dtypes = (MORE_NORMS, MORE_DTYPES) if full else (NORMS, DTYPES)
    rows = [_row(norm, dtype, IMAGES, ROUNDS) for norm in norms for dtype in dtypes]
    return [
        Table(
            title="Time of a training step of a ResNet-20",
            columns=("norm", "dtype", "jaxnorm / Flax", "plain / Flax", *_columns()),
            rows=rows,
            notes=(
                "Median milliseconds of interleaved runs of a whole step (forward, backward, "
                f"statistics, SGD with momentum) on {IMAGES[0]} images of "
                f"{'x'.join(map(str, IMAGES[1:]))}, after which parameters are alike. The network "
                "is the same, its normalizations are Flax Linen's or jaxnorm's."
            ),
        )
    ]


def _columns() -> list[str]:
    return [f"{name} ms" for name in (*FORMS, "Flax")]


def _row(norm: str, dtype: str, shape: tuple[int, ...], rounds: int, **sizes: Any) -> list[str]:
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.standard_normal(shape, np.float32))
    labels = jnp.asarray(generator.integers(0, 10, shape[0]))
    state = jax.jit(partial(initial, model(nn, norm, dtype, **sizes)))(images)
    operands = (state, images, labels)
    programs = {}
    for name, form in FORMS.items():
        with form():
            programs[name] = compiled(model(jnn, norm, dtype, **sizes), *operands)
    programs["Flax"] = compiled(model(nn, norm, dtype, **sizes), *operands)
    _check_alike({name: program(*operands) for name, program in programs.items()}, dtype)
    times = interleaved(
        {
            name: lambda program=program: jax.block_until_ready(program(*operands))
            for name, program in programs.items()
        },
        rounds,
    )
    ratios = [f"{times[name] / times['Flax']:.2f}" for name in FORMS]
    return [norm, SHORT[dtype], *ratios, *(f"{times[name]:.1f}" for name in (*FORMS, "Flax"))]


def _check_alike(results: dict[str, Any], dtype: str) -> None:
    """Raise an error if the loss or the new parameters differ from those with Flax."""
    loss, state = results.pop("Flax")
    for name, (other, its) in results.items():
        differences = jax.tree.map(lambda a, b: abs(a - b).max(), its["params"], state["params"])
        largest = max(float(abs(other - loss)), *map(float, jax.tree.leaves(differences)))
        if not largest <= TOLERANCES[dtype]:
            raise ValueError(f"a step with {name} differs from one with Flax by {largest:.1e}")
