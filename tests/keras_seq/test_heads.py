"""keras_seq.heads against their formulas."""

import math

import keras
import numpy as np
import pytest

from keras_seq.embeddings import TokenEmbedding
from keras_seq.heads import (
    ChoiceHead,
    ClassificationHead,
    FlattenTexts,
    MaskedLMHead,
    SpanHead,
    UnflattenTexts,
    best_spans,
)

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


def test_the_masked_lm_heads_activation_is_its_argument(randomized):
    head = masked_head(randomized, activation="relu")
    kernel, bias = head.dense.get_weights()
    x = head.norm(np.maximum(np.take_along_axis(HIDDEN, POSITIONS[..., None], 1) @ kernel + bias, 0))
    expected = head.token_embedding(x, reverse=True) + head.bias
    np.testing.assert_allclose(head(HIDDEN, POSITIONS), expected, atol=1e-5)


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
    for head in (masked_head(randomized), ClassificationHead(3, dropout=0.5), SpanHead(0.5), ChoiceHead(0.5)):
        assert type(head).from_config(head.get_config()).get_config() == head.get_config()


def test_one_class_is_refused():
    with pytest.raises(ValueError, match=r"ClassificationHead needs num_classes >= 2, got num_classes=1\."):
        ClassificationHead(1)


def test_span_logits_are_a_dense_layer_hidden_where_no_answer_may_be(randomized):
    head, mask = SpanHead(), np.array([[0, 0, 1, 1, 0, 1, 0], [0] * 7], bool)
    start, end = head(HIDDEN, mask)
    kernel, bias = head.dense.get_weights()
    expected = HIDDEN @ kernel + bias
    mask[:, 0] = True
    for given, one in ((start, expected[..., 0]), (end, expected[..., 1])):
        np.testing.assert_allclose(np.asarray(given)[mask], one[mask], atol=1e-5)
        assert np.all(np.asarray(given)[~mask] < -1e8)


def test_the_best_spans_are_those_that_a_search_over_all_pairs_finds():
    random = np.random.default_rng(1)
    start, end = random.normal(size=(2, 5, 13)).astype("float32")
    allowed = random.random((5, 13)) < 0.6
    allowed[:, :3] = True
    start, end = (np.where(allowed, one, one - 1e9).astype("float32") for one in (start, end))
    for longest in (1, 3, 13, 17):
        found = {name: np.asarray(one) for name, one in best_spans(start, end, longest, num_spans=2).items()}
        for row in range(5):
            pairs = [(start[row, i] + end[row, j], i, j) for i in range(1, 13) for j in range(i, min(i + longest, 13))]
            for n, (score, i, j) in enumerate(sorted(pairs, reverse=True)[:2]):
                assert (found["starts"][row, n], found["ends"][row, n]) == (i, j)
                np.testing.assert_allclose(found["scores"][row, n], score, rtol=1e-5)
            null = start[row, 0] + end[row, 0]
            np.testing.assert_allclose(found["null_score"][row], null, rtol=1e-5)
            np.testing.assert_allclose(found["null_difference"][row], null - max(pairs)[0], atol=1e-5)


def test_a_row_without_a_possible_answer_prefers_the_null_answer():
    hidden = np.array([[0.5] + [-1e9] * 6], "float32")
    assert np.asarray(best_spans(hidden, hidden)["null_difference"])[0] > 1e8


def test_a_score_a_choice_is_a_dense_layer_and_choices_without_a_token_are_hidden():
    head = ChoiceHead()
    mask = np.array([[[1, 1], [1, 0], [0, 0]], [[1, 0], [1, 1], [1, 1]]], bool)
    vectors = RANDOM.normal(size=(6, 5)).astype("float32")
    scores = np.array(head(vectors, mask))
    kernel, bias = head.dense.get_weights()
    expected = (vectors @ kernel + bias).reshape(2, 3)
    assert scores[0, 2] < -1e8
    scores[0, 2] = expected[0, 2]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_texts_of_a_row_are_laid_side_by_side_and_put_back():
    x = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    flat = FlattenTexts()(x)
    np.testing.assert_array_equal(flat, x.reshape(6, 5))
    np.testing.assert_array_equal(UnflattenTexts()(flat, x), x)
    for rank in (2, 3):
        assert UnflattenTexts().compute_output_shape((None, 5, 7)[:rank], (None, 3, 5)) == (None, 3, 5, 7)[: rank + 1]


def test_errors_name_spans_and_values():
    with pytest.raises(ValueError, match=r"best_spans needs max_answer_length >= 1 and .*, got max_answer_length=0"):
        best_spans(HIDDEN[..., 0], HIDDEN[..., 0], max_answer_length=0)
    with pytest.raises(ValueError, match=r"num_spans <= 14 for 7 positions with max_answer_length=2, got 15\."):
        best_spans(HIDDEN[..., 0], HIDDEN[..., 0], max_answer_length=2, num_spans=15)
