"""Every normalization of the experiments computes what it says, where it says, when it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KEY, normals
from components import NORMS, PEERS, norm, placement
from devices import over_devices

from experiments.norms.base import Context, Normalization, Placement, Places, Scope

RUNNING = [name for name in NORMS if norm(name).of_the_batch]
BATCHES = [name for name in RUNNING if name != "online"]  # whose statistics are updated once a step
CHANNELS = 8
IMAGES = normals(16, 3, 3, CHANNELS, mean=1.0)
ROWS = normals(16, CHANNELS, mean=1.0)
PLACES = Places("cnn", [16, 32, 64], 4)
QUIET = {"mean_noise": 0.0, "scale_noise": 1.0, "example_noise": 0.0}


def run(place, x, mask=None, *, train=True, variables=None, key=KEY, **options):
    """Apply a place; give its result and its variables after that."""
    layer = place(name="norm_0", **options)
    variables = variables or layer.init(KEY, x, train=False)
    y, new = layer.apply(
        variables, x, mask, train=train, mutable=["batch_stats"], rngs={"noise": key}
    )
    return y, {**variables, **new}


def standardized(x, axes, epsilon):
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + epsilon)


def grouped(x, size):
    """Give the groups of channels their axis."""
    return np.reshape(x, (*x.shape[:-1], -1, size))


def streamed(x):
    """Give each example by the running statistics of those before it."""
    mean, var = np.zeros(x.shape[-1]), np.ones(x.shape[-1])
    y, axes = np.empty_like(x), (*range(x.ndim - 2),)
    for t, example in enumerate(x):
        y[t] = (example - mean) / np.sqrt(var + 1e-5)
        delta = example.mean(axes) - mean
        var = 0.99 * var + 0.01 * example.var(axes) + 0.0099 * delta**2
        mean = mean + 0.01 * delta
    return y


EXPECTED = {
    "none": lambda x: x,
    "batch": lambda x: standardized(x, (*range(x.ndim - 1),), 1e-5),
    "batch_renorm": lambda x: standardized(x, (*range(x.ndim - 1),), 1e-5),  # closed at first
    "ghost_batch": lambda x: np.concatenate(
        [standardized(ghost, (*range(x.ndim - 1),), 1e-5) for ghost in (x[:8], x[8:])]
    ),
    "online": streamed,
    "layer": lambda x: standardized(x, (*range(1, x.ndim),), 1e-6),
    "rms": lambda x: x / np.sqrt((x**2).mean((*range(1, x.ndim),), keepdims=True) + 1e-6),
    "group": lambda x: standardized(grouped(x, 2), (*range(1, x.ndim - 1), x.ndim), 1e-6).reshape(
        x.shape
    ),
    "instance": lambda x: standardized(x, (1, 2), 1e-6),
}


def test_every_norm_is_tested():
    assert set(NORMS) == set(EXPECTED) | {"noisy_batch"}
    assert set(RUNNING) == {"batch", "batch_renorm", "ghost_batch", "noisy_batch", "online"}


@pytest.mark.parametrize("shape", ["rows", "images"])
@pytest.mark.parametrize("name", EXPECTED)
def test_a_norm_is_what_numpy_says(name, shape):
    x = ROWS if shape == "rows" else IMAGES
    if shape == "rows" and norm(name).needs_positions:
        pytest.skip("has no positions")
    y, _ = run(placement(name), x)
    np.testing.assert_allclose(y, EXPECTED[name](np.asarray(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_what_ours_is(name):
    weights = np.cos(np.arange(IMAGES.size, dtype=np.float32)).reshape(IMAGES.shape)

    def of(name):
        place = placement(name)
        variables = place(name="norm_0").init(KEY, IMAGES, train=False)

        def loss(params, x):
            y, after = run(place, x, variables={**variables, "params": params})
            return (y * weights).sum(), (y, after.get("batch_stats", {}))

        gradients = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        return gradients(variables["params"], IMAGES)

    theirs, ours = of(name), of(name.removeprefix("flax_"))
    # Flax's variance, the mean square less the squared mean, loses so many units more.
    of_channels = np.asarray(IMAGES, np.float64).mean((1, 2)), IMAGES.var((1, 2))
    lost = (of_channels[0] ** 2 / of_channels[1]).max()

    def near(one, other):
        ulp = np.finfo(np.float32).eps * abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=(8 + lost) * ulp)

    jax.tree.map(near, theirs, ours)


@pytest.mark.long
def test_peers_have_the_values_of_ours_and_a_mask():
    for name in PEERS:
        peer, ours = dataclasses.asdict(norm(name)), norm(name.removeprefix("flax_"))
        assert peer == {key: getattr(ours, key) for key in peer}
        assert not [*norm(name).problems(16), *norm(name).problems_in(PLACES)]
    mask = np.arange(16) < 12
    (y, masked), (z, removed) = (
        run(placement("flax_batch"), ROWS, mask),
        run(placement("flax_batch"), ROWS[mask]),
    )
    np.testing.assert_allclose(y[mask], z, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), masked, removed)


@pytest.mark.parametrize("name", NORMS)
def test_evaluation_uses_the_running_statistics_and_changes_none(name):
    place = placement(name)
    _, trained = run(place, IMAGES)
    y, after = run(place, IMAGES, train=False, variables=trained)
    jax.tree.map(np.testing.assert_array_equal, after, trained)
    if name not in RUNNING:
        np.testing.assert_allclose(y, EXPECTED[name](np.asarray(IMAGES)), rtol=1e-4, atol=1e-5)
        return
    x, axes = np.asarray(IMAGES), (0, 1, 2)
    stats = trained["batch_stats"]
    if name != "online":  # of which tests/test_online.py knows
        np.testing.assert_allclose(stats["mean"], 0.1 * x.mean(axes), rtol=1e-5)
        np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var(axes), rtol=1e-5)
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_a_place_has_its_parameters_and_a_bias_where_it_says(name):
    place = placement(name)
    for use_bias in (True, False):
        layer = place(name="norm_0", use_bias=use_bias)
        params = layer.init(KEY, IMAGES, train=False).get("params", {})
        expected = {"scale"} if name != "none" else set()
        assert set(params) == expected | ({"bias"} if place.adds_bias and use_bias else set())
    assert place.adds_bias == (name not in ("none", "rms"))


def test_the_first_scale_is_chosen():
    layer = placement("group")(name="norm_0", scale_init=jax.nn.initializers.zeros)
    y, variables = layer.init_with_output(KEY, IMAGES, train=False)
    np.testing.assert_array_equal(variables["params"]["scale"], np.zeros(CHANNELS))
    np.testing.assert_array_equal(y, np.zeros(IMAGES.shape))


@pytest.mark.parametrize("name", NORMS)
def test_masked_examples_change_nothing_whatever_they_hold(name):
    changes = QUIET if name == "noisy_batch" else {}
    mask = np.arange(16) % 8 < 5
    x = np.where(mask[:, None, None, None], IMAGES, np.nan)
    y, masked = run(placement(name, **changes), x, mask)
    ghosts = {"ghost_size": 5} if name == "ghost_batch" else {}
    z, removed = run(placement(name, **changes, **ghosts), IMAGES[mask])
    np.testing.assert_allclose(y[mask], z, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), masked, removed)


@pytest.mark.parametrize("name", NORMS)
def test_a_place_shows_what_goes_in_and_comes_out(name):
    layer = placement(name)(name="norm_0")
    variables = layer.init(KEY, IMAGES, train=False)
    assert "intermediates" not in variables
    y, kept = layer.apply(variables, IMAGES, train=False, mutable=["intermediates"])
    np.testing.assert_array_equal(kept["intermediates"]["input"][0], IMAGES)
    np.testing.assert_array_equal(kept["intermediates"]["output"][0], y)


@pytest.mark.parametrize("name", NORMS)
def test_bfloat16_comes_out_where_it_is_the_runs(name):
    x = IMAGES.astype(jnp.bfloat16)
    y, variables = run(placement(name, dtype=jnp.bfloat16), x)
    assert y.dtype == jnp.bfloat16
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} <= {"float32", "int32"}
    if name in EXPECTED:
        np.testing.assert_allclose(
            y.astype(jnp.float32), EXPECTED[name](np.asarray(x, np.float32)), rtol=0.02, atol=0.02
        )


@pytest.mark.long
def test_ghosts_follow_the_scope_or_count_examples_of_several_rows():
    x = np.asarray(ROWS)
    y, _ = run(placement("batch", scope=Scope(num_ghosts=4)), x)
    quarters = [standardized(quarter, 0, 1e-5) for quarter in np.split(x, 4)]
    np.testing.assert_allclose(y, np.concatenate(quarters), rtol=1e-4, atol=1e-5)
    y, _ = run(placement("ghost_batch", ghost_size=2), x, tokens=2)
    np.testing.assert_allclose(y, np.concatenate(quarters), rtol=1e-4, atol=1e-5)
    assert norm("ghost_batch", ghost_size=2).batch_multiple == 2
    assert norm("batch").batch_multiple == 1


@pytest.mark.parametrize("groups", [None, [[0, 1], [2, 3]]])
def test_statistics_are_those_of_the_devices_of_the_scope(groups):
    scope = Scope(axis_name="devices", axis_index_groups=groups)
    layer = placement("batch", scope=scope)(name="norm_0")
    parts = ROWS.reshape(4, 4, CHANNELS)
    variables = layer.init(KEY, parts[0], train=False)

    def apply(x):
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    devices = jax.devices()[:4]
    y = jax.pmap(apply, axis_name="devices", devices=devices)(parts).reshape(ROWS.shape)
    wholes = np.split(np.asarray(ROWS), 1 if groups is None else 2)
    expected = np.concatenate([standardized(whole, 0, 1e-5) for whole in wholes])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BATCHES)
def test_without_a_momentum_batches_are_merged_exactly(name):
    changed = dataclasses.replace(norm(name), momentum=None)
    place = Placement(changed, Context(Scope(), 100, jnp.float32))
    variables = None
    for part in (ROWS[:8], ROWS[8:]):
        _, variables = run(place, part, variables=variables)
    stats = variables["batch_stats"]
    assert stats["count"] == 16
    np.testing.assert_allclose(stats["mean"], ROWS.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], ROWS.var(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("step", "r_max", "d_max"), [(0, 1, 0), (50, 1, 0), (70, 2, 2.5), (90, 3, 5), (99, 3, 5)]
)
def test_renorm_opens_between_two_fractions_of_the_run(step, r_max, d_max):
    place = placement("batch_renorm")
    x = np.asarray(ROWS) * 9 + 20  # both corrections are at their limits
    layer = place(name="norm_0")
    variables = layer.init(KEY, x, train=False)
    stats = {**variables["batch_stats"], "steps": np.int32(step)}
    y, _ = run(place, x, variables={**variables, "batch_stats": stats})
    expected = standardized(x, 0, 1e-5) * r_max + d_max
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def noisy():
    """What a place with the noise of its file makes of zeros, one step after another."""
    zeros = np.zeros((500, CHANNELS), np.float32)
    layer = placement("noisy_batch")(name="norm_0")
    variables = layer.init(KEY, zeros, train=False)
    x = np.where(np.arange(500)[:, None] % 2, 1, -1) * np.ones(CHANNELS, np.float32)

    def apply(key):
        return layer.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"noise": key})[
            0
        ]

    return np.asarray(jax.jit(jax.vmap(apply))(jax.random.split(KEY, 200)))


@pytest.mark.long
def test_noise_is_drawn_for_each_step_channel_and_example(noisy):
    up, down = noisy[:, 1::2], noisy[:, ::2]  # scale + mean, mean - scale
    of_steps = (up.mean(1) + down.mean(1)) / 2, (up.mean(1) - down.mean(1)) / 2
    for values, low, high in zip(of_steps, (-0.5, 1.0), (0.5, 1.25), strict=True):
        assert low - 0.03 < values.min() < low + 0.05
        assert high - 0.05 < values.max() < high + 0.03
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.03)
        np.testing.assert_allclose(values.std(), (high - low) / 12**0.5, rtol=0.06)
    within = up - up.mean(1, keepdims=True)
    np.testing.assert_allclose(within.var(), 2 * 0.1**2 / 3, rtol=0.03)
    assert abs(within).max() < 0.23


@pytest.mark.long
def test_noise_of_a_step_is_common_to_examples_where_they_have_none_of_their_own():
    place = placement("noisy_batch", example_noise=0.0)
    y, _ = run(place, IMAGES)
    slope = (y - y.mean((0, 1, 2))) / EXPECTED["batch"](np.asarray(IMAGES))
    np.testing.assert_allclose(slope, np.broadcast_to(slope.mean((0, 1, 2)), y.shape), rtol=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("way", ["pmap", "shard_map", "unchecked"])
def test_devices_share_the_noise_of_channels_and_draw_that_of_their_examples(way):
    rows = np.broadcast_to(ROWS[:4], (8, 4, CHANNELS))  # the same on every device

    def made(**noise):
        place = placement("noisy_batch", scope=Scope(axis_name="i"), **noise)
        layer = place(name="norm_0")
        variables = layer.init(KEY, ROWS, train=False)

        def apply(x):
            return layer.apply(
                variables, x, train=True, mutable=["batch_stats"], rngs={"noise": KEY}
            )[0]

        return np.asarray(over_devices(way, apply, rows))

    of_channels = made(example_noise=0.0)
    np.testing.assert_array_equal(of_channels, np.broadcast_to(of_channels[:1], rows.shape))
    assert (abs(of_channels - made(**QUIET)).max((0, 1)) > 1e-3).all()
    own = made(**{**QUIET, "example_noise": 0.1}) - made(**QUIET)
    distinct = np.unique(own.reshape(-1, CHANNELS).round(5), axis=0)
    assert len(distinct) == 8 * 4


def test_noise_changes_no_statistics_and_no_evaluation():
    _, noisy = run(placement("noisy_batch"), IMAGES)
    _, plain = run(placement("batch"), IMAGES)
    jax.tree.map(np.testing.assert_array_equal, noisy, plain)
    layer = placement("noisy_batch")(name="norm_0")
    y = layer.apply(noisy, IMAGES, train=False)  # needs no key
    z, _ = run(placement("batch"), IMAGES, train=False, variables=plain)
    np.testing.assert_array_equal(y, z)
    y, _ = run(placement("noisy_batch", **QUIET), IMAGES)
    z, _ = run(placement("batch"), IMAGES)
    np.testing.assert_allclose(y, z, rtol=1e-6)


@pytest.mark.parametrize("name", BATCHES)
def test_running_statistics_freeze_from_a_fraction_of_the_run(name):
    changes = QUIET if name == "noisy_batch" else {}
    _, trained = run(placement(name, **changes), IMAGES)

    def step(frozen_from, step):
        place = placement(name, frozen_from=frozen_from, step=step, total_steps=20, **changes)
        return run(place, IMAGES * 2, variables=trained)

    moving, frozen = (jax.jit(lambda at: step(0.5, at))(at) for at in (9, 10))
    never = step(None, 10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), moving, never)
    evaluated = run(placement(name), IMAGES * 2, train=False, variables=trained)
    np.testing.assert_allclose(frozen[0], evaluated[0], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, frozen[1], trained)
    assert (moving[1]["batch_stats"]["mean"] != trained["batch_stats"]["mean"]).all()


def test_frozen_statistics_are_constants_of_the_gradient():
    _, trained = run(placement("batch"), ROWS)
    weights = normals(*ROWS.shape)

    def gradient(step):
        layer = placement("batch", frozen_from=0.5, step=step)(name="norm_0")

        def of(x):
            y, _ = layer.apply(trained, x, train=True, mutable=["batch_stats"])
            return (y * weights).sum()

        return jax.grad(of)(ROWS)

    deviation = np.sqrt(trained["batch_stats"]["var"] + 1e-5)
    np.testing.assert_allclose(gradient(50), weights / deviation, rtol=1e-5)
    assert abs(gradient(49).sum(0)).max() < 1e-4  # through the mean of the batch


def test_freezing_needs_the_step_in_training_alone():
    place = placement("batch", frozen_from=0.5)
    with pytest.raises(ValueError, match=r"give Context\(step="):
        run(place, ROWS)
    run(place, ROWS, train=False)


@pytest.mark.parametrize("name", NORMS)
def test_the_files_have_no_problems(name):
    assert not [*norm(name).problems(16), *norm(name).problems_in(PLACES)]


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("batch", {"momentum": 1.5}, "norm.momentum is 1.5; give a number from 0 to 1"),
        ("batch", {"epsilon": 0.0}, "norm.epsilon is 0.0; give a positive number"),
        ("layer", {"epsilon": -1.0}, "norm.epsilon is -1.0; give a positive number"),
        ("batch", {"frozen_from": 2.0}, "norm.frozen_from is 2.0; give a number from 0 to 1"),
        (
            "ghost_batch",
            {"ghost_size": 6},
            "norm.ghost_size is 6, which does not divide [16]; give one of 1, 2, 4, 8, 16",
        ),
        ("batch_renorm", {"r_max": 0.5}, "norm.r_max is 0.5; give 1 or more"),
        ("batch_renorm", {"d_max": -1.0}, "norm.d_max is -1.0; give 0 or more"),
        (
            "batch_renorm",
            {"relax_to": 0.1},
            "norm.relax_from is 0.5, after norm.relax_to (0.1); "
            "give an earlier fraction of the run",
        ),
        ("online", {"momentum": 2.0}, "norm.momentum is 2.0; give a number from 0 to 1"),
        (
            "online",
            {"backward_decay": -1.0},
            "norm.backward_decay is -1.0; give a number from 0 to 1",
        ),
        ("noisy_batch", {"scale_noise": 0.5}, "norm.scale_noise is 0.5; give 1 or more"),
        ("noisy_batch", {"mean_noise": -0.5}, "norm.mean_noise is -0.5; give 0 or more"),
        ("noisy_batch", {"example_noise": -0.1}, "norm.example_noise is -0.1; give 0 or more"),
        (
            "group",
            {"num_groups": 5},
            "norm.num_groups is 5, which does not divide [16, 32, 64]; give one of 1, 2, 4, 8, 16",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_right_is_told(name, changes, told):
    changed = norm(name, **changes)
    assert [*changed.problems(16), *changed.problems_in(PLACES)] == [told]


def test_what_has_nothing_to_measure_is_told():
    features = Places("mlp", [8, 8])
    [told] = norm("instance").problems_in(features)
    assert told.startswith("instance normalization needs positions, and model=mlp has none; give ")
    [told] = norm("group", num_groups=8).problems_in(features)
    assert "norm.num_groups is 8, which leaves one value in a group of model=mlp" in told
    assert not [*norm("group", num_groups=4).problems_in(features)]


def test_a_place_is_of_its_norm():
    assert isinstance(placement("layer")(name="norm_3"), Normalization)
    assert placement("layer")(name="norm_3").name == "norm_3"
