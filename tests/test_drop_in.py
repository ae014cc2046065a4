"""Each of Flax's five beside Flax's own, Linen and NNX, over all arguments."""

import dataclasses
import inspect
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KEY, normals
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

FIVE = ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"]
ADDED = {
    "BatchNorm": ["skip_nonfinite", "stats_dtype", "count_per_channel"],
    "RMSNorm": ["scale_offset"],
}
SHAPES = [(6, 8), (5, 6, 8), (4, 5, 6, 8)]


# Signatures


def fields(module):
    """Give the constructor's arguments of a Linen module and their defaults, in order."""
    own = [f for f in dataclasses.fields(module) if f.name not in ("parent", "name")]
    return [(f.name, f.default) for f in own]


def arguments(function):
    """Give the arguments of a function: name, kind and default, in order."""
    own = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in own]


@pytest.mark.parametrize("name", FIVE)
def test_linen_takes_flaxs_arguments_in_flaxs_order(name):
    flaxs, ours = fields(getattr(nn, name)), fields(getattr(jnn, name))
    assert ours[: len(flaxs)] == flaxs
    added = ADDED.get(name, [])
    assert [key for key, _ in ours[len(flaxs) :]] == added
    check_call(getattr(jnn, name), getattr(nn, name), name)


@pytest.mark.parametrize("name", FIVE)
def test_nnx_takes_flaxs_arguments_in_flaxs_order(name):
    flaxs = arguments(getattr(nnx, name).__init__)
    ours = arguments(getattr(jnnx, name).__init__)
    assert ours[: len(flaxs)] == flaxs
    added = ADDED.get(name, [])
    assert [key for key, *_ in ours[len(flaxs) :]] == added
    check_call(getattr(jnnx, name), getattr(nnx, name), name)


def check_call(ours, flaxs, name):
    """Hold two call signatures together, but for what is ours."""
    mine, theirs = arguments(ours.__call__), arguments(flaxs.__call__)
    assert mine[: len(theirs)] == theirs
    added = ["update_stats"] if name == "BatchNorm" else []
    added += ["scale"] if name == "RMSNorm" else ["scale", "bias"]
    added += [] if name == "BatchNorm" else ["segment_ids", "num_segments"]
    assert [key for key, *_ in mine[len(theirs) :]] == added


# Values


def diagonal(shape, seed):
    """Give a mask that leaves out every fifth position along every axis."""
    return (np.indices(shape).sum(0) + seed) % 5 != 0


@st.composite
def layers(draw, framework):
    """Draw a layer that Flax has, and its input."""
    name = draw(st.sampled_from(FIVE))
    shape = draw(st.sampled_from(SHAPES[1:] if name == "InstanceNorm" else SHAPES))
    masked = draw(st.booleans())
    options = {"epsilon": 0.1} if masked or draw(st.booleans()) else {}  # or Flax's default
    options |= {
        "use_scale": draw(st.booleans()),
        "use_fast_variance": draw(st.booleans()),
        "param_dtype": draw(st.sampled_from([jnp.float32, jnp.bfloat16])),
        "dtype": draw(st.sampled_from([None, jnp.float32, jnp.bfloat16])),
    }
    if name != "RMSNorm":
        options["use_bias"] = draw(st.booleans())
    if framework is nn and options["dtype"] != jnp.bfloat16:  # there Flax's measures in bfloat16
        options["force_float32_reductions"] = draw(st.booleans())
    options.update(draw(own_options(name, shape, framework)))
    mask = diagonal(shape, draw(st.integers(0, 4))) if masked else None
    moving = {}
    if name == "BatchNorm":
        where = draw(st.sampled_from(["constructor", "call"]))
        moving = {"use_running_average": draw(st.booleans())}
        if framework is nnx and not isinstance(options["axis"], int):
            moving = {"use_running_average": True}  # in training Flax's mixes up its shapes
        if where == "constructor":
            options.update(moving)
            moving = {}
    return name, shape, options, mask, moving


@st.composite
def own_options(draw, name, shape, framework):
    """Draw the options that one layer has and others have not."""
    ndim = len(shape)
    one = st.sampled_from([-1, ndim - 1, 1])
    if name == "BatchNorm":
        several = st.just((1, -1)) if ndim > 2 else one
        return {
            "axis": draw(one | several),
            "momentum": draw(st.sampled_from([0.0, 0.5, 0.99, 1.0])),
        }
    if name == "InstanceNorm":
        return {"feature_axes": draw(one | (st.just((1, -1)) if ndim > 3 else one))}
    if name == "GroupNorm":
        groups = draw(st.sampled_from([{"num_groups": 2}, {"num_groups": None, "group_size": 4}]))
        axes = [None, tuple(range(1, ndim))]
        if framework is nn:  # with axes of its own Flax's NNX module repeats along the wrong axis
            axes += [-1, (0, -1)]
        return {**groups, "reduction_axes": draw(st.sampled_from(axes))}
    reduced = [-1, tuple(range(1, ndim)), (0, ndim - 1)]
    return {
        "reduction_axes": draw(st.sampled_from(reduced)),
        "feature_axes": draw(st.sampled_from([-1, 1, tuple(range(1, ndim))])),
    }


def width(name, shape, options):
    """Give the product of the feature axes, which NNX calls num_features."""
    axes = options.get("axis", options.get("feature_axes", -1))
    axes = axes if isinstance(axes, tuple) else (axes,)
    return int(np.prod([shape[axis] for axis in {a % len(shape) for a in axes}]))


def filled(tree):
    """Give every leaf other numbers of its shape and dtype; variances stay positive."""
    flat, structure = jax.tree.flatten(tree)
    values = [np.exp(normals(*leaf.shape, std=0.3, seed=i)) for i, leaf in enumerate(flat)]
    return jax.tree.unflatten(
        structure, [v.astype(leaf.dtype) for v, leaf in zip(values, flat, strict=True)]
    )


def tolerance(options, result):
    """Give what float32, and rounding to or in bfloat16, can come to."""
    rounded = jnp.bfloat16 in (result.dtype, options["dtype"])
    if not options.get("force_float32_reductions", True):
        rounded |= options["param_dtype"] == jnp.bfloat16
    return 2e-5 + (2.0**-6 * np.abs(result.astype(np.float32)).max() if rounded else 0)


def standard():
    """Flax's own do not run under strict promotion; ours do."""
    return jax.numpy_dtype_promotion("standard")


def hold(ours, flaxs, options):
    """Hold a result together with Flax's."""
    assert (ours.shape, ours.dtype) == (flaxs.shape, flaxs.dtype)
    allowed = tolerance(options, flaxs)
    np.testing.assert_allclose(
        ours.astype(np.float32), flaxs.astype(np.float32), rtol=0, atol=allowed
    )


@pytest.mark.long
@given(layers(nn))
def test_a_linen_layer_is_flaxs(layer):
    name, shape, options, mask, moving = layer
    x = normals(*shape, mean=1.0, std=2.0)
    ours, flaxs = getattr(jnn, name)(**options), getattr(nn, name)(**options)
    with standard():
        variables = jax.eval_shape(partial(flaxs.init, **moving), KEY, x)
    wide = {
        key: jax.ShapeDtypeStruct(
            leaf.shape, jnp.float32
        )  # with bfloat16 parameters Flax's may not
        for key, leaf in variables.get("batch_stats", {}).items()
    }
    expected = {**variables, "batch_stats": wide} if wide else variables
    assert jax.eval_shape(partial(ours.init, **moving), KEY, x) == expected
    variables = filled(variables)
    y, updates = ours.apply(variables, x, mask=mask, mutable=["batch_stats"], **moving)
    with standard():
        expected = flaxs.apply(variables, x, mask=mask, mutable=["batch_stats"], **moving)
    hold(y, expected[0], options)
    for key, value in expected[1].get("batch_stats", {}).items():
        kept = updates["batch_stats"][key]
        narrow = variables["batch_stats"][key].dtype == jnp.bfloat16  # in which Flax's decays
        rounding = 2.0**-7 if narrow else 2e-5
        np.testing.assert_allclose(kept.astype(np.float32), value, rtol=rounding, atol=2e-5)


@pytest.mark.long
@given(layers(nnx))
def test_an_nnx_layer_is_flaxs(layer):
    name, shape, options, mask, moving = layer
    x = normals(*shape, mean=1.0, std=2.0)
    built = [
        getattr(library, name)(width(name, shape, options), rngs=nnx.Rngs(KEY), **options)
        for library in (jnnx, nnx)
    ]
    ours, flaxs = built
    assert jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(ours))) == jax.tree.map(
        jnp.shape, nnx.to_pure_dict(nnx.state(flaxs))
    )
    state = filled(nnx.state(flaxs))
    for module in built:
        nnx.update(module, state)
    y = ours(x, mask=mask, **moving)
    with standard():
        expected = flaxs(x, mask=mask, **moving)
    hold(y, expected, options)
    for ours_kept, kept in zip(
        *(jax.tree.leaves(nnx.state(module, nnx.BatchStat)) for module in built), strict=True
    ):
        assert ours_kept.dtype == kept.dtype
        rounding = 2e-2 if options["dtype"] == jnp.bfloat16 else 2e-5
        np.testing.assert_allclose(ours_kept, kept, rtol=rounding, atol=rounding)
