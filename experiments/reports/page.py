"""The page of a report: one HTML file that needs nothing else."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from omegaconf import OmegaConf
from plotly.io import to_html

from experiments.figures import accuracy_by_batch_size, learning_curves
from experiments.results import Run, batch_sizes, interval, table_rows
from experiments.runs import run_directory

TEMPLATE = Path(__file__).with_name("page.html")


def render(runs: Sequence[Run], *, summary: str, missing: str, command: str) -> str:
    """Return the page of a study's finished runs, of which there is at least one."""
    config = runs[0].config
    fields = {
        "name": escape(str(config.study.name)),
        "question": escape(str(config.study.question)),
        "summary": escape(summary),
        "missing": f'<p class="missing">{escape(missing)}</p>' if missing else "",
        "setting": escape(_setting(runs)),
        "table": _accuracy_table(runs),
        "by_batch_size": _figure(accuracy_by_batch_size(runs), with_plotly=True),
        "curves": _figure(learning_curves(runs), with_plotly=False),
        "command": escape(command),
        "versions": _versions_table(runs),
        "configs": "\n".join(_config_details(run) for run in runs),
    }
    return Template(TEMPLATE.read_text()).substitute(fields)


def _setting(runs: Sequence[Run]) -> str:
    config = runs[0].config
    return (
        f"Data {config.data.name}; {config.model.name} with {config.model.channels} channels; "
        f"{config.optimizer.name} with a learning rate of {config.optimizer.learning_rate} per 32 "
        f"examples of a batch; {config.epochs} epochs; {config.seeds} seeds; "
        f"{sum(run.result['seconds'] for run in runs):.0f} s of training."
    )


def _accuracy_table(runs: Sequence[Run]) -> str:
    sizes = batch_sizes(runs)
    best = [max(r.accuracies.mean() for r in runs if r.config.batch_size == n) for n in sizes]
    head = "".join(f"<th>batch size {size}</th>" for size in sizes)
    rows = []
    for label, cells in table_rows(runs):
        columns = "".join(_accuracy_cell(run, best[i]) for i, run in enumerate(cells))
        rows.append(f"<tr><th>{escape(label)}</th>{columns}</tr>")
    return f"<table><tr><th>normalization</th>{head}</tr>{''.join(rows)}</table>"


def _accuracy_cell(run: Run | None, best: float) -> str:
    if run is None:
        return "<td>not run</td>"
    note = f'<span class="note">{run.diverged} diverged</span>' if run.diverged else ""
    attribute = ' class="best"' if run.accuracies.mean() == best else ""
    seeds = ", ".join(f"{accuracy:.1f}" for accuracy in run.accuracies)
    return f'<td{attribute} title="seeds: {seeds}">{interval(run.accuracies)}{note}</td>'


def _figure(figure: go.Figure, *, with_plotly: bool) -> str:
    options = {"displaylogo": False, "responsive": True}
    return to_html(figure, full_html=False, include_plotlyjs=with_plotly, config=options)


def _versions_table(runs: Sequence[Run]) -> str:
    """What the runs were made with; several values where they differ."""
    made_with = [{**run.result["device"], **run.result["versions"]} for run in runs]
    rows = []
    for key in made_with[0]:
        values = dict.fromkeys(str(each[key]) for each in made_with)
        rows.append(f"<tr><th>{escape(key)}</th><td>{escape(', '.join(values))}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _config_details(run: Run) -> str:
    name = escape(run_directory(run.config).name)
    config = escape(OmegaConf.to_yaml(OmegaConf.structured(run.config)))
    return f"<details><summary>{name}</summary><pre>{config}</pre></details>"
