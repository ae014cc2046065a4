"""The data sets are those of their packages, prepared safely, scaled and split as promised."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_sources import CONFIGS, source
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from statsmodels.datasets import anes96
from waiting import PATIENCE

from experiments.errors import ConfigError


def of_anes96():
    data = anes96.load_pandas().data
    return data.drop(columns=["vote", "logpopul"]).to_numpy(), data["vote"].to_numpy()


def of_digits():
    data = load_digits()
    return data.images[..., None], data.target


TABLES = {
    "wine": lambda: load_wine(return_X_y=True),
    "breast_cancer": lambda: load_breast_cancer(return_X_y=True),
    "anes96": of_anes96,
}
SHIPPED = {"digits": of_digits, **TABLES}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def as_rows(inputs, labels):
    """Inputs and labels as one table, its rows sorted."""
    table = np.column_stack([np.reshape(inputs, (len(inputs), -1)), labels]).astype(np.float32)
    return table[np.lexsort(table.T)]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_is_a_data_set(path, tmp_path):
    text = path.read_text()
    assert text.startswith("# ")
    assert f"\nname: {path.stem}\n" in text
    needed = {"folder": "images"} if path.stem == "idx_images" else {}
    built = source(path.stem, tmp_path, **needed)
    assert type(built).__doc__
    assert built.scaling == ("raw" if path.stem == "glosses" else "standard")
    assert not list(tmp_path.iterdir()), "constructing prepares nothing"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_builder_of_tfds_holds_what_is_said(name, directory):
    data = source(name, directory)
    builder, holds = data.prepared().builder(), data.source()
    assert builder.name == name
    assert builder.info.splits["train"].num_examples == holds.num_train
    assert builder.info.splits["test"].num_examples == holds.num_test
    assert builder.info.features["label"].num_classes == holds.num_classes
    assert builder.info.features["input"].shape == holds.input_shape
    assert builder.info.citation.startswith("@misc")
    assert builder.info.homepage.startswith("https://")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_example_of_the_source_is_there_once(name, directory):
    data = source(name, directory, scaling="raw").load(0)
    inputs, labels = (np.concatenate([part[i][:] for part in data[:3]]) for i in (0, 1))
    assert (inputs.dtype, labels.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(as_rows(inputs, labels), as_rows(*SHIPPED[name]()))


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_said_before_preparing_is_so(name, directory):
    chosen = source(name, directory)
    spec, data = chosen.spec(), chosen.load(0)
    assert data.train.inputs.shape == (spec.num_train, *spec.input_shape)
    assert set(data.train.labels) == set(range(spec.num_classes)) == set(range(data.num_classes))
    assert spec.max_length is None
    assert data.train.lengths is None


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_split_once_for_all_with_every_class_in_its_share(name, directory):
    data = source(name, directory, scaling="raw")
    labels = SHIPPED[name]()[1]
    tested = data.load(0).test
    shares = np.bincount(tested.labels.astype(int)) / len(tested.labels)
    np.testing.assert_allclose(shares, np.bincount(labels.astype(int)) / len(labels), atol=0.02)
    np.testing.assert_array_equal(tested.inputs[:], data.load(1).test.inputs[:])
    assert 0.19 < len(tested.labels) / len(labels) < 0.21


def test_the_features_of_the_voters_differ_in_scale(directory):
    inputs = source("anes96", directory, scaling="raw").load(0).train.inputs[:]
    assert inputs.shape[1] == 9
    assert inputs.max() == 7300
    assert inputs.max(axis=0).min() <= 7


def test_the_test_set_of_the_digits_is_the_end_of_the_source(directory):
    data = source("digits", directory, scaling="raw").load(3)
    np.testing.assert_array_equal(data.test.inputs[:][..., 0], load_digits().images[1437:])
    np.testing.assert_array_equal(data.test.labels, load_digits().target[1437:])


def test_validation_is_drawn_by_the_seed_from_the_training_examples(directory):
    data = source("digits", directory, scaling="raw")
    first, again, other = data.load(0), data.load(0), data.load(1)
    np.testing.assert_array_equal(first.validation.inputs[:], again.validation.inputs[:])
    assert (first.validation.inputs[:] != other.validation.inputs[:]).any()
    for drawn in (first, other):
        shares = np.bincount(drawn.validation.labels)
        expected = 0.1 * np.bincount(load_digits().target[:1437])
        np.testing.assert_allclose(shares, expected, atol=1)


def test_some_training_examples_are_kept_of_every_class_its_share(directory):
    of_all = source("digits", directory, scaling="raw").load(1)
    data = source("digits", directory, scaling="raw", examples=100)
    assert data.spec().num_train == 100
    kept = data.load(1)
    assert len(kept.train.labels) == len(kept.train.inputs) == 100
    shares = 100 * np.bincount(of_all.train.labels) / len(of_all.train.labels)
    np.testing.assert_allclose(np.bincount(kept.train.labels), shares, atol=1)
    rows = {row.tobytes() for row in of_all.train.inputs[:]}
    assert {row.tobytes() for row in kept.train.inputs[:]} <= rows
    for name in ("validation", "test"):
        np.testing.assert_array_equal(
            getattr(kept, name).inputs[:], getattr(of_all, name).inputs[:]
        )
    other = data.load(2).train.inputs[:]
    assert (other != kept.train.inputs[:]).any()
    scaled = source("digits", directory, examples=100).load(1).train.inputs[:]
    np.testing.assert_allclose((scaled.mean(), scaled.std()), (0, 1), atol=1e-5)


def test_standard_scaling_is_by_the_training_examples_of_the_seed(directory):
    raw = source("wine", directory, scaling="raw").load(2)
    data = source("wine", directory, scaling="standard").load(2)
    mean, deviation = raw.train.inputs[:].mean(axis=0), raw.train.inputs[:].std(axis=0)
    for part, of_raw in zip(data[:3], raw[:3], strict=True):
        np.testing.assert_allclose(
            part.inputs[:], (of_raw.inputs[:] - mean) / deviation, rtol=1e-4, atol=1e-4
        )
    assert (data.test.inputs[:] != source("wine", directory).load(0).test.inputs[:]).any()


def test_min_max_scaling_is_by_the_training_examples_of_the_seed(directory):
    raw = source("anes96", directory, scaling="raw").load(2)
    data = source("anes96", directory, scaling="min_max").load(2)
    least, most = raw.train.inputs[:].min(axis=0), raw.train.inputs[:].max(axis=0)
    np.testing.assert_array_equal(data.train.inputs[:].min(axis=0), 0)
    np.testing.assert_allclose(data.train.inputs[:].max(axis=0), 1, rtol=1e-6)
    expected = (raw.validation.inputs[:] - least) / (most - least)
    np.testing.assert_allclose(data.validation.inputs[:], expected, rtol=1e-6, atol=1e-7)


def test_images_are_scaled_by_channel(directory):
    data = source("digits", directory).load(0)
    raw = source("digits", directory, scaling="raw").load(0).train.inputs[:]
    expected = (load_digits().images[1437:] - raw.mean()) / raw.std()
    np.testing.assert_allclose(data.test.inputs[:][..., 0], expected, rtol=1e-5, atol=1e-6)


def test_loading_is_silent(tmp_path, capfd):
    source("digits", tmp_path).load(0)
    assert capfd.readouterr() == ("", ""), "TFDS is silent"


def test_loading_again_reads_what_is_prepared(tmp_path):
    first = source("wine", tmp_path).load(0)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = source("wine", tmp_path, scaling="min_max").load(0)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert again.test.inputs.shape == first.test.inputs.shape


IMPORTS = """
import sys
from data_sources import source
data = source("wine", sys.argv[1], scaling="raw")
if sys.argv[2:]:
    data.load(0)
print(*sorted({"tensorflow_datasets", "sklearn", "grain", "pandas"} & set(sys.modules)))
"""


@pytest.mark.long
def test_what_is_prepared_is_read_without_tfds_and_the_packages(tmp_path):
    tests = Path(__file__).parent
    command = [sys.executable, "-c", IMPORTS, str(tmp_path)]
    environment = {"PYTHONPATH": f"{tests}:{tests.parent}"}
    source("wine", tmp_path).load(0)
    for more in ([], ["load"]):
        run = subprocess.run([*command, *more], capture_output=True, text=True, env=environment)
        assert (run.returncode, run.stdout) == (0, "\n"), run.stderr


@pytest.mark.long
def test_two_processes_prepare_at_once(tmp_path):
    tests = Path(__file__).parent
    command = [sys.executable, "-c", IMPORTS, str(tmp_path), "load"]
    environment = {"PYTHONPATH": f"{tests}:{tests.parent}"}
    quiet = {"stdout": subprocess.DEVNULL, "env": environment}
    processes = [subprocess.Popen(command, **quiet) for _ in range(2)]
    assert [process.wait(timeout=PATIENCE) for process in processes] == [0, 0]
    assert not list(tmp_path.rglob("*incomplete*"))


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / "wine" / "incomplete.ABCDEF_1.0.0"
    left.mkdir(parents=True)
    (left / "half").touch()
    source("wine", tmp_path).load(0)
    assert not left.exists()


def problems(name, directory, batch_size=16, **changed):
    return list(source(name, directory, **changed).problems(batch_size))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_files_as_they_are_have_no_problem(name, tmp_path):
    assert problems(name, tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "fragments"),
    [
        ({"batch_size": 1294}, ["batch_size is 1294", "digits has 1293 training", "1 to 1293"]),
        ({"scaling": "z"}, ["data.scaling is 'z'", "raw, standard, min_max"]),
        ({"lengths": "all"}, ["data.lengths is 'all'", "full, inked"]),
        ({"validation": 0.0}, ["data.validation is 0.0", "1437 examples of digits", "such as 0.1"]),
        ({"validation": 1.0}, ["data.validation is 1.0", "such as 0.1"]),
        ({"validation": float("nan")}, ["data.validation is nan", "such as 0.1"]),
        ({"classes_per_batch": 11}, ["data.classes_per_batch is 11", "10 classes", "1 to 10"]),
        ({"classes_per_batch": 0}, ["data.classes_per_batch is 0", "1 to 10"]),
        ({"examples": 1294}, ["data.examples is 1294", "digits has 1293", "1 to 1293, or null"]),
        ({"examples": 0}, ["data.examples is 0", "1 to 1293"]),
        ({"examples": 15}, ["batch_size is 16", "with data.examples has 15", "1 to 15"]),
        ({"test_brightness": 1.5}, ["data.test_brightness is 1.5", "-1 to 1"]),
        ({"test_noise": -0.1}, ["data.test_noise is -0.1", "0 or more"]),
        ({"test_noise": 0.1, "lengths": "inked"}, ["data.test_noise", "give data.lengths=full"]),
        ({"memory": 0}, ["data.memory is 0", "1 or more"]),
        ({"directory": " "}, ["data.directory is empty", "give a directory"]),
    ],
    ids=str,
)
def test_what_cannot_be_right_is_told(changed, fragments, tmp_path):
    values = {"name": "digits", "directory": tmp_path, **changed}
    [problem] = problems(**values)
    for fragment in fragments:
        assert fragment in problem


def damage(path):
    content = bytearray(path.read_bytes())
    content[1000:2000] = bytes(value ^ 0xFF for value in content[1000:2000])
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [
        ("*/*/arrays/train.npz", damage),
        ("*/*/arrays/train.npz", truncate),
        ("*/*/*-train.array_record*", damage),
        ("*/*/*-train.array_record*", truncate),
        ("*/*/*-train.array_record*", remove),
        ("*/*/dataset_info.json", truncate),
    ],
)
def test_a_damaged_file_is_one_error_that_says_what_to_do(pattern, harm, tmp_path):
    data = source("wine", tmp_path, scaling="raw")
    data.load(0)
    [path] = tmp_path.glob(pattern)
    harm(path)
    if "arrays" not in pattern:
        for array in tmp_path.glob("*/*/arrays/*.npz"):
            array.unlink()
    with pytest.raises(ConfigError) as caught:
        source("wine", tmp_path, scaling="standard").load(0)
    told = str(caught.value)
    assert told.startswith(("wine cannot be read in", "wine cannot be prepared in"))
    assert str(tmp_path / "wine" / "1.0.0") in told
    assert told.endswith("); delete this folder to prepare it again")


def test_a_directory_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"prepared in .*file.*wine.*give another data.directory"):
        source("wine", tmp_path / "file").load(0)


CATALOG = ("mnist", "tfds_fashion_mnist", "cifar10", "cifar100")


@pytest.mark.parametrize("name", CATALOG)
def test_what_is_said_of_the_sets_of_tfds_is_so(name, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.data.catalog._hindrances", lambda *given: iter(()))
    data = source(name, tmp_path)
    builder, holds = data.builder(), data.source()
    assert Path(builder.data_path) == data.prepared().folder
    assert builder.info.features["image"].shape == holds.input_shape
    assert builder.info.features["label"].num_classes == holds.num_classes
    assert builder.info.supervised_keys == ("image", "label")


def test_what_tfds_prepared_is_read(tmp_path, monkeypatch, capfd, caplog):
    pillow = pytest.importorskip("PIL.Image", reason="pip install pillow")
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), np.uint8)

    def generate(self, number):  # as TFDS does, but for TensorFlow that makes the PNG
        for index in range(number):
            file = io.BytesIO()
            pillow.fromarray(images[index]).save(file, "PNG")
            file.seek(0)
            yield index, {"image": file, "label": index % 10}

    monkeypatch.setattr("experiments.data.catalog._hindrances", lambda *given: iter(()))
    make = source("mnist", tmp_path).builder

    def splits(self, manager):
        return {"train": generate(self, 30), "test": generate(self, 10)}

    monkeypatch.setattr(type(make()), "_split_generators", splits)
    data = source("mnist", tmp_path, scaling="raw").load(0)
    assert len(data.train.labels) == 27
    order = np.argsort(data.test.labels)
    np.testing.assert_array_equal(data.test.inputs[:][order, ..., 0], images[:10])
    assert capfd.readouterr() == ("", ""), "TFDS is silent"
    assert not caplog.records


@pytest.mark.parametrize("name", CATALOG)
def test_a_source_out_of_reach_is_told_at_once(name, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: module)
    monkeypatch.setattr("experiments.data.catalog._unreachable", lambda url: "no route")
    data = source(name, tmp_path)
    [problem] = data.problems(16)
    assert "which this machine cannot reach (no route)" in problem
    assert f"copy {data.prepared().folder}" in problem
    with pytest.raises(ConfigError, match="cannot reach"):
        data.load(0)


def test_an_address_out_of_reach_is_told_with_the_reason():
    from experiments.data.catalog import _unreachable

    assert "refused" in _unreachable("http://localhost:1/file")


def test_what_tfds_needs_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    [problem] = source("cifar10", tmp_path).problems(16)
    assert "TFDS needs tensorflow and pillow to prepare cifar10" in problem
    assert "pip install tensorflow pillow" in problem
