"""The page of a study."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.config import StudyConfig
from experiments.reports import page
from experiments.reports.comparison import Comparison, along
from experiments.reports.differences import difference_figure
from experiments.reports.figures import choose_axes, learning_curves, metric_figures
from experiments.reports.metrics import Metric
from experiments.reports.results import Point, label, shortfalls, swept_keys
from experiments.reports.table import study_table
from experiments.reports.verdicts import rule


def write_study_page(
    path: Path,
    study: StudyConfig,
    points: Sequence[Point],
    measured: Metric,
    places: Sequence[Comparison],
    command: str,
    answered: str | None,
) -> None:
    """Write the page of a study. It begins with its answer; `verdicts.refresh` adds a verdict."""
    there = [point for point in points if point.seeds]
    body = [
        f'<p class="quiet"><a href="index.html">all studies</a> / {escape(str(study.name))}</p>',
        f"<h1>{escape(study.question or str(study.name))}</h1>",
        *([] if answered is None else [f"<p>{escape(answered)}</p>"]),
        "<!--verdict--><!--/verdict-->",
        *(f'<p class="missing">{escape(text)}</p>' for text in shortfalls(points)),
        *_results(study, points, measured),
        *_why_validation(measured, places),
        *_contrast(places),
        *_secondary(study, points),
        *_curves(there, study),
        "<h2>Every seed</h2>",
        _all_seeds(there, measured),
        "<h2>How it was made</h2>",
        f"<p><code>{escape(command)}</code></p>",
        _costs(there),
        page.details("Device, versions, code", _made_with(there)),
        page.details("Configurations of the runs", "".join(_config(point) for point in points)),
    ]
    page.write_page(path, f"jaxnorm study: {study.name}", "\n".join(body))


def _curves(points: Sequence[Point], study: StudyConfig) -> Iterator[str]:
    if figures := learning_curves(points, study):
        yield "<h2>Learning curves</h2>"
        yield page.figures(figures)
        yield page.caption(
            "Every seed, and in bold the mean over the steps of all seeds; a curve ends where "
            "the seed stopped or its loss is no longer finite. The axis of the accuracy is "
            "logarithmic in the error."
        )


def _results(study: StudyConfig, points: Sequence[Point], measured: Metric) -> Iterator[str]:
    axes = choose_axes(points, study)
    named = [key for key in (axes.x, *axes.series) if key]
    table = study_table(points, measured, named)
    yield f"<h2>{escape(measured.label[0].upper() + measured.label[1:])}</h2>"
    yield page.figures(metric_figures(points, measured, study))
    yield page.table(table.head, table.rows, table.best)
    mean = "Geometric mean" if measured.of_steps else "Mean"
    yield page.caption(
        f"{mean} over seeds with its 95 % interval (Student's t) and every seed; the best mean of "
        "each column in bold. A seed that diverged counts with the accuracy or the loss of chance, "
        "one that did not reach its target with the budget."
    )


def _why_validation(measured: Metric, places: Sequence[Comparison]) -> Iterator[str]:
    tuned = any(compared.tuned for compared in places)
    if tuned and measured.key.startswith("validation_"):
        yield page.caption(
            "The arms of the contrast are tuned on these validation data. Test data are used "
            "for the chosen runs only."
        )


def _contrast(places: Sequence[Comparison]) -> Iterator[str]:
    if not places:
        return
    yield "<h2>Primary contrast, seed by seed</h2>"
    yield page.figures([difference_figure([(compared.place, compared) for compared in places])])
    yield page.caption("Each seed draws the split, the order and the weights for both arms.")
    for compared in places:
        arms = (
            f"a is {compared.a.overrides} ({compared.a.chosen}); b is {compared.b.overrides} "
            f"({compared.b.chosen})."
        )
        yield page.caption(compared.at_place(arms))
        yield page.details(compared.at_place("the numbers of every seed"), _levels(compared))
    yield page.details("The rule of the verdict", rule())


def _levels(compared: Comparison) -> str:
    columns = zip(
        compared.seeds, compared.levels["a"], compared.levels["b"], compared.d, strict=True
    )
    rows = [[str(seed), f"{a:.4g}", f"{b:.4g}", compared.text(d)] for seed, a, b, d in columns]
    return page.table(["seed", f"a: {compared.metric}", "b", "a against b"], rows)


def _secondary(study: StudyConfig, points: Sequence[Point]) -> Iterator[str]:
    if study.contrast is None:
        return
    rows = along(study.contrast, points, choose_axes(points, study).x)
    if rows:
        yield "<h2>The same contrast elsewhere</h2>"
        yield page.figures([difference_figure(rows)])
        yield page.caption("Secondary contrasts, uncorrected: they get no verdict.")


def _all_seeds(points: Sequence[Point], measured: Metric) -> str:
    keys = swept_keys(points)
    numbers = sorted({number for point in points for number in point.seeds})
    rows = [
        [label(point, keys), *(_seed(point, number, measured) for number in numbers)]
        for point in points
    ]
    return page.table(["run", *(f"seed {number}" for number in numbers)], rows)


def _seed(point: Point, number: int, measured: Metric) -> str:
    seed = point.seeds.get(number)
    if seed is None:
        return "missing" if number in point.missing else ""
    value = measured.of(point, seed)
    text = "not finite" if value is None else measured.text(value)
    if seed.diverged:
        return f"{text} (diverged)"
    lost = measured.of_steps and not seed.reached_target
    return f"{text} (not reached)" if lost else text


def _costs(points: Sequence[Point]) -> str:
    keys = swept_keys(points)
    rows = [
        [
            label(point, keys),
            str(len(point.seeds)),
            f"{point.seconds / len(point.seeds):.3g}",
            f"{point.seconds:.3g}",
        ]
        for point in points
    ]
    total = sum(point.seconds for point in points)
    seeds = sum(len(point.seeds) for point in points)
    table = page.table(["run", "seeds", "seconds a seed", "seconds"], rows)
    return (
        f"<p>{len(points)} runs, {seeds} seeds, {total:.0f} s of training in total.</p>"
        + page.details("Seconds of each run", table)
    )


def _made_with(points: Sequence[Point]) -> str:
    """Return a table of devices, versions and code, with several values if seeds differ."""
    results = [seed.result for point in points for seed in point.seeds.values()]
    made: dict[str, dict[str, None]] = {}
    for result in results:
        for key, value in _environment(result):
            made.setdefault(key, {})[value] = None
    return page.table([], [[key, ", ".join(values)] for key, values in made.items()])


def _environment(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for group in ("device", "versions"):
        for key, value in result.get(group, {}).items():
            yield key, str(value)
    yield "code", str(result.get("code"))


def _config(point: Point) -> str:
    text = OmegaConf.to_yaml(OmegaConf.structured(point.config))
    return page.details(point.directory.name, f"<pre>{escape(text)}</pre>")
