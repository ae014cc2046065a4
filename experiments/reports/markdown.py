"""The verdicts as Markdown: a short table for the README, and a page with all of each study."""

import re
from collections.abc import Iterator, Mapping, Sequence

from experiments.reports.arms import Arm, trials_text
from experiments.reports.comparison import (
    CANNOT_TELL,
    DOES_NOT_HOLD,
    HOLDS,
    OPEN,
    Comparison,
    note,
)
from experiments.reports.verdicts import (
    KEPT,
    NOT_RUN,
    RULE,
    Entry,
    Verdict,
    numbers,
    verdict_text,
)

HEAD = (
    "study",
    "claim",
    "verdict",
    "effect (95 % interval, not corrected)",
    "a against b",
    "figure",
)
SHORT_HEAD = ("claim", "verdict", "effect (95 % interval)", "what would matter")
WORDS = (HOLDS, DOES_NOT_HOLD, CANNOT_TELL, OPEN, NOT_RUN)
FIGURE_WIDTH = 260
COUNTED = "†"
LEGEND = (
    f"{COUNTED}: an arm chose the end of its grid, or seeds of it diverged or missed the target; "
    "its section says which."
)
REPEATED = re.compile(r"\b(\w+)(,\1\b){3,}")


def short_table(entries: Sequence[Entry], verdicts: Mapping[str, Verdict]) -> str:
    """Return the number of each verdict, and a table of the claims, grouped by verdict."""
    grouped = sorted(entries, key=lambda one: WORDS.index(_word(one, verdicts[one.name])))
    rows = [_short_row(entry, verdicts[entry.name]) for entry in grouped]
    return _table(_counts(entries, verdicts), SHORT_HEAD, rows)


def _short_row(entry: Entry, judged: Verdict) -> list[str]:
    claim = f"[{_cell(entry.claim or entry.name)}](docs/studies.md#{entry.name})"
    verdict = _verdict(entry, judged).partition(";")[0]
    if entry.compared is None:
        return [claim, verdict, "", ""]
    return [claim, verdict, _effect(entry.compared), _delta(entry.compared)]


def verdict_table(entries: Sequence[Entry], verdicts: Mapping[str, Verdict]) -> str:
    """Return the number of each verdict, and a table with all of each study."""
    rows = [_row(entry, verdicts[entry.name]) for entry in entries]
    return _table(_counts(entries, verdicts), HEAD, rows)


def _table(counts: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    marked = any(COUNTED in line for line in lines)
    return "\n".join([counts, "", *lines, *(["", LEGEND] if marked else [])])


def _counts(entries: Sequence[Entry], verdicts: Mapping[str, Verdict]) -> str:
    words = [_word(entry, verdicts[entry.name]) for entry in entries]
    counts = ", ".join(f"{words.count(word)} {word}" for word in WORDS if word in words)
    return f"Verdicts of {len(entries)} claims: {counts or 'none'}."


def _word(entry: Entry, judged: Verdict) -> str:
    return NOT_RUN if entry.open_because == NOT_RUN else judged.word


def _row(entry: Entry, judged: Verdict) -> list[str]:
    study = f"[{entry.name}](studies.md#{entry.name})"
    claim = _cell(f"{entry.claim or ''} ({entry.source})" if entry.source else entry.claim or "")
    compared = entry.compared
    if compared is None:
        return [study, claim, _verdict(entry, judged), "", "", ""]
    figure = (
        f'<img src="studies/{entry.name}.svg" width="{FIGURE_WIDTH}" alt="{numbers(compared)}">'
    )
    return [
        study,
        claim,
        _verdict(entry, judged),
        f"{_effect(compared)}; {_delta(compared)}",
        _cell(f"{_arms(compared)}; {compared.metric}"),
        figure,
    ]


def _effect(compared: Comparison) -> str:
    low, high = (compared.text(bound).split()[0] for bound in compared.interval95)
    return f"**{compared.text(compared.mean)}** ({low} to {high})"


def _delta(compared: Comparison) -> str:
    delta = compared.text(compared.delta, sign=False)
    return f"equal within {delta}" if compared.direction == "equal" else f"delta {delta}"


def _verdict(entry: Entry, judged: Verdict) -> str:
    word = f"**{_word(entry, judged)}**"
    if judged.p is None:
        return word
    beside = note(entry.compared, judged.word)
    mark = f" {COUNTED}" if entry.compared.remarks else ""
    return f"{word}{f', {beside}' if beside else ''}{mark}; adjusted p = {judged.p:.2g}"


def _arms(compared: Comparison) -> str:
    return " against ".join(
        f"`{_shortened(arm.overrides)}`{_won(arm, compared)}" for arm in (compared.a, compared.b)
    )


def _shortened(overrides: str) -> str:
    """Return the overrides with "64,64,64,64" as "64 x 4"."""
    return REPEATED.sub(lambda run: f"{run[1]} x {run[0].count(',') + 1}", overrides)


def _won(arm: Arm, compared: Comparison) -> str:
    if not compared.tuned:
        return ""
    if compared.places == 1:
        return f" ({arm.chosen})"
    return f" (best of {len(arm.trials) // compared.places} at each of {compared.places} places)"


def studies_page(entries: Sequence[Entry], verdicts: Mapping[str, Verdict]) -> str:
    """Return the table, the rule and a section for each study."""
    sections = [_section(entry, verdicts[entry.name]) for entry in entries]
    return "\n\n".join([verdict_table(entries, verdicts), "## The rule", *RULE, *sections])


def _section(entry: Entry, judged: Verdict) -> str:
    items = [f"- {name}: {' '.join(text.split())}" for name, text in _items(entry, judged) if text]
    blocks = [f"## {entry.name}", " ".join((entry.question or "").split()), "\n".join(items)]
    if entry.compared is not None:
        blocks.append(f"![{numbers(entry.compared)}](studies/{entry.name}.svg)")
    return "\n\n".join(block for block in blocks if block)


def _items(entry: Entry, judged: Verdict) -> Iterator[tuple[str, str | None]]:
    yield "claim", entry.claim
    yield "source", entry.source
    yield "expected", entry.expectation
    compared = entry.compared
    if compared is not None:
        yield "measured", compared.metric
        for side, arm in (("a", compared.a), ("b", compared.b)):
            yield side, f"`{_shortened(arm.overrides)}`: {trials_text(arm, compared.places)}"
        yield "counted", " ".join(compared.remarks)
    yield "verdict", _result(entry, judged)
    numbers_at = f"; [all numbers](studies/{entry.name}{KEPT})" if entry.done else ""
    yield "made by", f"`make study STUDY={entry.name}`{numbers_at}"
    yield "cost", entry.done


def _result(entry: Entry, judged: Verdict) -> str:
    if entry.open_because == NOT_RUN:
        return NOT_RUN
    word, colon, rest = verdict_text(entry, judged).partition(":")
    return f"**{word}**{colon}{rest}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
