"""Tables for the terminal and for docs/."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import rich.box
import rich.table
from rich.console import Console

SHORT = {"float32": "f32", "bfloat16": "bf16"}
ROOT = Path(__file__).parent.parent


class Table(NamedTuple):
    """A table of text with a title, which `heading` puts above it on a page (as "###")."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: str
    heading: str = ""

    def show(self) -> None:
        """Print the table."""
        table = rich.table.Table(
            title=self.title,
            caption=self.notes,
            box=rich.box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for column in self.columns:
            table.add_column(column, no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        console = Console()
        needed = console.measure(table, options=console.options.update(width=1000)).maximum
        Console(width=max(console.width, needed)).print(table)

    def markdown(self) -> str:
        """Return the table as Markdown."""
        rows = [self.columns, ["---"] * len(self.columns), *self.rows]
        above = [f"{self.heading} {self.title}", ""] if self.heading else []
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([*above, *lines, "", self.notes])


def publish(name: str, text: str, measured_with: str = "") -> None:
    """Replace the text between the marks of a benchmark in the README or a page of docs/.

    The versions and the machine follow the text, unless the page has them in its block
    `environment`.
    """
    begin, end = f"<!-- bench {name} -->", f"<!-- end {name} -->"
    old = re.escape(begin) + ".*?" + re.escape(end)
    said = f"<!-- bench environment -->\n{measured_with}\n"
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        if begin in (content := page.read_text()):
            shown = text if not measured_with or said in content else f"{text} {measured_with}"
            before, after = re.split(old, content, maxsplit=1, flags=re.DOTALL)
            page.write_text(f"{before}{begin}\n{shown}\n{end}{after}")
            return
    raise ValueError(f"no page has the mark {begin!r} for the table of {name}")
