"""The committed verdicts: README.md and docs/ say what docs/studies keeps, and what they say."""

import itertools
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import run_files
from omegaconf import OmegaConf
from scipy import stats

from experiments import verdicts
from experiments.config import Contrast
from experiments.errors import ConfigError
from experiments.report import claimed
from experiments.reports.comparison import compare
from experiments.reports.results import collect
from experiments.reports.rule import fresh_seeds
from experiments.reports.strip import strip
from experiments.reports.verdicts import KEPT, RULE, Entry, keep_entry, refresh, write_entry
from experiments.verdicts import BEGIN, END, ROOT, STUDIES, keep, published

NOISE = np.tile([-0.3, 0.2, 0.1, -0.1, 0.3, -0.2, 0.25, -0.25], 3)  # points, of mean 0
STEPS = np.tile([100, 120, 90, 140, 105, 99, 101, 120], 2)
NAMES = ("faster", "alike", "worse", "waiting", "unrun")
OPEN = "5 of 8 fresh seeds of both arms are there"
RATES = (0.01, 0.1, 1.0)


def test_readme_and_docs_say_what_is_committed(tmp_path):
    texts = published(ROOT, claimed())
    stale = [path.name for path, text in texts.items() if path.read_text() != text]
    assert stale == [], "make verdicts COMMITTED=1 writes them anew"


def test_what_is_committed_is_of_the_studies_that_claim(tmp_path):
    kept = verdicts.read_entries(ROOT / STUDIES, KEPT)
    assert {entry.name for entry in kept} <= {study.name for study in claimed()}
    figures = {path for path in published(ROOT, claimed()) if path.suffix == ".svg"}
    assert set((ROOT / STUDIES).glob("*.svg")) == figures
    for entry in kept:
        keep_entry(tmp_path, entry)
        file = f"{entry.name}{KEPT}"
        assert (tmp_path / file).read_text() == (ROOT / STUDIES / file).read_text()
        assert str(ROOT) not in (tmp_path / file).read_text()


# ---- made-up studies


def study(name):
    """Give what the file of a study says."""
    words = {"question": f"Is it {name}?", "claim": f"It is | {name}.", "expectation": "Yes."}
    return {"name": name, "source": "Somebody & al. 2015", **words}


def compared(output, gain, direction="greater", each=(), sizes=(16,)):
    """Compare two arms, tuned over three rates, of which a is better by `gain` points."""
    configs = []
    for norm, above in (("batch", gain + NOISE), ("none", 0 * NOISE)):
        for size, rate in itertools.product(sizes, RATES):
            config = run_files.configuration(
                norm=norm,
                batch_size=size,
                optimizer={"learning_rate": rate},
                seeds=len(NOISE),
                output=str(output),
            )
            lost = 5 * abs(np.log10(rate / 0.1))
            run_files.write_run(config, (90 - lost + above * size / 16) / 100)
            configs.append(config)
    asked = Contrast("norm=batch", "norm=none", "test_accuracy", direction, 0.5, "points", [*each])
    return compare(asked, collect(configs))


def compared_steps(output):
    """Compare the steps of two arms of which a takes four times as many."""
    configs = []
    for norm, steps in (("none", 4 * STEPS), ("batch", STEPS)):
        config = run_files.configuration(
            norm=norm, seeds=len(STEPS), target=0.8, output=str(output)
        )
        for seed, step in enumerate(steps.tolist()):
            final = run_files.result(seed, 0.8, ended="stopped", step=step, config=config)
            run_files.write_seed(config, final)
        configs.append(config)
    asked = Contrast("norm=none", "norm=batch", "steps_to_target", "greater", 1.5, "ratio")
    return compare(asked, collect(configs))


def entry(name, places, done="48 of 48 seeds"):
    return Entry(
        **study(name), done=done, setting="mlp on digits", places=places, open_because=None
    )


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    found = {
        "faster": compared_steps(output / "faster"),
        "alike": compared(output / "alike", 0.1, "equal"),
        "worse": compared(output / "worse", -2.0),
        "waiting": [replace(one, open_because=OPEN) for one in compared(output / "waiting", 2.0)],
    }
    return [entry(name, places) for name, places in found.items()]


@pytest.fixture
def root(tmp_path):
    """A folder as the repository's, with the marks alone."""
    (tmp_path / STUDIES).mkdir(parents=True)
    for page in ("README.md", "docs/studies.md"):
        (tmp_path / page).write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return tmp_path


@pytest.fixture
def written(root, entries, monkeypatch):
    """Keep the reports of the made-up studies and give what is published of them."""
    (root / "runs").mkdir()
    for entry in entries:
        write_entry(root / "runs", entry)
    monkeypatch.setattr(verdicts, "ROOT", root)
    monkeypatch.setattr(verdicts, "claimed", lambda: [OmegaConf.create(study(n)) for n in NAMES])
    monkeypatch.setattr("sys.argv", ["verdicts", f"output={root / 'runs'}"])
    verdicts.main()
    return root


def rows(page):
    """Give the cells of the table of a page, by the name of the study."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| [")]
    cells = [re.split(r" ?(?<!\\)\| ?", line)[1:-1] for line in lines]
    return {re.search(r"#(\w+)\)", row[0])[1]: row for row in cells}


def adjusted(entries):
    """Give Holm's p-values of the three that are judged, among five."""
    p = sorted((entry.places[0].p, entry.name) for entry in entries if entry.name != "waiting")
    return {name: value * (5 - rank) for rank, (value, name) in enumerate(p)}


def interval():
    """Give the interval of the study `worse` in words."""
    low, high = stats.ttest_1samp(fresh() - 2, 0).confidence_interval()
    return f"{low:+.2f}", f"{high:+.2f}"


def fresh():
    """Give the noise of the fresh seeds that the rule compares."""
    return NOISE[8 : 8 + fresh_seeds(float(np.std(NOISE[:8], ddof=1)), 0.5)]


def test_a_row_says_claim_verdict_and_effect(written):
    table = rows(written / "docs" / "studies.md")
    assert list(table) == ["faster", "alike", "worse", "waiting"]
    mean = np.mean(fresh()) - 2
    assert table["worse"] == [
        "[It is \\| worse.](#worse)",
        "**does not hold**, reversed",
        f"{90 + mean:.1f} % against 90.0 % ({mean:+.2f} points)",
        "mlp on digits",
    ]
    assert [table[name][1] for name in ("faster", "alike", "waiting")] == [
        "**holds**",
        "**holds**",
        "**open**",
    ]
    text = (written / "docs" / "studies.md").read_text()
    assert "Verdicts of 5 claims: holds 2, does not hold 1, open 1, not run 1." in text


def test_the_readme_groups_the_claims_by_verdict(written):
    text = (written / "README.md").read_text()
    assert "Verdicts of 5 claims: holds 2, does not hold 1, open 1, not run 1." in text
    table = [line for line in text.splitlines() if line.startswith("| [")]
    verdicts = [line.split(" | ")[1] for line in table]
    assert verdicts == [
        "**holds**",
        "**holds**",
        "**does not hold**, reversed",
        "**open**",
    ]
    steps = 2 ** np.mean(np.log2(STEPS[8:]))
    assert table[0] == (
        "| [It is \\| faster.](docs/studies.md#faster) | **holds** | "
        f"{4 * steps:.0f} steps against {steps:.0f} steps (4x) | mlp on digits |"
    )
    mean = np.mean(fresh()) - 2
    assert f"{90 + mean:.1f} % against 90.0 % ({mean:+.2f} points) | mlp on digits |" in table[2]


def test_the_widths_of_a_deep_model_fit_in_a_row(root, entries):
    [worse] = entries[2].places
    deep = replace(worse.a, overrides="norm=batch model.hidden=[8,64,64,64,64,10]")
    keep_entry(root / STUDIES, replace(entries[2], places=[replace(worse, a=deep)]))
    texts = published(root, [OmegaConf.create(study("worse"))])
    assert "`norm=batch model.hidden=[8,64 x 4,10]`" in texts[root / "docs" / "studies.md"]


def test_links_and_figures_are_there_from_both_pages(written):
    for page in (written / "README.md", written / "docs" / "studies.md"):
        text = page.read_text()
        linked = re.findall(r"\]\(([^)#]+)\)|\]\(([^)]+)#(\w+)\)|src=\"([^\"]+)\"", text)
        targets = [one or other or figure for one, other, _, figure in linked]
        assert len(targets) >= len(NAMES) - 1  # the README leaves out what did not run
        assert all((page.parent / target).is_file() for target in targets)
        for _, _, section, _ in linked:
            assert not section or f"\n## {section}\n" in (written / "docs/studies.md").read_text()


def test_a_section_says_all_that_a_verdict_rests_on(written, entries):
    text = (written / "docs" / "studies.md").read_text()
    section = text.partition("\n## worse\n")[2].partition("\n## ")[0]
    low, high = interval()
    grid = "the best of 3 trials by validation accuracy in % (learning rate 0.01: 85; learning rate"
    mean = np.mean(fresh()) - 2
    for said in (
        "Is it worse?",
        "- claim: It is | worse.\n- source: Somebody & al. 2015\n- expected: Yes.",
        "- models and data: mlp on digits",
        f"- b: `norm=none`: learning rate 0.1, {grid} 0.1: 90; learning rate 1: 85)",
        f"- verdict: **does not hold, reversed**: {90 + mean:.1f} % against 90.0 %, mean "
        f"{mean:+.2f} points, 95 % interval {low} points to {high} points, where more than 0.5 "
        f"points would matter, {len(fresh())} seeds, adjusted "
        f"p = {adjusted(entries)['worse']:.2g} (Holm, 5 contrasts)",
        "`make study STUDY=worse`; [all numbers](studies/worse.json)",
        "(studies/worse.svg)",
    ):
        assert said in section
    assert f"**open**: {OPEN}; so far 9" in text
    assert "- verdict: not run\n- made by: `make study STUDY=unrun`" in text
    assert all(f"\n{paragraph}\n" in text for paragraph in RULE)


@pytest.mark.long
def test_all_follows_from_what_is_committed_and_nothing_else(written, monkeypatch):
    files = [path for path in written.rglob("*.*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    assert before[written / "README.md"].startswith(b"before\n")
    assert before[written / "README.md"].endswith(b"\nafter\n")
    for path in files:
        if path.suffix == ".svg" or path.name.endswith(".study.json"):
            path.unlink()
    monkeypatch.setattr("sys.argv", ["verdicts", "--from-committed"])
    verdicts.main()
    again = {path: path.read_bytes() for path in written.rglob("*.*") if path.is_file()}
    assert again == {p: data for p, data in before.items() if not p.name.endswith(".study.json")}


def test_what_is_kept_is_rounded_and_keeps_its_bytes(written, entries):
    kept = written / STUDIES / "worse.json"
    values = json.loads(kept.read_text())
    [place] = values["places"]
    assert place["levels"]["a"] == [float(f"{a:.6g}") for a in entries[2].places[0].levels["a"]]
    assert place["seeds"] == list(range(8, 8 + len(fresh())))
    before = kept.read_bytes()
    keep(written / "runs", written, NAMES)
    assert kept.read_bytes() == before
    assert not (written / STUDIES / "unrun.json").exists()


@pytest.mark.long
def test_a_further_study_corrects_those_that_are_committed(root, entries):
    [worse] = [entry for entry in entries if entry.name == "worse"]
    keep_entry(root / STUDIES, worse)
    for family in (["worse"], ["worse", "unrun"]):
        studies = [OmegaConf.create(study(name)) for name in family]
        page = published(root, studies)[root / "docs" / "studies.md"]
        assert f"p = {len(family) * worse.places[0].p:.2g} (Holm, {len(family)} contrast" in page


@pytest.mark.long
def test_a_claim_that_cannot_be_told_says_how_many_seeds_would_decide_it(root):
    [second] = compared(root / "trained", 0.55)
    near = replace(second, open_because=None)  # as if its seeds were the last that the rule asks
    keep_entry(root / STUDIES, entry("worse", [near]))
    [page] = [
        text
        for path, text in published(root, [OmegaConf.create(study("worse"))]).items()
        if path.name == "studies.md"
    ]
    assert "- verdict: **cannot tell here**: 90.5 %" in page
    half_width = stats.norm.isf(0.05 / 48 / 2) * np.std(near.d, ddof=1)
    number = float(f"{(half_width / (abs(np.mean(near.d) - 0.5) / 2)) ** 2:.2g}")
    assert f"- would decide: about {number:,.0f} further seeds, if the mean and" in page


@pytest.mark.long
def test_a_study_at_several_places_has_a_verdict_for_each(root):
    places = compared(root / "trained", 1.0, each=["batch_size"], sizes=(0, 12, 16))
    keep_entry(root / STUDIES, entry("worse", places))
    texts = published(root, [OmegaConf.create(study("worse"))])
    page, readme = texts[root / "docs" / "studies.md"], texts[root / "README.md"]
    names = ["batch size 0", "batch size 12", "batch size 16"]
    mean = sum(place.mean for place in places) / 3
    assert f"- verdict: **does not hold**: mean of 3 places {mean:+.2f} points\n" in page
    assert "\n- batch size 16: holds: 91.0 % against 90.0 %, mean +1.0" in page
    assert page.count("the best of 3 trials") == 6
    [row] = [line for line in readme.splitlines() if line.startswith("| [")]
    _, verdict, measured, _ = row.split(" | ")
    assert verdict == "**does not hold**"
    of_places = measured.split("<br>")
    assert [text.partition(":")[0] for text in of_places] == names
    assert of_places[0].endswith(" points): does not hold, no difference")
    assert all(text.endswith(" points): holds") for text in of_places[1:])
    assert measured.count(" % against 90.0 % (") == 3


def test_a_study_opens_with_what_came_out(root, entries):
    [worse] = [entry for entry in entries if entry.name == "worse"]
    keep_entry(root / STUDIES, worse)
    path = root / "configs" / "study" / "worse.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(
        "# Shows: it.\n# Costs: much.\n# Came out: not\n#   yet.\n# Beside: this.\ndefaults: []\n"
    )
    [text] = [
        t for p, t in published(root, [OmegaConf.create(study("worse"))]).items() if p == path
    ]
    assert re.fullmatch(
        r"# Shows: it\.\n# Costs: 48 of 48 seeds\n"
        r"# Came out: does not hold, reversed: 8[^\n]*\n"
        r"(#   [^\n]*\n)*# Beside: this\.\ndefaults: \[\]\n",
        text,
    )
    path.write_text(text)
    assert published(root, [OmegaConf.create(study("worse"))])[path] == text


def test_what_cannot_be_written_is_told(root):
    with pytest.raises(ConfigError, match="runs has no report of a study with a primary contrast"):
        keep(root / "runs", root, NAMES)
    (root / "README.md").write_text("no marks")
    with pytest.raises(ConfigError, match=r"README.md has 0 places for the verdicts; give one: <!"):
        published(root, [])


# ---- the figure


def drawn(compared):
    """Give the elements of a strip by kind."""
    elements = list(ElementTree.fromstring(strip([compared], "told & <said>")).iter())
    kinds = {element.tag.rpartition("}")[2] for element in elements}
    return {kind: [e for e in elements if e.tag.endswith(f"}}{kind}")] for kind in kinds}


def test_a_strip_shows_seeds_interval_zero_and_delta(entries):
    [worse] = entries[2].places
    kinds = drawn(worse)
    seeds = [float(dot.get("cx")) for dot in kinds["circle"]]
    scale, zero = np.polyfit(worse.d, seeds, 1)
    np.testing.assert_allclose(seeds, zero + scale * np.array(worse.d), atol=0.02)
    assert scale > 0
    lines = [(float(line.get("x1")), float(line.get("x2"))) for line in kinds["line"]]
    dashed = [float(e.get("x1")) for e in kinds["line"] if e.get("stroke-dasharray")]
    at = [zero + scale * value for value in (*worse.interval95, 0, 0.5)]
    assert any(np.allclose(line, at[:2], atol=0.02) for line in lines)
    assert any(np.allclose(line, at[2], atol=0.02) for line in lines)
    np.testing.assert_allclose(dashed, [at[3]], atol=0.02)
    words = [text.text for text in kinds["text"]]
    assert "delta 0.5 points" in words
    assert "test accuracy (%): a - b in points" in words
    assert kinds["title"][0].text == "told & <said>"


def test_a_strip_of_equality_has_both_bounds_and_one_of_a_ratio_its_powers(entries):
    [faster], [alike] = entries[0].places, entries[1].places
    assert sum(bool(line.get("stroke-dasharray")) for line in drawn(alike)["line"]) == 2
    words = [text.text for text in drawn(faster)["text"]]
    assert words[:3] == ["1x", "2x", "4x"]
    assert "delta 1.5x" in words
    assert max(len(strip(entry.places, "")) for entry in entries) < 10_000


def test_a_strip_of_nothing_but_zeros_is_drawn(tmp_path):
    asked = Contrast("norm=batch", "norm=none", "test_accuracy", "greater", 0, "points")
    points = run_files.points(tmp_path, {"norm": "batch"}, {"norm": "none"})
    [result] = compare(asked, points)
    assert len(drawn(result)["circle"]) == 3


@pytest.mark.long
def test_the_index_shows_strips_and_the_rule(written, entries):
    refresh(written / "runs", NAMES)
    html = (written / "runs" / "index.html").read_text()
    assert html.count("<svg") == len(entries)
    assert "<h2>The rule</h2>" in html
