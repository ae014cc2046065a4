"""Beside PyTorch, with its weights: forward, gradients and ten steps of running statistics.

The vectors were recorded by pytorch_vectors.py; where torch is installed it is compared live too.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KEY, near
from flax import nnx
from pytorch_vectors import LAYERS, PATH, SHAPE, STEPS, record

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

RECORDED = dict(np.load(PATH))
LIVE = importlib.util.find_spec("torch") is not None
SOURCES = ["recorded", pytest.param("live", marks=pytest.mark.skipif(not LIVE, reason="no torch"))]
# The modules whose arguments say what PyTorch's do: channels on axis 1, epsilon 1e-5.
MODULES = {
    "batch": ("BatchNorm", {"axis": 1, "use_running_average": False, "momentum": 0.9}),
    "layer": ("LayerNorm", {"reduction_axes": (2, 3), "feature_axes": (2, 3), "epsilon": 1e-5}),
    "instance": ("InstanceNorm", {"feature_axes": 1, "epsilon": 1e-5}),
    "rms": ("RMSNorm", {"epsilon": 1e-6}),
}
PARAMETERS = {"weight": "scale", "bias": "bias"}


@pytest.fixture(scope="module", params=SOURCES)
def vectors(request):
    return RECORDED if request.param == "recorded" else record()


def of(vectors, layer):
    """Give the vectors of one layer, and its parameters under our names."""
    own = {k.split("/")[1]: v for k, v in vectors.items() if k.startswith(f"{layer}/")}
    return own, {PARAMETERS[k]: own[k] for k in PARAMETERS if k in own}


def linen(layer):
    """Give the Linen module as a function of its parameters and the input."""
    name, options = MODULES[layer]
    module = getattr(jnn, name)(**options)
    stats = {"batch_stats": jn.init_batch_stats(SHAPE[1])} if layer == "batch" else {}

    def function(params, x):
        return module.apply({"params": params, **stats}, x, mutable=["batch_stats"])[0]

    return function


def functional_nnx(layer):
    """Give the NNX module as a function of its parameters and the input."""
    name, options = MODULES[layer]
    width = 15 if layer == "layer" else {"rms": 5}.get(layer, SHAPE[1])
    graph, params, rest = nnx.split(
        getattr(jnnx, name)(width, rngs=nnx.Rngs(KEY), **options), nnx.Param, ...
    )

    def function(params_by_name, x):
        flat = {key: value.reshape(-1) for key, value in params_by_name.items()}
        merged = nnx.merge(graph, params, rest, copy=True)
        nnx.update(merged, nnx.State(flat))
        return merged(x)

    return function


def group(params, x):
    """Group normalization, whose modules have their channels last, as a function."""
    return jn.group_norm(x, **params, num_groups=3, channel_axis=1, epsilon=1e-5)


FUNCTIONS = [pytest.param("group", lambda _: group, id="group-function")]
FUNCTIONS += [pytest.param(layer, linen, id=f"{layer}-linen") for layer in MODULES]
FUNCTIONS += [pytest.param(layer, functional_nnx, id=f"{layer}-nnx") for layer in MODULES]


@pytest.mark.core
@pytest.mark.parametrize(("layer", "made"), FUNCTIONS)
def test_forward_and_gradients_are_pytorchs(vectors, layer, made):
    own, params = of(vectors, layer)
    y, pullback = jax.vjp(made(layer), jax.tree.map(jnp.asarray, params), own["x"])
    near(y, own["y"], 2e-5)
    gradients, dx = pullback(jnp.asarray(own["cotangent"]))
    near(dx, own["dx"], 2e-5)
    for theirs, ours in PARAMETERS.items():
        if theirs in own:
            near(gradients[ours], own[f"d{theirs}"], 1e-4)  # sums of 60 values of size 2


def test_ten_steps_of_running_statistics_are_pytorchs(vectors):
    """PyTorch's momentum is one minus ours, and its running variance is unbiased."""
    own, _ = of(vectors, "steps")
    _, params = of(vectors, "batch")
    stats, values = jn.init_batch_stats(SHAPE[1]), SHAPE[0] * SHAPE[2] * SHAPE[3]
    step = jax.jit(
        lambda stats, x: jn.batch_norm(x, stats, train=True, momentum=1 - 0.1, channel_axis=1)[1]
    )
    for number in range(STEPS):
        stats = step(stats, own["x"][number])
        near(stats["mean"], own["mean"][number], 2e-6)
        first = 0.9 ** (number + 1)  # what is left of the 1 that both start from
        unbiased = first + (stats["var"] - first) * values / (values - 1)
        near(unbiased, own["var"][number], 1e-5)
    carried = {"mean": own["mean"][-1], "var": own["var"][-1]}
    y, _ = jn.batch_norm(own["x"][0], carried, **params, train=False, channel_axis=1)
    near(y, own["y"], 2e-5)


@pytest.mark.skipif(not LIVE, reason="no torch")
def test_the_recorded_vectors_are_those_of_the_script():
    for key, value in record().items():
        if key != "version":
            near(value, RECORDED[key], 2e-5)


def test_the_vectors_say_which_pytorch_gave_them():
    assert str(RECORDED["version"]).startswith("2.13")
    assert {key.split("/")[0] for key in RECORDED} == {*LAYERS, "steps", "version"}
