"""The pictures of a network: figures from plain arrays, and a page from a trained run."""

import jax
import numpy as np
import pytest
from browser import browser, needs_chromium
from environment import generator
from hydra import initialize_config_dir

from experiments.config import register_schemas
from experiments.data.splits import Split
from experiments.errors import ConfigError
from experiments.inspect import inspect
from experiments.launch.run import run
from experiments.launch.study import CONFIG_DIR, grid
from experiments.reports import activations, network
from experiments.runs.directory import run_directory
from experiments.training.setup import make_setup

RUN = ("data=wine", "model=mlp", "norm=batch", "epochs=3", "seeds=1", "parallel=single")


def test_a_distribution_shows_both_sides_against_their_peaks():
    before = 3 + 5 * generator(1).normal(size=(4000, 2))
    after = generator(2).normal(size=(4000, 2))
    figure = activations.distribution(before, after, "norm_0")
    wide, narrow = figure.data
    assert (wide.name, narrow.name) == ("before", "after")
    for trace, mean, deviation in ((wide, 3, 5), (narrow, 0, 1)):
        x, share = np.array(trace.x), np.array(trace.y)
        assert share.max() == 1
        center = np.average(x, weights=share)
        spread = np.sqrt(np.average((x - center) ** 2, weights=share))
        assert center == pytest.approx(mean, abs=0.3)
        assert spread == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize("values", [np.zeros((8, 3)), np.full((8, 3), np.nan)])
def test_a_distribution_without_width_is_drawn(values):
    for trace in activations.distribution(values, values, "norm_0").data:
        assert np.isfinite(trace.y).all()


def test_quantiles_are_lines_over_the_steps():
    before = [[-2, -1, 0, 1, 2], [-4, -2, None, 2, 4]]
    figure = activations.quantiles([10, 20], before, np.ones((2, 5)), "norm_0")
    assert len(figure.data) == 10
    assert figure.data[0].x == (10, 20)
    assert [trace.y for trace in figure.data[:3]] == [(-2, -4), (-1, -2), (0, None)]
    assert sum(trace.showlegend for trace in figure.data) == 2


def test_running_statistics_stand_against_those_of_a_batch():
    running = np.array([0.0, 1.0]), np.array([4.0, 9.0])
    batch = np.array([0.5, 1.5]), np.array([16.0, 1.0])
    diagonal, mean, deviation = activations.running_against_batch(running, batch, "norm_0").data
    assert (mean.x, mean.y) == ((0, 1), (0.5, 1.5))
    assert (deviation.x, deviation.y) == ((2, 3), (4, 1))  # square roots of the variances
    assert diagonal.x == diagonal.y == (0, 4)


def test_a_step_without_statistics_takes_no_diagonal_away():
    running = np.array([0.0, 1.0]), np.array([4.0, 9.0])
    batch = np.array([0.5, np.nan]), np.array([16.0, np.nan])
    diagonal, mean, _ = activations.running_against_batch(running, batch, "norm_0").data
    assert mean.y == (0.5, None)
    assert diagonal.x == diagonal.y == (0, 4)


def test_the_widest_and_the_narrowest_feature_are_chosen():
    scale = np.array([3.0, 0.0, 100.0, 0.5])  # a constant feature shows nothing
    values = generator(3).normal(size=(200, 4)) * scale
    assert activations.largest_and_smallest_deviation(values) == (2, 3)
    assert activations.largest_and_smallest_deviation(np.ones((5, 1))) == (0, 0)


def test_what_the_mask_leaves_out_is_not_shown():
    values = np.arange(12.0).reshape(3, 4, 1)  # (time, examples, channels)
    mask = np.arange(3)[:, None] < np.array([3, 1, 0, 2])
    assert network._within(values, mask).ravel().tolist() == [0, 1, 3, 4, 7, 8]
    assert network._within(values.reshape(12, 1), mask.ravel()).ravel().tolist() == [
        *(0, 1, 3, 4, 7, 8)
    ]
    assert network._within(values, None) is values


def test_the_statistics_of_a_batch_are_of_what_the_mask_leaves():
    rows = np.array([[1.0], [3.0], [100.0]])
    stats = {"norm_0": {"mean": np.zeros(1), "var": np.ones(1)}}
    sown = {"input": rows, "mask": np.array([True, True, False])}
    _, (mean, var) = network._statistics(stats, "norm_0", sown)
    assert (mean.tolist(), var.tolist()) == ([2], [1])
    by_step = {"norm_0": {"mean": np.zeros((2, 1)), "var": np.ones((2, 1))}}
    sown = {"input": np.stack([rows, rows]), "mask": np.array([[1, 1, 0], [0, 0, 0]], bool)}
    _, (mean, var) = network._statistics(by_step, "norm_0", sown)
    np.testing.assert_array_equal(mean, [[2], [np.nan]])  # a step that no example has
    np.testing.assert_array_equal(var, [[1], [np.nan]])


def test_the_moments_of_places_are_of_what_the_mask_leaves_at_each_step():
    rows = generator(5).normal(size=(3, 6, 2)).astype(np.float32)  # (time, examples, channels)
    mask = np.arange(3)[:, None] < np.array([3, 1, 1, 2, 2, 1])
    by_step = {"mean": np.zeros((3, 2)), "var": np.ones((3, 2))}
    m = network._moments({"input": rows, "mask": mask}, by_step)
    assert m.count.tolist() == [[6, 6], [3, 3], [1, 1]]
    np.testing.assert_allclose(m.mean[1], rows[1, [0, 3, 4]].mean(0), rtol=1e-5)
    m = network._moments({"input": rows}, {"mean": np.zeros(2), "var": np.ones(2)})
    np.testing.assert_allclose(m.var, rows.var((0, 1)), rtol=1e-5)


# ---- a trained run


def composed(*overrides):
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        [config] = grid(overrides)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    config = composed(*RUN, f"output={output}")
    with jax.numpy_dtype_promotion("standard"):  # the schedules of optax promote
        run([config], lambda event: None)
    return config, run_directory(config)


@pytest.mark.long
def test_places_hold_what_goes_in_and_out(trained):
    config, directory = trained
    places = network.places(config, directory)
    assert [place.name for place in places] == ["norm_0", "norm_1", "norm_2"]
    for place in places:
        mean, var = place.running
        params = network.restore_final(directory / "seed-0")["params"][place.name]
        expected = (place.before - mean) / np.sqrt(var + config.norm["epsilon"])
        expected = expected * params["scale"] + params["bias"]
        np.testing.assert_allclose(place.after, expected, rtol=1e-4, atol=1e-4)
        first = place.before[: config.batch_size]
        np.testing.assert_allclose(place.batch[0], first.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(place.batch[1], first.var(0), rtol=1e-3, atol=1e-5)


@pytest.mark.long
def test_what_is_wrong_with_the_statistics_is_said(trained):
    """24 steps leave 8 % of a first variance of 1, which is far above that of the first layers."""
    config, directory = trained
    found = network.places(config, directory)
    report = network.diagnosis(config, found, steps=24)
    assert report.names == ("norm_0", "norm_1", "norm_2")
    figures = [row.figure for row in report.rows if row.finding == "not_converged"]
    assert figures == pytest.approx([0.9**24] * len(figures))
    assert figures
    without = [place._replace(stats=None, measured=None) for place in found]
    assert network.diagnosis(config, without, steps=24) is None
    assert "convergence (momentum 0.9, 24 steps)" in " ".join(
        inspect(directory).read_text().split()
    )


@pytest.mark.long
def test_inputs_are_shown_under_every_scaling(trained):
    config, _ = trained
    by_kind = {scaled.kind: scaled.values for scaled in network.scaled_inputs(config)}
    assert by_kind["raw"].std(0).max() > 100  # proline, in mg a liter
    np.testing.assert_allclose(by_kind["standard"].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(by_kind["standard"].std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(by_kind["min_max"].min(0), 0, atol=1e-5)
    np.testing.assert_allclose(by_kind["min_max"].max(0), 1, rtol=1e-5)


@needs_chromium
@pytest.mark.long
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_is_drawn(trained, width):
    _, directory = trained
    path = inspect(directory)
    with browser() as open_page:
        page = open_page(path, width, dark=True)
        assert page.complaints == []
        library = directory.parent / "plotly.min.js"
        assert page.fetched == [path.as_uri(), library.as_uri()]
        assert page.say("document.documentElement.scrollWidth") <= width
        drawn = (
            "[...document.querySelectorAll('.figure')].filter(e => e.querySelector('.main-svg'))"
        )
        assert page.say(f"{drawn}.length") == 3 + 3 * 3  # of the inputs, and of each layer


@pytest.mark.long
def test_a_run_without_its_parameters_is_told(tmp_path):
    config = composed(*RUN, f"output={tmp_path}")
    with pytest.raises(ConfigError, match="seed-0/final does not exist; train the run"):
        network.places(config, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("model", ["transformer", "lstm"])
def test_rows_beyond_the_lengths_are_not_shown(model):
    rows = generator(4).normal(size=(8, 5, 3)).astype(np.float32)
    lengths = np.array([5, 1, 2, 3, 4, 5, 2, 1], np.int32)
    split = Split(rows, np.zeros(8, np.int32), lengths)
    config = composed("data=digits", "data.lengths=inked", f"model={model}", "norm=batch")
    made = make_setup(config)
    variables = network.model_of(config, made, network.Scope()).init(
        jax.random.key(0), rows, lengths, train=False
    )
    for sown in network._captured(config, made, variables, split, 8).values():
        assert len(network._within(sown["input"], sown["mask"])) == lengths.sum()
