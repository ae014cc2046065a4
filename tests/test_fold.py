"""Folded batch normalization: a layer that gives what it and the normalization gave."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import KEY, alike, near, normals, parameters, seen
from hypothesis import given
from hypothesis import strategies as st

import jaxnorm as jn
import jaxnorm.linen as jnn

pytestmark = pytest.mark.numerical

IMAGES = normals(2, 6, 6, 4)


def error(call):
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    return str(raised.value)


# Arrays


def folded_in_float64(kernel, bias, stats, scale, norm_bias, epsilon, axis):
    """Fold in double precision."""
    kernel, mean, var = (reference.widen(v) for v in (kernel, stats["mean"], stats["var"]))
    ratio = (1 if scale is None else reference.widen(scale)) / np.sqrt(var + epsilon)
    new = kernel * reference.along(ratio, kernel.shape, axis)
    shift = ((0 if bias is None else reference.widen(bias)) - mean) * ratio
    return new, shift + (0 if norm_bias is None else reference.widen(norm_bias))


@st.composite
def layers(draw):
    """Draw the shape of a convolution, and what it and its normalization have."""
    groups = draw(st.sampled_from([1, 2, 4]))
    return {
        "groups": groups,
        "inside": draw(st.integers(1, 2)),
        "outside": groups * draw(st.integers(1, 2)),
        "size": draw(st.integers(1, 3)),
        "dilation": draw(st.integers(1, 2)),
        "has": draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
        "mean": draw(st.sampled_from([0.0, 1.0, 1e3])),
        "seed": draw(st.integers(0, 2**16)),
    }


def convolved_in_float64(x, kernel, groups, dilation):
    """Convolve [N, L, C] by [size, C / groups, out], without padding, in double precision."""
    x, kernel = reference.widen(x), reference.widen(kernel)
    size, inside, outside = kernel.shape
    length, each = x.shape[1] - (size - 1) * dilation, outside // groups
    y = np.zeros((len(x), length, outside))
    for group in range(groups):
        of = slice(group * each, (group + 1) * each)
        part = x[..., group * inside : (group + 1) * inside]
        for tap in range(size):
            y[..., of] += part[:, tap * dilation :][:, :length] @ kernel[tap, :, of]
    return y


@given(layers())
def test_fold_then_evaluate_is_evaluate(layer):
    groups, outside, seed = layer["groups"], layer["outside"], layer["seed"]
    kernel = normals(layer["size"], layer["inside"], outside, seed=seed)
    x = normals(2, 5, groups * layer["inside"], seed=seed + 1)
    given_ = (normals(outside, mean=1.0, seed=seed + place) for place in (2, 3, 4))
    bias, scale, norm_bias = (
        v if has else None for v, has in zip(given_, layer["has"], strict=True)
    )
    stats = seen("batch", outside, mean=layer["mean"])
    y = convolved_in_float64(x, kernel, groups, layer["dilation"])
    y = y if bias is None else y + bias
    expected, _ = reference.batch_norm(y, stats, scale, norm_bias, train=False)
    kernel, bias = jn.fold_batch_norm(kernel, bias, stats, scale, norm_bias)
    y = convolved_in_float64(x, kernel, groups, layer["dilation"]) + reference.widen(bias)
    # Rounded once, each number of the kernel and the bias.
    size = np.abs(reference.widen(kernel)).sum((0, 1)).max() * np.abs(x).max()
    near(y, expected, 4 * np.spacing(np.float32(size + np.abs(reference.widen(bias)).max())))


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.complex64])
def test_a_kernel_is_rounded_once_to_its_dtype(axis, dtype):
    kernel = jnp.asarray(normals(3, 3, 3), dtype)
    scale, norm_bias = parameters(3)
    stats = seen("batch", 3, mean=50.0)
    bias = jnp.asarray(normals(3, seed=3), dtype)
    new, shift = jn.fold_batch_norm(
        kernel, bias, stats, scale, norm_bias, epsilon=1e-3, kernel_axis=axis
    )
    assert new.dtype == shift.dtype == dtype
    wanted = folded_in_float64(kernel, bias, stats, scale, norm_bias, 1e-3, axis)
    for value, expected in zip((new, shift), wanted, strict=True):
        relative = float(jnp.finfo(dtype).eps) * (0.51 if dtype == jnp.bfloat16 else 4)
        near(value, expected, relative * np.abs(expected).max())


def test_a_bias_keeps_its_dtype_and_a_new_one_takes_the_kernels():
    kernel, stats = jnp.ones((2, 3), jnp.bfloat16), seen("batch", 3)
    kept = jn.fold_batch_norm(kernel, jnp.ones(3, jnp.float32), stats, None, None)[1]
    new = jn.fold_batch_norm(kernel, None, stats, None, None)[1]
    assert (kept.dtype, new.dtype) == (jnp.float32, jnp.bfloat16)


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        kernel = normals(4, 3, dtype=np.float64)
        stats = {"mean": normals(3, dtype=np.float64), "var": np.full(3, 0.3)}
        result = jn.fold_batch_norm(kernel, None, stats, None, None)
        wanted = folded_in_float64(kernel, None, stats, None, None, 1e-5, -1)
        for value, expected in zip(result, wanted, strict=True):
            near(value, expected, 1e-14)


def lax_layer(spec, transposed=False, **options):
    """A convolution without Flax."""
    function = jax.lax.conv_transpose if transposed else jax.lax.conv_general_dilated
    return partial(function, dimension_numbers=spec, padding="SAME", **options)


@pytest.mark.parametrize(
    ("call", "shape", "axis", "channels"),
    [
        (lax_layer(("NCHW", "OIHW", "NCHW"), window_strides=(1, 1)), (6, 4, 3, 3), 0, 1),
        (
            lax_layer(("NHWC", "HWIO", "NHWC"), window_strides=(2, 2), rhs_dilation=(2, 2)),
            (3, 3, 4, 6),
            -1,
            -1,
        ),
        (
            lax_layer(("NHWC", "HWIO", "NHWC"), window_strides=(1, 1), feature_group_count=4),
            (3, 3, 1, 8),
            3,
            3,
        ),
        (
            lax_layer(("NCHW", "OIHW", "NCHW"), True, strides=(2, 2), transpose_kernel=True),
            (4, 6, 3, 3),
            1,
            1,
        ),
    ],
    ids=["channels first", "dilated", "depthwise", "transposed, as in PyTorch"],
)
def test_own_convolutions(call, shape, axis, channels):
    x = np.moveaxis(IMAGES, -1, 1) if channels == 1 else IMAGES
    kernel, stats = normals(*shape), seen("batch", shape[axis])
    scale, norm_bias = parameters(shape[axis])

    @jax.jit
    def both(x, kernel):
        y = call(x, kernel)
        unfolded, _ = jn.batch_norm(y, stats, scale, norm_bias, train=False, channel_axis=channels)
        kernel, bias = jn.fold_batch_norm(kernel, None, stats, scale, norm_bias, kernel_axis=axis)
        along = bias.reshape([-1 if a == channels % 4 else 1 for a in range(4)])
        return call(x, kernel) + along, unfolded

    alike(*both(x, kernel), ulps=32)


def test_a_grouped_transposed_kernel_is_folded_a_group_at_a_time():
    groups, kernel = 2, normals(4, 3, 2, 2)  # [in, out / groups, ...]
    stats = seen("batch", 6)
    grouped = jax.tree.map(lambda leaf: leaf.reshape(groups, -1), stats)
    fold = jax.vmap(partial(jn.fold_batch_norm, kernel_axis=1), (0, None, 0, None, None))
    new, bias = fold(kernel.reshape(groups, 2, 3, 2, 2), None, grouped, None, None)
    for place in range(groups):
        of, ours = slice(3 * place, 3 * place + 3), slice(2 * place, 2 * place + 2)
        part = {key: value[of] for key, value in stats.items()}
        expected = jn.fold_batch_norm(kernel[ours], None, part, None, None, kernel_axis=1)
        alike((new.reshape(kernel.shape)[ours], bias[place]), expected)


def folding(**changes):
    arguments = {
        "kernel": jnp.ones((2, 3)),
        "bias": None,
        "stats": jn.init_batch_stats(3),
        "norm_scale": None,
        "norm_bias": None,
        **changes,
    }
    return lambda: jn.fold_batch_norm(**arguments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel": jnp.ones((2, 3), int)}, ["int32", "quantize"]),
        ({"kernel": jnp.ones((2, 4))}, ["running mean", "(3,)", "(4,)", "kernel_axis"]),
        ({"kernel_axis": 2}, ["kernel_axis=2", "[-2, 1]"]),
        ({"kernel_axis": (0, 1)}, ["kernel_axis", "one int"]),
        ({"kernel": jnp.ones(())}, ["scalar"]),
        ({"bias": jnp.ones(2)}, ["bias has shape (2,)", "(3,)"]),
        ({"norm_scale": jnp.ones(1)}, ["norm_scale has shape (1,)"]),
        ({"norm_bias": jnp.ones((1, 3))}, ["norm_bias has shape (1, 3)"]),
        ({"stats": {"mean": jnp.ones(3)}}, ["['var']", "['mean']"]),
        ({"stats": jnp.ones(3)}, ["dict"]),
        ({"stats": jn.init_batch_stats(3, dtype=jnp.complex64)}, ["complex64", "real"]),
        ({"epsilon": -1.0}, ["epsilon=-1.0"]),
    ],
)
def test_bad_input_is_named(changes, words):
    message = error(folding(**changes))
    assert all(word in message for word in words), message


# Linen


def after(layer, norm, then=nn.relu):
    return nn.Sequential([layer, norm, then])


def warm(variables, seed=0):
    """Variables whose scales, biases and statistics are not those of the start."""

    def changed(path, leaf):
        name = path[-1].key
        drawn = normals(*leaf.shape, seed=seed + len(jax.tree_util.keystr(path)))
        if name in ("scale", "var"):
            return jnp.asarray(1.0 + 0.3 * np.abs(drawn), leaf.dtype)
        return jnp.asarray(drawn, leaf.dtype) if name in ("bias", "mean") else leaf

    return jax.tree_util.tree_map_with_path(changed, variables)


def started(model, x, **options):
    return warm(jax.jit(partial(model.init, **options))(KEY, x))


NORM = {"use_running_average": True}
LAYERS = {
    "Dense": nn.Dense(6),
    "DenseGeneral": nn.DenseGeneral(6, axis=(-2, -1), use_bias=False),
    "Conv of one dimension": nn.Conv(6, (3,), use_bias=False),
    "grouped": nn.Conv(6, (3, 3), 2, feature_group_count=2),
    "depthwise, dilated": nn.Conv(8, (3, 3), kernel_dilation=2, feature_group_count=4),
    "transposed": nn.ConvTranspose(6, (3, 3), (2, 2), use_bias=False),
    "transposed kernel": nn.ConvTranspose(6, (3, 3), (2, 2), transpose_kernel=True),
}
NORMS = [
    jnn.BatchNorm(**NORM),
    jnn.GhostBatchNorm(num_ghosts=2, epsilon=1e-3, **NORM),
    jnn.BatchRenorm(use_scale=False, **NORM),
    nn.BatchNorm(use_bias=False, **NORM),
    jnn.BatchNorm(use_bias=False, use_scale=False, momentum=None, **NORM),
    nn.BatchNorm(**NORM),
    jnn.BatchNorm(axis=3, **NORM),
]


@pytest.mark.parametrize(
    ("layer", "norm"), list(zip(LAYERS.values(), NORMS, strict=True)), ids=LAYERS
)
def test_a_linen_layer(layer, norm):
    model = after(layer, norm)
    variables = started(model, IMAGES)
    folded = jnn.fold(model, variables, {"layers_0": "layers_1"}, IMAGES)
    assert folded.keys() == {"params"}
    assert folded["params"].keys() == {"layers_0"}
    results = jax.jit(lambda v, f: (jnn.apply_folded(model, f, IMAGES), model.apply(v, IMAGES)))(
        variables, folded
    )
    alike(*results, ulps=64)
    # The variables are those of the network without the normalization.
    without = after(layer.clone(use_bias=True), lambda x: x)
    alike(jax.jit(without.apply)(folded, IMAGES), results[1], ulps=64)
