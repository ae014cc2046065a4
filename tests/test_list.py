"""What list and show tell of runs on disk, and how a run is found by its name."""

import io
import os
from pathlib import Path

import pytest
import run_files
from rich.console import Console

from experiments.errors import ConfigError
from experiments.launch.study import CONFIG_DIR
from experiments.list import output_of, show_all
from experiments.reports.overview import choices, find_run, read_run, runs_table, seeds_text
from experiments.show import show


@pytest.fixture
def runs(tmp_path):
    """Write a run that ended in every way and is stale in part, and one that is not readable."""
    config = run_files.configuration(seeds=5, output=str(tmp_path))
    for seed, (accuracy, ended) in enumerate(
        [(0.9, "done"), (0.1, "diverged"), (0.8, "stopped"), (0.8, "done")]
    ):
        code = "other" if seed == 3 else None
        final = run_files.result(seed, accuracy, ended=ended, code=code, config=config)
        directory = run_files.write_seed(config, final)
    for path in directory.rglob("*"):
        os.utime(path, (1e9, 1e9))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text("norm: {name: batch}\n")
    return directory


def printed(function, *arguments):
    console = Console(file=io.StringIO(), width=160)
    function(*arguments, console)
    return console.file.getvalue()


def test_the_ends_of_seeds_are_counted(runs):
    run = read_run(runs)
    assert seeds_text(run) == "2 done, 1 diverged, 1 stopped, 1 missing"
    assert (run.stale, run.missing) == ([3], [4])
    assert run.changed.timestamp() == 1e9


def test_list_shows_every_run(runs, tmp_path):
    text = printed(show_all, tmp_path)
    row = next(line for line in text.splitlines() if runs.name in line)
    for told in ("2 done, 1 diverged, 1 stopped, 1 missing", "65.0 %", "6.0", "1 stale", "2001-09"):
        assert told in row
    assert "config.yaml does not fit this code" in next(
        line for line in text.splitlines() if "│ old " in line
    )
    assert runs_table(tmp_path).row_count == 2


def test_list_shows_what_there_is_to_choose_from(tmp_path):
    found = {group: dict(files) for group, files in choices(Path(CONFIG_DIR))}
    assert found["norm"]["batch"] == "Batch normalization (Ioffe & Szegedy 2015)."
    assert found["norm"]["batch_renorm"] == "Batch renormalization (Ioffe 2017)."
    assert all(text for files in found.values() for text in files.values())
    text = printed(show_all, tmp_path)
    assert "Batch normalization (Ioffe & Szegedy 2015)." in text
    assert f"no run in {tmp_path}" in text


def test_arguments_of_list():
    assert output_of([]) == Path("runs")
    assert output_of(["output=elsewhere"]) == Path("elsewhere")
    with pytest.raises(ConfigError, match="'seeds=2' is not a valid argument; give output="):
        output_of(["seeds=2"])


def test_show_tells_one_run(runs):
    text = printed(show, runs)
    assert f"{runs.name}: 2 done, 1 diverged, 1 stopped, 1 missing" in text
    rows = {line.split()[1]: line for line in text.splitlines() if line.startswith("│")}
    for told in ("learning_rate: 0.1", "last evaluations", "done (stale)", "jax 9.9.9", "missing"):
        assert told in text
    assert rows["4"].split()[3] == "missing"
    assert "code other" in text


def test_a_seed_in_training_shows_where_it_is(runs):
    place = runs / "seed-4"
    place.mkdir()
    (place / "history.jsonl").write_text((runs / "seed-0" / "history.jsonl").read_text())
    text = printed(show, runs)
    assert "not ended" in text


def test_a_run_is_found_by_name_beginning_or_path(runs, tmp_path):
    for name in (runs.name, runs.name[:-2], str(runs)):
        assert find_run(name, tmp_path) == runs
    other = run_files.configuration(batch_size=32, output=str(tmp_path))
    second = run_files.write_run(other, [0.9])
    with pytest.raises(ConfigError, match=f"is the beginning of several runs: .*{second.name}"):
        find_run("digits", tmp_path)
    with pytest.raises(ConfigError, match=f"no run 'digit-mlp'.*similar names are .*{runs.name}"):
        find_run("digit-mlp", tmp_path)
    with pytest.raises(ConfigError, match="there are 3 runs"):
        find_run("###", tmp_path)


def test_a_configuration_that_does_not_fit_is_told(runs, tmp_path):
    with pytest.raises(ConfigError, match="does not fit this code"):
        read_run(tmp_path / "old")
