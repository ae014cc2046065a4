"""Figures of the activations and statistics in a network, from arrays."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from experiments.reports import style

BEFORE, AFTER = style.VERMILION, style.BLUE
BINS = 60
MAX_POINTS = 1000  # in a scatter plot, to limit the size of a page
SMALL = {**style.LAYOUT, "margin": {"l": 56, "r": 12, "t": 10, "b": 48}, "height": 300}


def distribution(before: np.ndarray, after: np.ndarray, title: str) -> go.Figure:
    """Plot the values before and after a normalization, each scaled to its peak."""
    before, after = (values[np.isfinite(values)].ravel() for values in (before, after))
    figure = go.Figure()
    edges = np.concatenate([_range(values) for values in (before, after)])
    bins = np.linspace(edges.min(), edges.max(), BINS + 1)
    for name, values, color in (("before", before, BEFORE), ("after", after, AFTER)):
        counts, _ = np.histogram(values, bins)
        figure.add_scatter(
            x=style.short((bins[1:] + bins[:-1]) / 2),
            y=style.short(counts / max(counts.max(), 1)),
            name=name,
            mode="lines",
            line={"color": color, "width": 1.5, "shape": "hvh"},
            fill="tozeroy",
            hovertemplate=f"{name}: %{{x:.3g}}<extra></extra>",
        )
    figure.update_xaxes(title={"text": "value"})
    figure.update_yaxes(title={"text": "share of the peak"}, rangemode="tozero")
    return figure.update_layout(SMALL, title=title)


def _range(values: np.ndarray) -> np.ndarray:
    """Return the range of all but the outermost values."""
    low, high = np.quantile(values, [0.002, 0.998]) if values.size else (0.0, 0.0)
    return np.array([low, high]) if high > low else np.array([low - 0.5, high + 0.5])


def quantiles(
    steps: Sequence[int],
    before: Sequence[Sequence[float | None]],
    after: Sequence[Sequence[float | None]],
    title: str,
) -> go.Figure:
    """Plot five quantiles (steps, quantiles) of the input and the output over training."""
    figure = go.Figure()
    for name, values, color in (("before", before, BEFORE), ("after", after, AFTER)):
        lines = np.array(values, dtype=float).reshape(len(steps), -1).T
        middle = len(lines) // 2
        for index, line in enumerate(lines):
            figure.add_scatter(
                x=list(steps),
                y=style.short(line),
                name=name,
                legendgroup=name,
                showlegend=index == middle,
                mode="lines+markers",
                line={"color": color, "width": 2.5 if index == middle else 1},
                opacity=1 if index == middle else 0.6,
                hovertemplate=f"{name}, step %{{x}}: %{{y:.3g}}<extra></extra>",
            )
    figure.update_xaxes(title={"text": "step"}, rangemode="tozero")
    figure.update_yaxes(title={"text": "value"})
    return figure.update_layout(SMALL, title=title)


def running_against_batch(
    running: tuple[np.ndarray, np.ndarray], batch: tuple[np.ndarray, np.ndarray], title: str
) -> go.Figure:
    """Plot mean and standard deviation of each channel in one batch against the running values."""
    figure = go.Figure()
    names = ("mean", "standard deviation")
    pairs = list(zip(running, batch, strict=True))
    pairs[1] = tuple(np.sqrt(values) for values in pairs[1])
    ends = [min(map(np.nanmin, pairs)), max(map(np.nanmax, pairs))]
    figure.add_scatter(
        x=style.short(ends),
        y=style.short(ends),
        mode="lines",
        line={"color": style.GREY, "width": 1, "dash": "dash"},
        hoverinfo="skip",
        showlegend=False,
    )
    for name, (kept, of_batch), color, symbol in zip(
        names, pairs, (style.GREEN, style.PURPLE), ("circle", "square"), strict=True
    ):
        every = -(-kept.size // MAX_POINTS)
        figure.add_scatter(
            x=style.short(kept.ravel()[::every]),
            y=style.short(of_batch.ravel()[::every]),
            name=name,
            mode="markers",
            marker={"size": 6, "color": color, "symbol": symbol, "opacity": 0.6},
            hovertemplate=f"{name}: running %{{x:.3g}}, batch %{{y:.3g}}<extra></extra>",
        )
    figure.update_xaxes(title={"text": "running"})
    figure.update_yaxes(title={"text": "of one batch"})
    return figure.update_layout(SMALL, title=title)


def inputs(features: np.ndarray, names: Sequence[str], labels: np.ndarray, title: str) -> go.Figure:
    """Plot two features (examples, 2) against each other, both axes in the same units."""
    every = -(-len(features) // MAX_POINTS)
    figure = go.Figure()
    palette = [mark.color for mark in style.CYCLE]
    figure.add_scatter(
        x=style.short(features[::every, 0]),
        y=style.short(features[::every, 1]),
        mode="markers",
        marker={
            "size": 5,
            "opacity": 0.6,
            "color": [palette[label % len(palette)] for label in labels[::every].tolist()],
        },
        hovertemplate="%{x:.3g}, %{y:.3g}<extra></extra>",
        showlegend=False,
    )
    figure.update_xaxes(title={"text": names[0]})
    figure.update_yaxes(title={"text": names[1]}, scaleanchor="x", constrain="domain")
    return figure.update_layout(SMALL, height=340, title=title)


def largest_and_smallest_deviation(values: np.ndarray) -> tuple[int, int]:
    """Return the features of (examples, features) with the largest and smallest deviation.

    Features that are mostly constant, such as pixels at a border, are the last candidates.
    """
    deviation = np.std(values, axis=0)
    mostly_the_same = np.mean(values == np.median(values, axis=0), axis=0) > 0.5
    order = np.lexsort((deviation, mostly_the_same))
    largest, smallest = int(np.argmax(deviation)), int(order[0])
    if largest == smallest and len(deviation) > 1:
        smallest = int(order[1])
    return largest, smallest
