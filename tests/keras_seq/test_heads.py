"""keras_seq.heads against their formulas."""

import math

import keras
import numpy as np
import pytest

from keras_seq.embeddings import TokenEmbedding
from keras_seq.heads import ClassificationHead, MaskedLMHead

RANDOM = np.random.default_rng(0)
HIDDEN = RANDOM.normal(size=(2, 7, 5)).astype("float32")
POSITIONS = np.array([[6, 0, 3], [1, 1, 2]], "int32")


def masked_head(randomized, **options):
    table = TokenEmbedding(11, 5)
    table.build((None, None))
    table.built = True
    head = MaskedLMHead(table, **options)
    head(HIDDEN, POSITIONS)
    return randomized(head)


def test_masked_lm_logits_equal_the_formula_at_the_chosen_positions(randomized):
    head = masked_head(randomized)
    kernel, bias = head.dense.get_weights()
    x = np.take_along_axis(HIDDEN, POSITIONS[..., None], 1) @ kernel + bias
    x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    gamma, beta = head.norm.get_weights()
    expected = (x * gamma + beta) @ head.token_embedding.get_weights()[0].T + np.asarray(head.bias)
    np.testing.assert_allclose(head(HIDDEN, POSITIONS), expected, atol=1e-4)


def test_masked_lm_head_uses_the_tables_width():
    with pytest.raises(ValueError, match=r"MaskedLMHead needs width 7, got 5\."):
        MaskedLMHead(TokenEmbedding(11, 7))(HIDDEN, POSITIONS)


def test_class_logits_are_a_dense_layer_and_dropout_acts_in_training_only():
    head = ClassificationHead(3, dropout=0.5)
    logits = head(HIDDEN[:, 0])
    kernel, bias = head.dense.get_weights()
    np.testing.assert_allclose(logits, HIDDEN[:, 0] @ kernel + bias, atol=1e-5)
    assert not np.allclose(head(HIDDEN[:, 0], training=True), logits)


def test_logits_are_float32_in_mixed_precision(randomized):
    head = ClassificationHead(3, dtype="mixed_bfloat16")
    assert keras.backend.standardize_dtype(head(HIDDEN[:, 0]).dtype) == "float32"
    logits = masked_head(randomized, dtype="mixed_bfloat16")(HIDDEN, POSITIONS)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"


def test_config_round_trip(randomized):
    for head in (masked_head(randomized), ClassificationHead(3, dropout=0.5)):
        assert type(head).from_config(head.get_config()).get_config() == head.get_config()


def test_one_class_is_refused():
    with pytest.raises(ValueError, match=r"ClassificationHead needs num_classes >= 2, got num_classes=1\."):
        ClassificationHead(1)
