"""What a report computes, tells and shows, from runs whose numbers are known."""

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hydra import initialize_config_dir
from rich.console import Console
from scipy import stats

from experiments.config import register_schemas
from experiments.figures import accuracy_by_batch_size, learning_curves
from experiments.report import report, summarize
from experiments.results import Interval, Run, collect, interval
from experiments.runs import run_directory, write_config, write_result
from experiments.study import CONFIG_DIR, grid
from experiments.training import Epoch
from experiments.validation import ConfigError

STUDY = ("study=norms", "norm=none,batch", "epochs=2", "seeds=3")


def composed(*overrides):
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        return grid(overrides)


def finish(config, accuracies, loss=0.5):
    """Write a run whose seeds reached the accuracies (0 to 1) after two epochs."""
    histories = [
        [Epoch(s, e, 10 * e, loss, a, loss, a / 2 if e == 1 else a) for e in (1, 2)]
        for s, a in enumerate(accuracies)
    ]
    write_config(run_directory(config), config)
    write_result(run_directory(config), histories, seconds=1.5)


@pytest.fixture
def overrides(tmp_path):
    return (*STUDY, f"output={tmp_path}")


@pytest.fixture
def finished(overrides):
    """All four runs; batch norm is best, and two batches of `none` tell apart."""
    none_small, none_large, batch_small, batch_large = composed(*overrides)
    finish(none_small, [0.90, 0.91, 0.92])
    finish(none_large, [0.10, 0.10, 0.11], loss=float("nan"))
    finish(batch_small, [0.91, 0.92, 0.93])
    finish(batch_large, [0.95, 0.96, 0.97])
    runs, _ = collect(composed(*overrides))
    return runs


def printed(overrides):
    console = Console(file=io.StringIO(), width=100)
    report(overrides, console)
    return console.file.getvalue()


def test_the_interval_is_students():
    values = np.array([94.0, 95.0, 97.0, 98.0])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, half_width = interval(values)
    np.testing.assert_allclose([mean - half_width, mean + half_width], expected)


def test_one_seed_has_no_interval():
    assert str(interval(np.array([94.0]))) == "94.0"
    assert str(Interval(94.0, 1.25)) == "94.0 ± 1.2"


def test_the_summary_tells_the_best_the_close_and_the_diverged(finished):
    summary = summarize(finished)
    assert "At a batch size of 16, batch is the most accurate (92.0 ± 2.5 %)" in summary
    assert "the confidence intervals of none overlap with it" in summary
    assert "At a batch size of 256, batch is the most accurate (96.0 ± 2.5 %)." in summary
    assert "3 of 3 seeds diverged with normalization 'none'" in summary


def test_the_table_and_the_page_hold_the_numbers(finished, overrides, tmp_path):
    text = printed(overrides)
    html = (tmp_path / "norms.html").read_text()
    for shown in (text, html):
        for number in ("91.0 ± 2.5", "10.3 ± 1.4", "92.0 ± 2.5", "96.0 ± 2.5"):
            assert number in shown
        assert "3 diverged" in shown
    assert text.splitlines()[-1] == f"report: {tmp_path / 'norms.html'}"
    for config in composed(*overrides):
        assert run_directory(config).name in html
    for version in finished[0].result["versions"].values():
        assert version in html
    assert "How well does the same small network learn" in html


class References(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.fetched = []

    def handle_starttag(self, tag, attrs):
        fetching = ("src", "srcset", "data", "poster") + (("href",) if tag == "link" else ())
        self.fetched += [(tag, key, value) for key, value in attrs if key in fetching]


def test_the_page_fetches_nothing(finished, overrides, tmp_path):
    printed(overrides)
    html = (tmp_path / "norms.html").read_text()
    parser = References()
    parser.feed(html)
    assert parser.fetched == []
    styles = "".join(re.findall(r"<style>.*?</style>", html, flags=re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles


def test_missing_runs_are_told_and_the_others_reported(overrides, tmp_path):
    first, *missing = composed(*overrides)
    finish(first, [0.90, 0.91, 0.92])
    text = printed(overrides)
    html = (tmp_path / "norms.html").read_text()
    for shown in (text, html):
        assert "3 of 4 runs are missing" in shown
        assert "not run" in shown or "batch size 256" not in shown
        assert all(run_directory(config).name in shown for config in missing)
    assert "python -m experiments.train --multirun study=norms" in text


def test_runs_of_other_configurations_never_mix_in(finished, tmp_path):
    other = (*STUDY[:-1], "seeds=2", f"output={tmp_path}")
    with pytest.raises(ConfigError, match="none of the 4 runs is finished"):
        printed(other)


def test_what_a_report_cannot_compare_is_told(tmp_path):
    with pytest.raises(ConfigError, match="several runs with norm=none batch_size=16"):
        printed((*STUDY, "epochs=2,3", f"output={tmp_path}"))
    with pytest.raises(ConfigError, match="needs a study"):
        printed((f"output={tmp_path}",))


def test_the_figures_hold_every_run(finished):
    points = accuracy_by_batch_size(finished).data
    assert [trace.name for trace in points] == ["none", "batch"]
    np.testing.assert_allclose(points[1].y, [8.0, 4.0])  # the error, on a reversed axis
    curves = learning_curves(finished).data
    assert sum(trace.showlegend is not False for trace in curves) == 2
    assert all(len(trace.x) in (0, 2, 4) for trace in curves)
    json.loads(accuracy_by_batch_size(finished).to_json())


def test_a_diverged_loss_ends_its_curve(finished):
    run = next(run for run in finished if run.diverged)
    assert isinstance(run, Run)
    assert np.isnan(run.curves("train_loss")).all()
    [accuracy, loss] = [t for t in learning_curves([run]).data if t.name == "none"]
    assert len(accuracy.x) == 2
    assert len(loss.x) == 0
