"""HTML pages: their common frame, and figures and tables.

All pages load one copy of plotly.min.js in the directory of the runs. This keeps them small, and
they open without a network. A script in the page draws the figures in light or dark colors.
"""

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

FRAME = Path(__file__).with_name("page.html")
LIBRARY = "plotly.min.js"
WIDE, NARROW = "28rem", "20rem"  # the smallest width of a column of figures


def write_page(path: Path, title: str, body: str, *, root: str = ".", column: str = WIDE) -> None:
    """Write a page. Also write plotly to `root` if this version of it is not there."""
    fields = {"title": escape(title), "body": body, "root": root, "column": column}
    path.write_text(Template(FRAME.read_text()).substitute(fields))
    library, text = path.parent / root / LIBRARY, get_plotlyjs()
    if not library.exists() or library.read_text(encoding="utf-8") != text:
        library.write_text(text, encoding="utf-8")


def figures(drawn: Iterable[go.Figure]) -> str:
    """Return the HTML of figures, side by side if there is room.

    The title of a figure and one legend for all figures are HTML text, which adapts to any width.
    """
    drawn = list(drawn)
    places = "".join(_figure(figure) for figure in drawn)
    return f'<div class="drawing">{_legend(drawn)}<div class="figures">{places}</div></div>'


def _legend(drawn: Sequence[go.Figure]) -> str:
    """Return a button for each name, which shows or hides its traces in all figures."""
    entries: dict[str, str] = {}
    for figure in drawn:
        for trace in figure.data:
            if figure.layout.showlegend is not False and trace.showlegend is not False:
                entries.setdefault(str(trace.name), _swatch(trace))
    buttons = "".join(
        f'<button type="button" data-name="{escape(name)}">{swatch}{escape(name)}</button>'
        for name, swatch in entries.items()
    )
    return f'<div class="legend">{buttons}</div>' if len(entries) > 1 else ""


def _swatch(trace: go.Scatter) -> str:
    if trace.mode == "markers":
        return f'<i class="dot" style="background: {trace.marker.color}"></i>'
    dash = trace.line.dash if trace.mode == "lines" else None
    kind = {"dash": "dashed", "dot": "dotted", "dashdot": "double"}.get(dash, "solid")
    return f'<i style="border-top-style: {kind}; border-color: {trace.line.color}"></i>'


def _figure(figure: go.Figure) -> str:
    spec = figure.to_plotly_json()
    spec["layout"].pop("template", None)
    spec["layout"]["showlegend"] = False
    title = spec["layout"].pop("title", {}).get("text")
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    height = spec["layout"].get("height", 450)
    text = json.dumps(spec, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        f'<div>{heading}<div class="figure" style="min-height: {height}px"></div>'
        f'<script type="application/json">{text}</script></div>'
    )


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    best: Iterable[tuple[int, int]] = (),
) -> str:
    """Return a table of text, which scrolls separately if it is too wide."""
    marked = set(best)
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = []
    for row, cells in enumerate(rows):
        columns = "".join(
            f"<td{' class=best' if (row, column) in marked else ''}>{escape(text)}</td>"
            for column, text in enumerate(cells)
        )
        lines.append(f"<tr>{columns}</tr>")
    first = f"<tr>{names}</tr>" if head else ""
    return f'<div class="scroll"><table>{first}{"".join(lines)}</table></div>'


def terms(pairs: Iterable[tuple[str, str | None]]) -> str:
    """Return a list of names and texts, without those that have no text."""
    items = [f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs if text]
    return f"<dl>{''.join(items)}</dl>"


def details(summary: str, inside: str) -> str:
    """Return a section that opens on demand."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def caption(text: str) -> str:
    return f'<p class="caption">{escape(text)}</p>'
