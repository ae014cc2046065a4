"""The figures of a report, made with Plotly."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments.results import LABELS, Run, batch_sizes, interval

# Okabe and Ito's palette, told apart in every kind of color vision; blues are of the batch.
COLORS = {
    "none": "#555555",
    "batch": "#0072B2",
    "ghost_batch": "#56B4E9",
    "batch_renorm": "#332288",
    "layer": "#D55E00",
    "rms": "#E69F00",
    "group": "#009E73",
    "instance": "#CC79A7",
}
SYMBOLS = {
    "none": "x",
    "batch": "circle",
    "ghost_batch": "circle-open",
    "batch_renorm": "diamond",
    "layer": "square",
    "rms": "square-open",
    "group": "triangle-up",
    "instance": "star",
}
# Accuracies lie between chance and nearly all: an axis by the logarithm of the error shows both.
ACCURACY_TICKS = (0, 50, 80, 90, 93, 95, 97, 98, 99, 99.5)
LEAST_ERROR = 0.25
LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "margin": {"l": 70, "r": 20, "t": 40, "b": 60},
}


def accuracy_by_batch_size(runs: Sequence[Run]) -> go.Figure:
    """Mean test accuracy with its 95% confidence interval, against the batch size."""
    sizes = batch_sizes(runs)
    names = [name for name in LABELS if any(run.config.norm.name == name for run in runs)]
    figure = go.Figure()
    for index, name in enumerate(names):
        own = [run for run in runs if run.config.norm.name == name]
        shift = 0.05 * (index - (len(names) - 1) / 2)  # side by side, not on top of each other
        figure.add_trace(_points(name, own, [sizes.index(r.config.batch_size) for r in own], shift))
    figure.update_xaxes(
        title="batch size (examples)",
        tickvals=list(range(len(sizes))),
        ticktext=[str(size) for size in sizes],
        range=[-0.5, len(sizes) - 0.5],
        zeroline=False,
    )
    figure.update_yaxes(_accuracy_axis())
    figure.update_layout(LAYOUT, height=460, hovermode="closest")
    return figure


def _points(name: str, runs: Sequence[Run], positions: Sequence[int], shift: float) -> go.Scatter:
    intervals = [interval(run.accuracies) for run in runs]
    upper = [_error(i.mean) - _error(i.mean + i.half_width) for i in intervals]
    lower = [_error(i.mean - i.half_width) - _error(i.mean) for i in intervals]
    return go.Scatter(
        x=[position + shift for position in positions],
        y=[_error(i.mean) for i in intervals],
        error_y={"array": lower, "arrayminus": upper, "thickness": 1.5, "width": 4},
        name=LABELS[name],
        text=[f"{LABELS[name]}, batch size {r.config.batch_size}" for r in runs],
        customdata=[f"{i} %" for i in intervals],
        hovertemplate="%{text}: %{customdata}<extra></extra>",
        mode="lines+markers",
        line={"color": COLORS[name], "width": 1.5, "dash": "dot"},
        marker={"size": 9, "symbol": SYMBOLS[name]},
    )


def learning_curves(runs: Sequence[Run]) -> go.Figure:
    """Test accuracy and training loss against the epoch, a column for each batch size."""
    sizes = batch_sizes(runs)
    figure = make_subplots(
        rows=2,
        cols=len(sizes),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.07,
        column_titles=[f"batch size {size}" for size in sizes],
    )
    shown: set[str] = set()
    for run in runs:
        column = sizes.index(run.config.batch_size) + 1
        errors = _error(100 * run.curves("test_accuracy"))
        _add_curve(figure, run, errors, 1, column, legend=run.label not in shown)
        _add_curve(figure, run, run.curves("train_loss"), 2, column, legend=False)
        shown.add(run.label)
    figure.update_xaxes(title="epoch", row=2)
    figure.update_yaxes(_accuracy_axis(title=None), row=1)
    figure.update_yaxes(title="test accuracy (%)", row=1, col=1)
    figure.update_yaxes(type="log", dtick=1, exponentformat="power", row=2)
    figure.update_yaxes(title="training loss (nats)", row=2, col=1)
    figure.update_layout(LAYOUT, height=720, hovermode="closest")
    return figure


def _add_curve(
    figure: go.Figure, run: Run, values: np.ndarray, row: int, column: int, *, legend: bool
) -> None:
    """Add the mean over seeds, with a band from the lowest to the highest seed."""
    name = run.config.norm.name
    epochs = np.arange(1, values.shape[1] + 1)
    finite = np.isfinite(values).all(axis=0)  # a curve ends where a seed has diverged
    epochs, values = epochs[finite], values[:, finite]
    common = {"legendgroup": name, "mode": "lines"}
    band = go.Scatter(
        x=np.concatenate([epochs, epochs[::-1]]),
        y=np.concatenate([values.max(axis=0), values.min(axis=0)[::-1]]),
        fill="toself",
        fillcolor=COLORS[name],
        opacity=0.12,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        **common,
    )
    mean = go.Scatter(
        x=epochs,
        y=values.mean(axis=0),
        name=run.label,
        line={"color": COLORS[name], "width": 2},
        customdata=100 - values.mean(axis=0) if row == 1 else values.mean(axis=0),
        hovertemplate=f"{run.label}, epoch %{{x}}: %{{customdata:.3~g}}<extra></extra>",
        showlegend=legend,
        **common,
    )
    figure.add_traces([band, mean], rows=row, cols=column)


def _error(accuracy: np.ndarray | float) -> np.ndarray:
    """The error in percent, bounded away from 0 for the logarithm."""
    return np.maximum(100 - np.asarray(accuracy), LEAST_ERROR)


def _accuracy_axis(title: str | None = "test accuracy (%)") -> dict[str, object]:
    return {
        "title": title,
        "type": "log",
        "autorange": "reversed",
        "tickvals": [100 - tick for tick in ACCURACY_TICKS],
        "ticktext": [f"{tick:g}" for tick in ACCURACY_TICKS],
    }
