"""A figure of the tables: speed, bytes kept, memory of a step, and precision."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console

from benchmarks.table import Table

PATH = Path(__file__).parent.parent / "docs" / "bench.png"
COLORS = {  # the palette of Okabe and Ito
    "jaxnorm": "#D55E00",
    "Flax Linen": "#0072B2",
    "Flax NNX": "#56B4E9",
    "Haiku": "#009E73",
    "Equinox": "#CC79A7",
    "Keras": "#E69F00",
    "PyTorch": "#555555",
}
FAILED = 1e4  # the bar for an error that is NaN


def draw(tables: dict[str, Table]) -> go.Figure:
    """Return a figure of four bar charts, for float32 where there is a choice."""
    figure = make_subplots(
        rows=2,
        cols=2,
        subplot_titles=(
            "Forward and backward: time over Flax Linen's",
            "Kept for the backward pass, over the input's bytes",
            "Largest error at mean / std = 1000",
            "Temporary memory of a ResNet-20 step, MB",
        ),
        vertical_spacing=0.16,
    )
    both = _chosen(tables["Speed"], dtype="f32", **{"pass": "both"})
    both = [row for row in both if "-" not in row.values()]  # norms of every library
    kept = _chosen(tables["Kept for the backward pass"], dtype="f32")
    errors = _chosen(
        tables["Largest error of the float32 output against float64"], **{"mean / std": "1000"}
    )
    for library, color in COLORS.items():
        bars = {"name": library, "marker_color": color, "legendgroup": library}
        relative = [float(row[f"{library} ms"]) / float(row["Flax Linen ms"]) for row in both]
        figure.add_bar(x=_norms(both), y=relative, row=1, col=1, **bars)
        values = [float(row[library]) for row in kept]
        figure.add_bar(x=_norms(kept), y=values, showlegend=False, row=1, col=2, **bars)
        values = [FAILED if row[library] == "nan" else float(row[library]) for row in errors]
        figure.add_bar(x=_norms(errors), y=values, showlegend=False, row=2, col=1, **bars)
    steps = _chosen(tables["Temporary memory of a training step"], model="ResNet-20")
    for library, column in (("jaxnorm", "jaxnorm MB"), ("Flax Linen", "Flax MB")):
        figure.add_bar(
            x=[row["dtype"] for row in steps],
            y=[float(row[column]) for row in steps],
            marker_color=COLORS[library],
            showlegend=False,
            row=2,
            col=2,
        )
    figure.update_yaxes(type="log", dtick=1, row=2, col=1)
    figure.update_layout(template="plotly_white", width=1200, height=820, legend_y=0.5)
    return figure


def save(figure: go.Figure, path: Path = PATH) -> None:
    """Write the figure, if Chrome or Chromium is available."""
    from kaleido.errors import ChromeNotFoundError

    try:
        figure.write_image(path, scale=1.5)
    except (ChromeNotFoundError, RuntimeError) as error:
        Console(stderr=True).print(
            f"the figure {path} was not written, because Chrome is missing: {error}"
        )


def _norms(rows: list[dict[str, str]]) -> list[str]:
    return [row["norm"] for row in rows]


def _chosen(table: Table, **values: str) -> list[dict[str, str]]:
    """Return the rows with these values as dicts; the first for each norm and dtype."""
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    rows = [row for row in rows if all(row[key] == value for key, value in values.items())]
    first = {(row.get("norm"), row.get("dtype")): row for row in reversed(rows)}
    return list(reversed(first.values()))
