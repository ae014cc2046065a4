"""Folding by the type of a layer: each layer of the table, in its library's layout."""

import os
import re
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import KEY, near, normals, parameters, seen

import jaxnorm as jn
from jaxnorm import layers

pytestmark = pytest.mark.numerical

IN, OUT, TAPS = 4, 6, 2

# The matrix [in, out] of one position of the window, written out from each library's documentation.


def dense(kernel):
    return kernel


def dense_of_pytorch(kernel):
    return kernel.T


def grouped(kernel, groups):
    """Flax and Keras: [in / groups, out]."""
    inside, out = kernel.shape
    matrix = np.zeros((groups * inside, out))
    for i, o in np.ndindex(kernel.shape):
        matrix[o // (out // groups) * inside + i, o] = kernel[i, o]
    return matrix


def grouped_of_pytorch(kernel, groups):
    """PyTorch's convolutions: [out, in / groups]."""
    return grouped(kernel.T, groups)


def transposed_of_pytorch(kernel, groups):
    """PyTorch's transposed convolutions: [in, out / groups]."""
    width, outside = kernel.shape
    matrix = np.zeros((width, groups * outside))
    for i, o in np.ndindex(kernel.shape):
        matrix[i, i // (width // groups) * outside + o] = kernel[i, o]
    return matrix


def depthwise(kernel):
    """Keras: [in, multiplier]."""
    width, multiplier = kernel.shape
    matrix = np.zeros((width, width * multiplier))
    for i, m in np.ndindex(kernel.shape):
        matrix[i, i * multiplier + m] = kernel[i, m]
    return matrix


# Each layer's kernel of one position, its matrix, whether the window comes first, and its rank.
LAST = {
    "flax.Dense": ((IN, OUT), dense, 0),
    "flax.Linear": ((IN, OUT), dense, 0),
    "flax.DenseGeneral": ((IN, OUT), dense, 0),
    "flax.LinearGeneral": ((IN, OUT), dense, 0),
    "flax.Conv": ((IN // 2, OUT), grouped, 2),
    "flax.ConvTranspose": ((IN, OUT), dense, 2),
    "keras.Dense": ((IN, OUT), dense, 0),
    **{f"keras.Conv{rank}D": ((IN // 2, OUT), grouped, rank) for rank in (1, 2, 3)},
    **{f"keras.DepthwiseConv{rank}D": ((IN, 3), depthwise, rank) for rank in (1, 2)},
    **{f"keras.SeparableConv{rank}D": ((IN, OUT), dense, rank) for rank in (1, 2)},
    **{f"keras.Conv{rank}DTranspose": ((OUT, IN), dense_of_pytorch, rank) for rank in (1, 2, 3)},
}
FIRST = {
    "pytorch.Linear": ((OUT, IN), dense_of_pytorch, 0),
    **{f"pytorch.Conv{r}d": ((OUT, IN // 2), grouped_of_pytorch, r) for r in (1, 2, 3)},
    **{f"pytorch.ConvTranspose{r}d": ((IN, 3), transposed_of_pytorch, r) for r in (1, 2, 3)},
}
BY_FORMULA = {
    **{name: (*case, False) for name, case in LAST.items()},
    **{name: (*case, True) for name, case in FIRST.items()},
    "flax.ConvTranspose, transpose_kernel": ((OUT, IN), dense_of_pytorch, 2, False),
}
BY_EINSUM = {"flax.Einsum", "keras.EinsumDense", "flax.DenseGeneral", "flax.LinearGeneral"}


def test_every_layer_of_the_table_is_tested():
    formulas = {name.partition(",")[0] for name in BY_FORMULA}
    assert formulas | BY_EINSUM | {"flax.ConvLocal"} == set(layers.AXES)


def test_every_layer_of_the_table_is_in_the_documentation():
    page = (Path(__file__).parent.parent / "docs" / "fold.md").read_text()
    table = re.search(r"\| layer \|.*?\n\n", page, re.DOTALL)[0]
    assert set(re.findall(r"`((?:flax|keras|pytorch)\.\w+)`", table)) == set(layers.AXES)


def case_of(name):
    """Give a layer's kernel, its options, and itself as a function of an input and a kernel."""
    shape, matrix, rank, channels_first = BY_FORMULA[name]
    window = (TAPS,) * rank if "Separable" not in name else (1,) * rank
    options = {"layer": name.partition(",")[0]}
    if "transpose_kernel" in name:
        options["transpose_kernel"] = True
    if matrix in (grouped, grouped_of_pytorch, transposed_of_pytorch):
        options["groups"] = 2
        matrix = partial(matrix, groups=2)
    transposed = "Transpose" in name

    def call(x, kernel):
        kernel = reference.widen(kernel)
        x, y = reference.widen(x), 0
        for tap in np.ndindex(*window):
            at = (..., *tap) if channels_first else tap
            part = x @ matrix(kernel[at])
            if transposed:  # each position is spread over the window, with a stride of 1
                after = [(t, TAPS - 1 - t) for t in tap]
                y = y + np.pad(part, [(0, 0), *after, (0, 0)])
            else:
                size = [n - w + 1 for n, w in zip(x.shape[1:-1], window, strict=True)]
                of = tuple(slice(t, t + n) for t, n in zip(tap, size, strict=True))
                y = y + part[:, *of]
        return y

    kernel = normals(*((*shape, *window) if channels_first else (*window, *shape)))
    return kernel, options, call, normals(2, *(3,) * rank, IN, seed=1)


def rounded(call, x, kernel, bias):
    """Give what rounding each number of a kernel and a bias once may change of the output."""
    size = call(np.abs(x), np.abs(kernel)).max() + np.abs(reference.widen(bias)).max()
    return 8 * np.spacing(np.float32(size))


@pytest.mark.parametrize("name", BY_FORMULA)
def test_a_normalization_after_a_layer(name):
    kernel, options, call, x = case_of(name)
    y = call(x, kernel)
    width = y.shape[-1]
    stats, (scale, norm_bias) = seen("batch", width), parameters(width)
    bias = normals(width, seed=2)
    expected, _ = reference.batch_norm(y + bias, stats, scale, norm_bias, train=False)
    new, shift = jn.fold_batch_norm(kernel, bias, stats, scale, norm_bias, **options)
    assert new.shape == kernel.shape
    near(call(x, new) + reference.widen(shift), expected, rounded(call, x, new, shift))


@pytest.mark.parametrize(
    "name", [n for n in BY_FORMULA if "Transpose" not in n and "Separable" not in n]
)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "none"])
def test_a_normalization_before_a_layer(name, has_bias):
    kernel, options, call, x = case_of(name)
    stats, (scale, norm_bias) = seen("batch", IN), parameters(IN)
    normalized, _ = reference.batch_norm(x, stats, scale, norm_bias, train=False)
    expected = call(normalized, kernel)
    bias = normals(expected.shape[-1], seed=2) if has_bias else None
    expected = expected + (0 if bias is None else bias)
    if BY_FORMULA[name][2]:
        options["padding"] = "VALID"
    new, shift = jn.fold_batch_norm_into_next(kernel, bias, stats, scale, norm_bias, **options)
    assert new.shape == kernel.shape
    near(call(x, new) + reference.widen(shift), expected, 4 * rounded(call, x, new, shift))


@pytest.mark.parametrize("name", [n for n in BY_FORMULA if "Transpose" in n or "Separable" in n])
def test_a_layer_that_takes_no_normalization_before_it_says_why(name):
    kernel, options, _, _ = case_of(name)
    stats = seen("batch", IN)
    options["padding"] = "VALID"
    with pytest.raises(
        ValueError, match=r"different positions of its kernel|applies its depthwise"
    ):
        jn.fold_batch_norm_into_next(kernel, None, stats, None, None, **options)


def test_a_normalization_before_a_separable_layer_in_the_two_steps_of_the_error():
    x, stats, (scale, norm_bias) = normals(2, 3, IN), seen("batch", IN), parameters(IN)
    wide, narrow = normals(TAPS, IN, 3, seed=1), normals(1, 3 * IN, OUT, seed=2)
    bias = normals(OUT, seed=3)

    def call(x, wide):
        depth = [x[:, t : t + 2] @ depthwise(reference.widen(wide)[t]) for t in range(TAPS)]
        return sum(depth) @ reference.widen(narrow)[0]

    expected = call(reference.batch_norm(x, stats, scale, norm_bias, train=False)[0], wide) + bias
    options = {"layer": "keras.DepthwiseConv1D", "padding": "valid"}
    new, shift = jn.fold_batch_norm_into_next(wide, None, stats, scale, norm_bias, **options)
    near(call(x, new) + (bias + shift @ narrow[0]), expected, 1e-4)


# By an einsum's equation, with other axes than the channels

EQUATIONS = [
    ("...i,io->...o", (4, 6)),
    ("nab,abc->nc", (3, 4, 6)),
    ("nta,hab->nthb", (2, 4, 5)),
    ("nia,iab->nib", (3, 4, 5)),
    ("nbta,bac->nbtc", (3, 4, 5)),
    ("a...b,bca->a...c", (4, 5, 2)),
]


@pytest.mark.parametrize(("equation", "shape"), EQUATIONS)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "none"])
def test_an_einsum(equation, shape, has_bias):
    inputs, y_letters = equation.split("->")
    x_letters, letters = inputs.split(",")
    kernel, sizes = normals(*shape), dict(zip(letters, shape, strict=True))
    x = normals(*(sizes.get(s, 2) for s in x_letters.replace("...", "n")), seed=1)
    shared = [s for s in y_letters if s in letters]
    bias = normals(*(sizes[s] for s in shared), seed=2) if has_bias else None

    def call(x, kernel, bias):
        y = np.einsum(equation, reference.widen(x), reference.widen(kernel))
        if bias is None:
            return y
        ends = y_letters.replace("...", "n")
        return y + reference.widen(bias).reshape([sizes.get(s, 1) for s in ends])

    for into_next, function in ((False, jn.fold_batch_norm), (True, jn.fold_batch_norm_into_next)):
        width = x.shape[-1] if into_next else shape[letters.index(y_letters[-1])]
        stats, (scale, norm_bias) = seen("batch", width), parameters(width)
        norm = partial(reference.batch_norm, stats=stats, scale=scale, bias=norm_bias, train=False)
        expected = call(norm(x)[0], kernel, bias) if into_next else norm(call(x, kernel, bias))[0]
        options = {"layer": "flax.Einsum", "equation": equation}
        new = function(kernel, bias, stats, scale, norm_bias, **options)
        near(call(x, *new), expected, 1e-5 * np.abs(expected).max())


# flax.ConvLocal, whose weights and biases are of a position of the output


def test_an_unshared_convolution():
    kernel, bias = normals(2, TAPS * IN, OUT), normals(2, OUT, seed=1)
    x = normals(2, 3, IN, seed=2)

    def call(x, kernel, bias):
        """Sum over patches, [in, window], of which the channels are the slower."""
        x, kernel = reference.widen(x), reference.widen(kernel)
        patches = np.stack([x[:, t : t + 2] for t in range(TAPS)], -1).reshape(2, 2, -1)
        return np.einsum("npi,pio->npo", patches, kernel) + reference.widen(bias)

    module = nn.ConvLocal(OUT, (TAPS,), padding="VALID")
    near(module.apply({"params": {"kernel": kernel, "bias": bias}}, x), call(x, kernel, bias), 1e-5)
    for into_next, function in ((False, jn.fold_batch_norm), (True, jn.fold_batch_norm_into_next)):
        width = IN if into_next else OUT
        stats, (scale, norm_bias) = seen("batch", width), parameters(width)
        norm = partial(reference.batch_norm, stats=stats, scale=scale, bias=norm_bias, train=False)
        expected = call(norm(x)[0], kernel, bias) if into_next else norm(call(x, kernel, bias))[0]
        options = {"layer": "flax.ConvLocal", **({"padding": "VALID"} if into_next else {})}
        new = function(kernel, bias, stats, scale, norm_bias, **options)
        near(call(x, *new), expected, 1e-5 * np.abs(expected).max())
        without = function(kernel, None, stats, scale, norm_bias, **options)[1]
        assert without.shape == (2, OUT)


# What does not fit


def fold(kernel, width, into_next=False, **options):
    function = jn.fold_batch_norm_into_next if into_next else jn.fold_batch_norm
    return lambda: function(
        jnp.ones(kernel), None, jn.init_batch_stats(width), None, None, **options
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            fold((2, 3), 3, layer="flax.Convolution"),
            ["flax.Conv, ", "pytorch.Linear", "kernel_axis"],
        ),
        (fold((2, 3), 3, layer=nn.Dense), ["string such as 'flax.Conv'"]),
        (fold((2, 3), 3, layer="flax.Dense", kernel_axis=0), ["'flax.Dense'", "kernel_axis=0"]),
        (fold((2, 3), 2, True, layer="flax.Dense", input_axis=0), ["'flax.Dense'", "input_axis=0"]),
        (fold((2, 3), 4, layer="flax.Dense"), ["[in, out]", "(2, 3)", "3 output channels", "(4,)"]),
        (
            fold((3, 3, 2, 6), 4, True, layer="flax.Conv", groups=1, padding="VALID"),
            ["[window..., in, groups * out]", "(3, 3, 2, 6)", "2 input", "groups=2 would fit"],
        ),
        (
            fold((3, 3, 4, 2), 4, layer="keras.DepthwiseConv2D"),
            ["keras.DepthwiseConv2D, [height, width, in, multiplier]", "8 output", "(8,)"],
        ),
        (
            fold((4, 3, 2, 2), 6, layer="pytorch.ConvTranspose2d"),
            ["[groups * in, out, height, width]", "3 output", "groups=2 would fit"],
        ),
        (
            fold((3, 3, 8, 4), 4, layer="flax.ConvTranspose", transpose_kernel=True),
            ["[window..., out, in]", "8 output", "transpose_kernel"],
        ),
        (
            fold((3, 4, 6), 6, layer="keras.Conv2D"),
            ["[height, width, in, groups * out]", "(3, 4, 6)"],
        ),
        (fold((2, 3, 4), 4, layer="flax.DenseGeneral"), ["[in, out]", "give the equation"]),
        (fold((4, 3, 2), 9, layer="pytorch.ConvTranspose1d", groups=3), ["groups=3", "4"]),
        (fold((2, 3), 3, layer="flax.Dense", groups=2), ["groups=2", "flax.Dense has no groups"]),
        (fold((2, 3), 3, groups=2), ["groups=2", "layer='pytorch.ConvTranspose2d'"]),
        (fold((2, 3), 3, layer="flax.Conv", groups=0), ["groups=0"]),
        (
            fold((2, 3), 3, layer="flax.Dense", transpose_kernel=True),
            ["flax.ConvTranspose", "Dense"],
        ),
        (fold((2, 3), 3, transpose_kernel=True), ["transpose_kernel", "layer="]),
        (fold((2, 3), 3, layer="flax.Dense", equation="ab,bc->ac"), ["equation", "flax.Dense"]),
        (fold((2, 3), 3, layer="flax.Einsum"), ["equation='abc,cd->abd'"]),
        (fold((2, 3), 3, layer="flax.Einsum", equation="ab,bc"), ["'ab,bc'", "an output"]),
        (fold((2, 3), 3, layer="flax.Einsum", equation="a,...b->b"), ["no '...' in the kernel"]),
        (fold((2, 3), 3, layer="flax.Einsum", equation="ab,b->a"), ["one axis for each letter"]),
        (
            fold((2, 3), 3, layer="keras.EinsumDense", equation="ab,ac->cb"),
            ["last axis of the output 'cb'", "not an axis of the kernel 'ac'"],
        ),
        (
            fold((2, 3), 3, True, layer="flax.Einsum", equation="cab,bd->ad"),
            ["sums its input over 'c'"],
        ),
        (fold((2, 3), 2, True, padding="VALID"), ["padding='VALID'", "no window"]),
        (fold((3, 2, 4), 2, True), ["window of (3,)", "padding='VALID'"]),
        (fold((3, 2, 4), 2, True, padding="full"), ["'full'", "VALID", "CAUSAL"]),
        (fold((3, 2, 4), 2, True, padding=1.5), ["padding", "1.5"]),
        (fold((2, 3), 3, True, kernel_axis=0, input_axis=-2), ["same axis"]),
        (fold((3,), 3, True), ["one axis"]),
        (fold((2, 4), 3, True), ["2 input channels", "input_axis", "(3,)"]),
    ],
)
def test_what_does_not_fit_is_named(call, words):
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    assert all(word in str(raised.value) for word in words), raised.value


# The libraries themselves, where they are installed


def drawn(width):
    return seen("batch", width), *parameters(width)


def held(call, x, kernel, bias, options, *, into_next, channel_axis=-1, padding=None):
    """Hold a real layer, call(x, kernel, bias), after its normalization or before, and folded."""
    function = jn.fold_batch_norm_into_next if into_next else jn.fold_batch_norm
    y = call(x, kernel, bias)
    stats, scale, norm_bias = drawn((x if into_next else y).shape[channel_axis])
    oracle = partial(reference.batch_norm, stats=stats, scale=scale, bias=norm_bias, train=False)
    norm = partial(oracle, channel_axis=channel_axis)
    if into_next:
        expected = call(norm(x)[0].astype(np.float32), kernel, bias)
        options = {**options, **({} if padding is None else {"padding": padding})}
    else:
        expected = norm(y)[0]
    folded = function(kernel, bias, stats, scale, norm_bias, **options)
    near(call(x, *map(np.asarray, folded)), expected, 2e-5 * np.abs(expected).max())


KERAS = {
    "Dense": ({"units": 6}, 0),
    "Conv1D": ({"filters": 6, "kernel_size": 2, "groups": 2}, 1),
    "Conv2D": ({"filters": 6, "kernel_size": 2, "strides": 2, "groups": 2}, 2),
    "Conv3D": ({"filters": 6, "kernel_size": 2}, 3),
    "DepthwiseConv1D": ({"kernel_size": 2, "depth_multiplier": 3}, 1),
    "DepthwiseConv2D": ({"kernel_size": 2, "depth_multiplier": 3}, 2),
    "SeparableConv1D": ({"filters": 6, "kernel_size": 2, "depth_multiplier": 3}, 1),
    "SeparableConv2D": ({"filters": 6, "kernel_size": 2, "depth_multiplier": 3}, 2),
    "Conv1DTranspose": ({"filters": 6, "kernel_size": 3, "strides": 2}, 1),
    "Conv2DTranspose": ({"filters": 6, "kernel_size": 3, "strides": 2, "padding": "same"}, 2),
    "Conv3DTranspose": ({"filters": 6, "kernel_size": 2}, 3),
    "EinsumDense": (
        {"equation": "abc,cde->abde", "output_shape": (None, 2, 6), "bias_axes": "de"},
        1,
    ),
}


@pytest.mark.parametrize("into_next", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("name", KERAS)
def test_layers_of_keras(name, into_next, monkeypatch):
    if "KERAS_BACKEND" not in os.environ:
        monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="no Keras to compare with")
    arguments, rank = KERAS[name]
    layer = getattr(keras.layers, name)(**arguments)
    x = normals(2, *(5,) * rank, IN, seed=1)
    layer.build(x.shape)
    weights = [normals(*w.shape, seed=seed) for seed, w in enumerate(layer.weights, 2)]

    def call(x, kernel, bias):
        layer.set_weights([*weights[:-2], kernel, bias])
        with jax.numpy_dtype_promotion("standard"):
            return np.asarray(layer(x))

    options = {"layer": f"keras.{name}"}
    options |= {key: arguments[key] for key in ("groups", "equation") if key in arguments}
    if into_next and ("Transpose" in name or "Separable" in name):
        with pytest.raises(ValueError, match=name):
            held(call, x, *weights[-2:], options, into_next=True, padding="valid")
        return
    padding = "valid" if "Conv" in name else None
    held(call, x, *weights[-2:], options, into_next=into_next, padding=padding)


PYTORCH = {
    "Linear": ({"in_features": IN, "out_features": 6}, 0),
    "Conv1d": ({"groups": 2, "kernel_size": 2, "out_channels": 6}, 1),
    "Conv2d": ({"groups": 2, "kernel_size": 2, "out_channels": 6, "stride": 2}, 2),
    "Conv3d": ({"kernel_size": 2, "out_channels": 6}, 3),
    "ConvTranspose1d": ({"groups": 2, "kernel_size": 3, "out_channels": 6, "stride": 2}, 1),
    "ConvTranspose2d": ({"groups": 2, "kernel_size": 3, "out_channels": 6, "padding": 1}, 2),
    "ConvTranspose3d": ({"kernel_size": 2, "out_channels": 6}, 3),
}


@pytest.mark.parametrize("into_next", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("name", PYTORCH)
def test_layers_of_pytorch(name, into_next):
    torch = pytest.importorskip("torch", reason="no torch to compare with")
    arguments, rank = PYTORCH[name]
    channels = {"in_channels": IN} if rank else {}
    layer = getattr(torch.nn, name)(**channels, **arguments)
    x = normals(2, IN, *(5,) * rank, seed=1)
    kernel, bias = normals(*layer.weight.shape, seed=2), normals(*layer.bias.shape, seed=3)

    def call(x, kernel, bias):
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(kernel))
            layer.bias.copy_(torch.tensor(bias))
            return layer(torch.tensor(x)).numpy()

    options = {"layer": f"pytorch.{name}", "groups": arguments.get("groups", 1)}
    if into_next and "Transpose" in name:
        with pytest.raises(ValueError, match=name):
            held(call, x, kernel, bias, options, into_next=True, channel_axis=1)
        return
    padding = arguments.get("padding", 0) if rank else None
    held(call, x, kernel, bias, options, into_next=into_next, channel_axis=1, padding=padding)


FLAX = {
    "Conv": (nn.Conv(OUT, (2, 2), 2, feature_group_count=2, padding="VALID"), 2),
    "ConvTranspose": (nn.ConvTranspose(OUT, (3, 3), (2, 2)), 2),
    "ConvTranspose, transpose_kernel": (nn.ConvTranspose(OUT, (3, 3), transpose_kernel=True), 2),
    "Dense": (nn.Dense(OUT), 1),
    "Conv circular": (nn.Conv(OUT, (3,), padding="CIRCULAR"), 1),
    "Conv reflecting": (nn.Conv(OUT, (3,), padding="REFLECT"), 1),
    "Conv of one position": (nn.Conv(OUT, (1,), padding="SAME"), 1),
}


@pytest.mark.parametrize(
    ("name", "into_next"),
    [(name, False) for name in FLAX] + [(name, True) for name in FLAX if "Transpose" not in name],
)
def test_layers_of_flax(name, into_next):
    module, rank = FLAX[name]
    x = normals(2, *(5,) * rank, IN, seed=1)
    shapes = jax.eval_shape(module.init, KEY, x)["params"]
    kernel, bias = (normals(*shapes[key].shape, seed=len(key)) for key in ("kernel", "bias"))
    apply = jax.jit(
        lambda x, kernel, bias: module.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    )
    options = {"layer": f"flax.{type(module).__name__}"}
    if "transpose_kernel" in name:
        options["transpose_kernel"] = True
    options |= {"groups": module.feature_group_count} if "Conv" in name and into_next else {}
    padding = getattr(module, "padding", None)
    held(apply, x, kernel, bias, options, into_next=into_next, padding=padding)
