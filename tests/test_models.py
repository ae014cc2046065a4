"""Every model of the experiments: what it computes, with every normalization, masked and not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import KEY, normals
from components import CLASSES, IMAGE, NORMS, TINY, make, model, names, norm, placement

from experiments.norms.base import Scope

MODELS = names("model")
SEQUENCES = ("lstm", "gru", "transformer")
BATCH = 8
IMAGES = normals(BATCH, *IMAGE)
LABELS = np.arange(BATCH) % CLASSES
MASK = np.arange(BATCH) < 6
LENGTHS = np.array([4, 1, 3, 2, 4, 3, 2, 4])


def fits(model_name, norm_name):
    return not norm(norm_name).needs_positions or model_name in ("cnn", "resnet")


def inputs_of(name):
    """Give two by two positions, at least, to every place."""
    return normals(BATCH, 8, 8, 1) if name == "resnet" else IMAGES


def step(net, variables, x, lengths, mask, labels=LABELS):
    """Give logits, gradients of the sum over what counts, and new statistics."""
    stats = {key: part for key, part in variables.items() if key == "batch_stats"}

    def loss(params):
        logits, new = net.apply(
            {"params": params, **stats},
            x,
            lengths,
            mask,
            train=True,
            mutable=["batch_stats"],
            rngs={"noise": KEY, "dropout": KEY},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.sum(where=mask), (logits, new)

    gradients, (logits, new) = jax.grad(loss, has_aux=True)(variables["params"])
    return logits, gradients, new


def compiled(function):
    """Compile for a single call: sooner, to slower code."""
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=quick)


def initial(net, x):
    """Give the variables that a run starts from."""
    return compiled(lambda: net.init(KEY, x[:1], train=False))()


def started(net, x):
    """Give variables of the same structure, from no program."""
    shapes = jax.eval_shape(lambda: net.init(KEY, x[:1], train=False))

    def value(path, leaf):
        if path[0].key == "batch_stats":
            return np.full(leaf.shape, path[-1].key == "var", leaf.dtype)
        return (path[-1].key == "scale") + normals(*leaf.shape) / 3

    return jax.tree.map_with_path(value, shapes)


def applied(net, variables, *inputs, train, mutable=("batch_stats",), **options):
    """Give the results, and the collections that are mutable in training."""
    if not train:
        return compiled(lambda v: net.apply(v, *inputs, train=False, **options))(variables)
    rngs = {"noise": KEY, "dropout": KEY}

    def apply(v):
        return net.apply(v, *inputs, train=True, mutable=list(mutable), rngs=rngs, **options)

    return compiled(apply)(variables)


def all_close(a, b, **tolerances):
    tolerances = {"rtol": 1e-3, "atol": 1e-5, **tolerances}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerances), a, b)


@pytest.fixture(autouse=True)
def shallow(request, monkeypatch):
    """One stage of a ResNet in place of three, which compile for long, where not asked for all."""
    if "all_stages" not in request.fixturenames:
        monkeypatch.setattr("experiments.models.resnet.STAGES", 1)
        monkeypatch.setitem(TINY, "resnet", {"depth": 4, "width": 4})


@pytest.fixture
def all_stages():
    """Have a ResNet of three stages."""


def test_every_model_is_tested():
    assert set(MODELS) == set(TINY)
    assert {name for name in MODELS if model(name).takes_lengths} == set(SEQUENCES)
    assert {name: model(name).cpu_steps_per_call for name in MODELS if name != "mlp"} == {
        name: 1 for name in MODELS if name != "mlp"
    }
    assert model("mlp").cpu_steps_per_call == 50


@pytest.mark.parametrize("name", MODELS)
def test_every_model_starts_finite(name):
    x = inputs_of(name)
    variables = initial(model(name, placement("batch")), x)
    leaves = jax.tree.leaves_with_path(variables)
    assert all(np.isfinite(leaf).all() for _, leaf in leaves)
    assert all(leaf.std() > 0 for path, leaf in leaves if path[-1].key == "kernel")


COMBINATIONS = [
    *((m, n, jnp.float32) for m in MODELS for n in NORMS if fits(m, n)),
    *((m, n, jnp.bfloat16) for m in MODELS for n in ("batch", "none")),  # the rest: test_norms.py
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm_name", "dtype"),
    COMBINATIONS,
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_step_of_every_model_with_every_norm_is_finite(name, norm_name, dtype):
    groups = {"num_groups": 2} if norm_name == "group" else {}
    net = model(name, placement(norm_name, dtype=dtype, **groups))
    x = inputs_of(name)
    variables = started(net, x)
    assert ("batch_stats" in variables) == norm(norm_name).of_the_batch
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables["params"]))
    lengths = LENGTHS if net.takes_lengths else None
    logits, gradients, new = compiled(lambda v: step(net, v, x, lengths, MASK))(variables)
    assert logits.shape == (BATCH, CLASSES)
    assert logits.dtype == jnp.float32
    for leaf in jax.tree.leaves((logits, gradients, new)):
        assert np.isfinite(leaf).all()
    flat = {jax.tree_util.keystr(path): g for path, g in jax.tree.leaves_with_path(gradients)}
    zero = [key for key, g in flat.items() if not g.any()]
    # The softmax over keys does not depend on their bias, nor a batch's deviations on a constant.
    assert not [key for key in zero if "['key']['bias']" not in key]


@pytest.mark.parametrize("norm_name", ["batch", "rms", "none"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_a_layer_has_one_bias(name, norm_name, all_stages):
    before_sums = {"Conv_2", "Conv_4", "Conv_5", "Conv_7", "Conv_8"} if name == "resnet" else set()
    for position in ("before", "after"):
        net = model(name, placement(norm_name), position=position)
        params = jax.eval_shape(lambda net=net: net.init(KEY, normals(1, 8, 8, 1), train=False))[
            "params"
        ]
        layers = [layer for layer in params if layer.startswith(("Dense", "Conv"))]
        assert len(layers) == {"mlp": 2, "cnn": 2, "resnet": 9}[name]
        for layer in layers:
            last = position == "before" or layer in before_sums
            assert ("bias" in params[layer]) == (norm_name != "batch" or not last)
        places = [place for place in params if place.startswith("norm_")]
        assert len(places) == (0 if norm_name == "none" else len(layers))
        for place in places:
            assert ("bias" in params[place]) == (norm_name == "batch")


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_the_gates_have_one_bias(name):
    net = model(name, placement("layer"))
    params = jax.eval_shape(lambda: net.init(KEY, IMAGES, train=False))["params"]
    gates = {"lstm": 4, "gru": 3}[name] * 4
    assert "bias" not in params["of_input"]
    assert "bias" not in params["recurrence"]["of_state"]
    assert params["recurrence"]["gates"]["bias"].shape == (gates,)
    for place in ("norm_input", "norm_hidden"):
        assert set(params["recurrence"][place]) == {"scale"}
    assert ("norm_cell" in params["recurrence"]) == (name == "lstm")
    if name == "lstm":
        assert set(params["recurrence"]["norm_cell"]) == {"scale", "bias"}


@pytest.mark.long
def test_the_last_scale_of_a_block_starts_from_zero(all_stages):
    net = model("resnet", placement("batch"))
    params = initial(net, inputs_of("resnet"))["params"]
    zero = {key for key, part in params.items() if "scale" in part and not part["scale"].any()}
    assert zero == {"norm_2", "norm_4", "norm_7"}  # then a projection's: norm_5 and norm_8


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "norm_name"),
    [*((m, n) for m in MODELS for n in ("batch", "layer")), ("lstm", "batch_renorm")],
)
def test_masked_examples_change_nothing_whatever_they_hold(name, norm_name):
    net = model(name, placement(norm_name))
    x = inputs_of(name)
    variables = started(net, x)
    lengths = LENGTHS if net.takes_lengths else None
    unknown = np.where(MASK[:, None, None, None], x, np.nan)
    masked = compiled(lambda v: step(net, v, unknown, lengths, MASK))(variables)
    kept = None if lengths is None else lengths[MASK]
    removed = compiled(lambda v: step(net, v, x[MASK], kept, None, LABELS[MASK]))(variables)
    all_close(masked[0][MASK], removed[0])
    all_close(masked[1:], removed[1:])
    assert np.isfinite(masked[0]).all()


@pytest.mark.parametrize("norm_name", ["batch", "layer"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_rows_beyond_the_length_change_nothing_whatever_they_hold(name, norm_name):
    net = model(name, placement(norm_name))
    variables = started(net, IMAGES)
    beyond = np.arange(IMAGE[0]) >= LENGTHS[:, None]
    run = compiled(lambda v, x: step(net, v, x, LENGTHS, None))
    results = [
        run(variables, np.where(beyond[..., None, None], filling, IMAGES))
        for filling in (0.0, 5.0, np.nan)
    ]
    all_close(results[1], results[0], rtol=0, atol=0)
    all_close(results[2], results[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_is_what_it_is_alone_and_cut(name):
    net = model(name, placement("layer"))
    variables = started(net, IMAGES)
    together = applied(net, variables, IMAGES, LENGTHS, train=False)
    params = dict(variables["params"])
    if name == "transformer":
        params["positions"] = {"embedding": params["positions"]["embedding"][:2]}
    alone = applied(net, {"params": params}, IMAGES[3:4, :2], train=False)
    np.testing.assert_allclose(together[3:4], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_without_rows_is_finite(name):
    net = model(name, placement("batch"))
    variables = started(net, IMAGES)
    results = compiled(lambda v: step(net, v, IMAGES, 0 * LENGTHS, None))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_recurrence(name, params, x, lengths, normalize):
    """Loop over the rows of sequences (batch, rows, width); `normalize(place, x, row, valid)`."""
    own = params["recurrence"]
    w, u, b = params["of_input"]["kernel"], own["of_state"]["kernel"], own["gates"]["bias"]
    h = c = np.zeros((len(x), len(u)), np.float64)
    for row in range(x.shape[1]):
        valid = row < lengths
        v = normalize("norm_input", x[:, row] @ w, row, valid) + b
        s = normalize("norm_hidden", h @ u, row, valid)
        if name == "lstm":
            i, f, g, o = np.split(v + s, 4, axis=-1)
            cell = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            new = sigmoid(o) * np.tanh(normalize("norm_cell", cell, row, valid))
            c = np.where(valid[:, None], cell, c)
        else:
            (v_r, v_z, v_n), (s_r, s_z, s_n) = np.split(v, 3, axis=-1), np.split(s, 3, axis=-1)
            r, z = sigmoid(v_r + s_r), sigmoid(v_z + s_z)
            new = (1 - z) * np.tanh(v_n + r * s_n) + z * h
        new = normalize("norm_output", new, row, valid)
        h = np.where(valid[:, None], new, h)
    return h @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize(
    ("norm_name", "position"),
    [("none", "before"), *((n, p) for n in ("layer", "batch") for p in ("before", "after"))],
)
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_recurrence_is_a_loop_over_the_rows(name, norm_name, position):
    momentum = {"momentum": 0.0} if norm_name == "batch" else {}
    net = model(name, placement(norm_name, **momentum), position=position)
    variables = started(net, IMAGES)
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    seen = {}

    def normalize(place, x, row, valid):
        if norm_name == "none" or (place == "norm_output") != (position == "after"):
            return x
        own = params["recurrence"][place]
        if norm_name == "layer":
            mean, var, epsilon = x.mean(1, keepdims=True), x.var(1, keepdims=True), 1e-6
        else:
            mean, var, epsilon = x[valid].mean(0), x[valid].var(0), 1e-5
            seen[place, row] = mean, var
        return (x - mean) / np.sqrt(var + epsilon) * own["scale"] + own.get("bias", 0)

    logits, new = applied(net, variables, IMAGES, LENGTHS, train=True)
    rows = np.asarray(IMAGES, np.float64).reshape(BATCH, 4, 4)
    expected = numpy_recurrence(name, params, rows, LENGTHS, normalize)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    for (place, row), (mean, var) in seen.items():
        stats = new["batch_stats"]["recurrence"][place]
        np.testing.assert_allclose(stats["mean"][row], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stats["var"][row], var, rtol=1e-3, atol=1e-5)


@pytest.mark.long
def test_a_row_that_no_sequence_reaches_changes_no_statistics():
    net = model("lstm", placement("batch"))
    variables = started(net, IMAGES)
    _, new = applied(net, variables, IMAGES, np.minimum(LENGTHS, 2), train=True)
    for stats in new["batch_stats"]["recurrence"].values():
        assert (stats["mean"][2:] == 0).all()
        assert (stats["var"][2:] == 1).all()
        assert (stats["var"][:2] != 1).all()


@pytest.mark.long
def test_recurrent_scales_start_small_for_batch_statistics_alone():
    for norm_name, scale in (("batch", 0.1), ("layer", 1.0)):
        params = initial(model("lstm", placement(norm_name)), IMAGES)["params"]["recurrence"]
        for place in ("norm_input", "norm_hidden", "norm_cell"):
            np.testing.assert_array_equal(params[place]["scale"], np.float32(scale))


def captured(net, variables, x):
    """Give what every place is given and gives, and the results of all layers."""
    kept = {"mutable": ["intermediates"], "capture_intermediates": True}
    _, kept = applied(net, variables, x, train=False, **kept)
    return kept["intermediates"]


def of(kept, layer):
    return np.asarray(kept[layer]["__call__"][0])


def put(kept, place):
    return [np.asarray(kept[place][which][0]) for which in ("input", "output")]


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_normalization_stands_before_or_after_the_activation(name):
    layer = {"mlp": "Dense", "cnn": "Conv"}[name]
    activation = {"mlp": sigmoid, "cnn": lambda x: np.maximum(x, 0)}[name]
    for position in ("before", "after"):
        net = model(name, placement("layer"), position=position)
        kept = captured(net, started(net, IMAGES), IMAGES)
        given, _ = put(kept, "norm_0")
        linear = of(kept, f"{layer}_0")
        expected = linear if position == "before" else activation(linear)
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("position", "residual"), [("before", True), ("after", True), ("before", False)]
)
def test_a_resnet_is_its_convolutions_normalized_before_or_after_the_rectifier(
    position, residual, monkeypatch
):
    monkeypatch.setattr("experiments.models.resnet.STAGES", 2)
    net = model("resnet", placement("layer"), position=position, residual=residual, depth=6)
    x = inputs_of("resnet")
    variables = started(net, x)
    params = variables["params"]

    def convolved(x, number, stride=1):
        own = params[f"Conv_{number}"]
        y = jax.lax.conv_general_dilated(
            x, own["kernel"], (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return np.asarray(y) + own.get("bias", 0)

    def normalized(x, number):
        own, axes = params[f"norm_{number}"], {"axis": (1, 2, 3), "keepdims": True}
        return (x - x.mean(**axes)) / np.sqrt(x.var(**axes) + 1e-6) * own["scale"] + own["bias"]

    def rectified(x):
        return np.maximum(x, 0)

    def activated(x, number):
        if position == "before":
            return rectified(normalized(x, number))
        return normalized(rectified(x), number)

    x = activated(convolved(x, 0), 0)
    y = normalized(convolved(activated(convolved(x, 1), 1), 2), 2)
    x = rectified(x + y if residual else y)
    y = normalized(convolved(activated(convolved(x, 3, stride=2), 3), 4), 4)
    x = rectified(y + normalized(convolved(x, 5, stride=2), 5) if residual else y)
    assert residual == ("Conv_5" in params)
    expected = x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    logits = applied(net, variables, inputs_of("resnet"), train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_transformer_normalizes_before_its_layers_or_after_its_sums(order):
    net = model("transformer", placement("layer"), order=order)
    variables = started(net, IMAGES)
    kept = captured(net, variables, IMAGES)
    flat = (BATCH * IMAGE[0], 8)
    x = (of(kept, "tokens") + variables["params"]["positions"]["embedding"]).reshape(flat)
    attention = of(kept, "MultiHeadDotProductAttention_0").reshape(flat)
    connected = of(kept, "Dense_1").reshape(flat)
    places = [put(kept, place) for place in ("norm_0", "norm_1")]
    (given_0, made_0), (given_1, made_1) = places
    if order == "pre":
        sums = x, x + attention
        given_2, last = put(kept, "norm_2")
        np.testing.assert_allclose(given_2, x + attention + connected, rtol=1e-4, atol=1e-5)
    else:
        sums, last = (x + attention, made_0 + connected), made_1
        assert "norm_2" not in kept
    np.testing.assert_allclose((given_0, given_1), sums, rtol=1e-4, atol=1e-5)
    mean = last.reshape(BATCH, -1, 8).mean(1)
    head = variables["params"]["head"]
    expected = mean @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(of(kept, "head"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_the_statistics_of_a_transformer_are_those_of_the_tokens_that_count():
    net = model("transformer", placement("batch", momentum=0.0), order="pre")
    variables = started(net, IMAGES)
    _, new = applied(net, variables, IMAGES, LENGTHS, MASK, train=True)
    tokens = (
        of(captured(net, variables, IMAGES), "tokens")
        + variables["params"]["positions"]["embedding"]
    )
    counted = tokens[(np.arange(4) < LENGTHS[:, None]) & MASK[:, None]]
    stats = new["batch_stats"]["norm_0"]
    np.testing.assert_allclose(stats["mean"], counted.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["var"], counted.var(0), rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_ghosts_of_a_transformer_are_of_whole_examples():
    ghosts = model("transformer", placement("ghost_batch", ghost_size=4))
    scoped = model("transformer", placement("batch", scope=Scope(num_ghosts=2)))
    variables = started(ghosts, IMAGES)
    logits = [applied(net, variables, IMAGES, train=True)[0] for net in (ghosts, scoped)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_dropout_leaves_out_in_training_alone(name):
    plain, dropping = model(name), model(name, dropout=0.5)
    x = inputs_of(name)
    variables = started(plain, x)
    logits = [
        *(applied(net, variables, x, train=False) for net in (plain, dropping)),
        applied(plain, variables, x, train=True)[0],
        applied(dropping, variables, x, train=True)[0],
    ]
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])
    assert (logits[0] != logits[3]).any()


@pytest.mark.long
@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_noise_is_another_at_every_row(name):
    net = model(name, placement("noisy_batch", example_noise=0.0))
    variables = started(net, IMAGES)
    same = np.repeat(IMAGES[:, :1], 4, axis=1)
    mutable = ("batch_stats", "intermediates")
    _, kept = applied(net, variables, same, train=True, mutable=mutable)
    if name == "lstm":
        made = np.asarray(kept["intermediates"]["recurrence"]["norm_input"]["output"][0])
        assert made.shape == (4, BATCH, 16)
        assert (abs(made[1:] - made[:1]).max((1, 2)) > 0.01).all()
    else:
        given, made = put(kept["intermediates"], "norm_0")
        assert made.shape == given.shape == (BATCH * 4, 8)


@pytest.mark.long
@pytest.mark.parametrize("name", ["lstm", "mlp"])
def test_statistics_freeze_inside_a_model(name):
    variables = started(model(name, placement("batch")), IMAGES)
    lengths = LENGTHS if name == "lstm" else None

    def trained(at):
        net = model(name, placement("batch", frozen_from=0.5, step=at))
        return step(net, variables, IMAGES, lengths, None)

    run = compiled(trained)
    moving, frozen = run(49), run(50)
    jax.tree.map(np.testing.assert_array_equal, frozen[2]["batch_stats"], variables["batch_stats"])
    net = model(name, placement("batch"))
    evaluated = applied(net, variables, IMAGES, lengths, train=False)
    np.testing.assert_allclose(frozen[0], evaluated, rtol=1e-4, atol=1e-5)
    expected = compiled(lambda v: step(net, v, IMAGES, lengths, None))(variables)
    all_close(moving, expected)


@pytest.mark.long
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_an_mlp_is_its_layers(activation):
    function = {"sigmoid": sigmoid, "tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}[activation]
    net = model("mlp", activation=activation, hidden=[400, 300])
    features = normals(BATCH, 200)
    variables = initial(net, features)
    params = variables["params"]
    x = features
    for layer in ("Dense_0", "Dense_1"):
        x = function(x @ params[layer]["kernel"] + params[layer]["bias"])
    expected = x @ params["head"]["kernel"] + params["head"]["bias"]
    logits = applied(net, variables, features, train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    deviation = (2 / 400) ** 0.5 if activation == "relu" else (2 / (400 + 300)) ** 0.5
    np.testing.assert_allclose(params["Dense_1"]["kernel"].std(), deviation, rtol=0.03)


def test_a_residual_mlp_adds_every_layer_to_its_input():
    """A layer is y + W max(0, layer norm(y)), and the head takes max(0, layer norm(y))."""
    net = model("mlp", placement("layer"), activation="relu", hidden=[6], depth=4, residual=True)
    features = normals(BATCH, 5)
    variables = started(net, features)
    params = jax.tree.map(np.asarray, variables["params"])

    def activated(layer, y):
        norm = params[f"norm_{layer}"]
        scaled = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5)
        return np.maximum(scaled * norm["scale"] + norm["bias"], 0)

    y = features @ params["Dense_0"]["kernel"]
    for layer in range(3):
        y = y + activated(layer, y) @ params[f"Dense_{layer + 1}"]["kernel"]
    expected = activated(3, y) @ params["head"]["kernel"] + params["head"]["bias"]
    assert len(params) == 4 + 4 + 1
    all_close(applied(net, variables, features, train=False), expected)


@pytest.mark.parametrize("shape", [(13,), (5, 3), (4, 4, 1)], ids=str)
@pytest.mark.parametrize("name", ["mlp", "transformer", "lstm"])
def test_inputs_are_of_any_shape_that_is_no_problem(name, shape):
    net = model(name, placement("layer"))
    if [*net.problems(shape)]:
        assert name == "lstm"
        assert len(shape) == 1
        return
    logits = jax.eval_shape(lambda: net.init_with_output(KEY, normals(2, *shape), train=False))[0]
    assert logits.shape == (2, CLASSES)


@pytest.mark.parametrize("name", MODELS)
def test_the_files_have_no_problems(name):
    for norm_name in NORMS:
        full = make("model", name)
        net = full(norm=placement(norm_name), num_classes=10, dtype=jnp.float32)
        assert bool([*net.problems((28, 28, 1))]) == (not fits(name, norm_name))


@pytest.mark.parametrize(
    ("name", "norm_name", "changes", "told"),
    [
        (
            "cnn",
            "batch",
            {"channels": []},
            "model.channels is empty; give one number of channels for each layer",
        ),
        (
            "cnn",
            "batch",
            {"channels": [8, 0]},
            "every entry of model.channels is 0; give 1 or more",
        ),
        (
            "cnn",
            "instance",
            {"channels": [8, 8, 8, 8]},
            "model.channels has 4 layers, but images of 8x8 cannot be halved below 2x2; "
            "give at most 3",
        ),
        (
            "cnn",
            "group",
            {"channels": [6, 9]},
            "norm.num_groups is 4, which does not divide [6, 9]; give one of 1, 3",
        ),
        (
            "resnet",
            "group",
            {"depth": 20, "width": 5},
            "norm.num_groups is 4, which does not divide [5, 10, 20]; give one of 1, 5",
        ),
        (
            "lstm",
            "group",
            {"hidden": 6},
            "norm.num_groups is 4, which does not divide [24, 24, 6]; give one of 1, 2, 3, 6",
        ),
        ("mlp", "batch", {"hidden": []}, "model.hidden is empty; give one width for each layer"),
        ("mlp", "batch", {"hidden": [8], "depth": 0}, "model.depth is 0; give 1 or more"),
        (
            "mlp",
            "batch",
            {"depth": 3},
            "model.depth is 3, but model.hidden is [8, 8]; give one width, such as [64], or "
            "model.depth=null",
        ),
        (
            "mlp",
            "batch",
            {"hidden": [8, 4], "residual": True},
            "model.residual adds layers of one width, but model.hidden is [8, 4]; give equal "
            "widths, or model.residual=false",
        ),
        (
            "mlp",
            "batch",
            {"activation": "gelu"},
            "model.activation is 'gelu'; the choices are sigmoid, tanh, relu",
        ),
        (
            "mlp",
            "batch",
            {"position": "pre"},
            "model.position is 'pre'; the choices are before, after",
        ),
        ("mlp", "batch", {"dropout": 1.0}, "model.dropout is 1.0; give a number from 0 to below 1"),
        (
            "mlp",
            "instance",
            {},
            "instance normalization needs positions, and model=mlp has none; "
            "give norm=layer, or model=cnn or resnet",
        ),
        (
            "resnet",
            "batch",
            {"depth": 18},
            "model.depth is 18; give 6 n + 2, such as 8, 14, 20, 32 or 56",
        ),
        (
            "resnet",
            "batch",
            {"position": "between"},
            "model.position is 'between'; the choices are before, after",
        ),
        ("gru", "batch", {"hidden": 0}, "model.hidden is 0; give 1 or more"),
        (
            "transformer",
            "batch",
            {"heads": 3},
            "model.heads is 3, which does not divide [8]; give one of 1, 2, 4, 8",
        ),
        (
            "transformer",
            "batch",
            {"order": "before"},
            "model.order is 'before'; the choices are pre, post",
        ),
        (
            "transformer",
            "batch",
            {"mlp_ratio": 0.0},
            "model.mlp_ratio is 0.0; give a positive number",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_cannot_be_right_is_told(name, norm_name, changes, told, all_stages):
    net = model(name, placement(norm_name), **changes)
    assert [*net.problems((8, 8, 1))] == [told]


@pytest.mark.parametrize("name", ["cnn", "resnet", "lstm", "gru"])
def test_inputs_that_are_of_another_kind_are_told(name, all_stages):
    [told] = model(name).problems((13,))
    kind = "images" if name in ("cnn", "resnet") else "sequences"
    assert told == f"model={name} takes {kind}, but the data have shape [13]; give model=mlp"
