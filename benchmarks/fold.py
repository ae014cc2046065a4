"""Inference of a ResNet-20 whose normalizations are folded into its convolutions."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm.linen as jnn
from benchmarks.resnet import IMAGES, model
from benchmarks.table import Table
from benchmarks.timing import interleaved

BATCHES, MORE_BATCHES = (1, 64), (1, 16, 64, 256)
ROUNDS = 31
PAIRS = {"Conv_*": "norm_*"}
LIBRARIES = {"jaxnorm": jnn, "Flax": nn}


def trained(variables: Any) -> Any:
    """Return the variables with changed statistics and parameters of normalizations."""
    generator = np.random.default_rng(0)

    def moved(path: Any, leaf: jax.Array) -> jax.Array:
        if path[-1].key not in ("scale", "bias", "mean", "var"):
            return leaf
        values = generator.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(moved, variables)


def measure(full: bool) -> list[Table]:
    """Return the median milliseconds of inference, folded and unfolded, and their ratio."""
    batches = MORE_BATCHES if full else BATCHES
    rows = [_row((batch, *IMAGES[1:]), ROUNDS) for batch in batches]
    return [
        Table(
            title="Time of inference of a ResNet-20, its batch normalizations folded",
            columns=(
                "batch",
                *(f"{name} / folded" for name in LIBRARIES),
                "folded ms",
                *(f"{name} ms" for name in LIBRARIES),
            ),
            rows=rows,
            notes=(
                "Median milliseconds of interleaved runs of the network in evaluation, in float32, "
                f"on images of {'x'.join(map(str, IMAGES[1:]))}, after which the logits are alike; "
                "and how many times as fast it is folded, by `jaxnorm.linen.fold`, as with "
                "jaxnorm's and with Flax's modules."
            ),
        )
    ]


def _row(shape: tuple[int, ...], rounds: int, **sizes: Any) -> list[str]:
    images = jnp.asarray(np.random.default_rng(1).standard_normal(shape, np.float32))
    ours = model(jnn, "BatchNorm", "float32", train=False, **sizes)
    initial = jax.jit(partial(ours.init, train=False))
    variables = trained(initial(jax.random.key(0), images[:1]))
    folded = jnn.fold(ours, variables, PAIRS, images[:1], train=False)
    functions = {"folded": _inference(partial(jnn.apply_folded, ours), folded, images)}
    for name, library in LIBRARIES.items():
        network = model(library, "BatchNorm", "float32", train=False, **sizes)
        functions[name] = _inference(network.apply, variables, images)
    _check_alike({name: function() for name, function in functions.items()})
    times = interleaved(functions, rounds)
    ratios = [f"{times[name] / times['folded']:.2f}" for name in LIBRARIES]
    return [str(shape[0]), *ratios, *(f"{times[name]:.2f}" for name in functions)]


def _inference(apply: Any, variables: Any, images: jax.Array) -> Any:
    program = jax.jit(partial(apply, train=False)).lower(variables, images).compile()
    return lambda: jax.block_until_ready(program(variables, images))


def _check_alike(logits: dict[str, jax.Array]) -> None:
    """Raise an error if the logits differ by more than 1e-5 of the largest."""
    expected = logits["Flax"]
    for name, other in logits.items():
        difference = float(abs(other - expected).max() / abs(expected).max())
        if not difference <= 1e-5:
            raise ValueError(f"the logits of {name} differ from those of Flax by {difference:.1e}")
