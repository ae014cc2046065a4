"""What is streamed is what would be held, read from its files as it is needed."""

import inspect
from itertools import islice

import numpy as np
import pytest
from data_sources import source, write_idx_folder

from experiments.data.batching import evaluation_batches
from experiments.data.prepared import Records
from experiments.data.source import _code, _load, _scaling, _unscaled_splits
from experiments.errors import ConfigError


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("streaming")
    write_idx_folder(directory / "images", num_train=200)
    return directory


CASES = [
    ("digits", {}),
    ("digits", {"half": True, "lengths": "inked", "scaling": "min_max"}),
    ("digits", {"classes_per_batch": 2, "lengths": "inked"}),
    ("digits", {"examples": 50, "half": True, "test_brightness": 0.2, "test_noise": 0.3}),
    ("wine", {"examples": 40}),
    ("idx_images", {"lengths": "inked", "classes": 4}),
]


def both(name, directory, changed):
    if name == "idx_images":
        changed = {**changed, "folder": str(directory / "images")}
    return [source(name, directory / "data", stream=stream, **changed) for stream in (False, True)]


def assert_equal(batch, other):
    for array, expected in zip(batch, other, strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.long
@pytest.mark.parametrize(("name", "changed"), CASES)
def test_a_streamed_set_has_the_batches_of_a_held_one(name, changed, directory):
    held, streamed = both(name, directory, changed)
    in_memory, in_files = held.load(1), streamed.load(1)
    assert (held.streams(), streamed.streams()) == (False, True)
    given = {"batch_size": 10, "multiple": 4, "seed": 1}
    expected = held.batches(in_memory, **given)
    batches = streamed.batches(in_files, **given)
    assert batches.steps_per_epoch == expected.steps_per_epoch
    steps = expected.steps_per_epoch + 3
    pairs = zip(batches.from_step(0), expected.from_step(0), strict=True)
    for batch, other in islice(pairs, steps):
        assert_equal(batch, other)
        assert batch.inputs.dtype == np.float32
    for part, of_held in zip(in_files[:3], in_memory[:3], strict=True):
        given = {"batch_size": 32, "multiple": 8}
        for batch, other in zip(
            evaluation_batches(part, **given), evaluation_batches(of_held, **given), strict=True
        ):
            assert_equal(batch, other)
        np.testing.assert_array_equal(part.inputs[3:7], of_held.inputs[3:7])
        assert part.inputs.shape == of_held.inputs.shape


def test_a_resumed_stream_goes_on_and_reads_nothing_before(directory, monkeypatch):
    _, streamed = both("digits", directory, {})
    data = streamed.load(0)
    batches = streamed.batches(data, 32, multiple=1, seed=0)
    straight = list(islice(batches.from_step(0), 60))
    read, labels_of = [], Records.read
    monkeypatch.setattr(
        Records, "read", lambda self, examples: read.append(examples) or labels_of(self, examples)
    )
    resumed = batches.from_step(50, slice(0, 16))
    for expected, batch in zip(straight[50:], resumed, strict=False):
        assert_equal(batch, [None if array is None else array[:16] for array in expected])
    resumed.close()
    first = read[0]
    assert all(len(examples) <= 16 for examples in read)
    assert len(read) <= 10 + 8 + 4, "what is read is what was asked for, and a few ahead"
    assert len(first) == 16


def test_every_example_of_an_epoch_is_streamed_once(directory):
    _, streamed = both("idx_images", directory, {"scaling": "raw", "classes": 4})
    data = streamed.load(0)
    batches = streamed.batches(data, 32, multiple=8, seed=3)
    epoch = list(islice(batches.from_step(0), batches.steps_per_epoch))
    seen = np.concatenate([batch.inputs[batch.mask] for batch in epoch]).reshape(180, -1)
    expected = data.train.inputs[:].reshape(180, -1)
    np.testing.assert_array_equal(seen[np.lexsort(seen.T)], expected[np.lexsort(expected.T)])


def test_the_pass_that_measures_is_made_once(tmp_path, monkeypatch):
    chosen = source("wine", tmp_path, stream=True)
    first = chosen.load(0)
    [kept] = tmp_path.rglob("measured-*-seed-0-*.npz")
    changed = kept.stat().st_mtime_ns
    monkeypatch.setattr("experiments.data.source.measure", None)
    again = source("wine", tmp_path, stream=True, scaling="min_max").load(0)
    assert kept.stat().st_mtime_ns == changed
    assert again.train.inputs[:].min() == 0
    assert first.train.inputs[:].min() < 0
    assert not list(tmp_path.rglob("train.npz")), "what is streamed is not kept twice"


def test_what_is_held_is_measured_once_and_writes_nothing(tmp_path, monkeypatch):
    chosen = source("wine", tmp_path, stream=False)
    first, before = chosen.load(0), {*tmp_path.rglob("*")}
    for seed in range(1, 4):
        chosen.load(seed)
    assert {*tmp_path.rglob("*")} == before
    monkeypatch.setattr("experiments.data.source.measure", None)
    np.testing.assert_array_equal(chosen.load(0).train.inputs[:], first.train.inputs[:])


def loaded_by_other_code(monkeypatch, directory, module, added):
    """Load as a process would in which a module ended with other lines; give what is kept."""
    getsource = inspect.getsource
    with monkeypatch.context() as patched:
        patched.setattr(
            "inspect.getsource",
            lambda of: getsource(of) + (added if of.__name__ == module else ""),
        )
        for cached in (_code, _load, _scaling, _unscaled_splits):
            cached.cache_clear()
        source("digits", directory, stream=True, lengths="inked").load(0)
        _code.cache_clear()
    return {path.name for path in directory.rglob("arrays/*.npz")}


@pytest.mark.long
def test_what_other_code_measured_or_laid_out_is_not_taken(tmp_path, monkeypatch):
    kept = loaded_by_other_code(monkeypatch, tmp_path, "", "")
    assert len(kept) == 3
    makers = [f"experiments.data.{name}" for name in ("scaling", "images", "source", "splits")]
    for module in [*makers, "jaxnorm.statistics"]:
        assert loaded_by_other_code(monkeypatch, tmp_path, module, "\n# a comment\n") == kept
        more = loaded_by_other_code(monkeypatch, tmp_path, module, "\nOTHER = 1\n")
        assert len(more - kept) == 3, module
        kept = more
    assert loaded_by_other_code(monkeypatch, tmp_path, "experiments.train", "\nOTHER = 1\n") == kept


@pytest.mark.parametrize(("memory", "streams"), [(4 * 178 * 13, False), (4 * 178 * 13 - 1, True)])
def test_what_is_larger_than_the_memory_is_streamed(memory, streams, tmp_path):
    assert source("wine", tmp_path, memory=memory).streams() is streams
    assert source("wine", tmp_path, memory=memory, stream=False).streams() is False


def test_a_file_damaged_meanwhile_is_one_error(tmp_path):
    chosen = source("wine", tmp_path, stream=True)
    chosen.load(0)
    [path] = tmp_path.glob("*/*/*-train.array_record*")
    content = bytearray(path.read_bytes())
    content[1000:2000] = bytes(value ^ 0xFF for value in content[1000:2000])
    path.write_bytes(content)
    data = source("wine", tmp_path, stream=True, scaling="raw").load(0)
    batches = chosen.batches(data, 16, multiple=1, seed=0).from_step(0)
    with pytest.raises(ConfigError, match=r"wine cannot be read in .*delete this folder"):
        list(islice(batches, 10))
