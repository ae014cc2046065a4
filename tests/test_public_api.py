"""The public interface is what tests/public_api.txt lists, as docs/api-policy.md promises."""

import difflib
from pathlib import Path

import flax.linen as nn
import pytest
from public_api import arguments, constructor, default, public_api

LISTED = Path(__file__).with_name("public_api.txt")
HOW_TO_ACCEPT = (
    "The public interface has changed ({count} lines):\n{changes}\n"
    "Where that is meant and docs/api-policy.md allows it: tell users in CHANGELOG.md, then\n"
    "    python tests/public_api.py > tests/public_api.txt"
)


def changes(listed, found):
    """What was added and removed, with the titles that it stands under."""
    lines = difflib.unified_diff(listed, found, "listed", "found", n=3, lineterm="")
    return list(lines)


def test_the_public_interface_is_the_listed_one():
    changed = changes(LISTED.read_text().splitlines(), list(public_api()))
    message = HOW_TO_ACCEPT.format(count=len(changed), changes="\n".join(changed))
    assert not changed, message


def test_an_argument_that_is_added_renamed_or_given_another_default_is_a_change():
    def function(x, *, axis=-1):
        return x, axis

    def other_default(x, *, axis=0):
        return x, axis

    def positional(x, axis=-1):
        return x, axis

    listed = list(arguments(function))
    assert listed == ["x", "*", "axis=-1"]
    assert "+axis=0" in changes(listed, list(arguments(other_default)))
    assert "-*" in changes(listed, list(arguments(positional)))


def test_a_linen_module_lists_its_own_fields():
    class Module(nn.Module):
        size: int = 3

    assert list(constructor(Module)) == ["size=3"]


def test_defaults_hold_no_addresses():
    assert default(nn.initializers.zeros) == "=zeros"
    with pytest.raises(AssertionError, match="without a name"):
        default(object())
