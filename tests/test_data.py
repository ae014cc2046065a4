"""The digits are scikit-learn's, prepared safely, and batched as promised."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments.data.batching import evaluation_rows, training_rows
from experiments.data.digits import Digits
from experiments.data.loading import Split, load


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("digits")
    builder = Digits(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    return builder


def test_the_split_is_fixed_and_complete(builder):
    assert builder.info.splits["train"].num_examples == Digits.NUM_TRAIN == 1437
    assert builder.info.splits["test"].num_examples == 360
    assert builder.info.features["label"].num_classes == 10


def test_the_values_are_those_of_scikit_learn(builder):
    source = load_digits()
    for split, expected in (("train", slice(0, 1437)), ("test", slice(1437, None))):
        examples = list(builder.as_data_source(split=split))
        images = np.stack([example["image"] for example in examples])
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images[..., 0], source.images[expected])
        labels = [example["label"] for example in examples]
        np.testing.assert_array_equal(labels, source.target[expected])


def test_the_source_is_cited(builder):
    assert "Alpaydin" in builder.info.citation
    assert builder.info.homepage.startswith("https://archive.ics.uci.edu")


def test_loading_standardizes_by_the_training_set(tmp_path, capfd):
    data = load("digits", str(tmp_path))
    assert data.train.images.shape == (1437, 8, 8, 1)
    assert data.train.images.dtype == data.test.images.dtype == np.float32
    assert data.train.labels.dtype == np.int32
    np.testing.assert_allclose(data.train.images.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(data.train.images.std(), 1, atol=1e-5)
    source = load_digits().images
    expected = (source[1437:] - source[:1437].mean()) / source[:1437].std()
    np.testing.assert_allclose(data.test.images[..., 0], expected, rtol=1e-5)
    assert capfd.readouterr() == ("", ""), "TFDS is silent"


def test_loading_again_reads_what_is_prepared(tmp_path):
    first = load("digits", str(tmp_path))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record*")}
    load.cache_clear()
    again = load("digits", str(tmp_path))
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record*")}
    np.testing.assert_array_equal(first.test.images, again.test.images)


@pytest.mark.long
def test_two_processes_prepare_at_once(tmp_path):
    code = "import sys; from experiments.data.loading import load; load('digits', sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert not list(tmp_path.rglob("*incomplete*"))


def counted(rows):
    return rows.indices[rows.mask]


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 10, 103, 200])
def test_an_epoch_has_every_example_once(batch_size, multiple):
    rows = training_rows(103, batch_size, multiple=multiple, seed=0, epoch=1)
    assert rows.indices.shape == rows.mask.shape
    assert rows.indices.shape[0] == -(-103 // batch_size)
    assert rows.indices.shape[1] % multiple == 0
    assert rows.indices.shape[1] - batch_size < multiple
    np.testing.assert_array_equal(np.sort(counted(rows)), np.arange(103))
    assert set(rows.indices[~rows.mask]) <= set(range(103)), "the filling can be read"


def test_every_batch_but_the_last_is_as_large_as_was_asked_for():
    rows = training_rows(103, 10, multiple=8, seed=0, epoch=1)
    np.testing.assert_array_equal(rows.mask.sum(axis=1), [10] * 10 + [3])
    assert not rows.mask[:, 10:].any(), "the filling comes last"


def test_an_epoch_depends_on_its_seed_and_number_alone():
    def order(seed, epoch, batch_size=10, multiple=1):
        return counted(training_rows(100, batch_size, multiple=multiple, seed=seed, epoch=epoch))

    first = order(seed=3, epoch=2)
    np.testing.assert_array_equal(first, order(seed=3, epoch=2, batch_size=7, multiple=4))
    assert (first != order(seed=3, epoch=3)).any()
    assert (first != order(seed=2, epoch=2)).any()


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_evaluation_covers_every_example_once(batch_size, multiple):
    rows = evaluation_rows(10, batch_size, multiple=multiple)
    assert rows.indices.shape[1] % multiple == 0
    np.testing.assert_array_equal(counted(rows), np.arange(10))


def test_rows_are_read_in_part():
    split = Split(np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1), np.arange(10))
    rows = evaluation_rows(10, 4, multiple=4)
    batch = rows.part(slice(2, 4)).batches(2).of(split)
    np.testing.assert_array_equal(batch.labels, [9, 9])
    np.testing.assert_array_equal(batch.images.ravel(), [9, 9])
    np.testing.assert_array_equal(batch.mask, [False, False])
