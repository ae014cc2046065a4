"""Masks in the native library: its handlers beside float64 NumPy, and that masks reach them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import chances, every_norm, fresh, gradients, library, near, normals, parameters
from test_kernels import both_forms, calls
from test_kernels_native import EPSILON, backward_fused, drawn, none, normalize

import jaxnorm as jn
from jaxnorm.kernels.library import library as native_library
from jaxnorm.kernels.library import status
from jaxnorm.kernels.view import MaskView, View, view_of

pytestmark = pytest.mark.skipif(not native_library().loaded, reason=status())

# A view, and the axes that the mask varies along.
VIEWS = {
    "rows, several for a wide row": ((1, 700, 64, 1, 1), "R"),
    "rows of three channels": ((1, 1000, 3, 1, 1), "R"),
    "wide rows": ((1, 40, 1500, 1, 1), "R"),
    "ghosts": ((4, 50, 20, 1, 1), "AR"),
    "ghosts alike": ((4, 50, 20, 1, 1), "R"),
    "groups": ((4, 60, 8, 4, 1), "AR"),
    "short groups, whole examples": ((5, 12, 4, 2, 9), "A"),
    "short groups, positions": ((5, 12, 4, 2, 9), "RT"),
    "layer": ((40, 1, 1, 1000, 1), "A"),
    "layer over positions": ((6, 30, 1, 300, 1), "AR"),
    "channels first": ((1, 8, 5, 1, 300), "RT"),
    "channels first, examples": ((1, 8, 5, 1, 300), "R"),
    "groups, channels first": ((4, 1, 8, 4, 49), "AT"),
    "in pieces": ((2, 1, 2, 5, 30_001), "AT"),
    "layer, channels first": ((6, 96, 49, 1, 1, True), "A"),
    "layer, channels first, positions": ((6, 96, 49, 1, 1, True), "AG"),
}
DTYPES = {"float32": 3e-6, "bfloat16": 1e-2}


def drawn_mask(view, along):
    """Draw a mask that varies along axes of the view, with a slice in which nothing counts."""
    shape = [size if name in along else 1 for name, size in zip("ARGST", view[:5], strict=True)]
    mask = np.random.default_rng(5).random(shape) < 0.6
    mask.flat[0] = True
    if "A" in along:
        mask[-1] = False
    return mask


def expected(x, g, mask, scale, bias):
    """y, mean, var, dx, dscale and dbias in float64, where the others are finite or spoiled."""
    axes, by_channel = (1, 3, 4), tuple(axis for axis in range(5) if scale.shape[axis] == 1)
    mask = np.broadcast_to(mask, x.shape)
    count = mask.sum(axes, keepdims=True)

    def mean(values):
        return np.where(mask, values, 0).sum(axes, keepdims=True) / np.maximum(count, 1)

    finite = np.isfinite(x)
    clean = np.where(finite, x, 0)
    center = mean(clean)
    var = mean((clean - center) ** 2)
    rstd = np.where(count > 0, 1 / np.sqrt(var + EPSILON), 0)
    of_x = np.where(finite, (clean - center) * rstd, 0)
    v = np.where(finite, g, 0)
    averages = [
        (scale * v * part).sum(axes, keepdims=True) / np.maximum(count, 1) for part in (1, of_x)
    ]
    dx = rstd * (scale * v - np.where(mask, averages[0] + of_x * averages[1], 0))
    sums = [part.sum(by_channel, keepdims=True) for part in (v * of_x, g)]
    return of_x * scale + bias, center, var, dx, *sums


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VIEWS)
def test_normalizing_and_its_derivative_with_a_mask(name, dtype):
    view, along = VIEWS[name]
    x, g, scale, bias = drawn(view, dtype)
    shape, mask = view[:5], drawn_mask(view, along)
    spoiled = ~np.broadcast_to(mask, shape) & (np.random.default_rng(6).random(shape) < 0.3)
    x = jnp.asarray(np.where(spoiled.ravel(), np.nan, x), dtype)
    wanted = expected(
        *(np.asarray(part, np.float64).reshape(shape) for part in (x, g)),
        mask,
        *(np.asarray(part, np.float64) for part in (scale, bias)),
    )
    given = {"mask": mask, "along": along}
    y, *measured = normalize(x, view, scale, bias, **given)
    derivatives = backward_fused(x, g, view, measured, scale, **given)
    mean, correction, var = measured
    found = [y, np.float64(mean) + np.float64(correction), var, *derivatives]
    exact = DTYPES["float32"]
    tolerances = [DTYPES[dtype], exact, exact, DTYPES[dtype], 10 * exact, 10 * exact]
    for actual, right, tolerance in zip(found, wanted, tolerances, strict=True):
        actual = np.asarray(actual, np.float64).reshape(right.shape)
        assert np.abs(actual - right).max() <= tolerance * max(1, np.abs(right).max())


@pytest.mark.parametrize("order", ["drawn", "sorted"])
@pytest.mark.parametrize("name", ["rows, several for a wide row", "layer", "channels first"])
def test_a_mean_far_above_the_deviation_and_what_is_masked_far_away(name, order):
    view, along = VIEWS[name]
    mask = drawn_mask(view, along)
    values = np.random.default_rng(1).normal(size=view[:5]) + 1e6
    if order == "sorted":
        values = np.sort(values.ravel()).reshape(view[:5])
    x = np.where(mask, values, -3e30).astype(np.float32)
    y, *_ = normalize(x.ravel(), view, mask=mask, along=along)
    ones = np.ones((1, 1, 1, 1, 1))
    clean = np.where(mask, x, 0).astype(np.float64)
    right, *_ = expected(clean, clean, mask, ones, 0 * ones)
    counts = np.broadcast_to(mask, x.shape)
    error = np.abs(np.asarray(y, np.float64).reshape(x.shape) - right)[counts]
    assert (error <= 1e-5 * np.maximum(1, np.abs(right[counts]))).all()


def test_masks_that_do_not_fit():
    view = (1, 16, 4, 1, 1)
    x = np.zeros(64, np.float32)
    for mask, along, message in [
        (np.ones(9, bool), "R", "mask has 9 values, which are no rows of 16 for 1 slices"),
        (np.ones(16, np.float32), "R", "mask must be boolean"),
        (np.ones((16, 4), bool), "RG", "varies along R or T"),
    ]:
        with pytest.raises(jax.errors.JaxRuntimeError, match=message):
            jax.block_until_ready(normalize(x, view, mask=mask, along=along))
    options = {"mask": np.ones((1, 4), bool), "along": "G"}
    with pytest.raises(jax.errors.JaxRuntimeError, match="scale and bias are by row"):
        jax.block_until_ready(normalize(x, view, np.ones((1, 4), np.float32), none(), **options))


MASKED_VIEWS = [
    # the input, reduced, features, the mask: the view, and what the mask is broadcast to
    (((8, 5, 4), (0, 1), (2,), (8, 1, 1)), View(R=40, G=4, mask=MaskView((8, 1, 1), "R", 8))),
    (((8, 5, 4), (0, 1), (2,), (1, 5, 1)), View(R=40, G=4, mask=MaskView((8, 5, 1), "R", 40))),
    (((8, 5, 4), (2,), (2,), (8, 1, 1)), View(A=40, S=4, mask=MaskView((8, 1, 1), "A"))),
    (((8, 5, 4), (0, 1), (2,), (1, 1, 1)), View(R=40, G=4, mask=MaskView((1, 1, 1), ""))),
    (((8, 4, 5), (0, 2), (1,), (8, 1, 1)), View(R=8, G=4, T=5, mask=MaskView((8, 1, 1), "R", 8))),
    (((8, 4, 5), (0, 2), (1,), (8, 1, 5)), View(R=8, G=4, T=5, mask=MaskView((8, 1, 5), "RT", 8))),
    (((8, 5, 4), (2,), (2,), (8, 5, 1)), View(A=40, S=4, mask=MaskView((8, 5, 1), "A"))),
    (((8, 5, 4), (1, 2), (), (8, 5, 1)), View(A=8, T=20, mask=MaskView((8, 5, 4), "AT"))),
    (
        ((8, 5, 6), (1,), (1,), (8, 1, 6)),
        View(A=8, R=5, G=6, by_row=True, mask=MaskView((8, 1, 6), "AG")),
    ),
    (((8, 5, 4), (0, 1), (2,), (1, 1, 4)), None),
    (((8, 5, 4), (2,), (2,), (8, 5, 4)), None),
    (((8, 5, 6), (1,), (1,), (8, 5, 6)), None),
]


@pytest.mark.parametrize(("arguments", "expected"), MASKED_VIEWS)
def test_the_view_of_a_mask(arguments, expected):
    *of_input, mask = arguments
    assert view_of(*of_input, mask=mask) == expected


# Masks reach the handlers


X, G = normals(6, 5, 8, mean=2.0), normals(6, 5, 8, seed=3)
ROWS = chances(6, 5, 1)
OPTIONS = {"group": {"num_groups": 2}}


def masked(name):
    """The value, the statistics, and all gradients with a mask that is alike along the channels."""
    args, options = parameters(8), OPTIONS.get(name, {})

    def step(x, g):
        out = library(name, x, *args, where=ROWS, **options)
        return out, gradients(name, x, *args, g, where=ROWS, **options)

    return step


@pytest.mark.parametrize("name", every_norm)
def test_a_mask_runs_the_native_form_both_ways(name):
    step = masked(name)
    called = calls(step, X, G)
    assert called & {"jaxnorm_normalize", "jaxnorm_apply"}
    assert called & {"jaxnorm_backward", "jaxnorm_backward_fused"}
    text = jax.jit(step).lower(X, G).as_text()
    if name not in ("ghost", "renorm"):  # which merge moments, and correct them
        assert "stablehlo.reduce" not in text, "a pass over the mask or over x beside the handlers"


@pytest.mark.parametrize("name", ["batch", "ghost", "layer"])
def test_under_vmap_each_has_its_own_mask(name):
    masks = np.stack([ROWS, ~ROWS])
    args, stats = parameters(8), fresh(name, 8) if name != "layer" else None

    def value(x, where):
        return library(name, x, *args, where=where, **({"stats": stats} if stats else {}))[0]

    several = jax.jit(jax.vmap(value))(np.stack([X, X + 1]), masks)
    assert calls(jax.vmap(value), np.stack([X, X + 1]), masks)
    for at in range(2):
        near(several[at], value(X + at, masks[at]))
    near(jax.jit(jax.vmap(value, (0, None)))(np.stack([X, X + 1]), ROWS)[1], value(X + 1, ROWS))


def test_forward_mode_and_a_second_derivative_are_the_plain_forms():
    def loss(x):
        y = jn.layer_norm(x, parameters(8)[0], where=ROWS)
        return jnp.sum(jnp.where(ROWS, y, 0) ** 3)

    def derivatives(x):
        return jax.jvp(loss, (x,), (G,))[1], jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), G))(x)

    native_form, plain = both_forms(derivatives, X)
    for actual, right in zip(native_form, plain, strict=True):
        near(actual, right, 1e-4)


def test_a_gradient_is_finite_where_only_what_does_not_count_varies_and_is_huge():
    x = np.where(X > 2, 1e30, -3e30).astype(np.float32)
    x[:, 0] = 1.0
    where = np.zeros((6, 5, 1), bool)
    where[:, 0] = True

    def gradient(x):
        return jax.vjp(lambda x: jn.instance_norm(x, where=where), x)[1](G)[0]

    right = (G[:, 0] - G.sum(1, dtype=np.float64)) * 1000  # 1 / sqrt(epsilon)
    with jn.standard_primitives():
        derived_by_jax = gradient(x)
    for form in (*both_forms(gradient, x), derived_by_jax):
        np.testing.assert_allclose(form[:, 0], right, rtol=1e-5, atol=1e-2)
