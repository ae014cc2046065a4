"""Whole training steps: a ResNet-50, a transformer, and the GroupNorm blocks of a diffusion U-Net.

The networks are those of `benchmarks.networks`, with Flax's modules or ours of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec as P

import jaxnorm.linen as jnn
from benchmarks import networks
from benchmarks.compiled.cases import DTYPES
from benchmarks.compiled.devices import array, mesh

MODULES = {"jaxnorm": jnn, "Flax": nn}


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "resnet50": (networks.ResNet50, (128, 224, 224, 3)),
    "transformer": (networks.Transformer, (8, 1024, 1024)),
    "unet": (networks.UNetBlocks, (16, 64, 64, 128)),
}


class Step(NamedTuple):
    """A training step of a network."""

    network: str
    dtype: str
    library: str

    def __str__(self) -> str:
        return f"step {self.network} {self.dtype} {self.library}"


def steps() -> Iterator[Step]:
    """Every step. A ResNet-50 compiles for minutes, for a TPU for a quarter of an hour."""
    for network in NETWORKS:
        for dtype in DTYPES:
            for library in MODULES:
                yield Step(network, dtype, library)


def program(
    step: Step, platform: str, shape: tuple[int, ...] | None = None, **sizes: Any
) -> tuple[Callable[..., Any], list[Any]]:
    """Loss, gradients, new statistics and the optimizer's update; x and the state.

    The shape of x and the sizes of the network are those of `NETWORKS` unless others are given.
    """
    make, usual = NETWORKS[step.network]
    shape = shape or usual
    dtype = DTYPES[step.dtype]
    network = make(MODULES[step.library], dtype, **sizes)
    device = mesh(platform, 1)
    x = array(shape, dtype, device, P())

    state = jax.eval_shape(partial(networks.initial, network), x)
    state = jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype, device, P()), state)
    return networks.step(network), [x, state]
