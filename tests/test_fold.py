"""Folded normalizations: a layer that gives what it and the normalization gave."""

import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import KEY, alike, identical, near, normals, parameters, seen
from flax import nnx
from flax.core import FrozenDict, freeze
from flax.serialization import msgpack_restore, to_bytes
from hypothesis import given
from hypothesis import strategies as st

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx
from experiments.models.resnet import ResNet

pytestmark = pytest.mark.numerical

IMAGES = normals(2, 6, 6, 4)


@dataclass(frozen=True)
class Modules:
    """Creates the normalizations of a network of the experiments from a module and its options."""

    module: Any
    options: Any
    adds_bias: bool = True

    def __call__(self, *, name, **options):
        layer = self.module(**dict(self.options), **options, name=name)
        return lambda x, mask, *, train: layer(x)


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


def test_channels_of_no_variance_without_epsilon_are_folded_as_they_are_normalized():
    kernel, x = normals(4, 3), normals(2, 4, seed=1)
    stats = {"mean": normals(3, seed=2), "var": jnp.array([1.0, 0.0, 2.0])}
    scale, norm_bias = parameters(3)
    options = {"epsilon": 0.0}
    expected, _ = jn.batch_norm(x @ kernel, stats, scale, norm_bias, train=False, **options)
    new, bias = jn.fold_batch_norm(kernel, None, stats, scale, norm_bias, **options)
    near(x @ new + bias, expected, 1e-5)
    expected, _ = jn.batch_norm(x[:, :3], stats, scale, norm_bias, train=False, **options)
    new, bias = jn.fold_batch_norm_into_next(kernel[:3], None, stats, scale, norm_bias, **options)
    near(x[:, :3] @ new + bias, expected @ kernel[:3], 1e-5)


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
        ({"kernel": {"kernel": jnp.ones((2, 3))}}, ["kernel is a dict", "['kernel']"]),
        ({"kernel": jnp.ones((2, 4))}, ["running mean", "(3,)", "(4,)", "kernel_axis"]),
        ({"kernel_axis": 2}, ["kernel_axis=2", "the kernel has 2 axes", "[-2, 1]"]),
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


# Arrays: the layer after a normalization


@given(layers())
def test_fold_into_the_next_then_evaluate_is_evaluate(layer):
    groups, outside, seed = layer["groups"], layer["outside"], layer["seed"]
    width = groups * layer["inside"]
    kernel = normals(layer["size"], layer["inside"], outside, seed=seed)
    x = normals(2, 5, width, mean=layer["mean"], seed=seed + 1)
    given_ = (normals(n, mean=1.0, seed=seed + p) for p, n in enumerate((outside, width, width), 2))
    bias, scale, norm_bias = (
        v if has else None for v, has in zip(given_, layer["has"], strict=True)
    )
    stats = seen("batch", width, mean=layer["mean"])
    normalized, _ = reference.batch_norm(x, stats, scale, norm_bias, train=False)
    expected = convolved_in_float64(normalized, kernel, groups, layer["dilation"])
    expected = expected if bias is None else expected + bias
    new, shift = jn.fold_batch_norm_into_next(
        kernel, bias, stats, scale, norm_bias, groups=groups, padding="VALID"
    )
    y = convolved_in_float64(x, new, groups, layer["dilation"]) + reference.widen(shift)
    # Rounded: each number of the kernel once, and the sum that is the bias.
    size = np.abs(reference.widen(new)).sum((0, 1)).max() * (np.abs(x).max() + layer["mean"] + 2)
    near(y, expected, 8 * np.spacing(np.float32(size + np.abs(reference.widen(shift)).max())))


@pytest.mark.parametrize(
    ("spec", "kernel", "options", "channels"),
    [
        (("NCHW", "OIHW", "NCHW"), (6, 2, 3, 3), {"kernel_axis": 0, "input_axis": 1}, 1),
        (("NHWC", "HWIO", "NHWC"), (3, 3, 2, 6), {}, -1),
        (("NHWC", "OHWI", "NHWC"), (6, 3, 3, 2), {"kernel_axis": 0, "input_axis": -1}, -1),
    ],
)
def test_own_convolutions_after_a_normalization(spec, kernel, options, channels):
    x = np.moveaxis(IMAGES, -1, 1) if channels == 1 else IMAGES
    kernel, stats, (scale, norm_bias) = normals(*kernel), seen("batch", 4), parameters(4)

    @jax.jit
    def both(x, kernel):
        call = partial(
            jax.lax.conv_general_dilated,
            window_strides=(2, 1),
            padding="VALID",
            dimension_numbers=spec,
            feature_group_count=2,
        )
        y, _ = jn.batch_norm(x, stats, scale, norm_bias, train=False, channel_axis=channels)
        new, bias = jn.fold_batch_norm_into_next(
            kernel, None, stats, scale, norm_bias, groups=2, padding=0, **options
        )
        along = bias.reshape([-1 if a == channels % 4 else 1 for a in range(4)])
        return call(x, new) + along, call(y, kernel)

    alike(*both(x, kernel), ulps=64)


@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_a_fit_to_inputs_with_a_constant_feature_into_the_first_layer(epsilon):
    x = np.concatenate([normals(20, 3, mean=5.0, std=[0.1, 1.0, 30.0]), np.full((20, 1), 7.0)], 1)
    x = x.astype(np.float32)
    fit = jn.update_input_stats(jn.init_input_stats(4), x)
    assert fit["var"][3] == 0
    kernel, bias = normals(4, 3, seed=1), normals(3, seed=2)
    served = x + normals(20, 4, seed=3)  # where the constant varies
    expected = jn.standardize_inputs(served, fit, epsilon=epsilon) @ kernel + bias
    new, shift = jn.fold_batch_norm_into_next(kernel, bias, fit, None, None, epsilon=epsilon)
    y = reference.widen(served) @ reference.widen(new) + reference.widen(shift)
    near(y, expected, 1e-5 * (np.abs(served) @ np.abs(np.asarray(new))).max())


def test_the_padding_of_the_error_with_what_is_normalized_to_zero_is_exact():
    kernel, (scale, norm_bias), stats = normals(3, 4, 6), parameters(4), seen("batch", 4)
    x = normals(2, 5, 4, seed=1)
    normalized, _ = reference.batch_norm(x, stats, scale, norm_bias, train=False)
    around = [(0, 0), (1, 1), (0, 0)]
    expected = convolved_in_float64(np.pad(normalized, around), kernel, 1, 1)
    message = error(
        lambda: jn.fold_batch_norm_into_next(
            kernel, None, stats, scale, norm_bias, padding=((1, 1),)
        )
    )
    assert "mean - norm_bias * sqrt(var + epsilon) / norm_scale" in message
    zero = stats["mean"] - norm_bias * np.sqrt(stats["var"] + 1e-5) / scale
    padded = np.broadcast_to(zero, (2, 7, 4)).copy()
    padded[:, 1:-1] = x
    new, bias = jn.fold_batch_norm_into_next(kernel, None, stats, scale, norm_bias, padding="VALID")
    near(convolved_in_float64(padded, new, 1, 1) + reference.widen(bias), expected, 1e-5)


EXACT = ["VALID", "valid", "CIRCULAR", "reflect", "replicate", 0, [0], ((0, 0),), [(-1, 0)]]
ONE_POSITION = ["SAME", "same", "CAUSAL", "SAME_LOWER"]
WITH_ZEROS = [*ONE_POSITION, 1, [1], [(0, 1)], ((1, 1),)]


def padded_fold(size, padding):
    stats, kernel = jn.init_batch_stats(2), jnp.ones((size, 2, 3))
    return jn.fold_batch_norm_into_next(kernel, None, stats, None, None, padding=padding)


@pytest.mark.parametrize("padding", EXACT)
def test_a_padding_of_values_of_the_input_or_none_is_taken(padding):
    assert padded_fold(3, padding)[1].shape == (3,)


@pytest.mark.parametrize("padding", ONE_POSITION)
def test_a_padding_that_pads_nothing_is_taken(padding):
    assert padded_fold(1, padding)[1].shape == (3,)


@pytest.mark.parametrize("padding", WITH_ZEROS)
def test_a_padding_with_zeros_says_why_not_and_what_works(padding):
    message = error(lambda: padded_fold(3, padding))
    words = [f"padding={padding!r}", "border", "padding='VALID'", "sqrt(var + epsilon)"]
    assert all(word in message for word in words), message


def test_a_padding_of_one_zero_is_not_taken_with_a_window_of_one_position_either():
    assert "border" in error(lambda: padded_fold(1, 1))


def test_the_bias_of_the_next_layer_keeps_its_dtype_and_a_new_one_takes_the_kernels():
    kernel, stats = jnp.ones((3, 2), jnp.bfloat16), seen("batch", 3)
    new, kept = jn.fold_batch_norm_into_next(kernel, jnp.ones(2), stats, None, None)
    fresh = jn.fold_batch_norm_into_next(kernel, None, stats, None, None)[1]
    assert (new.dtype, kept.dtype, fresh.dtype) == (jnp.bfloat16, jnp.float32, jnp.bfloat16)


# Models

NORM = {"use_running_average": True}


def warm(variables, seed=0):
    """Variables whose scales, biases and statistics are not those of the start."""

    def changed(path, leaf):
        name = next(key for part in path[::-1] if (key := getattr(part, "key", None)))
        drawn = normals(*leaf.shape, seed=seed + len(jax.tree_util.keystr(path)))
        if name in ("scale", "var"):
            return jnp.asarray(1.0 + 0.3 * np.abs(drawn), leaf.dtype)
        return jnp.asarray(drawn, leaf.dtype) if name in ("bias", "mean") else leaf

    return jax.tree_util.tree_map_with_path(changed, variables)


def started(model, *args, **options):
    return warm(jax.jit(lambda: model.init(KEY, *args, **options))())


class Branches(nn.Module):
    """Layers beside each other, each with its normalization."""

    layers: tuple
    norms: tuple

    def __call__(self, x):
        both = zip(self.layers, self.norms, strict=True)
        return [nn.relu(norm(layer(x))) for layer, norm in both]


LAYERS = (
    nn.Dense(6),
    nn.DenseGeneral(6, axis=(-2, -1), use_bias=False),
    nn.Conv(6, (3,), use_bias=False),
    nn.Conv(6, (3, 3), 2, feature_group_count=2),
    nn.Conv(8, (3, 3), kernel_dilation=2, feature_group_count=4),
    nn.ConvTranspose(6, (3, 3), (2, 2), use_bias=False),
    nn.ConvTranspose(6, (3, 3), (2, 2), transpose_kernel=True),
)
NORMS = (
    jnn.BatchNorm(**NORM),
    jnn.GhostBatchNorm(num_ghosts=2, epsilon=1e-3, **NORM),
    jnn.BatchRenorm(use_scale=False, **NORM),
    nn.BatchNorm(use_bias=False, **NORM),
    jnn.BatchNorm(use_bias=False, use_scale=False, momentum=None, **NORM),
    nn.BatchNorm(**NORM),
    jnn.BatchNorm(axis=3, **NORM),
)


@pytest.mark.long
def test_the_layers_and_norms_of_a_linen_model():
    model = Branches(LAYERS, NORMS)
    variables = started(model, IMAGES)
    folded = jnn.fold(model, freeze(variables), {"layers_*": "norms_*"}, IMAGES)
    assert isinstance(folded, FrozenDict)
    assert folded.keys() == {"params"}
    assert folded["params"].keys() == {f"layers_{place}" for place in range(7)}
    # The variables are those of the network without normalizations.
    without = Branches(
        tuple(layer.clone(use_bias=True) for layer in LAYERS), (lambda x: x,) * len(LAYERS)
    )
    applied, plain, unfolded = jax.jit(
        lambda variables, folded: (
            jnn.apply_folded(model, folded, IMAGES),
            without.apply(folded, IMAGES),
            model.apply(variables, IMAGES),
        )
    )(variables, folded)
    alike(applied, unfolded, ulps=64)
    alike(plain, unfolded, ulps=64)


def test_variables_that_are_not_folded_are_applied_as_they_are():
    model = Branches(LAYERS[:1], NORMS[:1])
    variables = started(model, IMAGES)
    identical(jnn.apply_folded(model, variables, IMAGES), model.apply(variables, IMAGES))


class Nothing(NamedTuple):
    """What a network without normalizations makes them with."""

    adds_bias: bool = False

    def __call__(self, *, name, **options):
        return lambda x, mask, *, train: x


def residual(norm):
    sizes = {"num_classes": 3, "depth": 8, "width": 4}
    return ResNet(norm=norm, dtype="float32", dropout=0.0, position="before", **sizes)


def arithmetic(program):
    """Count what a program computes, by operation."""
    words = "add|subtract|multiply|divide|rsqrt|sqrt|convolution|dot_general|maximum"
    return Counter(re.findall(rf"stablehlo\.({words})\b", program.as_text()))


@pytest.mark.long
def test_a_whole_resnet_costs_what_it_costs_without_its_normalizations():
    model, images = residual(Modules(jnn.BatchNorm, tuple(NORM.items()))), normals(2, 8, 8, 1)
    variables = started(model, images, train=False)
    folded = jnn.fold(model, variables, {"Conv_*": "norm_*"}, images, train=False)
    assert {name.split("_")[0] for name in folded["params"]} == {"Conv", "head"}
    apply = jax.jit(partial(jnn.apply_folded, model, train=False))
    unfolded = jax.jit(partial(model.apply, train=False))
    y, expected = apply(folded, images), unfolded(variables, images)
    near(y, expected, 1e-5 * float(abs(expected).max()))
    without = jax.jit(partial(residual(Nothing()).apply, train=False)).lower(folded, images)
    counted = arithmetic(apply.lower(folded, images))
    assert counted == arithmetic(without)
    assert counted["convolution"] == 9
    assert arithmetic(unfolded.lower(variables, images))["rsqrt"] == 9


@pytest.mark.long
def test_a_bfloat16_model_within_its_tolerance_and_not_within_that_of_float32():
    layer = nn.Conv(6, (3, 3), use_bias=False, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    model = nn.Sequential([layer, jnn.BatchNorm(**NORM), nn.relu])
    variables = started(model, IMAGES)
    fold = partial(jnn.fold, model, variables, {"layers_0": "layers_1"}, IMAGES)
    assert "bfloat16" in error(fold)
    folded = fold(tolerance=0.05)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {jnp.dtype(jnp.bfloat16)}
    y = jnn.apply_folded(model, folded, IMAGES)
    assert y.dtype == jnp.float32  # as that of the normalization, whose parameters are


@pytest.mark.long
def test_parameters_in_a_box_stay_in_it():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    model = nn.Sequential([nn.Dense(3, kernel_init=init), jnn.BatchNorm(**NORM)])
    variables = model.init(KEY, IMAGES)
    folded = jnn.fold(model, variables, {"layers_0": "layers_1"}, IMAGES)
    kernel = folded["params"]["layers_0"]["kernel"]
    assert kernel.names == (None, "model")


class Block(nn.Module):
    """A layer and its normalization, as a part of a network."""

    @nn.compact
    def __call__(self, x):
        return nn.relu(jnn.BatchNorm(**NORM)(nn.Dense(4, use_bias=False)(x)))


class Blocks(nn.Module):
    """Two of them, recomputed in the backward pass, behind one that is not folded."""

    @nn.compact
    def __call__(self, x):
        x = Block()(x)
        for place in range(2):
            x = nn.remat(Block)(name=f"block_{place}")(x)
        return x


@pytest.mark.long
def test_pairs_of_nested_and_recomputed_blocks_and_frozen_statistics():
    model = Blocks()
    variables = started(model, IMAGES)
    frozen = {**variables, "batch_stats": jn.freeze_stats(variables["batch_stats"])}
    pairs = {"block_*/Dense_*": "block_*/BatchNorm_*"}
    folded = jnn.fold(model, frozen, pairs, IMAGES)
    assert folded["params"].keys() == {"Block_0", "block_0", "block_1"}
    assert folded["batch_stats"].keys() == {"Block_0"}
    assert folded["params"]["block_1"].keys() == {"Dense_0"}
    y = jnn.apply_folded(model, msgpack_restore(to_bytes(folded)), IMAGES)
    alike(y, model.apply(variables, IMAGES), ulps=64)


class Net(nnx.Module):
    """Convolutions of NNX, and what stands after them."""

    def __init__(self, library, rngs):
        conv = partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs)
        self.convs = nnx.List(
            [
                conv(4, 8, use_bias=False),
                conv(8, 8, feature_group_count=8, kernel_dilation=2),
                nnx.ConvTranspose(8, 6, (3, 3), (2, 2), rngs=rngs, transpose_kernel=True),
                nnx.ConvTranspose(6, 5, (3, 3), use_bias=False, rngs=rngs),
            ]
        )
        norms = [library.BatchNorm(width, rngs=rngs) for width in (8, 8, 6, 5)]
        self.norms = nnx.List(norms)
        self.dense = nnx.Linear(5, 3, use_bias=False, rngs=rngs)
        self.last = jnnx.GhostBatchNorm(3, num_ghosts=2, use_scale=False, rngs=rngs)

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.last(self.dense(x.mean((1, 2))))


@pytest.mark.long
@pytest.mark.parametrize("library", [jnnx, nnx], ids=["ours", "Flax's"])
def test_an_nnx_model(library):
    model = Net(library, nnx.Rngs(KEY))
    nnx.update(model, warm(nnx.state(model)))
    before = nnx.state(nnx.clone(model))
    pairs = {"convs/*": "norms/*", "dense": "last"}
    calls = library.BatchNorm.__call__, jnnx.GhostBatchNorm.__call__
    folded = jnnx.fold(model, pairs, IMAGES)
    assert (library.BatchNorm.__call__, jnnx.GhostBatchNorm.__call__) == calls
    assert "__call__" not in vars(jnnx.GhostBatchNorm)
    identical(nnx.state(model), before)  # the model is left as it was
    assert model.norms[0].use_running_average is False
    assert not jax.tree.leaves(nnx.state(folded, nnx.BatchStat))
    assert isinstance(folded.norms[0], jnnx.Identity)
    model.eval()
    alike(*nnx.jit(lambda a, b: (a(IMAGES), b(IMAGES)))(folded, model), ulps=64)


# Models: the layer after a normalization


class After(nn.Module):
    """Normalizations, each before a layer."""

    layers: tuple
    norms: tuple

    def __call__(self, x):
        both = zip(self.layers, self.norms, strict=True)
        return [nn.relu(layer(norm(x))) for layer, norm in both]


VALID = {"padding": "VALID", "use_bias": False}
NEXT_LAYERS = (
    nn.Dense(6),
    nn.DenseGeneral((2, 3), axis=(1, -1), use_bias=False),
    nn.DenseGeneral(3, axis=-1, batch_dims=(0, 1), use_bias=False),
    nn.Einsum((4, 2, 3), "nhwc,cab->nahwb", use_bias=False),
    nn.Conv(6, (3, 3), 2, feature_group_count=2, **VALID),
    nn.Conv(8, (2, 3), padding=0, kernel_dilation=2, feature_group_count=4),
    nn.Conv(5, (3, 3), padding="CIRCULAR", use_bias=False),
    nn.Conv(5, (1, 1), mask=np.float32(np.arange(20).reshape(1, 1, 4, 5) % 2)),
    nn.ConvLocal(3, (2, 2), 3, **VALID),
    nn.Dense(3),
)
NEXT_NORMS = (
    jnn.BatchNorm(**NORM),
    jnn.GhostBatchNorm(num_ghosts=2, epsilon=1e-3, **NORM),
    jnn.BatchRenorm(use_scale=False, **NORM),
    nn.BatchNorm(use_bias=False, **NORM),
    jnn.BatchNorm(use_bias=False, use_scale=False, momentum=None, **NORM),
    nn.BatchNorm(**NORM),
    jnn.BatchNorm(axis=3, **NORM),
    jnn.BatchNorm(**NORM),
    jnn.BatchNorm(**NORM),
    jnn.StandardizeInputs(**NORM),
)


@pytest.mark.long
def test_the_norms_of_a_linen_model_into_the_layers_after_them():
    model = After(NEXT_LAYERS, NEXT_NORMS)
    variables = started(model, IMAGES)
    folded = jnn.fold(model, variables, {"layers_*": "norms_*"}, IMAGES)
    assert folded.keys() == {"params"}
    assert folded["params"].keys() == {f"layers_{place}" for place in range(len(NEXT_LAYERS))}
    without = After(
        tuple(layer.clone(use_bias=True) for layer in NEXT_LAYERS),
        (lambda x: x,) * len(NEXT_LAYERS),
    )
    applied, plain, unfolded = jax.jit(
        lambda variables, folded: (
            jnn.apply_folded(model, folded, IMAGES),
            without.apply(folded, IMAGES),
            model.apply(variables, IMAGES),
        )
    )(variables, folded)
    alike(applied, unfolded, ulps=64)
    alike(plain, unfolded, ulps=64)


GENERAL_LAYERS = (
    nn.DenseGeneral((2, 3), use_bias=False),
    nn.DenseGeneral((2, 3), axis=(1, 3), batch_dims=(0,), use_bias=False),
    nn.Einsum((3, 4, 2), "nhwc,bca->nahwb", use_bias=False),
    nn.ConvLocal(3, (2, 2), 3, padding="SAME", use_bias=False),
    nn.Conv(5, (3, 3), mask=np.float32(np.arange(180).reshape(3, 3, 4, 5) % 2)),
)


@pytest.mark.long
def test_norms_after_layers_whose_bias_has_more_axes_than_the_channels():
    norms = (jnn.BatchNorm(**NORM),) * len(GENERAL_LAYERS)
    model = Branches(GENERAL_LAYERS, tuple(norm.clone() for norm in norms))
    variables = started(model, IMAGES)
    folded = jnn.fold(model, variables, {"layers_*": "norms_*"}, IMAGES)
    without = Branches(
        tuple(layer.clone(use_bias=True) for layer in GENERAL_LAYERS), (lambda x: x,) * len(norms)
    )
    unfolded = model.apply(variables, IMAGES)
    alike(jnn.apply_folded(model, folded, IMAGES), unfolded, ulps=64)
    alike(without.apply(folded, IMAGES), unfolded, ulps=64)


class Attention(nn.Module):
    """An input normalization, then a normalization that feeds three layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="first")(jnn.StandardizeInputs(name="inputs", **NORM)(x))
        x = jnn.BatchNorm(name="norm", **NORM)(nn.relu(x))
        q, k, v = (nn.Dense(4, use_bias=False, name=name)(x) for name in "qkv")
        return jnn.BatchNorm(name="after", **NORM)(q) + k * v


@pytest.mark.long
def test_a_norm_that_feeds_several_layers_and_folding_again():
    model, x = Attention(), normals(3, 4)
    variables = started(model, x)
    pairs = {"first": "inputs", "q": "norm", "k": "norm", "v": "norm"}
    folded = jnn.fold(model, variables, pairs, x)
    assert folded["batch_stats"].keys() == {"after"}
    folded = jnn.fold(model, folded, {"q": "after"}, x)
    assert folded.keys() == {"params"}
    alike(jnn.apply_folded(model, folded, x), model.apply(variables, x), ulps=64)
    message = error(lambda: jnn.fold(model, variables, {"q": "norm", "k": "norm"}, x))
    assert "name all the layers that a normalization feeds" in message


class Sowing(nn.Module):
    """Stores what the layer gives, and what the network gives."""

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(3, name="layer")(x)
        self.sow("intermediates", "unfolded", y)
        y = jnn.BatchNorm(name="norm", **NORM)(y)
        self.sow("losses", "output", y)
        return y


@pytest.mark.parametrize(
    "options",
    [
        {"mutable": ["intermediates"]},
        {"capture_intermediates": True},
        {"mutable": ["batch_stats", "losses"]},
        {"mutable": True},
    ],
)
def test_intermediates_and_variables_are_not_compared(options):
    model, x = Sowing(), normals(5, 4)
    variables = started(model, x)
    variables = {key: variables[key] for key in ("params", "batch_stats")}
    folded = jnn.fold(model, variables, {"layer": "norm"}, x, **options)
    alike(jnn.apply_folded(model, folded, x), model.apply(variables, x), ulps=64)


class Leaking(nn.Module):
    """Stores what the layer gives in a collection of its own."""

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(3, name="layer")(x)
        self.sow("losses", "unfolded", y)
        return jnn.BatchNorm(name="norm", **NORM)(y)


def test_other_collections_are_compared():
    model, x = Leaking(), normals(5, 4)
    variables = started(model, x)
    variables = {key: variables[key] for key in ("params", "batch_stats")}
    pairs, options = {"layer": "norm"}, {"mutable": ["losses"]}
    message = error(lambda: jnn.fold(model, variables, pairs, x, **options))
    assert "in a collection that is mutable" in message


class PreNorm(nn.Module):
    """Flax's attention of what is normalized, beside what is not."""

    @nn.compact
    def __call__(self, x):
        y = jnn.BatchNorm(name="norm", **NORM)(x)
        return x + nn.MultiHeadDotProductAttention(2, use_bias=False, name="attention")(y)


@pytest.mark.long
def test_a_norm_into_the_projections_of_an_attention():
    model, x = PreNorm(), normals(2, 3, 4)
    variables = started(model, x)
    pairs = {f"attention/{name}": "norm" for name in ("query", "key", "value")}
    folded = jnn.fold(model, variables, pairs, x)
    assert folded["params"]["attention"]["query"]["bias"].shape == (2, 2)
    alike(jnn.apply_folded(model, folded, x), model.apply(variables, x), ulps=64)


@pytest.mark.long
@pytest.mark.parametrize("center", [True, False])
def test_integers_that_an_input_normalization_made_floating(center):
    scale = jnn.StandardizeInputs(epsilon=1e-3, center=center, **NORM)
    model = nn.Sequential([scale, nn.Dense(3)])
    x = jnp.arange(8).reshape(2, 4)
    variables = started(model, x)
    fit = variables["batch_stats"]["layers_0"]
    fit = {**fit, "var": fit["var"].at[1].set(0)}  # a constant
    variables = {**variables, "batch_stats": {"layers_0": fit}}
    folded = jnn.fold(model, variables, {"layers_1": "layers_0"}, x)
    alike(jnn.apply_folded(model, folded, x), model.apply(variables, x), ulps=64)


class Counting(nnx.Module):
    """Counts its calls, also in evaluation."""

    def __init__(self):
        self.dense = nnx.Linear(4, 2, rngs=nnx.Rngs(KEY))
        self.norm = jnnx.BatchNorm(2, rngs=nnx.Rngs(KEY))
        self.calls = nnx.Variable(jnp.int32(0))

    def __call__(self, x):
        self.calls[...] += 1
        return self.norm(self.dense(x))


def test_an_nnx_model_that_changes_a_variable_in_evaluation():
    model = Counting()
    model(IMAGES)
    folded = jnnx.fold(model, {"dense": "norm"}, IMAGES)
    assert (int(model.calls[...]), int(folded.calls[...])) == (1, 1)
    model.eval()
    alike(folded(IMAGES), model(IMAGES), ulps=64)


class NnxNext(nnx.Module):
    """Normalizations of NNX, each before a layer, and one after."""

    def __init__(self, library, rngs):
        conv = partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs, padding="VALID")
        linear = partial(nnx.LinearGeneral, use_bias=False, rngs=rngs)
        self.layers = nnx.List(
            [
                conv(4, 8, feature_group_count=2),
                conv(8, 6, use_bias=False),
                linear(6, (2, 3)),
                nnx.Einsum("nhwac,bca->nhwb", (4, 3, 2), rngs=rngs),
                linear((2, 4), 3, axis=(1, 3)),
            ]
        )
        widths = (4, 8, 6, 3, 4)
        self.norms = nnx.List(
            [
                jnnx.StandardizeInputs(4, center=library is jnnx),
                *(library.BatchNorm(width, rngs=rngs) for width in widths[1:]),
            ]
        )

    def __call__(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = nnx.relu(layer(norm(x)))
        return x


@pytest.mark.long
@pytest.mark.parametrize("library", [jnnx, nnx], ids=["ours", "Flax's"])
def test_an_nnx_model_into_the_layers_after(library):
    model = NnxNext(library, nnx.Rngs(KEY))
    nnx.update(model, warm(nnx.state(model)))
    before = nnx.state(nnx.clone(model))
    folded = jnnx.fold(model, {"layers/*": "norms/*"}, IMAGES)
    identical(nnx.state(model), before)
    assert not jax.tree.leaves(nnx.state(folded, nnx.BatchStat))
    assert all(isinstance(norm, jnnx.Identity) for norm in folded.norms)
    model.eval()
    alike(*nnx.jit(lambda a, b: (a(IMAGES), b(IMAGES)))(folded, model), ulps=64)


class NnxShared(nnx.Module):
    """A normalization between a layer and two others."""

    def __init__(self, rngs):
        self.first, self.left, self.right = (nnx.Linear(4, 4, rngs=rngs) for _ in range(3))
        self.norm = jnnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.first(x))
        return self.left(x) * self.right(x)


def test_an_nnx_norm_into_two_layers_or_into_the_one_before():
    model = NnxShared(nnx.Rngs(KEY))
    nnx.update(model, warm(nnx.state(model)))
    x = normals(3, 4)
    model.eval()
    expected = model(x)
    for pairs in ({"left": "norm", "right": "norm"}, {"first": "norm"}):
        alike(jnnx.fold(model, pairs, x)(x), expected, ulps=64)
    message = error(lambda: jnnx.fold(model, {"first": "norm", "left": "norm"}, x))
    assert all(word in message for word in ["twice", "'first' before it", "'left' after it"])
    message = error(lambda: jnnx.fold(model, {"left": "norm"}, x))
    assert "name all the layers that a normalization feeds" in message


NOT_INTO_NEXT = {
    "zeros": (nn.Conv(3, (3, 3)), jnn.BatchNorm(**NORM), ["padding='SAME'", "border"]),
    "input dilation": (
        nn.Conv(3, (1, 1), input_dilation=2, padding=0),
        jnn.BatchNorm(**NORM),
        ["input_dilation=2", "zeros"],
    ),
    "transposed": (nn.ConvTranspose(3, (2, 2)), jnn.BatchNorm(**NORM), ["different positions"]),
    "clipped": (nn.Dense(3), jnn.StandardizeInputs(clip=5.0, **NORM), ["clip=5.0", "clip=None"]),
    "not contracted": (
        nn.DenseGeneral(3, axis=1),
        jnn.BatchNorm(**NORM),
        ["last axis of the input", "not an axis of the kernel"],
    ),
    "scaled to a range": (nn.Dense(3), jnn.MinMaxInputs(**NORM), ["MinMaxInputs", "StandardizeI"]),
}


@pytest.mark.parametrize("kind", NOT_INTO_NEXT)
def test_what_the_next_layer_cannot_take_is_named(kind):
    layer, norm, words = NOT_INTO_NEXT[kind]
    model = nn.Sequential([norm, layer])
    variables = model.init(KEY, IMAGES)
    message = error(lambda: jnn.fold(model, variables, {"layers_1": "layers_0"}, IMAGES))
    assert all(word in message for word in ["'layers_0'", *words]), message


def test_an_nnx_layer_that_pads_with_zeros_is_named():
    rngs = nnx.Rngs(KEY)
    model = nnx.Sequential(jnnx.BatchNorm(4, rngs=rngs), nnx.Conv(4, 3, (3, 3), rngs=rngs))
    message = error(lambda: jnnx.fold(model, {"layers/1": "layers/0"}, IMAGES))
    words = ["'layers/0' cannot be folded into 'layers/1'", "padding='SAME'"]
    assert all(word in message for word in words), message


class OwnConv(nn.Module):
    """A layer that is not Flax's, and pads with zeros unseen."""

    use_bias: bool = False

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (3, x.shape[-1], 3))
        return jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
        )


def test_an_own_layer_that_pads_with_zeros_is_found_by_the_outputs():
    model, x = nn.Sequential([jnn.BatchNorm(**NORM), OwnConv()]), normals(2, 5, 4)
    variables = started(model, x)
    message = error(lambda: jnn.fold(model, variables, {"layers_1": "layers_0"}, x))
    assert "tolerance=1e-05" in message


# What cannot be folded


class Wrong(nn.Module):
    """A layer and a normalization, with something about them."""

    kind: str

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, name="layer")
        norm = nn.LayerNorm if self.kind == "layer norm" else partial(jnn.BatchNorm, **NORM)
        norm = norm(name="norm") if self.kind != "axis" else norm(name="norm", axis=1)
        if self.kind == "activation before":
            return layer(nn.relu(norm(x)))
        if self.kind == "elsewhere before":
            y = norm(x)
            return layer(y) + y
        y = layer(x)
        if self.kind == "activation":
            return norm(nn.relu(y))
        if self.kind == "other":
            return norm(nn.Dense(4, name="between")(y))
        if self.kind == "residual":
            return norm(x + y)
        if self.kind == "elsewhere":
            return norm(y) + y
        if self.kind == "twice":
            return norm(y) + layer(2 * x)
        return norm(y)


class NnxWrong(nnx.Module):
    """The same."""

    def __init__(self, kind, rngs):
        self.kind = kind
        self.layer, self.between = (nnx.Linear(4, 4, rngs=rngs) for _ in range(2))
        norm = nnx.LayerNorm if kind == "layer norm" else jnnx.BatchNorm
        options = {"axis": 1} if kind == "axis" else {}
        self.norm = norm(IMAGES.shape[1] if kind == "axis" else 4, rngs=rngs, **options)

    def __call__(self, x):
        layer, norm = self.layer, self.norm
        if self.kind == "activation before":
            return layer(nnx.relu(norm(x)))
        if self.kind == "elsewhere before":
            y = norm(x)
            return layer(y) + y
        y = layer(x)
        if self.kind == "activation":
            return norm(nnx.relu(y))
        if self.kind == "other":
            return norm(self.between(y))
        if self.kind == "residual":
            return norm(x + y)
        if self.kind == "elsewhere":
            return norm(y) + y
        if self.kind == "twice":
            return norm(y) + layer(2 * x)
        return norm(y)


WRONG = {
    "activation before": ["'norm'", "'layer'", "activation"],
    "elsewhere before": ["elsewhere"],
    "activation": ["'norm'", "'layer'", "activation"],
    "other": ["'norm'", "'layer'", "'between'"],
    "residual": ["'norm'", "'layer'", "addition"],
    "elsewhere": ["elsewhere"],  # found of a fresh normalization too, which changes nearly nothing
    "twice": ["'layer'", "2 times"],
    "layer norm": ["'norm' is a LayerNorm", "running statistics"],
    "axis": ["axis 1", "axis=-1"],
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_stands_between_is_named(kind):
    model = Wrong(kind)
    variables = model.init(KEY, IMAGES[:, :4])
    pairs = {"layer": "norm"}
    message = error(lambda: jnn.fold(model, variables, pairs, IMAGES[:, :4]))
    assert all(word in message for word in WRONG[kind]), message
    model = NnxWrong(kind, nnx.Rngs(KEY))
    message = error(lambda: jnnx.fold(model, pairs, IMAGES))
    assert all(word in message for word in WRONG[kind]), message


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ({"layr": "norm"}, ["'layr'", "['layer', 'norm']"]),
        ({}, ["no pair", "['layer', 'norm']"]),
        ({"layer": "norms"}, ["'norms'", "['layer', 'norm']"]),
        ({"lay*": "norm*"}, ["'normer'", "['layer', 'norm']"]),
        ({"layer": "norm", "l*r": "norm"}, ["'layer'", "two"]),
        ({"norm": "layer"}, ["'layer' is a", "BatchNorm"]),
        ([("layer", "norm")], ["dict", '{"Conv_0": "BatchNorm_0"}']),
    ],
)
def test_a_pair_that_names_nothing(pairs, words):
    model = Wrong("")
    variables = model.init(KEY, IMAGES)
    for message in (
        error(lambda: jnn.fold(model, variables, pairs, IMAGES)),
        error(lambda: jnnx.fold(NnxWrong("", nnx.Rngs(KEY)), pairs, IMAGES)),
    ):
        assert all(word in message for word in words), message


class Bounded(nn.Module):
    """A layer that is not linear in its kernel."""

    use_bias: bool = False

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (4, 4))
        return x @ jnp.tanh(kernel)


@pytest.mark.long
def test_a_layer_that_is_not_linear_in_its_kernel_is_found_by_the_outputs():
    model = nn.Sequential([Bounded(), jnn.BatchNorm(**NORM)])
    variables = started(model, IMAGES)
    message = error(lambda: jnn.fold(model, variables, {"layers_0": "layers_1"}, IMAGES))
    assert "tolerance=1e-05" in message
    assert "linear in its kernel" in message


class Own(nn.Module):
    """A layer that always has a bias."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (4, 4))
        return x @ kernel + self.param("bias", nn.initializers.ones, (4,))


@pytest.mark.long
def test_an_own_layer_and_outputs_that_are_not_finite_or_not_floating():
    def outputs(y):
        return y, jnp.where(y > 0, y, -jnp.inf), y > 0, y[:0]

    model = nn.Sequential([Own(), jnn.BatchNorm(**NORM), outputs])
    variables = started(model, IMAGES)
    folded = jnn.fold(model, variables, {"layers_0": "layers_1"}, IMAGES)
    y = jnn.apply_folded(model, folded, IMAGES)[0]
    alike(y, model.apply(variables, IMAGES)[0], ulps=64)


def test_a_layer_without_a_kernel_is_named():
    model = nn.Sequential([nn.PReLU(), jnn.BatchNorm(**NORM)])
    variables = model.init(KEY, IMAGES)
    message = error(lambda: jnn.fold(model, variables, {"layers_0": "layers_1"}, IMAGES))
    assert "PReLU" in message
    model = nnx.Sequential(nnx.PReLU(), jnnx.BatchNorm(4, rngs=nnx.Rngs(KEY)))
    assert "PReLU" in error(lambda: jnnx.fold(model, {"layers/0": "layers/1"}, IMAGES))
