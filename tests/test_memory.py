"""What the backward pass keeps: the input itself, and rows of statistics."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from cases import NORMS, STATEFUL, every_norm, fresh, normals

SHAPES = {"layer": (128, 256), "rms": (128, 256)}


def kept(name, dtype, **options):
    """Bytes that the backward pass keeps beside rows of statistics, and those of the input."""
    shape = SHAPES.get(name, (8, 16, 16, 32))
    x = jnp.asarray(normals(*shape)).astype(dtype)
    parameters = [jnp.ones(shape[-1])] * (2 if NORMS[name].has_bias else 1)
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


# Of the compiled program: the instructions that read something as large as the input, and those
# that write it. Nothing is executed, so the shapes are those of real networks.
PASSES = (
    dict.fromkeys(every_norm, (4, 8))
    | dict.fromkeys(STATEFUL, (4, 7))
    | {  # forward, and forward and backward
        "ghost": (4, 8),
        "layer": (1, 7),
        "rms": (1, 4),
        "group": (4, 8),
        "instance": (4, 8),
    }
)


def program(name, with_gradients):
    """Compile a function, or it and its gradients; give the text and the input's size."""
    shape = (4096, 1024) if name in SHAPES else (32, 56, 56, 64)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    parameters = [jax.ShapeDtypeStruct(shape[-1:], jnp.float32)] * (
        2 if NORMS[name].has_bias else 1
    )
    stats = [fresh(name, shape[-1])] if name in STATEFUL else []

    def output(x, *parameters):
        result = NORMS[name].function(x, *stats, *parameters, **NORMS[name].options)
        return result if stats else (result, None)

    def both(cotangent, x, *parameters):
        y, backward, new_stats = jax.vjp(output, x, *parameters, has_aux=True)
        return y, backward(cotangent), new_stats

    function, arguments = (both, (x, x)) if with_gradients else (output, (x,))
    compiled = jax.jit(function).lower(*arguments, *parameters).compile()
    return compiled.as_text(), math.prod(shape)


def passes(text, size):
    """Count the instructions of the entry computation that read and that write a large array."""
    reading, writing, large = 0, 0, set()
    instruction = re.compile(r"%(\S+) = \w+\[([\d,]*)\]\S* ([\w-]+)\((.*?)\)(?:, |$)")
    for name, dims, kind, operands in instruction.findall(text[text.index("ENTRY") :]):
        writes = math.prod(map(int, dims.split(",") if dims else [])) >= size
        if writes:
            large.add(name)
        if kind not in ("parameter", "bitcast"):
            reading += bool(large & set(re.findall(r"%([\w.-]+)", operands)))
            writing += writes
    return reading, writing


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other compilers fuse in other ways")
@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("name", every_norm)
def test_the_compiled_program_passes_over_the_input_as_often_as_it_must(name, with_gradients):
    reading, writing = passes(*program(name, with_gradients))
    assert reading <= PASSES[name][with_gradients]
    assert writing == (2 if with_gradients else 1)
