"""A whole training step of a ResNet-20, on Flax's modules and on ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm.linen as jnn
from benchmarks.speed import interleaved
from benchmarks.table import SHORT, Table
from experiments.models.resnet import ResNet

IMAGES, BATCH = (28, 28, 1), 64  # as Fashion-MNIST's
ROUNDS = 9


def compiled_step(
    library: Any, norm: str, dtype: str, images: tuple[int, ...]
) -> tuple[Any, Callable[[], Any]]:
    """The compiled step on a batch of images, and a function that gives its arguments."""
    options: dict[str, Any] = {"dtype": dtype}
    if norm == "BatchNorm":
        options["use_running_average"] = False
    if norm == "GroupNorm":
        options["num_groups"] = 8
    model = ResNet(partial(getattr(library, norm), **options), dtype=dtype)
    number = images[0]
    batch = (jnp.zeros(images), jnp.zeros(number, jnp.int32))
    variables = jax.eval_shape(model.init, jax.random.key(0), batch[0])

    def step(variables: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, state = model.apply(
                {**variables, "params": params}, images, mutable=["batch_stats"]
            )
            chosen = jax.nn.log_softmax(logits.astype(jnp.float32))[np.arange(number), labels]
            return -chosen.mean(), state

        gradients, state = jax.grad(loss, has_aux=True)(variables["params"])
        descended = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients)
        return {**variables, **state, "params": descended}

    def arguments() -> Any:
        x = np.random.default_rng(0).normal(size=images).astype(np.float32)
        return model.init(jax.random.key(0), batch[0]), jnp.asarray(x), batch[1]

    return jax.jit(step).lower(variables, *batch).compile(), arguments


def measure(full: bool) -> list[Table]:
    """Interleaved medians of the step."""
    rows = []
    for norm in ("BatchNorm", "GroupNorm", "LayerNorm") if full else ("BatchNorm",):
        for dtype in ("float32", "bfloat16"):
            times = interleaved(
                {library: _runner(library, norm, dtype) for library in (nn, jnn)}, ROUNDS
            )
            flax, ours = times[nn], times[jnn]
            rows.append((norm, SHORT[dtype], f"{flax:.1f}", f"{ours:.1f}", f"{ours / flax:.2f}"))
    return [
        Table(
            title="A training step of a ResNet-20 in time",
            columns=("norm", "dtype", "Flax ms", "jaxnorm ms", "ratio"),
            rows=rows,
            notes=(
                f"Median of interleaved steps, forward, backward and descent (asked: faster than "
                f"Flax's), {BATCH} images of {IMAGES[0]}x{IMAGES[1]}."
            ),
        )
    ]


def _runner(library: Any, norm: str, dtype: str) -> Callable[[], Any]:
    compiled, arguments = compiled_step(library, norm, dtype, (BATCH, *IMAGES))
    given = arguments()
    return lambda: jax.block_until_ready(compiled(*given))
