"""Show one run: its configuration, how each seed ended, and its last evaluations.

python -m experiments.show RUN [output=runs]     # a name, the beginning of one, or a path
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from experiments.errors import ConfigError
from experiments.list import run_argument
from experiments.reports.overview import RunState, read_run, seeds_text
from experiments.reports.table import print_full_width
from experiments.runs import records

LAST = 3  # evaluations of each seed
COLUMNS = ("step", "epoch", "train_loss", "validation_accuracy", "validation_loss", "learning_rate")


def show(directory: Path, console: Console) -> None:
    """Print one run.

    Raises:
        ConfigError: the configuration of the run cannot be read by this code.
    """
    run = read_run(directory)
    console.print(f"{directory.name}: {seeds_text(run)}", markup=False, highlight=False)
    text = OmegaConf.to_yaml(OmegaConf.structured(run.config))
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    print_full_width(_seeds(run), console)
    if any(records.read_history(run.directory, number) for number in _numbers(run)):
        print_full_width(_last_evaluations(run), console)
    for line in _made_with(run):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _numbers(run: RunState) -> list[int]:
    return sorted({*run.config.seed_numbers, *records.existing_seeds(run.directory)})


def _seeds(run: RunState) -> Table:
    table = Table(title="seeds")
    for name in ("seed", "ended", "step", "test accuracy", "validation accuracy", "seconds"):
        table.add_column(name, justify="left" if name == "ended" else "right")
    for number in _numbers(run):
        table.add_row(str(number), *_seed(run, number))
    return table


def _seed(run: RunState, number: int) -> Iterator[str]:
    result = run.results.get(number)
    if result is None:
        history = records.read_history(run.directory, number)
        yield "not ended" if history else "missing"
        yield str(history[-1]["step"]) if history else ""
        return
    yield result["ended"] + (" (stale)" if number in run.stale else "")
    yield str(result["step"])
    yield f"{100 * result['test_accuracy']:.1f} %"
    yield f"{100 * result['validation_accuracy']:.1f} %"
    yield f"{result['seconds']:.1f}"


def _last_evaluations(run: RunState) -> Table:
    table = Table(title="last evaluations")
    for name in ("seed", *COLUMNS):
        table.add_column(name.replace("_", " "), justify="right")
    for number in _numbers(run):
        for line in records.read_history(run.directory, number)[-LAST:]:
            values = (line.get(column) for column in COLUMNS)
            table.add_row(str(number), *("-" if v is None else f"{v:.6g}" for v in values))
    return table


def _made_with(run: RunState) -> Iterator[str]:
    """Yield the device, the versions and the code of the seeds, once for seeds that share them."""
    seen: dict[str, list[int]] = {}
    for number, result in run.results.items():
        made = {**result["device"], **result["versions"], "code": result["code"]}
        text = ", ".join(f"{key} {value}" for key, value in made.items())
        seen.setdefault(text, []).append(number)
    for text, numbers in seen.items():
        yield f"seeds {', '.join(map(str, numbers))} made with: {text}"


def main() -> None:
    """Run the command line."""
    try:
        show(run_argument("show", "Show the configuration and the results of one run."), Console())
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
