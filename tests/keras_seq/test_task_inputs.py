"""keras_seq.task_inputs against figure 1 of Radford et al. 2018, written out."""

import numpy as np
import pytest

import keras_seq

START, DELIMITER, EXTRACT = 97, 98, 99


def rows(inputs):
    """Token ids without padding, as lists; every padded place holds 0."""
    ids, mask = inputs["token_ids"], inputs["padding_mask"]
    assert ids.dtype == "int32" and mask.dtype == bool and not np.any(ids[~mask])
    assert np.all(mask[..., :-1] >= mask[..., 1:])
    flat = zip(ids.reshape(-1, ids.shape[-1]), mask.reshape(-1, ids.shape[-1]))
    return [one[real].tolist() for one, real in flat]


def test_a_text_stands_between_start_and_extract():
    inputs = keras_seq.classification_inputs([[1, 2, 3], [4], []], START, EXTRACT)
    assert rows(inputs) == [[97, 1, 2, 3, 99], [97, 4, 99], [97, 99]]


def test_premise_and_hypothesis_have_a_delimiter_between_them():
    inputs = keras_seq.entailment_inputs([[1, 2], [3]], [[4], [5, 6]], START, DELIMITER, EXTRACT)
    assert rows(inputs) == [[97, 1, 2, 98, 4, 99], [97, 3, 98, 5, 6, 99]]


def test_similar_texts_stand_in_both_orders():
    inputs = keras_seq.similarity_inputs([[1, 2], [3]], [[4], [5]], START, DELIMITER, EXTRACT)
    assert inputs["token_ids"].shape == (2, 2, 6)
    assert rows(inputs) == [[97, 1, 2, 98, 4, 99], [97, 4, 98, 1, 2, 99], [97, 3, 98, 5, 99], [97, 5, 98, 3, 99]]


def test_each_choice_follows_its_context_and_missing_choices_have_no_real_token():
    inputs = keras_seq.multiple_choice_inputs([[1], [2]], [[[3], [4], [5]], [[6]]], START, DELIMITER, EXTRACT)
    assert inputs["token_ids"].shape == (2, 3, 5)
    assert rows(inputs) == [[97, 1, 98, 3, 99], [97, 1, 98, 4, 99], [97, 1, 98, 5, 99], [97, 2, 98, 6, 99], [], []]


def test_the_longest_part_is_cut_and_the_special_tokens_stay():
    arguments = ([[1, 2, 3, 4, 5]], [[6, 7]], START, DELIMITER, EXTRACT)
    assert rows(keras_seq.entailment_inputs(*arguments, max_length=7)) == [[97, 1, 2, 98, 6, 7, 99]]
    assert rows(keras_seq.entailment_inputs(*arguments, max_length=10)) == [[97, 1, 2, 3, 4, 5, 98, 6, 7, 99]]
    assert rows(keras_seq.classification_inputs([[1, 2, 3]], START, EXTRACT, max_length=3)) == [[97, 1, 99]]


def test_the_language_models_targets_are_the_next_real_tokens():
    inputs = keras_seq.classification_inputs([[1, 2], []], START, EXTRACT)
    targets, weights = keras_seq.language_model_targets(inputs)
    assert targets.tolist() == [[1, 2, 99, 0], [99, 0, 0, 0]]
    assert weights.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]] and weights.dtype == "float32"


def test_errors_name_the_rule_and_the_value():
    with pytest.raises(ValueError, match=r"entailment_inputs needs as many of the one as of the other, got 1 and 2\."):
        keras_seq.entailment_inputs([[1]], [[2], [3]], START, DELIMITER, EXTRACT)
    with pytest.raises(ValueError, match=r"Task inputs need max_length > 3, their special tokens, got 3\."):
        keras_seq.similarity_inputs([[1]], [[2]], START, DELIMITER, EXTRACT, max_length=3)
    for nothing in (lambda *ids: keras_seq.classification_inputs([], START, EXTRACT),
                    lambda *ids: keras_seq.similarity_inputs([], [], *ids),
                    lambda *ids: keras_seq.multiple_choice_inputs([[1]], [[]], *ids)):  # fmt: skip
        with pytest.raises(ValueError, match=r"Task inputs need at least one text, got none\."):
            nothing(START, DELIMITER, EXTRACT)
