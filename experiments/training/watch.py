"""What a run tells whoever watches it, as it happens. All of it can be sent between processes."""

from collections.abc import Callable
from typing import NamedTuple


class RunStarted(NamedTuple):
    """A run begins to train seeds; `note` says what to know of them. With none it only ends."""

    run: str
    num_seeds: int
    note: str = ""


class Resumed(NamedTuple):
    """A seed goes on from a checkpoint."""

    run: str
    seed: int
    step: int


class Update(NamedTuple):
    """Where a seed is. The validation accuracy is None before the first evaluation."""

    run: str
    seed: int
    step: int
    total_steps: int
    train_loss: float
    accuracy: float | None


class Ended(NamedTuple):
    """A seed has ended: done, diverged or stopped."""

    run: str
    seed: int
    ended: str


class RunEnded(NamedTuple):
    """A run has ended with all its seeds."""

    run: str
    outcome: str


class RunLost(NamedTuple):
    """The process of a run has ended under it; the run is given to another."""

    run: str
    why: str


class RunFailed(NamedTuple):
    """A run was given up. The error is a line."""

    run: str
    error: str


Event = RunStarted | Resumed | Update | Ended | RunEnded | RunLost | RunFailed
Watch = Callable[[Event], None]
