"""Models of words: the vectors of words are as any sequence, and padding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KEY, normals
from components import model, placement

VOCABULARY, BATCH, LENGTH = 11, 8, 5
WIDTHS = {"lstm": 4, "gru": 4, "transformer": 8}
LENGTHS = np.array([5, 1, 3, 2, 4, 5, 2, 3], np.int32)
MASK = np.arange(BATCH) < 6
WITHIN = np.arange(LENGTH) < LENGTHS[:, None]
DRAWN = np.random.default_rng(3).integers(1, VOCABULARY, (BATCH, LENGTH), np.int32)
WORDS = np.where(WITHIN, DRAWN, np.int32(0))


def of_words(name):
    return model(name, placement("batch")).clone(vocabulary=VOCABULARY)


def started(net):
    """Give variables of the shapes that a model starts with, from no program."""
    shapes = jax.eval_shape(lambda: net.init(KEY, WORDS, LENGTHS, train=False))

    def value(path, leaf):
        if path[0].key == "batch_stats":
            return np.full(leaf.shape, path[-1].key == "var", leaf.dtype)
        return (path[-1].key == "scale") + normals(*leaf.shape) / 3

    return jax.tree.map_with_path(value, shapes)


@pytest.mark.parametrize("name", WIDTHS)
def test_words_are_a_sequence_of_their_vectors(name):
    net, width = of_words(name), WIDTHS[name]
    variables = started(net)
    table = variables["params"]["words"]["embedding"]
    assert table.shape == (VOCABULARY, width)
    params = {key: part for key, part in variables["params"].items() if key != "words"}
    if name == "transformer":  # which maps other sequences to its width
        params["tokens"] = {"kernel": np.eye(width, dtype=np.float32), "bias": np.zeros(width)}

    @jax.jit
    def both(variables, params):
        of_vectors = {**variables, "params": params}
        vectors = jnp.asarray(table)[WORDS]
        return (
            net.apply(variables, WORDS, LENGTHS, train=False),
            net.clone(vocabulary=None).apply(of_vectors, vectors, LENGTHS, train=False),
        )

    logits, expected = both(variables, params)
    assert np.abs(logits - logits[0]).max() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WIDTHS)
def test_padding_and_masked_examples_change_nothing(name):
    net = of_words(name)
    variables = started(net)

    @jax.jit
    def trained(words):
        def total(params):
            given = {**variables, "params": params}
            logits, _ = net.apply(given, words, LENGTHS, MASK, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(logits), where=MASK[:, None]), logits

        return jax.grad(total, has_aux=True)(variables["params"])

    gradients, logits = trained(WORDS)
    of_filled, also = trained(np.where(WITHIN & MASK[:, None], WORDS, np.int32(7)))
    np.testing.assert_array_equal(logits[MASK], also[MASK])
    for leaf, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(of_filled), strict=True):
        np.testing.assert_array_equal(leaf, other)
    present = np.isin(np.arange(VOCABULARY), WORDS[WITHIN & MASK[:, None]])
    np.testing.assert_array_equal(gradients["words"]["embedding"].any(axis=1), present)
    assert not present[0]
