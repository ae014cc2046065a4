"""The figures of a study: the metric and the learning curves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from experiments.config import StudyConfig
from experiments.reports import style
from experiments.reports.metrics import Metric
from experiments.reports.results import (
    Point,
    distinct,
    is_numeric,
    key_label,
    swept_keys,
    value_label,
    values_at,
)

MAX_FACETS = 6
MAX_LINES = 8
MAX_EVALUATIONS = 200  # in a curve, to limit the size of a page


class Axes(NamedTuple):
    """The keys that a figure shows as x axis, series and facets; x and facet can be None."""

    x: str | None
    series: list[str]
    facet: str | None


def choose_axes(points: Sequence[Point], study: StudyConfig) -> Axes:
    """Return the keys that the study names; then numbers go along x and norms into series."""
    named = [key for key in (study.x, study.series) if key]
    keys = swept_keys(points, named)
    if not keys:
        return Axes(None, [], None)
    numbers = [key for key in keys if is_numeric([value for (value,) in distinct(points, [key])])]
    others = [key for key in keys if key not in ("norm", study.series)]
    x = study.x if study.x in keys else next(iter([*numbers, *others, *keys]))
    rest = [key for key in keys if key != x]
    rest.sort(key=lambda key: (key != study.series, key != "norm"))
    if len(rest) == 2 and len(distinct(points, rest[1:])) <= MAX_FACETS:
        return Axes(x, rest[:1], rest[1])
    return Axes(x, rest, None)


def metric_figures(
    points: Sequence[Point], measured: Metric, study: StudyConfig
) -> list[go.Figure]:
    """Plot the metric against x: one line for each series, means with intervals, and all seeds."""
    axes = choose_axes(points, study)
    there = [point for point in points if measured.values(point)]
    names = [_name(combination, axes.series) for combination in distinct(points, axes.series)]
    marks = style.marks(names if axes.series else [measured.label])
    facets = distinct(there, [axes.facet]) if axes.facet else [()]
    figures = []
    for facet in facets:
        own = [p for p in there if not axes.facet or values_at(p, [axes.facet]) == facet]
        figure = _metric_figure(points, own, measured, axes, marks)
        if axes.facet:
            figure.update_layout(title=_name(facet, [axes.facet]))
        figures.append(figure)
    return figures


def _metric_figure(
    points: Sequence[Point],
    own: Sequence[Point],
    measured: Metric,
    axes: Axes,
    marks: dict[str, style.Mark],
) -> go.Figure:
    figure = go.Figure()
    x_keys = [axes.x] if axes.x else []
    values = [value for (value,) in distinct(points, x_keys)] if axes.x else [None]
    places = style.positions(values, key_label(axes.x) if axes.x else "")
    combinations = distinct(points, axes.series) if axes.series else [()]
    apart = min(1.0, (len(combinations) - 1) / MAX_LINES)
    sides = np.linspace(-apart, apart, len(combinations)) if apart else [0.0]
    for combination, side in zip(combinations, sides, strict=True):
        of_series = [p for p in own if values_at(p, axes.series) == combination]
        if not of_series:
            continue
        of_series.sort(key=lambda p: places.places[p.values.get(axes.x)] if axes.x else 0.0)
        name = _name(combination, axes.series) if axes.series else measured.label
        at = [places.shifted(p.values.get(axes.x) if axes.x else None, side) for p in of_series]
        connected = len(values) > 1 and is_numeric(values)
        figure.add_traces(_series(name, of_series, at, measured, marks[name], connected=connected))
    figure.update_xaxes(places.axis)
    figure.update_yaxes(style.metric_axis(measured))
    figure.update_layout(style.LAYOUT, height=480, showlegend=bool(axes.series))
    return figure


def _series(
    name: str,
    points: Sequence[Point],
    at: Sequence[float],
    measured: Metric,
    mark: style.Mark,
    *,
    connected: bool,
) -> list[go.Scatter]:
    mean = _means(name, points, at, measured, mark)
    mean.mode = "lines+markers" if connected else "markers"
    return [_every_seed(name, points, at, measured, mark), mean]


def _every_seed(
    name: str, points: Sequence[Point], at: Sequence[float], measured: Metric, mark: style.Mark
) -> go.Scatter:
    every = [
        (x, number, value)
        for x, point in zip(at, points, strict=True)
        for number, value in measured.values(point).items()
    ]
    return go.Scatter(
        x=style.short(x for x, *_ in every),
        y=style.short(style.on_metric_axis(measured, [value for *_, value in every])),
        text=[f"{name}, seed {n}: {measured.text(value)}" for _, n, value in every],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        marker={"size": 5, "color": mark.color, "opacity": 0.35},
        legendgroup=name,
        showlegend=False,
    )


def _means(
    name: str, points: Sequence[Point], at: Sequence[float], measured: Metric, mark: style.Mark
) -> go.Scatter:
    """Return the means of the runs with their intervals."""
    summaries = [measured.summary(point) for point in points]
    means, lows, highs = (
        style.on_metric_axis(measured, [getattr(s, field) for s in summaries])
        for field in ("mean", "low", "high")
    )
    if measured.in_percent:
        lows, highs = highs, lows  # the axis shows the error
    return go.Scatter(
        x=style.short(at),
        y=style.short(means),
        error_y={
            "array": style.short(highs - means),
            "arrayminus": style.short(means - lows),
            "thickness": 1.5,
            "width": 4,
        },
        name=name,
        text=[f"{name}: {measured.summary_text(point)}" for point in points],
        hovertemplate="%{text}<extra></extra>",
        line={"color": mark.color, "width": 1.5, "dash": "dot"},
        marker={"size": 9, "symbol": mark.symbol, "color": mark.color},
        legendgroup=name,
    )


def learning_curves(points: Sequence[Point], study: StudyConfig) -> list[go.Figure]:
    """Plot validation accuracy and training loss by step: every seed, and the mean.

    Only runs with a seed that was evaluated more than once have curves.
    """
    points = [p for p in points if any(len(seed.history) > 1 for seed in p.seeds.values())]
    keys = swept_keys(points, [key for key in (study.x, study.series) if key])
    facet_keys = _curve_facets(points, keys)
    line_keys = [key for key in keys if key not in facet_keys]
    marks = style.marks([_name(c, line_keys) for c in distinct(points, line_keys)])
    figures = []
    for facet in distinct(points, facet_keys) if points else []:
        own = [point for point in points if values_at(point, facet_keys) == facet]
        title = _name(facet, facet_keys)
        for key, of_figure in (("validation_accuracy", "validation"), ("train_loss", "training")):
            figure = go.Figure()
            for point in own:
                name = _name(values_at(point, line_keys), line_keys) or of_figure
                figure.add_traces(_curves(point, key, name, marks.get(name, style.CYCLE[0])))
            figure.update_xaxes(title={"text": "step"}, rangemode="tozero")
            figure.update_yaxes(_curve_axis(key))
            figure.update_layout(style.LAYOUT, height=400, showlegend=bool(line_keys))
            figure.update_layout(title=title)
            figures.append(figure)
    return figures


def _curve_facets(points: Sequence[Point], keys: Sequence[str]) -> list[str]:
    """Return the keys that get separate figures, so that a figure has few lines."""
    by_size = sorted(keys, key=lambda key: len(distinct(points, [key])))
    facets: list[str] = []
    while len(by_size) > 1 and len(points) > MAX_LINES * max(
        len(distinct(points, facets)) if facets else 1, 1
    ):
        facets.append(by_size.pop(0))
    return facets


def _curve_axis(key: str) -> dict[str, Any]:
    if key == "validation_accuracy":
        return style.accuracy_axis("validation accuracy (%)")
    title = {"text": "training loss (nats)"}
    return {"title": title, "type": "log", "dtick": 1, "exponentformat": "power"}


def _curves(point: Point, key: str, name: str, mark: style.Mark) -> list[go.Scatter]:
    """Return the curves of all seeds, and their mean over the steps that all seeds have."""
    curves = [_curve(seed.history, key) for seed in point.seeds.values()]
    scaled = [{step: float(style.error(100 * v)) for step, v in c.items()} for c in curves]
    drawn = scaled if key.endswith("accuracy") else curves
    x: list[float | None] = []
    y: list[float | None] = []
    for curve in drawn:
        x += [*curve, None]
        y += [*style.short(curve.values()), None]
    common = {"legendgroup": name, "mode": "lines"}
    line = {"color": mark.color, "dash": mark.dash}
    seeds = go.Scatter(
        x=x,
        y=y,
        line={**line, "width": 1},
        opacity=0.3,
        hoverinfo="skip",
        showlegend=False,
        **common,
    )
    steps = sorted(set.intersection(*(set(curve) for curve in drawn))) if drawn else []
    means = np.array([np.mean([curve[step] for curve in curves]) for step in steps])
    accuracy = key.endswith("accuracy")
    mean = go.Scatter(
        x=steps,
        y=style.short(style.error(100 * means) if accuracy else means),
        name=name,
        text=[f"{100 * value:.1f} %" if accuracy else f"{value:.3g}" for value in means],
        hovertemplate=f"{name}, step %{{x}}: %{{text}}<extra></extra>",
        line={**line, "width": 2.5},
        **common,
    )
    return [seeds, mean]


def _curve(history: Sequence[dict[str, Any]], key: str) -> dict[int, float]:
    """Return a value by step while it is finite, for a limited number of evaluations."""
    every = -(-len(history) // MAX_EVALUATIONS)
    kept = {line["step"]: line for line in [*history[::every], *history[-1:]]}
    curve = {}
    for step, line in kept.items():
        if line.get(key) is None:
            break
        curve[step] = line[key]
    return curve


def _name(values: Sequence[Any], keys: Sequence[str]) -> str:
    words = []
    for key, value in zip(keys, values, strict=True):
        plain = key == "norm" or (isinstance(value, str) and len(keys) > 1)
        words.append(value_label(value) if plain else f"{key_label(key)} {value_label(value)}")
    return ", ".join(words)
