"""From a recipe to a run's folder, interrupted and resumed."""

import csv
import json
import math
import os
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from training import evaluate, pipelines, run
from training.checkpointing import token_means
from training.recipes import Recipe, RecipeError

ARCHITECTURES = ["seq2seq", "attention", "transformer", "bert", "bert-classify", "gpt"]
COMMON = {"recipe.json", "model.keras", "metrics.json", "history.csv", "tokenizer", "checkpoints"}


def a_batch(one):
    """The inputs of a batch of what the run was trained on."""
    from training.corpora import CORPORA

    examples = CORPORA[one.recipe.corpus].read("validation", 13, 5)
    return next(iter(run.dataset(one.recipe, examples, one, None)))[0]


def predictions(one, inputs):
    return tf.nest.flatten(tf.nest.map_structure(np.asarray, one.model(inputs, training=False)))


def history(folder):
    with open(folder / "history.csv") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


# ---- The folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_learns_and_leaves_exactly_the_contracts_files(architecture, tiny_run):
    folder, recipe = tiny_run(architecture).folder, tiny_run(architecture).recipe
    further = {"bert-classify": {"labels.txt"}, "gpt": set(), "bert": set()}.get(architecture, {"target_tokenizer"})
    further = further | ({"best.weights.h5"} if recipe.early_stopping else set())
    assert {path.name for path in folder.iterdir()} == COMMON | further
    first, last = history(folder)
    assert (first["epoch"], last["epoch"]) == (0, 1)
    assert (first["learning_rate"] > 0, last["learning_rate"]) == (True, 0)
    # Of the classifier 23 validation sentences say little after 22 steps; what it trains on must be learnt.
    assert last["loss"] < first["loss"]
    assert all(math.isfinite(value) for row in (first, last) for value in row.values())
    assert Recipe.from_dict(json.loads((folder / "recipe.json").read_text())) == recipe
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["parameters"] == tiny_run(architecture).model.count_params()
    assert metrics["seconds"] > 0
    # The seconds are rounded to a tenth, which is much of a run of two.
    assert metrics["tokens"] / metrics["tokens_per_second"] == pytest.approx(metrics["seconds"], abs=0.06)
    # The last epoch is the shorter one; nothing of a checkpoint but what was asked for is left.
    steps = ["step-20", "step-22"] if recipe.average_checkpoints == 2 else ["step-22"]
    assert (metrics["steps"], sorted(os.listdir(folder / "checkpoints"))) == (22, steps)


@pytest.mark.parametrize("architecture", ["seq2seq", "attention", "transformer", "bert", "gpt"])
def test_a_model_from_nothing_also_gets_better_on_held_out_text(architecture, tiny_run):
    first, last = history(tiny_run(architecture).folder)
    assert last["val_loss"] < first["val_loss"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_loaded_run_predicts_as_the_fitted_one(architecture, tiny_run):
    fitted = tiny_run(architecture)
    loaded = run.load_run(fitted.folder)
    inputs = a_batch(fitted)
    for one, other in zip(predictions(fitted, inputs), predictions(loaded, inputs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert loaded.recipe == fitted.recipe
    assert loaded.labels == fitted.labels
    assert loaded.tokenizer.fingerprint == fitted.tokenizer.fingerprint
    assert (loaded.target_tokenizer is None) == (fitted.target_tokenizer is None)


def test_a_saved_model_is_the_librarys_alone(tiny_run):
    config = zipfile.ZipFile(tiny_run("gpt").folder / "model.keras").read("config.json")
    assert b"keras_seq" in config and b"training" not in config and b"WarmUp" not in config


def test_embeddings_are_shared_over_one_vocabulary_of_both_languages(conftest, tmp_path):
    recipe = conftest.tiny_recipe("transformer", vocabulary_size=2003, steps=1, steps_per_epoch=1, warmup_steps=1)
    recipe = recipe.replace(model={**recipe.model, "share_embeddings": True})
    one = run.load_run(run.fit(recipe, tmp_path / "shared", progress=False).folder)
    assert one.tokenizer.fingerprint == one.target_tokenizer.fingerprint
    pairs = run.corpus_of(recipe).read("train", recipe.train_examples, recipe.seed)
    ids = one.tokenizer.tokenize([line for pair in pairs for line in pair]).flat_values.numpy()
    assert one.tokenizer.unknown_token_id not in ids and max(ids) == one.model.source_vocabulary_size - 1
    assert one.model.target_embedding is one.model.source_embedding


def test_labels_are_sorted_one_a_line(tiny_run):
    one = tiny_run("bert-classify")
    assert (one.folder / "labels.txt").read_bytes() == b"negative\npositive\n"
    assert one.labels == ["negative", "positive"]


def test_a_folder_that_is_no_finished_run_is_an_error(tmp_path, tiny_run):
    with pytest.raises(FileNotFoundError, match=r"There is no run folder .*absent"):
        run.load_run(tmp_path / "absent")
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(FileNotFoundError, match="A finished run has tokenizer, which is not in"):
        run.load_run(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "model.keras").write_text("nothing")
    with pytest.raises(ValueError, match=r"recipe\.json is not JSON"):
        run.load_run(tmp_path)


# ---- Steps ---------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """What interrupts a run."""


def stopping_at(step, folder, copy):
    """A Progress that copies the run's folder and raises in the middle of an epoch."""

    class Stopping(run.Progress):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self.done == step:
                shutil.copytree(folder, copy)
                raise Stop

    return Stopping


def fit(recipe, folder, resume=False):
    return run.fit(recipe, folder, resume, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "stop", "last", "line"),
    [("seq2seq", 19, "step-16", "1,0,0\n"), ("seq2seq", 7, "step-4", ""), ("gpt", 3, None, "0\n")],
)
def test_an_interrupted_run_resumes_to_the_weights_of_an_uninterrupted_one(
    architecture, stop, last, line, tiny_run, tmp_path, monkeypatch
):
    """Amid an epoch, accumulated gradients, a moving average and early stopping; and before the first checkpoint."""
    whole, folder = tiny_run(architecture), tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(run, "Progress", stopping_at(stop, folder, tmp_path / "killed"))
        with pytest.raises(Stop):
            fit(whole.recipe, folder)
    folder = tmp_path / "killed"  # what was on the disk at that moment: all that a killed process leaves
    kept = sorted(path.name for path in (folder / "checkpoints").glob("*"))
    assert kept == ([last] if last else [])
    with pytest.raises(FileNotFoundError, match=r"A finished run has model\.keras"):
        run.load_run(folder)
    # As if it had been stopped between the line of an epoch and its checkpoint, or the disk had been full for the line.
    with open(folder / "history.csv", "a") as file:
        file.write(line)
    resumed = fit(whole.recipe, folder, resume=True)
    for one, other in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for one, other in zip(history(whole.folder), history(folder), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    one, other = (json.loads((path / "metrics.json").read_text()) for path in (whole.folder, folder))
    assert [one[name] for name in ("steps", "tokens")] == [other[name] for name in ("steps", "tokens")]


def test_resuming_a_finished_run_changes_nothing(tiny_run):
    one = tiny_run("gpt")
    before = {path: path.read_bytes() for path in sorted(one.folder.rglob("*")) if path.is_file()}
    again = fit(one.recipe, one.folder, resume=True)
    assert {path: path.read_bytes() for path in sorted(one.folder.rglob("*")) if path.is_file()} == before
    for first, second in zip(one.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_second_fit_into_a_run_is_refused_and_so_is_resuming_with_another_recipe(tiny_run):
    one = tiny_run("gpt")
    with pytest.raises(FileExistsError, match="holds a run already: choose another --out, remove it, or give --resume"):
        fit(one.recipe, one.folder)
    with pytest.raises(RecipeError, match=r"these keys differ: \['seed', 'steps'\]"):
        fit(one.recipe.replace(steps=7, seed=3), one.folder, resume=True)


# ---- Starting from another run -------------------------------------------------------------------------------------


def test_a_classifier_starts_with_the_tokenizer_and_the_weights_of_its_bert(tiny_run):
    bert, classifier = tiny_run("bert"), tiny_run("bert-classify")
    assert classifier.tokenizer.fingerprint == bert.tokenizer.fingerprint
    fresh = run.build_model(classifier.recipe, classifier.tokenizer, None, classifier.labels)
    for one, other in zip(bert.model.backbone.get_weights(), fresh.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for architecture, corpus in (("bert-tokens", "wnut17"), ("bert-choices", "copa"), ("bert-similarity", "korsts")):
        recipe = classifier.recipe.replace(architecture=architecture, corpus=corpus)
        head = run.build_model(recipe, classifier.tokenizer, None, ["0", "1"])
        for one, other in zip(bert.model.backbone.get_weights(), head.backbone.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    # And the whole model was then trained, not the head alone.
    table, trained = (one.backbone.token_embedding.get_weights()[0] for one in (fresh, classifier.model))
    assert np.abs(table - trained).max() > 1e-3


def test_another_run_of_the_same_architecture_goes_on_from_the_weights_there(tiny_run):
    one = tiny_run("gpt")
    fresh = run.build_model(one.recipe.replace(start_from=str(one.folder)), one.tokenizer, None, None)
    for first, second in zip(one.model.get_weights(), fresh.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("architecture", ["gpt", "bert", "bert-classify"])
def test_a_run_computes_in_the_dtype_of_its_recipe_wherever_it_starts_from(architecture, tiny_run):
    one = tiny_run("bert" if architecture == "bert-classify" else architecture)
    recipe = tiny_run(architecture).recipe.replace(start_from=str(one.folder), dtype="mixed_bfloat16")
    fresh = run.build_model(recipe, one.tokenizer, None, ["0", "1"])
    models = [model.backbone if architecture == "bert-classify" else model for model in (one.model, fresh)]
    for first, second in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(first, second)
    inner = getattr(fresh, "backbone", fresh) if architecture.startswith("bert") else fresh
    assert {fresh.dtype_policy.name, inner.blocks[0].dtype_policy.name} == {"mixed_bfloat16"}


def test_what_cannot_be_started_from_is_an_error_and_leaves_no_folder(tiny_run, tmp_path):
    classifier, gpt = tiny_run("bert-classify"), tiny_run("gpt")
    bert = tiny_run("bert").folder
    for changes, message in [
        ({"start_from": str(tmp_path / "absent")}, "The recipe starts from .*absent, which is not a finished run"),
        (
            {"start_from": str(gpt.folder)},
            r"bert-classify starts from a run of \('bert', 'bert-classify'\), got .* gpt",
        ),
        ({"start_from": str(bert), "max_sequence_length": 53}, "needs max_sequence_length <= 47, the positions of"),
        (
            {"start_from": str(bert), "model": {"num_layers": 1, "dropout": 0.3}},
            r"takes the model of .* that it starts from: \{'dropout': 0.1\}, got model=\{'dropout': 0.3\}",
        ),
    ]:
        with pytest.raises((RecipeError, FileNotFoundError), match=message):
            fit(classifier.recipe.replace(**changes), tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("architecture", "model", "message"),
    [
        ("gpt", {"num_heads": 3}, "3 heads .* got width=26"),
        ("gpt", {"hidden_dim": None}, "None"),
        ("seq2seq", {"cell": "gruu"}, "cell"),
        ("attention", {"score": "additive"}, "score"),
        ("transformer", {"num_layers": "two"}, "num_layers"),
    ],
)
def test_a_model_that_cannot_be_built_is_a_value_error_that_names_what_was_given(
    architecture, model, message, conftest
):
    recipe = conftest.tiny_recipe(architecture)
    recipe = recipe.replace(**{f"model.{name}": value for name, value in model.items()})

    class Tokenizer:
        vocabulary_size = 31

    with pytest.raises(RecipeError, match=rf"The recipe's model=(?=.*{message}).* does not fit "):
        run.build_model(recipe, Tokenizer, Tokenizer, None)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("architecture", ["bert-classify", "bert-tokens", "bert-choices", "bert-pairs", "gpt-classify"])
def test_a_head_drops_out_what_its_recipe_says(architecture, dropout, conftest):
    corpus = {"tokens": "conll", "choices": "jsonl-choices", "pairs": "tsv-couples"}.get(architecture[5:])
    files = dict.fromkeys(("train", "validation", "test"), "a") if corpus else {}
    model = {**conftest.BLOCKS, "dropout": dropout}
    recipe = Recipe(architecture, corpus or "grammar-labelled", files=files, model=model)

    class Tokenizer:
        vocabulary_size = 31

    model = run.build_model(recipe, Tokenizer, None, ["a", "b"])
    rates = {one.rate for one in model._flatten_layers() if isinstance(one, keras.layers.Dropout)}
    assert rates == {dropout} == {model.dropout}


def test_where_no_model_can_be_made_another_recipe_can_be_fit_into_the_folder(conftest, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match="does not fit AttentionSeq2Seq"):
        fit(conftest.tiny_recipe("attention").replace(**{"model.cell": "gruu"}), tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_model_that_is_no_zip_file_is_not_said_to_be_absent(tiny_run, tmp_path):
    shutil.copytree(tiny_run("gpt").folder, tmp_path / "run")
    (tmp_path / "run" / "model.keras").write_text("half")
    with pytest.raises(ValueError, match=r"A finished run has a saved model, which .*model\.keras is not"):
        run.load_run(tmp_path / "run")


@pytest.mark.parametrize("end", ["n", "r"])
def test_a_label_of_two_lines_is_refused(conftest, tmp_path, end):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "label": "x\\{end}y"}}\n{{"text": "b", "label": "y"}}\n')
    files = {split: str(tmp_path / "a.jsonl") for split in ("train", "validation", "test")}
    recipe = conftest.tiny_recipe("bert-classify", corpus="jsonl-labelled", files=files, model=conftest.BLOCKS)
    with pytest.raises(ValueError, match=rf"A label needs to be one line, got 'x\\{end}y'"):
        fit(recipe, tmp_path / "run")


# ---- Compiling -----------------------------------------------------------------------------------------------------


def test_the_measures_shown_are_means_over_real_tokens_by_hand(tiny_run):
    from training.corpora import CORPORA

    one = tiny_run("transformer")
    batches = run.dataset(one.recipe, CORPORA["grammar-pairs"].read("validation", 13, 5), one, None).take(1)
    total, count, hits = 0.0, 0, 0
    for inputs, labels, weights in batches:
        logits = np.asarray(one.model(inputs, training=False), "float64")
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        real, labels = np.asarray(weights) > 0, np.asarray(labels)
        total -= np.take_along_axis(log_p, labels[..., None], -1)[..., 0][real].sum()
        hits += (logits.argmax(-1) == labels)[real].sum()
        count += real.sum()
    measured = one.model.evaluate(batches, verbose=0, return_dict=True)
    assert measured["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert measured["accuracy"] == pytest.approx(hits / count, abs=1e-6)


def test_a_loss_is_the_same_however_its_examples_are_batched(tiny_run):
    from training.corpora import CORPORA

    one = tiny_run("transformer")
    examples = CORPORA["grammar-pairs"].read("validation", 23, 5)
    seen, counts = [], []
    for tokens in (61, 997):
        batches = run.dataset(one.recipe.replace(tokens_per_batch=tokens), examples, one, None)
        seen.append(token_means(one.model.evaluate(batches, verbose=0, return_dict=True)))
        counts.append(len(batches))
    assert counts[0] > counts[1]
    assert set(seen[0]) == {"loss", "accuracy", "perplexity"}
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)


def test_packed_documents_have_the_loss_of_the_same_documents_one_by_one(tiny_run, tmp_path):
    from training.corpora import CORPORA

    one = run.load_run(tiny_run("gpt").folder)
    examples = CORPORA["grammar-documents"].read("validation", 23, 5)
    recipe = one.recipe.replace(corpus="grammar-documents", max_sequence_length=47)
    examples = [document[:1] for document in examples]  # none longer than a row: what is cut is not the same
    seen = []
    for packed in (False, True):
        recipe = recipe.replace(pack_documents=packed)
        model = one.model.packed_model if packed else one.model
        run.compile_model(recipe, model)
        batches = run.dataset(recipe, examples, one, None)
        assert all(("segment_ids" in inputs) == packed for inputs, *_ in batches)
        seen.append(token_means(model.evaluate(batches, verbose=0, return_dict=True)))
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)
    one = one._replace(folder=tmp_path, recipe=recipe.replace(evaluate_examples=7))
    values = evaluate.evaluate_run(one)
    assert {"nats_per_word", "perplexity_per_byte"} <= set(values) and values["examples"] == 7
    assert not [name for name in values if "grammar" in name]  # which knows sentences, not documents


def test_what_is_wrong_in_a_file_is_told_before_the_work_and_the_folder_is_free_again(tiny_run, tmp_path):
    one = tiny_run("bert-classify")
    for name, content in {"good": "a cat\tpets\nle mot\twords\n" * 7, "odd": "a cat\tother\n", "empty": ""}.items():
        (tmp_path / name).write_text(content)
    files = {split: str(tmp_path / "good") for split in ("train", "validation", "test")}
    recipe = one.recipe.replace(corpus="tsv-labelled", files=files, steps=2, steps_per_epoch=2)
    for changes, error, message in (
        ({"files.test": str(tmp_path / "absent")}, FileNotFoundError, "needs the file .*absent, which is not there"),
        ({"files.test": str(tmp_path / "empty")}, ValueError, "There is no example in .*empty, the files of test"),
        (
            {"files.validation": str(tmp_path / "odd")},
            ValueError,
            "The label 'other' has no example to train on: those .*pets",
        ),
    ):
        with pytest.raises(error, match=message):
            fit(recipe.replace(**changes), tmp_path / "run")
    assert fit(recipe, tmp_path / "run").labels == ["pets", "words"]


@pytest.mark.parametrize(("architecture", "corpus", "content"), [
    ("transformer", "tsv-pairs", "the dog {i}\tle chien {i}\n"),
    ("gpt", "text-lines", "the dog {i}\n"),
    ("gpt", "text-documents", "the dog {i}\na cat {i}\n\n"),
    ("bert", "text-documents", "the dog {i}\na cat {i}\n\n"),
    ("bert-classify", "tsv-labelled", "the dog {i}\tpositive\n"),
])  # fmt: skip
def test_streamed_files_give_the_rows_of_the_same_files_in_memory(architecture, corpus, content, tiny_run, tmp_path):
    from training.corpora import corpus_of

    (tmp_path / "a").write_text("".join(content.format(i=i) for i in range(29)))
    one = tiny_run(architecture)
    files = {split: str(tmp_path / "a") for split in ("train", "validation", "test")}
    recipe = one.recipe.replace(corpus=corpus, files=files)
    rows = []
    for stream in (False, True):
        examples = corpus_of(recipe.replace(stream=stream)).read("train", None, 3)
        batches = run.dataset(recipe, examples, one, None)
        rows.append(sorted(row.tolist() for inputs, *_ in batches for row in count_of_words(inputs)))
    assert rows[0] == rows[1] and len(rows[0]) > 7


def count_of_words(inputs):
    """Something of each row that masks leave as it is."""
    return [mask.sum() for name, masks in inputs.items() if name.endswith("padding_mask") for mask in np.asarray(masks)]


def test_running_text_has_a_dataset_of_its_own_number_of_rows(tiny_run, conftest):
    one = tiny_run("gpt")
    recipe = conftest.tiny_recipe("gpt", corpus="tinyshakespeare", tokens_per_batch=211)
    text = "a few words\n" * 211
    batches = run.dataset(recipe, text, one, seed=3, start_step=5)
    inputs, _, _ = next(iter(batches))
    assert inputs["token_ids"].shape == (211 // 47, 47)
    direct = pipelines.packed_text(text, one.tokenizer, 47, 4, seed=3).skip(5)
    np.testing.assert_array_equal(inputs["token_ids"], next(iter(direct))[0]["token_ids"])
    in_order = run.dataset(recipe, text, one, None)
    assert len(in_order) == len(list(in_order))
