"""The verdicts as Markdown: a table for the README, and a page with all of each study."""

import re
from collections.abc import Iterator, Mapping, Sequence

from experiments.reports.arms import trials_text
from experiments.reports.comparison import Comparison, note
from experiments.reports.rule import CANNOT_TELL, DOES_NOT_HOLD, HOLDS, OPEN
from experiments.reports.verdicts import (
    KEPT,
    NOT_RUN,
    RULE,
    Entry,
    Judged,
    Verdict,
    before_text,
    counts_text,
    deciding_texts,
    figure_title,
    levels_text,
    place_text,
    verdict_text,
)

HEAD = ("claim", "verdict", "measured", "model and data")
WORDS = (HOLDS, DOES_NOT_HOLD, CANNOT_TELL, OPEN, NOT_RUN)
COUNTED = "†"
LEGEND = f"{COUNTED}: seeds of an arm diverged or missed their target; its section says how many."
LINE = "<br>"
REPEATED = re.compile(r"\b(\w+)(,\1\b){3,}")


def verdict_table(
    entries: Sequence[Entry], verdicts: Mapping[str, Verdict], page: str = "docs/studies.md"
) -> str:
    """Return the number of each verdict, and a table of the claims that ran, by verdict.

    Args:
        page: the path of the page with the sections; "" if the table is on this page.
    """
    ran = [entry for entry in entries if entry.open_because != NOT_RUN]
    grouped = sorted(ran, key=lambda one: WORDS.index(_word(one, verdicts[one.name])))
    rows = [HEAD, ["---"] * len(HEAD), *(_row(each, verdicts[each.name], page) for each in grouped)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    marked = any(COUNTED in line for line in lines)
    return "\n".join([_counts(entries, verdicts), "", *lines, *(["", LEGEND] if marked else [])])


def _row(entry: Entry, judged: Verdict, page: str) -> list[str]:
    claim = f"[{_cell(entry.claim or entry.name)}]({page}#{entry.name})"
    word, words = _verdict(entry, judged)
    measured = [compared.at_place(_measured(compared)) for compared in entry.places]
    if words:
        measured = [f"{text}: {said}" for text, said in zip(measured, words, strict=True)]
    return [claim, word, LINE.join(measured), _cell(entry.setting)]


def _measured(compared: Comparison) -> str:
    """Return both levels and the difference, such as "84.1 % against 82.9 % (+1.2 points)"."""
    return f"{levels_text(compared)} ({compared.text(compared.mean)})"


def _counts(entries: Sequence[Entry], verdicts: Mapping[str, Verdict]) -> str:
    words = sorted((_word(one, verdicts[one.name]) for one in entries), key=WORDS.index)
    return f"Verdicts of {len(entries)} claims: {counts_text(words) or 'none'}."


def _word(entry: Entry, judged: Verdict) -> str:
    return NOT_RUN if entry.open_because == NOT_RUN else judged.word


def _verdict(entry: Entry, judged: Verdict) -> tuple[str, list[str]]:
    """Return the verdict on the claim, and those of its places if they differ."""
    word = f"**{_word(entry, judged)}**"
    words = [_place_word(*pair) for pair in zip(entry.places, judged.places, strict=False)]
    mark = f" {COUNTED}" if any(compared.remarks for compared in entry.places) else ""
    if len(set(words)) > 1:
        return f"{word}{mark}", words
    beside = note(entry.places[0], judged.word) if words else ""
    return f"{word}{f', {beside}' if beside else ''}{mark}", []


def _place_word(compared: Comparison, judged: Judged) -> str:
    beside = note(compared, judged.word)
    return f"{judged.word}{f', {beside}' if beside else ''}"


def _shortened(overrides: str) -> str:
    """Return the overrides with "64,64,64,64" as "64 x 4"."""
    return REPEATED.sub(lambda run: f"{run[1]} x {run[0].count(',') + 1}", overrides)


def studies_page(entries: Sequence[Entry], verdicts: Mapping[str, Verdict]) -> str:
    """Return the table, the rule and a section for each study."""
    sections = [_section(entry, verdicts[entry.name]) for entry in entries]
    return "\n\n".join([verdict_table(entries, verdicts, ""), "## The rule", *RULE, *sections])


def _section(entry: Entry, judged: Verdict) -> str:
    items = [f"- {name}: {' '.join(text.split())}" for name, text in _items(entry, judged) if text]
    blocks = [f"## {entry.name}", " ".join((entry.question or "").split()), "\n".join(items)]
    if entry.places:
        blocks.append(f"![{figure_title(entry.places)}](studies/{entry.name}.svg)")
    return "\n\n".join(block for block in blocks if block)


def _items(entry: Entry, judged: Verdict) -> Iterator[tuple[str, str | None]]:
    yield "claim", entry.claim
    yield "source", entry.source
    yield "expected", entry.expectation
    yield "models and data", entry.setting
    yield "verdict", _result(entry, judged)
    if entry.places:
        yield "measured", entry.places[0].metric
    deciding = deciding_texts(entry, judged)
    for compared, each, would in zip(entry.places, judged.places, deciding, strict=False):
        if compared.place:
            yield compared.place, place_text(compared, each, judged.family)
        for side, arm in (("a", compared.a), ("b", compared.b)):
            yield side, f"`{_shortened(arm.overrides)}`: {trials_text(arm)}"
        yield "counted", " ".join(compared.remarks)
        yield "before", before_text(compared)
        yield "would decide", would
    numbers_at = f"; [all numbers](studies/{entry.name}{KEPT})" if entry.done else ""
    yield "made by", f"`make study STUDY={entry.name}`{numbers_at}"
    yield "cost", entry.done


def _result(entry: Entry, judged: Verdict) -> str:
    if entry.open_because == NOT_RUN:
        return NOT_RUN
    word, colon, rest = verdict_text(entry, judged).partition("\n")[0].partition(":")
    return f"**{word}**{colon}{rest}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
