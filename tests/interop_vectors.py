"""Record what other libraries' normalizations hold and give: `python tests/interop_vectors.py`.

It writes interop_vectors.npz beside itself: for every layer its weights after a few steps of
training, under the library's own names, an input and the output of evaluation, in float32, and the
libraries' versions. Names of libraries as arguments record those alone (torch, keras of the backend
jax, tf_keras, haiku, equinox: tf_keras needs TensorFlow, which has its own environment).
"""

import importlib.metadata
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np

PATH = Path(__file__).with_suffix(".npz")
STEPS = 3
C = 4


def drawn(seed, *shape):
    """Draw float32 numbers of mean 1."""
    return np.random.default_rng(seed).normal(1.0, 2.0, shape).astype(np.float32)


BATCHES = [drawn(seed, 6, 3, 2, C) for seed in range(STEPS)]  # channels last
X = drawn(10, 2, 3, 2, C)


def parameter(name, shape):
    """Draw a parameter that its name and shape say."""
    return drawn(sum(map(ord, name)), *shape)


def first(array):
    """Give the array with its channels on axis 1."""
    return np.ascontiguousarray(np.moveaxis(array, -1, 1))


def pytorch():
    """Train and evaluate PyTorch's layers."""
    import torch

    layers = {
        "batch": torch.nn.BatchNorm2d(C),
        "batch plain": torch.nn.BatchNorm2d(C, affine=False, momentum=0.3),
        "cumulative": torch.nn.BatchNorm2d(C, momentum=None),
        "instance stats": torch.nn.InstanceNorm2d(C, affine=True, track_running_stats=True),
        "instance": torch.nn.InstanceNorm2d(C, affine=True),
        "group": torch.nn.GroupNorm(2, C),
        "layer": torch.nn.LayerNorm((3, 2)),
        "rms": torch.nn.RMSNorm(2, eps=1e-6),
    }
    for case, layer in layers.items():
        with torch.no_grad():
            for name, value in layer.named_parameters():
                value.copy_(torch.from_numpy(parameter(name, value.shape)))
            for batch in BATCHES:
                layer(torch.from_numpy(first(batch)))
            y = layer.eval()(torch.from_numpy(first(X))).numpy()
        weights = {f"norm.{key}": value.numpy() for key, value in layer.state_dict().items()}
        yield f"pytorch {case}", weights, first(X), y


def of_keras(library, layers, prefix):
    """Train and evaluate layers of Keras 3 or tf_keras."""
    for case, layer in layers.items():
        layer.build((None, 3, 2, C))
        for weight in layer.trainable_weights:
            weight.assign(parameter(weight.name, tuple(weight.shape)))
        for batch in BATCHES:
            layer(batch, training=True)
        y = np.asarray(layer(X, training=False))
        named = zip(layer.weights, layer.get_weights(), strict=True)
        weights = {f"{prefix}/{w.name.split('/')[-1].split(':')[0]}": v for w, v in named}
        yield f"{library} {case}", weights, X, y


def keras():
    """Train and evaluate Keras's layers."""
    from keras import layers

    cases = {
        "batch": layers.BatchNormalization(),
        "batch no gamma": layers.BatchNormalization(scale=False, momentum=0.7, epsilon=1e-5),
        "layer": layers.LayerNormalization(),
        "group": layers.GroupNormalization(2),
        "rms": layers.RMSNormalization(),
        "renorm": layers.BatchNormalization(renorm=True, momentum=0.7, renorm_momentum=0.7),
    }
    return of_keras("keras", cases, "model/norm")


def tf_keras():
    """Train and evaluate tf_keras's batch renormalization."""
    from tf_keras.src.layers.normalization.batch_normalization_v1 import BatchNormalization

    cases = {"renorm": BatchNormalization(renorm=True, momentum=0.7, renorm_momentum=0.7)}
    return of_keras("tf_keras", cases, "norm")


def haiku():
    """Train and evaluate Haiku's layers."""
    import haiku as hk
    import jax

    cases = {
        "batch": lambda x, train: hk.BatchNorm(True, True, 0.9, name="norm")(x, train),
        "batch plain": lambda x, train: hk.BatchNorm(False, False, 0.5, name="norm")(x, train),
        "layer": lambda x, _: hk.LayerNorm(-1, True, True, name="norm")(x),
        "group": lambda x, _: hk.GroupNorm(2, name="norm")(x),
        "instance": lambda x, _: hk.InstanceNorm(True, True, name="norm")(x),
        "rms": lambda x, _: hk.RMSNorm(-1, name="norm")(x),
    }
    for case, function in cases.items():
        net = hk.without_apply_rng(hk.transform_with_state(function))
        params, state = net.init(jax.random.key(0), X, True)
        params = {
            module: {name: parameter(name, value.shape) for name, value in group.items()}
            for module, group in params.items()
        }
        for batch in BATCHES:
            _, state = net.apply(params, state, batch, True)
        y, _ = net.apply(params, state, X, False)
        weights = {
            f"{tree}|{module}|{name}": value
            for tree, modules in (("params", params), ("state", state))
            for module, group in modules.items()
            for name, value in group.items()
        }
        yield f"haiku {case}", weights, X, y


def equinox():
    """Train and evaluate Equinox's layers."""
    import equinox as eqx
    import jax

    cases = {
        "batch": lambda: eqx.nn.BatchNorm(C, "batch", mode="batch", momentum=0.9),
        "ema": lambda: eqx.nn.BatchNorm(C, "batch", mode="ema", momentum=0.9),
        "layer": lambda: eqx.nn.LayerNorm(2),
        "group": lambda: eqx.nn.GroupNorm(2, C),
        "rms": lambda: eqx.nn.RMSNorm(2),
    }
    for case, build in cases.items():
        layer, state = eqx.nn.make_with_state(build)()
        both = [parameter(name, getattr(layer, name).shape) for name in ("weight", "bias")]
        layer = eqx.tree_at(lambda layer: [layer.weight, layer.bias], layer, both)
        weights = dict(zip(("norm.weight", "norm.bias"), both, strict=True))
        if isinstance(layer, eqx.nn.BatchNorm):
            mapped = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
            for batch in BATCHES:
                _, state = mapped(first(batch), state)
            layer = eqx.nn.inference_mode(layer)
            mapped = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
            y, _ = mapped(first(X), state)
            weights |= {f"norm.{name}": value for name, value in held(layer, state).items()}
        elif case == "group":
            y = jax.vmap(layer)(first(X))
        else:
            y = jax.vmap(jax.vmap(jax.vmap(layer)))(first(X))
        yield f"equinox {case}", weights, first(X), y


def held(layer, state):
    """Give what the State of a BatchNorm of Equinox holds, by name."""
    if layer.mode == "batch":
        mean, var = state.get(layer.batch_state_index)
        return {
            "hidden_mean": mean,
            "hidden_var": var,
            "counter": state.get(layer.batch_counter),
        }
    mean, var = state.get(layer.ema_state_index)
    first_time = state.get(layer.ema_first_time_index)
    return {"running_mean": mean, "running_var": var, "first_time": first_time}


LIBRARIES = {
    "torch": pytorch,
    "keras": keras,
    "tf_keras": tf_keras,
    "haiku": haiku,
    "equinox": equinox,
}
PACKAGES = {"haiku": "dm-haiku"}


def record(library):
    """Give the vectors of one library, by "case:what"."""
    vectors = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case, weights, x, y in LIBRARIES[library]():
            arrays = {"x": x, "y": y} | {f"weights:{key}": value for key, value in weights.items()}
            vectors |= {f"{case}:{key}": np.asarray(value) for key, value in arrays.items()}
    version = importlib.metadata.version(PACKAGES.get(library, library))
    return vectors | {f"version:{library}": np.array(version)}


if __name__ == "__main__":
    recorded = dict(np.load(PATH)) if PATH.exists() else {}
    for library in sys.argv[1:] or LIBRARIES:
        recorded |= record(library)
    np.savez_compressed(PATH, **recorded)
