"""A release says the same version and date everywhere; what checks distributions finds faults."""

import re
from pathlib import Path

import pytest

import jaxnorm
from tools.check_dist import check_sdist, check_wheel, farthest

ROOT = Path(__file__).parent.parent
WHEEL = [
    "jaxnorm/__init__.py",
    "jaxnorm/py.typed",
    "jaxnorm/kernels/libjaxnorm_kernels.so",
    "jaxnorm-0.dist-info/licenses/LICENSE",
]


def test_the_changelog_and_the_citation_are_of_this_version():
    changelog, citation = ((ROOT / name).read_text() for name in ("CHANGELOG.md", "CITATION.cff"))
    version, date = re.search(r"^## \[(\d.*)\] - (.*)$", changelog, re.MULTILINE).groups()
    assert version == jaxnorm.__version__
    assert f"\nversion: {version}\n" in citation
    assert f'\ndate-released: "{date}"\n' in citation


def test_every_release_of_the_changelog_is_older_than_the_one_above():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    dates = re.findall(r"^## \[\d.*\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    assert dates == sorted(dates, reverse=True)
    assert len(dates) == len(re.findall(r"^## \[\d", changelog, re.MULTILINE))


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ([*WHEEL, "tests/test_batch.py"], "installs tests beside"),
        ([*WHEEL, "jaxnorm/kernels/src/kernels.cc"], "holds jaxnorm/kernels/src/kernels.cc"),
        ([name for name in WHEEL if "py.typed" not in name], "lacks jaxnorm/py.typed"),
        ([name for name in WHEEL if "LICENSE" not in name], "lacks the LICENSE"),
        ([name for name in WHEEL if ".so" not in name], "holds 0 libraries"),
    ],
)
def test_a_faulty_wheel_is_told(names, fault):
    check_wheel(WHEEL)
    with pytest.raises(SystemExit, match=fault):
        check_wheel(names)


def test_a_faulty_source_distribution_is_told():
    with pytest.raises(SystemExit, match=r"lacks .*CMakeLists"):
        check_sdist(["jaxnorm-0/README.md"])


def test_numbers_are_compared_relative_to_the_largest():
    assert farthest({"a": [1.0, -4.0]}, {"a": [1.0, -4.5]}) == 0.125
    with pytest.raises(SystemExit, match="the numbers are of"):
        farthest({"a": [1.0]}, {"b": [1.0]})
