"""Text as a fine-tuned GPT reads it: what the library's functions make of token ids, in a graph, and answered from."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_models import build

import keras_seq
from serving import export_model
from serving.answers import answers_for
from serving.signatures import SIGNATURES

TEXTS = ["old cook", "", "she ; not", "\u00e9t\u00e9"]
OTHERS = ["a student", "the cats", "", "red"]
# A kind of answers, its model and the labels.
HEADS = {
    "classifier": ("GPTClassifier", ["bad", "good", "neither"]),
    "pair_classifier": ("GPTClassifier", ["no", "yes", "perhaps"]),
    "pair_scorer": ("GPTSimilarityClassifier", ["0", "1", "2"]),
    "choice_picker": ("GPTMultipleChoice", None),
}


@pytest.fixture(scope="module")
def given():
    """A GPT of 37 positions with room for the three tokens, and its tokenizer."""
    given = build("gpt")
    keras.utils.set_random_seed(5)
    model = given["model"].with_vocabulary_size(given["tokenizer"].vocabulary_size + 3)
    for variable in model.trainable_variables:
        variable.assign(keras.random.normal(variable.shape, stddev=0.5))
    return {"backbone": model, "tokenizer": given["tokenizer"]}


@pytest.fixture(scope="module")
def answers(given):
    """kind -> its answers over that GPT."""

    def of(kind, name, labels):
        head = getattr(keras_seq, name)
        model = head(given["backbone"], *([len(labels)] if labels else []))
        for variable in model.trainable_variables[-2:]:
            variable.assign(keras.random.normal(variable.shape))
        return answers_for(model, given["tokenizer"], labels=labels, kind=kind)

    return {kind: of(kind, *row) for kind, row in HEADS.items()}


def softmax(logits):
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def test_answers_are_those_of_the_model_on_what_the_library_makes_of_each_task(given, answers):
    tokenizer = given["tokenizer"]
    ids, others = ([tokenizer.tokenize(text).numpy().tolist() for text in texts] for texts in (TEXTS, OTHERS))
    start, delimiter, extract = range(tokenizer.vocabulary_size, tokenizer.vocabulary_size + 3)
    inputs = {
        "classifier": keras_seq.classification_inputs(ids, start, extract),
        "pair_classifier": keras_seq.entailment_inputs(ids, others, start, delimiter, extract),
        "pair_scorer": keras_seq.similarity_inputs(ids, others, start, delimiter, extract),
        "choice_picker": keras_seq.multiple_choice_inputs(
            ids, [[one, other] for one, other in zip(others, others[1:] + others[:1])], start, delimiter, extract
        ),
    }
    expected = {kind: softmax(np.asarray(answers[kind].model(one)["logits"])) for kind, one in inputs.items()}
    text, other = tf.constant(TEXTS), tf.constant(OTHERS)
    np.testing.assert_allclose(answers["classifier"].probabilities(text)[1], expected["classifier"], atol=1e-5)
    np.testing.assert_allclose(
        answers["pair_classifier"].probabilities(text, other)[1], expected["pair_classifier"], atol=1e-5
    )
    told = answers["pair_scorer"].similarity(text, other)[0]
    np.testing.assert_allclose(told, expected["pair_scorer"] @ [0.0, 1.0, 2.0], atol=1e-5)
    np.testing.assert_allclose(told, answers["pair_scorer"].similarity(other, text)[0], atol=1e-5)
    # An empty string is no choice to a server; of the rows without one the probabilities are the model's.
    choices = tf.stack([other, tf.roll(other, -1, 0)], axis=1)
    there = (choices.numpy() != b"").all(axis=1)
    told = answers["choice_picker"].choose(text, choices)[1].numpy()
    np.testing.assert_allclose(told[there], expected["choice_picker"][there], atol=1e-5)
    assert there.sum() == 2 and (told[~there].max(axis=1) == 1).all()


def test_two_texts_without_an_order_are_classified_alike_in_both(given, answers):
    both = answers_for(answers["pair_scorer"].model, given["tokenizer"], labels=["a", "b", "c"])
    assert both.kind == "pair_classifier"
    text, other = tf.constant(TEXTS), tf.constant(OTHERS)
    shares = both.probabilities(text, other)[1].numpy()
    np.testing.assert_allclose(shares, both.probabilities(other, text)[1], atol=1e-5)
    assert [label.decode() for label in both.classify(text, other)[0].numpy()] == ["abc"[i] for i in shares.argmax(1)]


def test_a_long_text_is_cut_so_that_all_special_tokens_stay(answers):
    inputs, _ = answers["classifier"]._text(tf.constant([TEXTS[0] * 9]))
    both, _ = answers["pair_classifier"]._pair(tf.constant([TEXTS[0] * 9]), tf.constant([OTHERS[0] * 9]))
    size = answers["classifier"].tokenizer.vocabulary_size
    (row,), (pair,) = (one["token_ids"].numpy() for one in (inputs, both))
    assert (len(row), row[0], row[-1]) == (37, size, size + 2)
    assert (len(pair), pair[0], pair[18], pair[-1]) == (37, size, size + 1, size + 2)


def test_an_explanation_names_the_special_tokens(answers):
    tokens, attention = answers["classifier"].explain(tf.constant(TEXTS))
    assert [token.decode() for token in tokens.numpy()[1][:3]] == ["<start>", "<extract>", ""]
    assert tokens.numpy()[0][0] == b"<start>" and attention.shape == (*tokens.shape, tokens.shape[1])
    np.testing.assert_allclose(attention.numpy()[1].sum(-1)[:3], [1, 1, 0], atol=1e-5)


def test_a_model_without_room_for_the_three_tokens_is_refused(given):
    plain = build("gpt")
    size = plain["tokenizer"].vocabulary_size
    message = f"The model has {size} tokens where its tokenizer has {size}, and 3 for fine-tuning stand behind them"
    with pytest.raises(ValueError, match=message):
        answers_for(keras_seq.GPTClassifier(plain["model"], 2), given["tokenizer"])


def test_an_export_answers_as_live_and_the_stock_server_runs_its_operations(answers, tmp_path, monkeypatch):
    monkeypatch.setattr("serving.export._compare", lambda *_: None)  # a fresh process' answers: test_export.py
    one = answers["classifier"]
    place = export_model(one.model, tmp_path / "exports" / "mine", one.tokenizer, labels=one.labels)  # checks them
    loaded = tf.saved_model.load(str(place)).signatures
    assert set(loaded) == set(SIGNATURES["classifier"])
    live, told = one.probabilities(tf.constant(TEXTS)), loaded["probabilities"](text=tf.constant(TEXTS))
    assert told["labels"].numpy().tolist() == live[0].numpy().tolist()
    np.testing.assert_allclose(told["probabilities"], live[1], atol=1e-5)
    assert loaded["probabilities"](text=tf.zeros([0], tf.string))["probabilities"].shape == (0, 3)
