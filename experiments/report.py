"""Report the runs of a study as a table, a verdict and a page.

    python -m experiments.report                      # every study that has a run
    python -m experiments.report study=norms seeds=2  # with the overrides of the study

The page is runs/NAME.html, and runs/index.html shows all studies with their verdicts. Overrides
that change the question of a study or the results of its runs, such as epochs=2, make another
study of it. If the study has a primary contrast, the page is then runs/NAME-changed.html, and the
verdict does not change.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from experiments.config import Config, StudyConfig, register_schemas
from experiments.errors import ConfigError
from experiments.launch.contrast import arms_of
from experiments.launch.selection import picks
from experiments.launch.stages import planned
from experiments.launch.study import CONFIG_DIR, composed, explain, fallback
from experiments.reports.answer import best_runs
from experiments.reports.comparison import Comparison, compare
from experiments.reports.figures import choose_axes
from experiments.reports.metrics import metric, report_metric
from experiments.reports.results import Point, listed, shortfalls, value_label
from experiments.reports.study_page import write_study_page
from experiments.reports.table import print_full_width, study_table, to_rich
from experiments.reports.verdicts import Entry, fill, refresh, verdict_text, write_entry
from experiments.runs.directory import DATA_NOT_IN_IDENTITY, NOT_IN_IDENTITY

MAKES_ANOTHER = "makes another study, and the verdict of the study itself does not change"


def report(overrides: Sequence[str], console: Console) -> None:
    """Print the table and the verdict of a study, and write its page and the index.

    Raises:
        ConfigError: the overrides select no study, or no seed of it is finished.
    """
    if not _report(overrides, console):
        raise ConfigError(f"no run is finished; train them with: {command(overrides)}")


def _report(overrides: Sequence[str], console: Console) -> bool:
    """Report a study if any seed of it is finished, and return whether one is."""
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        configs, instead = composed(overrides), fallback(overrides)
    if configs[0].study.name is None:
        raise ConfigError(f"a report needs a study; give study=NAME, one of {', '.join(studies())}")
    points = planned(configs)
    if not any(point.seeds for point in points):
        return False
    changed = [*instead, *changes(overrides)]
    write_report(configs[0], points, command(overrides), console, changed)
    return True


def changes(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that make another study of a study."""
    return [override for override in overrides if not _same_study(override.partition("=")[0])]


def _same_study(key: str) -> bool:
    of_the_machine = key.partition(".")[0] in ("launcher", "distributed")
    return of_the_machine or key in (
        *NOT_IN_IDENTITY,
        *(f"data.{name}" for name in DATA_NOT_IN_IDENTITY),
    )


def command(overrides: Sequence[str]) -> str:
    """Return the command that trains what the rule of the verdict asks of a study, and reports it.

    A study that is not in a file has no such command: its sweep is trained.
    """
    named = [each for each in overrides if each.startswith("study=")]
    others = [each for each in overrides if each not in named]
    if not named:
        return f"python -m experiments.train --multirun {shlex.join(overrides)}"
    [name] = [each.removeprefix("study=") for each in named]
    return f"python -m experiments.studies {shlex.join([*others, '--only', name])}"


def write_report(
    config: Config,
    points: Sequence[Point],
    made_by: str,
    console: Console,
    changed: Sequence[str] = (),
) -> None:
    """Print and write the results of the runs of a study. At least one seed is finished.

    If overrides `changed` a study that has a verdict, its page and entry stay the same.
    """
    study, folder = config.study, Path(str(config.study.name)).parent
    output = Path(config.output, folder)
    output.mkdir(parents=True, exist_ok=True)
    compared = [] if study.contrast is None else compare(study.contrast, points, study.x)
    places = [] if isinstance(compared, str) else compared
    tuned = any(each.tuned for each in places)
    measured = report_metric(metric(study.metric, points, study.x), tuned=tuned, points=points)
    entry = _entry(study, points, compared)
    name, claimed = entry.name, family(folder)
    another = bool(changed) and name in claimed
    path = output / f"{entry.file}{'-changed' if another else ''}.html"
    axes = choose_axes(points, study)
    answered = None if entry.claims or another else best_runs(points, measured, axes.x)
    write_study_page(path, study, points, measured, places, made_by, answered)
    if another:
        entry = replace(entry, open_because=f"{' '.join(changed)} {MAKES_ANOTHER}")
        fill(path, entry, None)
    else:
        write_entry(output, entry)
    judged = refresh(output, claimed).get(name)

    named = [key for key in (axes.x, *axes.series) if key]
    table = to_rich(study_table(points, measured, named), f"{name}: {measured.label}")
    print_full_width(table, console)
    lines = shortfalls(points)
    if any(point.missing or point.stale for point in points):
        lines.append(f"train what is missing with: {made_by}")
    if answered is None:
        text = verdict_text(entry, None if another else judged)
        lines += f"verdict: {text}".split("\n")
    else:
        lines += [f"question: {study.question}", f"answer: {answered}"]
    for line in [*lines, f"report: {path.resolve()}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _entry(study: StudyConfig, points: Sequence[Point], compared: list[Comparison] | str) -> Entry:
    """Return the results of a study for the verdicts. `compared` is a reason if there are none."""
    return Entry(
        name=str(study.name),
        question=study.question,
        claim=study.claim,
        source=study.source,
        expectation=study.expectation,
        done=_done(points),
        setting=_setting(_compared(study, points)),
        places=[] if isinstance(compared, str) else compared,
        open_because=compared if isinstance(compared, str) else None,
    )


def _compared(study: StudyConfig, points: Sequence[Point]) -> Sequence[Point]:
    """Return the runs that the contrast compares; all if there is no contrast."""
    if study.contrast is None:
        return points
    of_a, of_b = arms_of(study.contrast)
    return [p for p in points if any(picks(arm, p.values) for arm in (*of_a, *of_b))]


def _setting(points: Sequence[Point]) -> str:
    """Return the models and the data of the runs, such as "mlp, cnn and lstm on fashion mnist"."""
    models, data = (
        listed([*dict.fromkeys(value_label(point.values[key]) for point in points)])
        for key in ("model", "data")
    )
    return f"{models} on {data}"


def _done(points: Sequence[Point]) -> str:
    seeds = sum(len(point.seeds) for point in points)
    wanted = sum(len(point.config.seed_numbers) for point in points)
    seconds = sum(point.seconds for point in points)
    return f"{seeds} of {wanted} seeds of {len(points)} runs, {seconds:.0f} s of training"


def report_all(overrides: Sequence[str], console: Console) -> None:
    """Report every study that has a run.

    Raises:
        ConfigError: there is none.
    """
    reported = [_report_if_there([f"study={name}", *overrides], console) for name in studies()]
    if not any(reported):
        raise ConfigError(f"no study has a finished run; the studies are {', '.join(studies())}")


def _report_if_there(overrides: Sequence[str], console: Console) -> bool:
    try:
        return _report(overrides, console)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        text = f"{overrides[0]}: {explain(error)}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return False


def studies(pattern: str = "*.yaml") -> list[str]:
    """Return the names of the available studies, by default without those of subfolders."""
    folder = Path(CONFIG_DIR, "study")
    paths = [path.relative_to(folder).with_suffix("") for path in folder.glob(pattern)]
    return sorted(path.as_posix() for path in paths)


def family(folder: Path | str = ".") -> list[str]:
    """Return the names of the studies of a folder that have a primary contrast, reported or not.

    Each folder of studies is a family of its own.
    """
    return [study.name for study in claimed(folder)]


def claimed(folder: Path | str = ".") -> list[DictConfig]:
    """Return the settings of the studies that have a primary contrast, from their files."""
    paths = sorted(Path(CONFIG_DIR, "study", folder).glob("*.yaml"))
    loaded = [OmegaConf.load(path) for path in paths]
    asked = [config.study for config in loaded if "study" in config]
    return [study for study in asked if study.get("contrast") is not None]


def main() -> None:
    """Run the command line. An error ends in a message and an exit code."""
    parser = argparse.ArgumentParser(
        description="Report one study, or all studies with finished runs.",
        usage="python -m experiments.report [overrides ...]",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        help="as in training, such as study=norms seeds=2; output=DIRECTORY alone for all studies",
    )
    overrides = parser.parse_args().overrides
    one = any(override.startswith(("study=", "study.name=")) for override in overrides)
    register_schemas()
    try:
        if not one and any(not override.startswith("output=") for override in overrides):
            raise ConfigError(
                "the study is missing; give study=NAME, or study.name=NAME as for the sweep, or "
                f"only output=DIRECTORY for all studies; the studies are {', '.join(studies())}"
            )
        (report if one else report_all)(overrides, Console())
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        sys.exit(explain(error))


if __name__ == "__main__":
    main()
