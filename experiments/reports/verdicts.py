"""The verdicts of all studies that were reported, which correct each other's p-values.

A report leaves NAME.study.json beside its page. Whenever one is added, the verdicts of all pages
and the index are written anew.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from experiments.reports.arms import trials_text
from experiments.reports.comparison import (
    CANNOT_TELL,
    Comparison,
    adjusted,
    note,
    verdict,
)
from experiments.reports.page import caption, terms, write_page

SUFFIX = ".study.json"
PLACE = re.compile(r"<!--verdict-->.*?<!--/verdict-->", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A reported study.

    Attributes:
        open_because: why there is no comparison; empty where there is one, None where the study
            has no contrast.
    """

    name: str
    question: str | None
    claim: str | None
    source: str | None
    expectation: str | None
    done: str
    compared: Comparison | None
    open_because: str | None


class Verdict(NamedTuple):
    """The word on a claim, its adjusted p-value, and how many contrasts were corrected for."""

    word: str
    p: float | None
    family: int


def write_entry(output: Path, entry: Entry) -> None:
    """Leave what a report found, for the verdicts of the others."""
    (output / f"{entry.name}{SUFFIX}").write_text(json.dumps(asdict(entry), indent=1))


def read_entries(output: Path) -> list[Entry]:
    """Return what all reports found, by name."""
    return [_entry(json.loads(path.read_text())) for path in sorted(output.glob(f"*{SUFFIX}"))]


def _entry(values: dict[str, Any]) -> Entry:
    compared = values["compared"]
    return Entry(**{**values, "compared": compared and Comparison.from_dict(compared)})


def judge(entries: Sequence[Entry]) -> dict[str, Verdict]:
    """Return the verdict on every claim that has a contrast, by the name of its study."""
    there = [entry for entry in entries if entry.compared is not None]
    corrected = adjusted([entry.compared.p for entry in there])
    verdicts = {
        entry.name: Verdict(verdict(entry.compared, p), p, len(there))
        for entry, p in zip(there, corrected, strict=True)
    }
    still_open = {
        entry.name: Verdict(CANNOT_TELL, None, len(there))
        for entry in entries
        if entry.compared is None and entry.open_because is not None
    }
    return verdicts | still_open


def refresh(output: Path) -> dict[str, Verdict]:
    """Write the verdicts of all pages and the index anew, and return the verdicts."""
    entries = read_entries(output)
    verdicts = judge(entries)
    for entry in entries:
        page = output / f"{entry.name}.html"
        if page.exists():
            shown = f"<!--verdict-->{verdict_box(entry, verdicts.get(entry.name))}<!--/verdict-->"
            page.write_text(PLACE.sub(lambda _, shown=shown: shown, page.read_text()))
    _write_index(output, entries, verdicts)
    return verdicts


def verdict_text(entry: Entry, judged: Verdict | None) -> str:
    """Return the verdict in a sentence, with the numbers it rests on."""
    if judged is None:
        return "no primary contrast: nothing is claimed, so there is no verdict"
    if entry.compared is None:
        return f"{judged.word}: {entry.open_because}"
    compared = entry.compared
    beside = f", {note(compared)}" if note(compared) else ""
    low, high = (compared.shown(bound) for bound in compared.interval95)
    return (
        f"{judged.word}{beside}: mean {compared.shown(compared.mean)}, 95 % interval "
        f"{low} to {high}, {_wanted(compared)}; adjusted p = {judged.p:.2g} "
        f"(Holm, {judged.family} contrast{'s' * (judged.family != 1)}), "
        f"{len(compared.seeds)} seeds"
    )


def _wanted(compared: Comparison) -> str:
    delta = compared.shown(compared.delta, sign=False)
    if compared.direction == "equal":
        return f"where at most {delta} counts as equal"
    return f"where more than {delta} would matter"


def verdict_box(entry: Entry, judged: Verdict | None) -> str:
    """Return the claim and the verdict as a page shows them."""
    word, colon, rest = verdict_text(entry, judged).partition(":")
    kind = judged.word.replace(" ", "-") if judged else "none"
    said = f'<p><span class="word">{escape(word)}</span>{colon}{escape(rest)}</p>'
    claim = terms(
        [("claim", entry.claim), ("source", entry.source), ("expected", entry.expectation)]
    )
    arms = ""
    if entry.compared is not None:
        compared = entry.compared
        arms = terms(
            [
                ("a", f"{compared.a.overrides} - {trials_text(compared.a)}"),
                ("b", f"{compared.b.overrides} - {trials_text(compared.b)}"),
                ("counted", " ".join(compared.remarks)),
            ]
        )
    return f'{claim}<div class="verdict {kind}">{said}{arms}</div>'


def _write_index(output: Path, entries: Sequence[Entry], verdicts: dict[str, Verdict]) -> None:
    parts = ["<h1>Studies</h1>", caption(_counts(verdicts))]
    for entry in entries:
        judged = verdicts.get(entry.name)
        kind = judged.word.replace(" ", "-") if judged else "none"
        word, colon, rest = verdict_text(entry, judged).partition(":")
        link = f'<a href="{escape(entry.name)}.html">{escape(entry.name)}</a>'
        parts.append(
            f'<section class="verdict {kind}"><h3>{link}</h3><p>{escape(entry.question or "")}</p>'
            f'<p><span class="word">{escape(word)}</span>{colon}{escape(rest)}</p>'
            f'<p class="caption">{escape(entry.done)}</p></section>'
        )
    write_page(output / "index.html", "jaxnorm studies", "\n".join(parts))


def _counts(verdicts: dict[str, Verdict]) -> str:
    words = [judged.word for judged in verdicts.values()]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    return f"Claims: {counts}." if counts else "No study has a primary contrast."
