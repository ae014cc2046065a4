"""Folded batch normalization: a layer that gives what it and the normalization gave."""

import re
from collections import Counter
from functools import partial
from typing import NamedTuple

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
from benchmarks.resnet import Modules
from experiments.models.resnet import ResNet

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


# What cannot be folded


class Wrong(nn.Module):
    """A layer and a normalization, with something about them."""

    kind: str

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, name="layer")
        norm = nn.LayerNorm if self.kind == "layer norm" else partial(jnn.BatchNorm, **NORM)
        norm = norm(name="norm") if self.kind != "axis" else norm(name="norm", axis=1)
        if self.kind == "first":
            return layer(norm(x))
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
        if self.kind == "first":
            return layer(norm(x))
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
    "first": ["'norm'", "'layer'", "of no module"],
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
