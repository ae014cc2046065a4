"""A diagnosis of running statistics, as rows and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxnorm.findings import Finding, percent

__all__ = ["Diagnosis"]

SEVERITIES = ("error", "warning", "note")
WIDTH = 80  # of the text, which long paths alone exceed
MOST_ROWS, MOST_NAMED = 10, 3  # in the text, of a cause and of a row
FIGURES = {  # how {0}, or {1} in percent, reads in the text; other findings have none
    "unfinished": "{0:.7g} values merged",
    "not_converged": "{1} of the first values",
    "mean_off": "mean off by {0:.2g} deviations",
    "variance_off": "variance {0:.2g} x the measured",
    "small_batch": "scatter of {0:.2g} deviations",
    "half_precision": "up to {0:.2g} deviations lost",
    "large": "near {0:.2g}",
    "few_measured": "{0:.7g} values",
    "constant": "variance {0:.2g}",
    "epsilon": "{1} of var + epsilon",
}


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found; `str()` gives a table with causes and cures.

    Attributes:
        rows: the findings, those of the worst severity first.
        names: the paths of all normalizations.
        looked_at: what was looked at, in words.
        not_looked_at: what was not looked at and why, in words.
    """

    rows: tuple[Finding, ...]
    names: tuple[str, ...]
    looked_at: tuple[str, ...]
    not_looked_at: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(_lines(self))

    __repr__ = __str__


def some(names: Sequence[str]) -> str:
    """The first names, and how many there are more."""
    more = len(names) - MOST_NAMED
    shown = ", ".join(name or "the statistics" for name in names[:MOST_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown


def _lines(report: Diagnosis) -> Iterator[str]:
    of = f"{len(report.names)} normalization{'s' if len(report.names) > 1 else ''}"
    if report.rows:
        yield f"Findings in {len({row.name for row in report.rows})} of {of}:"
        yield from _table(report.rows)
    else:
        yield f"Nothing found in {of}."
    yield ""
    yield from _wrapped("Looked at: ", f"{'; '.join(report.looked_at)}.")
    if report.not_looked_at:
        yield from _wrapped("Not looked at: ", f"{'; '.join(report.not_looked_at)}.")


def _table(rows: Sequence[Finding]) -> Iterator[str]:
    """The table: for each cause its findings, then the cause and the cure."""
    head = ("severity", "normalization", "figure", "channels")
    cells = {row: _cells(row) for row in rows}
    columns = list(zip(head, *cells.values(), strict=True))
    widths = [max(map(len, column)) for column in columns[:-1]]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
        return "  ".join([*padded, cells[-1]]).rstrip()

    yield from ("", line(head))
    for cause, cure in dict.fromkeys((row.cause, row.cure) for row in rows):
        group = [row for row in rows if (row.cause, row.cure) == (cause, cure)]
        yield from ("", ", ".join(dict.fromkeys(row.finding for row in group)))
        yield from (line(cells[row]) for row in group[:MOST_ROWS])
        if len(group) > MOST_ROWS:
            yield f"... and {len(group) - MOST_ROWS} more"
        yield from _wrapped("  cause: ", cause)
        yield from _wrapped("  cure:  ", f"{cure}.")


def _cells(row: Finding) -> tuple[str, str, str, str]:
    """Severity, name, figure and channels of a finding in words."""
    figure = ""
    if row.figure is not None:
        figure = FIGURES[row.finding].format(row.figure, percent(row.figure))
    channels = f"all {row.num_channels}"
    if len(row.channels) < row.num_channels:
        shown = ", ".join(map(str, row.channels[:MOST_NAMED]))
        dots = ", ..." if len(row.channels) > MOST_NAMED else ""
        channels = f"{len(row.channels)} of {row.num_channels}: {shown}{dots}"
    return row.severity, row.name or "the statistics", figure, channels


def _wrapped(title: str, text: str) -> list[str]:
    """Lines of the width, of which the later ones are indented by the title."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=title,
        subsequent_indent=" " * len(title),
        break_long_words=False,
        break_on_hyphens=False,
    )
