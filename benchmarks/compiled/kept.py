"""The counts as they are kept: a line for each program, by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("counts.json")


def kept() -> dict[str, Any]:
    """The counts of every program, by its name."""
    return json.loads(PATH.read_text()) if PATH.exists() else {}


def keep(counts: dict[str, Any]) -> None:
    """Write the counts, one program a line."""
    lines = [f"{json.dumps(name)}: {json.dumps(count)}" for name, count in counts.items()]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
