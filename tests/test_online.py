"""Online normalization beside a float64 transcription of the paper's algorithm, over many steps."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import KEY, alike, chances, identical, near, normals, parameters, relative
from environment import generator
from flax import nnx
from flax.training.train_state import TrainState
from hypothesis import given
from hypothesis import strategies as st

import jaxnorm as jn
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnnx

pytestmark = pytest.mark.numerical

CONTROL = ("control_y", "control_x")
OVERWRITTEN = "_overwrite_with_gradient"
DECAYS = {"forward_decay": 0.9, "backward_decay": 0.8}


def paper(x, g, stats, forward_decay, backward_decay, epsilon=1e-5, where=None):
    """Stream the examples of axis 0, channels last: y, the gradient of x, the statistics."""
    a, b = forward_decay, backward_decay
    x, g = np.float64(x), np.float64(g)
    where = np.broadcast_to(True if where is None else where, x.shape)
    mean, var, of_y, of_x = (np.float64(stats[key]) for key in ("mean", "var", *CONTROL))
    mean, var, of_y, of_x = mean.copy(), var.copy(), of_y.copy(), of_x.copy()
    y, dx = np.zeros_like(x), np.zeros_like(x)
    for t, c in np.ndindex(x.shape[0], x.shape[-1]):
        counts = where[t, ..., c]
        values, grads = x[t, ..., c][counts], g[t, ..., c][counts]
        if values.size == 0:
            continue
        s = np.sqrt(var[c] + epsilon)
        out = (values - mean[c]) / s
        h = grads - (1 - b) * of_y[c] * out
        of_y[c] += np.mean(h * out)
        back = h / s - (1 - b) * of_x[c]
        of_x[c] += np.mean(back)
        delta = np.mean(values) - mean[c]
        var[c] = a * var[c] + (1 - a) * np.var(values) + a * (1 - a) * delta**2
        mean[c] += (1 - a) * delta
        y[t, ..., c][counts], dx[t, ..., c][counts] = out, back
    return y, dx, {"mean": mean, "var": var, "control_y": of_y, "control_x": of_x}


@functools.cache
def compiled(**options):
    """Compile a step: y, the gradients of x, scale and bias, and all new statistics."""

    def step(x, g, stats, scale, bias, where=None):
        def output(x, stats, scale, bias):
            y, new = jn.online_norm(x, stats, scale, bias, train=True, where=where, **options)
            return y, new

        y, pullback, new = jax.vjp(output, x, stats, scale, bias, has_aux=True)
        dx, moved, dscale, dbias = pullback(g)
        return y, (dx, dscale, dbias), new | {key: moved[key] for key in CONTROL}

    return jax.jit(step)


def streamed(x, g, size, scale=None, bias=None, *, stats=None, where=None, dtype=np.float32):
    """Run steps of `size` examples; y and the gradients of all, the statistics after the last."""
    stats = jn.init_online_stats(x.shape[-1], dtype=dtype) if stats is None else stats
    outputs, totals = [], []
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        here = None if where is None else where[part]
        y, grads, stats = compiled(**DECAYS)(x[part], g[part], stats, scale, bias, here)
        outputs.append((y, grads[0]))
        totals.append(grads[1:])
    y, dx = (np.concatenate(part) for part in zip(*outputs, strict=True))
    return y, (dx, *jax.tree.map(lambda *parts: sum(parts), *totals)), stats


@pytest.mark.parametrize("shape", [(120, 3), (120, 4, 3)], ids=str)
def test_a_hundred_steps_are_those_of_the_paper(shape):
    scale, bias = parameters(3)
    x = normals(*shape, mean=np.array([0.5, -2.0, 1.0]), std=np.array([1.0, 0.5, 2.0]))
    g = normals(*shape, seed=1)
    y, (dx, dscale, dbias), stats = streamed(x, g, 1, scale, bias)
    out, back, expected = paper(x, g * np.float64(scale), jn.init_online_stats(3), 0.9, 0.8)
    positions = tuple(range(len(shape) - 1))
    near(y, out * scale + bias, 2e-5)
    near(dx, back, 5e-5)
    near(dscale, np.sum(g * out, positions), 1e-3)
    near(dbias, np.sum(np.float64(g), positions), 1e-3)
    near(stats, expected, 5e-5)


@pytest.mark.parametrize("size", [3, 24])
def test_a_batch_is_its_examples_one_after_the_other(size):
    x, g = normals(24, 2, 3), normals(24, 2, 3, seed=1)
    one, many = streamed(x, g, 1), streamed(x, g, size)
    alike(many[0], one[0])
    alike(many[2], one[2])
    near(many[1][0], one[1][0], 1e-6)
    near(many[1][1], one[1][1], 1e-5)


def test_masked_positions_are_as_if_they_were_not_there():
    x, g = normals(30, 4, 3), normals(30, 4, 3, seed=1)
    where = chances(30, 4, 1) & (np.arange(30) % 7 > 0)[:, None, None]
    out, back, expected = paper(x, g, jn.init_online_stats(3), 0.9, 0.8, where=where)
    x = np.where(where, x, np.where(chances(30, 4, 3, seed=2), np.nan, 1e3)).astype(np.float32)
    y, (dx, _, _), stats = streamed(x, g, 10, where=where)
    assert np.all(np.isfinite(y))
    near(y * where, out, 2e-5)
    near(dx, back, 2e-5)
    near(stats, expected, 5e-5)


@given(cut=st.integers(0, 8), seed=st.integers(0, 99))
def test_a_stream_may_be_cut_anywhere(cut, seed):
    x, g = normals(8, 2, 3, seed=seed), normals(8, 2, 3, seed=seed + 100)
    where = np.broadcast_to(chances(8, 2, 1, seed=seed), x.shape)
    first = (np.arange(8) < cut)[:, None, None]
    whole = streamed(x, g, 8, where=where)
    before = streamed(x, g, 8, where=where & first)
    after = streamed(x, g, 8, stats=before[2], where=where & ~first)
    near(np.where(first, before[0], after[0]) * where, whole[0] * where, 1e-5)
    near(before[1][0] + after[1][0], whole[1][0], 1e-5)
    near(after[2], whole[2], 1e-5)


def test_where_nothing_counts_nothing_moves():
    x, stats = normals(2, 3, 2), streamed(normals(5, 2), normals(5, 2, seed=1), 5)[2]
    y, (dx, _, _), new = streamed(x, np.ones_like(x), 2, stats=stats, where=np.zeros((2, 1, 1)))
    assert np.all(np.isfinite(y))
    np.testing.assert_array_equal(dx, 0)
    alike(new, stats, 1)


def test_bfloat16_is_measured_in_float32():
    x, g = (normals(40, 2, 3, seed=seed).astype(jnp.bfloat16) for seed in (0, 1))
    y, (dx, _, _), stats = streamed(x, g, 8)
    out, back, expected = paper(x, g, jn.init_online_stats(3), 0.9, 0.8)
    assert (y.dtype, dx.dtype, stats["var"].dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    relative(y, out, 2**-8)
    near(np.float64(dx), back, 2**-8 * np.abs(back).max())
    near(stats, expected, 5e-5)


def test_float64_keeps_its_precision():
    with jax.enable_x64(True):
        x, g = (normals(30, 2, 3, seed=seed, dtype=np.float64) for seed in (0, 1))
        y, (dx, _, _), stats = streamed(x, g, 5, dtype=np.float64)
    out, back, expected = paper(x, g, jn.init_online_stats(3), 0.9, 0.8)
    near(y, out, 1e-12)
    near(dx, back, 1e-12)
    near(stats, expected, 1e-12)


def test_a_large_mean_loses_nothing_once_it_is_known():
    mean = 1e4
    x, g = normals(60, 4, 2, mean=mean), normals(60, 4, 2, seed=1)
    stats = jn.init_online_stats(2) | {"mean": jnp.full(2, mean)}
    y, (dx, _, _), new = streamed(x, g, 10, stats=stats)
    out, back, expected = paper(x, g, stats, 0.9, 0.8)
    near(y, out, 2e-3)  # the running mean is kept to half a unit in the last place, 5e-4
    near(dx, back, 5e-3)
    near(new["mean"], expected["mean"], 1e-3)
    near(new["var"], expected["var"], 2e-3)


def test_a_huge_first_example_is_finite():
    y, _, stats = streamed(np.full((1, 1), 1e15, np.float32), np.ones((1, 1), np.float32), 1)
    assert np.all(np.isfinite([y[0, 0], *(stats[key][0] for key in ("mean", "var"))]))


@pytest.mark.long
def test_no_variance_and_no_epsilon_is_finite():
    stats = jn.init_online_stats(1) | {"var": jnp.zeros(1)}

    def loss(x):
        return jn.online_norm(x, stats, train=True, epsilon=0.0)[0].sum()

    value, grad = jax.value_and_grad(loss)(jnp.zeros((3, 1)))
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))


def test_layer_scaling_is_rms_norm_over_all_features_of_an_example():
    x = normals(3, 2, 4)
    y, _ = jn.online_norm(x, jn.init_online_stats(4), train=True)
    scaled = jn.rms_norm(y, reduction_axes=(1, 2), epsilon=1e-5)
    y = np.float64(y)
    near(scaled, y / np.sqrt(np.mean(y**2, (1, 2), keepdims=True) + 1e-5), 1e-6)


@pytest.mark.parametrize("channel_axis", [1, (1, 3)])
def test_channels_on_other_axes(channel_axis):
    x, axes = normals(4, 2, 5, 3), np.atleast_1d(channel_axis)
    shape = [x.shape[axis] for axis in axes]
    scale = normals(*shape, seed=3)
    y, stats = jn.online_norm(
        x, jn.init_online_stats(shape), scale, train=True, channel_axis=channel_axis
    )
    moved = np.moveaxis(x, axes, range(-len(axes), 0))
    flat = moved.reshape(4, -1, scale.size)
    expected, new = jn.online_norm(
        flat, jn.init_online_stats(scale.size), scale.ravel(), train=True
    )
    alike(np.moveaxis(y, axes, range(-len(axes), 0)).reshape(flat.shape), np.asarray(expected))
    alike(stats["var"].ravel(), new["var"])


def trained():
    """Give statistics that have seen something, with control processes that have moved."""
    return streamed(normals(20, 3, seed=5), normals(20, 3, seed=6), 20)[2]


def test_evaluation_uses_the_statistics_and_returns_them():
    x, stats = normals(6, 2, 3), trained()
    y, new = jn.online_norm(x, stats, *parameters(3), train=False)
    assert new is stats
    batch = {key: stats[key] for key in ("mean", "var")}
    identical(y, jn.batch_norm(x, batch, *parameters(3), train=False)[0])
    _, tangent = jax.jvp(
        lambda x: jn.online_norm(x, stats, train=False)[0], (x,), (jnp.ones_like(x),)
    )
    near(tangent, np.broadcast_to(1 / np.sqrt(stats["var"] + 1e-5), x.shape), 1e-5)


def test_frozen_statistics_and_control_processes_stay():
    x, stats = normals(6, 3), trained()
    frozen = jn.freeze_stats(stats)
    y, grads, new = compiled()(x, np.ones_like(x), frozen, *parameters(3))
    alike(y, jn.online_norm(x, stats, *parameters(3), train=False)[0], 2)
    identical(new, frozen)
    alike(grads[0], np.broadcast_to(parameters(3)[0] / np.sqrt(stats["var"] + 1e-5), x.shape))


@pytest.mark.long
def test_replicas_merge():
    stats = jax.tree.map(lambda *parts: jnp.stack(parts), trained(), jn.init_online_stats(3))
    merged = jax.vmap(lambda one: jn.sync_batch_stats(one, "replicas"), axis_name="replicas")(stats)
    near(merged["mean"][0], np.mean(stats["mean"], 0), 1e-6)
    identical(merged["control_y"], stats["control_y"])


@pytest.mark.long
def test_models_are_mapped_and_steps_are_scanned():
    x, g = normals(2, 8, 3), normals(2, 8, 3, seed=1)
    start = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), jn.init_online_stats(3))

    def step(stats, example):
        y, (dx, _, _), stats = compiled(**DECAYS)(
            *(part[None] for part in example), stats, None, None
        )
        return stats, (y[0], dx[0])

    stats, (y, dx) = jax.jit(jax.vmap(lambda *args: jax.lax.scan(step, *args)))(start, (x, g))
    for model in range(2):
        one = streamed(x[model], g[model], 8)
        alike(np.asarray(y[model]), one[0])
        near(dx[model], one[1][0], 1e-6)
        alike(jax.tree.map(lambda leaf, model=model: leaf[model], stats), one[2])


def test_there_is_no_forward_mode_in_training():
    x, stats = normals(2, 3), jn.init_online_stats(3)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: jn.online_norm(x, stats, train=True)[0], (x,), (x,))


X, STATS = np.ones((2, 3), np.float32), jn.init_online_stats(3)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"x": np.ones((2, 3), int)}, TypeError, "int32; normalization needs a floating"),
        (
            {"x": X.astype(np.complex64)},
            TypeError,
            "complex64, but online normalization",
        ),
        ({"x": X[0]}, ValueError, "axis 0, which is the batch axis"),
        ({"channel_axis": 0}, ValueError, "axis 0, which is the batch axis"),
        ({"channel_axis": 2}, ValueError, "channel_axis=2 is out of range"),
        (
            {"stats": jn.init_batch_stats(3)},
            ValueError,
            ".'control_y'.*missing.*init_online",
        ),
        ({"stats": jn.init_online_stats(2)}, ValueError, r"shape \(2,\).*init_online_stats\(3\)"),
        ({"stats": [1]}, TypeError, "must be a dict, got list"),
        ({"train": 1}, TypeError, "train must be a Python bool"),
        ({"forward_decay": 1.5}, ValueError, r"forward_decay=1.5 must be in \[0, 1\]"),
        ({"backward_decay": -0.5}, ValueError, r"backward_decay=-0.5 must be in \[0, 1\]"),
        ({"epsilon": -1.0}, ValueError, "epsilon=-1.0 must be"),
        ({"scale": np.ones(2)}, ValueError, r"scale has shape \(2,\)"),
        ({"where": np.ones(2)}, ValueError, "does not broadcast"),
        ({"mask": np.ones(2)}, TypeError, "where="),
    ],
)
def test_bad_input_is_named(changed, error, words):
    arguments = {"x": X, "stats": STATS, "train": True} | changed
    with pytest.raises(error, match=words):
        jn.online_norm(arguments.pop("x"), arguments.pop("stats"), **arguments)


def test_complex_statistics_are_refused():
    with pytest.raises(TypeError, match="dtype is complex64"):
        jn.init_online_stats(2, dtype=jnp.complex64)


def linen_step(norm, variables, x, g):
    """Give y and all variables after a step, whose control processes have been overwritten."""
    stats = {"batch_stats": variables["batch_stats"]}
    learned = {key: variables[key] for key in ("params", OVERWRITTEN)}

    def output(learned):
        return norm.apply(learned | stats, x, mutable=["batch_stats"])

    y, pullback, updates = jax.vjp(output, learned, has_aux=True)
    (moved,) = pullback(g)
    return y, {**variables, **updates, OVERWRITTEN: moved[OVERWRITTEN]}, moved["params"]


def test_linen_nnx_and_the_function_are_one():
    x, g = normals(4, 3, mean=0.5), normals(4, 3, seed=1)
    scale, bias = parameters(3)
    y, grads, stats = compiled(**DECAYS)(x, g, jn.init_online_stats(3), scale, bias)

    layer = jnn.OnlineNorm(use_running_average=False, **DECAYS)
    variables = layer.init(KEY, x) | {"params": {"scale": scale, "bias": bias}}
    out, variables, moved = linen_step(layer, variables, x, g)
    alike(out, y)
    alike(dict(variables["batch_stats"] | variables[OVERWRITTEN]), dict(stats))
    alike(moved["scale"], grads[1])

    norm = jnnx.OnlineNorm(3, rngs=nnx.Rngs(0), **DECAYS)
    norm.scale[...], norm.bias[...] = scale, bias

    @nnx.jit
    def step(norm):
        def loss(norm):
            return jnp.vdot(norm(x), g)

        grads = nnx.grad(loss, argnums=nnx.DiffState(0, jnnx.DIFFERENTIATED))(norm)
        return jnnx.overwrite_control(norm, grads)

    moved = step(norm)
    assert set(moved) == {"scale", "bias"}
    alike({key: getattr(norm, key)[...] for key in stats}, dict(stats))
    alike(moved["scale"][...], grads[1])
    norm.eval()
    alike(norm(x), jn.online_norm(x, stats, scale, bias, train=False)[0])


def test_modules_stay_where_they_are_frozen():
    x = normals(4, 3)
    layer = jnn.OnlineNorm(use_running_average=False)
    variables = layer.init(KEY, x)
    _, variables, _ = linen_step(layer, variables, x, x)
    frozen = variables | {"batch_stats": jn.freeze_stats(variables["batch_stats"])}
    y, after, _ = linen_step(layer, frozen, x, x)
    identical(after, frozen)
    alike(y, jnn.OnlineNorm(use_running_average=True).apply(variables, x))

    norm = jnnx.OnlineNorm(3, rngs=nnx.Rngs(0))
    norm.control_y[...] = jnp.ones(3)
    jnnx.freeze_stats(norm)
    before = nnx.state(norm)
    grads = nnx.grad(lambda norm: norm(x).sum(), argnums=nnx.DiffState(0, jnnx.DIFFERENTIATED))(
        norm
    )
    jnnx.overwrite_control(norm, grads)
    identical(nnx.to_pure_dict(nnx.state(norm)), nnx.to_pure_dict(before))


def test_gradients_without_the_control_processes_are_told():
    norm = jnnx.OnlineNorm(3, rngs=nnx.Rngs(0))
    grads = nnx.grad(lambda norm: norm(normals(4, 3)).sum())(norm)
    with pytest.raises(ValueError, match=r"DiffState\(0, jaxnorm.nnx.DIFFERENTIATED\)"):
        jnnx.overwrite_control(norm, grads)


def test_linen_names_the_collection_that_is_missing():
    layer = jnn.OnlineNorm(use_running_average=False)
    variables = dict(layer.init(KEY, X))
    variables.pop(OVERWRITTEN)
    with pytest.raises(ValueError, match=r"'control_y'.* in the collection _overwrite_with"):
        layer.apply(variables, X, mutable=["batch_stats"])


class Classifier(nn.Module):
    """A perceptron with online normalization."""

    @nn.compact
    def __call__(self, x, train):
        for _ in range(2):
            x = nn.Dense(24, use_bias=False)(x)
            x = nn.relu(jnn.OnlineNorm(not train, forward_decay=0.99, backward_decay=0.9)(x))
        return nn.Dense(4)(x)


def blobs(number, seed):
    """Give examples of four classes that no line divides, and their labels."""
    draws = generator(seed)
    x = draws.normal(size=(number, 8)).astype(np.float32)
    return x + 0.5, (2 * (x[:, 0] * x[:, 1] > 0) + (x[:, 2] > 0)).astype(np.int32)


class OnlineState(TrainState):
    """A TrainState with the running statistics."""

    batch_stats: dict


@jax.jit
def train(state, x, labels):
    """Train on one example after the other."""

    def step(state, example):
        def loss(params):
            logits, new = state.apply_fn(
                {**params, "batch_stats": state.batch_stats},
                example[0][None],
                True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, example[1][None])
            return losses.sum(), new["batch_stats"]

        grads, new = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, batch_stats=new), None

    return jax.lax.scan(step, state, (x, labels))[0]


@pytest.mark.long
def test_it_trains_at_batch_one():
    with pytest.raises(ValueError, match="one value per channel"):
        jn.batch_norm(X[:1], jn.init_batch_stats(3), train=True)
    model = Classifier()
    variables = model.init(KEY, X_BLOBS[:1], True)
    state = OnlineState.create(
        apply_fn=model.apply,
        params={key: variables[key] for key in ("params", OVERWRITTEN)},
        tx=optax.sgd(0.02),
        batch_stats=variables["batch_stats"],
    )
    state = train(state, X_BLOBS, LABELS)
    x, labels = blobs(500, 1)
    logits = model.apply({**state.params, "batch_stats": state.batch_stats}, x, False)
    assert np.mean(np.argmax(logits, -1) == labels) > 0.75  # chance: 0.25
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(state.params[OVERWRITTEN]))


X_BLOBS, LABELS = blobs(4000, 0)
