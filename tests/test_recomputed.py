"""Every verdict of docs/studies, computed again from the seeds of both arms by scipy alone."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docs" / "studies").glob("*.json"))
FAMILY = sorted((ROOT / "configs" / "study").glob("*.yaml"))
LEVEL = 0.05 / 48
MODELS = ("mlp", "cnn", "resnet", "lstm", "gru", "transformer")


def read(path):
    return json.loads(path.read_text())


def differences(place):
    a, b = (np.array(place["levels"][side]) for side in "ab")
    return np.log2(a / b) if place["unit"] == "ratio" else a - b


def margin(place):
    return math.log2(place["delta"]) if place["unit"] == "ratio" else place["delta"]


def bounds(place):
    """Give the differences that d is tested against."""
    delta = margin(place)
    return {"greater": [delta], "at_least": [-delta]}.get(place["direction"], [-delta, delta])


def interval(d):
    """Give the 95 % interval of the mean."""
    half_width = stats.t.isf(0.025, len(d) - 1) * np.std(d, ddof=1) / math.sqrt(len(d))
    return np.mean(d) - half_width, np.mean(d) + half_width


def p_value(place):
    d, delta = differences(place), margin(place)
    if np.std(d) <= 1e-9 * max(1.0, float(np.max(np.abs(d)))):
        inside = abs(np.mean(d)) < delta
        return 0.0 if inside or place["direction"] != "equal" else 1.0
    if place["direction"] == "equal":
        above = stats.ttest_1samp(d, -delta, alternative="greater").pvalue
        return max(above, stats.ttest_1samp(d, delta, alternative="less").pvalue)
    bound = -delta if place["direction"] == "at_least" else delta
    return stats.ttest_1samp(d, bound).pvalue


def holm(p_values, size):
    """Adjust the p-values, of a family in which all others are 1."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (size - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def second_stage(place):
    """Give the place as its second stage saw it, which is all that most places have."""
    return {**place, **(place["undecided"] or {})}


def word(place, adjusted):
    if place["open_because"] is not None:
        return "open"
    d, delta = differences(place), margin(place)
    if place["direction"] == "equal":
        low, high = interval(d)
        if adjusted < 0.05:
            return "holds"
        return "does not hold" if low > delta or high < -delta else "cannot tell here"
    bound = -delta if place["direction"] == "at_least" else delta
    if adjusted >= 0.05:
        return "cannot tell here"
    return "holds" if np.mean(d) > bound else "does not hold"


def claim(words):
    for one in ("does not hold", "open", "cannot tell here"):
        if one in words:
            return one
    return "holds"


@pytest.fixture(scope="module")
def judged():
    """The verdict and the adjusted p-value at every place of every study that was run."""
    entries = [read(path) for path in FILES]
    places = [(entry["name"], place) for entry in entries for place in entry["places"]]
    closed = [(name, place) for name, place in places if place["open_because"] is None]
    undecided = [second_stage(place) for _, place in places if place["undecided"]]
    claims = sum("contrast:" in path.read_text() for path in FAMILY)
    adjusted = iter(
        holm(
            [*(p_value(place) for _, place in closed), *map(p_value, undecided)],
            len(places) + len(undecided) + claims - len({name for name, _ in places}),
        )
    )
    found = {entry["name"]: [] for entry in entries}
    for name, place in places:
        p = None if place["open_because"] is not None else next(adjusted)
        found[name].append((word(place, p), p))
    return found


def section(name):
    """Give the lines of a study on the page."""
    page = (ROOT / "docs" / "studies.md").read_text()
    return page.partition(f"\n## {name}\n")[2].partition("\n## ")[0].splitlines()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_page_has_the_verdict_that_follows_from_the_seeds(path, judged):
    verdict = claim([word for word, _ in judged[path.stem]] or ["open"])
    assert any(line.startswith(f"- verdict: **{verdict}") for line in section(path.stem))
    readme = (ROOT / "README.md").read_text()
    [row] = [line for line in readme.splitlines() if f"studies.md#{path.stem})" in line]
    assert f"| **{verdict}**" in row


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_setting_names_models_and_data(path):
    models, data = read(path)["setting"].split(" on ")
    assert models
    assert data
    for place in read(path)["places"]:
        first = place["place"].partition(",")[0]
        assert first not in MODELS or first in re.split(", | and ", models)


def assert_numbers(line, place):
    """Check the mean, its interval and the number of seeds in a line of the page."""
    d, ratio = differences(place), place["unit"] == "ratio"
    expected = [np.mean(d), *interval(d)]
    [shown] = re.findall(r", mean (\S+).*? interval (\S+).*? to (\S+)", line)
    shown = [float(text.strip("x,")) for text in shown]
    if ratio:
        np.testing.assert_allclose(shown, np.exp2(expected), rtol=0.005)
    else:
        np.testing.assert_allclose(shown, expected, atol=0.00501)
    assert f", {len(d)} seeds" in line


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_page_has_the_numbers_that_follow_from_the_seeds(path, judged):
    places = read(path)["places"]
    lines = [line for line in section(path.stem) if line.startswith("- ") and ", mean " in line]
    before = [line for line in lines if line.startswith("- before: ")]
    last = [line for line in lines if line not in before]
    for line, place, (word, p) in zip(last, places, judged[path.stem], strict=True):
        assert word in line
        assert_numbers(line, place)
        adjusted = re.findall(r"adjusted p = (\S+)", line)
        assert [float(text) for text in adjusted] == (
            [] if p is None else [pytest.approx(p, rel=0.05)]
        )
    undecided = [second_stage(place) for place in places if place["undecided"]]
    for line, place in zip(before, undecided, strict=True):
        assert_numbers(line, place)


def assert_as_many_as_asked(n, spread, half_width):
    """Check that n is the fewest seeds, from 8 to 64, expected to have this half-width."""

    def expected(seeds):
        return stats.t.isf(LEVEL / 2, seeds - 1) * spread / math.sqrt(seeds)

    assert 8 <= n <= 64
    assert n == 64 or expected(n) <= half_width * (1 + 1e-5)
    assert n == 8 or expected(n - 1) > half_width * (1 - 1e-5)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fresh_seeds_as_many_as_the_rule_asks_are_compared(path):
    for place in read(path)["places"]:
        if place["open_because"] is not None:
            continue
        second = second_stage(place)
        n = len(second["seeds"])
        assert second["seeds"] == list(range(8, 8 + n))
        assert all(len(second["levels"][side]) == n for side in "ab")
        assert_as_many_as_asked(n, place["spread"], margin(place) / 2)
        if place["undecided"]:
            more = len(place["seeds"])
            assert place["seeds"] == list(range(8 + n, 8 + n + more))
            assert all(len(place["levels"][side]) == more for side in "ab")
            d = differences(second)
            distance = min(abs(np.mean(d) - bound) for bound in bounds(place))
            assert_as_many_as_asked(more, np.std(d, ddof=1), distance / 2)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_claim_that_the_second_stage_does_not_decide_has_a_third(path):
    places = read(path)["places"]
    if any(place["open_because"] is not None for place in places):
        return
    second = [second_stage(place) for place in places]
    words = [word(place, p_value(place) * 48) for place in second]
    undecided = claim(words) == "cannot tell here"
    for place, before, said in zip(places, second, words, strict=True):
        more = undecided and said == "cannot tell here" and len(before["seeds"]) < 64
        assert bool(place["undecided"]) == more


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_arm_chose_the_end_of_its_grid_unless_the_verdict_is_open(path):
    for place in read(path)["places"]:
        if place["open_because"] is None:
            for arm in (place["a"], place["b"]):
                for key, value in arm["choice"].items():
                    grid = arm["grid"][key]
                    assert len(grid) >= 3
                    assert value != grid[-1]
                    assert value != grid[0] or value == 0
