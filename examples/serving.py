"""From training to serving: fold the normalizations, export to a file, load it elsewhere, predict.

Shows:  `jn.fold_batch_norm`, which puts the running statistics, the scale and the bias of a
        normalization into the convolution before it. What is left is plain JAX. `jax.export`
        writes it with its weights to one file, for any batch size, on a CPU, a GPU and a TPU; a
        process that knows neither the model nor jaxnorm loads it and predicts.
Run:    python examples/serving.py
Needs:  pip install '.[examples]' (flatbuffers, optax, scikit-learn)
Prints: the size of the file, how far the served logits are from those of the model with its
        normalizations, and the test accuracy: 28 kB, 1.7e-7 of the largest, 0.978; 8 seconds.
"""

import subprocess
import sys
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import export
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxnorm as jn

CHANNELS = (1, 16, 32)
STEPS, BATCH = 150, 64
optimizer = optax.adam(1e-2)

SERVER = """
import sys
import numpy as np
from jax import export

model, images, logits = sys.argv[1:]
model = export.deserialize(bytearray(open(model, "rb").read()))
x = np.load(images)
np.save(logits, np.concatenate([model.call(x[:1]), model.call(x[1:])]))  # batches of any size
print(f"served without jaxnorm: {'jaxnorm' not in sys.modules}")
"""


def digits():
    """Training and test images (N, 8, 8, 1) and labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    return train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)


def init(key):
    he = jax.nn.initializers.he_normal()
    *keys, head_key = jax.random.split(key, len(CHANNELS))
    layers, stats = [], []
    for key, (before, after) in zip(keys, pairwise(CHANNELS), strict=True):
        scale, bias = jnp.ones(after), jnp.zeros(after)
        layers.append({"kernel": he(key, (3, 3, before, after)), "scale": scale, "bias": bias})
        stats.append(jn.init_batch_stats(after))
    head = {"kernel": he(head_key, (4 * CHANNELS[-1], 10)), "bias": jnp.zeros(10)}
    return {"layers": layers, "head": head}, stats


def convolved(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def classified(x, head):
    return x.reshape(-1, head["kernel"].shape[0]) @ head["kernel"] + head["bias"]


def apply(params, stats, x, *, train):
    """The logits of the model with its normalizations, and the new running statistics."""
    new_stats = []
    for layer, held in zip(params["layers"], stats, strict=True):
        x = convolved(x, layer["kernel"])
        x, new = jn.batch_norm(x, held, layer["scale"], layer["bias"], train=train, momentum=0.9)
        x = jax.nn.relu(x)
        new_stats.append(new)
    return classified(x, params["head"]), new_stats


def fold(params, stats):
    """The parameters of the same model without normalizations."""
    layers = []
    for layer, held in zip(params["layers"], stats, strict=True):
        kernel, bias = jn.fold_batch_norm(
            layer["kernel"], None, held, layer["scale"], layer["bias"]
        )
        layers.append({"kernel": kernel, "bias": bias})
    return {"layers": layers, "head": params["head"]}


def predict(folded, x):
    for layer in folded["layers"]:
        x = jax.nn.relu(convolved(x, layer["kernel"]) + layer["bias"])
    return classified(x, folded["head"])


@jax.jit
def step(params, stats, opt_state, x, labels):
    def loss(params):
        logits, new_stats = apply(params, stats, x, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), new_stats

    grads, stats = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), stats, opt_state


def train(x, labels):
    params, stats = init(jax.random.key(0))
    opt_state = optimizer.init(params)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        rows = rng.integers(len(x), size=BATCH)
        params, stats, opt_state = step(params, stats, opt_state, x[rows], labels[rows])
    return params, stats


def exported(folded):
    """The program of the folded model for any batch size, with its weights, as bytes."""
    images = jax.ShapeDtypeStruct(export.symbolic_shape("batch, 8, 8, 1"), jnp.float32)
    program = jax.jit(partial(predict, folded))
    return export.export(program, platforms=("cpu", "cuda", "tpu"))(images).serialize()


def served(program, x):
    """What another process gives, which has the file and nothing else of this one."""
    with tempfile.TemporaryDirectory() as directory:
        model, images, logits = (
            Path(directory, name) for name in ("model.jax", "images.npy", "logits.npy")
        )
        model.write_bytes(program)
        np.save(images, x)
        subprocess.run([sys.executable, "-c", SERVER, model, images, logits], check=True)
        return np.load(logits)


def main():
    x, x_test, labels, labels_test = digits()
    params, stats = train(x, labels)
    expected, _ = apply(params, stats, x_test, train=False)
    program = exported(fold(params, stats))
    print(f"exported {len(program)} bytes", flush=True)
    logits = served(program, x_test)
    largest, difference = np.abs(expected).max(), np.abs(logits - expected).max()
    print(f"logits differ by {difference / largest:.1e} of the largest, {largest:.1f}")
    print(f"test accuracy {(logits.argmax(-1) == labels_test).mean():.4f}")


if __name__ == "__main__":
    main()
