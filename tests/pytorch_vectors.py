"""Record what PyTorch's normalizations give: `python tests/pytorch_vectors.py` (needs torch).

It writes pytorch_vectors.npz beside itself: for every layer the input, the parameters, a cotangent,
the output and the gradients, and for batch normalization ten steps of running statistics; all in
float32, with PyTorch's version.
"""

from pathlib import Path

import numpy as np

PATH = Path(__file__).with_suffix(".npz")
SHAPE = (4, 6, 3, 5)  # examples, channels, height, width
STEPS = 10
LAYERS = {
    "batch": ("BatchNorm2d", (6,), {"momentum": 0.1}),
    "layer": ("LayerNorm", ((3, 5),), {}),
    "group": ("GroupNorm", (3, 6), {}),
    "instance": ("InstanceNorm2d", (6,), {"affine": True}),
    "rms": ("RMSNorm", (5,), {"eps": 1e-6}),
}


def drawn(seed, *shape):
    """Draw float32 numbers of mean 1."""
    return np.random.default_rng(seed).normal(1.0, 2.0, shape).astype(np.float32)


def layer_of(name):
    """Build a layer with random parameters."""
    import torch

    kind, args, options = LAYERS[name]
    layer = getattr(torch.nn, kind)(*args, **options)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.from_numpy(drawn(seed, *parameter.shape)))
    return layer


def measured(name):
    """Give a layer's parameters, output and gradients by name."""
    import torch

    layer = layer_of(name)
    x = torch.from_numpy(drawn(10, *SHAPE)).requires_grad_()
    cotangent = torch.from_numpy(drawn(11, *SHAPE))
    y = layer(x)
    y.backward(cotangent)
    result = {"x": x, "cotangent": cotangent, "y": y, "dx": x.grad}
    for key, parameter in layer.named_parameters():
        result |= {key: parameter, f"d{key}": parameter.grad}
    return {key: value.detach().numpy() for key, value in result.items()}


def remembered():
    """Give the running statistics of ten steps, and the evaluation after them."""
    import torch

    layer, x = layer_of("batch"), drawn(20, STEPS, *SHAPE)
    mean, var = [], []
    for batch in x:
        layer(torch.from_numpy(batch))
        mean.append(layer.running_mean.numpy().copy())
        var.append(layer.running_var.numpy().copy())
    y = layer.eval()(torch.from_numpy(x[0])).detach().numpy()
    return {"x": x, "mean": np.stack(mean), "var": np.stack(var), "y": y}


def record():
    """Give all that is written, by "layer/what"."""
    import torch

    results = {name: measured(name) for name in LAYERS} | {"steps": remembered()}
    vectors = {f"{name}/{key}": v for name, result in results.items() for key, v in result.items()}
    return vectors | {"version": np.array(torch.__version__)}


if __name__ == "__main__":
    np.savez_compressed(PATH, **record())
