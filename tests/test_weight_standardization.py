"""Kernels of layers are standardized for each output channel, as BiT and NFNets have it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import KEY, alike, allowed, near, normals, ulp
from devices import mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn

pytestmark = pytest.mark.numerical

standardized = jax.jit(jn.standardize_kernel, static_argnames="kernel_axis")


def expected(kernel, gain=None, epsilon=1e-4, kernel_axis=-1):
    """Standardize in float64, by the formula."""
    kernel = reference.widen(kernel)
    channels = reference.axes_of(kernel_axis, kernel.ndim)
    others = tuple(axis for axis in range(kernel.ndim) if axis not in channels)
    mean = kernel.mean(others, keepdims=True)
    var = np.mean(np.abs(kernel - mean) ** 2, others, keepdims=True)
    result = (kernel - mean) / np.sqrt(var + epsilon)
    return result if gain is None else result * np.expand_dims(reference.widen(gain), others)


KERNELS = {
    "dense": ((16, 3), -1),
    "convolution": ((3, 3, 4, 5), -1),
    "depthwise": ((3, 3, 1, 6), -1),
    "pytorch": ((5, 4, 3, 2), 0),
    "transposed": ((3, 5, 4), 1),
    "heads": ((7, 2, 3), (-2, -1)),
}


@pytest.mark.parametrize(("shape", "axis"), KERNELS.values(), ids=KERNELS)
def test_every_channel_is_standardized_over_the_other_axes(shape, axis):
    channels = [shape[a] for a in reference.axes_of(axis, len(shape))]
    gain = normals(*channels, mean=1.5, std=0.3)
    for mean, epsilon in ((0.0, 1e-4), (1e4, 1e-10), (-1e6, 0.5)):
        kernel = normals(*shape, mean=mean)
        tolerance = 2 * allowed(abs(mean))
        near(
            standardized(kernel, gain=gain, epsilon=epsilon, kernel_axis=axis),
            expected(kernel, gain, epsilon, axis),
            tolerance * np.abs(expected(kernel, gain, epsilon, axis)).max(),
        )


def test_the_defaults_are_those_that_are_documented():
    kernel = 0.01 * normals(3, 3, 4, 5)  # where an epsilon of 1e-4 halves the square
    near(standardized(kernel), expected(kernel, epsilon=1e-4), 2e-6)
    assert 0.6 < np.std(standardized(kernel)) < 0.8


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_gradients_are_those_of_the_formula(mean):
    kernel, gain = normals(3, 2, 4, mean=mean), normals(4, mean=1.5, std=0.3)
    cotangent = normals(3, 2, 4, seed=1)
    _, pull = jax.vjp(lambda kernel, gain: standardized(kernel, gain=gain), kernel, gain)
    of_kernel, of_gain = pull(cotangent)
    exact = reference.gradient(lambda kernel: expected(kernel, gain), kernel, cotangent)
    near(of_kernel, exact, 2e-6 + 2 * allowed(mean) * (mean > 0))
    near(of_kernel.sum((0, 1)), np.zeros(4), 4e-6)  # a constant that is added changes nothing
    exact = reference.gradient(lambda gain: expected(kernel, gain), gain, cotangent)
    near(of_gain, exact, 2e-5)


def test_a_bfloat16_kernel_has_float32_statistics():
    kernel = normals(3, 3, 64, 4, mean=8.0).astype(jnp.bfloat16)
    result = standardized(kernel)
    assert result.dtype == jnp.bfloat16
    exact = expected(kernel.astype(np.float32))
    np.testing.assert_array_less(
        np.abs(reference.widen(result.astype(np.float32)) - exact),
        0.51 * reference.widen(ulp(exact, jnp.bfloat16)) + 1e-6,
    )


def test_a_gain_may_be_one_number():
    kernel = normals(3, 3, 4, 5)
    near(standardized(kernel, gain=1.7), expected(kernel, np.full(5, 1.7)), 2e-6)


def test_a_constant_kernel_becomes_zero():
    kernel = np.full((3, 3, 4, 2), 0.1, np.float32)
    near(standardized(kernel), np.zeros(kernel.shape), 0)
    near(standardized(kernel, epsilon=0.0), np.zeros(kernel.shape), 0)


def test_as_bit_in_pytorch():
    torch = pytest.importorskip("torch", reason="no torch to compare with")
    kernel, x = 0.05 * normals(8, 4, 3, 3, mean=2.0), normals(2, 4, 6, 6)
    weight = torch.tensor(kernel, dtype=torch.float64)
    var, mean = torch.var_mean(weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
    weight = (weight - mean) / torch.sqrt(var + 1e-10)
    ours = standardized(kernel, epsilon=1e-10, kernel_axis=0)
    near(ours, weight.numpy(), 2 * allowed(2.0, 0.05))
    y = torch.nn.functional.conv2d(torch.tensor(x, dtype=torch.float64), weight)
    layer = nn.Conv(8, (3, 3), padding="VALID", use_bias=False)
    params = {"params": {"kernel": ours.transpose(2, 3, 1, 0)}}
    near(layer.apply(params, x.transpose(0, 2, 3, 1)), y.numpy().transpose(0, 2, 3, 1), 1e-4)


@pytest.mark.parametrize("std", [1.0, 0.1])
def test_as_the_scaled_weight_standardization_of_nfnets(std):
    kernel, gain = normals(3, 3, 32, 4), normals(4, mean=1.0, std=0.2)
    n = kernel.size / 4
    kernel *= np.float32(std / np.sqrt(n))
    wide = kernel.astype(np.float64)
    var = n * wide.var((0, 1, 2))
    theirs = (wide - wide.mean((0, 1, 2))) * gain / np.sqrt(np.maximum(var, 1e-4))
    ours = standardized(kernel, gain=gain / np.float32(np.sqrt(n)), epsilon=1e-4 / n)
    size = np.abs(theirs).max()
    near(ours * np.sqrt(1 + 1e-4 / var), theirs, 1e-6 * size)  # our epsilon is added
    near(ours, theirs, 6e-5 / std**2 * size)


class Scaled(nn.Conv):
    """A convolution that standardizes its kernel."""

    def param(self, name, *args, **options):
        value = super().param(name, *args, **options)
        return jn.standardize_kernel(value, epsilon=1e-10) if name == "kernel" else value


def test_a_block_does_not_change_with_the_size_and_the_mean_of_its_kernels():
    x = normals(2, 6, 6, 3)

    @jax.jit
    def block(variables):
        return nn.relu(jn.group_norm(Scaled(8, (3, 3)).apply(variables, x), num_groups=4))

    variables = jax.jit(Scaled(8, (3, 3)).init)(KEY, x)
    kernel = variables["params"]["kernel"]
    moved = {"params": {**variables["params"], "kernel": 4 * kernel + 2}}
    plain = {"params": {**variables["params"], "kernel": expected(kernel, epsilon=1e-10)}}
    y = nn.Conv(8, (3, 3)).apply(jax.tree.map(np.float32, plain), x)
    near(block(variables), np.maximum(reference.group_norm(y, num_groups=4), 0), 2e-5)
    near(block(moved), block(variables), 2e-5)


@pytest.mark.long
def test_mapped_and_sharded_kernels():
    kernels = normals(2, 3, 4, 8, mean=3.0)
    alike(
        jax.jit(jax.vmap(jn.standardize_kernel))(kernels), np.stack([*map(standardized, kernels)])
    )
    for spec in (P(None, None, "i"), P(None, "i")):
        kernel = normals(3, 16, 8)
        sharded = jax.device_put(kernel, NamedSharding(mesh(), spec))
        near(standardized(sharded), expected(kernel), 1e-5)


def test_errors_say_what_was_given():
    kernel = normals(3, 3, 4, 5)
    for call, error, words in (
        (lambda: jn.standardize_kernel(np.ones((4, 5), int)), TypeError, "dtype int64|dtype int32"),
        (lambda: jn.standardize_kernel(kernel, kernel_axis=4), ValueError, "kernel_axis=4 is out"),
        (lambda: jn.standardize_kernel(kernel, kernel_axis=(0, 0)), ValueError, "an axis twice"),
        (lambda: jn.standardize_kernel(kernel, kernel_axis=()), ValueError, "names no axis"),
        (lambda: jn.standardize_kernel(np.ones(5, np.float32)), ValueError, "one value for each"),
        (lambda: jn.standardize_kernel(kernel[:1, :1, :1]), ValueError, r"\(1, 1, 1, 5\) has one"),
        (lambda: jn.standardize_kernel(np.float32(1)), ValueError, "scalar"),
        (
            lambda: jn.standardize_kernel(kernel, gain=np.ones(4)),
            ValueError,
            r"gain has shape \(4,.* channels, \(5,\), or be one number; check kernel_axis",
        ),
        (
            lambda: jn.standardize_kernel(kernel, gain=np.ones((3, 1, 1, 1)), kernel_axis=0),
            ValueError,
            r"\(3, 1, 1, 1\), .*\(3,\).* give gain.reshape\(3\)",
        ),
        (
            lambda: jn.standardize_kernel(kernel, gain=np.ones((3, 1, 5))),  # a scale by example
            ValueError,
            r"gain has shape \(3, 1, 5\)",
        ),
        (
            lambda: jn.standardize_kernel(kernel, gain=np.ones(5, complex)),
            TypeError,
            "the kernel is real; give a real gain",
        ),
        (lambda: jn.standardize_kernel(kernel, epsilon=-1.0), ValueError, "epsilon=-1.0"),
        (lambda: jn.standardize_kernel({"kernel": kernel}), TypeError, "kernel is a dict"),
    ):
        with pytest.raises(error, match=words) as caught:
            call()
        assert "input" not in str(caught.value)  # the argument is a kernel
