"""The public interface is what tests/public_api.txt lists, as docs/api-policy.md promises."""

import difflib
import importlib
import pickle
from pathlib import Path

import flax.linen as nn
import pytest
from public_api import arguments, constructor, default, indented, public_api, public_names

LISTED = Path(__file__).with_name("public_api.txt")
HOW_TO_ACCEPT = """The public interface has changed:

{}

Where that is meant, and docs/api-policy.md allows it, tell users in CHANGELOG.md, and then

    python tests/public_api.py > tests/public_api.txt
"""


def under_titles(lines):
    """Each line after the title that it stands under."""
    title = ""
    for line in lines:
        title = title if line.startswith(" ") else line
        yield f"{title} {line.strip()}" if line.startswith(" ") else line


def changes(listed, found):
    """The lines that were removed and those that were added."""
    before, after = (list(under_titles(lines)) for lines in (listed, found))
    compared = list(difflib.unified_diff(before, after, n=0, lineterm=""))
    return [line for line in compared[2:] if not line.startswith("@@")]  # after --- and +++


def test_the_public_interface_is_the_listed_one():
    changed = changes(LISTED.read_text().splitlines(), public_api())
    if changed:
        pytest.fail(HOW_TO_ACCEPT.format("\n".join(changed)), pytrace=False)


def test_an_argument_that_is_added_renamed_or_given_another_default_is_a_change():
    def function(x, *, axis=-1):
        return x, axis

    def other_default(x, *, axis=0):
        return x, axis

    def positional(x, axis=-1):
        return x, axis

    listed = list(indented("f", arguments(function)))
    assert listed == ["f", "    x", "    *", "    axis=-1"]
    assert not changes(listed, indented("f", arguments(function)))
    assert changes(listed, indented("f", arguments(other_default))) == ["-f axis=-1", "+f axis=0"]
    assert changes(listed, indented("f", arguments(positional))) == ["-f *"]


def test_a_linen_module_lists_its_own_fields():
    class Module(nn.Module):
        size: int = 3

    assert list(constructor(Module)) == ["size=3"]


def test_defaults_hold_no_addresses():
    assert default(nn.initializers.zeros) == "=zeros"
    with pytest.raises(AssertionError, match="without a name"):
        default(object())


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_pickle_that_names_a_class_where_it_is_imported_from_loads(library):
    module = importlib.import_module(f"jaxnorm.{library}")
    for name in public_names(module):
        stored = f"cjaxnorm.{library}\n{name}\n.".encode()
        assert pickle.loads(stored) is getattr(module, name)
