"""A folder in MNIST's idx format is read as it is; what is wrong with it is one clear error."""

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_sources import source, write_idx, write_idx_folder

from experiments.data import idx
from experiments.errors import ConfigError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
needs_fashion_mnist = pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="apt install dataset-fashion-mnist"
)
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx_images(tmp_path, **changed):
    values = {"folder": str(tmp_path / "images"), "classes": 4, **changed}
    return source("idx_images", tmp_path / "prepared", **values)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_examples_are_those_of_the_files(suffix, tmp_path):
    folder = write_idx_folder(tmp_path / "images", suffix=suffix)
    chosen = idx_images(tmp_path, scaling="raw")
    assert list(chosen.problems(16)) == []
    assert chosen.spec() == ((6, 4, 1), 4, 36, None, None)
    data = chosen.load(0)
    path = folder / f"t10k-images-idx3-ubyte{suffix}"
    content = gzip.decompress(path.read_bytes()) if suffix else path.read_bytes()
    expected = np.frombuffer(content, np.uint8, offset=16).reshape(20, 6, 4, 1)
    np.testing.assert_array_equal(data.test.inputs[:], expected)
    assert data.test.labels.tolist() == list(range(4)) * 5
    assert len(data.train.labels) == 36
    assert len(data.validation.labels) == 4


def test_a_changed_folder_is_prepared_anew(tmp_path):
    folder = write_idx_folder(tmp_path / "images")
    chosen = idx_images(tmp_path, scaling="raw")
    first = chosen.load(0)
    assert chosen.load(0) is first
    write_idx_folder(folder, seed=1)
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    assert (chosen.load(0).test.inputs[:] != first.test.inputs[:]).any()
    assert len(list((tmp_path / "prepared" / "idx_images").glob("*/1.0.0"))) == 2


def test_another_folder_of_equal_files_is_another_set(tmp_path):
    write_idx_folder(tmp_path / "images")
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    assert idx_images(tmp_path).key != idx_images(tmp_path, folder=str(tmp_path / "copy")).key


def test_the_fingerprint_is_of_what_the_files_hold(tmp_path):
    folder = write_idx_folder(tmp_path / "images")
    chosen = idx_images(tmp_path)
    first = chosen.fingerprint()
    shutil.copytree(folder, tmp_path / "copy")
    assert idx_images(tmp_path, folder=str(tmp_path / "copy")).fingerprint() == first
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    assert chosen.fingerprint() == first
    for number, path in enumerate(sorted(folder.iterdir()), start=1):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(10**18 + number, 10**18 + number))
        assert chosen.fingerprint() != first, path
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
    images, labels = (folder / name for name in (IMAGES, LABELS))
    content = images.read_bytes()
    images.write_bytes(labels.read_bytes())
    labels.write_bytes(content)
    assert chosen.fingerprint() != first


def test_a_fingerprint_reads_a_file_once_while_it_is_the_same(tmp_path, monkeypatch):
    folder = write_idx_folder(tmp_path / "images")
    read, digest_of = [], idx.hashlib.file_digest

    def digest(file, name):
        read.append(Path(file.name).name)
        return digest_of(file, name)

    monkeypatch.setattr(idx.hashlib, "file_digest", digest)
    chosen = idx_images(tmp_path)
    assert chosen.fingerprint() == chosen.fingerprint()
    assert len(read) == 4
    os.utime(folder / LABELS, ns=(10**18, 10**18))
    chosen.fingerprint()
    assert read[4:] == [LABELS]


def test_a_fingerprint_of_a_missing_or_unreadable_file_is_one_error(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="does not exist, with or without"):
        idx_images(tmp_path).fingerprint()
    write_idx_folder(tmp_path / "images")

    def refuse(file, name):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(idx.hashlib, "file_digest", refuse)
    with pytest.raises(ConfigError, match=f"{IMAGES} cannot be read: Permission denied"):
        idx_images(tmp_path).fingerprint()


@pytest.mark.parametrize("name", ["digits", "wine", "cifar10"])
def test_what_a_version_determines_needs_no_fingerprint(name, tmp_path):
    assert source(name, tmp_path).fingerprint() == ""
    assert not list(tmp_path.iterdir())


def test_several_gzips_in_a_file_are_one(tmp_path):
    folder = write_idx_folder(tmp_path / "images")
    content = (folder / IMAGES).read_bytes()
    (folder / f"{IMAGES}.gz").write_bytes(gzip.compress(content[:99]) + gzip.compress(content[99:]))
    header = idx.read_header(folder / f"{IMAGES}.gz", num_axes=3)
    np.testing.assert_array_equal(
        idx.read(header), idx.read(idx.read_header(folder / IMAGES, num_axes=3))
    )


def replace(folder, name, content):
    (folder / name).write_bytes(content)


def truncate(folder, name):
    replace(folder, name, (folder / name).read_bytes()[:-7])


def truncate_gzip(folder, name):
    content = gzip.compress((folder / name).read_bytes())
    (folder / name).unlink()
    replace(folder, f"{name}.gz", content[: len(content) // 2])


def of_another_format(folder, name):
    replace(folder, name, b"\x89PNG\r\n" + bytes(40))


def empty(folder, name):
    replace(folder, name, b"")


def end_in_the_header(folder, name):
    replace(folder, name, (folder / name).read_bytes()[:6])


def no_gzip(folder, name):
    (folder / name).rename(folder / f"{name}.gz")


def fewer(folder, name):
    write_idx(folder / name, np.arange(39) % 4)


def none(folder, name):
    write_idx(folder / name, np.zeros((0, 6, 4)))
    write_idx(folder / name.replace("images-idx3", "labels-idx1"), np.zeros(0))


def of_another_size(folder, name):
    write_idx(folder / name, np.ones((40, 8, 4)))


def remove(folder, name):
    (folder / name).unlink()


@pytest.mark.parametrize(
    ("harm", "name", "fragments"),
    [
        (truncate, IMAGES, ["has 969 bytes", "header requires 976", "download it again"]),
        (truncate, LABELS, ["has 41 bytes", "requires 48", "download it again"]),
        (truncate_gzip, IMAGES, [".gz is truncated or corrupt", "download it again"]),
        (of_another_format, IMAGES, ["starts with 89 50 4e 47", "with 00 00 08 03", "of MNIST"]),
        (of_another_format, LABELS, ["starts with 89 50 4e 47", "with 00 00 08 01", "of MNIST"]),
        (empty, IMAGES, ["starts with nothing"]),
        (end_in_the_header, IMAGES, ["has 6 bytes", "requires 16"]),
        (
            no_gzip,
            IMAGES,
            [".gz is truncated or corrupt", "Not a gzipped", "download it again"],
        ),
        (fewer, LABELS, ["has 40 images", "39 labels", "download both again"]),
        (none, IMAGES, ["contains no image"]),
        (
            of_another_size,
            IMAGES,
            ["images of 8x4", "t10k-images-idx3-ubyte of 6x4", "same size"],
        ),
        (remove, LABELS, ["does not exist, with or without .gz; give the folder"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_with_a_file_is_told(harm, name, fragments, tmp_path):
    folder = write_idx_folder(tmp_path / "images")
    harm(folder, name)
    chosen = idx_images(tmp_path)
    [problem] = chosen.problems(16)
    for fragment in [str(folder / name), *fragments]:
        assert fragment in problem
    with pytest.raises(ConfigError) as caught:
        chosen.load(0)
    assert str(caught.value) == problem


def test_a_corrupt_gzip_of_the_right_size_is_told_when_it_is_read(tmp_path):
    folder = write_idx_folder(tmp_path / "images", suffix=".gz")
    path = folder / f"{IMAGES}.gz"
    content = bytearray(path.read_bytes())
    content[400] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{path} is truncated or corrupt"):
        idx_images(tmp_path).load(0)


def test_a_label_out_of_range_is_told(tmp_path):
    write_idx_folder(tmp_path / "images")
    [problem] = idx_images(tmp_path, classes=3).problems(16)
    assert f"{LABELS} has the label 3, but data.classes is 3; give data.classes=4" in problem


def test_a_folder_that_is_not_there_is_told_with_the_cure(tmp_path, monkeypatch):
    [problem] = idx_images(tmp_path).problems(16)
    assert (
        f"{tmp_path / 'images' / IMAGES} does not exist, with or without .gz; give the folder"
        in problem
    )
    with pytest.raises(ConfigError, match="does not exist"):
        idx_images(tmp_path).load(0)
    packages = {tmp_path / "images": "dataset-of-debian"}
    monkeypatch.setattr("experiments.data.idx_images.DEBIAN", packages)
    [problem] = idx_images(tmp_path).problems(16)
    assert "apt install dataset-of-debian" in problem


@pytest.mark.parametrize(
    ("changed", "batch_size", "fragment"),
    [
        ({}, 37, "images has 36 training examples; give 1 to 36"),
        ({"classes": 1}, 16, "data.classes is 1; give 2 or more"),
        ({"half": True, "folder": "odd"}, 16, "are 5x4; only even sides can be halved"),
    ],
)
def test_what_does_not_fit_the_files_is_told(changed, batch_size, fragment, tmp_path):
    write_idx_folder(tmp_path / "images")
    if "folder" in changed:
        changed = {**changed, "folder": str(write_idx_folder(tmp_path / "odd", size=(5, 4)))}
    assert any(
        fragment in problem for problem in idx_images(tmp_path, **changed).problems(batch_size)
    )


def test_lengths_of_halved_rows(tmp_path):
    write_idx_folder(tmp_path / "images")
    chosen = idx_images(tmp_path, half=True, lengths="inked")
    assert chosen.spec() == ((3, 2, 1), 4, 36, 3, None)
    assert set(chosen.load(0).test.lengths) == {2, 3}


@needs_fashion_mnist
def test_fashion_mnist_is_known_before_it_is_prepared(tmp_path):
    chosen = source("fashion_mnist", tmp_path)
    assert list(chosen.problems(16)) == []
    assert chosen.spec() == ((28, 28, 1), 10, 54_000, None, None)
    assert chosen.source().num_test == 10_000
    assert not list(tmp_path.iterdir())


@needs_fashion_mnist
@pytest.mark.long
def test_fashion_mnist_is_read(tmp_path):
    data = source("fashion_mnist", tmp_path, half=True).load(0)
    assert data.train.inputs.shape == (54_000, 14, 14, 1)
    assert np.bincount(data.train.labels).tolist() == [5400] * 10
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    np.testing.assert_allclose(data.train.inputs[:].mean(dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(data.train.inputs[:].std(dtype=np.float64), 1, atol=1e-5)
