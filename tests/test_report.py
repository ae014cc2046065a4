"""What a report computes, tells and writes, from runs whose numbers are known."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import run_files
from hydra import initialize_config_dir
from rich.console import Console
from scipy import stats

from experiments.config import Contrast, StudyConfig, register_schemas
from experiments.errors import ConfigError
from experiments.launch.study import CONFIG_DIR, grid
from experiments.report import _compared as compared
from experiments.report import _setting as setting
from experiments.report import changes, family, report, report_all, studies, write_report
from experiments.reports import page
from experiments.reports.comparison import Comparison
from experiments.reports.metrics import metric
from experiments.reports.results import (
    Point,
    collect,
    label,
    shortfalls,
    swept_keys,
    value_label,
)
from experiments.reports.table import study_table
from experiments.runs.directory import run_directory

STUDY = ("study=norms", "norm=none,batch", "epochs=2", "seeds=3")


@pytest.fixture
def accuracy():
    return metric("test_accuracy", [])


# ---- which keys vary, and what they are called


def test_the_keys_that_vary_are_found(tmp_path):
    found = run_files.points(
        tmp_path,
        {"norm": "batch", "optimizer": {"learning_rate": 0.1}},
        {"norm": "batch", "optimizer": {"learning_rate": 1.0}},
        {"norm": "layer", "optimizer": {"learning_rate": 0.1}},
    )
    assert swept_keys(found) == ["norm", "optimizer.learning_rate"]
    assert swept_keys(found, ["optimizer.learning_rate"])[0] == "optimizer.learning_rate"
    assert label(found[1], swept_keys(found)) == "batch, learning rate 1"


def test_options_of_a_component_count_where_the_component_is_the_same(tmp_path):
    ghost = {"name": "ghost_batch", "ghost_size": 4}
    found = run_files.points(tmp_path, {"norm": "batch"}, {"norm": ghost})
    assert swept_keys(found) == ["norm"]
    found = run_files.points(
        tmp_path, {"norm": "batch"}, {"norm": ghost}, {"norm": ghost | {"ghost_size": 8}}
    )
    assert swept_keys(found) == ["norm", "norm.ghost_size"]


def test_a_key_that_follows_from_another_is_left_out(tmp_path):
    found = run_files.points(
        tmp_path,
        {"norm": "batch", "optimizer": {"learning_rate": 1.0}},
        {"norm": "none", "optimizer": {"learning_rate": 0.1}},
    )
    assert swept_keys(found) == ["norm"]


def test_values_in_words():
    shown = [value_label(value) for value in ((16, 32), 1e-5, None, True, "batch_renorm")]
    assert shown == ["16-32", "1e-05", "none", "True", "batch renorm"]


# ---- numbers


def test_the_interval_is_students(tmp_path, accuracy):
    values = np.array([94.0, 95.0, 97.0, 98.0])
    [point] = run_files.points(tmp_path, {"seeds": 4}, seeds=list(values / 100))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    summary = accuracy.summary(point)
    np.testing.assert_allclose([summary.low, summary.high], expected)
    half_width = (expected.high - expected.low) / 2
    assert accuracy.summary_text(point) == f"96.0 ± {half_width:.1f}"


def test_one_seed_has_no_interval(tmp_path, accuracy):
    [point] = run_files.points(tmp_path, {}, seeds=[0.94])
    assert accuracy.summary_text(point) == "94.0"


def test_steps_have_a_geometric_mean_and_the_budget_where_not_reached(tmp_path):
    config = run_files.configuration(seeds=2, target=0.8, output=str(tmp_path))  # two epochs
    reached = run_files.result(0, 0.8, ended="stopped", step=50, config=config)
    run_files.write_seed(config, reached, run_files.history(reached, steps=(25, 50)))
    run_files.write_seed(config, run_files.result(1, 0.7, step=200, config=config))
    [point] = collect([config])
    steps = metric("steps_to_target", [point])
    assert point.budget == 200
    assert steps.values(point) == {0: 50.0, 1: 200.0}
    assert steps.summary(point).mean == pytest.approx(100.0)
    assert "1 did not reach it" in study_table([point], steps).rows[0][-1]


# ---- tables


def test_two_keys_make_a_pivot(tmp_path, accuracy):
    changes = [{"norm": n, "batch_size": b} for n in ("none", "batch") for b in (256, 16)]
    found = run_files.points(tmp_path, *changes[:3])
    run_files.write_run(found[2].config, [0.95, 0.96, 0.97])
    found = collect([point.config for point in found])
    table = study_table(found, accuracy, ["batch_size", "norm"])
    assert table.head == ["normalization", "batch size 16", "batch size 256"]
    assert table.rows == [["none", "91.0 ± 2.5", "91.0 ± 2.5"], ["batch", "", "96.0 ± 2.5"]]
    assert table.best == {(1, 2)}


def test_the_shortest_time_is_the_best(tmp_path):
    configs = [
        run_files.configuration(norm=norm, seeds=1, output=str(tmp_path))
        for norm in ("none", "batch")
    ]
    for config, overhead in zip(configs, (1.0, 1.2), strict=True):
        run_files.write_seed(config, run_files.result(0, 0.9) | {"overhead": overhead})
    points = collect(configs)
    assert study_table(points, metric("overhead", points)).best == {(0, 1)}


@pytest.mark.parametrize(
    ("key", "lowest"),
    [
        ("gradient_decades", True),
        ("final_gradient_decades", True),
        ("step_bytes", True),
        ("memory_overhead", True),
        ("test_loss", True),
        ("share_near_best", False),
        ("test_accuracy", False),
    ],
)
def test_which_end_of_a_metric_is_best(key, lowest):
    assert metric(key, []).lowest_is_best == lowest


def test_other_numbers_of_keys_make_a_row_a_run(tmp_path, accuracy):
    changes = [
        {"norm": norm, "batch_size": size, "dtype": dtype}
        for norm in ("none", "batch")
        for size in (16, 32)
        for dtype in ("float32", "bfloat16")
    ]
    table = study_table(run_files.points(tmp_path, *changes), accuracy, ["batch_size"])
    assert table.head == ["batch size", "normalization", "dtype", "test accuracy (%)"]
    assert table.rows[1] == ["16", "none", "bfloat16", "91.0 ± 2.5"]
    assert len(table.rows) == 8
    one = study_table(run_files.points(tmp_path, {"norm": "none"}, {"norm": "batch"}), accuracy)
    assert one.head == ["normalization", "test accuracy (%)"]


def test_what_is_missing_or_stale_is_named(tmp_path, accuracy):
    found = run_files.points(
        tmp_path, {"norm": "none"}, {"norm": "batch", "seeds": 4}, code="other"
    )
    absent = run_files.configuration(norm="layer", output=str(tmp_path))
    found = collect([*(point.config for point in found), absent])
    names = [point.directory.name for point in found]
    assert shortfalls(found) == [
        f"1 of 3 runs are missing: {names[2]}.",
        f"Seeds are missing of {names[1]} (seeds 3).",
        f"Stale, made by other code than today's: {names[0]} (seeds 0, 1, 2), "
        f"{names[1]} (seeds 0, 1, 2).",
    ]
    cells = [row[1] for row in study_table(found, accuracy).rows]
    assert cells == ["91.0 ± 2.5 (3 stale)", "91.0 ± 2.5 (1 missing, 3 stale)", "not run"]


# ---- the command


def composed(*overrides):
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        return grid(overrides)


@pytest.fixture
def overrides(tmp_path):
    register_schemas()
    return (*STUDY, f"output={tmp_path}")


@pytest.fixture
def finished(overrides):
    """All four runs; no normalization at a large batch has diverged."""
    configs = composed(*overrides)
    none_small, none_large, batch_small, batch_large = configs
    run_files.write_run(none_small, [0.90, 0.91, 0.92])
    run_files.write_run(none_large, [0.1, 0.1, 0.1], ended="diverged")
    run_files.write_run(batch_small, [0.91, 0.92, 0.93])
    run_files.write_run(batch_large, [0.95, 0.96, 0.97])
    return configs


def printed(overrides, command=report):
    console = Console(file=io.StringIO(), width=100)
    command(overrides, console)
    return console.file.getvalue()


def test_the_table_and_the_page_hold_the_numbers(finished, overrides, tmp_path):
    text = printed(overrides)
    html = (tmp_path / "norms.html").read_text()
    for shown in (text, html):
        for number in ("91.0 ± 2.5", "10.0 ± 0.0", "92.0 ± 2.5", "96.0 ± 2.5", "3 diverged"):
            assert number in shown
    question, answer, last = text.splitlines()[-3:]
    assert question.startswith("question: How well does the same small network learn")
    assert answer.startswith("answer: At batch size 16, batch has the highest mean test accuracy")
    assert answer.removeprefix("answer: ") in html
    assert last == f"report: {tmp_path / 'norms.html'}"
    for told in ("How well does the same small network", "jax", "9.9.9", "python -m experiments"):
        assert told in html
    assert all(run_directory(config).name in html for config in finished)
    assert len(html) < 200_000
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000


@pytest.mark.long
def test_the_index_links_every_study(finished, overrides, tmp_path):
    printed(overrides)
    html = (tmp_path / "index.html").read_text()
    assert 'href="norms.html"' in html
    assert "12 of 12 seeds of 4 runs" in html
    assert "verdict: " not in html


@pytest.mark.long
def test_missing_runs_are_told_and_the_others_reported(overrides, tmp_path):
    first, *missing = composed(*overrides)
    run_files.write_run(first, [0.90, 0.91, 0.92])
    text = printed(overrides)
    html = (tmp_path / "norms.html").read_text()
    for shown in (text, html):
        assert "3 of 4 runs are missing" in shown
        assert all(run_directory(config).name in shown for config in missing)
    assert "not run" in text
    assert "python -m experiments.studies norm=none,batch" in text
    assert "--only norms" in text


CONTRAST = Contrast("norm=batch", "norm=none", "test_accuracy", "greater", 0.5, "points")


def written(name, output, **others):
    """Report a made-up study of two runs of eight tuning and 64 fresh seeds."""
    study = StudyConfig(name=name, contrast=CONTRAST)
    configs = [
        run_files.configuration(norm=norm, output=str(output), seeds=72, study=study)
        for norm in ("batch", "none")
    ]
    run_files.write_run(configs[0], np.linspace(0.91, 0.94, 72), **others)
    run_files.write_run(configs[1], [0.90] * 72)
    console = Console(file=io.StringIO())
    write_report(configs[0], collect(configs), "command", console)
    return console.file.getvalue()


@pytest.mark.long
def test_verdicts_correct_each_other_on_every_page(tmp_path, monkeypatch):
    """A second study makes the p-value of the first larger, on its page too."""
    monkeypatch.setattr("experiments.report.family", lambda folder: ["first"])
    written("first", tmp_path)
    places = json.loads((tmp_path / "first.study.json").read_text())["places"]
    p = Comparison.from_dict(places[0]).p
    assert f"adjusted p = {p:.2g} (Holm, 1 contrast)" in (tmp_path / "first.html").read_text()
    monkeypatch.setattr("experiments.report.family", lambda folder: ["first", "second"])
    written("second", tmp_path)
    for name in ("first", "second", "index"):
        html = (tmp_path / f"{name}.html").read_text()
        assert f"adjusted p = {2 * p:.2g} (Holm, 2 contrasts)" in html
        assert "Holm, 1 contrast)" not in html


def test_the_family_is_read_from_the_studies(tmp_path, monkeypatch):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "claimed.yaml").write_text("study:\n  name: claimed\n  contrast: {a: norm=batch}\n")
    (folder / "plain.yaml").write_text("study:\n  name: plain\n")
    monkeypatch.setattr("experiments.report.CONFIG_DIR", str(tmp_path))
    assert family() == ["claimed"]


def test_what_makes_another_study_is_found():
    same = ["study=norms", "seeds=2", "output=elsewhere", "data.directory=d", "launcher.workers=1"]
    assert changes([*same, "launcher=ray"]) == []
    others = ["epochs=2", "norm=none,batch", "data=wine", "study.contrast.delta=0"]
    assert changes([*same, *others]) == others


@pytest.mark.long
def test_a_changed_study_leaves_the_verdict_as_it_was(finished, overrides, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.report.family", lambda folder: ["norms"])
    text = printed(overrides)
    assert not (tmp_path / "norms.html").exists()
    assert not (tmp_path / "norms.study.json").exists()
    told = "norm=none,batch epochs=2 makes another study, and the verdict of the study itself"
    assert f"verdict: no verdict: {told}" in text
    assert told in (tmp_path / "norms-changed.html").read_text()


@pytest.mark.long
def test_a_page_says_near_its_verdict_what_is_stale(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.report.family", lambda folder: ["first"])
    text = written("first", tmp_path, code="other")
    html = (tmp_path / "first.html").read_text()
    box = html[html.index("<!--verdict-->") : html.index("<h2>")]
    for shown in (text, box):
        assert "norm=batch: 1 of 1 trials are stale, made by other code than today" in shown
        assert "Stale, made by other code than today" in shown
    assert "so far 9" in box


@pytest.mark.long
def test_without_a_study_all_that_have_runs_are_reported(
    finished, overrides, tmp_path, monkeypatch
):
    names = ["convergence", "ghost", "norms"]  # to compose all studies takes a minute
    assert set(names) < set(studies())
    monkeypatch.setattr("experiments.report.studies", lambda: names)
    text = printed(overrides[1:], report_all)
    assert "study=ghost: error: there is no key 'ghost_size' in norm" in text
    assert text.count("report: ") == 1
    assert f"report: {tmp_path / 'norms.html'}" in text
    with pytest.raises(ConfigError, match=r"no study has a finished run; the studies are .*norms"):
        printed((f"output={tmp_path / 'elsewhere'}",), report_all)


def test_what_a_report_needs_is_told(tmp_path, overrides):
    with pytest.raises(ConfigError, match=r"needs a study; give study=NAME, one of .*norms"):
        printed((f"output={tmp_path}",))
    with pytest.raises(ConfigError, match="no run is finished; train them with: python -m"):
        printed(overrides)


def test_text_of_a_configuration_is_never_markup(tmp_path):
    assert "&lt;b&gt;" in page.table(["<b>"], [["<b>"]])
    assert not re.search("<b>", page.table(["<b>"], [["<b>"]]) + page.terms([("<b>", "<b>")]))


def test_the_setting_names_the_models_and_data_of_all_runs_of_both_arms():
    runs = [
        ("none", "mlp", "digits"),
        ("layer", "cnn", "letters"),
        ("rms", "lstm", "digits"),
        ("batch", "gru", "digits"),
    ]
    points = [
        Point(None, Path(), {"norm": norm, "model": model, "data": data}, {})
        for norm, model, data in runs
    ]
    contrast = Contrast(
        "norm=layer or norm=rms", "norm=batch", "test_accuracy", "greater", 1.0, "points"
    )
    study = StudyConfig(name="one", contrast=contrast)
    assert setting(compared(study, points)) == "cnn, lstm and gru on letters and digits"
