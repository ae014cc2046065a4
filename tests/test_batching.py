"""Batches hold what they should, whatever step they start at."""

from itertools import islice

import numpy as np
import pytest

from experiments.data.batching import (
    Batches,
    evaluation_batches,
    evaluation_indices,
    training_indices,
)
from experiments.data.splits import Split, draw_classes, draw_stratified


def counted(indices):
    mask = np.ones(indices.indices.shape, bool) if indices.mask is None else indices.mask
    return indices.indices[mask]


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 10, 103, 200])
def test_an_epoch_has_every_example_once(batch_size, multiple):
    indices = training_indices(103, batch_size, multiple=multiple, seed=0, epoch=1)
    whole = 103 % batch_size == 0 and batch_size % multiple == 0
    assert (indices.mask is None) == whole
    assert whole or indices.indices.shape == indices.mask.shape
    assert indices.indices.shape[0] == -(-103 // batch_size)
    assert indices.indices.shape[1] % multiple == 0
    assert indices.indices.shape[1] - batch_size < multiple
    np.testing.assert_array_equal(np.sort(counted(indices)), np.arange(103))
    assert set(indices.indices.ravel()) == set(range(103)), "the filling can be read"


def test_every_batch_but_the_last_is_as_large_as_was_asked_for():
    indices = training_indices(103, 10, multiple=8, seed=0, epoch=1)
    np.testing.assert_array_equal(indices.mask.sum(axis=1), [10] * 10 + [3])
    assert not indices.mask[:, 10:].any(), "the filling comes last"


def test_an_epoch_depends_on_its_seed_and_number_alone():
    def order(seed, epoch, batch_size=10, multiple=1):
        return counted(training_indices(100, batch_size, multiple=multiple, seed=seed, epoch=epoch))

    first = order(seed=3, epoch=2)
    np.testing.assert_array_equal(first, order(seed=3, epoch=2, batch_size=7, multiple=4))
    assert (first != order(seed=3, epoch=3)).any()
    assert (first != order(seed=2, epoch=2)).any()


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_evaluation_covers_every_example_once(batch_size, multiple):
    indices = evaluation_indices(10, batch_size, multiple=multiple)
    assert indices.indices.shape[1] % multiple == 0
    np.testing.assert_array_equal(counted(indices), np.arange(10))


def split_of(number, classes=4):
    """Examples that hold their own number, with lengths of one more."""
    numbers = np.arange(number)
    inputs = numbers.astype(np.float32).reshape(-1, 1)
    return Split(inputs, (numbers % classes).astype(np.int32), (numbers + 1).astype(np.int32))


def test_rows_are_read_in_part():
    indices = evaluation_indices(10, 4, multiple=4)
    batch = indices.shard(slice(2, 4)).at(2).gather(split_of(10))
    np.testing.assert_array_equal(batch.inputs.ravel(), [9, 9])
    np.testing.assert_array_equal(batch.labels, [1, 1])
    np.testing.assert_array_equal(batch.lengths, [10, 10])
    np.testing.assert_array_equal(batch.mask, [False, False])


def test_evaluation_batches_are_read_in_part_in_the_order_of_the_examples():
    batches = evaluation_batches(split_of(10), 4, multiple=4, shard=slice(0, 2))
    assert [batch.inputs.ravel().tolist() for batch in batches] == [[0, 1], [4, 5], [8, 9]]
    assert len(batches) == 3
    assert batches[2].mask.all()


@pytest.mark.parametrize("classes", [None, 2])
def test_a_step_has_the_same_batch_wherever_one_starts(classes):
    given = {"multiple": 8, "seed": 5, "classes": classes}
    batches = Batches(split_of(50), 12, **given)
    assert batches.steps_per_epoch == 5
    straight = list(islice(batches.from_step(0), 14))
    for start in (1, 4, 5, 11):
        resumed = Batches(split_of(50), 12, **given).from_step(start, slice(8, 16))
        for expected, batch in zip(straight[start:], resumed, strict=False):
            for array, whole in zip(batch, expected, strict=True):
                np.testing.assert_array_equal(array, whole[8:16])


def test_the_batches_of_epochs_are_those_of_the_rows():
    batches = list(islice(Batches(split_of(50), 12, multiple=1, seed=5).from_step(0), 10))
    for epoch in (1, 2):
        indices = training_indices(50, 12, multiple=1, seed=5, epoch=epoch)
        of_epoch = batches[5 * (epoch - 1) : 5 * epoch]
        for step, batch in enumerate(of_epoch):
            np.testing.assert_array_equal(batch.inputs.ravel(), indices.indices[step])
        held = np.concatenate([batch.inputs[batch.mask] for batch in of_epoch])
        np.testing.assert_array_equal(np.sort(held.ravel()), np.arange(50))


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
def test_a_batch_of_a_few_classes_holds_their_shares(classes):
    batches = Batches(split_of(80), 10, multiple=4, seed=0, classes=classes)
    assert batches.steps_per_epoch == 8
    drawn = set()
    for batch in islice(batches.from_step(0), 40):
        assert batch.mask.tolist() == [True] * 10 + [False] * 2
        labels = batch.labels[:10]
        present, shares = np.unique(labels, return_counts=True)
        assert len(present) == classes
        assert shares.max() - shares.min() <= 1
        assert len(np.unique(batch.inputs[:10])) == 10, "no example twice"
        drawn.add(tuple(present))
    assert len(drawn) > 1 or classes == 4


def test_a_class_with_too_few_examples_gives_them_all_before_one_twice():
    by_class = [np.arange(3), np.arange(3, 100)]
    drawn = draw_classes(by_class, 2, 20, seed=0, step=0)
    counts = np.bincount(drawn, minlength=100)
    assert counts[:3].sum() == 10
    assert set(counts[:3]) == {3, 4}
    assert counts[3:].max() == 1


@pytest.mark.parametrize("drawn", [0, 1, 7, 50, 99])
def test_a_stratified_draw_has_every_class_in_its_share(drawn):
    labels = np.repeat([2, 0, 1], [20, 30, 50])
    mask = draw_stratified(labels, drawn, np.random.default_rng(0))
    assert mask.sum() == drawn
    shares = np.bincount(labels[mask], minlength=3)
    assert np.abs(shares - drawn * np.array([0.3, 0.5, 0.2])).max() <= 1
