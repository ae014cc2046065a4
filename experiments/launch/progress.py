"""Terminal output during training: progress bars, or plain lines if the output is a pipe."""

import time
from collections import deque
from collections.abc import Callable, Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.training.watch import (
    Ended,
    Event,
    Resumed,
    RunEnded,
    RunFailed,
    RunLost,
    RunStarted,
    Update,
)

SECONDS_BETWEEN_LINES = 30.0  # between two plain lines of a run
WINDOW = 30.0  # seconds over which steps per second are measured
BAR = 14


class _Seed:
    """The latest values of a seed."""

    def __init__(self) -> None:
        self.step, self.ended = 0, ""
        self.loss: float | None = None
        self.accuracy: float | None = None

    def __str__(self) -> str:
        values = [self.ended] if self.ended else []
        if self.loss is not None and not self.ended:
            values.append(f"{self.loss:.3f}")
        if self.accuracy is not None:
            values.append(f"{self.accuracy:.1%}")
        return " ".join(values)


class _Run:
    """A run in training: the steps of all its seeds and their speed."""

    def __init__(self, num_seeds: int, now: float) -> None:
        self.num_seeds = num_seeds
        self.seeds: dict[int, _Seed] = {}
        self.last_line = now  # the time of the last plain line
        self._steps_of_seed = 0  # total number of steps of one seed
        self._taken = 0  # steps in this process, without those before a resume
        self._times: deque[tuple[float, int]] = deque()

    def update(self, event: Update, now: float) -> None:
        if event.seed in self.seeds:
            self._taken += event.step - self.seeds[event.seed].step
        seed = self.seeds.setdefault(event.seed, _Seed())
        seed.step, seed.loss, seed.accuracy = event.step, event.train_loss, event.accuracy
        self._steps_of_seed = event.total_steps
        self._times.append((now, self._taken))
        while now - self._times[0][0] > WINDOW and len(self._times) > 2:
            self._times.popleft()

    def end(self, event: Ended) -> None:
        self.seeds.setdefault(event.seed, _Seed()).ended = event.ended

    @property
    def steps_per_second(self) -> float | None:
        if len(self._times) < 2:
            return None
        (start, before), (end, after) = self._times[0], self._times[-1]
        return (after - before) / (end - start) if end > start and after > before else None

    @property
    def total(self) -> int:
        return self.num_seeds * self._steps_of_seed

    @property
    def reached(self) -> int:
        """The number of completed steps. A seed that has ended counts with all its steps."""
        seeds = list(self.seeds.values())  # another thread draws
        steps = (self._steps_of_seed if seed.ended else seed.step for seed in seeds)
        return sum(steps)

    @property
    def fraction(self) -> float:
        return min(1.0, self.reached / self.total) if self.total else 0.0

    @property
    def seconds_left(self) -> float | None:
        rate = self.steps_per_second
        return None if rate is None else (self.total - self.reached) / rate


class Display:
    """Displays the runs of all processes. It accepts their events in any order.

    A terminal shows a bar for the study and one for each run in training, with its seeds below.
    A run that has ended leaves a line. A pipe gets plain lines only.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._live: Live | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._study, self._num_runs = "", 1
        self._labels: Mapping[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._running: dict[str, _Run] = {}
        self._ended: set[str] = set()
        self._trained = 0  # runs that ended in this process
        self._start = self._clock()

    def silence(self) -> None:
        """Suppress all output, because another process displays it."""
        self._console.quiet = True

    def start_study(
        self, name: str, num_runs: int, labels: Mapping[str, str] | None = None
    ) -> None:
        """Start the display of a study. Without a call, the display expects a single run."""
        self._labels = labels or {}
        self._study, self._num_runs, self._start = name, num_runs, self._clock()
        self._start_live()

    def show(self, event: Event) -> None:
        """Display an event."""
        now = self._clock()
        match event:
            case RunStarted(run, num_seeds, note):
                self._running[run] = _Run(num_seeds, now)
                note = f" ({note})" if note else ""
                if note or not self._console.is_interactive:
                    self._line(run, f"training{note}")
                self._start_live()
            case Resumed(run, seed, step):
                self._line(run, f"seed {seed} continues from step {step}")
            case Update(run=run) if run in self._running:
                self._running[run].update(event, now)
                self._report_progress(event, now)
            case Ended(run=run) if run in self._running:
                self._running[run].end(event)
            case RunLost(run, why):
                self._running.pop(run, None)
                self._line(run, f"{why}; it continues in another process")
            case RunEnded(run, outcome):
                self._trained += run in self._running
                self._end(run, outcome)
            case RunFailed(run, error):
                self._end(run, f"failed: {error}")

    def stop(self) -> None:
        """Restore the terminal and reset the counts."""
        if self._live:
            self._live.stop()
        self._live = None
        self._begin_anew()

    def _start_live(self) -> None:
        if self._live is None and self._console.is_interactive and not self._console.quiet:
            self._live = Live(
                console=self._console,
                get_renderable=self._bars,
                transient=True,
                refresh_per_second=4,
            )
            self._live.start()

    def _end(self, run: str, outcome: str) -> None:
        self._line(run, outcome)
        self._running.pop(run, None)
        self._ended.add(run)

    def _report_progress(self, event: Update, now: float) -> None:
        run = self._running[event.run]
        if self._console.is_interactive or now - run.last_line < SECONDS_BETWEEN_LINES:
            return
        run.last_line = now
        said = [f"seed {event.seed}, step {event.step} of {event.total_steps}"]
        said.append(f"loss {event.train_loss:.3f}")
        if event.accuracy is not None:
            said.append(f"accuracy {event.accuracy:.1%}")
        if run.steps_per_second and run.seconds_left is not None:
            said += [f"{_rate(run.steps_per_second)} steps/s", f"{_time(run.seconds_left)} left"]
        self._line(event.run, ", ".join(said))

    def _line(self, run: str, text: str) -> None:
        """Print a line about a run. Runs are numbered in order of appearance."""
        number = self._numbers.setdefault(run, len(self._numbers) + 1)
        label = f" {self._labels[run]}" if self._labels.get(run) else ""
        line = f"[{number}/{self._num_runs}] {run}{label}: {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _bars(self) -> RenderableType:
        """Return the bar of the study, and the bars and seeds of the runs in training."""
        running = dict(self._running)  # another thread draws
        names = [f"study {self._study}", *(self._labels.get(name) or name for name in running)]
        width = min(max(map(len, names)), max(20, self._console.width - 52))
        rows: list[RenderableType] = []
        if self._study:
            rows.append(self._study_bar(running, width))
        with_seeds = 2 * len(running) + 2 <= self._console.height
        for name, run in running.items():
            rows.append(_run_bar(self._labels.get(name) or name, run, width))
            if with_seeds and run.seeds:
                rows.append(_seeds(run))
        return Group(*rows)

    def _study_bar(self, running: dict[str, _Run], width: int) -> RenderableType:
        in_work = sum(run.fraction for run in running.values())
        seconds = None
        if trained := self._trained + in_work:
            missing = self._num_runs - len(self._ended) - in_work
            seconds = (self._clock() - self._start) * missing / trained
        ended = len(self._ended)
        return _bar(
            f"study {self._study}",
            (ended + in_work) / self._num_runs,
            f"{ended}/{self._num_runs} runs",
            seconds,
            width,
        )


def _run_bar(name: str, run: _Run, width: int) -> RenderableType:
    rate = run.steps_per_second
    count = f"{_rate(rate)} steps/s" if rate else "" if run.seeds else "compiling"
    return _bar(name, run.fraction, count, run.seconds_left, width)


def _bar(
    name: str, fraction: float, count: str, seconds_left: float | None, width: int
) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    row.add_column(width=width, no_wrap=True, overflow="ellipsis")
    row.add_column(width=BAR)
    row.add_column(width=4, justify="right")
    row.add_column(width=14, justify="right", no_wrap=True)
    row.add_column(width=12, no_wrap=True)
    left = "" if seconds_left is None else f"{_time(seconds_left)} left"
    bar = ProgressBar(total=1.0, completed=fraction, width=BAR)
    row.add_row(Text(name), bar, f"{fraction:.0%}", count, left)
    return row


def _seeds(run: _Run) -> RenderableType:
    """Return the loss and validation accuracy of each seed, or how it ended."""
    seeds = sorted(run.seeds.items())
    return Text("  " + "   ".join(f"seed {seed}: {state}" for seed, state in seeds), style="dim")


def _rate(steps_per_second: float) -> str:
    return f"{steps_per_second:.3g}" if steps_per_second < 100 else f"{steps_per_second:,.0f}"


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


display = Display(Console())  # a process has one terminal
