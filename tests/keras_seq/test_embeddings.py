"""keras_seq.embeddings: one table in both directions."""

import keras
import numpy as np
import pytest

from keras_seq.embeddings import TokenEmbedding

IDS = np.array([[3, 0, 10], [10, 7, 7]], "int32")


@pytest.mark.parametrize("scale", [False, True])
def test_vectors_are_rows_of_the_table_times_the_scale(scale):
    layer = TokenEmbedding(11, 5, scale=scale)
    vectors = layer(IDS)
    (table,) = layer.get_weights()
    np.testing.assert_allclose(vectors, table[IDS] * (5**0.5 if scale else 1), rtol=1e-6)


@pytest.mark.parametrize("scale", [False, True])
def test_reversed_logits_are_products_with_the_same_table_unscaled(scale):
    layer = TokenEmbedding(11, 5, scale=scale)
    layer(IDS)
    hidden = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("float32")
    np.testing.assert_allclose(layer(hidden, reverse=True), hidden @ layer.get_weights()[0].T, atol=1e-5)


def test_a_bias_starts_at_0_is_added_to_the_logits_and_not_to_the_vectors():
    layer, plain = TokenEmbedding(11, 5, logits_bias=True), TokenEmbedding(11, 5)
    layer(IDS), plain(IDS)
    table, bias = layer.get_weights()
    plain.set_weights([table])
    hidden = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("float32")
    np.testing.assert_array_equal(bias, np.zeros(11))
    bias = np.arange(11, dtype="float32")
    layer.set_weights([table, bias])
    np.testing.assert_allclose(layer(hidden, reverse=True), plain(hidden, reverse=True) + bias, atol=1e-5)
    np.testing.assert_array_equal(layer(IDS), plain(IDS))


def test_logits_are_float32_in_mixed_precision():
    layer = TokenEmbedding(11, 5, dtype="mixed_bfloat16")
    vectors = layer(IDS)
    assert keras.backend.standardize_dtype(vectors.dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(layer(vectors, reverse=True).dtype) == "float32"


def test_config_round_trip():
    layer = TokenEmbedding(11, 5, scale=True, logits_bias=True)
    assert TokenEmbedding.from_config(layer.get_config()).get_config() == layer.get_config()


def test_an_empty_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"TokenEmbedding needs vocabulary_size >= 1, got vocabulary_size=0\."):
        TokenEmbedding(0, 5)
