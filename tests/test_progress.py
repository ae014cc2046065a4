"""What the display shows of a study: bars with seeds on a terminal, plain lines on a pipe."""

import io
import re

import pytest
from rich.console import Console

from experiments.launch.progress import Display
from experiments.training.watch import Ended, RunEnded, RunFailed, RunLost, RunStarted, Update

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def plain(clock):
    return Display(Console(file=io.StringIO(), width=60), clock)


def lines(display):
    return display._console.file.getvalue().splitlines()


def drawn(display, width=100, height=40):
    """Return what stands on the terminal below the lines."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    display._console = console
    with console.capture() as captured:
        console.print(display._bars())
    return [COLOUR.sub("", line).rstrip() for line in captured.get().splitlines()]


def test_on_a_pipe_each_run_starts_and_ends_in_a_line(plain):
    plain.start_study("norms", 3)
    plain.show(RunStarted("digits-cnn-none-batch16-12345678", 2))
    plain.show(Update("digits-cnn-none-batch16-12345678", 0, 5, 10, 2.0, None))
    plain.show(Ended("digits-cnn-none-batch16-12345678", 0, "done"))
    plain.show(RunEnded("digits-cnn-none-batch16-12345678", "test accuracy 91.2% in 3.1 s"))
    plain.show(RunEnded("b", "already done, see runs/[b]"))
    plain.show(RunStarted("c", 1, "seed 0 is made again"))
    plain.show(RunFailed("c", "ValueError: a bug"))
    assert lines(plain) == [
        "[1/3] digits-cnn-none-batch16-12345678: training",
        "[1/3] digits-cnn-none-batch16-12345678: test accuracy 91.2% in 3.1 s",
        "[2/3] b: already done, see runs/[b]",
        "[3/3] c: training (seed 0 is made again)",
        "[3/3] c: failed: ValueError: a bug",
    ]
    assert all(line.isprintable() for line in lines(plain)), "no control characters"


def test_runs_at_the_same_time_keep_their_numbers(plain):
    plain.start_study("sweep", 2)
    plain.show(RunStarted("a", 1))
    plain.show(RunStarted("b", 1))
    plain.show(RunLost("b", "its process was ended by SIGKILL"))
    plain.show(RunEnded("a", "test accuracy 90.0% in 1.0 s"))
    plain.show(RunStarted("b", 1))
    plain.show(RunEnded("b", "test accuracy 80.0% in 1.0 s"))
    assert lines(plain) == [
        "[1/2] a: training",
        "[2/2] b: training",
        "[2/2] b: its process was ended by SIGKILL; it continues in another process",
        "[1/2] a: test accuracy 90.0% in 1.0 s",
        "[2/2] b: training",
        "[2/2] b: test accuracy 80.0% in 1.0 s",
    ]


def test_on_a_pipe_a_long_run_gives_a_sign_of_life(plain, clock):
    plain.show(RunStarted("a", 2))
    for step in range(0, 701, 10):
        clock.now = step / 10  # ten steps a second
        accuracy = 0.5 if step >= 600 else None
        plain.show(Update("a", 0, step, 1000, 0.25, accuracy))
    assert lines(plain) == [
        "[1/1] a: training",
        "[1/1] a: seed 0, step 300 of 1000, loss 0.250, 10 steps/s, 2:50 left",
        "[1/1] a: seed 0, step 600 of 1000, loss 0.250, accuracy 50.0%, 10 steps/s, 2:20 left",
    ]


def test_it_counts_anew_once_it_was_stopped(plain):
    plain.start_study("norms", 2)
    plain.show(RunEnded("a", "done"))
    plain.stop()
    plain.show(RunEnded("a", "done"))
    assert lines(plain) == ["[1/2] a: done", "[1/1] a: done"]


def test_another_process_shows_nothing(plain):
    plain.silence()
    plain.start_study("norms", 2)
    plain.show(RunStarted("a", 2))
    assert lines(plain) == []


def test_bars_show_every_seed_the_rate_and_the_time_left(plain, clock):
    plain.start_study("norms", 4)
    plain.show(RunEnded("z", "already done, see runs/z"))
    for run in ("a", "b"):
        plain.show(RunStarted(run, 2))
    for second in range(11):
        clock.now = second
        plain.show(Update("a", 0, 20 * second, 200, 0.5, None if second < 5 else 0.25))
    plain.show(Ended("a", 0, "diverged"))
    plain.show(Update("a", 1, 50, 200, 1.75, 0.125))
    study, a, seeds, b = drawn(plain)
    assert study.split()[:2] == ["study", "norms"]
    assert "1/4 runs" in study
    # 5/8 of one run in 10 s, 2 3/8 runs to go
    assert "41%" in study
    assert study.endswith("0:38 left")
    assert a.split()[0] == "a"
    assert a.endswith("62%     20 steps/s 0:08 left")
    assert seeds.split("   ") == ["  seed 0: diverged 25.0%", "seed 1: 1.750 12.5%"]
    assert b.split()[0] == "b"
    assert b.endswith("0%      compiling")
    assert len({line.index("%") for line in (study, a, b)}) == 1, "columns stand below each other"


def test_steps_before_a_resume_are_not_counted_as_fast_ones(plain, clock):
    plain.show(RunStarted("a", 1))
    for second, step in enumerate((9000, 9010, 9020)):
        clock.now = second
        plain.show(Update("a", 0, step, 10_000, 0.5, 0.5))
    [bar, _] = drawn(plain)
    assert bar.endswith("10 steps/s 1:38 left")


def test_a_small_terminal_leaves_the_seeds_out_and_shortens_names(plain):
    plain.start_study("norms", 9)
    for number in range(5):
        plain.show(RunStarted(f"digits-transformer-ghost_batch-batch16-{number}", 1))
        plain.show(Update(f"digits-transformer-ghost_batch-batch16-{number}", 0, 1, 2, 0.5, None))
    rows = drawn(plain, width=80, height=10)
    assert len(rows) == 6
    assert all(len(row) <= 80 for row in rows)
    assert all("…" in row for row in rows[1:])


def test_on_a_terminal_a_run_that_ends_leaves_a_line_and_the_bars_go(clock):
    file = io.StringIO()
    display = Display(Console(file=file, width=100, force_terminal=True), clock)
    display.start_study("norms", 1)
    display.show(RunStarted("a", 1))
    display.show(Update("a", 0, 1, 2, 0.5, None))
    display.show(RunEnded("a", "test accuracy 91.2% in 3.1 s"))
    display.stop()
    text = file.getvalue()
    assert "[1/1] a: test accuracy 91.2% in 3.1 s" in text
    assert "training" not in text, "the bar says so"
    assert text.rstrip().endswith("\x1b[2K"), "the last bars are erased"
