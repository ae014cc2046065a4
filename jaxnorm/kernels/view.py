"""One view of the input, x[A, R, G, S, T], that serves every normalization.

Moments of each (a, g) are over (R, S, T); a scale and a bias have the shape [G, S], or [R] by row.
The view is a reshape that moves nothing:

| normalization | A | R | G | S | T |
| --- | --- | --- | --- | --- | --- |
| batch, channels last (first) | 1 | examples, positions (examples) | C | 1 | 1 (positions) |
| layer, RMS over the last axis | the other axes | 1 | 1 | C | 1 |
| layer, RMS over channels first, by row | examples | C | positions | 1 | 1 |
| group, channels last (first) | examples | positions (1) | groups | of a group | 1 (positions) |
| instance, channels last (first) | examples | positions (1) | C | 1 | 1 (positions) |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class View(NamedTuple):
    """The extents of the five axes, and whether scale and bias have the shape [R]."""

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
    """The view of an input, or None where no reshape gives it.

    Args:
        shape: of the input; sizes that are not known (symbols of an exported program) have no view.
        reduced: the axes that are measured over.
        features: the axes with a scale and a bias of their own; none where there is neither.
        channel, group_size: the axis whose groups of this many channels are measured over too.
    """
    if not all(isinstance(size, int) for size in shape):
        return None
    view = _view(shape, reduced, features, channel, group_size)
    if view is not None:
        return view
    wide = {axis for axis, size in enumerate(shape) if size > 1}
    if wide.intersection(features) != wide.intersection(reduced):
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
    extents, rest = View()._asdict(), "ARGST"
    for choices, size in _axes(shape, reduced, features, channel, group_size):
        if size == 1:
            continue
        ahead = [name for name in choices if name in rest]
        if not ahead:
            return None
        extents[ahead[0]] *= size
        rest = rest[rest.index(ahead[0]) :]
    view = View(**extents)
    if view.G == view.S == 1:  # the positions are contiguous
        return view._replace(R=1, T=view.R * view.T)
    return view


def _axes(
    shape: Sequence[int],
    reduced: Sequence[int],
    features: Sequence[int],
    channel: int,
    group_size: int,
) -> Iterator[tuple[str, int]]:
    """For each axis of the input what it may be in the view, in the order to try, and its size."""
    free = not features
    for axis, size in enumerate(shape):
        if group_size > 1 and axis == channel:
            yield "G", size // group_size
            yield "S", group_size
        elif axis in reduced:
            yield ("S" if axis in features else "RT"), size
        else:
            yield ("G" if axis in features else "AG" if free else "A"), size
