"""A small ResNet whose import is swapped follows the loss curve of Flax's, step by step."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import KEY, normals
from environment import generator
from flax import nnx

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

STEPS = 30
CLASSES = 4
RATE = 0.1


class Block(nn.Module):
    """Two convolutions around a residual connection, the last scale from zero."""

    library: Any
    strides: int

    @nn.compact
    def __call__(self, x, train):
        norm = {"use_running_average": not train, "momentum": 0.9}
        zero = {"scale_init": nn.initializers.zeros}
        y = nn.Conv(8, (3, 3), self.strides, use_bias=False)(x)
        y = nn.relu(self.library.BatchNorm(**norm)(y))
        y = nn.Conv(8, (3, 3), use_bias=False)(y)
        y = self.library.BatchNorm(**norm, **zero)(y)
        if self.strides > 1:
            x = nn.Conv(8, (1, 1), self.strides, use_bias=False)(x)
            x = self.library.BatchNorm(**norm)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A stem, two blocks and a head."""

    library: Any

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = nn.relu(self.library.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        for strides in (1, 2):
            x = Block(self.library, strides)(x, train)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class NnxBlock(nnx.Module):
    """The same block."""

    def __init__(self, library, strides, rngs):
        zero = {"scale_init": nnx.initializers.zeros}
        self.first = nnx.Conv(8, 8, (3, 3), strides, use_bias=False, rngs=rngs)
        self.norm = library.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.second = nnx.Conv(8, 8, (3, 3), use_bias=False, rngs=rngs)
        self.last = library.BatchNorm(8, momentum=0.9, rngs=rngs, **zero)
        self.strides = strides

    def __call__(self, x):
        y = nnx.relu(self.norm(self.first(x)))
        y = self.last(self.second(y))
        return nnx.relu(x[:, :: self.strides, :: self.strides] + y)


class NnxResNet(nnx.Module):
    """The same net, its shortcut without a convolution."""

    def __init__(self, library, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.norm = library.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(library, strides, rngs) for strides in (1, 2)])
        self.head = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def batches():
    """Give images whose class is a pattern under noise."""
    patterns = normals(CLASSES, 8, 8, 3, mean=0.5)
    labels = generator().integers(0, CLASSES, (STEPS, 16))
    return patterns[labels] + normals(STEPS, 16, 8, 8, 3, std=0.5, seed=1), labels


def cross_entropy(logits, labels):
    """Give the mean loss."""
    picked = jnp.take_along_axis(nn.log_softmax(logits), labels[:, None], 1)
    return -jnp.mean(picked)


def linen_curve(library):
    """Train the Linen net; give every step's loss and an evaluation after them."""
    images, labels = batches()
    model, optimizer = ResNet(library), optax.sgd(RATE, momentum=0.9)
    variables = jax.jit(model.init, static_argnums=2)(KEY, images[0], True)

    @jax.jit
    def step(params, stats, moments, x, y):
        def loss(params):
            inputs = {"params": params, "batch_stats": stats}
            logits, updates = model.apply(inputs, x, True, mutable=["batch_stats"])
            return cross_entropy(logits, y), updates["batch_stats"]

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments)
        return value, (optax.apply_updates(params, updates), new, moments)

    losses = []
    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    for batch in zip(images, labels, strict=True):
        value, state = step(*state, *batch)
        losses.append(value)
    params, stats, _ = state
    evaluate = jax.jit(model.apply, static_argnums=2)
    logits = evaluate({"params": params, "batch_stats": stats}, images[0], False)
    return np.array([*losses, cross_entropy(logits, labels[0])])


def nnx_curve(library):
    """Train the NNX net; give every step's loss and an evaluation after them."""
    images, labels = batches()
    model = NnxResNet(library, nnx.Rngs(KEY))
    optimizer = nnx.Optimizer(model, optax.sgd(RATE, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        value, gradients = nnx.value_and_grad(lambda m: cross_entropy(m(x), y))(model)
        optimizer.update(model, gradients)
        return value

    losses = [step(model, optimizer, *batch) for batch in zip(images, labels, strict=True)]
    model.eval()
    return np.array([*losses, cross_entropy(model(images[0]), labels[0])])


@pytest.mark.long
@pytest.mark.parametrize(
    ("curve", "ours", "flaxs"), [(linen_curve, jnn, nn), (nnx_curve, jnnx, nnx)]
)
def test_the_loss_curve_is_flaxs(curve, ours, flaxs):
    mine, theirs = curve(ours), curve(flaxs)
    assert theirs[-1] < 0.5 * theirs[0]
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)
