"""The native form is the plain one: same values, same derivatives, wherever it runs."""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    NORMS,
    STATEFUL,
    chances,
    every_norm,
    fresh,
    near,
    normals,
    oracle,
    promised,
    ulp,
)
from devices import mesh
from environment import FLOAT16
from hypothesis import given
from hypothesis import strategies as st
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from waiting import PATIENCE

import jaxnorm as jn
from jaxnorm import kernels
from jaxnorm.kernels.library import HANDLERS, library
from jaxnorm.kernels.target import as_on
from jaxnorm.kernels.view import View, view_of

pytestmark = pytest.mark.skipif(
    not library().loaded, reason=f"there are no native kernels here: {kernels.status()}"
)


def both_forms(function, *args):
    """Compile and run a function in each form."""
    with as_on("cpu"):
        plain = jax.jit(lambda *args: function(*args))(*args)
    return jax.jit(lambda *args: function(*args))(*args), plain


def calls(function, *args):
    """Give the handlers that a lowered program calls."""
    text = jax.jit(function).lower(*args).as_text()
    return {name for name in HANDLERS if f"@{name}(" in text or f'"{name}"' in text}


def test_status_is_a_line_that_says_what_is_used():
    assert kernels.status().startswith("native kernels (")
    assert "\n" not in kernels.status()


# The view

VIEWS = [
    (((8, 5, 6, 4), (0, 1, 2), (3,)), View(R=240, G=4)),
    (((8, 4, 5, 6), (0, 2, 3), (1,)), View(R=8, G=4, T=30)),
    (((3, 8, 5, 4), (1, 2), (3,)), View(A=3, R=40, G=4)),
    (((8, 5, 4), (2,), (2,)), View(A=40, S=4)),
    (((8, 5, 4), (2,), ()), View(A=40, T=4)),
    (((8, 5, 6, 4), (1, 2, 3), (3,)), View(A=8, R=30, S=4)),
    (((8, 4, 5, 6), (1, 2, 3), (1,)), View(A=8, S=4, T=30)),
    (((8, 5, 6, 4), (1, 2), (3,), 3, 2), View(A=8, R=30, G=2, S=2)),
    (((8, 4, 5, 6), (2, 3), (1,), 1, 2), View(A=8, G=2, S=2, T=30)),
    (((8, 5, 6, 4), (1, 2), (3,)), View(A=8, R=30, G=4)),
    (((8, 4, 5, 6), (2, 3), (1,)), View(A=8, G=4, T=30)),
    (((8, 5, 4), (0, 1), ()), View(R=40, G=4)),
    (((8, 5, 6), (1,), (1,)), View(A=8, R=5, G=6, by_row=True)),
    (((8, 5, 6, 4), (1,), (1,)), View(A=8, R=5, G=24, by_row=True)),
    (((5, 1, 6), (0,), (0,)), View(R=5, G=6, by_row=True)),
    (((8, 5, 1, 6), (1, 2), (1,)), View(A=8, R=5, G=6, by_row=True)),
    (((8, 5, 2, 6), (1, 2), (1, 2)), View(A=8, R=10, G=6, by_row=True)),
    (((8, 5, 2, 6), (1, 2), (1,)), None),
    (((8, 5, 2, 6), (1, 3), (1, 3)), None),
    (((8, 5, 6), (1,), (1, 2)), None),
    (((8, 5, 6), (0,), (2,)), None),
    (((8, 5, 4), (2,), (2,), 0, 1, None, (0,)), View(A=40, S=4)),
    (((8, 5, 4), (2,), (2,), 0, 1, None, (0, 1)), View(A=40, S=4)),
    (((8, 5, 4), (2,), (2,), 0, 1, None, (1,)), None),
    (((8, 4, 5, 6), (2, 3), (1,), 1, 2, None, (0,)), View(A=8, G=2, S=2, T=30)),
    (((8, 5, 6), (1,), (1,), 0, 1, None, (0,)), View(A=8, R=5, G=6, by_row=True)),
    (((8, 5, 4), (0, 1), (2,), 0, 1, None, (0,)), None),
    (((8, 0, 4), (0, 1), (2,)), View(R=0, G=4)),
    (((1, 4), (0,), (1,)), View(G=4)),
    ((export.symbolic_shape("b, 4"), (1,), (1,)), None),
]


@pytest.mark.parametrize(("arguments", "expected"), VIEWS, ids=str)
def test_the_view_of_an_input(arguments, expected):
    assert view_of(*arguments) == expected


# Values

# What is measured over, and the axis of the scale.
AXES = {
    "layer": [(-1, 2), ((1, 2), 2), ((0, 1, 2), 2), (1, 1)],
    "rms": [(-1, 2), ((1, 2), 2), (1, 1)],
}
DTYPES = [np.float32, jnp.bfloat16] + [np.float16] * FLOAT16  # where XLA has it


@st.composite
def drawn_calls(draw):
    """Draw a call that has a native form: function, inputs, options."""
    name = draw(st.sampled_from(every_norm))
    shape = tuple(draw(st.sampled_from([1, 2, 3, 7, 16, 33])) for _ in range(3))
    last = draw(st.booleans())
    channel = 2 if last else 1
    options = dict(NORMS[name].options)
    if name in ("layer", "rms"):
        options["reduction_axes"], channel = draw(st.sampled_from(AXES[name]))
    else:
        options["channel_axis"] = channel
    if name == "group":
        shape = tuple(2 * n if axis == channel else n for axis, n in enumerate(shape))
    if name == "ghost":
        shape = (2 * shape[0], *shape[1:])
    if name in STATEFUL and np.prod(shape) // shape[channel] < 4:
        shape = tuple(n if axis == channel else 4 for axis, n in enumerate(shape))
    if name in ("layer", "group", "instance"):  # more than one value in a group
        shape = (shape[0], *(max(n, 2) for n in shape[1:]))
    options["epsilon"] = draw(st.sampled_from([1e-3, 0.1]))
    dtype = draw(st.sampled_from(DTYPES))
    mean = draw(st.sampled_from([0.0, 3.0] if dtype != np.float32 else [0.0, 1e3, 1e6]))
    given = draw(st.sampled_from([(True, True), (True, False), (False, True), (False, False)]))
    leading = draw(st.sampled_from([0, 0, 1, 2]))  # axes in front of the scale's
    return name, shape, channel, options, dtype, mean, given, leading


@pytest.mark.long
@given(drawn_calls())
def test_both_forms_give_the_same(call):
    name, shape, channel, options, dtype, mean, given, leading = call
    x = normals(*shape, mean=mean).astype(dtype)
    g = normals(*shape, seed=5).astype(dtype)
    others = tuple(n for axis, n in enumerate(shape) if axis != channel)
    of_scale = (*others[:leading], shape[channel])
    both = normals(*of_scale, mean=1.5, std=0.3), normals(*of_scale, seed=1)
    drawn = [p if has else None for p, has in zip(both, given, strict=True)]
    feature = {"feature_axes": channel} if name in ("layer", "rms") else {}

    def everything(x, g, *drawn):
        state = (fresh(name, shape[channel]),) if name in STATEFUL else ()
        drawn = drawn[: 2 if NORMS[name].has_bias else 1]

        def output(x, *drawn):
            result = NORMS[name].function(x, *state, *drawn, **options, **feature)
            return result if state else (result, ())

        y, backward, new = jax.vjp(output, x, *drawn, has_aux=True)
        return y, new, backward(g)

    native_form, plain = both_forms(everything, x, g, *drawn)
    slack = 1e-5 + float(ulp(np.float32(mean))) / 0.3
    rounding = {np.float32: 0.0, jnp.bfloat16: 2.0**-7, np.float16: 2.0**-10}[dtype]
    jax.tree.map(functools.partial(alike, slack=slack, rounding=rounding), native_form, plain)


def alike(actual, expected, slack, rounding):
    """Hold two results together, to `slack` of the largest and one rounding of each value."""
    actual, expected = (np.asarray(part, np.float64) for part in (actual, expected))
    size = max(1.0, np.abs(expected).max(initial=0))
    assert (np.abs(actual - expected) <= 4 * slack * size + rounding * np.abs(expected)).all()


def first(name, x, scale):
    """Normalize over the channels of an input that has them before its positions."""
    return NORMS[name].function(x, scale, reduction_axes=1, feature_axes=1)


SHAPES = {"batch": (64, 9, 5), "layer": (6, 5, 600), "rms": (6, 5, 600), "instance": (3, 500, 4)}


@pytest.mark.core
@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("name", every_norm)
def test_the_native_form_is_as_precise_as_is_promised(name, ratio):
    x = normals(*SHAPES.get(name, (8, 50, 8)), mean=ratio)
    state = (fresh(name, x.shape[-1]),) if name in STATEFUL else ()
    result = jax.jit(lambda x: NORMS[name].function(x, *state, **NORMS[name].options))(x)
    y = result[0] if state else result
    near(y / promised(name, x), oracle(name, x)[0] / promised(name, x), 1.0)


@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("name", ["layer", "rms"])
def test_channels_first_are_as_precise_as_channels_last(name, ratio):
    x, scale = normals(6, 600, 5, mean=ratio), normals(600, mean=1.0, std=0.1)
    last = np.moveaxis(x, 1, -1)
    y = np.moveaxis(np.asarray(jax.jit(functools.partial(first, name))(x, scale)), 1, -1)
    tolerance = promised(name, last) * 2
    near(y / tolerance, oracle(name, last, scale)[0] / tolerance, 1.0)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (2, 3, 1), (1, 1, 4)])
def test_empty_and_single_values(shape, dtype):
    x = normals(*shape).astype(dtype)
    function = jn.rms_norm if shape[-1] == 1 else jn.layer_norm  # which is not of one value

    def everything(x):
        y, backward = jax.vjp(function, x)
        return y, backward(y)

    compare = functools.partial(alike, slack=1e-6, rounding=2.0**-7 if dtype != np.float32 else 0)
    jax.tree.map(compare, *both_forms(everything, x))


# Which form runs

X, SCALE = normals(8, 6, 4), np.ones(4, np.float32)


def loss(name, x, scale):
    state = (fresh(name, 4),) if name in STATEFUL else ()
    result = NORMS[name].function(x, *state, scale, **NORMS[name].options)
    return ((result[0] if state else result) ** 3).sum()


@pytest.mark.core
@pytest.mark.parametrize("name", every_norm)
def test_one_device_runs_the_native_form_both_ways(name):
    backward = calls(jax.grad(functools.partial(loss, name), (0, 1)), X, SCALE)
    apart = {"jaxnorm_measure", "jaxnorm_apply", "jaxnorm_sums", "jaxnorm_backward"}
    at_once = {"jaxnorm_normalize", "jaxnorm_backward_fused"}
    assert backward == (apart if name == "renorm" else at_once)


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_channels_first_run_the_native_form_both_ways(name):
    gradient = jax.grad(lambda x, scale: (first(name, x, scale) ** 3).sum(), (0, 1))
    at_once = {"jaxnorm_normalize", "jaxnorm_backward_fused"}
    assert calls(gradient, X, np.ones(6, np.float32)) == at_once
    assert calls(jax.vmap(gradient), X[None], np.ones((1, 6), np.float32)) == at_once


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_channels_first_over_a_mapped_axis_run_the_native_form_in_steps(name):
    """The channels are split over devices: each step is a handler of its own."""

    def gradients(x, scale, g):
        y, backward = jax.vjp(lambda x, scale: function(x, scale, axis_name="i", **axes), x, scale)
        return y, *backward(g)

    function, axes = NORMS[name].function, {"reduction_axes": 1, "feature_axes": 1}
    x, g = normals(3, 8, 50, mean=2.0), normals(3, 8, 50, seed=1)
    scale = normals(8, mean=1.5, std=0.3)
    split = {"in_specs": (P(None, "i"), P("i"), P(None, "i"))}
    split["out_specs"] = (P(None, "i"), P(None, "i"), P("i"))
    mapped = jax.shard_map(gradients, mesh=mesh(), **split)
    steps = {f"jaxnorm_{step}" for step in ("measure", "apply", "sums", "backward")}
    assert calls(mapped, x, scale, g) == steps
    _, plain = jax.vjp(lambda x, scale: function(x, scale, **axes), x, scale)
    expected = (function(x, scale, **axes), *plain(g))
    for actual, alone in zip(jax.jit(mapped)(x, scale, g), expected, strict=True):
        near(actual, alone, 1e-5)


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "frozen"])
def test_given_statistics_run_the_plain_form_with_one_multiplication(train):
    stats = fresh("batch", 4)
    stats = jn.freeze_stats(stats) if train else stats

    def evaluated(x, scale):
        return jn.batch_norm(x, stats, scale, scale, train=train)[0]

    assert "jaxnorm_native" in str(jax.make_jaxpr(evaluated)(X, SCALE)), "one step outside jit"
    text = jax.jit(evaluated).lower(X, SCALE).as_text()
    assert "custom_call" not in text
    products = re.findall(r"stablehlo.multiply .*tensor<8x6x4xf32>", text)
    assert len(products) == 1
    gradient = jax.grad(lambda x, scale: (evaluated(x, scale) ** 3).sum(), (0, 1))
    assert not calls(gradient, X, SCALE)


PLAIN = {
    "a mask along the channels": lambda x: jn.group_norm(x, num_groups=2, where=chances(8, 6, 4)),
    "complex input": lambda x: jn.layer_norm(jax.lax.complex(x, x)),
    "unusual axes": lambda x: (
        jn.layer_norm(x, SCALE, reduction_axes=1, feature_axes=2)[..., 0]
        + jn.layer_norm(x, reduction_axes=(0, 2), feature_axes=1)[..., 0]
    ),
}


@pytest.mark.parametrize("call", PLAIN.values(), ids=PLAIN)
def test_what_has_no_view_runs_the_plain_form(call):
    if call is not PLAIN["unusual axes"]:
        assert not calls(call, X)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_where_jit_partitions_the_plain_form_runs(kind):
    grid = mesh(kind)
    with jax.set_mesh(grid):
        x = jax.device_put(X, NamedSharding(grid, P("i")))
        assert not calls(jax.grad(functools.partial(loss, "batch"), (0, 1)), x, SCALE)


@pytest.mark.parametrize("check_vma", [True, False])
def test_where_a_mesh_is_manual_the_native_form_runs(check_vma):
    def step(x, scale):
        stats = fresh("batch", 4)
        return jn.batch_norm(x, stats, scale, train=True, axis_name="i")[0]

    specs = {"in_specs": (P("i"), P()), "out_specs": P("i"), "check_vma": check_vma}
    mapped = jax.shard_map(step, mesh=mesh(), **specs)
    x = normals(16, 6, 4)
    assert calls(mapped, x, SCALE) == {"jaxnorm_measure", "jaxnorm_apply"}
    near(jax.jit(mapped)(x, SCALE), oracle("batch", x, SCALE)[0])


def test_an_exported_program_holds_the_plain_form():
    def gradient(x, scale):
        return jax.grad(functools.partial(loss, "batch"), (0, 1))(x, scale)

    exported = export.export(jax.jit(gradient))(X, SCALE)
    assert "jaxnorm_" not in str(exported.mlir_module()).replace("jaxnorm_native", "")
    for actual, expected in zip(exported.call(X, SCALE), gradient(X, SCALE), strict=True):
        near(actual, expected, 1e-4)


# Transformations


@pytest.mark.parametrize("name", every_norm)
def test_a_batch_of_models_with_scales_of_their_own(name):
    x, scales = normals(3, 8, 6, 4, mean=2.0), normals(3, 4, mean=1.0)
    gradient = jax.value_and_grad(functools.partial(loss, name), (0, 1))
    together = jax.jit(jax.vmap(gradient))(x, scales)
    shared = jax.jit(jax.vmap(gradient, in_axes=(0, None)))(x, scales[0])
    apart = [jax.jit(gradient)(x[at], scales[at]) for at in range(3)]
    for at in range(3):
        compare = functools.partial(alike, slack=1e-5, rounding=0.0)
        jax.tree.map(compare, jax.tree.map(lambda leaf, at=at: leaf[at], together), apart[at])
    jax.tree.map(compare, jax.tree.map(lambda leaf: leaf[0], shared), apart[0])
    assert calls(jax.vmap(gradient), x, scales)


@pytest.mark.long
@pytest.mark.parametrize("name", every_norm)
def test_the_third_derivative_in_reverse(name):
    with jax.enable_x64(True):
        x, direction = normals(4, 3, 4, dtype=np.float64), normals(4, 3, 4, seed=3).astype(float)
        scale = np.ones(4)

        def line(t):
            options = {**NORMS[name].options, "epsilon": 0.1}
            if name == "renorm":
                options |= {"r_max": 1.0, "d_max": 0.0}
            state = (fresh(name, 4, dtype=np.float64),) if name in STATEFUL else ()
            result = NORMS[name].function(x + t * direction, *state, scale, **options)
            return jnp.sum(jnp.sin(result[0] if state else result))

        third = jax.jit(jax.grad(jax.grad(jax.grad(line))))(0.1)
        second = jax.jit(jax.grad(jax.grad(line)))
        near(third, (second(0.1 + 1e-5) - second(0.1 - 1e-5)) / 2e-5, 1e-6 * max(1, abs(third)))


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_a_batch_of_models_of_channels_first(name):
    x, g = normals(3, 4, 6, 50, mean=2.0), normals(3, 4, 6, 50, seed=1)
    scales = normals(3, 6, mean=1.0)

    def gradients(x, scale, g):
        y, backward = jax.vjp(functools.partial(first, name), x, scale)
        return y, *backward(g)

    together = jax.jit(jax.vmap(gradients))(x, scales, g)
    shared = jax.jit(jax.vmap(gradients, in_axes=(0, None, 0)))(x, scales[0], g)
    moved = jax.jit(jax.vmap(gradients, in_axes=(2, 0, 2)))(
        np.moveaxis(x, 0, 2), scales, np.moveaxis(g, 0, 2)
    )
    compare = functools.partial(alike, slack=1e-6, rounding=0.0)
    for at in range(3):
        with as_on("cpu"):
            apart = jax.jit(lambda *operands: gradients(*operands))(x[at], scales[at], g[at])
        for found in (together, moved):
            jax.tree.map(compare, tuple(leaf[at] for leaf in found), apart)
        if at == 0:
            jax.tree.map(compare, tuple(leaf[at] for leaf in shared), apart)


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_the_third_derivative_of_channels_first(name):
    """In reverse, and in both modes, beside the plain form's."""
    with jax.enable_x64(True):
        x, direction = normals(3, 4, 5, dtype=np.float64), normals(3, 4, 5, seed=3).astype(float)
        scale = np.linspace(0.5, 2.0, 4)

        def line(t):
            return jnp.sum(jnp.sin(first(name, x + t * direction, scale + t)))

        def derivatives(t):
            third = jax.grad(jax.grad(jax.grad(line)))(t)
            return jax.grad(line)(t), jax.jvp(jax.grad(line), (t,), (1.0,))[1], third

        native_form, plain = both_forms(derivatives, 0.1)
        for actual, expected in zip(native_form, plain, strict=True):
            near(actual, expected, 1e-9 * max(1, abs(expected)))


@pytest.mark.parametrize("name", every_norm)
def test_scan_remat_and_donated_buffers(name):
    gradient = jax.jit(jax.grad(functools.partial(loss, name), (0, 1)))

    def scanned(x, scale):
        step = jax.checkpoint(lambda total, _: (total + loss(name, x, scale), None))
        return jax.lax.scan(step, jnp.float32(0), None, length=3)[0] / 3

    compare = functools.partial(alike, slack=1e-5, rounding=0.0)
    jax.tree.map(compare, jax.jit(jax.grad(scanned, (0, 1)))(X, SCALE), gradient(X, SCALE))
    donated = jax.jit(lambda x: jn.layer_norm(x, SCALE), donate_argnums=0)
    expected = jn.layer_norm(X, SCALE)
    near(donated(jnp.array(X)), expected, 1e-6)


def test_an_ahead_of_time_program_and_custom_vjp_around_it():
    @jax.custom_vjp
    def doubled(x):
        return 2 * jn.layer_norm(x, SCALE)

    def forward(x):
        return jax.vjp(lambda x: 2 * jn.layer_norm(x, SCALE), x)

    doubled.defvjp(forward, lambda pullback, g: pullback(g))
    compiled = jax.jit(jax.grad(lambda x: (doubled(x) ** 3).sum())).lower(X).compile()
    near(compiled(X), jax.grad(lambda x: (8 * jn.layer_norm(x, SCALE) ** 3).sum())(X), 1e-4)


# Threads

DIGEST = """
import hashlib, os, sys
os.sched_setaffinity(0, set(map(int, sys.argv[1:])))
import numpy as np, jax, jaxnorm as jn
generator, digest = np.random.default_rng(0), hashlib.sha256()
for shape in [(2048, 256), (37, 3001), (64, 28, 28, 32), (8, 32, 50, 50)]:
    for dtype in ("float32", "bfloat16"):
        x = jax.numpy.asarray(generator.normal(size=shape), dtype)
        scale = jax.numpy.linspace(0.5, 2.0, shape[-1])
        def both(x, scale):
            stats = jn.init_batch_stats(shape[-1])
            layer, pull = jax.vjp(lambda x, s: jn.layer_norm(x, s, reduction_axes=-1), x, scale)
            batch, push = jax.vjp(lambda x, s: jn.batch_norm(x, stats, s, train=True)[0], x, scale)
            return layer, batch, pull(x), push(x)
        def first(x, scale):
            layer = lambda x, s: jn.layer_norm(x, s, reduction_axes=1, feature_axes=1)
            y, pull = jax.vjp(layer, x, scale)
            return y, pull(x)
        across = jax.numpy.linspace(0.5, 2.0, shape[1])
        for leaf in jax.tree.leaves((jax.jit(both)(x, scale), jax.jit(first)(x, across))):
            digest.update(np.asarray(leaf).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no choice of processors here")
def test_results_do_not_change_with_threads_or_from_run_to_run():
    def digest(processors):
        found = subprocess.run(
            [sys.executable, "-c", DIGEST, *map(str, processors)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "XLA_FLAGS": ""},
        )
        return found.stdout

    every = os.sched_getaffinity(0)
    assert len({digest(every), digest(every), digest({min(every)})}) == 1


STEPS = """
import jax, numpy as np, jaxnorm as jn
from functools import partial
from jax.sharding import PartitionSpec as P
grid = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
def step(x, stats):
    y, stats = jn.batch_norm(x, stats, train=True, axis_name="i")
    return jn.layer_norm(y), stats
def local(x):
    return jn.layer_norm(jn.batch_norm(x, jn.init_batch_stats(64), train=True)[0])
specs = dict(mesh=grid, in_specs=(P("i"), P()), out_specs=(P("i"), P()))
synced = jax.jit(jax.shard_map(step, **specs))
alone = jax.jit(jax.shard_map(local, mesh=grid, in_specs=P("i"), out_specs=P("i")))
x, stats = np.ones((8 * 256, 64), np.float32) * np.arange(64, dtype=np.float32), None
stats = jn.init_batch_stats(64)
flying = [alone(x) for _ in range(1000)]
jax.block_until_ready(flying)
for _ in range(1000):
    y, stats = jax.block_until_ready(synced(x, stats))
print("done")
"""


@pytest.mark.slow
def test_eight_devices_of_a_processor_never_wait_for_each_other():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    found = subprocess.run(
        [sys.executable, "-c", STEPS],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
        env={**os.environ, **flags},
    )
    assert found.stdout == "done\n"
