"""Prints as JSON what an installed jaxnorm is, which form it runs, and what it computes."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import jaxnorm as jn
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm import kernels

x = jax.random.normal(jax.random.key(0), (16, 6, 8)) * 3.0 + 100.0
scale, bias = jnp.linspace(0.5, 2.0, 8), jnp.linspace(-1.0, 1.0, 8)
stats = jn.init_batch_stats(8)


def linen(x, scale, bias):
    module = jaxnorm.linen.BatchNorm(use_running_average=False)
    params = {"scale": scale, "bias": bias}
    return module.apply({"params": params, "batch_stats": stats}, x, update_stats=False)


def in_nnx(x, scale, bias):
    module = jaxnorm.nnx.BatchNorm(8, rngs=nnx.Rngs(0))
    module.scale.set_value(scale)
    module.bias.set_value(bias)
    return module(x, update_stats=False)


FUNCTIONS = {
    "batch": lambda *inputs: jn.batch_norm(inputs[0], stats, *inputs[1:], train=True)[0],
    "layer": jn.layer_norm,
    "rms": lambda x, scale, bias: jn.rms_norm(x, scale) + bias,
    "group": lambda *inputs: jn.group_norm(*inputs, num_groups=2),
    "instance": jn.instance_norm,
    "linen": linen,
    "nnx": in_nnx,
}


def numbers(function):
    """An output and every derivative of a sum of it, as one list."""

    def value(*inputs):
        y = function(*inputs)
        return jnp.sum(nn.tanh(y)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True))(x, scale, bias)
    return jnp.concatenate([array.ravel() for array in (y, *gradients)]).tolist()


if __name__ == "__main__":
    found = {
        "version": jn.__version__,
        "file": jn.__file__,
        "status": kernels.status(),
        "numbers": {name: numbers(function) for name, function in FUNCTIONS.items()},
    }
    print(json.dumps(found))
