"""Draw what normalization does inside the network of a run: RUN/inspect.html.

python -m experiments.inspect RUN [output=runs]     # a name, the beginning of one, or a path
"""

import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import plotly.graph_objects as go

import jaxnorm as jn
from experiments.config import Config
from experiments.errors import ConfigError
from experiments.list import run_argument
from experiments.reports import activations, page
from experiments.reports.network import (
    SEED,
    Place,
    ScaledInputs,
    diagnosis,
    places,
    scaled_inputs,
)
from experiments.reports.overview import read_run
from experiments.runs import records
from experiments.training.setup import make_setup

SCALING_NAMES = {
    "raw": "as they are",
    "min_max": "scaled by min and max",
    "standard": "standardized",
}
SIDES = ("input", "output")
NO_RUNNING = "This normalization keeps no running statistics."
STATISTICS = (
    "What jaxnorm.diagnose says, for which these validation examples in evaluation are the present "
    "data."
)
HOW_TO_READ = (
    "The input and the output of each normalization on validation data: their distributions in "
    "evaluation, scaled to their peaks; their quantiles 5, 15, 50, 85 and 95 % over training, in "
    "training mode; and the mean and standard deviation of each channel in one batch against the "
    "running values. Equal values lie on the dashed line."
)


def inspect(directory: Path) -> Path:
    """Write the page of a run into its directory, and return the path.

    Raises:
        ConfigError: the parameters of the run were not kept, or they do not fit this code.
    """
    config = read_run(directory).config
    history = records.read_history(directory, SEED)
    body = [
        f"<h1>What normalization does in {escape(directory.name)}</h1>",
        page.caption(
            f"{config.model['name']} on {config.data['name']}, normalization "
            f"{config.norm['name']}, batch size {config.batch_size}; seed {SEED}."
        ),
        *_inputs(config),
        "<h2>Layers</h2>",
        page.caption(HOW_TO_READ),
    ]
    found = places(config, directory)
    body.append(
        page.figures(figure for place in found for figure in _place_figures(place, history))
    )
    report = diagnosis(config, found, history[-1]["step"] if history else 0)
    body += ["<h2>Running statistics</h2>", _report(report) if report else page.caption(NO_RUNNING)]
    path = directory / "inspect.html"
    title = f"jaxnorm: inside {directory.name}"
    column = page.NARROW if report else page.WIDE  # three figures for each layer, or two
    page.write_page(path, title, "\n".join(body), root="..", column=column)
    return path


def _inputs(config: Config) -> Iterator[str]:
    """Yield the section on the inputs. Words have no scale to show."""
    if make_setup(config).spec.vocabulary is not None:
        return
    yield "<h2>Inputs</h2>"
    yield page.figures(_input_figures(scaled_inputs(config)))
    yield page.caption(
        "The two features of the training data with the largest and the smallest standard "
        "deviation, both axes in the same units; colors are classes. The run used the features "
        f"{SCALING_NAMES[config.data['scaling']]}."
    )


def _report(report: jn.Diagnosis) -> str:
    return page.caption(STATISTICS) + f"<pre>{escape(str(report))}</pre>"


def _input_figures(scaled: Sequence[ScaledInputs]) -> Iterator[go.Figure]:
    chosen = list(activations.largest_and_smallest_deviation(scaled[0].values))
    names = [f"feature {index}" for index in chosen]
    for kind, title in SCALING_NAMES.items():
        [of_kind] = (each for each in scaled if each.kind == kind)
        yield activations.inputs(of_kind.values[:, chosen], names, of_kind.labels, title)


def _place_figures(place: Place, history: Sequence[dict]) -> Iterator[go.Figure]:
    yield activations.distribution(place.before, place.after, f"{place.name}: distribution")
    lines = [line for line in history if place.name in line.get("quantiles", {})]
    if lines:
        sides = ([line["quantiles"][place.name][side] for line in lines] for side in SIDES)
        steps = [line["step"] for line in lines]
        yield activations.quantiles(steps, *sides, f"{place.name}: quantiles over training")
    if place.running is not None and place.batch is not None:
        title = f"{place.name}: running against batch"
        yield activations.running_against_batch(place.running, place.batch, title)


def main() -> None:
    """Run the command line. An error ends in a message and an exit code."""
    try:
        path = inspect(
            run_argument("inspect", "Draw what normalization does inside the network of a run.")
        )
    except ConfigError as error:
        sys.exit(f"error: {error}")
    print(f"page: {path.resolve()}")


if __name__ == "__main__":
    main()
