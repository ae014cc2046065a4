"""The view x[A, R, G, S, T] in which the kernels take the input of every normalization.

The view is a reshape, which moves no data. There is one mean and one variance for each (a, g),
measured over (R, S, T). The scale and the bias have the shape [G, S], or [R] if they are *by row*.

- A (apart): what is measured apart and shares the scale, such as the examples of a group norm.
- R (rows): what is measured together and lies before the channels, such as positions.
- G (groups): the groups, or the channels that are measured apart.
- S (size): the channels of a group, which are measured together.
- T (trailing): what is measured together and lies after the channels, such as positions.

| normalization | A | R | G | S | T |
| --- | --- | --- | --- | --- | --- |
| batch, channels last (first) | 1 | examples, positions (examples) | C | 1 | 1 (positions) |
| layer, RMS over the last axis | the other axes | 1 | 1 | C | 1 |
| layer, RMS over channels first, by row | examples | C | positions | 1 | 1 |
| group, channels last (first) | examples | positions (1) | groups | C / groups | 1 (positions) |
| instance, channels last (first) | examples | positions (1) | C | 1 | 1 (positions) |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class View(NamedTuple):
    """The sizes of the five axes, and whether scale and bias have the shape [R]."""

    A: int = 1
    R: int = 1
    G: int = 1
    S: int = 1
    T: int = 1
    by_row: bool = False


def view_of(
    shape: Sequence[int],
    reduced: Sequence[int],
    features: Sequence[int],
    channel: int = 0,
    group_size: int = 1,
) -> View | None:
    """The view of an input, or None if no reshape yields it.

    Args:
        shape: the shape of the input; with a symbolic size (of an exported program) it has no view.
        reduced: the axes that are measured over.
        features: the axes of the scale and the bias; empty if there is neither.
        channel, group_size: if `group_size` is above 1, the axis `channel` is measured over too, in
            groups of this many channels.
    """
    if not all(isinstance(size, int) for size in shape):
        return None
    view = _view(shape, reduced, features, channel, group_size)
    if view is not None:
        return view
    longer_than_one = {axis for axis, size in enumerate(shape) if size > 1}
    if longer_than_one.intersection(features) != longer_than_one.intersection(reduced):
        return None
    view = _view(shape, reduced, (), channel, group_size)
    return view._replace(by_row=True) if view is not None and view.S == view.T == 1 else None


def _view(
    shape: Sequence[int],
    reduced: Sequence[int],
    features: Sequence[int],
    channel: int,
    group_size: int,
) -> View | None:
    """The view in which scale and bias have the shape [G, S]."""
    sizes, remaining = View()._asdict(), "ARGST"
    for choices, size in _axes(shape, reduced, features, channel, group_size):
        if size == 1:
            continue
        possible = [name for name in choices if name in remaining]
        if not possible:
            return None
        sizes[possible[0]] *= size
        remaining = remaining[remaining.index(possible[0]) :]
    view = View(**sizes)
    if view.G == view.S == 1:  # R and T are one contiguous axis
        return view._replace(R=1, T=view.R * view.T)
    return view


def _axes(
    shape: Sequence[int],
    reduced: Sequence[int],
    features: Sequence[int],
    channel: int,
    group_size: int,
) -> Iterator[tuple[str, int]]:
    """For each axis of the input the axes of the view that it may go to, and its size.

    The first axis of the view that keeps the order of the axes is taken.
    """
    no_parameters = not features
    for axis, size in enumerate(shape):
        if group_size > 1 and axis == channel:
            yield "G", size // group_size
            yield "S", group_size
        elif axis in reduced:
            yield ("S" if axis in features else "RT"), size
        else:
            yield ("G" if axis in features else "AG" if no_parameters else "A"), size
