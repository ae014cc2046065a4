"""Evaluation normalizes by the statistics that `inference` names."""

import jax
import numpy as np
import optax
import pytest
from runs_of import composed, result, trained

from experiments.errors import ConfigError
from experiments.norms.base import Scope
from experiments.runs import records
from experiments.runs.directory import run_directory
from experiments.training import parallel
from experiments.training.checkpoints import restore_final
from experiments.training.fit import SeedRun, _Training
from experiments.training.program import compile_program, model_of
from experiments.training.setup import make_setup

WINE = ("data=wine", "model=mlp", "model.hidden=[6,5]", "batch_size=50", "epochs=2", "seeds=1")
DIGITS = ("data=digits", "data.examples=100", "model.channels=[4]", "batch_size=50", "seeds=1")
SINGLE = ("parallel=single", "steps_per_call=1", "checkpoint_every=null")


@pytest.fixture(autouse=True, scope="module")
def promotion():
    """Optax's schedules mix integer steps and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Overrides that keep the data and the runs out of the working tree."""
    return tuple(f"{key}={tmp_path_factory.mktemp(key)}" for key in ("data.directory", "output"))


class Ready:
    """A run before its first step."""

    def __init__(self, *overrides):
        self.config = composed(*overrides)
        self.made = make_setup(self.config)
        self.program = compile_program(self.config, self.made)
        runs = [SeedRun(self.config, seed) for seed in range(self.config.seeds)]
        self.training = _Training(self.program, self.made, runs, [None] * len(runs))
        states = [self.program.init(*run) for run in runs]
        self.state = parallel.replicate(self.training._stack_runs(states), self.program.devices)
        self.dataset = self.training.datasets[0]

    def evaluated(self, name="test"):
        splits = [getattr(dataset, name) for dataset in self.training.datasets]
        means = self.training._evaluated(self.training._deployed(self.state), splits)
        return [[each["loss"], each["accuracy"]] for each in means]


def means_of(logits, labels):
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return [float(loss), float((logits.argmax(-1) == labels).mean())]


def of_groups(ready, split, size):
    """What groups give, each put through the model of training by itself; nothing is dropped."""
    variables = {"params": ready.state.params, "batch_stats": ready.state.batch_stats}
    model = model_of(ready.config, ready.made, Scope())
    order = np.random.default_rng(0).permutation(len(split.labels))
    apply = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"])[0])
    groups = np.split(order, range(size, len(order), size))
    logits = [apply(split.inputs[group]) for group in groups]
    return means_of(np.concatenate(logits), split.labels[order])


@pytest.fixture(scope="module")
def groups_of_ten(places):
    """36 test examples: groups of 10, 10, 10 and 6, the last of which is filled."""
    return Ready(
        *WINE, *SINGLE, *places, "norm=batch", "inference=batch", "inference.batch_size=10"
    )


@pytest.mark.long
def test_batches_of_evaluation_are_normalized_by_their_own_statistics(groups_of_ten):
    expected = of_groups(groups_of_ten, groups_of_ten.dataset.test, 10)
    np.testing.assert_allclose(groups_of_ten.evaluated(), [expected], rtol=1e-5)


@pytest.mark.long
def test_batches_of_evaluation_do_not_depend_on_those_that_are_compiled(groups_of_ten, monkeypatch):
    of_one_call = groups_of_ten.evaluated()
    monkeypatch.setattr("experiments.training.fit.EVALUATION_BATCH", 15)  # two groups a call
    np.testing.assert_allclose(groups_of_ten.evaluated(), of_one_call, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    "other",
    [
        ("norm=ghost_batch", "norm.ghost_size=5"),
        ("norm=batch", "parallel=jit"),
        ("norm=batch", "parallel=jit", "sync=local"),
        ("norm=batch", "parallel=shard_map"),
        ("norm=batch", "parallel=shard_map", "sync=group"),
        ("norm=batch", "model.dropout=0.5", "seeds=2", "seeds_together=true"),
    ],
    ids=" ".join,
)
def test_batches_of_evaluation_are_the_same_in_every_run(groups_of_ten, places, other):
    """Whatever the ghosts of training, the devices and the seeds beside."""
    by_batches = ("inference=batch", "inference.batch_size=10")
    ready = Ready(*WINE, *SINGLE, *places, *by_batches, *other)
    np.testing.assert_allclose(ready.evaluated()[0], groups_of_ten.evaluated()[0], rtol=1e-5)


@pytest.mark.long
def test_single_examples_are_normalized_by_themselves(places):
    options = ("norm=batch", "inference=batch", "inference.batch_size=1")
    ready = Ready(*DIGITS, *SINGLE, *places, *options)
    expected = of_groups(ready, ready.dataset.validation, 1)
    np.testing.assert_allclose(ready.evaluated("validation"), [expected], rtol=1e-5)


def moments(ready, batches, params=None):
    """Mean and variance of what goes into every place, by batches each normalized by itself."""
    variables = {"params": params or ready.state.params, "batch_stats": ready.state.batch_stats}
    model = model_of(ready.config, ready.made, Scope())
    given = {"train": True, "mutable": ["batch_stats", "intermediates"]}
    apply = jax.jit(lambda x: model.apply(variables, x, **given)[1]["intermediates"])
    seen = {}
    for inputs in batches:
        for name, sown in apply(inputs).items():
            seen.setdefault(name, []).append(np.asarray(sown["input"][0], np.float64))
    inputs = {name: np.concatenate(parts) for name, parts in seen.items()}
    return {name: {"mean": each.mean(0), "var": each.var(0)} for name, each in inputs.items()}


def of_training(ready, size, number):
    """The first batches of the first epoch, in their order."""
    labels = ready.dataset.train.labels
    order = np.random.default_rng((0, 1)).permutation(len(labels))
    parts = np.split(order, range(size, len(order), size))[:number]
    return [ready.dataset.train.inputs[part] for part in parts]


def assert_close(stats, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), stats, expected
    )


@pytest.fixture(scope="module")
def plain(places):
    """The same first parameters, without dropout, in training as it is by default."""
    return Ready(*WINE, *SINGLE, *places, "norm=batch")


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "size", "number"),
    [
        (("inference.examples=60",), 50, 2),  # in whole batches
        (("inference.examples=1000",), 50, 3),  # 114 examples: each once
        (("accumulate=2", "norm.momentum=0.5", "model.dropout=0.5"), 25, 5),
    ],
    ids=str,
)
def test_recomputed_statistics_are_the_moments_of_training_examples(
    places, plain, options, size, number
):
    ready = Ready(*WINE, *SINGLE, *places, "norm=batch", "inference=recomputed", *options)
    expected = moments(plain, of_training(plain, size, number))
    deployed = ready.training._deployed(ready.state)
    assert_close(jax.device_get(deployed.batch_stats), expected)
    variables = {"params": plain.state.params, "batch_stats": expected}
    test = plain.dataset.test
    logits = model_of(plain.config, plain.made, Scope()).apply(
        variables, test.inputs[:], train=False
    )
    np.testing.assert_allclose(ready.evaluated(), [means_of(logits, test.labels)], rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [("seeds=2", "seeds_together=true"), ("parallel=jit",), ("parallel=shard_map",)]
)
def test_recomputed_statistics_are_the_same_in_every_run(places, plain, options):
    ready = Ready(*WINE, *SINGLE, *places, "norm=batch", "inference=recomputed", *options)
    stats = jax.device_get(ready.training._deployed(ready.state).batch_stats)
    assert_close(ready.training._select(stats, 0), moments(plain, of_training(plain, 50, 3)))


@pytest.mark.long
@pytest.mark.parametrize("options", [("parallel=shard_map", "sync=local"), ("norm=ghost_batch",)])
def test_recomputed_statistics_are_merged_over_ghosts(places, plain, options):
    """What goes into the first place is the same, whatever the ghosts."""
    common = (*WINE, *SINGLE, *places, "inference=recomputed", "batch_size=48")
    ready = Ready(*common, *options)
    stats = jax.device_get(ready.training._deployed(ready.state).batch_stats)
    expected = moments(plain, of_training(plain, 48, 3))
    assert_close(stats["norm_0"], expected["norm_0"])
    assert abs(stats["norm_1"]["mean"] - expected["norm_1"]["mean"]).max() > 1e-3


@pytest.mark.long
def test_a_run_is_saved_as_it_was_evaluated_and_trained_as_without(places, plain):
    options = (*WINE, *SINGLE, *places, "norm=batch")
    config = composed(*options, "inference=recomputed", "fitted=true")
    trained(config)
    trained(plain.config)
    saved, kept = (
        restore_final(records.seed_directory(run_directory(each), 0))
        for each in (config, plain.config)
    )
    jax.tree.map(np.testing.assert_array_equal, saved["params"], kept["params"])
    assert_close(saved["batch_stats"], moments(plain, of_training(plain, 50, 3), saved["params"]))
    model = model_of(config, plain.made, Scope())
    splits = {"test": plain.dataset.test, "fitted": plain.dataset.train}
    for name, split in splits.items():
        reached = [result(config)[f"{name}_{key}"] for key in ("loss", "accuracy")]
        logits = model.apply(saved, split.inputs[:], train=False)
        np.testing.assert_allclose(reached, means_of(logits, split.labels), rtol=1e-4)


@pytest.mark.long
def test_what_was_fitted_is_told_of_the_first_training_examples(places, monkeypatch):
    monkeypatch.setattr("experiments.training.fit.FITTED_EXAMPLES", 70)
    ready = Ready(*WINE, *SINGLE, *places, "norm=none", "fitted=true")
    [reached] = ready.training._tested(ready.state)
    train = ready.dataset.train
    model = model_of(ready.config, ready.made, Scope())
    logits = model.apply({"params": ready.state.params}, train.inputs[:70], train=False)
    expected = means_of(logits, train.labels[:70])
    fitted = [reached["fitted_loss"], reached["fitted_accuracy"]]
    np.testing.assert_allclose(fitted, expected, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("inference", ["batch", "recomputed"])
def test_what_keeps_no_statistics_is_evaluated_as_ever(places, inference):
    ready = Ready(*WINE, *SINGLE, *places, "norm=layer", f"inference={inference}")
    assert ready.program.group is ready.program.measure is None


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["inference=batch", "inference.batch_size=0"], ["inference.batch_size is 0", "1 or more"]),
        (["inference=recomputed", "inference.examples=0"], ["inference.examples is 0"]),
        (["inference=batch", "norm=batch_renorm"], ["norm=batch_renorm", "inference=running"]),
        (
            ["inference=recomputed", "sync=group", "parallel=shard_map"],
            ["inference=recomputed", "sync=group", "or parallel=jit"],
        ),
        (
            [*WINE, "inference=batch", "inference.batch_size=1"],
            ["inference.batch_size is 1", "model=mlp", "give 2 or more, or model=cnn"],
        ),
    ],
    ids=str,
)
def test_what_evaluation_cannot_normalize_by_is_told(overrides, fragments):
    with pytest.raises(ConfigError) as caught:
        composed(*overrides)
    for fragment in fragments:
        assert fragment in str(caught.value)
