"""What is told of runs while they are trained."""

from collections.abc import Callable
from typing import NamedTuple


class RunStarted(NamedTuple):
    """Seeds of a run are to be trained, `total_steps` each; `note` says what to know of them."""

    run: str
    num_seeds: int
    total_steps: int
    note: str


class Update(NamedTuple):
    """How far a seed is; no accuracy (of validation) before the first evaluation."""

    run: str
    seed: int
    step: int
    total_steps: int
    train_loss: float
    accuracy: float | None


class Ended(NamedTuple):
    """How a seed ended: done, diverged or stopped."""

    run: str
    seed: int
    ended: str
    text: str


class RunEnded(NamedTuple):
    """All seeds of a run have ended."""

    run: str
    outcome: str


Event = RunStarted | Update | Ended | RunEnded
Watch = Callable[[Event], None]
