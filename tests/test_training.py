"""The ways of carrying steps and seeds agree, and what is recorded is what was reached."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from hydra import initialize_config_dir

from experiments import parallel, training
from experiments.config import NORMS, SGD, RunningNorm, register_schemas
from experiments.data.loading import Dataset, Split, load
from experiments.models.cnn import CNN
from experiments.optimizers import make_optimizer
from experiments.parallel import Scope
from experiments.study import CONFIG_DIR, grid
from experiments.training import compile_program, train


@pytest.fixture(autouse=True, scope="module")
def promotion():
    """Optax's schedules mix integer steps and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few of the digits: 100 to train on and 40 to test with."""
    digits = load("digits", str(tmp_path_factory.mktemp("digits")))
    return Dataset(
        train=Split(*(values[:100] for values in digits.train)),
        test=Split(*(values[:40] for values in digits.test)),
        num_classes=digits.num_classes,
    )


@pytest.fixture(scope="module")
def tiny():
    """A run of two epochs of four steps each, with all that a state can hold."""
    return composed("norm=batch_renorm", "model.channels=[4]", "batch_size=32", "epochs=2")


def composed(*overrides):
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        [config] = grid([*overrides, "seeds=2"])
    return config


def values(histories):
    return np.array([[epoch[3:] for epoch in history] for history in histories])


@pytest.fixture(scope="module")
def plain(tiny, data):
    """The histories of one step a call and one seed after the other."""
    return train(replaced(tiny), data, lambda reached: None)


def replaced(config, *, steps_per_call=1, seeds_together=False, **changes):
    return dataclasses.replace(
        config, steps_per_call=steps_per_call, seeds_together=seeds_together, **changes
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "way",
    [
        {"seeds_together": True},
        {"steps_per_call": 2},
        {"steps_per_call": 3},  # does not divide the steps of an epoch
        {"seeds_together": True, "steps_per_call": 2},
    ],
    ids=str,
)
def test_every_way_of_carrying_gives_the_same_numbers(tiny, data, plain, way):
    calls = []
    histories = train(replaced(tiny, **way), data, calls.append)
    np.testing.assert_allclose(values(histories), values(plain), rtol=2e-4, atol=1e-5)
    assert len(calls) == (2 if way.get("seeds_together") else 4)


@pytest.mark.long
def test_histories_number_seeds_epochs_and_steps(plain):
    numbers = [[epoch[:3] for epoch in history] for history in plain]
    assert numbers == [[(0, 1, 4), (0, 2, 8)], [(1, 1, 4), (1, 2, 8)]]


@pytest.mark.long
def test_a_seed_repeats_itself_and_no_other(tiny, data, plain):
    again = train(replaced(tiny, seeds=1), data, lambda reached: None)
    np.testing.assert_array_equal(values(again)[0], values(plain)[0])
    assert (values(plain)[0] != values(plain)[1]).any()


@pytest.mark.long
def test_evaluation_counts_every_test_example(tiny, data, monkeypatch):
    config = replaced(tiny)
    program = compile_program(config, data)
    state = program.init(0)
    replicated = parallel.replicate(state, program.devices)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    model = CNN(config.model.channels, config.norm, Scope(), data.num_classes, total_steps=8)
    logits = np.asarray(model.apply(variables, data.test.images, train=False))
    labels = data.test.labels
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    accuracy = (logits.argmax(-1) == labels).mean()
    for size in (512, 16):  # 40 examples: one batch, and three with filling
        monkeypatch.setattr(training, "EVALUATION_BATCH", size)
        sums = training._evaluate(program, replicated, data.test)
        np.testing.assert_allclose(np.sum(sums, axis=0) / 40, [loss, accuracy], rtol=1e-5)


def test_a_loss_that_is_not_finite_is_recorded(tiny, data):
    optimizer = SGD("sgd", learning_rate=1e30, warmup=0.0, momentum=0.0)
    config = replaced(tiny, seeds=1, norm=NORMS["none"]("none"), optimizer=optimizer)
    [history] = train(config, data, lambda reached: None)
    assert not np.isfinite(history[-1].train_loss)
    assert 0 <= history[-1].test_accuracy <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_the_model_has_what_its_norm_needs(norm):
    config = composed(f"norm={norm}")
    model = CNN(config.model.channels, config.norm, Scope(), num_classes=10, total_steps=100)
    images = jax.ShapeDtypeStruct((16, 8, 8, 1), np.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    assert ("batch_stats" in variables) == isinstance(config.norm, RunningNorm)
    layers = variables["params"]
    biases = [name for name, layer in layers.items() if "bias" in layer and "Dense" not in name]
    assert len(biases) == 3, "each of the three layers has one bias, in the norm or before it"
    logits = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[0], variables, images
    )
    assert logits.shape == (16, 10)


@pytest.mark.parametrize("batch_size", [32, 64])
def test_the_learning_rate_warms_up_in_proportion_to_the_batch(batch_size):
    config = SGD("sgd", learning_rate=0.5, warmup=0.2, momentum=0.0)
    optimizer = make_optimizer(config, batch_size=batch_size, total_steps=10)
    state, rates = optimizer.init({"w": np.float32(0)}), []
    for _ in range(11):
        updates, state = optimizer.update({"w": np.float32(1)}, state)
        rates.append(-float(updates["w"]))
    assert rates[0] == 0
    np.testing.assert_allclose(max(rates), 0.5 * batch_size / 32)
    assert np.argmax(rates) == 2
    np.testing.assert_allclose(rates[-1], 0, atol=1e-6)
