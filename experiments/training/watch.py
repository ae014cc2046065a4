"""The events of a run. All of them can be sent between processes."""

from collections.abc import Callable
from typing import NamedTuple


class RunStarted(NamedTuple):
    """A run starts to train seeds; `note` has a comment on them. With 0 seeds it only ends."""

    run: str
    num_seeds: int
    note: str = ""


class Resumed(NamedTuple):
    """A seed continues from a checkpoint."""

    run: str
    seed: int
    step: int


class Update(NamedTuple):
    """The progress of a seed. The validation accuracy is None before the first evaluation."""

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
    """The process of a run has died. Another process takes over."""

    run: str
    why: str


class RunFailed(NamedTuple):
    """A run has failed. The error is one line."""

    run: str
    error: str


Event = RunStarted | Resumed | Update | Ended | RunEnded | RunLost | RunFailed
Watch = Callable[[Event], None]
