"""Functions and modules are exported with symbolic sizes."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from cases import KEY, NORMS, STATEFUL, every_norm, fresh, near, normals, parameters
from flax import nnx
from jax import export

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

SIZES = dict(zip("bhw", export.symbolic_shape("2*b, h, w"), strict=True))
LAYOUTS = {
    "channels last": ("bhw4", {"batch": 2, "h": 17, "w": 3}),
    "channels first": ("b4hw", {"batch": 4, "h": 3, "w": 18}),
    "sequence": ("bw4", {"batch": 2, "w": 33}),
    "features": ("b4", {"batch": 6}),
}


def symbolic(layout):
    """Give the shape of a layout with symbols in it."""
    return tuple(SIZES.get(axis, 4) for axis in layout)


def concrete(layout, sizes):
    """Give an input of these sizes."""
    named = {"b": sizes["batch"], **sizes}
    return normals(*(named.get(axis, 4) for axis in layout), mean=3.0)


def hold(function, layout, sizes):
    """Export a function of one array, and hold what is exported to the function."""
    of_input = jax.ShapeDtypeStruct(symbolic(layout), np.float32)
    exported = export.export(jax.jit(function))(of_input)
    x = concrete(layout, sizes)

    def compare(actual, expected):
        near(actual, expected, 1e-5 * max(1.0, float(np.abs(expected).max())))

    jax.tree.map(compare, exported.call(x), function(x))


# In evaluation the three are one function of the layout; the cumulative merge knows no layout.
WITH_STATE = [(name, layout, 0.9, True) for name in STATEFUL for layout in LAYOUTS]
WITH_STATE += [(name, "channels first", None, True) for name in STATEFUL]
WITH_STATE += [("batch", layout, 0.9, False) for layout in LAYOUTS]
WITH_STATE += [(name, "sequence", None, False) for name in STATEFUL if name != "batch"]


@pytest.mark.parametrize(("name", "layout", "momentum", "train"), WITH_STATE)
def test_a_function_with_state_is_exported(name, layout, momentum, train):
    options = {**NORMS[name].options, "train": train, "momentum": momentum}
    axes, stats = LAYOUTS[layout][0], fresh(name, 4, momentum=momentum)
    options["channel_axis"] = axes.index("4")
    hold(
        lambda x: NORMS[name].function(x, stats, *parameters(4), **options),
        *LAYOUTS[layout],
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name in every_norm if name not in STATEFUL])
def test_a_function_without_state_is_exported(name, layout):
    axes, sizes = LAYOUTS[layout]
    channel = axes.index("4")
    options = dict(NORMS[name].options)
    if name in ("layer", "rms"):
        options |= {"reduction_axes": tuple(range(1, len(axes))), "feature_axes": channel}
    else:
        options["channel_axis"] = channel
    if (name, layout) == ("instance", "features"):
        return
    scale_and_bias = parameters(4)[: 2 if NORMS[name].has_bias else 1]
    hold(lambda x: NORMS[name].function(x, *scale_and_bias, **options), axes, sizes)


@pytest.mark.parametrize("name", every_norm)
def test_a_gradient_is_exported(name):
    stats = (fresh(name, 4),) if name in STATEFUL else ()

    def loss(x):
        result = NORMS[name].function(x, *stats, *parameters(4)[:1], **NORMS[name].options)
        return (((result[0] if stats else result) - x) ** 3).sum()

    hold(jax.grad(loss), *LAYOUTS["channels last"])


class Net(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        moving = {"use_running_average": not self.train}
        x = jnn.GhostBatchNorm(num_ghosts=2, **moving)(nn.Dense(4)(x))
        x = jnn.BatchRenorm(**moving)(jnn.BatchNorm(momentum=None, **moving)(x))
        x = jnn.RMSNorm()(jnn.LayerNorm()(x))
        return jnn.InstanceNorm()(jnn.GroupNorm(num_groups=2)(x))


@pytest.mark.long
@pytest.mark.parametrize("train", [True, False])
def test_linen_modules_are_exported(train):
    net, (axes, sizes) = Net(train), LAYOUTS["channels last"]
    variables = net.init(KEY, concrete(axes, sizes))
    hold(lambda x: net.apply(variables, x, mutable=["batch_stats"]), axes, sizes)


@pytest.mark.long
def test_nnx_modules_are_exported():
    rngs, axes = nnx.Rngs(0), LAYOUTS["channels last"][0]
    net = nnx.Sequential(
        jnnx.BatchNorm(4, rngs=rngs),
        jnnx.GhostBatchNorm(4, ghost_size=2, rngs=rngs),
        jnnx.BatchRenorm(4, rngs=rngs),
        jnnx.LayerNorm(4, rngs=rngs),
        jnnx.RMSNorm(4, rngs=rngs),
        jnnx.GroupNorm(4, num_groups=2, rngs=rngs),
        jnnx.InstanceNorm(4, rngs=rngs),
    )
    graph, state = nnx.split(net)

    def apply(x):
        net = nnx.merge(graph, state, copy=True)
        return net(x), nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))

    hold(apply, axes, LAYOUTS["channels last"][1])


def test_ghosts_of_a_batch_that_may_not_divide_are_an_error_that_says_what_to_do():
    batch = export.symbolic_shape("b, 4")
    call = jax.jit(
        lambda x: jn.ghost_batch_norm(x, jn.init_batch_stats(4), train=True, ghost_size=3)
    )
    with pytest.raises(ValueError, match=r"symbolic_shape\('3\*n'\)"):
        export.export(call)(jax.ShapeDtypeStruct(batch, np.float32))
