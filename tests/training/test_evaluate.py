"""The measures are those computed by hand, in process and through an endpoint."""

import argparse
import json
import math
import types

import keras
import numpy as np
import pytest
import sacrebleu
import tensorflow as tf

from keras_seq import BeamSampler
from training import evaluate, grammar, in_process, measures, task_measures
from training.corpora import CORPORA
from training.in_process import InProcess
from training.recipes import RECIPES
from training.run import build_model, load_run


def examples(one, split="test"):
    return CORPORA[one.recipe.corpus].read(split, one.recipe.evaluate_examples, one.recipe.seed + 1)


@pytest.fixture
def copy(tiny_run, tmp_path):
    """A function: architecture -> its tiny run, with a folder of its own to write metrics into."""

    def copy(architecture, **changes):
        one = tiny_run(architecture)
        (tmp_path / "metrics.json").write_text((one.folder / "metrics.json").read_text())
        return one._replace(folder=tmp_path, recipe=one.recipe.replace(**changes))

    return copy


class Told:
    """Answers given beforehand, by the text that is asked."""

    def __init__(self, answers):
        self.answers = answers

    def translate(self, texts):
        return [self.answers[text] for text in texts]

    classify = translate


# ---- Translation ---------------------------------------------------------------------------------------------------


def test_exact_match_and_bleu_are_those_by_hand(copy):
    one = copy("transformer")
    pairs = examples(one)
    # Every third answer loses its last word.
    given = [target.rsplit(" ", 1)[0] if i % 3 == 0 else target for i, (_, target) in enumerate(pairs)]
    values = evaluate.evaluate_run(one, served=Told({source: answer for (source, _), answer in zip(pairs, given)}))
    right = [answer == target for answer, (_, target) in zip(given, pairs)]
    assert values["exact"] == pytest.approx(sum(right) / 23)
    assert values["bleu"] == round(sacrebleu.corpus_bleu(given, [[target for _, target in pairs]]).score, 2)
    lengths = [len(source.split()) for source, _ in pairs]
    for key, chosen in [("exact_up_to_7_words", lambda n: n <= 7), ("exact_from_12_words", lambda n: n >= 12)]:
        some = [hit for hit, length in zip(right, lengths) if chosen(length)]
        assert values.get(key) == (pytest.approx(sum(some) / len(some)) if some else None)
    assert values["words_per_sentence"] == pytest.approx(sum(lengths) / 23)
    assert values["examples"] == 23
    assert "tok:13a" in values["bleu_signature"]
    assert values["chrf"] == measures.translation(given, [target for _, target in pairs])["chrf"]


def test_measures_of_lengths_that_do_not_occur_are_left_out():
    run = types.SimpleNamespace(recipe=RECIPES["demo-seq2seq"])
    values = task_measures.MEASURED["pairs"](run, Told({"one two": "x y"}), [("one two", "x y")], "test")
    assert values["exact_up_to_7_words"] == 1
    assert "exact_from_12_words" not in values


@pytest.mark.parametrize("architecture", ["seq2seq", "attention", "transformer"])
def test_translations_in_a_batch_are_those_of_one_sentence_at_a_time(architecture, copy, monkeypatch):
    # With fresh weights: after 22 steps some models end every sentence at once.
    one = copy(architecture)
    keras.utils.set_random_seed(3)
    one = one._replace(model=build_model(one.recipe, one.tokenizer, one.target_tokenizer, None))
    sources = [source for source, _ in examples(one)][:11]
    together = InProcess(one).translate(sources)
    assert any(together)
    monkeypatch.setattr(in_process, "BATCH", 3)
    assert InProcess(one).translate(sources) == together
    tokenizer, target = one.tokenizer, one.target_tokenizer
    for source, translation in list(zip(sources, together))[:3]:
        ids = tokenizer.tokenize(tf.constant([source])).to_list()[0] + [tokenizer.end_token_id]
        inputs = {"encoder_token_ids": np.array([ids], "int32"), "encoder_padding_mask": np.ones((1, len(ids)), bool)}
        written = one.model.generate(inputs, one.recipe.max_new_tokens, target.end_token_id, target.start_token_id)
        assert target.detokenize(tf.constant(written["token_ids"])).numpy()[0].decode() == translation


def test_texts_of_about_one_length_are_asked_together():
    texts, others, asked = ["aa", "bbbbbbb", "c", "ddddd", "eee"], ["", "", "cccc", "", "e"], []
    told = in_process.answered(lambda *rows: asked.append(rows) or list(zip(*rows)), texts, others, size=2)
    assert asked == [(["aa", "eee"], ["", "e"]), (["c", "ddddd"], ["cccc", ""]), (["bbbbbbb"], [""])]
    assert told == list(zip(texts, others))


def test_a_recurrent_model_reads_a_source_as_far_as_the_served_one_though_it_was_trained_on_shorter_ones(copy):
    from serving.answers import answers_for

    one = copy("seq2seq", max_sequence_length=5)
    keras.utils.set_random_seed(3)
    one = one._replace(model=build_model(one.recipe, one.tokenizer, one.target_tokenizer, None))
    texts = [source for source, _ in examples(one)][:11]
    served = answers_for(one.model, one.tokenizer, one.target_tokenizer, max_new_tokens=one.recipe.max_new_tokens)
    told = [text.decode() for text in served.translate(tf.constant(texts))[0].numpy()]
    assert InProcess(one).translate(texts) == told
    assert max(len(one.tokenizer.tokenize(text)) for text in texts) > 5


def test_with_beams_a_translation_is_the_best_of_them_and_is_kept_beside_the_greedy_measures(copy):
    one = copy("transformer", evaluate_examples=5)
    keras.utils.set_random_seed(3)
    one = one._replace(model=build_model(one.recipe, one.tokenizer, one.target_tokenizer, None))
    beams, target, told = BeamSampler(3, length_penalty=0.7), one.target_tokenizer, []
    for source, _ in examples(one):
        ids = one.tokenizer.tokenize(tf.constant([source])).to_list()[0] + [one.tokenizer.end_token_id]
        inputs = {"encoder_token_ids": np.array([ids], "int32"), "encoder_padding_mask": np.ones((1, len(ids)), bool)}
        ends = target.end_token_id, target.start_token_id
        written = one.model.generate(inputs, one.recipe.max_new_tokens, *ends, beams)["token_ids"][:, 0]
        told.append(target.detokenize(tf.constant(written)).numpy()[0].decode())
    assert InProcess(one, beams).translate([source for source, _ in examples(one)]) == told
    values = evaluate.evaluate_run(one, beams=beams)
    assert (values["num_beams"], values["length_penalty"]) == (3, 0.7)
    assert values["chrf"] == measures.translation(told, [target for _, target in examples(one)])["chrf"]
    kept = json.loads((one.folder / "metrics.json").read_text())
    assert kept["test_beam"] == values and kept.get("test") != values


def test_beams_of_what_does_not_translate_are_refused(copy):
    with pytest.raises(ValueError, match="Beams need a translator, got architecture='gpt'"):
        evaluate.evaluate_run(copy("gpt"), beams=BeamSampler(3))


def test_as_many_beams_as_the_command_line_says():
    def asked(count):
        return evaluate.beams_of(argparse.Namespace(num_beams=count, length_penalty=0.7))

    assert (asked(None), asked(3)) == (None, BeamSampler(3, 0.7))
    with pytest.raises(ValueError, match="--num_beams needs 1 or more, got 0"):
        asked(0)


# ---- Language models -----------------------------------------------------------------------------------------------


def log_probability(one, line):
    """Of a line and its end, from a forward pass of its own: summed log-probability in nats, number of tokens."""
    tokenizer = one.tokenizer
    ids = tokenizer.tokenize(tf.constant([line])).to_list()[0]
    fed, asked = [tokenizer.start_token_id, *ids], [*ids, tokenizer.end_token_id]
    inputs = {"token_ids": np.array([fed], "int32"), "padding_mask": np.ones((1, len(fed)), bool)}
    logits = np.asarray(one.model(inputs, training=False), "float64")[0]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_p[np.arange(len(asked)), asked].sum(), len(asked)


def test_nats_per_word_are_those_of_a_forward_pass_of_each_line(copy):
    one = copy("gpt")
    totals = [log_probability(one, line) for line in examples(one)]
    words = sum(len(line.split()) + 1 for line in examples(one))
    values = evaluate.evaluate_run(one)
    assert values["nats_per_word"] == pytest.approx(-sum(total for total, _ in totals) / words, rel=1e-5)
    perplexity = math.exp(-sum(total for total, _ in totals) / sum(count for _, count in totals))
    assert values["perplexity"] == pytest.approx(perplexity, rel=1e-5)


def test_a_line_longer_than_the_model_counts_as_far_as_it_is_read(copy):
    one = copy("gpt", max_sequence_length=5)
    lines = examples(one)
    ids = one.tokenizer.tokenize(tf.constant(lines)).to_list()
    assert 0 < sum(len(row) > 4 for row in ids) < 23 or min(map(len, ids)) > 4
    bytes_read = sum(
        len(one.tokenizer.detokenize([row[:4]]).numpy()[0]) if len(row) > 4 else len(line.encode())
        for row, line in zip(ids, lines)
    )
    total, count = InProcess(one).score(lines)
    assert count == sum(min(len(row), 4) + 1 for row in ids)
    assert evaluate.evaluate_run(one)["perplexity_per_byte"] == pytest.approx(math.exp(-total / (bytes_read + 23)))


def test_running_text_is_measured_per_byte_of_what_its_windows_ask_for(copy, monkeypatch):
    text = " ".join(examples(copy("gpt")))
    monkeypatch.setitem(CORPORA, "tinyshakespeare", CORPORA["tinyshakespeare"]._replace(read=lambda *_: text))
    one = copy("gpt", corpus="tinyshakespeare", max_sequence_length=11)
    ids = one.tokenizer.tokenize(tf.constant([text])).to_list()[0]
    windows = np.array([ids[i : i + 12] for i in range(0, len(ids) - 11, 11)], "int32")
    logits = one.model(
        {"token_ids": windows[:, :-1], "padding_mask": np.ones((len(windows), 11), bool)}, training=False
    )
    nats = float(np.sum(keras.losses.sparse_categorical_crossentropy(windows[:, 1:], logits, from_logits=True)))
    asked = one.tokenizer.detokenize([windows[:, 1:].ravel().tolist()]).numpy()[0]
    values = evaluate.evaluate_run(one)
    assert values["tokens"] == windows[:, 1:].size and asked.decode() in text
    assert values["perplexity_per_byte"] == pytest.approx(math.exp(nats / len(asked)), rel=1e-4)
    assert values["perplexity_per_word"] == pytest.approx(math.exp(nats / len(asked.split())), rel=1e-4)


def test_words_and_bytes_are_the_texts_own_where_a_tokenizer_writes_others_back(copy, monkeypatch):
    one = copy("gpt", max_sequence_length=7)
    tokenizer = copy("bert").tokenizer
    one = one._replace(tokenizer=tokenizer, model=build_model(one.recipe, tokenizer, None, None))
    line = "The  cook, (whom)   SHE sees  ... "
    ends = tokenizer.tokenize_with_offsets([line])[2].to_list()[0]
    assert task_measures.as_read(one, [line, "a"]) == [line.encode()[: ends[5]].decode(), "a"]
    text = line * 37
    monkeypatch.setitem(CORPORA, "tinyshakespeare", CORPORA["tinyshakespeare"]._replace(read=lambda *_: text))
    values = evaluate.evaluate_run(one._replace(recipe=one.recipe.replace(corpus="tinyshakespeare")))
    ends = tokenizer.tokenize_with_offsets([text])[2].to_list()[0]
    size = len(text.encode()[ends[0] : ends[values["tokens"]]])
    assert values["bits_per_byte"] == pytest.approx(values["loss"] * values["tokens"] / size / math.log(2), rel=1e-6)


def test_the_grammars_floors_stand_beside_the_models_nats(copy):
    one = copy("gpt")
    values = evaluate.evaluate_run(one)
    words = sum(len(line.split()) + 1 for line in examples(one))
    truth = -sum(map(grammar.log_probability, examples(one))) / words
    assert values["nats_per_word_of_the_grammar"] == pytest.approx(truth)
    assert values["entropy_per_word"] == grammar.entropy_per_word()
    assert values["nats_per_word"] > truth


def test_nats_do_not_depend_on_the_size_of_batches(copy):
    small, large = (evaluate.evaluate_run(copy("gpt", tokens_per_batch=places)) for places in (53, 1009))
    assert small == pytest.approx(large, rel=1e-5)


# ---- Classes and sentence pairs ------------------------------------------------------------------------------------


def test_accuracy_is_the_share_of_right_labels_however_they_are_batched(copy, monkeypatch):
    one = copy("bert-classify")
    tokenizer, labelled = one.tokenizer, examples(one)
    hits = []
    for text, label in labelled:
        ids = tokenizer.tokenize(tf.constant([text])).to_list()[0]
        ids = np.array([[tokenizer.start_token_id, *ids, tokenizer.end_token_id]], "int32")
        logits = one.model({"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": ids >= 0}, training=False)
        hits.append(one.labels[int(np.argmax(logits))] == label)
    values = evaluate.evaluate_run(one)
    assert (values["accuracy"], values["examples"]) == (pytest.approx(sum(hits) / 23), 23)
    monkeypatch.setattr(in_process, "BATCH", 5)
    assert evaluate.evaluate_run(one)["accuracy"] == pytest.approx(sum(hits) / 23)


def test_classes_stand_beside_the_majority_baseline(copy):
    one = copy("bert-classify")
    truths = [label for _, label in examples(one)]
    values = evaluate.evaluate_run(one, served=Told({text: truths[0] for text, _ in examples(one)}))
    share = max(map(truths.count, truths)) / 23
    assert values["accuracy"] == pytest.approx(truths.count(truths[0]) / 23)
    assert values["accuracy_of_the_majority"] == pytest.approx(share)
    assert values["macro_f1_of_the_majority"] == pytest.approx(2 * share / (1 + share) / len(set(truths)))
    assert values["mcc"] == 0


def test_the_probability_that_a_sentence_follows_does_not_depend_on_its_batch(copy, monkeypatch):
    answers = InProcess(copy("bert"))
    pairs = grammar.sentence_couples("test", 11, 3)
    firsts, seconds = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    together = answers.follows(firsts, seconds)
    assert all(0 < probability < 1 for probability in together)
    monkeypatch.setattr(in_process, "BATCH", 3)
    np.testing.assert_allclose(answers.follows(firsts, seconds), together, atol=1e-5)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_pre_trained_bert_is_measured_on_the_split_beside_the_best_possible(split, copy, monkeypatch):
    asked = []
    for name in ("sentence_couples", "masked_couples"):
        real = getattr(grammar, name)
        monkeypatch.setattr(
            grammar, name, lambda split, *rest, real=real, **named: asked.append(split) or real(split, 7, 3)
        )
    monkeypatch.setattr(grammar, "next_sentence_best_accuracy", lambda count, seed, split: asked.append(split) or 0.9)
    monkeypatch.setattr(grammar, "masked_best_accuracy", lambda count, seed, split: asked.append(split) or 0.5)
    values = evaluate.evaluate_run(copy("bert"), split)
    assert len(asked) >= 4 and set(asked) == {split}
    assert (values["next_sentence_accuracy_best"], values["masked_accuracy_best"]) == (0.9, 0.5)
    assert 0 <= values["masked_accuracy"] <= 1
    assert values["next_sentence_accuracy"] in [pytest.approx(n / 7) for n in range(8)]


def test_a_hidden_word_is_filled_with_a_word_for_each_gap(copy):
    one = copy("bert")
    filled = InProcess(one).fill(["i", None, "a", "student"], ["he", "is", None])
    assert len(filled) == 2
    assert all(one.tokenizer.token_to_id(word) is not None for word in filled)
    # A sentence is cut at half of what the model reads: what was hidden beyond it is not found, the rest is.
    long = ["a"] * one.model.backbone.max_sequence_length
    first, lost, second = InProcess(one).fill([None, *long, None], ["he", "is", None])
    assert lost == "" and "" not in (first, second)


# ---- The folder and the table --------------------------------------------------------------------------------------


def test_measures_in_process_are_kept_beside_the_older_ones_and_served_ones_are_not(copy):
    one = copy("bert-classify")
    before = json.loads((one.folder / "metrics.json").read_text())
    tested = evaluate.evaluate_run(one)
    validated = evaluate.evaluate_run(one, "validation")
    kept = {**before, "test": tested, "validation": validated}
    assert json.loads((one.folder / "metrics.json").read_text()) == kept
    evaluate.evaluate_run(one, served=Told(dict(examples(one))))
    assert json.loads((one.folder / "metrics.json").read_text()) == kept


def test_the_training_split_of_a_streamed_corpus_can_be_measured(copy, tmp_path):
    (tmp_path / "lines").write_text("the dog sees a cat\n" * 11)
    files = {split: str(tmp_path / "lines") for split in ("train", "validation", "test")}
    one = copy("gpt", corpus="text-lines", files=files, stream=True, evaluate_examples=7)
    assert evaluate.evaluate_run(one, "train") == evaluate.evaluate_run(one, "test")


def test_a_loaded_folder_measures_as_the_run_in_memory(tiny_run):
    one = tiny_run("bert-classify")
    assert evaluate.evaluate_run(load_run(one.folder), "validation") == evaluate.evaluate_run(one, "validation")


def test_the_table_shows_all_of_every_value(capsys):
    evaluate.show({"exact": 0.25, "examples": 23, "bleu_signature": "~" * 97})
    out = capsys.readouterr().out
    assert "0.2500" in out and "23" in out
    assert out.count("~") == 97


# ---- Endpoints -----------------------------------------------------------------------------------------------------


class FakeClient:
    """Stands for the client of a server; answers with what a signature gives."""

    def __init__(self, host, transport, **ports):
        self.opened, self.asked = (host, transport, ports), []

    def predict(self, model, inputs, signature):
        from serving.client import ServingError

        self.asked.append((model, signature, {name: len(values) for name, values in inputs.items()}))
        if model == "absent":
            raise ServingError("NOT_FOUND", "no such model", "server")
        texts = next(iter(inputs.values()))
        return {
            "translation": [text.upper() for text in texts],
            "translations": [[text.upper(), "worse"] for text in texts],
            "label": ["positive"] * len(texts),
            "log_probability": [-2.0 * len(text.split()) for text in texts],
            "num_tokens": [len(text.split()) for text in texts],
            "probability": [0.75] * len(texts),
        }


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr("serving.client.Client", FakeClient)
    return lambda name="tiny", transport="grpc", beams=None: evaluate.Endpoint("there", 8511, name, transport, beams)


def test_an_endpoint_asks_each_signature_of_the_contract_in_batches(endpoint):
    served = endpoint()
    texts = [f"a{i}" + " b" * (i % 3) for i in range(211)]
    assert served.translate(texts) == [text.upper() for text in texts]
    assert served.classify(texts) == ["positive"] * 211
    count = sum(len(text.split()) for text in texts)
    assert served.score(texts) == (-2.0 * count, count)
    assert served.follows(texts, texts) == [0.75] * 211
    sizes = {(signature, tuple(inputs)): [] for _, signature, inputs in served.client.asked}
    for model, signature, inputs in served.client.asked:
        assert model == "tiny"
        sizes[signature, tuple(inputs)].append(max(inputs.values()))
    text = ("text",)
    once = [100, 100, 11]
    assert sizes == {
        ("translate", text): once,
        ("classify", text): once,
        ("score", text): once,
        ("next_sentence", ("first", "second")): once,
    }


def test_an_endpoint_is_asked_for_the_best_of_as_many_beams_as_it_keeps(endpoint):
    served = endpoint(beams=BeamSampler(2, 0.7))
    texts = [f"a{i}" for i in range(103)]
    assert served.translate(texts) == [text.upper() for text in texts]
    sizes = [{"text": size, "length_penalty": size, "max_new_tokens": size} for size in (100, 3)]
    assert served.client.asked == [("tiny", "translate_beam", size) for size in sizes]
    with pytest.raises(ValueError, match="The endpoint keeps 2 beams, got num_beams=4"):
        endpoint(beams=BeamSampler(4)).translate(texts)


def test_an_endpoints_score_gives_the_same_measures_as_a_model_with_that_score(endpoint, copy):
    one = copy("gpt")
    values = evaluate.evaluate_run(one, served=endpoint())
    count = sum(len(line.split()) for line in examples(one))
    assert values["nats_per_word"] == pytest.approx(2 * count / (count + 23))
    assert values["perplexity"] == pytest.approx(math.e**2)


def test_a_bert_behind_an_endpoint_is_measured_by_its_sentence_pairs(endpoint, copy):
    values = evaluate.evaluate_run(copy("bert"), served=endpoint())
    assert values["next_sentence_accuracy"] == pytest.approx(0.5, abs=0.01)
    assert "masked_accuracy" not in values


def test_a_refusal_of_the_endpoint_is_a_value_error_that_says_why(endpoint):
    with pytest.raises(ValueError, match=r"absent/classify: NOT_FOUND \(server\): no such model"):
        endpoint("absent").classify(["x"])


def test_running_text_behind_an_endpoint_is_refused(endpoint, copy, monkeypatch):
    monkeypatch.setitem(CORPORA, "tinyshakespeare", CORPORA["tinyshakespeare"]._replace(read=lambda *_: "text"))
    with pytest.raises(ValueError, match="tinyshakespeare is one running text and is measured in process"):
        evaluate.evaluate_run(copy("gpt", corpus="tinyshakespeare"), served=endpoint())


@pytest.fixture(scope="module")
def really_served(tiny_run, free_port, tmp_path_factory):
    """gRPC and REST ports of an embedded server over a translator and a classifier, and their runs."""
    from serving.answers import answers_for
    from serving.export import _function
    from serving.model_server.model_config import ModelSettings
    from serving.model_server.server import ModelServer
    from serving.signatures import SIGNATURES

    folder, models, runs = tmp_path_factory.mktemp("served"), [], {}
    for architecture in ("transformer", "bert-classify"):
        one = tiny_run(architecture)
        keras.utils.set_random_seed(3)  # with fresh weights: after 22 steps every sentence may end at once
        one = one._replace(model=build_model(one.recipe, one.tokenizer, one.target_tokenizer, one.labels))
        runs[architecture] = one
        answers = answers_for(*one[2:], max_new_tokens=one.recipe.max_new_tokens)
        row = SIGNATURES[answers.kind]["serving_default"]
        function, module = _function(answers, row), tf.Module()
        module.kept = [variable.value for variable in one.model.variables]
        module.resources = [*one.tokenizer.resources, *(one.target_tokenizer or one.tokenizer).resources]
        signatures = {"serving_default": function, row.function: function}
        tf.saved_model.save(module, str(folder / architecture / "1"), signatures=signatures)
        models.append(ModelSettings(architecture, folder / architecture))
    ports = [free_port(), free_port()]
    server = ModelServer(models, host="127.0.0.1", port=ports[0], rest_api_port=ports[1])
    server.start()
    yield ports, runs
    server.stop()


@pytest.mark.parametrize("architecture", ["transformer", "bert-classify"])
def test_a_served_model_is_measured_as_the_one_in_process(architecture, really_served, copy):
    ports, runs = really_served
    one = copy(architecture)._replace(model=runs[architecture].model)
    values = evaluate.evaluate_run(one)
    options = {"run": f"runs/{architecture}", "host": "127.0.0.1"}
    texts = [example[0] for example in examples(one)]
    for given in (
        {"endpoint": f"127.0.0.1:{ports[0]}", "rest_api_port": None},
        {"endpoint": None, "rest_api_port": ports[1]},
    ):
        served = evaluate.endpoint(argparse.Namespace(**options, **given))
        with served.client:
            assert evaluate.evaluate_run(one, served=served) == values
            ask = "translate" if architecture == "transformer" else "classify"
            told = getattr(served, ask)(texts)
        assert told == getattr(InProcess(one), ask)(texts) and any(told)


@pytest.mark.parametrize(
    ("given", "name", "opened"),
    [
        ({"endpoint": "there:8511"}, "mine", ("there", "grpc", {"port": 8511})),
        ({"endpoint": "there:8511/other"}, "other", ("there", "grpc", {"port": 8511})),
        ({"port": 8511}, "mine", ("here", "grpc", {"port": 8511})),
        ({"rest_api_port": 8512}, "mine", ("here", "rest", {"rest_api_port": 8512})),
    ],
)
def test_options_name_the_endpoint(given, name, opened, endpoint):
    options = {"run": "runs/mine", "host": "here", "endpoint": None, "port": None, "rest_api_port": None, **given}
    served = evaluate.endpoint(argparse.Namespace(**options))
    assert (served.name, served.client.opened) == (name, opened)


@pytest.mark.parametrize("address", ["there", "there:", ":8511", "there:port/name"])
def test_an_endpoint_without_host_and_port_is_refused(address):
    options = argparse.Namespace(run="runs/mine", endpoint=address)
    with pytest.raises(ValueError, match=f"--endpoint needs HOST:PORT or HOST:PORT/NAME, got '{address}'"):
        evaluate.endpoint(options)


def test_a_language_model_is_asked_in_numpy_which_every_backend_takes():
    """JAX's predict takes no tensors of TensorFlow."""
    asked = []

    class Uniform:
        def predict_on_batch(self, inputs):
            asked.append({type(one) for one in inputs.values()})
            return np.zeros((*inputs["token_ids"].shape, 11), "float32")

    ids, weights = np.arange(10, dtype="int32").reshape(2, 5), np.float32([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    batches = tf.data.Dataset.from_tensors(({"token_ids": ids, "padding_mask": weights > 0}, ids, weights)).repeat(3)
    total, count = InProcess(types.SimpleNamespace(model=Uniform())).total(batches)
    assert (total, count) == (pytest.approx(-21 * math.log(11)), 21)
    assert asked == [{np.ndarray}] * 3
