"""What the terminal shows while runs are trained: bars, or plain lines where it is a pipe."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Epoch = object


class Display:
    """A bar for the study, a bar for the run in it, and a line for every run that ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
            disable=not console.is_interactive,
        )
        self._study = self._run = self._bars.add_task("", visible=False, metrics="")
        self._done = 0
        self._total = 1

    def silence(self) -> None:
        """Show nothing from now on: another process does."""
        self._console.quiet = True

    def start_study(self, name: str, num_runs: int) -> None:
        """Announce a study; without it there is one run."""
        self._total = num_runs
        self._study = self._bars.add_task(f"study {name}", total=num_runs, metrics="")
        self._bars.start()

    def start_run(self, name: str, title: str, num_epochs: int) -> None:
        """Announce a run, a short title for its bar, and the epochs of all its seeds."""
        if not self._console.is_interactive:
            self._line(f"{name}: training")
        self._run = self._bars.add_task(title, total=num_epochs, metrics="")
        self._bars.start()

    def on_epoch(self, reached: Sequence[Epoch]) -> None:
        """Show what the seeds that are trained together reached after an epoch."""
        loss = np.mean([epoch.train_loss for epoch in reached])
        accuracy = np.mean([epoch.test_accuracy for epoch in reached])
        metrics = f"loss {loss:.3f}, accuracy {accuracy:.1%}"
        self._bars.update(self._run, advance=len(reached), metrics=metrics)

    def end_run(self, name: str, outcome: str) -> None:
        """Tell how a run ended, and count it."""
        self._line(f"{name}: {outcome}")
        self._bars.update(self._run, visible=False)
        self._done += 1
        self._bars.update(self._study, advance=1)

    def stop(self) -> None:
        """Leave the terminal as it was, and count anew."""
        self._bars.stop()
        self._done, self._total = 0, 1

    def _line(self, text: str) -> None:
        count = f"[{self._done + 1}/{self._total}] "
        self._console.print(count + text, markup=False, highlight=False, soft_wrap=True)


display = Display(Console())  # a process has one terminal
