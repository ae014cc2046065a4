"""Parts of a model by their paths.

Trees are those of Flax or of any functional model: nested dicts whose keys name the parts of a
model. A part is named by its path, as in "encoder/block_0"; `*` and `?` stand for any characters,
and what lies inside a named part belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any


def dicts(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every dict of a tree, by path."""
    if isinstance(node, Mapping):
        yield path, node
        for key, value in node.items():
            yield from dicts(value, (*path, key))


def matches(path: Sequence[Any], part: str) -> bool:
    """Whether a path is a named part, or lies in one."""
    names = [str(name) for name in path]
    return any(fnmatchcase("/".join(names[:end]), part) for end in range(len(names) + 1))


def check_found(
    parts: Sequence[str],
    paths: Sequence[Sequence[Any]],
    what: str,
    others: Mapping[Any, str],
) -> None:
    """Every part names something.

    Args:
        others: what there is of another kind, by path.
    """
    for part in parts:
        if not any(matches(path, part) for path in paths):
            there = [joined(path) for path in paths]
            raise ValueError(
                f"no {what} in the part {part!r}; there are {there}{_instead(part, paths, others)}"
            )


def _instead(part: str, paths: Sequence[Sequence[Any]], others: Mapping[Any, str]) -> str:
    """What the part holds of another kind, or the whole tree where it has nothing of the kind."""
    inside = {path: other for path, other in others.items() if matches(path, part)}
    defined = inside or ({} if paths else others)
    if not defined:
        return ""
    listed = [f"{joined(path)!r} ({other})" for path, other in defined.items()]
    return f"; of another kind there are {', '.join(listed[:5])}{' ...' if len(listed) > 5 else ''}"


def joined(path: Sequence[Any]) -> str:
    """A path as it is given."""
    return "/".join(map(str, path))


def changed(
    tree: Any,
    parts: Sequence[str],
    keys: set[str],
    change: Callable[[Any], dict[str, Any]],
    among: set[str] | None = None,
    what: str | None = None,
) -> Any:
    """The tree with `change` made to every dict that has the `keys` and lies in a part.

    Args:
        among: the keys that such a dict may have; None for any.
        what: the word for such dicts.
    """
    paths: list[tuple[Any, ...]] = []
    others: dict[Any, str] = {}

    def visited(node: Any, path: tuple[Any, ...]) -> Any:
        if not isinstance(node, Mapping):
            return node
        kind: Any = type(node)
        if keys <= node.keys() and (among is None or node.keys() <= among):
            paths.append(path)
            if any(matches(path, part) for part in parts):
                return kind(change(node))
        elif entries := [str(key) for key in node if not isinstance(node[key], Mapping)]:
            others[path] = "with " + ", ".join(sorted(entries))
        return kind({key: visited(value, (*path, key)) for key, value in node.items()})

    changed = visited(tree, ())
    check_found(parts, paths, what or " and ".join(sorted(keys)), others)
    return changed
