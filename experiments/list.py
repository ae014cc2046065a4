"""Show the available choices and the existing runs.

python -m experiments.list [output=runs]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.errors import ConfigError
from experiments.launch.study import CONFIG_DIR
from experiments.reports.overview import choices, find_run, run_directories, runs_table
from experiments.reports.table import print_full_width

OUTPUT = "runs"
OUTPUT_HELP = f"output=DIRECTORY, the directory of the runs (by default {OUTPUT})"


def show_all(output: Path, console: Console) -> None:
    """Print the choices of every group of configurations, and a table of the runs."""
    table = Table(title="choices, each as group=choice", show_header=False)
    for group, files in choices(Path(CONFIG_DIR)):
        for index, (name, text) in enumerate(files):
            last = index == len(files) - 1
            table.add_row(group if index == 0 else "", name, text, end_section=last)
    console.print(table)
    if run_directories(output):
        print_full_width(runs_table(output), console)
    else:
        console.print(f"no run in {output}", markup=False, highlight=False)


def output_of(arguments: Sequence[str]) -> Path:
    """Return the directory of the runs, which the arguments can set with output=DIRECTORY.

    Raises:
        ConfigError: there is another argument.
    """
    output = OUTPUT
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != "output" or not value:
            raise ConfigError(f"{argument!r} is not a valid argument; give output=DIRECTORY")
        output = value
    return Path(output)


def run_argument(module: str, description: str) -> Path:
    """Return the run that the command line of a module names.

    Raises:
        ConfigError: there is no such run, or another argument.
    """
    usage = f"python -m experiments.{module} RUN [output=DIRECTORY]"
    parser = argparse.ArgumentParser(description=description, usage=usage)
    parser.add_argument("run", help="the run's name, the beginning of its name, or its path")
    parser.add_argument("arguments", nargs="*", help=OUTPUT_HELP)
    given = parser.parse_args()
    return find_run(given.run, output_of(given.arguments))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Show the choices of each configuration group, and the runs.",
        usage="python -m experiments.list [output=DIRECTORY]",
    )
    parser.add_argument("arguments", nargs="*", help=OUTPUT_HELP)
    try:
        show_all(output_of(parser.parse_args().arguments), Console())
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
