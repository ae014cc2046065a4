"""Utterances of nine speakers: how a file of series is read, and what is said without aeon."""

import re
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from data_sources import source
from runs_of import composed, result, trained

from experiments.data.japanese_vowels import FOLDER, SPLITS, JapaneseVowels, read_ts
from experiments.errors import ConfigError

needs_aeon = pytest.mark.skipif(find_spec("aeon") is None, reason="pip install --no-deps aeon")

HEADER = """\
#Comments can contain : and ,
@problemName JapaneseVowels
@equalLength false
@classLabel true 1 2 3
@data
"""
LINES = """\
1.5,-2,3e-1:0.25,0,7:1

4:-5:3
"""
LONGEST, COEFFICIENTS = 29, 12
NUM_TRAIN, NUM_TEST = 60, 30


def drawn(number, seed):
    """Draw series of 7 to 29 vectors. The first coefficient says which of three speakers it is."""
    rng = np.random.default_rng(seed)
    for index in range(number):
        values = rng.normal(5, 1, (rng.integers(7, 30), COEFFICIENTS)).astype(np.float32)
        values[:, 0] += 3 * (index % 3)
        yield values, index % 3


SERIES = {"train": [*drawn(NUM_TRAIN, 0)], "test": [*drawn(NUM_TEST, 1)]}


def line(values, label):
    return ":".join([*(",".join(map(str, one)) for one in values.T.tolist()), str(label + 1)])


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Let aeon have the drawn series."""
    package = tmp_path / "aeon"
    (package / FOLDER).mkdir(parents=True)
    for split, name in SPLITS.items():
        lines = [line(*one) for one in SERIES[split]]
        (package / FOLDER / name).write_text(HEADER + "\n".join(lines) + "\n")
    found = ModuleSpec("aeon", None, is_package=True)
    found.submodule_search_locations.append(str(package))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    holds = JapaneseVowels.holds._replace(num_train=NUM_TRAIN, num_test=NUM_TEST)
    monkeypatch.setattr(JapaneseVowels, "holds", holds)
    return package


def test_the_series_of_a_file_are_read(tmp_path):
    path = tmp_path / "any.ts"
    path.write_text(HEADER + LINES)
    first, second = read_ts(path)
    np.testing.assert_array_equal(first.values, np.float32([[1.5, 0.25], [-2, 0], [0.3, 7]]))
    np.testing.assert_array_equal(second.values, [[4, -5]])
    assert first.values.dtype == second.values.dtype == np.float32
    assert (first.label, second.label) == ("1", "3")


def test_a_series_ends_with_its_last_vector_that_is_not_zero(tmp_path):
    inputs = np.zeros((2, LONGEST, COEFFICIENTS), np.float32)
    inputs[0, 6, 3] = inputs[1, 0, 0] = inputs[1, 28, 11] = -1
    laid_out, lengths = source("japanese_vowels", tmp_path).lay_out(inputs)
    np.testing.assert_array_equal(lengths, [7, 29])
    assert lengths.dtype == np.int32
    np.testing.assert_array_equal(laid_out, inputs)


def test_series_of_unequal_length_are_prepared(written, tmp_path):
    chosen = source("japanese_vowels", tmp_path, scaling="raw")
    assert list(chosen.problems(16)) == []
    assert chosen.spec() == ((LONGEST, COEFFICIENTS), 9, 48, LONGEST, None)
    data = chosen.load(0)
    assert [len(part.labels) for part in data[:3]] == [48, 12, NUM_TEST]
    assert data.test.inputs[:].dtype == np.float32
    for row, length, label, (values, speaker) in zip(
        data.test.inputs[:], data.test.lengths, data.test.labels, SERIES["test"], strict=True
    ):
        assert (length, label) == (len(values), speaker)
        np.testing.assert_array_equal(row[:length], values)
        assert not row[length:].any()
    streamed = source("japanese_vowels", tmp_path, scaling="raw", stream=True).load(0)
    for part, held in zip(streamed[:3], data[:3], strict=True):
        for array, expected in zip(part, held, strict=True):
            np.testing.assert_array_equal(array[:], expected[:])


def test_padding_is_not_measured_and_stays_zero(written, tmp_path):
    train = source("japanese_vowels", tmp_path).load(0).train
    within = np.arange(LONGEST) < train.lengths[:, None]
    values = train.inputs[:][within].astype(np.float64)
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(0), 1, rtol=1e-5)
    assert not train.inputs[:][~within].any()


@pytest.mark.long
@pytest.mark.parametrize("name", ["lstm", "gru", "transformer"])
def test_models_of_sequences_learn_from_series(name, written, tmp_path):
    config = composed(
        *("data=japanese_vowels", f"data.directory={tmp_path}", "batch_size=16", "steps=40"),
        *(f"model=small/{name}", "norm=layer", "optimizer=adam", "optimizer.learning_rate=0.01"),
        *("seeds=1", f"output={tmp_path}", "parallel=single"),
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integer steps and floats
        trained(config)
    assert result(config)["test_accuracy"] > 0.8


def test_without_aeon_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    chosen = source("japanese_vowels", tmp_path)
    [problem] = chosen.problems(16)
    assert problem.startswith("the Python package aeon, which contains japanese_vowels, is not in")
    assert "run pip install --no-deps aeon, " in problem
    assert f"copy {tmp_path / 'japanese_vowels'}" in problem
    with pytest.raises(ConfigError, match=f"^{re.escape(problem)}$"):
        chosen.load(0)


def test_a_missing_file_of_aeon_is_told(written, tmp_path):
    (written / FOLDER / SPLITS["test"]).unlink()
    [problem] = source("japanese_vowels", tmp_path).problems(16)
    assert "run pip install --no-deps aeon, " in problem


def test_what_is_prepared_needs_no_aeon(written, tmp_path, monkeypatch):
    source("japanese_vowels", tmp_path).load(0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    chosen = source("japanese_vowels", tmp_path, scaling="min_max")
    assert list(chosen.problems(16)) == []
    assert chosen.load(0).train.inputs[:].max() == pytest.approx(1)


def test_files_of_another_version_are_told(written, tmp_path):
    (written / FOLDER / SPLITS["test"]).write_text(HEADER)
    expected = "60 training and 0 test examples of japanese_vowels, not 60 and 30; install another"
    with pytest.raises(ConfigError, match=expected):
        source("japanese_vowels", tmp_path).load(0)


@needs_aeon
def test_the_utterances_are_those_of_the_uci(tmp_path):
    chosen = source("japanese_vowels", tmp_path, scaling="raw")
    assert list(chosen.problems(16)) == []
    data = chosen.load(0)
    assert "aeon" not in sys.modules
    assert [len(part.labels) for part in data[:3]] == [216, 54, 370]
    labels, lengths = (
        np.concatenate([getattr(part, name) for part in data[:2]]) for name in ("labels", "lengths")
    )
    assert np.bincount(labels).tolist() == [30] * 9
    assert np.bincount(data.test.labels).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert (lengths.min(), lengths.max(), lengths.sum()) == (7, 26, 4274)
    tested = data.test.lengths
    assert (tested.min(), tested.max(), tested.sum()) == (7, 29, 5687)
    first = chosen.read()["train"].inputs[0]
    expected = np.float32([[1.860936, -0.207383], [1.891651, -0.193249]])
    np.testing.assert_array_equal(first[:2, :2], expected)
    np.testing.assert_array_equal(np.flatnonzero(first.any(axis=1)), np.arange(20))
    assert data.test.inputs[:][0, 18, 0] == np.float32(1.388998)
