"""The view x[A, R, G, S, T] in which the kernels take the input of every normalization.

The view is a reshape, which moves no data. There is one mean and one variance for each (a, g),
measured over (R, S, T). The scale and the bias have the shape [G, S], or [R] if they are *by row*;
by example they have an axis more in front, and equally many consecutive a share each entry of it.

- A (apart): what is measured apart but is no channel, such as the examples of a group norm.
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

A mask has a view if it varies along A, R and T, but not along the channels; or if it takes whole
statistics out, along A and G, where no channel is in G.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class MaskView(NamedTuple):
    """The mask of an input with a view.

    Attributes:
        shape: what the mask is broadcast to: the size of the input in every axis of the view that
            it varies along, or 1 behind the last axis of the input that it varies along in A or R.
        along: the axes of the view that it varies along, of "ARGT".
        rows: its extent along R.
    """

    shape: tuple[int, ...]
    along: str
    rows: int = 1


class View(NamedTuple):
    """The sizes of the five axes, whether scale and bias have the shape [R], and the mask."""

    A: int = 1
    R: int = 1
    G: int = 1
    S: int = 1
    T: int = 1
    by_row: bool = False
    mask: MaskView | None = None


def view_of(
    shape: Sequence[int],
    reduced: Sequence[int],
    features: Sequence[int],
    channel: int = 0,
    group_size: int = 1,
    mask: Sequence[int] | None = None,
    leading: Sequence[int] = (),
) -> View | None:
    """The view of an input, or None if no reshape yields it.

    Args:
        shape: the shape of the input; with a symbolic size (of an exported program) it has no view.
        reduced: the axes that are measured over.
        features: the axes of the scale and the bias; empty if there is neither.
        channel, group_size: if `group_size` is above 1, the axis `channel` is measured over too, in
            groups of this many channels.
        mask: the shape of the mask, with as many axes.
        leading: further axes of the scale and the bias, before those in `features` (by example).
    """
    if not all(isinstance(size, int) for size in shape):
        return None
    places = _places(shape, reduced, features, channel, group_size, leading)
    by_row = False
    if places is None:
        longer_than_one = {axis for axis, size in enumerate(shape) if size > 1}
        if longer_than_one.intersection(features) != longer_than_one.intersection(reduced):
            return None
        places, by_row = _places(shape, reduced, (), channel, group_size, leading), True
    if places is None or not _come_first(leading, places):
        return None
    sizes = View()._asdict()
    for _, name, size in places:
        sizes[name] *= size
    view = View(**sizes)._replace(by_row=by_row)
    if by_row and not view.S == view.T == 1:
        return None
    if mask is None:
        return view
    no_channel_in_g = by_row or not features
    return _with_mask(view, places, shape, mask, no_channel_in_g)


_Place = tuple[int, str, int]


def _come_first(leading: Sequence[int], places: Sequence[_Place]) -> bool:
    """Whether consecutive a have the same scale and bias."""
    apart = [axis for axis, name, _ in places if name == "A"]
    return apart[: len(leading)] == list(leading)


def _places(
    shape: Sequence[int],
    reduced: Sequence[int],
    features: Sequence[int],
    channel: int,
    group_size: int,
    leading: Sequence[int],
) -> list[_Place] | None:
    """Where each axis of the input goes: the axis, its axis of the view, and its size there."""
    places, remaining = [], "ARGST"
    for axis, choices, size in _axes(shape, reduced, features, channel, group_size, leading):
        if size == 1:
            continue
        possible = [name for name in choices if name in remaining]
        if not possible:
            return None
        places.append((axis, possible[0], size))
        remaining = remaining[remaining.index(possible[0]) :]
    if all(name not in "GS" for _, name, _ in places):  # R and T are one contiguous axis
        return [(axis, "T" if name == "R" else name, size) for axis, name, size in places]
    return places


def _with_mask(
    view: View,
    places: Sequence[_Place],
    shape: Sequence[int],
    mask: Sequence[int],
    no_channel_in_g: bool,
) -> View | None:
    """The view with the mask, or None if the kernels do not take that."""
    along = {name for axis, name, _ in places if mask[axis] != 1}
    whole_statistics = view.S == view.T == 1 and no_channel_in_g and not along & {"R", "T"}
    if "S" in along or ("G" in along and not whole_statistics) or (view.by_row and "R" in along):
        return None
    varying = set()
    for name in along:
        axes = [axis for axis, place, _ in places if place == name]
        while name in "AR" and mask[axes[-1]] == 1:  # consecutive a, or r, have the same
            axes.pop()
        varying.update(axes)
    full = tuple(size if axis in varying else 1 for axis, size in enumerate(shape))
    rows = math.prod(full[axis] for axis, name, _ in places if name == "R")
    return view._replace(mask=MaskView(full, "".join(sorted(along)), rows))


def _axes(
    shape: Sequence[int],
    reduced: Sequence[int],
    features: Sequence[int],
    channel: int,
    group_size: int,
    leading: Sequence[int],
) -> Iterator[tuple[int, str, int]]:
    """Each axis of the input, the axes of the view that it may go to, and its size.

    The first axis of the view that keeps the order of the axes is taken.
    """
    for axis, size in enumerate(shape):
        if group_size > 1 and axis == channel:
            yield axis, "G", size // group_size
            yield axis, "S", group_size
        elif axis in reduced:
            yield axis, ("S" if axis in features else "RT"), size
        else:
            choices = "G" if axis in features else "A" if features or axis in leading else "AG"
            yield axis, choices, size
