"""What a study measures, of small models that have learnt nothing."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_seq.text import train_tokenizer
from training import __main__, grammar, run, study
from training.run import Run

PLAN = study.Plan(
    depths=(0, 1),
    train_examples=7,
    test_examples=3,
    steps=1,
    tokens_per_batch=30,
    gradient_depth=1,
    lengths=(2, 5),
    rounds=2,
)
SMALL = {
    "seq2seq": {"hidden_dim": 11, "embedding_dim": 7},
    "attention": {"hidden_dim": 5, "embedding_dim": 7},
    "transformer": {"num_layers": 1, "num_heads": 2, "hidden_dim": 6, "intermediate_dim": 7, "dropout": 0.0},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    files = study.write_corpus(folder, PLAN)
    pairs = grammar.sentence_pairs("test", 40 * PLAN.test_examples, 0, depth=PLAN.gradient_depth)
    source, target = (train_tokenizer(list(lines), "word", 2000) for lines in zip(*pairs))
    keras.utils.set_random_seed(1)

    def made(name):
        recipe = study.recipe_of(name, PLAN, files).replace(model=SMALL[name], max_new_tokens=5)
        return Run(folder, recipe, run.build_model(recipe, source, target, None), source, target, None)

    return {name: made(name) for name in study.MODELS}


@pytest.fixture(scope="module")
def results(runs):
    return study.measure(runs, PLAN)


def test_the_corpus_has_as_many_sentences_of_every_depth_and_no_test_sentence_in_training(tmp_path):
    files = study.write_corpus(tmp_path, PLAN)
    lines = {split: Path(path).read_text("utf-8").splitlines() for split, path in files.items()}
    depths = [line.split("\t")[0] for line in lines["train"]]
    assert len(depths) == 2 * PLAN.train_examples
    assert all(grammar.log_probability(one, depth=0) > -np.inf for one in depths[: PLAN.train_examples])
    assert all(grammar.log_probability(one, depth=1) > -np.inf for one in depths[PLAN.train_examples :])
    assert not {*lines["train"]} & {*lines["test"]} and {*lines} == {"train", "validation", "test"}


def test_the_three_models_have_about_as_many_parameters():
    words = [len(grammar.english_words()) + 5, len(grammar.french_words()) + 5]
    counts = []
    for name, arguments in study.MODELS.items():
        further = {"max_sequence_length": 56} if name == "transformer" else {}
        counts.append(run.model_class(name)(*words, **arguments, **further).count_params())
    assert max(counts) < 1.05 * min(counts), counts


@pytest.mark.parametrize("name", study.MODELS)
def test_a_positions_gradient_is_that_of_its_words_row_in_the_embedding_table(name, runs):
    """Of a sentence whose words all differ, taken in another way."""
    one = runs[name]
    pairs = grammar.sentence_pairs("train", 50, 3, depth=0)
    pair = next(pair for pair in pairs if len({*pair[0].split(" ")}) == pair[0].count(" ") + 1 >= 4)
    found = study.gradients(one.model, one, [pair])
    source = [*one.tokenizer.tokenize([pair[0]]).numpy()[0], one.tokenizer.end_token_id]
    target = [*one.target_tokenizer.tokenize([pair[1]]).numpy()[0]]
    inputs = {
        "encoder_token_ids": tf.constant([source]),
        "encoder_padding_mask": tf.ones((1, len(source)), tf.bool),
        "decoder_token_ids": tf.constant([[one.target_tokenizer.start_token_id, *target[:-1]]]),
        "decoder_padding_mask": tf.ones((1, len(target)), tf.bool),
    }
    table = one.model.source_embedding.trainable_variables[0]
    with tf.GradientTape() as tape:
        loss = -tf.nn.log_softmax(one.model(inputs)[0, -1])[target[-1]]
    rows = tf.convert_to_tensor(tape.gradient(loss, table.value))
    # Unknown words share a row: the tokenizer has seen few sentences.
    known = [i for i, token in enumerate(source) if source.count(token) == 1]
    assert len(known) >= 2
    scale = 6**-0.5 if name == "transformer" else 1.0  # the Transformer's vectors are the table's times sqrt(d)
    expected = np.linalg.norm(rows.numpy()[source], axis=-1) * scale
    np.testing.assert_allclose(np.array(found)[known], expected[known], rtol=1e-4)


def test_the_gradients_of_many_sentences_are_the_means_of_each_alone(runs):
    one = runs["attention"]
    pairs = study.same_length(grammar.sentence_pairs("test", 60, 0, depth=1))[:3]
    alone = [study.gradients(one.model, one, [pair]) for pair in pairs]
    np.testing.assert_allclose(study.gradients(one.model, one, pairs), np.mean(alone, axis=0), rtol=1e-4)


def test_a_true_translator_is_exact_and_one_that_errs_in_a_word_is_not(runs, monkeypatch):
    class Translator:
        def __init__(self, one):
            self.right = one is runs["transformer"]

        def translate(self, texts):
            return [grammar.translate(text) + ("" if self.right else " non") for text in texts]

    monkeypatch.setattr(study, "InProcess", Translator)
    rows = study.exact(runs, PLAN)
    assert [(row["depth"], row["transformer"], row["seq2seq"]) for row in rows] == [(0, 1.0, 0.0), (1, 1.0, 0.0)]
    assert rows[0]["words"] < rows[1]["words"]


def test_all_is_measured_at_every_length_and_the_transformer_is_the_measure_of_time(results):
    for part in ("encoder", "whole"):
        timed = results["seconds_per_step"][part]
        assert [one["length"] for one in timed["seq2seq"]] == [2, 5]
        assert [one["ratio"] for one in timed["transformer"]] == [1.0, 1.0]
        assert all(one["seconds"] > 0 for found in timed.values() for one in found)


def test_attention_is_shown_over_the_words_of_the_sentence_and_sums_to_one(results):
    assert {*results["attention"]} == {"attention", "transformer"}
    for one in results["attention"].values():
        weights = np.array(one["weights"])
        assert weights.shape == (len(one["target"]), len(one["source"]))
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


def test_table_and_pictures_are_made_of_what_results_json_holds(results, tmp_path):
    again = json.loads(json.dumps(results))
    table = study.table(again)
    assert table == study.table(results) and len({line.count("|") for line in table.splitlines()}) == 1
    assert f"{results['exact'][1]['words']:.1f} words" in table
    paths = study.study_plots.draw(again, tmp_path)
    assert [path.name for path in paths] == [
        f"study_{name}.png" for name in ("exact", "gradients", "time", "attention")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


@pytest.mark.parametrize(("words", "plan"), [([], study.FULL), (["--quick"], study.QUICK)])
def test_the_command_studies_and_prints_the_table(words, plan, results, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(study, "study", lambda *arguments: asked.append(arguments) or results)
    assert __main__.main(["study", "--out", str(tmp_path), *words]) == 0
    assert asked == [(str(tmp_path), plan)]
    assert capsys.readouterr().out == study.table(results)
