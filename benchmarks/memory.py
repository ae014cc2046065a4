"""The memory that the backward pass keeps, and the temporary memory of a training step."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch

import jaxnorm.linen as jnn
from benchmarks import networks
from benchmarks.models import MODELS, Model
from benchmarks.ours import NORMS
from benchmarks.peers import Peer, peers, torch_norm, torch_parameters
from benchmarks.table import SHORT, Table

SHAPES = dict.fromkeys(NORMS, (16, 28, 28, 64)) | {"layer": (1024, 1024), "rms": (1024, 1024)}
DTYPES = ("float32", "bfloat16")


def kept_in_jax(peer: Peer, norm: str, dtype: str) -> float:
    """Return the bytes that the backward pass keeps, divided by those of the input."""
    shape = SHAPES[norm]
    x = jnp.zeros((shape[0], shape[-1], *shape[1:-1]) if peer.channels_first else shape, dtype)
    _, backward, _ = jax.vjp(jax.jit(peer.apply), peer.parameters, x, has_aux=True)
    kept = {leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in jax.tree.leaves(backward)}
    return sum(kept.values()) / x.nbytes


def kept_in_torch(norm: str, dtype: str) -> float:
    """Return the same ratio for PyTorch, from the tensors that autograd saves."""
    shape = SHAPES[norm]
    shape = shape if norm in ("layer", "rms") else (shape[0], shape[-1], *shape[1:-1])
    inputs = [
        torch.zeros(shape, dtype=getattr(torch, dtype)),
        *torch_parameters(norm, SHAPES[norm][-1], dtype),
    ]
    for tensor in inputs:
        tensor.requires_grad_()
    kept: dict[int, int] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        y = torch_norm(norm, SHAPES[norm][-1])(*inputs)
        return sum(kept.values()) / inputs[0].nbytes if y.requires_grad else 0.0


def step_megabytes(library: Any, model: Model, dtype: str) -> float:
    """Return the temporary memory of one compiled training step of a model."""
    network = model.network(library, dtype, **model.sizes)
    x = jax.ShapeDtypeStruct(model.shape, dtype)
    state = jax.eval_shape(partial(networks.initial, network), x)
    program = jax.jit(networks.step(network)).lower(x, state).compile()
    return program.memory_analysis().temp_size_in_bytes / 1e6


def measure(full: bool) -> list[Table]:
    """Return the bytes kept by every library, and the memory of a step (Flax and jaxnorm)."""
    return [_kept(), _step(tuple(MODELS) if full else ("ResNet-20",))]


def _kept() -> Table:
    rows = []
    for norm in NORMS:
        for dtype in DTYPES:
            kept = {
                peer.library: kept_in_jax(peer, norm, dtype)
                for peer in peers(norm, SHAPES[norm], jnp.dtype(dtype))
            }
            kept["PyTorch"] = kept_in_torch(norm, dtype)
            rows.append((norm, SHORT[dtype], *(f"{ratio:.2f}" for ratio in kept.values())))
    return Table(
        title="Kept for the backward pass",
        columns=("norm", "dtype", *kept),
        rows=rows,
        notes=(
            "Bytes kept for the backward pass, over the input's bytes. The input has the shape "
            f"{SHAPES['batch']}, for layer and RMS {SHAPES['layer']}."
        ),
    )


def _step(models: tuple[str, ...]) -> Table:
    rows = []
    for name in models:
        for dtype in DTYPES:
            flax, ours = (step_megabytes(library, MODELS[name], dtype) for library in (nn, jnn))
            rows.append((name, SHORT[dtype], f"{flax:.1f}", f"{ours:.1f}", f"{ours / flax:.2f}"))
    return Table(
        title="Temporary memory of a training step",
        columns=("model", "dtype", "Flax MB", "jaxnorm MB", "ratio"),
        rows=rows,
        notes=(
            "Temporary memory of the compiled training step. The input of the ResNet-20 is "
            f"{MODELS['ResNet-20'].shape[0]} images of 32x32."
        ),
    )
