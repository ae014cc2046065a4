"""Data sets that Debian packages: what they hold, and what is said where they are not installed."""

import re

import jax
import numpy as np
import pytest
from data_sources import source
from runs_of import composed, result, trained

from experiments.data.glosses import Glosses, read_glosses, word_ids
from experiments.data.mlbench import FOLDER
from experiments.errors import ConfigError
from experiments.inspect import inspect
from experiments.runs.directory import run_directory

needs_wordnet = pytest.mark.skipif(
    not all(path.is_file() for path in Glosses.files), reason="apt install wordnet-base"
)
needs_mlbench = pytest.mark.skipif(not FOLDER.is_dir(), reason="apt install r-cran-mlbench")

PACKAGES = {
    "glosses": "wordnet-base",
    "shuttle": "r-cran-mlbench",
    "letters": "r-cran-mlbench",
    "satellite": "r-cran-mlbench",
}
LICENSE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
LINES = """\
00001740 03 n 01 entity 0 000 | that which is perceived or known; "it was full of rackets"
00001930 05 n 01 cat 0 000 | a feline; usually small
02084071 05 n 01 dog 0 000 | A well-known member of Canis, the dog's genus (15,000 years)
00002098 00 a 01 unable 0 000 | (usually followed by `to') not having the means
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Let the glosses be 200 of 3 to 19 words, whose class is that of their last word."""
    rng = np.random.default_rng(0)
    kinds = np.arange(200) % 2
    lengths = rng.integers(3, 20, 200)
    words = [[f"w{one}" for one in rng.integers(0, 30, n - 1)] for n in lengths]
    lines = [
        f"{number:08} {kind:02} n 01 any 0 000 | {' '.join(given)} {('animal', 'plant')[kind]}\n"
        for number, (kind, given) in enumerate(zip(kinds, words, strict=True))
    ]
    path = tmp_path / "data.noun"
    path.write_text(LICENSE + "".join(lines))
    num_test = sum(gloss.is_test for gloss in read_glosses(path))
    holds = Glosses.holds._replace(num_train=200 - num_test, num_test=num_test)
    monkeypatch.setattr(Glosses, "files", (path,))
    monkeypatch.setattr(Glosses, "holds", holds)
    return path


def test_a_definition_ends_where_the_next_or_an_example_begins(tmp_path):
    path = tmp_path / "data.noun"
    path.write_text(LICENSE + LINES)
    entity, cat, dog, unable = read_glosses(path)
    assert entity == (("that", "which", "is", "perceived", "or", "known"), 3)
    assert cat == (("a", "feline"), 5)
    assert " ".join(dog.words) == "a well-known member of canis the dog's genus 15 000 years"
    assert " ".join(unable.words) == "usually followed by to not having the means"
    assert (dog.file, unable.file) == (5, 0)
    assert word_ids([cat, cat, entity]) == {
        word: number
        for number, word in enumerate(
            ["a", "feline", "is", "known", "or", "perceived", "that", "which"], start=2
        )
    }


def test_words_out_of_the_vocabulary_are_unknown(tmp_path):
    chosen = source("glosses", tmp_path, words=3)
    stored = np.array([[2, 9, 4, 1, 3], [4, 5, 2, 0, 0]], np.int32)
    inputs, lengths = chosen.lay_out(stored)
    np.testing.assert_array_equal(inputs, [[2, 1, 4, 1, 3], [4, 1, 2, 0, 0]])
    np.testing.assert_array_equal(lengths, [5, 3])
    assert inputs.dtype == lengths.dtype == np.int32
    assert chosen.spec().vocabulary == 5


def test_words_are_prepared_and_drawn_unscaled(written, tmp_path):
    chosen = source("glosses", tmp_path, words=20)
    assert list(chosen.problems(16)) == []
    data = chosen.load(0)
    glosses = list(read_glosses(written))
    ids = word_ids([gloss for gloss in glosses if not gloss.is_test])

    def rows(is_test):
        for gloss in glosses:
            if gloss.is_test == is_test:
                words = [ids.get(word, 1) for word in gloss.words]
                row = [word if word < 22 else 1 for word in words] + [0] * (19 - len(words))
                yield (*row, len(words), gloss.file)

    train, validation, tested = ([*map(tuple, table(part))] for part in data[:3])
    assert tested == list(rows(True))
    assert sorted(train + validation) == sorted(rows(False))
    streamed = source("glosses", tmp_path, words=20, stream=True).load(0)
    for part, of_held in zip(streamed[:3], data[:3], strict=True):
        assert_equal(part, of_held)


def table(split):
    """Words, length and label of every example."""
    assert split.inputs[:].dtype == split.lengths.dtype == np.int32
    return np.column_stack([split.inputs[:], split.lengths, split.labels])


def assert_equal(split, other):
    for array, expected in zip(split, other, strict=True):
        np.testing.assert_array_equal(array[:], expected[:], strict=True)


@pytest.mark.long
def test_a_model_learns_from_words(written, tmp_path):
    config = composed(
        *("data=glosses", "data.words=30", f"data.directory={tmp_path}", "batch_size=32"),
        *("model=small/lstm", "norm=batch", "optimizer=adam", "optimizer.learning_rate=0.01"),
        *("steps=100", "evaluate_every=50", "seeds=1", f"output={tmp_path}", "parallel=single"),
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integer steps and floats
        trained(config)
    assert result(config)["test_accuracy"] > 0.9
    text = inspect(run_directory(config)).read_text()
    assert "<h2>Layers</h2>" in text
    assert "<h2>Inputs</h2>" not in text


@pytest.mark.parametrize("name", PACKAGES)
def test_what_is_not_installed_is_told_with_the_package(name, tmp_path, monkeypatch):
    chosen = source(name, tmp_path)
    missing = tmp_path / "not-there"
    monkeypatch.setattr(type(chosen), "files", (missing,))
    [problem] = chosen.problems(16)
    assert problem.startswith(f"{missing} does not exist; run make data or apt install ")
    assert f" {PACKAGES[name]}, " in problem
    assert f"copy {tmp_path / name}" in problem
    with pytest.raises(ConfigError, match=f"^{re.escape(problem)}$"):
        chosen.load(0)


def test_what_is_prepared_needs_no_package(written, tmp_path):
    source("glosses", tmp_path).load(0)
    written.unlink()
    chosen = source("glosses", tmp_path, words=8)
    assert list(chosen.problems(16)) == []
    assert chosen.load(0).test.inputs[:].max() == 9


def test_files_of_another_version_are_told(written, tmp_path):
    written.write_text(LICENSE + LINES)
    with pytest.raises(ConfigError, match=r"has 2 training and 1 test examples of glosses, not 1"):
        source("glosses", tmp_path).load(0)


@pytest.mark.parametrize(
    ("changed", "fragments"),
    [
        ({"scaling": "standard"}, ["data.scaling is 'standard'", "give data.scaling=raw"]),
        ({"words": 0}, ["data.words is 0", "39479 words; give 1 to 39479"]),
        ({"words": 39_480}, ["data.words is 39480"]),
    ],
)
def test_what_does_not_fit_words_is_told(changed, fragments, written, tmp_path):
    [problem] = source("glosses", tmp_path, **changed).problems(16)
    for fragment in fragments:
        assert fragment in problem


@needs_wordnet
@pytest.mark.long
def test_the_glosses_are_those_of_wordnet(directory):
    chosen = source("glosses", directory)
    assert list(chosen.problems(64)) == []
    assert chosen.spec() == ((19,), 45, 78_435, 19, 8_002)
    glosses = [gloss for path in Glosses.files for gloss in read_glosses(path)]
    assert len(glosses) == 117_659
    data = chosen.load(0)
    assert [len(part.labels) for part in data[:3]] == [78_435, 8_715, 19_943]
    labels = np.concatenate([part.labels for part in data[:3]])
    counts = np.bincount(labels)
    assert len(counts) == 45
    assert (counts[0], counts[6], counts[16], counts.min()) == (12_924, 10_896, 40, 40)
    lengths = np.concatenate([part.lengths for part in data[:3]])
    assert (lengths.min(), lengths.max()) == (3, 19)
    kept = [gloss for gloss in glosses if 3 <= len(gloss.words) <= 19]
    np.testing.assert_array_equal(np.bincount(lengths), np.bincount([len(g.words) for g in kept]))
    training = [gloss for gloss in kept if not gloss.is_test]
    ids = word_ids(training)
    assert len(ids) == 39_479
    assert list(ids)[:5] == ["a", "of", "the", "or", "in"]
    text = "an entity that has physical existence"
    [entity] = (gloss for gloss in kept if " ".join(gloss.words) == text)
    assert (entity.file, entity.is_test) == (3, False)
    row = np.array([ids[word] for word in entity.words] + [0] * 13)
    found = np.concatenate([data.train.inputs[:], data.validation.inputs[:]])
    assert (found == np.where(row < 8_002, row, 1)).all(axis=1).sum() == 1
    assert not {gloss.words for gloss in training} & {g.words for g in kept if g.is_test}


TABLES = {  # of the UCI: the examples of each class in training and test
    "shuttle": ([34108, 37, 132, 6748, 2458, 6, 11], [11478, 13, 39, 2155, 809, 4, 2]),
    "satellite": ([1072, 479, 961, 415, 470, 1038], [461, 224, 397, 211, 237, 470]),
    "letters": (None, None),
}
FIRST = {  # of the file: its features and label
    "shuttle": ([50, 21, 77, 0, 28, 0, 27, 48, 22], 1),
    "satellite": ([92, 115, 120, 94, 84], 2),
    "letters": ([2, 8, 3, 5, 1, 8, 13, 0, 6, 6, 10, 8, 0, 8, 0, 8], ord("T") - ord("A")),
}
RANGES = {"shuttle": (-26_739, 15_164), "satellite": (27, 157), "letters": (0, 15)}


@needs_mlbench
@pytest.mark.long
@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_those_of_the_uci(name, directory):
    chosen = source(name, directory, scaling="raw")
    assert list(chosen.problems(64)) == []
    read, holds = chosen.read(), chosen.source()
    features, label = FIRST[name]
    np.testing.assert_array_equal(read["train"].inputs[0, : len(features)], features)
    assert read["train"].labels[0] == label
    data = chosen.load(0)
    inputs, labels = (np.concatenate([part[i][:] for part in data[:2]]) for i in (0, 1))
    assert inputs.shape == (holds.num_train, *holds.input_shape)
    np.testing.assert_array_equal(data.test.inputs[:], read["test"].inputs)
    np.testing.assert_array_equal(data.test.labels, read["test"].labels)
    both = np.concatenate([inputs, data.test.inputs[:]])
    assert (both.min(), both.max()) == RANGES[name]
    assert set(labels) == set(range(holds.num_classes))
    for found, counts in zip((labels, data.test.labels), TABLES[name], strict=True):
        if counts is not None:
            assert np.bincount(found).tolist() == counts
    standard = source(name, directory).load(0).train.inputs[:]
    np.testing.assert_allclose(standard.mean(0, dtype=np.float64), 0, atol=1e-4)
    np.testing.assert_allclose(standard.std(0, dtype=np.float64), 1, rtol=1e-4)
    scaled = source(name, directory, scaling="min_max").load(0).train.inputs[:]
    np.testing.assert_allclose(scaled.min(0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.max(0), 1, rtol=1e-6)
