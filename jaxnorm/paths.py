"""Parts of a model by their paths.

A tree of Flax or of another functional model is a nested dict whose keys name the parts of a model.
A path such as "encoder/block_0" names a part; `*` and `?` in it stand for any characters. A named
part includes everything inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any


def iter_dicts(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path of every dict of a tree, and the dict."""
    if isinstance(node, Mapping):
        yield path, node
        for key, value in node.items():
            yield from iter_dicts(value, (*path, key))


def matches(path: Sequence[Any], part: str) -> bool:
    """Whether a path is that of a named part or lies inside it."""
    names = [str(name) for name in path]
    return any(fnmatchcase("/".join(names[:end]), part) for end in range(len(names) + 1))


def check_found(
    parts: Sequence[str],
    paths: Sequence[Sequence[Any]],
    what: str,
    others: Mapping[Any, str],
) -> None:
    """Check that each of the named parts has one of the `paths` inside it.

    Args:
        what: a description of what the paths belong to, for the message.
        others: descriptions of parts of other kinds, by path, for the message.
    """
    for part in parts:
        if not any(matches(path, part) for path in paths):
            known = [joined(path) for path in paths]
            found = f"found only at {known}" if known else "found nowhere"
            raise ValueError(
                f"no {what} in the part {part!r}; {found}{_other_kinds(part, paths, others)}"
            )


def _other_kinds(part: str, paths: Sequence[Sequence[Any]], others: Mapping[Any, str]) -> str:
    """The parts of other kinds inside the part, or in the whole tree if it has none of the kind."""
    inside = {path: other for path, other in others.items() if matches(path, part)}
    listed = [
        f"{joined(path)!r} ({other})" if path else f"the root ({other})"
        for path, other in (inside or ({} if paths else others)).items()
    ]
    if not listed:
        return ""
    return f", but there is {', '.join(listed[:5])}{' ...' if len(listed) > 5 else ''}"


def joined(path: Sequence[Any]) -> str:
    """A path as one string."""
    return "/".join(map(str, path))


def map_dicts(
    tree: Any,
    parts: Sequence[str],
    keys: set[str],
    function: Callable[[Any], dict[str, Any]],
    allowed: set[str] | None = None,
    what: str | None = None,
) -> Any:
    """Apply a function to every dict of a tree that has the `keys` and lies in a named part.

    Args:
        allowed: the keys that such a dict may have; None for any.
        what: a description of such dicts, for the message.
    """
    paths: list[tuple[Any, ...]] = []
    others: dict[Any, str] = {}

    def visited(node: Any, path: tuple[Any, ...]) -> Any:
        if not isinstance(node, Mapping):
            return node
        kind: Any = type(node)
        if keys <= node.keys() and (allowed is None or node.keys() <= allowed):
            paths.append(path)
            if any(matches(path, part) for part in parts):
                return kind(function(node))
        elif entries := [str(key) for key in node if not isinstance(node[key], Mapping)]:
            others[path] = "with " + ", ".join(sorted(entries))
        return kind({key: visited(value, (*path, key)) for key, value in node.items()})

    mapped = visited(tree, ())
    check_found(parts, paths, what or " and ".join(sorted(keys)), others)
    return mapped
