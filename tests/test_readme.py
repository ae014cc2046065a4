"""Every snippet of the README and of the library's pages in docs/ runs as written."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
ELSEWHERE = {"experiments-components.md", "layout.md"}  # test_components.py and test_layout.py
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name not in ELSEWHERE),
]


def snippets(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def outputs(page):
    """The programs of a page that are followed by what they print, and that."""
    block = r"^```python\n((?:(?!```).*\n)*)```\n\n```text\n((?:(?!```).*\n)*)```$"
    return re.findall(block, page.read_text(), re.MULTILINE)


def test_there_are_snippets():
    assert len(snippets(ROOT / "README.md")) >= 3  # functions, Linen, NNX


@pytest.mark.long
@pytest.mark.parametrize(
    ("page", "snippet"),
    [
        pytest.param(page, snippet, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, snippet in enumerate(snippets(page))
    ],
)
def test_a_snippet_runs(page, snippet, capsys):
    promotion = "standard" if "import optax" in snippet else "strict"  # Adam mixes dtypes
    with jax.numpy_dtype_promotion(promotion):
        exec(compile(snippet, str(page), "exec"), {"__name__": "page"})
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    shown = dict(outputs(page)).get(snippet) if page.parent.name == "tutorials" else None
    assert shown is None or printed == shown.splitlines()
