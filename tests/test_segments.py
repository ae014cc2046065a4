"""Statistics by segment: each segment in the place of each example."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import (
    KEY,
    NORMS,
    alike,
    chances,
    gradients,
    identical,
    library,
    near,
    normals,
    parameters,
)
from devices import flat, mapped, mesh
from environment import generator
from exact import Exact, error_of, within_largest
from flax import nnx
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

pytestmark = [pytest.mark.numerical, pytest.mark.core]

NUMBER = 6
IDS = generator(0, 40).integers(-1, NUMBER + 1, 40)  # of no segment: -1 and 6
IDS[IDS == 2] = 3  # segment 2 is empty
IDS[:3] = [0, 3, 0]
SHAPE = (40, 3, 8)
VALID = ((IDS >= 0) & (IDS < NUMBER))[:, None, None]
EVERYWHERE = np.ones(SHAPE, bool)
CASES = {
    "layer": ("layer", {}),
    "layer over positions": ("layer", {"reduction_axes": (1, 2)}),
    "rms": ("rms", {"reduction_axes": (1, 2)}),
    "group": ("group", {"num_groups": 2}),
    "instance": ("instance", {}),
}
every_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def compiled(case, number=NUMBER):
    """Compile y, the cotangents of all operands, and the tangent of y."""
    name, options = CASES[case]

    def program(ids, where, operands, tangents, cotangent):
        def normalized(*operands):
            segments = {"segment_ids": ids, "num_segments": number}
            operands = operands if NORMS[name].has_bias else operands[:2]
            return NORMS[name].function(*operands, where=where, **options, **segments)

        y, tangent = jax.jvp(normalized, operands, tangents)
        return y, jax.vjp(normalized, *operands)[1](cotangent), tangent

    return jax.jit(program)


def drawn(x):
    """Give x and its parameters, their tangents, and a cotangent of y."""
    tangents = normals(*x.shape, seed=3), *parameters(x.shape[-1], seed=5)
    return (x, *parameters(x.shape[-1])), tangents, normals(*x.shape, seed=4)


def run(case, x, where=EVERYWHERE, ids=IDS):
    """Run the program of a case."""
    return compiled(case)(ids, where, *drawn(x))


def labels(case, ids, shape, number=NUMBER):
    """Label the positions as those of an input with a segment in the place of each example."""
    name, options = CASES[case]
    of_examples = NORMS[name].labels((number + 1, *shape[1:]), **options)
    return of_examples[np.where((ids >= 0) & (ids < number), ids, number)]


def expected(case, x, where=EVERYWHERE, ids=IDS):
    """Standardize by the moments of each label, in float64; 0 in rows of no segment."""
    name, _ = CASES[case]
    centered = not NORMS[name].about_zero
    y = reference.standardize(
        x, labels(case, ids, x.shape), where=where & VALID, epsilon=1e-6, centered=centered
    )
    scale, bias = parameters(x.shape[-1])
    return np.where(VALID, y, 0) * scale + (bias if NORMS[name].has_bias else 0)


def exact(case, x, where=EVERYWHERE, ids=IDS):
    """Give y and its derivatives in float64, by the formulas."""
    name, _ = CASES[case]
    return Exact(name, x, where & VALID, labels=labels(case, ids, x.shape))


@functools.partial(jax.jit, static_argnames="number")
def instance(x, ids, number, *parameters):
    """Normalize by segment and channel."""
    return jn.instance_norm(x, *parameters, segment_ids=ids, num_segments=number)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mean", [1.0, 1e4, -1e6])
@every_case
def test_each_segment_is_in_the_place_of_each_example(case, mean, masked):
    x, where = normals(*SHAPE, mean=mean), chances(*SHAPE) if masked else EVERYWHERE
    y, cotangents, tangent = run(case, x, where)
    wanted = expected(case, x, where)
    assert error_of(y, wanted, where | ~VALID) <= 1e-5
    if masked:
        return
    (_, scale, bias), tangents, g = drawn(x)
    by_formula = exact(case, x)
    g_of_segments = np.where(VALID, g, 0)
    of_x, of_scale, _ = by_formula.cotangents(scale, g_of_segments)
    within_largest(cotangents[0], np.where(VALID, of_x, 0), 1e-4)
    within_largest(cotangents[1], of_scale, 1e-4)
    of_bias = g.sum((0, 1), dtype=np.float64) if NORMS[CASES[case][0]].has_bias else 0 * bias
    near(cotangents[2], of_bias, 1e-5)
    dx, dscale, dbias = tangents
    dbias = dbias if NORMS[CASES[case][0]].has_bias else 0 * dbias
    wanted = np.where(VALID, by_formula.tangent(scale, dx, dscale, dbias), dbias)
    within_largest(tangent, wanted, 1e-4)


@every_case
def test_a_mask_is_as_if_the_others_were_not_there(case):
    x, where = normals(*SHAPE, mean=1.0), chances(*SHAPE)
    sick = np.where(where & VALID, x, np.nan)
    (_, *rest), tangents, g = drawn(x)
    g = np.where(where, g, 0)
    y, cotangents, tangent = compiled(case)(IDS, where, (x, *rest), tangents, g)
    of_sick = compiled(case)(IDS, where, (sick, *rest), tangents, g)
    counted = where & VALID
    identical(np.where(counted, of_sick[0], 0), np.where(counted, y, 0))
    assert np.isfinite(of_sick[0]).all()
    identical(of_sick[1][1:], cotangents[1:])
    identical(np.where(counted, of_sick[1][0], 0), np.where(counted, cotangents[0], 0))
    assert not np.where(counted, 0, of_sick[1][0]).any()
    identical(np.where(counted, of_sick[2], 0), np.where(counted, tangent, 0))
    of_x = exact(case, x, where).cotangents(rest[0], np.where(VALID, g, 0))[0]
    within_largest(cotangents[0], np.where(counted, of_x, 0), 1e-4)


@pytest.mark.parametrize("case", ["layer over positions", "instance"])
def test_a_segment_alone_gives_the_same(case):
    x, (name, options) = normals(*SHAPE, mean=3.0), CASES[case]
    y, cotangents, _ = run(case, x)
    rows = IDS == 3
    (_, scale, bias), _, g = drawn(x)
    if name == "layer":
        options = {"reduction_axes": (1, 2, 3)}
    alone = x[rows][None], scale, bias
    near(np.asarray(y)[rows], library(name, *alone, **options)[0][0], 2e-6)
    of_x = gradients(name, *alone, g[rows][None], **options)[0]
    near(np.asarray(cotangents[0])[rows], of_x[0], 2e-6)


@every_case
def test_nothing_that_varies_is_bias_and_nothing_that_counts_has_zero_gradients(case):
    x = np.full(SHAPE, 12345.678, np.float32) + np.maximum(IDS, 0)[:, None, None] * 7.3
    _, bias = parameters(8)
    y, cotangents, _ = run(case, x.astype(np.float32))
    if not NORMS[CASES[case][0]].about_zero:
        identical(y, np.broadcast_to(bias, SHAPE))
    assert all(np.isfinite(one).all() for one in cotangents)
    y, cotangents, tangent = run(case, x.astype(np.float32), ids=np.full_like(IDS, -1))
    bias = bias if NORMS[CASES[case][0]].has_bias else 0 * bias
    identical(y, np.broadcast_to(bias, SHAPE))
    assert not np.asarray(cotangents[0]).any()
    assert not np.asarray(cotangents[1]).any()
    assert np.isfinite(tangent).all()


def test_the_order_of_rows_and_the_dtype_of_ids_do_not_matter():
    x, order = normals(*SHAPE, mean=1.0), generator(1, 40).permutation(40)
    y = run("instance", x)[0]
    alike(run("instance", x[order], ids=IDS[order])[0], np.asarray(y)[order])
    ids = np.where(VALID[:, 0, 0], IDS, -1)
    for given in (ids.astype(np.int8), ids.astype(np.uint8)):
        alike(instance(x, given, 200, *parameters(8)), y)


def test_a_segment_of_one_value_is_bias_and_its_neighbors_are_not_touched():
    x, ids = normals(5, 4, mean=2.0), np.array([0, 1, 0, 0, 2])
    y = np.asarray(instance(x, ids, 3, *parameters(4)))
    identical(y[[1, 4]], np.stack([parameters(4)[1]] * 2))
    sick = x.copy()
    sick[1, 2] = np.nan
    sick = np.asarray(instance(sick, ids, 3, *parameters(4)))
    identical(np.delete(sick, 1, 0), np.delete(y, 1, 0))
    assert np.isnan(sick[1, 2])
    assert np.isfinite(np.delete(sick[1], 2)).all()
    with pytest.raises(ValueError, match="one value in every group"):
        instance(x[:1], ids[:1], 3)


def test_empty_input_gives_empty_output():
    ids, x = np.zeros(0, np.int32), np.zeros((0, 4), np.float32)
    assert instance(x, ids, 3).shape == (0, 4)
    m = jax.jit(lambda x: jn.moments(x, 0, segment_ids=ids, num_segments=3))(x)
    identical(m, jn.Moments(*[np.zeros((3, 4), np.float32)] * 3))


@pytest.mark.parametrize("kind", ["normal", "two values", "outlier", "trend"])
def test_segments_of_many_rows_are_exact(kind):
    rows, ids = 100_000, generator(2, 100_000).integers(0, 3, 100_000)
    x = normals(rows, 1)
    if kind == "two values":
        x = 1.3 * (np.arange(rows) % 2)[:, None]
    if kind == "outlier":
        x[rows // 2] = 1e3
    if kind == "trend":
        x = np.linspace(-1, 1, rows)[:, None]
    x = (x + 10.0 ** ids[:, None] * [1, 1e3, 1e4][["normal"].count(kind)]).astype(np.float32)
    y = instance(x, ids, 3)
    wanted = reference.standardize(x, ids[:, None], epsilon=1e-6)
    assert error_of(y, wanted) <= 1e-6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.complex64, np.float64])
def test_other_dtypes(dtype):
    with jax.enable_x64(dtype == np.float64):
        x = jnp.asarray(normals(*SHAPE, mean=1.0)).astype(dtype)
        if dtype == np.complex64:
            x = x + 1j * normals(*SHAPE, seed=9).astype(dtype)
        x = np.asarray(x)
        y = instance(x, IDS, NUMBER)
        assert y.dtype == dtype
        wanted = reference.standardize(x, labels("instance", IDS, SHAPE), where=VALID, epsilon=1e-6)
        near(
            y, np.where(VALID, wanted, 0), {np.float64: 1e-13, np.complex64: 2e-6}.get(dtype, 2e-2)
        )


@pytest.mark.long
def test_derivatives_are_right_to_second_order_in_both_modes():
    ids, where = np.array([0, 1, 0, 3, 1, -1, 0, 3, 3, 1, 0, 4]), chances(12, 2, 4)

    def call(x, scale):
        options = {"num_groups": 2, "epsilon": 0.1, "segment_ids": ids, "num_segments": 4}
        return jn.group_norm(x, scale, where=where, **options)

    with jax.enable_x64(True):
        operands = normals(12, 2, 4, dtype=np.float64), parameters(4)[0].astype(np.float64)
        check_grads(jax.jit(call), operands, order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("case", ["layer over positions", "group"])
def test_each_row_can_have_its_own_scale_and_bias(case):
    (name, options), x, g = CASES[case], normals(*SHAPE, mean=1.0), normals(*SHAPE, seed=4)
    own = normals(40, 8, mean=1.5), normals(40, 8, seed=1)

    def normalized(x, scale=None, bias=None):
        segments = {"segment_ids": IDS, "num_segments": NUMBER}
        return NORMS[name].function(x, scale, bias, **options, **segments)

    def afterwards(x, scale, bias):
        return normalized(x) * scale[:, None] + bias[:, None]

    @jax.jit
    def both(*operands):
        pairs = (jax.vjp(function, *operands) for function in (normalized, afterwards))
        return [(y, backward(g)) for y, backward in pairs]

    first, second = both(x, *own)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        near(one, other, 4e-6)


# Moments


@functools.cache
def measured(axis):
    """Compile the moments by segment, and the gradients of sums of means and of variances."""

    def program(x, where, of_mean, of_var):
        def moments(x):
            return jn.moments(x, axis, where=where, segment_ids=IDS, num_segments=NUMBER)

        m, backward = jax.vjp(moments, x)
        return m, backward(jn.Moments(jnp.zeros_like(m.count), of_mean, of_var))[0]

    return jax.jit(program)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axis", [0, (1, 2), (0, 2)], ids=str)
def test_moments_of_each_segment(axis, masked):
    x, where = normals(*SHAPE, mean=30.0), chances(*SHAPE) if masked else EVERYWHERE
    of_one = {0: (0,), (1, 2): (0, 1, 2), (0, 2): (0, 2)}[axis]
    members = np.arange(NUMBER)[:, None] == IDS
    wanted = [reference.moments(x[one], of_one, where=where[one]) for one in members]
    wanted = reference.Moments(*(np.stack(statistic) for statistic in zip(*wanted, strict=True)))
    of_mean, of_var = normals(*wanted.mean.shape), normals(*wanted.mean.shape, seed=1)
    m, gradient = measured(axis)(x, where, of_mean, of_var)
    identical(np.asarray(m.count), wanted.count.astype(np.float32))
    near(m.mean, wanted.mean, 8e-6)
    near(m.var, wanted.var, 2e-6)
    assert not m.count[2].any()
    assert not m.mean[2].any()

    def at_rows(statistic):
        others = tuple(a for a in of_one if a != 0)
        return np.expand_dims(statistic, others)[np.where(VALID[:, 0, 0], IDS, 0)]

    count = np.maximum(at_rows(wanted.count), 1)
    slope = at_rows(of_mean) / count + 2 * at_rows(of_var) * (x - at_rows(wanted.mean)) / count
    near(gradient, np.where(where & VALID, slope, 0), 2e-6)


def test_the_moments_of_segments_merge_to_those_of_all_rows():
    x = normals(40, 4, mean=100.0)
    whole = reference.moments(x[VALID[:, 0, 0]], 0)

    def all_rows(x):
        return jn.merge_moments_axis(jn.moments(x, 0, segment_ids=IDS, num_segments=NUMBER), 0)

    merged = jax.jit(all_rows)(x)
    identical(np.asarray(merged.count), whole.count.astype(np.float32))
    near(merged.mean, whole.mean, 2e-5)
    near(merged.var, whole.var, 1e-5)


# Devices


@pytest.mark.parametrize(
    ("case", "way"), [("group", "shard_map"), ("instance", "vmap"), ("rms", "pmap")]
)
def test_segments_reach_over_the_devices_of_a_mapped_axis(case, way):
    name, options = CASES[case]
    x, where = normals(*SHAPE, mean=1.0), chances(40, 3, 1)
    (_, scale, bias), _, g = drawn(x)
    g = np.where(where, g, 0)
    parameters_of = (scale, bias) if NORMS[name].has_bias else (scale,)

    def on_device(x, where, ids, g):
        def call(x):
            segments = {"segment_ids": ids, "num_segments": NUMBER, "axis_name": "i"}
            return NORMS[name].function(x, *parameters_of, where=where, **options, **segments)

        y, backward = jax.vjp(call, x)
        return y, backward(g)[0]

    split = [array.reshape(8, 5, *array.shape[1:]) for array in (x, where, IDS, g)]
    y, dx = mapped(way, on_device)(*split)
    wanted = expected(case, x, np.broadcast_to(where, SHAPE))
    counted = np.broadcast_to(where & VALID, SHAPE)
    near(flat(y)[counted], wanted[counted])
    alone = compiled(case)(IDS, np.broadcast_to(where, SHAPE), *drawn(x)[:2], g)[1][0]
    near(flat(dx), alone, 2e-6)


KINDS = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "kind"), [("group", "explicit"), ("instance", "automatic"), ("layer", "explicit")]
)
def test_rows_and_channels_can_be_split_over_a_mesh(case, kind):
    grid = mesh(KINDS[kind], (4, 2), ("i", "j"))
    x, where = normals(*SHAPE, mean=1.0), chances(40, 3, 1)
    operands, tangents, g = drawn(x)
    g = np.where(where, g, 0)
    rows, channels = P("i", None, "j"), P("j")

    def put(array, spec):
        return jax.device_put(array, NamedSharding(grid, spec))

    def put_all(arrays):
        return tuple(map(put, arrays, (rows, channels, channels)))

    with jax.set_mesh(grid):
        split = put_all(operands), put_all(tangents), put(g, rows)
        y, cotangents, tangent = compiled(case)(put(IDS, P("i")), put(where, P("i")), *split)
    alone = compiled(case)(IDS, where, operands, tangents, g)
    near(y, alone[0], 2e-6)
    near(tangent, alone[2], 1e-5)
    for one, other in zip(cotangents, alone[1], strict=True):
        near(one, other, 2e-6 * max(1.0, float(np.abs(other).max())))
    if kind == "explicit":
        assert tuple(jax.typeof(y).sharding.spec) == tuple(rows)


def test_vmap_gives_each_input_its_own_segments():
    x, ids = normals(3, 10, 4, mean=1.0), generator(3, 30).integers(-1, 3, (3, 10))

    def call(x, ids):
        return jn.instance_norm(x, segment_ids=ids, num_segments=3)

    def both(x, ids):
        y, backward = jax.vjp(lambda x: call(x, ids), x)
        return y, backward(x)[0]

    of_all, alone = jax.jit(jax.vmap(both))(x, ids), jax.jit(both)
    for one in range(3):
        for actual, wanted in zip(of_all, alone(x[one], ids[one]), strict=True):
            near(actual[one], wanted, 1e-6)


# The program


def test_one_pass_without_a_loop_keeps_the_input_alone():
    x, ids = jnp.asarray(normals(256, 3, 8)), generator(5, 256).integers(0, 64, 256)
    args = x, *map(jnp.asarray, parameters(8))

    def call(*args):
        return jn.instance_norm(*args, segment_ids=ids, num_segments=64)

    kept = [
        leaf for leaf in jax.tree.leaves(jax.vjp(jax.jit(call), *args)[1]) if leaf.size > 64 * 24
    ]
    assert sum(leaf.nbytes for leaf in kept) <= x.nbytes
    program = jax.jit(lambda *args: jax.vjp(call, *args)[1](x)).lower(*args).compile().as_text()
    assert "while(" not in program
    assert f"[{64},{256}" not in program
    assert f"[{256},{64}" not in program


def test_a_program_is_exported_for_any_number_of_rows():
    (rows,) = export.symbolic_shape("n")

    def call(x, ids):
        return jn.layer_norm(x, segment_ids=ids, num_segments=NUMBER)

    shaped = jax.ShapeDtypeStruct((rows, 8), np.float32), jax.ShapeDtypeStruct((rows,), np.int32)
    program = export.export(jax.jit(call))(*shaped)
    x, ids = normals(40, 8), IDS.astype(np.int32)
    alike(program.call(x, ids), jax.jit(call)(x, ids))


# Modules and errors

MODULES = {"LayerNorm": {}, "RMSNorm": {}, "GroupNorm": {"num_groups": 2}, "InstanceNorm": {}}


@pytest.mark.parametrize("module", MODULES)
def test_modules_take_segments(module):
    x, options = normals(*SHAPE, mean=1.0), MODULES[module]
    function = next(norm.function for norm in NORMS.values() if norm.module == module)
    segments = {"segment_ids": IDS, "num_segments": NUMBER}
    linen = getattr(jnn, module)(**options)
    norm = getattr(jnnx, module)(8, **options, rngs=nnx.Rngs(0))
    where = np.ones((40, 1, 1))

    @jax.jit
    def all_three(x):
        of_linen, _ = linen.init_with_output(KEY, x, **segments)
        of_nnx = norm(x, mask=where, **segments)
        return of_linen, of_nnx, function(x, **options, **segments)

    of_linen, of_nnx, wanted = all_three(x)
    alike(of_linen, wanted)
    alike(of_nnx, wanted)
    with pytest.raises(ValueError, match="segment_ids and num_segments together"):
        norm(x, num_segments=NUMBER)


ERRORS = [
    ({"segment_ids": IDS}, ValueError, "together, got segment_ids alone"),
    ({"num_segments": 3}, ValueError, "together, got num_segments alone"),
    ({"segment_ids": IDS * 1.0, "num_segments": 3}, TypeError, r"dtype float.*integers"),
    ({"segment_ids": IDS[:4], "num_segments": 3}, ValueError, r"shape \(4,\).*of shape \(40,\)"),
    ({"segment_ids": IDS[:, None], "num_segments": 3}, ValueError, r"one id for each entry"),
    ({"segment_ids": IDS, "num_segments": 0}, ValueError, r"num_segments=0 must be positive"),
    ({"segment_ids": IDS, "num_segments": 2.5}, TypeError, r"num_segments must be an int"),
]


@pytest.mark.parametrize(("segments", "error", "message"), ERRORS)
def test_what_cannot_be_right_is_an_error_that_names_the_cure(segments, error, message):
    with pytest.raises(error, match=message):
        jn.instance_norm(normals(40, 8), **segments)
    with pytest.raises(error, match=message):
        jn.moments(normals(40, 8), 0, **segments)


def test_axis_0_holds_rows_and_not_features():
    segments = {"segment_ids": IDS, "num_segments": NUMBER}
    x = normals(40, 8)
    for call in (
        lambda: jn.layer_norm(x, feature_axes=0, **segments),
        lambda: jn.rms_norm(x[:, 0], **segments),
        lambda: jn.group_norm(x, num_groups=2, channel_axis=0, reduction_axes=0, **segments),
        lambda: jn.instance_norm(x, channel_axis=0, **segments),
    ):
        with pytest.raises(ValueError, match="axis 0"):
            call()


def test_the_number_of_segments_is_static():
    with pytest.raises(TypeError, match=r"num_segments is traced.*static_argnames"):
        jax.jit(lambda n: jn.moments(normals(40, 8), 0, segment_ids=IDS, num_segments=n))(3)
