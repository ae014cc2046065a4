"""The verdicts of all reported studies, whose p-values are corrected together.

A report writes NAME.study.json next to its page. Then the verdicts of all pages and the index are
written again. The family of the correction consists of the primary contrasts in `configs/study`,
reported or not, so the order of the reports does not matter.
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
    OPEN,
    Comparison,
    adjusted,
    note,
    verdict,
)
from experiments.reports.page import caption, terms, write_page
from experiments.reports.strip import strip

SUFFIX = ".study.json"
KEPT = ".json"  # the suffix of the committed files in docs/studies
DIGITS = 6
NOT_IN_CONFIGS = "configs/study has no study of this name that has a primary contrast"
NOT_RUN = "not run"
RULE = (
    "Before a study runs, its file states the claim and its source, one primary contrast (a "
    "against b), the metric, the direction, and a threshold delta that would matter in practice.",
    "A seed determines the split into training and validation data, the order and the initial "
    "weights, which are the same for a and b. There are at least eight seeds. For each of them, d"
    " is a - b, or log2(a / b) if the unit is a ratio; if a study compares at several places, "
    "such as models, d is the mean over them. A seed that diverged counts as chance, and a target"
    " that was not reached counts as the budget of steps. Both arms are tuned in the same way, on"
    " validation data and with the same number of trials; test data are used once, for the chosen"
    " runs.",
    "The claim that a is greater is tested by a two-sided t-test of d against delta. If the "
    "adjusted p is below 0.05, a mean above delta gives “holds”, and a mean below delta gives "
    "“does not hold”; otherwise the verdict is “cannot tell here”. The claim that both are equal "
    "is tested by two one-sided tests at -delta and delta, which give “holds”; a 95 % interval "
    "completely outside of these bounds gives “does not hold”. The p-values are adjusted by "
    "Holm's correction over the primary contrasts of all studies; a contrast that is not run "
    "counts with p = 1.",
    "A verdict is “open” while anything that the rule requires is missing. An open contrast counts "
    "with p = 1.",
    "Beside “does not hold”, the note “real, but smaller than delta” means that the 95 % interval "
    "lies above zero, “reversed” that it lies below zero, and “no difference” that the 90 % "
    "interval lies between -delta and delta and holds zero. All other comparisons are secondary "
    "and get no verdict.",
)
PLACE = re.compile(r"<!--verdict-->.*?<!--/verdict-->", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A reported study.

    Attributes:
        compared: the comparison; None if there are too few seeds, or the study has no contrast.
        open_because: the reason why there is no verdict; None with a verdict or without a contrast.
    """

    name: str
    question: str | None
    claim: str | None
    source: str | None
    expectation: str | None
    done: str
    compared: Comparison | None
    open_because: str | None

    @property
    def claims(self) -> bool:
        """Whether the study has a primary contrast."""
        return self.compared is not None or self.open_because is not None


class Verdict(NamedTuple):
    """The verdict on a claim, its adjusted p-value, and the size of the family."""

    word: str
    p: float | None
    family: int


def write_entry(output: Path, entry: Entry) -> None:
    """Write the results of a report, for the verdicts of other reports."""
    (output / f"{entry.name}{SUFFIX}").write_text(json.dumps(asdict(entry), indent=1))


def keep_entry(folder: Path, entry: Entry) -> None:
    """Write the results of a report for a commit: numbers are short, and the bytes reproducible."""
    text = json.dumps(_rounded(asdict(entry)), indent=1, ensure_ascii=False)
    (folder / f"{entry.name}{KEPT}").write_text(f"{text}\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def read_entries(folder: Path, suffix: str = SUFFIX) -> list[Entry]:
    """Return the results of all reports, sorted by name."""
    return [_entry(json.loads(path.read_text())) for path in sorted(folder.glob(f"*{suffix}"))]


def _entry(values: dict[str, Any]) -> Entry:
    compared = values["compared"]
    return Entry(**{**values, "compared": compared and Comparison.from_dict(compared)})


def judge(entries: Sequence[Entry], family: Sequence[str]) -> dict[str, Verdict]:
    """Return the verdicts of the entries in the family, by the name of the study.

    Args:
        entries: the reported studies. Studies outside the family get no verdict and do not count.
        family: the names of all studies that have a primary contrast. Those that are open or not
            reported count with p = 1.
    """
    by_name = {entry.name: entry for entry in entries if entry.name in family and entry.claims}
    closed = [name for name, entry in by_name.items() if entry.open_because is None]
    p_values = [by_name[name].compared.p for name in closed]
    corrected = adjusted([*p_values, *[1.0] * (len(family) - len(closed))])
    verdicts = {name: Verdict(OPEN, None, len(family)) for name in by_name}
    for name, p in zip(closed, corrected, strict=False):
        verdicts[name] = Verdict(verdict(by_name[name].compared, p), p, len(family))
    return verdicts


def refresh(output: Path, family: Sequence[str]) -> dict[str, Verdict]:
    """Write the verdicts of all pages and the index again, and return the verdicts."""
    entries = read_entries(output)
    verdicts = judge(entries, family)
    for entry in entries:
        fill(output / f"{entry.name}.html", entry, verdicts.get(entry.name))
    _write_index(output, entries, verdicts)
    return verdicts


def fill(path: Path, entry: Entry, judged: Verdict | None) -> None:
    """Write the verdict into a page, if the page exists."""
    if path.exists():
        box = f"<!--verdict-->{verdict_box(entry, judged)}<!--/verdict-->"
        path.write_text(PLACE.sub(lambda _: box, path.read_text()))


def verdict_text(entry: Entry, judged: Verdict | None) -> str:
    """Return the verdict in a sentence with its numbers."""
    if judged is None:
        return _no_verdict(entry)
    if entry.open_because is not None:
        so_far = f"; so far {numbers(entry.compared)}" if entry.compared else ""
        return f"{judged.word}: {entry.open_because}{so_far}"
    compared = entry.compared
    said = note(compared, judged.word)
    beside = f", {said}" if said else ""
    return (
        f"{judged.word}{beside}: {numbers(compared)}, adjusted p = {judged.p:.2g} "
        f"(Holm, {judged.family} contrast{'s' * (judged.family != 1)})"
    )


def _no_verdict(entry: Entry) -> str:
    beside = f"; {numbers(entry.compared)}" if entry.compared else ""
    return f"no verdict: {entry.open_because or NOT_IN_CONFIGS}{beside}"


def numbers(compared: Comparison) -> str:
    """Return the mean, its interval, the threshold and the number of seeds."""
    low, high = (compared.text(bound) for bound in compared.interval95)
    return (
        f"mean {compared.text(compared.mean)}, 95 % interval {low} to {high}, "
        f"{_wanted(compared)}, {len(compared.seeds)} seeds"
    )


def _wanted(compared: Comparison) -> str:
    delta = compared.text(compared.delta, sign=False)
    if compared.direction == "equal":
        return f"where at most {delta} counts as equal"
    return f"where more than {delta} would matter"


def verdict_box(entry: Entry, judged: Verdict | None) -> str:
    """Return the claim and the verdict as HTML; nothing of a study that claims nothing."""
    if not entry.claims:
        return ""
    claim = terms(
        [("claim", entry.claim), ("source", entry.source), ("expected", entry.expectation)]
    )
    arms = ""
    if entry.compared is not None:
        compared = entry.compared
        arms = terms(
            [
                ("a", f"{compared.a.overrides} - {trials_text(compared.a, compared.places)}"),
                ("b", f"{compared.b.overrides} - {trials_text(compared.b, compared.places)}"),
                ("counted", " ".join(compared.remarks)),
            ]
        )
    return f'{claim}<div class="verdict {_kind(judged)}">{_sentence(entry, judged)}{arms}</div>'


def _kind(judged: Verdict | None) -> str:
    return judged.word.replace(" ", "-") if judged else "none"


def _sentence(entry: Entry, judged: Verdict | None) -> str:
    word, colon, rest = verdict_text(entry, judged).partition(":")
    return f'<p><span class="word">{escape(word)}</span>{colon}{escape(rest)}</p>'


def _write_index(output: Path, entries: Sequence[Entry], verdicts: dict[str, Verdict]) -> None:
    sections = ["<h1>Studies</h1>", caption(_counts(verdicts))]
    for entry in entries:
        judged = verdicts.get(entry.name)
        link = f'<a href="{escape(entry.name)}.html">{escape(entry.name)}</a>'
        sections.append(
            f'<section class="verdict {_kind(judged)}"><h3>{link}</h3>'
            f"<p>{escape(entry.question or '')}</p>"
            f"{_sentence(entry, judged) if entry.claims else ''}"
            f'{_strip(entry)}<p class="caption">{escape(entry.done)}</p></section>'
        )
    sections += ["<h2>The rule</h2>", rule()]
    write_page(output / "index.html", "jaxnorm studies", "\n".join(sections))


def _strip(entry: Entry) -> str:
    return "" if entry.compared is None else strip(entry.compared, numbers(entry.compared))


def rule() -> str:
    """Return the rule of the verdict as HTML."""
    return "".join(f"<p>{escape(text)}</p>" for text in RULE)


def _counts(verdicts: dict[str, Verdict]) -> str:
    words = [judged.word for judged in verdicts.values()]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    return f"Claims: {counts}." if counts else "No study has a primary contrast."
