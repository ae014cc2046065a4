"""Names of one model for those of another, by patterns with wildcards, both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping

_WILDCARDS = {"*": "([^./]+)", "?": "([^./])"}


def check_names(names: Mapping[str, str]) -> None:
    """Patterns whose wildcards are as many as the places `{}` of their templates."""
    if not isinstance(names, Mapping) or not names:
        raise TypeError(
            "names must be a dict that is not empty, of patterns to templates, such as "
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
    """Our path for their prefix, by the first pattern that it matches."""
    for pattern, template in names.items():
        found = re.fullmatch(_expression(pattern), prefix)
        if found:
            path = _filled(template.split("{}"), found.groups())
            if theirs(path, names) != prefix:
                raise ValueError(
                    f"{prefix!r} becomes {path!r} by {pattern!r}, which becomes "
                    f"{theirs(path, names)!r} on the way back; keep the places {{}} of "
                    f"{template!r} apart, and the templates distinct"
                )
            return path
    return None


def theirs(path: str, names: Mapping[str, str]) -> str | None:
    """Their prefix for our path, by the first template that it matches."""
    for pattern, template in names.items():
        wildcards = iter(re.findall(r"[*?]", pattern))
        first, *rest = map(re.escape, template.split("{}"))
        expression = first + "".join(_WILDCARDS[next(wildcards)] + part for part in rest)
        found = re.fullmatch(expression, path)
        if found:
            return _filled(re.split(r"[*?]", pattern), found.groups())
    return None


def _expression(pattern: str) -> str:
    return "".join(_WILDCARDS.get(part, re.escape(part)) for part in re.split(r"([*?])", pattern))


def _filled(parts: list[str], values: tuple[str, ...]) -> str:
    return parts[0] + "".join(value + part for value, part in zip(values, parts[1:], strict=True))
