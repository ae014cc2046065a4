"""Turn the finished runs of a study into a table and a page.

python -m experiments.report                     # the study "norms"
python -m experiments.report study=norms seeds=2 # with the overrides the study was run with
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import initialize_config_dir
from hydra.errors import HydraException
from rich.console import Console
from rich.table import Table

from experiments.config import Config, register_schemas
from experiments.page import render
from experiments.results import Run, batch_sizes, collect, interval, table_rows
from experiments.runs import run_directory
from experiments.study import CONFIG_DIR, explain, grid
from experiments.validation import ConfigError

DEFAULT_STUDY = "study=norms"


def report(overrides: Sequence[str], console: Console) -> None:
    """Print the table of a study's finished runs and write its page.

    Raises:
        ConfigError: the overrides make no study that can be reported, or no run is finished.
    """
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        configs = grid(overrides)
    if configs[0].study.name is None:
        raise ConfigError(f"a report needs a study, for example {DEFAULT_STUDY}")
    runs, missing = collect(configs)
    command = f"python -m experiments.train --multirun {shlex.join(overrides)}"
    if not runs:
        raise ConfigError(f"none of the {len(configs)} runs is finished; make them with: {command}")
    hint = _missing_hint(missing, len(configs), command)
    console.print(_table(runs))
    if hint:
        console.print(hint, markup=False, highlight=False, soft_wrap=True)
    path = Path(configs[0].output) / f"{configs[0].study.name}.html"
    path.write_text(render(runs, summary=summarize(runs), missing=hint, command=command))
    console.print(f"report: {path.resolve()}", markup=False, highlight=False, soft_wrap=True)


def summarize(runs: Sequence[Run]) -> str:
    """Return, for each batch size, what was best, what may be as good, and what diverged."""
    sentences = []
    for size in batch_sizes(runs):
        own = [run for run in runs if run.config.batch_size == size]
        best = max(own, key=lambda run: run.accuracies.mean())
        reached = interval(best.accuracies)
        sentence = f"At a batch size of {size}, {best.label} is the most accurate ({reached} %)"
        others = [run for run in own if run is not best]
        close = [run.label for run in others if interval(run.accuracies).overlaps(reached)]
        if close:
            whose = "all others" if len(close) == len(others) > 1 else _and(close)
            sentence += f"; the confidence intervals of {whose} overlap with it"
        sentences.append(sentence + ".")
        for run in own:
            if run.diverged:
                sentences.append(
                    f"There, {run.diverged} of {len(run.accuracies)} seeds diverged with "
                    f"normalization {run.label!r}: their loss is not finite."
                )
    return " ".join(sentences)


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _missing_hint(missing: Sequence[Config], total: int, command: str) -> str:
    if not missing:
        return ""
    names = ", ".join(run_directory(config).name for config in missing)
    return f"{len(missing)} of {total} runs are missing ({names}); make them with: {command}"


def _table(runs: Sequence[Run]) -> Table:
    table = Table(title="test accuracy (%)", caption="mean over seeds ± 95% confidence interval")
    table.add_column("normalization")
    for size in batch_sizes(runs):
        table.add_column(f"batch size {size}", justify="right")
    for label, cells in table_rows(runs):
        table.add_row(label, *(_cell(run) for run in cells))
    return table


def _cell(run: Run | None) -> str:
    if run is None:
        return "not run"
    diverged = f"  ({run.diverged} diverged)" if run.diverged else ""
    return f"{interval(run.accuracies)}{diverged}"


def main() -> None:
    """Run the command line. What is wrong with it ends in a message and an exit code."""
    parser = argparse.ArgumentParser(
        description="Report a study.", usage="python -m experiments.report [overrides ...]"
    )
    parser.add_argument("overrides", nargs="*", help=f"as given to the study ({DEFAULT_STUDY})")
    overrides = parser.parse_args().overrides
    if not any(override.startswith("study=") for override in overrides):
        overrides = [DEFAULT_STUDY, *overrides]
    register_schemas()
    try:
        report(overrides, Console())
    except (HydraException, ConfigError) as error:
        sys.exit(explain(error))


if __name__ == "__main__":
    main()
