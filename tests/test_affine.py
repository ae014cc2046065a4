"""Scale and bias by example: with the first axes of the input in front of the feature axes."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import (
    MODULES,
    NORMS,
    STATEFUL,
    alike,
    chances,
    compiled,
    every_norm,
    fresh,
    frozen,
    gradients,
    library,
    near,
    normals,
    oracle,
    seen,
    takes,
    ulp,
)
from devices import mesh
from exact import Exact, in_every_form, within_largest
from exact import compiled as compiled_in
from flax import nnx
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_kernels import calls

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx
from jaxnorm.kernels.library import library as native_library
from jaxnorm.kernels.target import as_on

pytestmark = pytest.mark.numerical

X, G = normals(4, 3, 5, 6, mean=3.0, std=2.0), normals(4, 3, 5, 6, seed=1)
SHAPES = {
    "one for each example": ((4, 6), (4, 1, 1, 6)),
    "different ones": ((4, 6), (1, 3, 6)),
    "one for each value": ((4, 3, 5, 6), (4, 3, 5, 6)),
}


def drawn(*shapes):
    """Draw a scale and a bias."""
    scale, bias = shapes
    return normals(*scale, mean=1.0, std=0.5, seed=2), normals(*bias, seed=3)


def summed_to(shape, values, axes=(-1,)):
    """Sum the values to the shape of a parameter along the axes, in float64."""
    along = reference.along(np.zeros(shape), values.shape, axes).shape
    sums = values.sum(tuple(a for a, n in enumerate(along) if n == 1), keepdims=True)
    order = [a for a in range(values.ndim) if a not in reference.axes_of(axes, values.ndim)]
    return np.transpose(sums, [*order, *sorted(reference.axes_of(axes, values.ndim))]).reshape(
        shape
    )


def last_or_first(name, last):
    """Give the options that put the channels last, or on axis 1."""
    if takes(name, "feature_axes"):
        return {} if last else {"reduction_axes": 1, "feature_axes": 1}
    return {"channel_axis": -1 if last else 1}


@pytest.mark.parametrize(
    "last", [True, pytest.param(False, marks=pytest.mark.long)], ids=["last", "first"]
)
@pytest.mark.parametrize("name", every_norm)
def test_values_and_gradients_are_those_of_the_oracle(name, last):
    x, g = (array if last else np.moveaxis(array, -1, 1) for array in (X, G))
    axes, options = (-1 if last else 1,), {"epsilon": 1e-3, **last_or_first(name, last)}
    unscaled, _ = oracle(name, x, **options)
    shapes = (4, 3, 6), (1, 3, 6)
    scale, bias = drawn(*shapes)
    bias = bias if NORMS[name].has_bias else None
    y, _ = library(name, x, scale, bias, **options)
    near(y, oracle(name, x, scale, bias, **options)[0], 1e-5)
    dx, dscale, *dbias = gradients(name, x, scale, bias, g, **options)
    scaled = (g * reference.along(scale, x.shape, axes)).astype(np.float32)
    near(dx, gradients(name, x, None, None, scaled, **options)[0], 1e-5)
    near(dscale, summed_to(shapes[0], g * unscaled, axes), 1e-4)
    for found in dbias:
        near(found, summed_to(shapes[1], np.float64(g), axes), 1e-5)


@pytest.mark.long
@in_every_form
@pytest.mark.parametrize("name", ["batch", "ghost", "layer", "group", "instance"])
def test_every_form_is_exact(name, form):
    exact = Exact(name, X)
    for shapes in SHAPES.values() if form in ("native", "cpu") else [SHAPES["different ones"]]:
        scale, bias = drawn(*shapes)
        tangents = normals(*X.shape, seed=4), scale[::-1], bias[::-1]
        y, cotangents, tangent = compiled_in(name, form)(None, (X, scale, bias), tangents, G)
        full = [reference.along(part, X.shape, -1) for part in (scale, bias, *tangents[1:])]
        within_largest(y, exact.y(*full[:2]), 3e-6)
        within_largest(tangent, exact.tangent(full[0], tangents[0], *full[2:]), 5e-6)
        dx, dscale, dbias = cotangents
        within_largest(dx, exact.projected(full[0] * G), 5e-6)
        within_largest(dscale, summed_to(shapes[0], G * exact.unscaled), 5e-6)
        within_largest(dbias, summed_to(shapes[1], np.float64(G)), 5e-6)


@pytest.mark.long
@in_every_form
def test_a_scale_for_each_position_where_positions_are_measured_together(form):
    x, g, (scale, bias) = X[:, 0], G[:, 0], drawn((4, 5, 6), (6,))
    norm = functools.partial(jn.layer_norm, reduction_axes=(1, 2))

    def cotangents(x, scale, bias):
        return jax.vjp(norm, x, scale, bias)[1](g)

    with contextlib.nullcontext() if form == "native" else as_on(form):
        dx, dscale, dbias = jax.jit(cotangents)(x, scale, bias)
    within_largest(dx, jax.vjp(norm, x)[1](scale * g)[0], 5e-6)
    within_largest(dscale, oracle("layer", x, reduction_axes=(1, 2))[0] * g, 5e-6)
    within_largest(dbias, g.sum((0, 1), dtype=np.float64), 5e-6)


@pytest.mark.parametrize("train", [True, False])
def test_evaluation_and_online_normalization(train):
    scale, bias = drawn((4, 6), (4, 3, 6))
    along = [reference.along(part, X.shape, -1) for part in (scale, bias)]
    stats = {"online": jn.init_online_stats(6), "batch": seen("batch", 6)}
    for name, function in {"online": jn.online_norm, "batch": jn.batch_norm}.items():
        norm = jax.jit(functools.partial(function, train=train))
        y, new = norm(X, stats[name], scale, bias)
        alone, same = norm(X, stats[name])
        near(y, np.float64(alone) * along[0] + along[1], 1e-5)
        jax.tree.map(np.testing.assert_array_equal, new, same)
        dscale = jax.grad(
            lambda scale, norm=norm, stats=stats[name]: jnp.vdot(norm(X, stats, scale)[0], G)
        )
        near(dscale(scale), summed_to((4, 6), G * np.float64(alone)), 1e-4)


def test_in_bfloat16_it_is_rounded_once_with_less_than_half_the_error_of_scaling_afterwards():
    x = normals(8, 16, 64, mean=1.0).astype(jnp.bfloat16)
    scale, bias = (part.astype(jnp.bfloat16) for part in drawn((8, 64), (8, 64)))
    exact = oracle("layer", x, scale, bias)[0]
    fused = jax.jit(jn.layer_norm)(x, scale, bias)
    outside = jax.jit(lambda x, s, b: jn.layer_norm(x) * s[:, None] + b[:, None])(x, scale, bias)
    errors = [np.abs(np.float64(y) - exact) / ulp(exact, jnp.bfloat16) for y in (fused, outside)]
    assert errors[0].max() <= 0.51, "one rounding"
    assert errors[0].mean() <= 0.5 * errors[1].mean()


@pytest.mark.parametrize("name", ["batch", "ghost", "layer", "instance"])
def test_what_a_mask_leaves_out_changes_nothing(name):
    keep = chances(4, 3, 5, 1) | (np.arange(5) < 2)[:, None]
    if name == "layer":
        keep = keep & (np.arange(4) < 3)[:, None, None, None]
    spoiled = np.where(keep, X, np.nan)
    scale, bias = drawn((4, 6), (4, 6))
    y, _ = library(name, spoiled, scale, bias, where=keep)
    near(np.where(keep, y, 0), np.where(keep, oracle(name, X, scale, bias, where=keep)[0], 0))
    assert np.isfinite(y).all()
    dx, dscale, _ = gradients(name, spoiled, scale, bias, G, where=keep)
    unscaled = np.where(keep, oracle(name, X, where=keep)[0], 0)
    near(dscale, summed_to((4, 6), G * unscaled), 1e-4)
    assert (np.asarray(dx)[~np.broadcast_to(keep, X.shape)] == 0).all()


@pytest.mark.parametrize("name", ["batch", "layer", "instance"])
def test_the_condition_of_an_example_that_does_not_count_may_be_anything(name):
    keep = (np.arange(4) != 2)[:, None, None, None]
    scale, bias = drawn((4, 6), (4, 6))
    spoiled = [np.where(keep[:, :, 0, 0], parameter, np.nan) for parameter in (scale, bias)]
    for x in (X, np.where(keep, X, np.nan)):
        y, _ = library(name, x, *spoiled, where=keep)
        right = oracle(name, X, scale, bias, where=keep)[0]
        near(np.where(keep, y, 0), np.where(keep, right, 0))
        assert np.isfinite(y).all()
        found = gradients(name, x, *spoiled, np.where(keep, G, 0), where=keep)
        clean = gradients(name, X, scale, bias, np.where(keep, G, 0), where=keep)
        for gradient, expected in zip(found, clean, strict=True):
            near(gradient, expected, 1e-4)


def test_scale_offset_is_added_to_the_scale_of_each_example():
    scale, _ = drawn((4, 6), (6,))
    y = jax.jit(functools.partial(jn.rms_norm, scale_offset=1.0))(X, scale)
    near(y, oracle("rms", X, scale, scale_offset=1.0)[0])


def test_a_scale_without_axes_or_without_features():
    scale, bias = np.float32(2.0), np.float32(1.0)
    options = {"reduction_axes": 1, "feature_axes": ()}
    norm = jax.jit(functools.partial(jn.layer_norm, **options))
    unscaled = oracle("layer", X, reduction_axes=1)[0]
    near(norm(X, scale, bias), 2 * unscaled + 1)
    near(jax.grad(lambda s: jnp.vdot(norm(X, s), G))(scale), (unscaled * G).sum(), 1e-3)
    near(norm(X, normals(4)), normals(4)[:, None, None, None] * unscaled)


# Where it runs


@pytest.mark.skipif(not native_library().loaded, reason="there are no native kernels here")
@pytest.mark.parametrize("name", every_norm)
def test_the_native_form_runs_both_ways(name):
    def loss(x, scale):
        state = (fresh(name, 6),) if name in STATEFUL else ()
        result = NORMS[name].function(x, *state, scale, **NORMS[name].options)
        return ((result[0] if state else result) ** 3).sum()

    apart = {"jaxnorm_measure", "jaxnorm_apply", "jaxnorm_sums", "jaxnorm_backward"}
    at_once = {"jaxnorm_normalize", "jaxnorm_backward_fused"}
    expected = apart if name in STATEFUL else at_once
    assert calls(jax.grad(loss, (0, 1)), X, drawn((4, 6), (6,))[0]) == expected


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", ["batch", "ghost", "layer", "group"])
def test_sharded_as_the_examples_are(name, kind):
    scale, bias = drawn((4, 6), (1, 3, 6))
    grid = mesh(kind, (4,))
    with jax.set_mesh(grid):
        put = functools.partial(jax.device_put, device=NamedSharding(grid, P("i")))
        sharded = put(X), put(scale), jax.device_put(bias, NamedSharding(grid, P())), put(G)
        y, _ = library(name, *sharded[:3])
        found = gradients(name, *sharded)
    near(y, oracle(name, X, scale, bias)[0])
    for one, alone in zip(found, gradients(name, X, scale, bias, G), strict=True):
        near(one, alone, 1e-4)


@pytest.mark.parametrize("name", ["batch", "layer"])
def test_over_a_mapped_axis_each_device_has_its_examples(name):
    scale, bias = drawn((4, 6), (4, 6))
    named = {"axis_name": "i"} if name == "batch" else {}
    alone = compiled(name, frozen(name, {})), compiled(name, frozen(name, named))
    stats = (fresh(name, 6),) if name in STATEFUL else ()

    def run(norm, x, scale, bias, g):
        y, backward = jax.vjp(lambda *args: norm(args[0], *stats, *args[1:]), x, scale, bias)
        return y, backward(g)

    def value(norm, *args):
        result = norm(None, *args)
        return result[0] if stats else result

    one, several = (functools.partial(run, functools.partial(value, norm)) for norm in alone)
    mapped = jax.shard_map(several, mesh=mesh(shape=(2,)), in_specs=P("i"), out_specs=P("i"))
    arguments = X, scale, bias, G
    for found, expected in zip(
        jax.tree.leaves(jax.jit(mapped)(*arguments)), jax.tree.leaves(one(*arguments)), strict=True
    ):
        near(found, expected, 1e-4)


@pytest.mark.parametrize("name", ["batch", "layer"])
def test_a_batch_of_models_has_scales_by_example(name):
    scale, bias = drawn((2, 4, 6), (2, 6))
    several = jax.vmap(lambda scale, bias: gradients(name, X, scale, bias, G))(scale, bias)
    for at in range(2):
        alone = gradients(name, X, scale[at], bias[at], G)
        for found, expected in zip(several, alone, strict=True):
            near(found[at], expected, 1e-5)


def test_a_second_derivative():
    scale, _ = drawn((4, 6), (6,))

    def loss(norm, x, scale):
        return jnp.sum(norm(x, scale) ** 3)

    def outside(x, scale):
        return jn.layer_norm(x) * scale[:, None, None]

    def second(norm, x, scale):
        gradient = jax.grad(functools.partial(loss, norm), (0, 1))
        return jax.jvp(gradient, (x, scale), (G, scale[::-1]))[1]

    found, expected = (
        jax.jit(functools.partial(second, norm))(X, scale) for norm in (jn.layer_norm, outside)
    )
    for one, other in zip(found, expected, strict=True):
        within_largest(one, other, 1e-5)


def test_an_exported_program_takes_batches_of_any_size():
    batch = export.symbolic_shape("b")[0]
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in [(batch, 3, 5, 6), (batch, 6)]]
    exported = export.export(jax.jit(jn.layer_norm))(*shapes)
    scale, _ = drawn((4, 6), (6,))
    near(exported.call(X, scale), oracle("layer", X, scale)[0])


# Errors


@pytest.mark.parametrize("shape", [(5,), (3, 6), (4, 5, 6), (2, 4, 3, 5, 6), (4, 3, 1), ()])
def test_a_shape_that_is_not_by_example_is_an_error_that_says_which_are(shape):
    with pytest.raises(ValueError, match=r"scale has shape .* up to \(4, 3, 5, 6\), each"):
        jn.layer_norm(X, np.ones(shape, np.float32))


# Modules


FUNCTIONS = {name: (norm.function, norm.state) for name, norm in MODULES.items()}
FUNCTIONS["OnlineNorm"] = jn.online_norm, jn.init_online_stats


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_module_takes_them_in_the_place_of_parameters(name):
    scale, bias = drawn((4, 6), (6,))
    given = {"scale": scale} if name == "RMSNorm" else {"scale": scale, "bias": bias}
    options = MODULES[name].module_options if name in MODULES else {}
    (function, state), of_function, moving = FUNCTIONS[name], dict(options), {}
    if state is not None:
        of_function |= {"train": True, "stats": state(6)}
        moving = {"use_running_average": False}
    expected = function(X, **given, **of_function)
    expected = expected[0] if state is not None else expected
    options = {**options, **{f"use_{key}": False for key in given}}
    y, variables = getattr(jnn, name)(**options, **moving).init_with_output(
        jax.random.key(0), X, **given
    )
    assert "params" not in variables
    if name != "GhostBatchNorm":  # init takes one ghost
        alike(y, expected)
    alike(getattr(jnnx, name)(6, **options, rngs=nnx.Rngs(0))(X, **given), expected)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "BatchNorm"])
def test_a_module_with_parameters_refuses_others(name):
    scale, _ = drawn((4, 6), (6,))
    moving = {"use_running_average": False} if name == "BatchNorm" else {}
    wanted = rf"this {name} has a scale of its own.*use_scale=False"
    with pytest.raises(ValueError, match=wanted):
        getattr(jnn, name)(**moving).init(jax.random.key(0), X, scale=scale)
    with pytest.raises(ValueError, match=wanted):
        getattr(jnnx, name)(6, rngs=nnx.Rngs(0))(X, scale=scale)
