"""The figure of paired differences."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from experiments.reports import style
from experiments.reports.comparison import Comparison

SIDE = 0.16  # vertical distance of seeds and mean from the middle of their row


def difference_figure(rows: Sequence[tuple[str, Comparison]]) -> go.Figure:
    """Plot a row for each contrast: all differences, the mean with its interval, and delta."""
    figure = go.Figure()
    for row, (name, compared) in enumerate(rows):
        figure.add_traces([_seeds(row, name, compared), _mean(row, name, compared)])
    first = rows[0][1]
    figure.add_vline(x=0, line={"color": style.GREY, "width": 1})
    for bound in first.bounds:
        figure.add_vline(
            x=bound,
            line={"color": style.GREEN, "dash": "dash"},
            annotation={"text": f"delta {first.text(bound)}", "font": {"size": 12}},
        )
    figure.update_xaxes(_axis([compared for _, compared in rows]))
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[name for name, _ in rows],
        range=[len(rows) - 0.4, -0.75],
        zeroline=False,
        showgrid=False,
    )
    return figure.update_layout(style.LAYOUT, height=150 + 60 * len(rows), showlegend=False)


def _seeds(row: int, name: str, compared: Comparison) -> go.Scatter:
    pairs = zip(compared.seeds, compared.d, strict=True)
    return go.Scatter(
        x=style.short(compared.d),
        y=[row + SIDE] * len(compared.d),
        text=[f"{name} seed {number}: {compared.text(d)}" for number, d in pairs],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        marker={"size": 8, "color": style.BLUE, "opacity": 0.5},
    )


def _mean(row: int, name: str, compared: Comparison) -> go.Scatter:
    low, high = compared.interval95
    return go.Scatter(
        x=[compared.mean],
        y=[row - SIDE],
        error_x={
            "array": [high - compared.mean],
            "arrayminus": [compared.mean - low],
            "thickness": 2,
            "width": 6,
        },
        text=[f"{name} mean: {compared.text(compared.mean)}"],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        marker={"size": 11, "symbol": "diamond", "color": style.VERMILION},
    )


def _axis(compared: Sequence[Comparison]) -> dict[str, Any]:
    first = compared[0]
    words = "a / b" if first.unit == "ratio" else f"a - b ({first.unit})"
    axis: dict[str, Any] = {"title": {"text": f"{first.metric}: {words}"}, "zeroline": False}
    if first.unit == "ratio":
        every = [value for each in compared for value in (*each.d, *each.interval95)]
        ends = [*every, first.margin, -first.margin]
        low, high = int(np.floor(min(ends))), int(np.ceil(max(ends)))
        ticks = list(range(low, high + 1, max(1, (high - low) // 8)))
        axis |= {"tickvals": ticks, "ticktext": [f"{2.0**tick:.3g}x" for tick in ticks]}
    return axis
