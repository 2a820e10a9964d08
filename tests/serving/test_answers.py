"""What stands behind each signature, against a second way of computing it."""

import numpy as np
import pytest
import tensorflow as tf
from tiny_models import NAMES, build

import keras_seq
from serving.answers import MaskedLanguageModel, answers_for
from serving.signatures import SIGNATURES

TEXTS = ["the old cook", "", "i am a student that she likes", "the cats are not good ?"]


@pytest.fixture(scope="module")
def answers(tiny_answers):
    return {name: tiny_answers(name)[1] for name in NAMES}


@pytest.fixture(scope="module")
def call(traced):
    """call(answers, function, *inputs): in the graph that is exported, traced once for all shapes."""

    def call(given, function, *inputs):
        signature = next(one for one in SIGNATURES[given.kind].values() if one.function == function)
        outputs = traced(given, signature)(*inputs)
        return [outputs[name].numpy() for name in signature.outputs]

    return call


def texts(values):
    return tf.constant(values, tf.string)


def decoded(array):
    return [value.decode() for value in array]


@pytest.mark.parametrize("name", ["seq2seq", "attention", "transformer"])
def test_translate_equals_generate_on_the_tokenizer_s_own_ids(answers, call, name):
    given = answers[name]
    for text, told in zip(TEXTS, call(given, "translate", texts(TEXTS))[0]):
        ids = [*given.tokenizer.tokenize(text).numpy().tolist(), given.tokenizer.end_token_id]
        inputs = {"encoder_token_ids": np.array([ids], "int32"), "encoder_padding_mask": np.ones((1, len(ids)))}
        target = given.target_tokenizer
        written = given.model.generate(inputs, 11, target.end_token_id, target.start_token_id)
        kept = written["token_ids"][0, : written["lengths"][0]]
        assert told == target.detokenize(tf.constant(kept)).numpy()


@pytest.mark.parametrize("name", ["seq2seq", "attention", "transformer"])
def test_a_translator_scores_its_own_beam_as_beam_search_did(answers, call, name):
    given = answers[name]
    source = texts(TEXTS[:1])
    best, scores = call(given, "translate_beam", source, tf.constant([1.0]), tf.constant([11]))
    assert best.shape == scores.shape == (1, 4)
    # Text may be cut into other tokens than were written: only what tokenizes back to itself can be compared.
    target = given.target_tokenizer
    written = given._write(given._source(source)[0], keras_seq.BeamSampler(4, tf.constant([1.0])), tf.constant([11]))
    for place in range(4):
        ids = written["token_ids"][0, place].numpy()[: int(written["lengths"][0, place])].tolist()
        again = [*target.tokenize(best[0, place].decode()).numpy().tolist(), target.end_token_id]
        if ids == again:
            scored, count = call(given, "score", source, texts([best[0, place]]))
            assert count[0] == len(ids)
            assert scored[0] == pytest.approx(scores[0, place], abs=1e-4)
    assert (np.diff(scores / written["lengths"].numpy()) <= 1e-6).all()


def test_score_is_the_sum_of_log_softmax_with_the_end_counted(answers, call):
    given = answers["gpt"]
    logs, counts = call(given, "score", texts(TEXTS))
    for text, log, count in zip(TEXTS, logs, counts):
        ids = given.tokenizer.tokenize(text).numpy().tolist()
        told = [given.tokenizer.start_token_id, *ids]
        asked = [*ids, given.tokenizer.end_token_id]
        logits = given.model({"token_ids": np.array([told]), "padding_mask": np.ones((1, len(told)), bool)})[0]
        expected = tf.nn.log_softmax(logits).numpy()[range(len(asked)), asked].sum()
        assert (count, log) == (len(asked), pytest.approx(expected, abs=1e-4))


@pytest.mark.parametrize("name", ["seq2seq", "attention", "transformer"])
def test_explained_attention_is_that_of_the_steps_and_its_rows_sum_to_one(answers, call, name):
    given = answers[name]
    translation, source_tokens, target_tokens, attention = call(given, "explain", texts(TEXTS))
    assert decoded(translation) == decoded(call(given, "translate", texts(TEXTS))[0])
    assert attention.shape == (len(TEXTS), target_tokens.shape[1], source_tokens.shape[1])
    real = (target_tokens != b"").astype("float32")
    np.testing.assert_allclose(attention.sum(-1), real, atol=1e-5)
    inputs, _ = given._source(texts(TEXTS[2:3]))
    state = given.model.start(inputs, 11)
    token = tf.constant([given.target_tokenizer.start_token_id])
    for row in attention[2][: int(real[2].sum())]:
        logits, state, weights = given.model.step(token, state)
        token = tf.argmax(logits, -1, tf.int32)
        np.testing.assert_allclose(weights[0], row[: weights.shape[1]], atol=1e-5)


def test_explained_gpt_attention_never_looks_ahead(answers, call):
    tokens, attention = call(answers["gpt"], "explain", texts(TEXTS))
    assert tokens[0, 0] == b"<s>"
    np.testing.assert_allclose(attention, np.tril(attention), atol=0)
    np.testing.assert_allclose(attention.sum(-1), (tokens != b"").astype("float32"), atol=1e-5)


def test_completion_goes_on_from_the_prompt_s_end_when_it_is_too_long(answers, call):
    given = answers["gpt"]
    long = " ".join(["the old cook"] * 50)
    tokens = given.tokenizer.tokenize(long).numpy()
    kept = given.limit - given.max_new_tokens - 1
    tail = given.tokenizer.detokenize(tf.constant(tokens[-kept:])).numpy()
    completions = call(given, "complete", texts([long, tail]))[0]
    assert completions[0] == completions[1]


def test_sampling_is_fixed_by_the_row_s_seed_alone(answers, call):
    given = answers["gpt"]

    def sample(chosen, seeds, temperature=1.0):
        size = len(chosen)
        options = (tf.fill([size], 7), tf.fill([size], temperature), tf.zeros([size], tf.int32), tf.ones([size]))
        return call(given, "sample", texts(chosen), *options, tf.constant(seeds, tf.int64))[0].tolist()

    together = sample(TEXTS, [3, 5, 7, 11])
    assert [sample([text], [seed])[0] for text, seed in zip(TEXTS, [3, 5, 7, 11])] == together
    assert sample(TEXTS, [2, 2, 2, 2]) != together
    greedy = given.tokenizer.tokenize(call(given, "complete", texts(TEXTS))[0])[:, :3]
    cold = given.tokenizer.tokenize(sample(TEXTS, [3, 5, 7, 11], temperature=0.0))[:, :3]
    assert cold.to_list() == greedy.to_list()


def test_fewer_sampled_tokens_are_the_beginning_of_more(answers, call):
    def sample(count):
        size = len(TEXTS)
        options = (tf.fill([size], count), tf.fill([size], 1.0), tf.zeros([size], tf.int32), tf.ones([size]))
        return call(answers["gpt"], "sample", texts(TEXTS), *options, tf.constant([3, 5, 7, 11], tf.int64))[0].tolist()

    whole = sample(11)
    for count in (1, 2, 5):
        for short, long in zip(sample(count), whole):
            # A character may be cut in two.
            assert long.startswith(short.rstrip("\ufffd".encode()))
    assert sample(1) != whole


def test_fill_mask_changes_nothing_but_the_blanks(answers, call):
    given = answers["bert"]
    asked = ["The old [MASK]  sees, [MASK]!", "nothing to fill", "[MASK]", "", "[mask] it's [MASK]"]
    filled = decoded(call(given, "fill_mask", texts(asked))[0])
    assert filled[1] == asked[1] and filled[3] == ""
    for text, answer in zip(asked, filled):
        pieces = text.split("[MASK]")
        assert "[MASK]" not in answer
        assert answer.startswith(pieces[0]) and answer.endswith(pieces[-1])
    assert filled[0].split()[0:2] == ["The", "old"]


def test_a_blank_beyond_the_model_s_length_stays(answers, call):
    text = "[MASK] " + "cat " * 50 + "[MASK]"
    filled = decoded(call(answers["bert"], "fill_mask", texts([text]))[0])[0]
    assert filled.count("[MASK]") == 1 and filled.endswith("[MASK]")


def test_candidates_are_the_likeliest_words_of_the_first_blank(answers, call):
    given: MaskedLanguageModel = answers["bert"]
    words, probabilities = call(given, "candidates", texts(["the [MASK] boat [MASK]", "no blank"]))
    assert words.shape == probabilities.shape == (2, 5)
    assert (np.diff(probabilities[0]) <= 0).all() and 0 < probabilities[0].sum() <= 1
    assert (words[1] == b"").all() and (probabilities[1] == 0).all()
    filled = decoded(call(given, "fill_mask", texts(["the [MASK] boat"]))[0])[0]
    alone = call(given, "candidates", texts(["the [MASK] boat"]))[0]
    assert filled == f"the {alone[0, 0].decode()} boat"


def test_an_embedding_is_the_mean_over_real_positions(answers, call):
    given = answers["bert"]
    embedded = call(given, "embed", texts(TEXTS))[0]
    for text, row in zip(TEXTS, embedded):
        ids = [given.tokenizer.start_token_id, *given.tokenizer.tokenize(text).numpy(), given.tokenizer.end_token_id]
        ids = np.array([ids], "int32")
        inputs = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": np.ones_like(ids)}
        output = given.model.backbone(inputs)["sequence_output"][0]
        np.testing.assert_allclose(row, np.mean(output, axis=0), atol=1e-5)


def test_next_sentence_reads_the_second_text_as_the_second_segment(answers, call):
    given = answers["bert"]
    (probability,) = call(given, "next_sentence", texts(["the cook"]), texts(["i am"]))
    first, second = (given.tokenizer.tokenize(text).numpy().tolist() for text in ("the cook", "i am"))
    start, end = given.tokenizer.start_token_id, given.tokenizer.end_token_id
    ids = np.array([[start, *first, end, *second, end]], "int32")
    segments = np.array([[0] * (len(first) + 2) + [1] * (len(second) + 1)], "int32")
    inputs = {"token_ids": ids, "segment_ids": segments, "padding_mask": ids >= 0, "mask_positions": ids[:, :1] * 0}
    expected = tf.nn.softmax(given.model(inputs)["next_sentence"])[0, 1]
    assert probability[0] == pytest.approx(float(expected), abs=1e-5)


def test_classify_names_the_likeliest_of_the_probabilities(answers, call):
    given = answers["classifier"]
    labels, probabilities = call(given, "probabilities", texts(TEXTS))
    assert labels.shape == probabilities.shape == (len(TEXTS), 3)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    told = call(given, "classify", texts(TEXTS))[0]
    assert (told == labels[range(len(TEXTS)), probabilities.argmax(-1)]).all()


def test_examples_answer_as_plain_text_does(answers, call):
    given = answers["classifier"]
    serialized = []
    for text in TEXTS[:3]:
        feature = {"text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))}
        serialized.append(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    serialized.append(tf.train.Example().SerializeToString())  # no text at all: an empty one
    classes, scores = call(given, "examples", texts(serialized))
    labels, probabilities = call(given, "probabilities", texts([*TEXTS[:3], ""]))
    assert (classes == labels).all()
    np.testing.assert_allclose(scores, probabilities, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_does_not_depend_on_companions(answers, call, name):
    given = answers[name]
    function = {"translator": "translate", "language_model": "complete", "classifier": "classify"}.get(given.kind)
    function = function or "fill_mask"
    asked = [text + " [MASK]" * (given.kind == "masked_language_model") for text in TEXTS]
    together = call(given, function, texts(asked))[0].tolist()
    assert [call(given, function, texts([text]))[0][0] for text in asked] == together
    assert call(given, function, texts([]))[0].shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_content_never_raises(answers, call, name):
    given = answers[name]
    function = {"translator": "explain", "language_model": "complete", "classifier": "explain"}.get(given.kind)
    hostile = [b"", b"\xff\xfe cook", b"\x00", "\U0001f600 \u202e \u0301".encode(), b"the cook " * 5000, b"x" * 3001]
    outputs = call(given, function or "fill_mask", texts(hostile))
    assert all(len(output) == len(hostile) for output in outputs)


def test_options_out_of_any_range_raise_nothing_and_leave_companions_alone(answers, call):
    odd = [np.nan, np.inf, -np.inf, 3e38, -50.0, 1.0]
    asked, caps = texts(["the cook"] * 6), [7, 2**31 - 1, -(2**31), 0, 7, 7]
    translations, scores = call(answers["transformer"], "translate_beam", asked, tf.constant(odd), tf.constant(caps))
    usual = call(answers["transformer"], "translate_beam", asked[:1], tf.constant([1.0]), tf.constant([7]))
    for row in (0, 5):
        assert (translations[row] == usual[0][0]).all()
        np.testing.assert_allclose(scores[row], usual[1][0], rtol=1e-5)
    assert np.isfinite(scores).all() and (scores < 0).all()

    def sample(temperature, top_p, top_k, seed, caps):
        values = caps, tf.constant(temperature), top_k, tf.constant(top_p), tf.constant(seed, "int64")
        return call(answers["gpt"], "sample", asked[: len(caps)], *(tf.constant(one) for one in values))

    top_p = [1.0, 1.0, -1.0, 0.5, np.inf, np.nan]
    told = sample(odd, top_p, [0, -7, 2**31 - 1, 0, 0, 0], [3, -2, 2**63 - 1, 5, 7, 11], caps)
    assert np.isfinite(told[1]).all() and (told[1] < 0).all()
    likeliest = sample([0.0], [1.0], [0], [3], [7])
    for row in (0, 5):
        assert told[0][row] == likeliest[0][0]
        np.testing.assert_allclose(told[1][row], likeliest[1][0], rtol=1e-5)


def test_what_does_not_fit_is_named():
    given = build("gpt")
    with pytest.raises(ValueError, match=r"needs one of Seq2Seq, .* got str"):
        answers_for("no model", given["tokenizer"])
    with pytest.raises(ValueError, match=r"max_new_tokens >= 1, got max_new_tokens=0"):
        answers_for(**given, max_new_tokens=0)
    with pytest.raises(ValueError, match="needs a tokenizer for this model, got None"):
        answers_for(given["model"], None)
    other = build("bert")
    with pytest.raises(ValueError, match=r"The model has \d+ tokens where its tokenizer has \d+"):
        answers_for(given["model"], other["tokenizer"])
    classifier = build("classifier")
    with pytest.raises(ValueError, match=r"needs 3 labels, one a class, got 2: \['a', 'b'\]"):
        answers_for(**{**classifier, "labels": ["a", "b"]})


def test_labels_that_are_numbers_are_answered_as_text():
    given = answers_for(**{**build("classifier"), "labels": np.array([4, 5, 6])})
    assert given.labels == ["4", "5", "6"]
    assert set(given.classify(texts(TEXTS))[0].numpy()) <= {b"4", b"5", b"6"}
    assert answers_for(**{**build("classifier"), "labels": [b"a", "b", 7]}).labels == ["a", "b", "7"]
