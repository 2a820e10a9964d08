"""From a recipe to a run's folder, interrupted and resumed."""

import csv
import json
import math
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from training import pipelines, run
from training.recipes import Recipe, RecipeError

ARCHITECTURES = ["seq2seq", "attention", "transformer", "bert", "bert-classify", "gpt"]
COMMON = {"recipe.json", "model.keras", "metrics.json", "history.csv", "tokenizer", "checkpoint"}


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
    assert {path.name for path in folder.iterdir()} == COMMON | further
    first, last = history(folder)
    assert (first["epoch"], last["epoch"]) == (0, 1)
    # Of the classifier 23 validation sentences say little after 22 steps; what it trains on must be learnt.
    assert last["loss"] < first["loss"]
    assert all(math.isfinite(value) for row in (first, last) for value in row.values())
    assert Recipe.from_dict(json.loads((folder / "recipe.json").read_text())) == recipe
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["parameters"] == tiny_run(architecture).model.count_params()
    assert metrics["seconds"] > 0


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


def stopping_at(step):
    """A Progress that raises in the middle of an epoch."""

    class Stopping(run.Progress):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self.done == step:
                raise Stop

    return Stopping


def fit(recipe, folder, resume=False):
    return run.fit(recipe, folder, resume, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["transformer", "bert", "attention"])
def test_an_interrupted_run_resumes_to_the_weights_of_an_uninterrupted_one(
    architecture, tiny_run, tmp_path, monkeypatch
):
    whole, folder = tiny_run(architecture), tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(run, "Progress", stopping_at(17))
        with pytest.raises(Stop):
            fit(whole.recipe, folder)
    assert not (folder / "model.keras").exists()
    with pytest.raises(FileNotFoundError, match=r"A finished run has model\.keras"):
        run.load_run(folder)
    # As if it had been stopped between the line of an epoch and its checkpoint.
    with open(folder / "history.csv", "a") as file:
        file.write("1,0,0\n")
    resumed = fit(whole.recipe, folder, resume=True)
    for one, other in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for one, other in zip(history(whole.folder), history(folder), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_run_stopped_before_its_first_checkpoint_starts_anew(tiny_run, tmp_path, monkeypatch):
    whole, folder = tiny_run("gpt"), tmp_path / "early"
    with monkeypatch.context() as patch:
        patch.setattr(run, "Progress", stopping_at(3))
        with pytest.raises(Stop):
            fit(whole.recipe, folder)
    resumed = fit(whole.recipe, folder, resume=True)
    for one, other in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_resuming_a_finished_run_changes_nothing(tiny_run):
    one = tiny_run("gpt")
    before = {path: path.read_bytes() for path in sorted(one.folder.rglob("*")) if path.is_file()}
    again = fit(one.recipe, one.folder, resume=True)
    assert {path: path.read_bytes() for path in sorted(one.folder.rglob("*")) if path.is_file()} == before
    for first, second in zip(one.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_number_of_steps_is_the_recipes_even_where_epochs_do_not_divide_it(conftest, tmp_path):
    recipe = conftest.tiny_recipe("gpt", steps=7, steps_per_epoch=5, train_examples=31, vocabulary_size=307)
    one = fit(recipe, tmp_path / "seven")
    assert int(one.model.optimizer.iterations) == 7
    assert len(history(one.folder)) == 2
    again = fit(recipe, tmp_path / "seven", resume=True)
    assert int(again.model.optimizer.iterations) == 7


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
    # And the whole model was then trained, not the head alone.
    table, trained = (one.backbone.token_embedding.get_weights()[0] for one in (fresh, classifier.model))
    assert np.abs(table - trained).max() > 1e-3


def test_another_run_of_the_same_architecture_goes_on_from_the_weights_there(tiny_run, tmp_path):
    one = tiny_run("gpt")
    recipe = one.recipe.replace(start_from=str(one.folder), steps=1, learning_rate=1e-9, weight_decay=0.0)
    more = fit(recipe, tmp_path / "more")
    for first, second in zip(one.model.get_weights(), more.model.get_weights(), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)
    assert more.tokenizer.fingerprint == one.tokenizer.fingerprint


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

    with pytest.raises(ValueError, match=message):
        run.build_model(recipe, Tokenizer, Tokenizer, None)


# ---- Files ---------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_the_old_folder(tmp_path):
    file, folder = tmp_path / "kept.txt", tmp_path / "kept"
    file.write_text("old")
    folder.mkdir()
    (folder / "a").write_text("old")

    def fail(beside):
        if beside.suffix == ".txt":
            beside.write_text("half")
        else:
            beside.mkdir()
            (beside / "a").write_text("half")
        raise OSError("disk full")

    for path in (file, folder):
        with pytest.raises(OSError, match="disk full"):
            run.write_beside(path, fail)
    assert file.read_text() == (folder / "a").read_text() == "old"
    # What is left of a failed write is no obstacle to the next, and nothing is left of that.
    run.write_beside(file, lambda beside: beside.write_text("new"))
    run.write_beside(folder, lambda beside: (beside.mkdir(), (beside / "b").write_text("new")))
    assert (file.read_text(), sorted(os.listdir(folder))) == ("new", ["b"])
    assert sorted(os.listdir(tmp_path)) == ["kept", "kept.txt"]


def test_json_is_written_readable_and_in_utf_8(tmp_path):
    run.write_json(tmp_path / "x.json", {"étudiant": [2, 3]})
    text = (tmp_path / "x.json").read_text("utf-8")
    assert '"étudiant"' in text and text.endswith("}\n")
    assert json.loads(text) == {"étudiant": [2, 3]}


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


def test_norms_and_biases_do_not_decay_and_the_rest_does(conftest, tiny_run):
    model = keras.models.clone_model(tiny_run("gpt").model)
    recipe = conftest.tiny_recipe("gpt", weight_decay=0.5, learning_rate=0.5, warmup_steps=1, decay="constant")
    run.compile_model(recipe, model)
    before = [np.array(variable) for variable in model.trainable_variables]
    model.optimizer.build(model.trainable_variables)
    model.optimizer.apply([tf.zeros_like(variable) for variable in model.trainable_variables])
    for variable, old in zip(model.trainable_variables, before, strict=True):
        kept = any(word in variable.path.rsplit("/", 1)[-1] for word in ("bias", "gamma", "beta"))
        np.testing.assert_allclose(np.array(variable), old if kept else 0.75 * old, atol=1e-6, err_msg=variable.path)


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
