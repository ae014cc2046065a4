"""Store the results of reports, and write the verdicts of all studies into README.md and docs/.

    python -m experiments.verdicts [output=runs]     # from the existing reports
    python -m experiments.verdicts --from-committed  # from docs/studies only

docs/studies/NAME.json stores the results of a report. These files and configs/study determine the
figures in docs/studies, docs/studies.md, the table in README.md, and "Costs" and "Came out" in
configs/study.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from experiments.errors import ConfigError
from experiments.launch.study import CONFIG_DIR
from experiments.list import OUTPUT_HELP, output_of
from experiments.report import claimed
from experiments.reports.markdown import studies_page, verdict_table
from experiments.reports.strip import strip
from experiments.reports.verdicts import (
    KEPT,
    NOT_RUN,
    Entry,
    Verdict,
    figure_title,
    judge,
    keep_entry,
    read_entries,
    verdict_text,
)

ROOT = Path(CONFIG_DIR).parent
STUDIES = Path("docs", "studies")
BEGIN, END = "<!-- verdicts -->", "<!-- /verdicts -->"
OPENING = r"^# {}: .*\n(?:#  .*\n)*"  # a paragraph of the first comment of a study
PLACE = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)


def keep(output: Path, root: Path, names: Iterable[str]) -> list[str]:
    """Store the reported results of the studies with these names, and return which were found.

    Raises:
        ConfigError: none of them has a report.
    """
    entries = [entry for entry in read_entries(output) if entry.name in names]
    if not entries:
        raise ConfigError(
            f"{output} has no report of a study with a primary contrast; make one with make study "
            "STUDY=NAME, or give --from-committed to use docs/studies"
        )
    (root / STUDIES).mkdir(parents=True, exist_ok=True)
    for entry in entries:
        keep_entry(root / STUDIES, entry)
    return [entry.name for entry in entries]


def published(root: Path, studies: Sequence[DictConfig]) -> dict[Path, str]:
    """Return the files that follow from the stored results, with their texts.

    Args:
        studies: all studies that have a primary contrast. Those without stored results are not run.
    """
    kept = {entry.name: entry for entry in read_entries(root / STUDIES, KEPT)}
    entries = [kept.get(study.name) or _not_run(study) for study in studies]
    verdicts = judge(entries, [study.name for study in studies])
    texts = {
        root / STUDIES / f"{entry.name}.svg": strip(entry.places, figure_title(entry.places))
        for entry in entries
        if entry.places
    }
    for entry in entries:
        path = root / "configs" / "study" / f"{entry.name}.yaml"
        if entry.name in kept and path.exists():
            texts[path] = _opened(path, entry, verdicts[entry.name])
    readme, page = root / "README.md", root / "docs" / "studies.md"
    texts[readme] = _filled(readme, verdict_table(entries, verdicts))
    texts[page] = _filled(page, studies_page(entries, verdicts))
    return texts


def _not_run(study: DictConfig) -> Entry:
    fields = {key: study.get(key) for key in ("question", "claim", "source", "expectation")}
    return Entry(study.name, **fields, done="", setting="", places=[], open_because=NOT_RUN)


def _opened(path: Path, entry: Entry, judged: Verdict) -> str:
    """Return the text of the file of a study with its cost and its result in its first comment."""
    costs = _filled_opening(path.read_text(), "Costs", entry.done)
    return _filled_opening(costs, "Came out", verdict_text(entry, judged))


def _filled_opening(text: str, name: str, said: str) -> str:
    first, *others = f"{name}: {said}".splitlines()
    lines = textwrap.wrap(first, 96, subsequent_indent="  ")
    for line in others:
        lines += textwrap.wrap(line, 96, initial_indent="  ", subsequent_indent="  ")
    comment = "".join(f"# {line}\n" for line in lines)
    return re.sub(OPENING.format(name), lambda _: comment, text, count=1, flags=re.MULTILINE)


def _filled(path: Path, text: str) -> str:
    """Return the text of a file with new text between its marks."""
    filled, places = PLACE.subn(lambda _: f"{BEGIN}\n{text}\n{END}", path.read_text())
    if places != 1:
        raise ConfigError(f"{path} has {places} places for the verdicts; give one: {BEGIN} {END}")
    return filled


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Write the verdicts of all studies into README.md and docs/.",
        usage="python -m experiments.verdicts [--from-committed] [output=DIRECTORY]",
    )
    parser.add_argument(
        "--from-committed",
        action="store_true",
        help="read the results in docs/studies, not the runs",
    )
    parser.add_argument("arguments", nargs="*", help=OUTPUT_HELP)
    given = parser.parse_args()
    studies = claimed()
    try:
        if not given.from_committed:
            names = keep(output_of(given.arguments), ROOT, [study.name for study in studies])
            print(f"kept: {', '.join(names)}")
        for path, text in published(ROOT, studies).items():
            path.write_text(text)
            print(path.relative_to(ROOT))
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
