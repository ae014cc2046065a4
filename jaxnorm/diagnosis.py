"""A diagnosis of running statistics, as rows and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from jaxnorm.finding import Finding, percent, plain

__all__ = ["Diagnosis"]

SEVERITIES = ("error", "warning", "note")
WIDTH = 80  # of the text
MOST_ROWS, MOST_NAMED = 10, 3  # in the text, of a cause and of a row
SHORTEST_NAME = 16  # to which the table shortens a path
FIGURES = {  # how figures read in the text; other findings have none
    "unfinished": "{count} values merged",
    "not_converged": "{percent} initial values",
    "mean_off": "mean off by {number} std",
    "variance_off": "variance {number} x measured",
    "small_batch": "noise of {number} std",
    "half_precision": "up to {number} std lost",
    "large": "inputs near {number}",
    "few_measured": "{count} values measured",
    "constant": "variance {number}",
    "epsilon": "epsilon is {number} x the variance",
}


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """The result of `diagnose`; `str()` gives a table with causes and cures.

    Attributes:
        rows: the findings, by severity, then in the order of the model.
        names: the paths of all normalizations.
        looked_at: descriptions of what was checked.
        not_looked_at: descriptions of what could not be checked, and why.
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
    yield from _wrapped("Checked: ", f"{'; '.join(report.looked_at)}.")
    if report.not_looked_at:
        yield from _wrapped("Not checked: ", f"{'; '.join(report.not_looked_at)}.")


def _table(rows: Sequence[Finding]) -> Iterator[str]:
    """The table: for each cause its findings, then the cause and the cure."""
    head = ("severity", "normalization", "figure", "channels")
    cells = {row: _cells(row) for row in rows}
    widths = _widths(head, cells.values())
    room = WIDTH - len("  " * 3) - (sum(widths) - widths[1])
    shown = _shown([name for _, name, *_ in cells.values()], room)
    cells = {row: (one[0], shown[one[1]], *one[2:]) for row, one in cells.items()}
    widths = _widths(head, cells.values())

    def line(cells: Sequence[str]) -> str:
        return "  ".join(map(str.ljust, cells, widths)).rstrip()

    yield from ("", line(head))
    for cause, cure in dict.fromkeys((row.cause, row.cure) for row in rows):
        group = [row for row in rows if (row.cause, row.cure) == (cause, cure)]
        yield from ("", ", ".join(dict.fromkeys(row.finding for row in group)))
        yield from (line(cells[row]) for row in group[:MOST_ROWS])
        if len(group) > MOST_ROWS:
            yield f"... and {len(group) - MOST_ROWS} more"
        yield from _wrapped("  cause: ", cause)
        yield from _wrapped("  cure:  ", f"{cure}.")


def _widths(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[int]:
    """The width of each column."""
    return [max(map(len, column)) for column in zip(head, *rows, strict=True)]


def _shown(names: Sequence[str], room: int) -> dict[str, str]:
    """The names in the table, shortened in the middle unless that makes two of them the same."""
    half = (max(room, SHORTEST_NAME) - 3) // 2
    long = 2 * half + 3
    shown = {one: one if len(one) <= long else f"{one[:half]}...{one[-half:]}" for one in names}
    return shown if len({*shown.values()}) == len(shown) else dict(zip(names, names, strict=True))


def _cells(row: Finding) -> tuple[str, str, str, str]:
    """Severity, name, figure and channels of a finding in words."""
    figure = ""
    if row.figure is not None:
        figure = FIGURES[row.finding].format(
            number=plain(row.figure), count=plain(row.figure, 7), percent=percent(row.figure)
        )
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
