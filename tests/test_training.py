"""The ways of carrying steps and seeds agree, and what is recorded is what was reached."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs_of import composed, curves, replaced, result, trained

import jaxnorm as jn
from experiments.launch import run as running
from experiments.norms.base import Scope
from experiments.runs import records
from experiments.runs.directory import program_key, run_directory
from experiments.training import parallel
from experiments.training.checkpoints import restore_final
from experiments.training.fit import EVALUATION_BATCH
from experiments.training.program import compile_program, model_of
from experiments.training.setup import make_setup
from experiments.training.watch import Ended, Update

TINY = (
    "model.channels=[4]",
    "data=digits",
    "batch_size=400",
    "epochs=2",
    "seeds=2",
    "parallel=single",
    "steps_per_call=1",
    "seeds_together=false",
    "checkpoint_every=null",
    "fitted=true",
)


@pytest.fixture(autouse=True, scope="module")
def promotion():
    """Optax's schedules mix integer steps and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Overrides that keep the data out of the working tree."""
    return (f"data.directory={tmp_path_factory.mktemp('data')}",)


@pytest.fixture(scope="module")
def tiny(places, tmp_path_factory):
    """A run of two epochs of four steps each, with all that a state can hold."""
    output = tmp_path_factory.mktemp("plain")
    return composed(*TINY, *places, "norm=batch_renorm", "model.dropout=0.1", f"output={output}")


@pytest.fixture(scope="module")
def plain(tiny):
    """What one step a call and one seed after the other told."""
    return trained(tiny)


@pytest.mark.long
@pytest.mark.parametrize(
    "way",
    [
        {"seeds_together": True},
        {"steps_per_call": 3},  # does not divide the steps of an epoch
        {"seeds_together": True, "steps_per_call": 2},
    ],
    ids=str,
)
def test_every_way_of_carrying_gives_the_same_numbers(tiny, plain, tmp_path, way):
    config = replaced(tiny, **way, output=str(tmp_path))
    trained(config)
    for seed in (0, 1):
        np.testing.assert_allclose(curves(config, seed), curves(tiny, seed), rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(watched(config, seed), watched(tiny, seed), rtol=2e-3)


def watched(config, seed):
    """The gradient norms and the distances of statistics of the step before each evaluation."""
    history = records.read_history(run_directory(config), seed)
    return [jax.tree.leaves([record["gradient_norm"], record["statistics"]]) for record in history]


@pytest.mark.long
def test_events_and_histories_number_seeds_epochs_and_steps(tiny, plain):
    for seed in (0, 1):
        history = records.read_history(run_directory(tiny), seed)
        assert [(record["step"], record["epoch"]) for record in history] == [(4, 1.0), (8, 2.0)]
    updates = [e for e in plain if isinstance(e, Update) and e.accuracy is not None]
    evaluated = {(0, 4), (0, 8), (1, 4), (1, 8)}
    assert evaluated <= {(e.seed, e.step) for e in updates}, "and signs of life between them"
    assert [(e.seed, e.ended) for e in plain if isinstance(e, Ended)] == [(0, "done"), (1, "done")]


@pytest.mark.long
def test_a_seed_repeats_itself_and_no_other(tiny, plain, tmp_path):
    again = replaced(tiny, seeds=1, output=str(tmp_path))
    trained(again)
    assert result(again)["parameters"] == result(tiny)["parameters"]
    assert result(tiny, 1)["parameters"] != result(tiny, 0)["parameters"]


@pytest.mark.long
def test_evaluation_counts_every_test_example(tiny, plain):
    made = make_setup(tiny)
    model = model_of(tiny, made, Scope())
    variables = restore_final(records.seed_directory(run_directory(tiny), 0))
    dataset = made.source.load(0)
    assert len(dataset.test.labels) < EVALUATION_BATCH
    splits = {"test": dataset.test, "validation": dataset.validation, "fitted": dataset.train}
    for split, labels in (("test", 360), ("validation", 144), ("fitted", 1293)):
        examples = splits[split]
        assert len(examples.labels) == labels
        logits = np.asarray(model.apply(variables, examples.inputs[:], train=False))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels).mean()
        accuracy = (logits.argmax(-1) == examples.labels).mean()
        reached = result(tiny)
        np.testing.assert_allclose(reached[f"{split}_loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(reached[f"{split}_accuracy"], accuracy, rtol=1e-5)


@pytest.mark.long
def test_evaluation_in_several_batches_is_that_in_one(tiny, plain, monkeypatch):
    made = make_setup(tiny)
    program = compile_program(tiny, made)
    state = parallel.replicate(program.init(tiny, 0), program.devices)
    splits = [made.source.load(0).test]
    of_one = _evaluated(program, made, tiny, state, splits)
    monkeypatch.setattr("experiments.training.fit.EVALUATION_BATCH", 100)  # 360: one is filled
    np.testing.assert_allclose(_evaluated(program, made, tiny, state, splits), of_one, rtol=1e-5)


def _evaluated(program, made, config, state, splits):
    from experiments.training.fit import SeedRun, _Training

    [means] = _Training(program, made, [SeedRun(config, 0)], [None])._evaluated(state, splits)
    return [means["loss"], means["accuracy"]]


@pytest.mark.long
def test_a_loss_that_is_not_finite_counts_as_chance(tiny, tmp_path):
    config = replaced(
        composed(*TINY, f"data.directory={tiny.data['directory']}", "norm=none"),
        output=str(tmp_path),
        seeds=1,
        epochs=50,
        optimizer={"learning_rate": 1e30, "warmup": 0.0},
    )
    trained(config)
    reached = result(config)
    assert reached["ended"] == "diverged"
    assert reached["step"] == 4, "it is not trained on"
    accuracies = [reached[f"{name}_accuracy"] for name in ("test", "validation", "fitted")]
    assert accuracies == [0.1] * 3
    assert reached["test_loss"] is reached["train_loss"] is reached["fitted_loss"] is None
    assert records.read_history(run_directory(config), 0)[-1]["train_loss"] is None


@pytest.mark.long
def test_a_seed_stops_at_its_training_loss(tiny, tmp_path):
    told = {"target": 2.0, "target_of": "fitted_loss"}
    config = replaced(tiny, **told, seeds=1, epochs=40, evaluate_every=3, output=str(tmp_path))
    trained(config)
    reached = result(config)
    *before, last = records.read_history(run_directory(config), 0)
    assert reached["ended"] == "stopped"
    assert before
    assert min(record["fitted_loss"] for record in before) > 2.0 >= last["fitted_loss"]
    assert (reached["fitted_loss"], reached["step"]) == (last["fitted_loss"], last["step"])


@pytest.mark.long
def test_gradients_are_those_of_the_first_batch_before_and_after(tiny, tmp_path):
    """By the derivative of the loss in NumPy's float64: of two layers, none of them normalized."""
    places = (f"data.directory={tiny.data['directory']}", f"output={tmp_path}")
    small = (
        "model=mlp",
        "model.hidden=[7,5]",
        "norm=none",
        "model.activation=tanh",
        "batch_size=50",
    )
    config = composed(*TINY[1:], *places, *small, "gradients=true", "steps=1", "seeds=1")
    trained(config)
    reached = result(config)
    made = make_setup(config)
    batch = next(
        made.source.batches(made.source.load(0), 50, multiple=1, seed=0).from_step(0, slice(0, 50))
    )
    start = jax.device_get(compile_program(config, made).init(config, 0).params)
    end = restore_final(records.seed_directory(run_directory(config), 0))["params"]
    for when, params in (("before", start), ("after", end)):
        expected = dict(zip(("Dense_0", "Dense_1"), _kernel_norms(params, batch), strict=True))
        assert reached["gradient_norms"][when] == pytest.approx(expected, rel=1e-4)
        decades = abs(np.log10(expected["Dense_0"] / expected["Dense_1"]))
        key = {"before": "gradient_decades", "after": "final_gradient_decades"}[when]
        assert reached[key] == pytest.approx(decades, abs=1e-4)


def _kernel_norms(params, batch):
    """The norms of the gradients of the two kernels of a perceptron with tanh."""
    params = jax.tree.map(np.float64, params)
    first, second, head = (params[name] for name in ("Dense_0", "Dense_1", "head"))
    x = np.float64(batch.inputs).reshape(len(batch.labels), -1)
    y = np.tanh(x @ first["kernel"] + first["bias"])
    z = np.tanh(y @ second["kernel"] + second["bias"])
    logits = z @ head["kernel"] + head["bias"]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    by_logits = (chances - np.eye(10)[batch.labels]) / len(x)
    by_second = (by_logits @ head["kernel"].T) * (1 - z**2)
    by_first = (by_second @ second["kernel"].T) * (1 - y**2)
    return np.linalg.norm(x.T @ by_first), np.linalg.norm(y.T @ by_second)


@pytest.mark.long
def test_a_seed_stops_at_its_target(tiny, tmp_path):
    config = replaced(tiny, target=0.3, epochs=40, evaluate_every=1, output=str(tmp_path))
    trained(config)
    for seed in (0, 1):
        history = records.read_history(run_directory(config), seed)
        reached = result(config, seed)
        assert reached["ended"] == "stopped"
        assert reached["step"] == history[-1]["step"] < 160
        accuracies = [record["validation_accuracy"] for record in history]
        assert accuracies[-1] >= 0.3 > max([0, *accuracies[:-1]])


@pytest.mark.long
def test_runs_that_differ_in_numbers_share_a_program(tiny, tmp_path, monkeypatch):
    base = replaced(tiny, seeds=1, epochs=1, output=str(tmp_path))
    others = [
        replaced(base, optimizer={"learning_rate": 0.01}),
        replaced(base, optimizer={"weight_decay": 0.1, "momentum": 0.5}),
        replaced(base, model={"init_scale": 3.0}),
    ]
    assert len({run_directory(config) for config in (base, *others)}) == 4
    assert len({program_key(config) for config in (base, *others)}) == 1
    compiled = []

    def counted(*arguments):
        compiled.append(arguments)
        return compile_program(*arguments)

    monkeypatch.setattr(running, "compile_program", counted)
    monkeypatch.setattr(running, "_compiled", {})
    for config in (base, *others):
        trained(config)
    assert len(compiled) == 1
    alone = replaced(others[1], output=str(tmp_path / "alone"))
    monkeypatch.setattr(running, "_compiled", {})
    trained(alone)
    assert result(alone)["parameters"] == result(others[1])["parameters"]
    digests = {result(config)["parameters"] for config in (base, *others)}
    assert len(digests) == 4
    together = replaced(base, seeds_together=True, output=str(tmp_path / "together"))
    pair = [together, replaced(together, optimizer={"learning_rate": 0.01})]
    trained(*pair)
    for config, expected in zip(pair, (base, others[0]), strict=True):
        np.testing.assert_allclose(curves(config), curves(expected), rtol=2e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("norm", ["norm=batch", "norm=layer"])
def test_accumulated_micro_batches_are_ghosts_of_one_batch(places, tmp_path, norm):
    """Micro-batch i has every second example from the i-th on."""
    common = (*TINY, *places, norm, "seeds=1", "steps=1", "optimizer.warmup=0")
    config = composed(*common, "accumulate=2", f"output={tmp_path}")
    made = make_setup(config)
    program = compile_program(config, made)
    batch = next(made.source.batches(made.source.load(0), 400, multiple=2, seed=0).from_step(0))
    state = jax.device_get(program.init(config, 0))
    stepped = jax.device_get(program.train(state, batch))

    whole = composed(*common, f"output={tmp_path}")
    options = {"norm": "ghost_batch", "norm.ghost_size": 200} if norm == "norm=batch" else {}
    if options:
        whole = composed(
            *(o for o in common if o != norm), "norm=ghost_batch", "norm.ghost_size=200"
        )
    order = np.concatenate([np.arange(0, 400, 2), np.arange(1, 400, 2)])
    dealt = jax.tree.map(lambda array: array[order], batch)
    expected = jax.device_get(compile_program(whole, make_setup(whole)).train(state, dealt))
    for name in ("params", "batch_stats", "sums"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
            getattr(stepped, name),
            getattr(expected, name),
        )


@pytest.mark.long
def test_control_processes_take_their_gradient_for_their_value(places, tmp_path):
    common = (*TINY, *places, "norm=online", "seeds=1", "steps=1", f"output={tmp_path}")
    config = composed(*common, "model.channels=[2]", "batch_size=8")
    made = make_setup(config)
    program = compile_program(config, made)
    batch = next(made.source.batches(made.source.load(0), 8, multiple=1, seed=0).from_step(0))
    state = jax.device_get(program.init(config, 0))
    model = model_of(config, made, Scope())

    def loss(batch_stats):
        variables = {"params": state.params, "batch_stats": batch_stats}
        logits, _ = model.apply(
            variables, batch.inputs, None, batch.mask, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).sum()

    expected = jax.jit(jax.grad(loss))(state.batch_stats)["norm_0"]
    stepped = program.train(state, batch).batch_stats["norm_0"]
    for key in ("control_y", "control_x"):
        assert np.any(expected[key] != 0)
        np.testing.assert_allclose(stepped[key], expected[key], rtol=1e-4, atol=1e-6)
    assert np.all(stepped["mean"] != 0)


@pytest.mark.long
def test_bfloat16_activations_keep_float32_parameters(tiny, plain, tmp_path):
    config = replaced(tiny, dtype="bfloat16", seeds=1, output=str(tmp_path))
    trained(config)
    variables = restore_final(records.seed_directory(run_directory(config), 0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {np.dtype("float32")}
    np.testing.assert_allclose(curves(config), curves(tiny), rtol=0.1, atol=0.05)
    assert result(config)["parameters"] != result(tiny)["parameters"]


@pytest.mark.long
def test_weight_decay_is_of_weights_alone(tiny):
    made = make_setup(tiny)
    program = compile_program(tiny, made)
    config = replaced(tiny, optimizer={"weight_decay": 0.5, "learning_rate": 1.0, "warmup": 0.0})
    optimizer = make_setup(config).optimizer
    params = program.init(tiny, 0).params
    transformation = optimizer.transformation(32, 8)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transformation.update(nothing, transformation.init(params), params)
    for mask, update, weight in zip(
        *map(jax.tree.leaves, (jn.weight_decay_mask(params), updates, params)), strict=True
    ):
        np.testing.assert_allclose(update, -0.5 * 1.9 * weight * mask, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "scaling", "factor"),
    [
        ("constant", "linear", 4),
        ("cosine", "sqrt", 2),
        ("step", "none", 1),
        ("constant", "sqrt", 2),
        ("constant", "none", 1),
    ],
)
def test_the_rate_warms_up_and_follows_its_schedule(places, schedule, scaling, factor):
    config = composed(
        *places,
        "optimizer.learning_rate=0.5",
        f"optimizer.schedule={schedule}",
        f"optimizer.scaling={scaling}",
        "optimizer.warmup=0.2",
    )
    optimizer = make_setup(config).optimizer
    rates = np.array([optimizer.rate(step, 128, 20) for step in range(20)])
    peak = 0.5 * factor
    np.testing.assert_allclose(rates[:5], peak * np.arange(5) / 4, rtol=1e-6)
    after = np.arange(4, 20)
    expected = {
        "constant": np.ones(16),
        "cosine": (1 + np.cos(np.pi * (after - 4) / 16)) / 2,
        "step": np.where(after < 10, 1, np.where(after < 15, 0.1, 0.01)),
    }[schedule]
    np.testing.assert_allclose(rates[4:], peak * expected, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_clipping_bounds_what_the_optimizer_is_given(places, optimizer):
    config = composed(*places, f"optimizer={optimizer}", "optimizer.clip_norm=0.5")
    transformation = make_setup(config).optimizer.transformation(32, 10)
    params = {"kernel": jnp.zeros((2,))}
    state = transformation.init(params)
    small = transformation.update({"kernel": jnp.array([0.3, 0.4])}, state, params)
    large = transformation.update({"kernel": jnp.array([30.0, 40.0])}, state, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), large, small)
