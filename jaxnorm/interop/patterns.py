"""Conversion between the names of two models, by patterns with wildcards, in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping

_WILDCARDS = {"*": "([^./]+)", "?": "([^./])"}


def check_names(names: Mapping[str, str]) -> None:
    """Check that each pattern has as many wildcards as its template has places `{}`."""
    if not isinstance(names, Mapping) or not names:
        raise TypeError(
            "names must be a dict from patterns to templates that is not empty, for example "
            f'{{"layer*.bn?": "block_{{}}/norm_{{}}"}}, got {names!r}'
        )
    for pattern, template in names.items():
        wildcards, places = len(re.findall(r"[*?]", pattern)), template.count("{}")
        if wildcards != places:
            raise ValueError(
                f"the pattern {pattern!r} has {wildcards} wildcards (* and ?), but its template "
                f"{template!r} has {places} places {{}}; give each wildcard one place"
            )


def ours(prefix: str, names: Mapping[str, str]) -> str | None:
    """Our path for their prefix, by the first pattern that matches, or None."""
    for pattern, template in names.items():
        found = re.fullmatch(_expression(pattern), prefix)
        if found:
            path = _filled(template.split("{}"), found.groups())
            if theirs(path, names) != prefix:
                raise ValueError(
                    f"the pattern {pattern!r} maps {prefix!r} to {path!r}, which maps back to "
                    f"{theirs(path, names)!r}; separate the places {{}} of {template!r}, and make "
                    "the templates distinct"
                )
            return path
    return None


def theirs(path: str, names: Mapping[str, str]) -> str | None:
    """Their prefix for our path, by the first template that matches, or None."""
    for pattern, template in names.items():
        wildcards = iter(re.findall(r"[*?]", pattern))
        first, *rest = map(re.escape, template.split("{}"))
        expression = first + "".join(_WILDCARDS[next(wildcards)] + text for text in rest)
        found = re.fullmatch(expression, path)
        if found:
            return _filled(re.split(r"[*?]", pattern), found.groups())
    return None


def _expression(pattern: str) -> str:
    """A pattern as a regular expression."""
    return "".join(_WILDCARDS.get(text, re.escape(text)) for text in re.split(r"([*?])", pattern))


def _filled(texts: list[str], values: tuple[str, ...]) -> str:
    """The texts with a value between each two."""
    return texts[0] + "".join(value + text for value, text in zip(values, texts[1:], strict=True))
