"""The launchers: in turn, on the cores of this machine, what fails, dies or is interrupted."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import launch_jobs
import pytest
from hydra import initialize_config_dir
from hydra.errors import HydraException
from waiting import PATIENCE, until

from experiments.config import register_schemas
from experiments.launch import local
from experiments.launch.jobs import Job, by_program, run_sequentially
from experiments.launch.study import CONFIG_DIR, explain, grid
from experiments.runs.directory import run_directory
from experiments.training.watch import RunEnded, RunFailed, RunLost, RunStarted

ROOT = Path(__file__).parent.parent
several_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores that a process can be given",
)


def jobs(names, files=None, **config):
    """Return a job for each name, whose program is its first letter."""
    common = config if files is None else {"files": str(files), **config}
    return [Job(name, name[0], {"name": name, **common}) for name in names]


def names(events, kind):
    return [event.run for event in events if isinstance(event, kind)]


def test_jobs_are_ordered_by_program_where_that_comes_first():
    groups = by_program(jobs(["b1", "a1", "b2", "c1", "a2"]))
    assert [[job.name for job in group] for group in groups] == [["b1", "b2"], ["a1", "a2"], ["c1"]]


def test_one_worker_is_this_process():
    events = []
    failures = local.launch(jobs(["b1", "a1", "b2"]), launch_jobs.run, events.append, 1)
    assert failures == []
    assert names(events, RunEnded) == ["b1", "b2", "a1"]
    assert all(event.outcome.endswith(str(os.getpid())) for event in events[1::2])


def test_what_fails_in_turn_is_told_when_it_happens_and_the_others_go_on():
    events = []
    sweep = jobs(["a1"]) + jobs(["a2"], fail=True) + jobs(["a3"])
    failures = local.launch(sweep, launch_jobs.run, events.append, 1)
    assert failures == [RunFailed("a2", "ValueError: a bug")]
    assert [type(event) for event in events] == [
        *(RunStarted, RunEnded),
        *(RunStarted, RunFailed),
        *(RunStarted, RunEnded),
    ]


def test_of_a_group_that_fails_only_those_fail_that_have_to():
    events = []
    group = jobs(["a1"], fail_together=True) + jobs(["a2"], fail=True) + jobs(["a3"])
    failures = run_sequentially([group, jobs(["b1"])], launch_jobs.run, events.append)
    assert [failure.run for failure in failures] == ["a2"]
    assert names(events, RunEnded) == ["a1", "a3", "b1"]


@pytest.mark.long
def test_jobs_that_need_their_own_process_run_one_at_a_time_on_all_cores(tmp_path):
    events = []
    sweep = [job._replace(alone=True) for job in jobs(["a1", "a2", "a3"], tmp_path)]
    assert local.launch(sweep, launch_jobs.run, events.append, None) == []
    kinds = [type(event) for event in events]
    assert kinds == [RunStarted, RunEnded] * 3
    outcomes = [event.outcome for event in events if isinstance(event, RunEnded)]
    assert {outcome.split()[2] for outcome in outcomes} == {launch_jobs.cores()}
    assert len({outcome.split()[-1] for outcome in outcomes} - {str(os.getpid())}) == 3


@several_cores
@pytest.mark.long
def test_jobs_with_their_own_process_get_new_ones_from_several_workers(tmp_path):
    events = []
    sweep = [job._replace(alone=True) for job in jobs(["a1", "b1", "a2", "b2"], tmp_path)]
    assert local.launch(sweep, launch_jobs.run, events.append, 2) == []
    outcomes = [event.outcome for event in events if isinstance(event, RunEnded)]
    assert len({outcome.split()[-1] for outcome in outcomes}) == 4


@several_cores
@pytest.mark.long
def test_workers_have_a_core_each_and_keep_to_a_program(tmp_path):
    events = []
    # Each of one program goes on until that of the other has begun: no worker is ahead.
    sweep = [
        *(job for n in "123" for job in jobs([f"a{n}"], tmp_path, beside=f"b{n}")),
        *(job for n in "123" for job in jobs([f"b{n}"], tmp_path, beside=f"a{n}")),
    ]
    assert local.launch(sweep, launch_jobs.run, events.append, None) == []
    ended = {event.run: event.outcome for event in events if isinstance(event, RunEnded)}
    assert sorted(ended) == ["a1", "a2", "a3", "b1", "b2", "b3"]
    of_program = [{ended[f"{program}{n}"] for n in (1, 2, 3)} for program in "ab"]
    cores = len(os.sched_getaffinity(0))
    if cores == 2:
        assert [len(workers) for workers in of_program] == [1, 1], "the core and process of each"
    assert all(outcome.split()[2].isdecimal() for outcome in ended.values()), "one core"
    assert str(os.getpid()) not in " ".join(ended.values())
    assert len(os.sched_getaffinity(0)) == cores, "of this process nothing has changed"


@several_cores
@pytest.mark.long
def test_a_failure_and_a_killed_worker_among_others(tmp_path):
    events = []
    sweep = [
        *jobs(["a1"], tmp_path, die=1),
        *jobs(["b1"], tmp_path, fail=True),
        *jobs(["b2"], tmp_path, die=2),
        *jobs(["b3"], tmp_path),
    ]
    failures = local.launch(sweep, launch_jobs.run, events.append, 2)
    assert sorted(failures) == [
        RunFailed("b1", "ValueError: a bug"),
        RunFailed("b2", "its process ended by SIGKILL, as in the previous attempt"),
    ]
    assert sorted(names(events, RunLost)) == ["a1", "b2"]
    assert sorted(names(events, RunEnded)) == ["a1", "b3"]
    assert events.index(failures[0]) < len(events) - 1, "told when it happens"
    begun = {
        name: len(launch_jobs.traces(job.config, "begun"))
        for name, *_, job in ((job.name, job) for job in sweep)
    }
    assert begun == {"a1": 2, "b1": 1, "b2": 2, "b3": 1}


@several_cores
@pytest.mark.long
def test_a_run_that_a_sweep_has_twice_is_not_run_at_the_same_time(tmp_path):
    events = []
    sweep = jobs(["a1", "a1"], tmp_path, steps=3)
    assert local.launch(sweep, launch_jobs.run, events.append, 2) == []
    assert [type(event) for event in events if isinstance(event, RunStarted | RunEnded)] == [
        *(RunStarted, RunEnded),
        *(RunStarted, RunEnded),
    ]


@several_cores
@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_sweep(tmp_path, how):
    sweep = subprocess.Popen(
        [sys.executable, "-W", "error", str(ROOT / "tests" / "launch_jobs.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    told = [sweep.stdout.readline() for _ in range(2)]
    until(lambda: len(list(tmp_path.iterdir())) == 2, "two runs")
    workers = [int(path.name.split("-")[3]) for path in tmp_path.iterdir()]
    assert all(map(is_alive, workers))
    if how == signal.SIGINT:
        os.killpg(sweep.pid, how)  # as Ctrl-C does
    else:
        sweep.send_signal(how)
    out, err = sweep.communicate(timeout=PATIENCE)
    until(lambda: not any(map(is_alive, workers)), "end of the workers")
    assert len(list(tmp_path.iterdir())) == 2, "no run was begun any more"
    assert sorted(line[-12:] for line in told) == ["a: training\n", "b: training\n"]
    assert out == ""
    if how == signal.SIGINT:
        assert (sweep.returncode, err) == (130, "interrupted\n")
    else:
        assert sweep.returncode == -how


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_command_says_what_to_install():
    register_schemas()
    with (
        initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR),
        pytest.raises(HydraException) as error,
    ):
        grid(["launcher=ray"])
    assert "pip install --editable '.[experiments,ray]'" in explain(error.value)


@several_cores
@pytest.mark.slow
def test_a_sweep_of_which_a_run_fails(tmp_path):
    arguments = (
        *("norm=none,layer", "batch_size=128,256", "seeds=1", "epochs=1", "model.channels=[4]"),
        *(f"output={tmp_path}/runs", f"data.directory={tmp_path}/data"),
    )
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        directories = [run_directory(config) for config in grid(arguments)]
    directories[0].parent.mkdir()
    directories[2].touch()  # a file where a run is to have its directory
    sweep = subprocess.run(
        [sys.executable, "-W", "error", "-m", "experiments.train", "--multirun", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert sweep.returncode == 1
    told = sweep.stderr.splitlines()
    assert told[0] == "error: 1 of 4 runs failed"
    assert told[1].startswith(f"  {directories[2].name}: FileExistsError")
    assert len(told) == 2
    lines = sweep.stdout.splitlines()
    assert all(line.isprintable() for line in lines), "no control characters"
    assert sum(": test accuracy" in line for line in lines) == 3
    [failed] = [line for line in lines if "failed: FileExistsError" in line]
    assert directories[2].name in failed
    results = [directory / "seed-0" / "result.json" for directory in directories]
    assert [result.exists() for result in results] == [True, True, False, True]
