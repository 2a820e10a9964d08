"""What stands behind the signatures of the fine-tuned BERTs, against a second way, and served as it is live."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_models import build

import keras_seq
from serving import export_model
from serving.answers import answers_for
from serving.check import check
from serving.client import Client
from serving.export import _function
from serving.model_server.model_config import ModelSettings
from serving.model_server.server import ModelServer
from serving.signatures import SIGNATURES

TAGS = ["O", "B-x", "I-x"]
KINDS = ("token_classifier", "span_finder", "choice_picker", "pair_classifier", "pair_scorer")
TEXTS = [
    "The old cook, sees  a red boat!",
    "",
    "i am a student that she likes",
    "does \u00e9t\u00e9 the cats-are not good ?",
]
LONG = "the old cook sees a red boat . does she like my black cat ? i am a student " * 4


@pytest.fixture(scope="module")
def answers():
    """The five kinds over one tiny BERT of 37 positions."""
    given = build("classifier")
    backbone, tokenizer = given["model"].backbone, given["tokenizer"]
    keras.utils.set_random_seed(5)
    models = {
        "token_classifier": (keras_seq.BERTTokenClassifier(backbone, 3), TAGS),
        "span_finder": (keras_seq.BERTSpanClassifier(backbone), None),
        "choice_picker": (keras_seq.BERTMultipleChoice(backbone), None),
        "pair_classifier": (given["model"], given["labels"]),
        "pair_scorer": (given["model"], ["0", "1", "2"]),
    }
    for model, _ in models.values():
        for variable in model.trainable_variables[-2:]:  # the heads: no ties
            variable.assign(keras.random.normal(variable.shape))
    return {kind: answers_for(model, tokenizer, labels=labels, kind=kind) for kind, (model, labels) in models.items()}


@pytest.fixture(scope="module")
def call(answers):
    """kind, signature's name, inputs -> its outputs, computed live."""

    def call(kind, key, *inputs):
        values = getattr(answers[kind], SIGNATURES[kind][key].function)(
            *(tf.constant(one, tf.string) for one in inputs)
        )
        return [value.numpy() for value in values]

    return call


@pytest.fixture(scope="module")
def functions(answers):
    """kind -> the function of its default signature, traced as for an export."""
    return {kind: _function(one, SIGNATURES[kind]["serving_default"]) for kind, one in answers.items()}


# ---- Tags ----------------------------------------------------------------------------------------------------------


def test_a_token_has_the_label_of_its_first_sub_word_and_its_bytes(answers, call):
    given = answers["token_classifier"]
    told = call("token_classifier", "tag", TEXTS)
    for text, *row in zip(TEXTS, *told):
        ids, starts, ends = (part.numpy() for part in given.tokenizer.tokenize_with_offsets(text))
        packed = np.array([[given.tokenizer.start_token_id, *ids, given.tokenizer.end_token_id]], "int32")
        inputs = {"token_ids": packed, "segment_ids": 0 * packed, "padding_mask": packed >= 0}
        best = np.argmax(given.model(inputs)[0], axis=-1)[1:-1]
        words = []
        for i, start, end, label in zip(ids, starts, ends, best):
            if given.tokenizer.id_to_token(int(i)).startswith("##") and words:
                words[-1][3] = int(end)
            else:
                words.append(["", TAGS[label], int(start), int(end)])
        for word in words:
            word[0] = text.encode()[word[2] : word[3]].decode()
        ours = [[token.decode(), label.decode(), int(start), int(end)] for token, label, start, end in zip(*row)]
        assert ours[: len(words)] == words
        assert all(rest == ["", "", 0, 0] for rest in ours[len(words) :])


def test_only_what_the_model_reads_of_a_text_is_told(answers, call):
    tokens = call("token_classifier", "tag", [LONG])[0]
    read = answers["token_classifier"].tokenizer.tokenize(LONG).numpy()[: 37 - 2]
    shown = [answers["token_classifier"].tokenizer.id_to_token(int(i)) for i in read]
    assert tokens.shape[1] == sum(not token.startswith("##") for token in shown) > 11


def test_a_word_that_the_model_reads_the_beginning_of_is_told_whole(answers, call):
    text, read = LONG.encode(), answers["token_classifier"].tokenizer.tokenize(LONG).numpy()
    halves = 0
    for size in range(1, 11):  # one of them ends within the word behind
        given = answers_for(answers["token_classifier"].model, answers["token_classifier"].tokenizer, labels=TAGS)
        given.limit = size + 2
        tokens, _, _, ends = (one.numpy()[0] for one in given.tag(tf.constant([LONG, "a cat"])))
        halves += answers["token_classifier"].tokenizer.id_to_token(int(read[size])).startswith("##")
        assert text[ends[len(tokens) - 1] :][:1] in (b" ", b""), (size, tokens)
        assert text.startswith(b" ".join(token for token in tokens if token))
    assert halves


# ---- Spans ---------------------------------------------------------------------------------------------------------


def spans_by_hand(given, question, context):
    """(score, first byte, next byte) of every span of every window, the best first; windows and spans by loops."""
    tokenizer, limit = given.tokenizer, 37
    asked = tokenizer.tokenize(question).numpy().tolist()[: (limit - 3) // 2]
    ids, starts, ends = (part.numpy().tolist() for part in tokenizer.tokenize_with_offsets(context))
    room, first, best = limit - 3 - len(asked), 0, {}
    while True:
        piece = ids[first : first + room]
        packed = np.array([[tokenizer.start_token_id, *asked, tokenizer.end_token_id, *piece, tokenizer.end_token_id]])
        places = np.arange(packed.shape[1])
        here = (places >= len(asked) + 2) & (places < packed.shape[1] - 1)
        inputs = {"token_ids": packed, "segment_ids": (places >= len(asked) + 2)[None].astype("int32")}
        logits = given.model({**inputs, "padding_mask": packed >= 0, "answer_mask": here[None]})
        start, end = (np.asarray(logits[side][0]) for side in ("start_logits", "end_logits"))
        for i in np.flatnonzero(here):
            for j in np.flatnonzero(here):
                if i <= j < i + 30:
                    span = (starts[first + i - len(asked) - 2], ends[first + j - len(asked) - 2])
                    score = float(start[i] + end[j] - start[0] - end[0])
                    best[span] = max(best.get(span, -np.inf), score)
        if first + room >= len(ids):
            return sorted(((score, *span) for span, score in best.items()), reverse=True)
        first += room // 2


@pytest.mark.parametrize(
    ("question", "context"),
    [("who sees a boat ?", TEXTS[0]), ("", LONG), ("what does she like ?", LONG), (LONG, LONG), ("who ?", "cook")],
)
def test_the_best_spans_are_those_of_all_windows_of_the_context(question, context, answers, call):
    given = answers["span_finder"]
    expected = spans_by_hand(given, question, context)[:5]
    # With companions, shorter and longer.
    told = call("span_finder", "spans", [question, "who ?", question], [context, LONG, TEXTS[0]])
    ours = [(float(score), int(start), int(end)) for _, start, end, score in zip(*(one[0] for one in told))]
    assert [row[0] for row in ours[: len(expected)]] == pytest.approx([row[0] for row in expected], abs=1e-3)
    assert [row[1:] for row in ours[: len(expected)]] == [row[1:] for row in expected]
    assert [text.decode() for text in told[0][0]] == [context.encode()[a:b].decode() for _, a, b in ours]
    assert all(row == (0, 0, 0) for row in ours[len(expected) :])


def test_an_answer_is_the_best_span_or_none_where_none_scores_more(call):
    questions, contexts = ["who ?"] * 4, [TEXTS[0], LONG, "", TEXTS[3]]
    spans = call("span_finder", "spans", questions, contexts)
    assert (spans[3][2] == 0).all() and (spans[0][2] == b"").all()
    answer = call("span_finder", "answer", questions, contexts)
    for row in range(4):
        best = [one[row, 0] for one in spans]
        none = best[3] <= 0
        assert [one[row] for one in answer] == ([b"", 0, 0, best[3]] if none else best)


def test_no_answer_is_told_where_the_first_position_scores_more(answers, call):
    kernel = answers["span_finder"].model.span_head.dense.kernel
    before = kernel.numpy()
    signs = []
    for factor in (1, -1):  # what was better than the null answer is worse
        kernel.assign(factor * before)
        score = call("span_finder", "answer", ["who ?"], ["i"])
        signs.append((score[3][0] > 0, score[0][0] != b""))
    kernel.assign(before)
    assert sorted(signs) == [(False, False), (True, True)]


# ---- Choices and pairs ---------------------------------------------------------------------------------------------


def packed_pair(tokenizer, first, second, half=17):
    one, two = (tokenizer.tokenize(text).numpy().tolist()[:half] for text in (first, second))
    ids = np.array([[tokenizer.start_token_id, *one, tokenizer.end_token_id, *two, tokenizer.end_token_id]], "int32")
    segments = (np.arange(ids.shape[1])[None] >= len(one) + 2).astype("int32")
    return {"token_ids": ids, "segment_ids": segments, "padding_mask": ids >= 0}


def test_choices_have_the_probabilities_of_their_scores_one_by_one(answers, call):
    given = answers["choice_picker"]
    prompts, choices = ["the cook sees", LONG], [["a boat", "i am", LONG], ["not good", "the cats", ""]]
    chosen, probabilities = call("choice_picker", "choose", prompts, choices)
    for prompt, row, choice, told in zip(prompts, choices, chosen, probabilities):
        scores = []
        for one in filter(None, row):
            inputs = packed_pair(given.tokenizer, prompt, one)
            scores.append(float(given.model({name: part[:, None] for name, part in inputs.items()})[0, 0]))
        expected = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(told[: len(scores)], expected, atol=1e-5)
        assert choice.decode() == row[int(np.argmax(scores))]
    assert probabilities[1, 2] == 0


def test_a_row_without_a_choice_is_answered_by_nothing(call):
    chosen, probabilities = call("choice_picker", "choose", ["the cook", "i"], [["", ""], ["am", ""]])
    assert chosen.tolist() == [b"", b"am"] and probabilities.tolist() == [[0, 0], [1, 0]]
    assert call("choice_picker", "choose", ["i"], np.zeros((1, 0), "S"))[0].tolist() == [b""]


def test_a_pair_is_read_as_two_segments_and_its_score_is_the_expected_number(answers, call):
    given = answers["pair_scorer"]
    firsts, seconds = ["the cook", LONG, ""], ["i am", "a boat", LONG]
    labels, probabilities = call("pair_classifier", "probabilities", firsts, seconds)
    for row, pair in enumerate(zip(firsts, seconds)):
        expected = tf.nn.softmax(given.model(packed_pair(given.tokenizer, *pair)))[0]
        np.testing.assert_allclose(probabilities[row], expected, atol=1e-5)
    told = call("pair_classifier", "classify", firsts, seconds)[0]
    assert (told == labels[range(3), probabilities.argmax(-1)]).all()
    similarity = call("pair_scorer", "similarity", firsts, seconds)[0]
    np.testing.assert_allclose(similarity, probabilities @ [0, 1, 2], atol=1e-5)


# ---- All -----------------------------------------------------------------------------------------------------------


def asked(kind, texts):
    second = texts[1:] + texts[:1]
    choices = [[one, two, ""] for one, two in zip(second, texts)]
    return [texts] if kind == "token_classifier" else [texts, choices if kind == "choice_picker" else second]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_companions_and_none_may_be_asked(kind, functions, call):
    row, inputs = SIGNATURES[kind]["serving_default"], asked(kind, [*TEXTS, LONG])
    together = call(kind, "serving_default", *inputs)
    for i in (1, 3):
        for all_rows, alone in zip(together, call(kind, "serving_default", *(one[i : i + 1] for one in inputs))):
            same(np.asarray(all_rows[i])[tuple(slice(size) for size in np.shape(alone[0]))], alone[0])
    none = {name: tf.zeros((0, 3) if name == "choices" else [0], tf.string) for name in row.inputs}
    assert all(len(one) == 0 for one in functions[kind](**none).values())


def same(expected, told):
    if np.asarray(expected).dtype.kind == "f":
        np.testing.assert_allclose(expected, told, atol=1e-4)
    else:
        assert np.asarray(expected).tolist() == np.asarray(told).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_content_never_raises(kind, call):
    hostile = [b"", b"\xff\xfe cook", b"\x00", "\U0001f600 \u202e \u0301".encode(), b"the cook " * 5000, b"x" * 3001]
    told = call(kind, SIGNATURES[kind]["serving_default"].function, *asked(kind, hostile))
    assert all(len(one) == len(hostile) for one in told)
    for one in told:
        if one.dtype == object and kind != "choice_picker":  # a choice comes back as it was
            [value.decode() for value in one.ravel()]


def test_what_does_not_fit_is_named(answers):
    given = answers["pair_classifier"]
    with pytest.raises(ValueError, match=r"BERTClassifier is exported as kind classifier or .* got kind='tagger'"):
        answers_for(given.model, given.tokenizer, labels=["a", "b", "c"], kind="tagger")
    with pytest.raises(ValueError, match=r"pair_scorer needs labels that are numbers, got \['a', 'b', 'c'\]"):
        answers_for(given.model, given.tokenizer, labels=["a", "b", "c"], kind="pair_scorer")
    with pytest.raises(ValueError, match="needs a tokenizer of word pieces or words, got 'bpe'"):
        type(answers["token_classifier"])(given.model, keras_seq.train_tokenizer(["ab cd"], "bpe", 300), TAGS)


# ---- Served --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(answers, functions, tmp_path_factory, free_port, frozen_heap):
    """A REST and a gRPC client of a server of the defaults of all: one SavedModel, whose signatures are the kinds."""
    folder = tmp_path_factory.mktemp("tasks") / "all"
    module = tf.Module()
    variables = {id(one): one.value for given in answers.values() for one in given.model.variables}
    module.variables_ = list(variables.values())
    module.resources = answers["span_finder"].tokenizer.resources
    signatures = {**functions, "serving_default": functions["token_classifier"]}
    tf.saved_model.save(module, str(folder / "1"), signatures=signatures)
    port, rest_api_port = free_port(), free_port()
    server = ModelServer([ModelSettings("all", folder)], host="127.0.0.1", port=port, rest_api_port=rest_api_port)
    server.start()
    with Client(port=port, transport="grpc") as grpc, Client(rest_api_port=rest_api_port) as rest:
        yield folder / "1", [rest, grpc]
    server.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_served_equals_live_over_rest_and_grpc(kind, served, call):
    row, inputs = SIGNATURES[kind]["serving_default"], asked(kind, TEXTS)
    live = call(kind, "serving_default", *inputs)
    for client in served[1]:
        told = client.predict("all", dict(zip(row.inputs, inputs)), kind)
        for name, expected in zip(row.outputs, live, strict=True):
            if expected.dtype == object:
                expected = np.vectorize(bytes.decode, otypes=[object])(expected)
            same(expected, np.asarray(told[name], expected.dtype))


def test_the_stock_server_runs_every_operation_of_them(served):
    contents = check(served[0])
    assert contents.problems == []
    assert contents.signatures["choice_picker"][0]["choices"].startswith("string (b, ")


def test_an_export_of_choices_is_probed_with_some_that_are_none(answers, tmp_path, monkeypatch):
    given, probed = answers["choice_picker"], {}
    # What a fresh process answers is compared in test_export.py; here, what it is asked.
    monkeypatch.setattr("serving.export._compare", lambda _, live: probed.update(live["serving_default"][0]))
    place = export_model(given.model, tmp_path / "exports" / "copa", given.tokenizer)
    manifest = json.loads((place / "assets.extra" / "keras_seq.json").read_text("utf-8"))
    assert manifest["signatures"]["serving_default"]["inputs"].keys() == {"prompt", "choices"}
    assert manifest["model"] == "BERTMultipleChoice"
    assert probed["prompt"].shape == (3,) and probed["choices"].shape == (3, 3)
    assert sum(choice == b"" for choice in probed["choices"].numpy().ravel()) == 3
