"""A convolutional network in plain JAX: parameters and running statistics are dictionaries.

Shows:  `jn.batch_norm` without a framework. It takes the running statistics and gives the new
        ones, so that they go through `jax.value_and_grad(..., has_aux=True)` beside the loss;
        training measures the batch, evaluation uses what training has gathered.
Run:    python examples/functional_cnn.py
Needs:  pip install '.[examples]' (optax, scikit-learn); no accelerator, no network
Prints: the loss and the test accuracy after every epoch: 0.058 and 0.997 at
        last; 9 seconds.
"""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxnorm as jn

CHANNELS = (1, 16, 32, 64)
CLASSES = 10
EPOCHS = 8
BATCH = 64


def digits():
    """Training and test images (N, 8, 8, 1) and labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    return train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)


def init(key):
    """The parameters and the running statistics."""
    *conv_keys, head_key = jax.random.split(key, len(CHANNELS))
    he = jax.nn.initializers.he_normal()
    params, stats = {}, {}
    for i, (before, after) in enumerate(pairwise(CHANNELS)):
        params[f"conv{i}"] = {
            "kernel": he(conv_keys[i], (3, 3, before, after)),
            "scale": jnp.ones(after),
            "bias": jnp.zeros(after),
        }
        stats[f"conv{i}"] = jn.init_batch_stats(after)
    params["head"] = {
        "kernel": he(head_key, (CHANNELS[-1], CLASSES)),
        "bias": jnp.zeros(CLASSES),
    }
    return params, stats


def apply(params, stats, x, *, train):
    """The logits and the new running statistics."""
    new_stats = {}
    for name in stats:
        layer = params[name]
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x, new_stats[name] = jn.batch_norm(
            x, stats[name], layer["scale"], layer["bias"], train=train, momentum=0.9
        )
        x = jax.nn.relu(x)
    x = x.mean((1, 2))
    return x @ params["head"]["kernel"] + params["head"]["bias"], new_stats


def loss(params, stats, x, labels):
    logits, stats = apply(params, stats, x, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), stats


def train_step(optimizer, params, stats, opt_state, x, labels):
    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, x, labels)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), stats, opt_state, value


@jax.jit
def accuracy(params, stats, x, labels):
    logits, _ = apply(params, stats, x, train=False)
    return (logits.argmax(-1) == labels).mean()


def main():
    x, x_test, labels, labels_test = digits()
    params, stats = init(jax.random.key(0))
    # No weight decay on the scales and biases.
    optimizer = optax.adamw(3e-3, weight_decay=1e-2, mask=jn.weight_decay_mask)
    opt_state = optimizer.init(params)
    step = jax.jit(partial(train_step, optimizer))
    shuffles = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        order = shuffles.permutation(len(x))
        losses = []
        for start in range(0, len(x) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            params, stats, opt_state, value = step(params, stats, opt_state, x[rows], labels[rows])
            losses.append(value)
        reached = accuracy(params, stats, x_test, labels_test)
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, test accuracy {reached:.4f}")


if __name__ == "__main__":
    main()
