"""Pages in headless Chromium: figures drawn, nothing wrong, nothing fetched, fit for a phone."""

import io

import pytest
import run_files
from browser import browser, needs_chromium
from rich.console import Console

from experiments.config import Contrast, StudyConfig
from experiments.report import write_report
from experiments.reports.results import collect

pytestmark = [needs_chromium, pytest.mark.long]

NORMS = ("none", "batch", "layer", "rms", "group")
WIDTHS = {"phone": 390, "desk": 1200}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Report a study of everything that a page can hold: a contrast, two keys, missing runs."""
    output = tmp_path_factory.mktemp("runs")
    contrast = Contrast("norm=batch", "norm=none", "test_accuracy", "greater", 0.5, "points")
    study = StudyConfig(
        name="all_of_it",
        question="Does a <script>alert(1)</script> in a question stay text?",
        claim="Batch normalization is more accurate.",
        source="made up",
        expectation="yes",
        contrast=contrast,
    )
    configs = [
        run_files.configuration(norm=norm, batch_size=size, output=str(output), study=study)
        for norm in NORMS
        for size in (2, 16, 256)
    ]
    for index, config in enumerate(configs[:-1]):
        gain = index / 500
        run_files.write_run(config, [0.90 + gain, 0.91 + gain, 0.925 + gain])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.report.family", lambda folder: ["all_of_it"])
        write_report(
            configs[0], collect(configs), "python -m experiments.train", Console(file=io.StringIO())
        )
    return output


@pytest.fixture(scope="module")
def open_page():
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", ["all_of_it", "index"])
def test_a_page_is_drawn_and_fits(output, open_page, name, width, dark):
    page = open_page(output / f"{name}.html", width, dark=dark)
    assert page.complaints == []
    assert page.fetched == [(output / f).as_uri() for f in (f"{name}.html", "plotly.min.js")]
    assert page.say("document.documentElement.scrollWidth") <= width
    figures = page.say("document.querySelectorAll('.figure').length")
    assert page.say("document.querySelectorAll('.figure svg.main-svg').length") >= figures
    assert (figures > 5) == (name == "all_of_it")


def luminance(color):
    """Give the mean of the channels of "rgb(1, 2, 3)", from 0 to 255."""
    return sum(float(part) for part in color.partition("(")[2].rstrip(")").split(",")[:3]) / 3


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_the_page_in_figures_too(output, open_page, dark):
    page = open_page(output / "all_of_it.html", 1200, dark=dark)
    ground = luminance(page.say("getComputedStyle(document.body).backgroundColor"))
    text = luminance(page.say("getComputedStyle(document.body).color"))
    tick = luminance(page.say("getComputedStyle(document.querySelector('.xtick text')).fill"))
    paper = page.say("document.querySelector('.main-svg').style.background")
    assert (ground < 60) == dark
    assert abs(ground - text) > 150
    assert tick == text
    assert paper == "rgba(0, 0, 0, 0)"


def test_the_marks_of_every_seed_are_there(output, open_page):
    page = open_page(output / "all_of_it.html", 1200)
    shown = page.say("document.querySelectorAll('.figure')[0].querySelectorAll('.point').length")
    assert shown == 14 * 3 + 14  # of each run its seeds and their mean


def test_a_wide_table_scrolls_in_its_box(output, open_page):
    page = open_page(output / "all_of_it.html", 390)
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert page.say(f"{wide}.length") > 0


def test_text_of_a_study_is_text(output, open_page):
    page = open_page(output / "all_of_it.html", 1200)
    assert "<script>alert(1)</script>" in page.say("document.querySelector('h1').textContent")


def test_the_legend_shows_and_hides_in_all_figures(output, open_page):
    page = open_page(output / "all_of_it.html", 390)
    shown = "document.querySelectorAll('.drawing')[0].querySelectorAll('.trace').length"
    before = page.say(shown)
    click = "document.querySelector('.legend button[data-name=layer]').click()"
    page.say(click)
    assert page.say(shown) == before - 2  # its seeds and its means
    page.say(click)
    assert page.say(shown) == before
    names = "[...document.querySelectorAll('.legend')[0].children].map(e => e.textContent)"
    assert page.say(names) == list(NORMS)
