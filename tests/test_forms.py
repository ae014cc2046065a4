"""The forms of the mean and the variance, at what is worst for a center that is sampled.

A center may be the mean of a part of the values. Here the values of a part are far from the rest:
of the first row, the first example, every fourth column, or one value alone.
"""

import contextlib
import functools

import jax
import numpy as np
import pytest
from cases import near, normals
from environment import generator
from exact import NAMES, PLAIN, Exact, compiled, drawn, error_of, in_every_form, within_largest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnorm as jn
from jaxnorm.forms import mean_and_var
from jaxnorm.kernels.target import Target, as_on, compiling_for
from jaxnorm.scope import Scope

SHAPES = {
    "batch": (16, 24, 4),
    "ghost": (16, 24, 4),
    "layer": (6, 4, 96),
    "group": (4, 24, 8),
    "instance": (4, 24, 4),
}
PARTS = {
    "the first example": np.s_[:1],
    "the first eighth of each axis": np.s_[:2, :3, :12],
    "the first row": np.s_[:, :1],
    "the first rows": np.s_[:, :3],
    "every fourth row": np.s_[:, ::4],
    "every eighth row": np.s_[:, ::8],
    "the first columns": np.s_[..., :12],
    "every eighth column": np.s_[..., ::8],
    "every eighth example": np.s_[::8],
    "one value": np.s_[0, 0, 0],
}


@in_every_form
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("constant", [1e3, 1e6])
def test_a_part_far_from_the_rest_costs_no_exactness(name, form, part, constant):
    (x, scale, bias), tangents, cotangent = drawn(SHAPES[name])
    x[PARTS[part]] = constant
    y, cotangents, _ = compiled(name, form)(None, (x, scale, bias), tangents, cotangent)
    exact = Exact(name, x)
    assert error_of(y, exact.y(scale, bias)) <= 1e-5
    for actual, right in zip(cotangents, exact.cotangents(scale, cotangent), strict=True):
        within_largest(actual, right, 1e-4)


@pytest.mark.parametrize("form", PLAIN)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_masked_out_costs_no_exactness(name, form, part):
    (x, scale, bias), tangents, cotangent = drawn(SHAPES[name])
    x[PARTS[part]] = 1e6
    where = np.ones(x.shape, bool)
    where[PARTS[part]] = False
    y, _, _ = compiled(name, form)(where, (x + 1e3, scale, bias), tangents, cotangent)
    exact = Exact(name, x + np.float32(1e3), where)
    assert error_of(y, exact.y(scale, bias), where) <= 1e-5


@pytest.mark.parametrize("form", PLAIN)
@pytest.mark.parametrize("name", ["ghost", "group"])
def test_one_ghost_or_group_far_from_the_rest_costs_no_exactness(name, form):
    (x, scale, bias), tangents, cotangent = drawn(SHAPES[name])
    x[:4] += 1e6
    x[..., :2] += 1e3
    y, _, _ = compiled(name, form)(None, (x, scale, bias), tangents, cotangent)
    assert error_of(y, Exact(name, x).y(scale, bias)) <= 1e-5


SCOPES = {
    "columns": ((64, 16, 8), Scope((0, 1))),
    "few columns": ((1024, 4), Scope((0,))),
    "rows": ((8, 96), Scope((1,))),
    "rows of which a gradient is wanted": ((8, 96), Scope((1,), differentiated=True)),
    "groups": ((8, 16, 12), Scope((1,), 2, 4)),
    "ghosts": ((4, 16, 10, 6), Scope((1, 2), 0, 1, ghosts=True)),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("platform", [*PLAIN, "any"])
@pytest.mark.parametrize("scope", SCOPES)
def test_all_forms_measure_the_same(scope, platform, devices, masked):
    shape, scope = SCOPES[scope]
    x = normals(*shape, mean=1e5)
    mask = normals(*shape, seed=2) > 0 if masked else None

    def measured(x, mask):
        with compiling_for(Target(platform, devices)):
            return mean_and_var(scope, x, None, mask)

    with compiling_for(Target("cpu", 1)), jax.enable_x64(True):
        expected = mean_and_var(scope, x.astype(np.float64), None, mask)
    center, correction, var = jax.jit(measured)(x, mask)
    mean = np.asarray(center, np.float64) + np.asarray(correction, np.float64)
    np.testing.assert_allclose(mean, expected[0] + expected[1], atol=1e-6, rtol=0)
    np.testing.assert_allclose(var, expected[2], rtol=3e-6)


def test_each_platform_has_its_form():
    def lines(platform):
        def program(x):
            return jn.batch_norm(x, jn.init_batch_stats(4), train=True)[0]

        with as_on(platform):
            return jax.jit(program).lower(normals(16, 24, 4)).as_text()

    programs = {platform: lines(platform) for platform in PLAIN}
    assert {name for name in PLAIN if "complex" in programs[name]} == {"gpu"}
    assert {name for name in PLAIN if "stablehlo.slice" in programs[name]} == {"cpu", "gpu"}


@in_every_form
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mean", [2.75, 2.9])  # zero is near a mean of up to 2.83 deviations
def test_the_farthest_mean_that_is_near_zero_is_exact(name, form, mean):
    operands, tangents, cotangent = drawn(SHAPES[name], mean=mean)
    y, _, _ = compiled(name, form)(None, operands, tangents, cotangent)
    assert error_of(y, Exact(name, operands[0]).y(*operands[1:])) <= 1e-5


def test_a_program_for_a_tpu_runs_one_branch_also_under_vmap():
    x = normals(2, 3, 6, 96)
    x[1, 2] += 1e6
    layers = jax.jit(jax.vmap(jax.vmap(jn.layer_norm)))
    with as_on("tpu"):
        assert "stablehlo.case" in layers.lower(x).as_text()
        near(layers(x), Exact("layer", x.reshape(36, 1, 96)).y(1, 0).reshape(x.shape), 1e-5)


@pytest.mark.parametrize("platform", PLAIN)
def test_gradients_over_devices_are_those_of_all_rows(platform):
    x, g = normals(2, 6, 48), normals(2, 6, 48, seed=1)

    def synced(x):
        return jax.vmap(functools.partial(jn.layer_norm, axis_name="d"), axis_name="d")(x)

    whole = np.moveaxis(x, 0, 1).reshape(6, 96)
    _, expected = jax.vjp(jn.layer_norm, whole)
    with as_on(platform):
        (actual,) = jax.vjp(jax.jit(synced), x)[1](g)
    right = expected(np.moveaxis(g, 0, 1).reshape(6, 96))[0]
    near(np.moveaxis(actual, 0, 1).reshape(6, 96), right, 1e-6)


SYMBOLIC = {
    "b, h, w, 4": lambda x: jn.batch_norm(x, jn.init_batch_stats(4), train=True),
    "b, 4, h, w": functools.partial(jn.instance_norm, channel_axis=1),
    "b, t, 2*c": functools.partial(jn.layer_norm, reduction_axes=(1, 2)),
    "b, 8, 8, 2*c": functools.partial(jn.group_norm, num_groups=2),
}


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("shape", SYMBOLIC)
def test_programs_of_symbolic_shapes_export(platform, shape):
    x = jax.ShapeDtypeStruct(export.symbolic_shape(shape), np.float32)
    assert export.export(jax.jit(SYMBOLIC[shape]), platforms=[platform])(x).platforms == (platform,)


@pytest.mark.parametrize("platform", PLAIN)
def test_nothing_may_be_reduced(platform):
    x = normals(8)
    with as_on(platform):
        near(jn.group_norm(x, num_groups=2)[:4], jn.layer_norm(x[:4]), 1e-6)
        near(jn.moments(x, ()).mean, x, 0)


@pytest.mark.parametrize("platform", PLAIN)
def test_what_is_not_finite_has_no_moments(platform):
    x = normals(64, 3)
    x[5, 0], x[-1, 1], x[0, 2] = np.inf, np.inf, np.nan
    with as_on(platform):
        for m in (jn.moments(x, 0), jn.moments(x.T, 1), jn.moments(x[:1, 2:], 0)):
            assert np.isnan(m.mean).all()
            assert np.isnan(m.var).all()


@in_every_form
def test_one_value_that_counts_is_exactly_zero(form):
    x = normals(144, 7, mean=1e6)
    where = np.arange(7) == generator(2).integers(0, 7, (144, 1))
    with contextlib.nullcontext() if form == "native" else as_on(form):
        y, _ = jax.vjp(jax.jit(lambda x: jn.layer_norm(x, where=where)), x)
    assert (np.asarray(y)[where] == 0).all()


def test_an_explicit_mesh_of_one_device_differentiates_twice():
    devices = {"devices": jax.devices()[:1], "axis_types": (AxisType.Explicit,)}
    mesh = jax.make_mesh((1,), ("d",), **devices)
    with jax.set_mesh(mesh):
        x = jax.device_put(normals(24, 64), NamedSharding(mesh, PartitionSpec("d")))
        slope = jax.grad(lambda x: jax.numpy.sin(jn.layer_norm(x)).sum())
        _, tangent = jax.jit(lambda x: jax.jvp(slope, (x,), (x,)))(x)
    assert np.isfinite(tangent).all()
