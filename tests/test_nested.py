"""A nested dict of inputs is fitted and scaled as its entries are, one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import chances, identical, normals
from devices import mapped

import jaxnorm as jn

pytestmark = pytest.mark.numerical

WIDTHS = {"camera": 3, "joints": {"position": 7, "velocity": 7}}
AXES = {"camera": (1, 2, 3), "joints": -1}  # the camera by pixel
FIT = jn.init_input_stats(WIDTHS)


def observed(*shape, seed=0):
    """Draw observations of a camera of 2 x 2 pixels and of joints."""
    joints = {
        "position": normals(*shape, 7, mean=3.0, seed=seed),
        "velocity": normals(*shape, 7, std=1e-3, seed=seed + 1),
    }
    return {"camera": normals(*shape, 2, 2, 3, mean=0.5, seed=seed + 2), "joints": joints}


X = observed(5)
UPDATE = functools.partial(jn.update_input_stats, FIT)


def entries(tree, *rest):
    """Give the entries of nested dicts side by side."""
    return [
        tuple(one["camera"] for one in (tree, *rest)),
        *(tuple(one["joints"][key] for one in (tree, *rest)) for key in ("position", "velocity")),
    ]


def alike_by_entry(actual, function, *trees):
    """Hold nested dicts to what a function of arrays gives for each entry, bit for bit."""
    assert list(actual) == list(WIDTHS)
    for one, args in zip(entries(actual), entries(*trees), strict=True):
        identical(one[0], function(*args))


def test_a_fit_has_the_keys_of_the_inputs():
    assert FIT.keys() == WIDTHS.keys()
    alike_by_entry(FIT, jn.init_input_stats, WIDTHS)
    widths = jax.tree.map(lambda x: x.shape[-1], X)
    assert widths == WIDTHS


def test_entries_are_fitted_merged_and_scaled_as_arrays_are():
    fit = UPDATE(X)
    alike_by_entry(fit, jn.update_input_stats, FIT, X)
    both = jn.merge_input_stats(fit, UPDATE(observed(3, seed=5)))
    alike_by_entry(both, jn.merge_input_stats, fit, UPDATE(observed(3, seed=5)))
    for scale in (
        functools.partial(jn.standardize_inputs, clip=1.0, epsilon=0.1),
        functools.partial(jn.standardize_inputs, center=False, invert=True),
        functools.partial(jn.min_max_inputs, low=-1.0),
    ):
        alike_by_entry(scale(X, both), scale, X, both)
        alike_by_entry(scale(fit=both, x=X), scale, X, both)


def test_a_step_in_a_scan_normalizes_every_entry():
    def step(fit, x):
        y, fit = jn.normalize_observations(x, fit, decay=0.9)
        return fit, y

    stream = observed(4, 5)
    fit, y = jax.jit(lambda fit, x: jax.lax.scan(step, fit, x))(FIT, stream)
    for alone, x, start, ours in entries(fit, stream, FIT, y):
        expected, expected_y = jax.jit(lambda fit, x: jax.lax.scan(step, fit, x))(start, x)
        for key, value in expected.items():
            np.testing.assert_allclose(alone[key], value, rtol=1e-6, err_msg=key)
        np.testing.assert_allclose(ours, expected_y, atol=1e-5)


def test_axes_and_masks_are_those_of_all_entries_or_of_each():
    where = chances(5, 1)
    x = {"joints": X["joints"]}
    fit = UPDATE({**X}, where={"camera": None, "joints": where})
    identical(fit["camera"], jn.update_input_stats(FIT["camera"], X["camera"]))
    joints = jn.update_input_stats({"joints": FIT["joints"]}, x, where=where)
    identical(joints["joints"], fit["joints"])
    for key in ("position", "velocity"):
        alone = jn.update_input_stats(FIT["joints"][key], X["joints"][key], where=where)
        identical(fit["joints"][key], alone)
    pixels = jn.init_input_stats({**WIDTHS, "camera": (2, 2, 3)})
    pixels = jn.update_input_stats(pixels, X, feature_axis=AXES)
    y = jn.standardize_inputs(X, pixels, feature_axis=AXES)
    np.testing.assert_allclose(np.mean(y["camera"], 0), np.zeros((2, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(np.std(y["camera"], 0), np.ones((2, 2, 3)), rtol=1e-5)


@pytest.mark.long
def test_devices_share_the_fit_of_every_entry():
    x = observed(8, 5)
    fit = mapped("shard_map", lambda x: UPDATE(x, axis_name="i"))(x)
    whole = UPDATE(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), x))
    for ours, expected in entries(fit, whole):
        for key, value in expected.items():
            np.testing.assert_allclose(ours[key][3], value, rtol=1e-5, atol=1e-6, err_msg=key)


def test_entries_are_frozen_by_their_path():
    frozen = jn.freeze_stats(FIT, "joints/velocity")
    fit = jn.update_input_stats(frozen, X)
    identical(fit["joints"]["velocity"], frozen["joints"]["velocity"])
    identical(fit["joints"]["position"], UPDATE(X)["joints"]["position"])


def test_an_entry_may_have_the_name_of_a_statistic():
    """Which is no reason to take inputs for statistics."""
    x = {"mean": X["joints"]["position"], "count": X["joints"]["velocity"]}
    fit = jn.update_input_stats(jn.init_input_stats({"mean": 7, "count": 7}), x)
    identical(fit["mean"], UPDATE(X)["joints"]["position"])
    identical(
        jn.standardize_inputs(x, fit)["count"], jn.standardize_inputs(x["count"], fit["count"])
    )


# Errors


JOINTS = X["joints"]
LACKING = {**X, "joints": {"position": JOINTS["position"]}}
MORE = {**X, "lidar": X["camera"]}
BAD = [
    (ValueError, ["x lacks ['velocity']", "init_input_stats({'position': "], "joints", LACKING, {}),
    (ValueError, ["fit lacks ['lidar']"], None, MORE, {}),
    (ValueError, ["x lacks ['camera']"], None, {"joints": JOINTS}, {}),
    (
        TypeError,
        ["['position', 'velocity']", "(5, 2, 2, 3)"],
        "joints",
        {**X, "joints": X["camera"]},
        {},
    ),
    (TypeError, ["has no fits for these"], "camera", {**X, "camera": JOINTS}, {}),
    (TypeError, ["['camera', 'joints']", "(5, 2, 2, 3)"], None, X["camera"], {}),
    (ValueError, ["(3,)", "(7,)"], "camera", {**X, "camera": JOINTS["position"]}, {}),
    (TypeError, ["int32"], "camera", {**X, "camera": X["camera"].astype(np.int32)}, {}),
    (ValueError, ["where lacks ['camera']"], None, X, {"where": {"joints": None}}),
    (
        ValueError,
        ["feature_axis", "fit lacks ['lidar']"],
        None,
        X,
        {"feature_axis": {**AXES, "lidar": 1}},
    ),
    (ValueError, ["`where`", "(4, 1)"], "camera", X, {"where": np.ones((4, 1))}),
]


@pytest.mark.parametrize(("error", "words", "key", "x", "options"), BAD)
def test_an_entry_that_does_not_fit_is_an_error_that_names_it(error, words, key, x, options):
    calls = (jn.update_input_stats, (FIT, x)), (jn.min_max_inputs, (x, FIT))
    for function, args in calls:
        with pytest.raises(error) as caught:
            function(*args, **options)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        notes = getattr(caught.value, "__notes__", [])
        assert notes[-1:] == ([f"in the entry {key!r}"] if key else []), notes


def test_what_is_no_dict_of_widths_or_of_fits_is_an_error():
    with pytest.raises(ValueError, match="num_features=0 must be positive") as caught:
        jn.init_input_stats({"joints": {"position": 0}})
    assert caught.value.__notes__ == ["in the entry 'position'", "in the entry 'joints'"]
    with pytest.raises(TypeError, match=r"\(5, 2, 2, 3\); give the width, x.shape\[-1\]"):
        jn.init_input_stats(X)
    with pytest.raises(ValueError, match=r"keys \['mean', 'var'\].*rename"):
        jn.init_input_stats({"joints": {"mean": 2, "var": 3}})
    for pair in ((FIT, FIT["camera"]), (FIT["camera"], FIT)):
        with pytest.raises(TypeError, match=r"'camera', 'joints'"):
            jn.merge_input_stats(*pair)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        jn.update_input_stats(FIT)
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        jn.update_input_stats(FIT, X, -1)
    with pytest.raises(TypeError, match="exchange the two"):
        jn.update_input_stats(jnp.ones(3), FIT["camera"])
