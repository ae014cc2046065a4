"""The verdicts of all reported studies, whose p-values are corrected together.

A report writes NAME.study.json next to its page. Then the verdicts of all pages and the index are
written again. The family of the correction consists of the primary contrasts in `configs/study`,
reported or not, so the order of the reports does not matter.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from experiments.reports.arms import trials_text
from experiments.reports.comparison import Comparison, note
from experiments.reports.page import caption, terms, write_page
from experiments.reports.rule import CANNOT_TELL, OPEN, adjusted, overall, seeds_to_decide
from experiments.reports.strip import strip

SUFFIX = ".study.json"
KEPT = ".json"  # the suffix of the committed files in docs/studies
DIGITS = 6
NOT_IN_CONFIGS = "configs/study has no study of this name that has a primary contrast"
NOT_RUN = "not run"
RULE = (
    "Before a study runs, its file states the claim and its source, one primary contrast (a "
    "against b), the metric, the direction, and a threshold delta that would matter in practice. A "
    "study can compare at several places, such as models; each place has its own comparison and "
    "its own verdict.",
    "A seed determines the split into training and validation data, the order and the initial "
    "weights, which are the same for a and b. For each seed, d is a - b, or log2(a / b) if the "
    "unit is a ratio. A seed that diverged counts as chance, and a target that was not reached "
    "counts as the budget of steps. A seed that trains at no value of a grid counts as half a "
    "decade below it, or as a range of no decade.",
    "The first stage has eight seeds. Both arms are tuned on their validation data, with the same "
    "trials: at least three values of every number that is tuned. If an arm chooses an end of this "
    "grid, both arms get the next value beyond it, up to six at each end. A range of values that "
    "train, such as the highest learning rate, is bisected to an eighth of a decade, for each seed "
    "by itself. A fresh seed begins at the values around the ends of all tuning seeds' ranges. "
    "Runs of neither a nor b, which a study only shows, can have fewer seeds.",
    "The second stage has fresh seeds of the chosen runs, and only these are compared, once. Their "
    "number follows from the standard deviation of d in the first stage (after Stein 1945): it is "
    "the smallest, from 8 to 64, at which an interval at the level 0.05 / 48 would have a "
    "half-width of at most delta / 2. The test has the standard deviation of the fresh seeds, so "
    "the choice of their number does not bias it. Test data are used for the chosen runs only: in "
    "the first stage for the standard deviation, then for the comparison. The test set is the same "
    "for all seeds, so the intervals do not contain what another test set would change.",
    "If a claim cannot be told after the second stage, at the level 0.05 / 48 at each place, then "
    "each of its places that cannot tell has a third stage, unless its second stage had 64 seeds. "
    "The third stage has 8 to 64 further seeds: the smallest number at which an interval, with the "
    "standard deviation of the second stage, would have a half-width of at most half the distance "
    "between the mean of the second stage and delta. These seeds alone then decide, and there is "
    "no fourth stage. Both comparisons count in the correction below.",
    "The claim that a is greater is tested by a two-sided t-test of d against delta, and the claim "
    "that a is at least b by a test against -delta. If the adjusted p is below 0.05, a mean above "
    "the bound gives “holds”, and a mean below it gives “does not hold”; otherwise the verdict is "
    "“cannot tell here”. The claim that both are equal is tested by two one-sided tests at -delta "
    "and delta, which give “holds”; a 95 % interval completely outside of these bounds gives “does "
    "not hold”. The p-values are adjusted by Holm's correction over the places of all studies; "
    "what is not run or open counts with p = 1.",
    "A place is “open” while anything that the rule requires is missing, for example if an arm "
    "still chooses an end of its grid after six extensions, or if a range is not bisected.",
    "A claim is of all its places. It holds if it holds at all of them, and does not hold if it "
    "does not hold at one of them.",
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
        setting: the models and the data of the contrast.
        places: the comparison at every place; none if there are too few seeds, or no contrast.
        open_because: the reason why the study has no verdict although it has a contrast; None with
            a comparison or without a contrast.
    """

    name: str
    question: str | None
    claim: str | None
    source: str | None
    expectation: str | None
    done: str
    setting: str
    places: list[Comparison]
    open_because: str | None

    @property
    def file(self) -> str:
        """The name of its files, which is that of the study without its folder."""
        return Path(self.name).name

    @property
    def claims(self) -> bool:
        """Whether the study has a primary contrast."""
        return bool(self.places) or self.open_because is not None


class Judged(NamedTuple):
    """The verdict at a place, with its adjusted p-value; None if it is open."""

    word: str
    p: float | None


class Verdict(NamedTuple):
    """The verdict on a claim, those of its places, and the number of contrasts of the family."""

    word: str
    places: list[Judged]
    family: int


def write_entry(output: Path, entry: Entry) -> None:
    """Write the results of a report, for the verdicts of other reports."""
    (output / f"{entry.file}{SUFFIX}").write_text(json.dumps(asdict(entry), indent=1))


def keep_entry(folder: Path, entry: Entry) -> None:
    """Write the results of a report for a commit: numbers are short, and the bytes reproducible."""
    text = json.dumps(_rounded(asdict(entry)), indent=1, ensure_ascii=False)
    (folder / f"{entry.file}{KEPT}").write_text(f"{text}\n")


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
    return Entry(**{**values, "places": [Comparison.from_dict(each) for each in values["places"]]})


def judge(entries: Sequence[Entry], family: Sequence[str]) -> dict[str, Verdict]:
    """Return the verdicts of the entries in the family, by the name of the study.

    Args:
        entries: the reported studies. Studies outside the family get no verdict and do not count.
        family: the names of all studies that have a primary contrast. Places that are open, and
            studies that are not reported, count with p = 1. A second stage before a third counts.
    """
    by_name = {entry.name: entry for entry in entries if entry.name in family and entry.claims}
    closed = [
        (name, at)
        for name, entry in by_name.items()
        for at, compared in enumerate(entry.places)
        if entry.open_because is None and compared.open_because is None
    ]
    earlier = [each.earlier for entry in by_name.values() for each in entry.places]
    undecided = [compared.p for compared in earlier if compared is not None]
    size = len(undecided) + sum(
        max(1, len(by_name[name].places)) if name in by_name else 1 for name in family
    )
    p_values = [*[by_name[name].places[at].p for name, at in closed], *undecided]
    corrected = adjusted([*p_values, *[1.0] * (size - len(p_values))])
    p_of = dict(zip(closed, corrected, strict=False))
    verdicts = {}
    for name, entry in by_name.items():
        judged = [
            Judged(compared.verdict(p_of[name, at]), p_of[name, at])
            if (name, at) in p_of
            else Judged(OPEN, None)
            for at, compared in enumerate(entry.places)
        ]
        word = overall([each.word for each in judged]) if judged else OPEN
        verdicts[name] = Verdict(word, judged, size)
    return verdicts


def refresh(output: Path, family: Sequence[str]) -> dict[str, Verdict]:
    """Write the verdicts of all pages and the index again, and return the verdicts."""
    entries = read_entries(output)
    verdicts = judge(entries, family)
    for entry in entries:
        fill(output / f"{entry.file}.html", entry, verdicts.get(entry.name))
    _write_index(output, entries, verdicts)
    return verdicts


def fill(path: Path, entry: Entry, judged: Verdict | None) -> None:
    """Write the verdict into a page, if the page exists."""
    if path.exists():
        box = f"<!--verdict-->{verdict_box(entry, judged)}<!--/verdict-->"
        path.write_text(PLACE.sub(lambda _: box, path.read_text()))


def verdict_text(entry: Entry, judged: Verdict | None) -> str:
    """Return the verdict with its numbers: a line, and a line for each place if there are several.

    Lines are separated by "\n".
    """
    if judged is None:
        beside = "".join(f"; {numbers(compared)}" for compared in entry.places)
        return f"no verdict: {entry.open_because or NOT_IN_CONFIGS}{beside}"
    if not entry.places:
        return f"{judged.word}: {entry.open_because}"
    of_places = [
        place_text(compared, of_place, judged.family)
        for compared, of_place in zip(entry.places, judged.places, strict=True)
    ]
    if len(of_places) == 1:
        return of_places[0]
    pairs = zip(entry.places, of_places, strict=True)
    named = [compared.at_place(text) for compared, text in pairs]
    return "\n".join([f"{judged.word}: {_mean_of(entry.places)}", *named])


def _mean_of(places: Sequence[Comparison]) -> str:
    mean = sum(compared.mean for compared in places) / len(places)
    return f"mean of {len(places)} places {places[0].text(mean)}"


def place_text(compared: Comparison, judged: Judged, family: int) -> str:
    """Return the verdict at a place with its numbers."""
    if compared.open_because is not None:
        return f"{judged.word}: {compared.open_because}; so far {numbers(compared)}"
    said = note(compared, judged.word)
    beside = f", {said}" if said else ""
    return (
        f"{judged.word}{beside}: {numbers(compared)}, adjusted p = {judged.p:.2g} "
        f"(Holm, {family} contrast{'s' * (family != 1)})"
    )


def numbers(compared: Comparison) -> str:
    """Return both levels, the mean difference, its interval, the threshold and the seeds."""
    low, high = (compared.text(bound) for bound in compared.interval95)
    return (
        f"{levels_text(compared)}, mean {compared.text(compared.mean)}, 95 % interval {low} to "
        f"{high}, {_wanted(compared)}, {len(compared.seeds)} seeds"
    )


def before_text(compared: Comparison) -> str:
    """Return the numbers of a second stage that decided nothing; "" if there is none."""
    if compared.earlier is None:
        return ""
    return f"the second stage could not tell: {numbers(compared.earlier)}"


def deciding_texts(entry: Entry, judged: Verdict | None) -> list[str]:
    """Return what would decide each place because of which a claim cannot be told; "" elsewhere."""
    if judged is None or judged.word != CANNOT_TELL:
        return [""] * len(entry.places)
    return [
        _deciding_text(compared) if at_place.word == CANNOT_TELL else ""
        for compared, at_place in zip(entry.places, judged.places, strict=True)
    ]


def _deciding_text(compared: Comparison) -> str:
    number = seeds_to_decide(compared.d, compared.bounds)
    if math.isinf(number):
        return "no number of seeds, if the mean difference stays at the threshold"
    seeds = f"{int(float(f'{number:.2g}')):,}"
    return f"about {seeds} further seeds, if the mean and the standard deviation stay the same"


def levels_text(compared: Comparison) -> str:
    """Return the mean of both arms in the unit of the metric, such as "84.1 % against 82.9 %".

    A range is given by its end, such as "highest learning rate 3.5 against 0.63".
    """
    levels = " against ".join(_level(compared, mean) for mean in compared.level_means)
    end = re.fullmatch("log10 of the (.*) that trains", compared.metric)
    return f"{end[1]} {levels}" if end else levels


def _level(compared: Comparison, mean: float) -> str:
    if compared.unit == "points":
        return f"{mean:.1f} %"
    if compared.unit == "nats":
        return f"{mean:.3f} nats"
    if compared.metric.startswith("log10"):
        return f"{10**mean:.2g}"
    if compared.metric.startswith("steps"):
        return f"{mean:.0f} steps"
    return f"{mean:.1f} {compared.unit}" if compared.unit == "decades" else f"{mean:.3g}"


def _wanted(compared: Comparison) -> str:
    delta = delta_text(compared)
    if compared.direction == "equal":
        return f"where at most {delta} counts as equal"
    if compared.direction == "at_least":
        return f"where at most {delta} less would not matter"
    return f"where more than {delta} would matter"


def delta_text(compared: Comparison) -> str:
    """Return the threshold with its unit."""
    return compared.text(compared.margin, sign=False)


def verdict_box(entry: Entry, judged: Verdict | None) -> str:
    """Return the claim and the verdict as HTML; nothing of a study that claims nothing."""
    if not entry.claims:
        return ""
    claim = terms(
        [("claim", entry.claim), ("source", entry.source), ("expected", entry.expectation)]
    )
    deciding = deciding_texts(entry, judged)
    arms = "".join(map(_arms, entry.places, deciding))
    return f'{claim}<div class="verdict {_kind(judged)}">{_sentence(entry, judged)}{arms}</div>'


def _arms(compared: Comparison, deciding: str) -> str:
    return terms(
        [
            ("at", compared.place),
            ("a", f"{compared.a.overrides} - {trials_text(compared.a)}"),
            ("b", f"{compared.b.overrides} - {trials_text(compared.b)}"),
            ("counted", " ".join(compared.remarks)),
            ("before", before_text(compared)),
            ("would decide", deciding),
        ]
    )


def _kind(judged: Verdict | None) -> str:
    return judged.word.replace(" ", "-") if judged else "none"


def _sentence(entry: Entry, judged: Verdict | None) -> str:
    lines = [line.partition(":") for line in verdict_text(entry, judged).split("\n")]
    return "".join(
        f'<p><span class="word">{escape(word)}</span>{colon}{escape(rest)}</p>'
        for word, colon, rest in lines
    )


def _write_index(output: Path, entries: Sequence[Entry], verdicts: dict[str, Verdict]) -> None:
    sections = ["<h1>Studies</h1>", caption(_counts(verdicts))]
    for entry in entries:
        judged = verdicts.get(entry.name)
        link = f'<a href="{escape(entry.file)}.html">{escape(entry.name)}</a>'
        sections.append(
            f'<section class="verdict {_kind(judged)}"><h3>{link}</h3>'
            f"<p>{escape(entry.question or '')}</p>"
            f"{_sentence(entry, judged) if entry.claims else ''}"
            f'{_strip(entry)}<p class="caption">{escape(entry.done)}</p></section>'
        )
    sections += ["<h2>The rule</h2>", rule()]
    write_page(output / "index.html", "jaxnorm studies", "\n".join(sections))


def _strip(entry: Entry) -> str:
    return strip(entry.places, figure_title(entry.places)) if entry.places else ""


def figure_title(places: Sequence[Comparison]) -> str:
    """Return the text of the figure of a contrast for screen readers."""
    return "; ".join(compared.at_place(numbers(compared)) for compared in places)


def rule() -> str:
    """Return the rule of the verdict as HTML."""
    return "".join(f"<p>{escape(text)}</p>" for text in RULE)


def counts_text(words: Sequence[str]) -> str:
    """Return how often each verdict occurs, in the order of the words: "holds 2, open 1"."""
    return ", ".join(f"{word} {words.count(word)}" for word in dict.fromkeys(words))


def _counts(verdicts: dict[str, Verdict]) -> str:
    counts = counts_text([judged.word for judged in verdicts.values()])
    return f"Claims: {counts}." if counts else "No study has a primary contrast."
