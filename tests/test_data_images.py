"""Images are halved, moved and scaled as their definitions say."""

import numpy as np
import pytest
from data_sources import source, write_idx_folder

from experiments.data.images import halved, ink_to_the_front
from experiments.data.scaling import Scaling, measure, scaling


def test_a_half_is_the_mean_of_four_pixels():
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 4, 2)).astype(np.uint8)
    half = halved(images)
    assert half.shape == (3, 3, 2, 2)
    assert half.dtype == np.float32
    for row in range(3):
        for column in range(2):
            four = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(half[:, row, column], four.mean(axis=(1, 2)))


@pytest.mark.parametrize(
    ("rows", "moved", "length"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 4),
        ([0, 2, 3, 0], [2, 3, 0, 0], 2),
        ([0, 2, 0, 4], [2, 0, 4, 0], 3),
        ([0, 0, 0, 4], [4, 0, 0, 0], 1),
        ([1, 0, 0, 0], [1, 0, 0, 0], 1),
        ([0, 0, 0, 0], [0, 0, 0, 0], 1),
    ],
)
def test_rows_with_ink_come_first(rows, moved, length):
    image = np.zeros((1, 4, 3, 1), np.uint8)
    image[0, :, 1, 0] = rows
    images, lengths = ink_to_the_front(image)
    assert lengths.tolist() == [length]
    assert lengths.dtype == np.int32
    assert images[0, :, 1, 0].tolist() == moved
    assert images[0, :, 0].sum() == 0


def test_images_are_sequences_of_unequal_length(tmp_path):
    folder = write_idx_folder(tmp_path / "images")
    given = {"folder": str(folder), "classes": 4, "lengths": "inked"}
    chosen = source("idx_images", tmp_path / "prepared", **given)
    data = chosen.load(0)
    assert chosen.spec().max_length == 6
    assert set(data.train.lengths) == {3, 4, 5, 6}
    beyond = np.arange(6) >= data.train.lengths[:, None]
    assert (data.train.inputs[:][beyond] == 0).all()
    counted = data.train.inputs[:][~beyond]
    np.testing.assert_allclose(counted.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(counted.std(), 1, atol=1e-5)


def test_half_the_digits_have_half_the_size(tmp_path):
    chosen = source("digits", tmp_path, half=True, scaling="raw")
    assert chosen.spec().input_shape == (4, 4, 1)
    whole = source("digits", tmp_path, scaling="raw").load(0).test.inputs[:]
    expected = whole.reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(chosen.load(0).test.inputs[:], expected, rtol=1e-6)


def test_the_test_images_alone_are_brighter_within_their_range(tmp_path):
    plain = source("digits", tmp_path).load(0)
    raw = source("digits", tmp_path, scaling="raw").load(0)
    data = source("digits", tmp_path, test_brightness=0.25).load(0)
    np.testing.assert_array_equal(data.train.inputs[:], plain.train.inputs[:])
    np.testing.assert_array_equal(data.validation.inputs[:], plain.validation.inputs[:])
    brighter = np.minimum(raw.test.inputs[:] + 4, 16)
    expected = (brighter - raw.train.inputs[:].mean()) / raw.train.inputs[:].std()
    np.testing.assert_allclose(data.test.inputs[:], expected, rtol=1e-5, atol=1e-5)


def test_the_noise_of_a_test_image_is_its_own_and_fixed(tmp_path):
    plain = source("digits", tmp_path, scaling="raw").load(0).test.inputs[:]
    given = {"scaling": "raw", "test_noise": 0.1}
    noisy = source("digits", tmp_path, **given).load(0).test.inputs[:]
    np.testing.assert_array_equal(source("digits", tmp_path, **given).load(1).test.inputs[:], noisy)
    inside = (plain > 6) & (plain < 10)  # where five deviations are not cut off
    noise = (noisy - plain)[inside]
    np.testing.assert_allclose((noise.mean(), noise.std()), (0, 1.6), atol=0.1)
    assert (noisy.min(), noisy.max()) == (0, 16)
    half = source("digits", tmp_path, half=True, **given).load(0).test.inputs[:]
    np.testing.assert_allclose(half, halved(noisy), rtol=1e-6)


def measured(inputs, lengths=None):
    return measure(inputs, lengths, np.arange(len(inputs)))


def test_a_pass_in_parts_measures_what_the_whole_has(monkeypatch):
    monkeypatch.setattr("experiments.data.scaling.CHUNK", 7)
    rng = np.random.default_rng(0)
    inputs = rng.normal(loc=[0, 1e4, -3], scale=[1, 10, 1e-3], size=(50, 3)).astype(np.float32)
    of_all = measured(inputs)
    np.testing.assert_array_equal(of_all.count, 50)
    np.testing.assert_allclose(of_all.mean, inputs.mean(0, dtype=np.float64), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(of_all.var, inputs.var(0, dtype=np.float64), rtol=1e-4)
    np.testing.assert_array_equal(of_all.min, inputs.min(0))
    np.testing.assert_array_equal(of_all.max, inputs.max(0))


def test_what_lies_beyond_the_lengths_is_not_measured():
    inputs = np.array([[[1.0], [3.0], [99.0]], [[5.0], [99.0], [99.0]]], np.float32)
    of_lengths = measured(inputs, np.array([2, 1]))
    assert of_lengths.count.tolist() == [3]
    assert of_lengths.mean.tolist() == [3.0]
    assert of_lengths.max.tolist() == [5.0]


@pytest.mark.parametrize("kind", ["standard", "min_max"])
def test_a_constant_feature_becomes_0(kind):
    inputs = np.array([[7.1, 1.0], [7.1, 3.0]], np.float32)
    scaled = scaling(kind, measured(inputs)).apply(inputs, None)
    np.testing.assert_array_equal(scaled[:, 0], 0)
    assert scaled[:, 1].tolist() == ([-1, 1] if kind == "standard" else [0, 1])
    unseen = scaling(kind, measured(inputs)).apply(np.array([[8.0, 2.0]], np.float32), None)
    assert np.isfinite(unseen).all()


def test_channels_are_scaled_each_by_its_own():
    images = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    shift, factor = np.array([1, 2, 3], np.float32), np.array([1, 10, 100], np.float32)
    scaled = Scaling(shift, factor).apply(images, None)
    np.testing.assert_array_equal(scaled, (images.astype(np.float32) - shift) * factor)
    assert scaled.dtype == np.float32
