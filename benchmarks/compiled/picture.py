"""The counts of float32 on one device as a picture."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benchmarks.compiled import FLOOR, LIBRARIES, PLATFORMS
from benchmarks.compiled.table import Counts
from benchmarks.figure import COLORS


def draw(counts: dict[str, Counts]) -> go.Figure:
    """The streams of each norm in float32 on one device: ours, Flax's and the minimum."""
    panels = [(platform, which) for platform in PLATFORMS for which in FLOOR]
    titles = [f"{PLATFORMS[platform]}, {which}" for platform, which in panels]
    drawn = make_subplots(rows=2, cols=2, subplot_titles=titles, vertical_spacing=0.2)
    for index, (platform, which) in enumerate(panels):
        place = {"row": index // 2 + 1, "col": index % 2 + 1}
        bars: dict[str, dict[str, float]] = {}
        for name, found in counts.items():
            on, *setting, library = name.split()
            if on == platform and setting[2:] == ["f32", "whole", "one", which]:
                bars.setdefault(library, {})[f"{setting[0]}<br>{setting[1]}"] = found["streams"]
        for library in LIBRARIES:
            drawn.add_bar(
                x=list(bars["jaxnorm"]),
                y=[bars[library].get(norm) for norm in bars["jaxnorm"]],
                name=library,
                marker_color=COLORS.get(library, COLORS["Flax Linen"]),
                showlegend=index == 0,
                **place,
            )
        drawn.add_scatter(
            x=list(bars["jaxnorm"]),
            y=[FLOOR[which]] * len(bars["jaxnorm"]),
            name="minimum",
            mode="lines",
            line={"color": "#555555", "dash": "dash"},
            showlegend=index == 0,
            **place,
        )
    drawn.update_yaxes(title_text="streams", rangemode="tozero")
    drawn.update_layout(template="plotly_white", width=1200, height=820, legend_y=0.5)
    return drawn
