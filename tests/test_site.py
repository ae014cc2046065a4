"""The site: it builds without a warning, links lead somewhere, pages need no network."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import browser, needs_chromium

DOCS = Path(__file__).parent.parent / "docs"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("sphinx") is None, reason="Sphinx is installed by make docs only"
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    doctrees = tmp_path_factory.mktemp("doctrees")
    ended = subprocess.run(
        [*command, "-d", str(doctrees), str(DOCS), str(built)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return built


def pages(site):
    return [page for page in sorted(site.rglob("*.html")) if "_static" not in page.parts]


def links(page):
    """Where the links, pictures, styles and scripts of a page lead."""
    return re.findall(r'(?:href|src)="([^"]+)"', page.read_text())


def test_every_page_of_docs_is_there(site):
    written = {
        page.relative_to(DOCS).with_suffix(".html")
        for page in DOCS.rglob("*.md")
        if "_build" not in page.parts
    }
    assert written <= {page.relative_to(site) for page in pages(site)}


def test_no_link_leads_nowhere(site):
    identifiers = {
        page: set(re.findall(r'\bid="([^"]+)"', page.read_text())) for page in pages(site)
    }
    astray = []
    for page in identifiers:
        for link in links(page):
            if re.match(r"https?:|data:", link):
                continue
            file, _, place = link.partition("#")
            target = (page.parent / unquote(file.partition("?")[0])).resolve() if file else page
            if not target.is_file() or (place and place not in identifiers.get(target, {place})):
                astray.append((page.name, link))
    assert astray == []


@needs_chromium
def test_pages_are_drawn_without_complaint_and_without_a_network(site):
    with browser() as open_page:
        for page in pages(site):
            opened = open_page(page, 1200)
            assert opened.complaints == [], page.name
            assert all(address.startswith(("file:", "data:")) for address in opened.fetched)
        formula = open_page(site / "moments.html", 1200)
        assert formula.say("document.querySelectorAll('mjx-container').length") >= 2
