"""TensorBoard events of a seed: its history, scalar by scalar."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

OF_NO_SCALAR = ("step", "time", "quantiles")


class Events:
    """The events of one seed.

    Those that are there are written anew from the history that is kept, so that a seed which went
    on from a checkpoint has none twice.
    """

    def __init__(self, directory: Path, history: Sequence[dict[str, Any]]) -> None:
        from tensorboardX import SummaryWriter  # which imports torch where it is installed

        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(directory), flush_secs=10)
        for record in history:
            self.add(record)

    def add(self, record: dict[str, Any]) -> None:
        """Write the events of an evaluation."""
        for tag, value in _scalars(record):
            self._writer.add_scalar(tag, value, record["step"], walltime=record["time"])

    def close(self) -> None:
        self._writer.close()


def _scalars(record: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, dict) and key not in OF_NO_SCALAR:
            yield from _scalars(value, (*path, key))
        elif isinstance(value, int | float) and key not in OF_NO_SCALAR:
            yield "/".join((*path, key)), value
