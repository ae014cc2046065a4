"""The history of a seed as TensorBoard events."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NOT_SCALARS = ("step", "time", "quantiles")


class Events:
    """The events of one seed.

    The constructor writes the events of the kept history again, so that a seed that resumes from a
    checkpoint has no event twice.
    """

    def __init__(self, directory: Path, history: Sequence[dict[str, Any]]) -> None:
        # Imported here because it imports torch if that is installed. Unlike SummaryWriter it has
        # no thread of its own.
        from tensorboardX.event_file_writer import EventsWriter

        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = EventsWriter(str(directory / "events"))
        for record in history:
            self.add(record)

    def add(self, record: dict[str, Any]) -> None:
        """Write the events of an evaluation."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(record)]
        summary = Summary(value=values)
        self._writer.write_event(
            Event(wall_time=record["time"], step=record["step"], summary=summary)
        )
        self._writer.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the disk is full, which was reported before
            self._writer.close()


def _scalars(record: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, dict) and key not in NOT_SCALARS:
            yield from _scalars(value, (*path, key))
        elif isinstance(value, int | float) and key not in NOT_SCALARS:
            yield "/".join((*path, key)), value
