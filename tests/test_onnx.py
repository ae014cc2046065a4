"""Models converted to ONNX by jax2onnx and run by ONNX Runtime give what JAX gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import near, normals
from flax import nnx

import jaxnorm as jn
import jaxnorm.nnx as jnnx

jax2onnx = pytest.importorskip("jax2onnx", reason="jaxnorm[onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="jaxnorm[onnx] is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of jax2onnx, by names of older jax
]


class ConvNet(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List([nnx.Conv(n, 8, (3, 3), rngs=rngs) for n in (1, 8, 8)])
        self.norms = nnx.List(
            [
                jnnx.BatchNorm(8, rngs=rngs),
                jnnx.GroupNorm(8, num_groups=2, rngs=rngs),
                jnnx.InstanceNorm(8, rngs=rngs),
            ]
        )
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(x.mean((1, 2)))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.norms = nnx.List([jnnx.LayerNorm(16, rngs=rngs), jnnx.RMSNorm(16, rngs=rngs)])
        self.qkv = nnx.Linear(16, 48, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(16, 32, rngs=rngs), nnx.gelu, nnx.Linear(32, 16, rngs=rngs)
        )

    def __call__(self, x):
        q, k, v = jnp.split(self.qkv(self.norms[0](x)), 3, -1)
        x = x + jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / 4.0) @ v
        return x + self.mlp(self.norms[1](x))


MODELS = {"cnn": (ConvNet, (8, 8, 1)), "transformer": (Transformer, (5, 16))}


@pytest.mark.parametrize("batch", [3, "B"], ids=["fixed", "symbolic"])
@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_gives_what_jax_gives(name, batch):
    kind, shape = MODELS[name]
    with jax.numpy_dtype_promotion("standard"):
        model = kind(nnx.Rngs(0))
        model(jnp.asarray(normals(4, *shape, mean=3.0)))  # running statistics of a batch
        model.eval()
        with jn.standard_primitives():
            converted = jax2onnx.to_onnx(model, [(batch, *shape)])
        session = onnxruntime.InferenceSession(converted.SerializeToString())
        for size in (3, 1, 7) if batch == "B" else (3,):
            x = normals(size, *shape, seed=size)
            (y,) = session.run(None, {session.get_inputs()[0].name: x})
            near(y, np.asarray(model(x)), 1e-4)
