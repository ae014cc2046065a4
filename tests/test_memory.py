"""What the backward pass keeps: the input itself, and rows of statistics."""

import jax
import jax.numpy as jnp
import pytest
from cases import NORMS, STATEFUL, every_norm, fresh, normals

SHAPES = {"layer": (128, 256), "rms": (128, 256)}


def kept(name, dtype, **options):
    """Bytes that the backward pass keeps beside rows of statistics, and those of the input."""
    shape = SHAPES.get(name, (8, 16, 16, 32))
    x = jnp.asarray(normals(*shape)).astype(dtype)
    parameters = [jnp.ones(shape[-1])] * (1 if name == "rms" else 2)
    stats = [fresh(name, shape[-1])] if name in STATEFUL else []
    function = NORMS[name].function
    options = NORMS[name].options | options

    def output(x, *parameters):
        result = function(x, *stats, *parameters, **options)
        return result if stats else (result, None)

    _, backward, _ = jax.vjp(jax.jit(output), x, *parameters, has_aux=True)
    row = shape[0] if name in SHAPES else shape[0] * shape[-1]
    leaves = [leaf for leaf in jax.tree.leaves(backward) if leaf.size > row]
    return sum(leaf.nbytes for leaf in leaves), x.nbytes


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", every_norm)
def test_the_backward_pass_keeps_the_input_alone(name, dtype):
    size, of_input = kept(name, dtype)
    assert size <= 1.05 * of_input


@pytest.mark.parametrize("name", STATEFUL)
def test_a_frozen_layer_keeps_the_input_alone(name):
    size, of_input = kept(name, jnp.bfloat16, train=False)
    assert size <= 1.05 * of_input
