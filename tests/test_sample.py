"""Layer, RMS, group and instance normalization: axes, groups, and what must coincide."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    NORMS,
    alike,
    chances,
    gradients,
    identical,
    library,
    near,
    normals,
    oracle,
    parameters,
)
from jax import export

import jaxnorm as jn

pytestmark = [pytest.mark.numerical, pytest.mark.core]

SAMPLE = ["layer", "rms", "group", "instance"]
AXES = [-1, 1, (1, 2), (-1, -3), (2, 1), (0, 2), (0, 1, 2, 3), (3,)]


@pytest.mark.parametrize("reduction_axes", AXES, ids=str)
@pytest.mark.parametrize("name", ["layer", "rms"])
def test_any_axes_can_be_reduced(name, reduction_axes):
    x, args = normals(3, 4, 2, 5, mean=1.0), parameters(5)
    near(
        library(name, x, *args, reduction_axes=reduction_axes)[0],
        oracle(name, x, *args, reduction_axes=reduction_axes)[0],
    )


@pytest.mark.parametrize("feature_axes", [0, 1, -1, (1, 2), (0, 2), (-2, -1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("name", ["layer", "rms"])
def test_any_axes_can_be_features(name, feature_axes):
    x = normals(3, 4, 5)
    axes = feature_axes if isinstance(feature_axes, tuple) else (feature_axes,)
    shape = [x.shape[a] for a in axes]
    args = (x, normals(*shape, mean=1.0), normals(*shape, seed=1))
    options = {"reduction_axes": (1, 2), "feature_axes": feature_axes}
    near(library(name, *args, **options)[0], oracle(name, *args, **options)[0])


def test_axes_can_be_given_as_a_list():
    x = normals(3, 4, 5)
    lists = jax.jit(lambda x: jn.layer_norm(x, reduction_axes=[1, 2]))(x)
    alike(lists, library("layer", x, reduction_axes=(1, 2))[0])


GROUPED = [((3, 16), -1), ((3, 5, 8), -1), ((3, 8, 5), 1), ((2, 3, 8, 2), -2), ((2, 2, 3, 2, 8), 4)]


@pytest.mark.parametrize("num_groups", [1, 2, 4, 8])
@pytest.mark.parametrize(("shape", "channel_axis"), GROUPED, ids=str)
def test_groups_are_contiguous_channels_of_one_example(shape, channel_axis, num_groups):
    x, args = normals(*shape, mean=2.0), parameters(shape[channel_axis])
    options = {"num_groups": num_groups, "channel_axis": channel_axis}
    near(library("group", x, *args, **options)[0], oracle("group", x, *args, **options)[0])


def test_group_size_is_the_other_way_to_say_num_groups():
    x = normals(3, 5, 8)
    by_size = library("group", x, group_size=2, num_groups=None)
    alike(by_size, library("group", x, num_groups=4))


def test_thirty_two_groups_are_the_default():
    x = normals(2, 3, 64)
    near(jax.jit(jn.group_norm)(x), oracle("group", x, num_groups=32)[0])


@pytest.mark.parametrize("reduction_axes", [-1, (1, 3), (2, 3), (0, 3)], ids=str)
def test_groups_can_be_measured_along_fewer_axes(reduction_axes):
    x, args = normals(3, 4, 5, 6), parameters(6)
    options = {"reduction_axes": reduction_axes}
    near(library("group", x, *args, **options)[0], oracle("group", x, *args, **options)[0])


def test_with_its_own_axes_the_first_axis_can_hold_the_channels():
    x, args = normals(6, 4, 5), parameters(6)
    options = {"reduction_axes": (0, 2), "channel_axis": 0}
    near(library("group", x, *args, **options)[0], oracle("group", x, *args, **options)[0])


@pytest.mark.parametrize(("shape", "channel_axis"), GROUPED[1:], ids=str)
def test_instances_are_the_positions_of_one_channel(shape, channel_axis):
    x, args = normals(*shape, mean=2.0), parameters(8)
    options = {"channel_axis": channel_axis}
    near(library("instance", x, *args, **options)[0], oracle("instance", x, *args, **options)[0])


@pytest.mark.parametrize("channel_axis", [(1, 3), (-1, 2), (3,)], ids=str)
def test_several_axes_can_hold_the_channels_of_an_instance(channel_axis):
    x = normals(2, 3, 4, 5, mean=2.0)
    shape = [x.shape[axis] for axis in sorted(a % 4 for a in channel_axis)]
    args = (x, normals(*shape, mean=1.5), normals(*shape, seed=2))
    options = {"channel_axis": channel_axis}
    near(library("instance", *args, **options)[0], oracle("instance", *args, **options)[0])


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_the_offset_of_a_scale_is_added_in_float32(dtype):
    x, weight = normals(3, 8).astype(dtype), normals(8, std=1e-3)
    shifted = library("rms", x, weight, scale_offset=1.0)[0]
    alike(shifted, library("rms", x, np.float32(1.0) + weight)[0])
    stored = weight.astype(jnp.bfloat16)  # small weights that 1 + weight in bfloat16 would lose
    shifted = library("rms", x, stored, scale_offset=1.0)[0]
    near(
        shifted,
        oracle("rms", x, stored, scale_offset=1.0)[0],
        4e-6 if dtype == np.float32 else 2e-2,
    )
    alike(
        gradients("rms", x, weight, None, x, scale_offset=1.0)[1],
        gradients("rms", x, weight, None, x)[1],
    )


@pytest.mark.parametrize("name", SAMPLE)
def test_scale_and_bias_are_each_optional(name):
    x, (scale, bias) = normals(3, 5, 4), parameters(4)
    for args in itertools.product([x], [None, scale], [None, bias]):
        near(library(name, *args)[0], oracle(name, *args)[0])


@pytest.mark.parametrize("name", SAMPLE)
def test_examples_do_not_meet(name):
    x = normals(3, 5, 4)
    sick = x.copy()
    sick[1:] = np.nan
    identical(library(name, sick)[0][0], library(name, x)[0][0])
    near(library(name, x[:1])[0], library(name, x)[0][:1], 1e-6)


@pytest.mark.parametrize("name", SAMPLE)
def test_an_empty_batch_gives_an_empty_batch(name):
    for shape in [(0, 5, 4), (3, 0, 4)]:
        assert library(name, np.zeros(shape, np.float32))[0].shape == shape


def test_one_feature_that_counts_is_bias():
    x, bias = normals(3, 5, 2), normals(2)
    y, _ = library("layer", x, bias=bias, where=np.array([True, False]))
    identical(y[..., 0], np.broadcast_to(bias[0], (3, 5)))


def one_value(call, *shape):
    """Hold that a call is refused for having one value in every group of an input of this shape."""
    with pytest.raises(ValueError, match=r"one value in every group.*only the bias") as caught:
        call()
    assert str(shape) in str(caught.value)


ERASED = [
    ("layer", (3, 1), {}),
    ("layer", (4, 5, 1), {}),
    ("layer", (1, 4), {"reduction_axes": 0}),
    ("layer", (4, 1, 1, 3), {"reduction_axes": (1, 2)}),
    ("group", (2, 4), {"num_groups": 4}),
    ("group", (2, 4), {"num_groups": None, "group_size": 1}),
    ("group", (2, 1, 1, 4), {"num_groups": 4}),
    ("group", (2, 5, 4), {"num_groups": 4, "reduction_axes": -1}),
    ("instance", (32, 1, 1, 512), {}),  # the bottom of a U-Net
    ("instance", (2, 3, 1), {"channel_axis": 1}),
    ("instance", (2, 1, 3, 5), {"channel_axis": (2, 3)}),
]


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("name", "shape", "options"), ERASED, ids=str)
def test_one_value_in_every_group_is_an_error_as_the_output_would_be_the_bias_alone(
    name, shape, options, mask
):
    x, options = np.ones(shape, np.float32), {**NORMS[name].options, **options}
    options |= {"where": np.ones(shape, bool)} if mask else {}
    one_value(lambda: NORMS[name].function(x, **options), *shape)
    one_value(lambda: jax.eval_shape(lambda x: NORMS[name].function(x, **options), x), *shape)


def test_rms_norm_of_one_value_keeps_its_sign():
    x = np.array([[2.0], [-3.0]], np.float32)
    near(library("rms", x)[0], np.sign(x), 1e-6)


@pytest.mark.parametrize(("name", "shape", "options"), ERASED[::4], ids=str)
def test_the_values_on_all_members_of_a_mapped_axis_count(name, shape, options):
    x, options = normals(4, *shape, mean=1.0), {**NORMS[name].options, **options}

    call = functools.partial(NORMS[name].function, axis_name="i", **options)
    mapped = jax.jit(jax.vmap(call, axis_name="i"))

    mean, var = x.mean(0, dtype=np.float64), x.var(0, dtype=np.float64)
    near(mapped(x), (x - mean) / np.sqrt(var + 1e-6))
    one_value(lambda: mapped(x[:1]), *shape)


@pytest.mark.parametrize("name", ["layer", "group", "instance"])
def test_without_a_group_there_is_none_of_one_value(name):
    for shape in [(0, 1, 4), (3, 1, 0)]:
        x = np.zeros(shape, np.float32)
        options = {"reduction_axes": 1} if name == "layer" else {}
        options |= {"num_groups": 4} if name == "group" else {}
        assert NORMS[name].function(x, **options).shape == shape


def test_a_symbolic_size_is_not_one():
    (batch,) = export.symbolic_shape("n")
    shaped = jax.ShapeDtypeStruct((batch, batch, 3), np.float32)
    program = export.export(jax.jit(jn.instance_norm))(shaped)
    x = normals(4, 4, 3)
    alike(program.call(x), library("instance", x)[0])
    single = jax.ShapeDtypeStruct((batch, 1), np.float32)
    with pytest.raises(ValueError, match=r"one value in every group.*shape \(n, 1\)"):
        export.export(jax.jit(jn.layer_norm))(single)


def test_rms_norm_divides_by_the_root_of_the_mean_square():
    x = np.array([[3.0, 4.0]], np.float32)
    y, _ = library("rms", x, epsilon=0.0)
    near(y, x / np.sqrt(12.5), 1e-6)


# Pairs that must coincide, forward and backward


def coincide(first, second, x, where):
    """Hold two (name, options) together in the output and in all gradients."""
    channels, g = x.shape[-1], normals(*x.shape, seed=1)
    args = parameters(channels)
    results = []
    for name, options in (first, second):
        options = {**options, "where": where}
        y = library(name, x, *args, **options)[0]
        results.append([y, *gradients(name, x, *args, g, **options)])
    for actual, expected in zip(*results, strict=True):
        near(actual, expected)


@pytest.mark.long
@pytest.mark.parametrize("share", [0.6, 1.0])
def test_every_pair_that_must_coincide_does(share):
    x, where = normals(3, 4, 6, mean=1.0), chances(3, 4, 6, share=share)
    whole = ("layer", {"reduction_axes": (1, 2)})
    coincide(("group", {"num_groups": 1}), whole, x, where)
    coincide(("group", {"num_groups": 6}), ("instance", {}), x, where)
    coincide(("instance", {}), ("layer", {"reduction_axes": 1}), x, where)
    everything = ("layer", {"reduction_axes": (0, 1), "epsilon": 1e-5})
    coincide(("batch", {}), everything, x, where)
    coincide(("ghost", {"num_ghosts": 3}), ("instance", {"epsilon": 1e-5}), x, where)
    coincide(("ghost", {"num_ghosts": 1}), ("batch", {}), x, where)


def test_rms_norm_of_centered_features_is_layer_norm():
    x, (scale, _) = normals(3, 4, 6), parameters(6)
    x -= x.mean(-1, keepdims=True)
    near(library("rms", x, scale)[0], library("layer", x, scale)[0])


@pytest.mark.parametrize("options", [{"num_groups": 2}, {"num_groups": None, "group_size": 2}])
def test_groups_of_no_channels_are_empty(options):
    assert jn.group_norm(np.zeros((2, 3, 0), np.float32), **options).shape == (2, 3, 0)
