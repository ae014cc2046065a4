"""The table of a study, for the terminal and the page."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from experiments.reports.metrics import Metric
from experiments.reports.results import (
    Point,
    distinct,
    key_label,
    swept_keys,
    value_label,
    values_at,
)

MAX_WIDTH = 1000  # characters


class Table(NamedTuple):
    """Cells of text: a row for each run, or for two swept keys rows and columns.

    Attributes:
        best: (row, column) of the best cell of each column of numbers.
    """

    head: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]


def study_table(points: Sequence[Point], measured: Metric, axes: Sequence[str] = ()) -> Table:
    """Return the table of a study; `axes` are the keys (x, series) that it names."""
    keys = swept_keys(points, axes)
    if len(keys) == 2:
        return _pivot(points, measured, keys)
    rows = [
        [*(value_label(value) for value in values_at(point, keys)), cell(point, measured)]
        for point in points
    ]
    best = _best([[point] for point in points], measured)
    head = [*(key_label(key) for key in keys), measured.label]
    return Table(head, rows, {(row, len(keys)) for row, _ in best})


def _pivot(points: Sequence[Point], measured: Metric, keys: Sequence[str]) -> Table:
    column_key, row_key = keys
    columns = [value for (value,) in distinct(points, [column_key])]
    lines = [value for (value,) in distinct(points, [row_key])]
    by_values = {values_at(point, keys): point for point in points}
    grid = [[by_values.get((column, line)) for column in columns] for line in lines]
    rows = [
        [value_label(line), *("" if point is None else cell(point, measured) for point in row)]
        for line, row in zip(lines, grid, strict=True)
    ]
    head = [key_label(row_key), *(f"{key_label(column_key)} {value_label(c)}" for c in columns)]
    return Table(head, rows, {(row, column + 1) for row, column in _best(grid, measured)})


def cell(point: Point, measured: Metric) -> str:
    """Return the mean of a run with its interval, and notes on its seeds."""
    notes = []
    if measured.of_steps and point.seeds:
        lost = sum(not seed.reached_target for seed in point.seeds.values())
        notes += [f"{lost} did not reach it"] if lost else []
    notes += [f"{point.diverged} diverged"] if point.diverged else []
    notes += [f"{len(point.missing)} missing"] if point.seeds and point.missing else []
    notes += [f"{len(point.stale)} stale"] if point.stale else []
    text = measured.summary_text(point)
    return f"{text} ({', '.join(notes)})" if notes else text


def _best(grid: Sequence[Sequence[Point | None]], measured: Metric) -> set[tuple[int, int]]:
    best = set()
    for column, cells in enumerate(zip(*grid, strict=True)):
        means = {
            row: summary.mean
            for row, point in enumerate(cells)
            if point is not None and (summary := measured.summary(point)) is not None
        }
        if len(means) > 1:
            target = (min if measured.lowest_is_best else max)(means.values())
            best |= {(row, column) for row, mean in means.items() if mean == target}
    return best


def to_rich(table: Table, title: str) -> RichTable:
    """Return the table for a terminal, with the best cell of each column in bold."""
    rich = RichTable(title=title, caption="mean over seeds with its 95 % interval")
    for index, name in enumerate(table.head):
        numbers = any(column == index for _, column in table.best)
        rich.add_column(name, justify="right" if numbers else "left")
    for row, cells in enumerate(table.rows):
        marked = ((row, column) in table.best for column in range(len(cells)))
        rich.add_row(
            *(
                f"[bold]{text}[/]" if bold else text
                for text, bold in zip(cells, marked, strict=True)
            )
        )
    return rich


def print_full_width(table: RichTable, console: Console) -> None:
    """Print a table at its full width, even without a terminal or in a narrow one."""
    needed = console.measure(table, options=console.options.update(width=MAX_WIDTH)).maximum
    width = console.width
    console.width = max(width, needed)
    console.print(table)
    console.width = width
