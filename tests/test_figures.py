"""What the figures of a study hold: which key stands where, every seed, means, intervals."""

import numpy as np
import pytest
import run_files
from scipy import stats

from experiments.config import StudyConfig
from experiments.reports import figures, style
from experiments.reports.metrics import metric
from experiments.reports.results import collect


@pytest.fixture
def accuracy():
    return metric("test_accuracy", [])


def test_numbers_stand_along_x_and_norms_are_series(tmp_path, accuracy):
    changes = [{"norm": n, "batch_size": b} for n in ("none", "batch") for b in (2, 16, 256)]
    found = run_files.points(tmp_path, *changes)
    assert figures.choose_axes(found, StudyConfig()) == ("batch_size", ["norm"], None)
    [figure] = figures.metric_figures(found, accuracy, StudyConfig())
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.tickvals == (2, 16, 256)
    [none_seeds, none, _, batch] = figure.data
    assert (none.name, batch.name) == ("none", "batch")
    np.testing.assert_allclose(none.y, [9.0] * 3)  # the error, on a reversed axis
    assert len(none_seeds.x) == 9
    assert none.marker.color == style.NORM_MARKS["none"].color
    low, high = stats.ttest_1samp([90, 91, 92], 0).confidence_interval(0.95)
    np.testing.assert_allclose(none.error_y.array, [91 - low] * 3, rtol=1e-4)
    np.testing.assert_allclose(none.error_y.arrayminus, [high - 91] * 3, rtol=1e-4)


@pytest.mark.long
def test_a_third_key_makes_facets_and_more_are_one_label(tmp_path, accuracy):
    changes = [
        {"norm": n, "batch_size": b, "dtype": d}
        for n in ("none", "batch")
        for b in (2, 16)
        for d in ("float32", "bfloat16")
    ]
    found = run_files.points(tmp_path, *changes)
    drawn = figures.metric_figures(found, accuracy, StudyConfig(x="batch_size"))
    assert [figure.layout.title.text for figure in drawn] == ["dtype float32", "dtype bfloat16"]
    more = run_files.points(tmp_path, *({**c, "accumulate": a} for c in changes for a in (1, 2)))
    [figure] = figures.metric_figures(more, accuracy, StudyConfig(x="batch_size"))
    names = {trace.name for trace in figure.data if trace.name}
    assert len(names) == 8
    assert "none, accumulate 1, float32" in names


def test_words_are_categories_and_one_run_is_a_figure_too(tmp_path, accuracy):
    found = run_files.points(tmp_path, {"norm": "none"}, {"norm": "batch"})
    [figure] = figures.metric_figures(found, accuracy, StudyConfig())
    assert figure.layout.xaxis.ticktext == ("none", "batch")
    assert figure.layout.xaxis.tickvals == (0, 1)
    [figure] = figures.metric_figures(found[:1], accuracy, StudyConfig())
    np.testing.assert_allclose(figure.data[1].y, [9.0])


def test_curves_show_every_seed_and_the_mean(tmp_path):
    found = run_files.points(tmp_path, {"norm": "none"}, {"norm": "batch"})
    validation, training = figures.learning_curves(found, StudyConfig())
    seeds, mean = validation.data[:2]
    assert seeds.x == (100, 200, None) * 3
    np.testing.assert_allclose(mean.y, [100 - 91 / 2, 9.0], rtol=1e-4)
    np.testing.assert_allclose(training.data[1].y, [1.0, 0.5])


def test_a_curve_ends_where_the_loss_is_not_finite(tmp_path):
    found = run_files.points(tmp_path, {}, ended="diverged")
    validation, training = figures.learning_curves(found, StudyConfig())
    assert len(validation.data[1].x) == 2
    assert len(training.data[1].x) == 0


def test_one_evaluation_makes_no_curve(tmp_path):
    config = run_files.configuration(seeds=1, output=str(tmp_path))
    final = run_files.result(0, 0.9, config=config)
    run_files.write_seed(config, final, run_files.history(final, steps=(200,)))
    assert figures.learning_curves(collect([config]), StudyConfig()) == []


def test_many_lines_are_split_into_figures(tmp_path):
    norms = ("none", "batch", "layer", "rms", "group")
    found = run_files.points(
        tmp_path, *({"norm": n, "batch_size": b} for n in norms for b in (16, 256))
    )
    drawn = figures.learning_curves(found, StudyConfig())
    assert [f.layout.title.text for f in drawn] == ["batch size 16"] * 2 + ["batch size 256"] * 2
    assert [len(figure.data) for figure in drawn] == [10] * 4


def test_an_interval_stays_between_no_and_all(tmp_path, accuracy):
    found = run_files.points(tmp_path, {}, seeds=[0.5, 0.999])  # of two seeds, wider than 100
    [figure] = figures.metric_figures(found, accuracy, StudyConfig())
    [_, mean] = figure.data
    assert mean.y[0] + mean.error_y.array[0] == pytest.approx(100)
    assert mean.y[0] - mean.error_y.arrayminus[0] == pytest.approx(style.MIN_ERROR)
