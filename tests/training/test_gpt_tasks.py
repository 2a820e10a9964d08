"""GPT's tasks: what is fed is what the library makes of token ids; learned, and answered from an export as here."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_seq
from training import run
from training.files import write_json
from training.fine_tuning import batches, labels_of, loss_and_metrics
from training.gpt_tasks import TASKS
from training.in_process import InProcess
from training.readers import Choice
from training.recipes import Recipe, RecipeError

LIMIT = 31
CLASSES = [("the cook sees", "good"), ("why", "bad"), ("she is old today", "good")]
COUPLES = [("the cook", "a boat sees the cook", "yes"), ("why not", "she", "no"), ("a boat is old", "old", "no")]
CHOICES = [Choice("the cook sees", ["a boat", "why"], 0), Choice("she", ["is old", "a a a", "three boats a day"], 2)]
SCORED = [("the cook", "the old cook", "4.2"), ("a boat", "nobody", "0"), ("she sells", "she sells boats", "2.75")]
LINES = [text for row in (*CLASSES, *COUPLES, *SCORED) for text in row[:2]]


@pytest.fixture(scope="module")
def tokenizer():
    return keras_seq.train_tokenizer(LINES, "bpe", 280)


def fed(name, examples, labels, tokenizer, limit=LIMIT):
    task = TASKS[name]
    return next(batches(task, examples, labels, tokenizer, limit, 10_000, bucket_width=100).as_numpy_iterator())


def by_row(tokens):
    """The real tokens of each row's texts, as something to sort by."""
    ids, mask = tokens["token_ids"], tokens["padding_mask"]
    ids, mask = (one[:, None] if one.ndim == 2 else one for one in (ids, mask))
    return [tuple(tuple(text[real].tolist()) for text, real in zip(*row) if real.any()) for row in zip(ids, mask)]


def test_each_task_is_fed_what_the_library_makes_of_its_token_ids(tokenizer):
    def ids(texts):
        return [tokenizer.tokenize(text).numpy().tolist() for text in texts]

    def column(rows, place):
        return ids([row[place] for row in rows])

    start, _, extract = special = range(tokenizer.vocabulary_size, tokenizer.vocabulary_size + 3)
    choices = [ids(one.choices) for one in CHOICES]
    expected = {
        "gpt-classify": (CLASSES, keras_seq.classification_inputs(column(CLASSES, 0), start, extract), [1, 0, 1]),
        "gpt-pairs": (
            COUPLES,
            keras_seq.entailment_inputs(column(COUPLES, 0), column(COUPLES, 1), *special),
            [1, 0, 0],
        ),
        "gpt-choices": (CHOICES, keras_seq.multiple_choice_inputs(column(CHOICES, 0), choices, *special), [0, 2]),
        "gpt-similarity": (SCORED, keras_seq.similarity_inputs(column(SCORED, 0), column(SCORED, 1), *special), None),
    }
    for name, (examples, made, targets) in expected.items():
        kind = {"gpt-classify": "labelled", "gpt-pairs": "couples", "gpt-similarity": "scored"}.get(name, "choices")
        inputs, told, weights = fed(name, examples, labels_of(kind, examples) or (), tokenizer)
        order = [by_row(made).index(row) for row in by_row(inputs)]
        assert sorted(order) == list(range(len(examples))), name
        following, counted = keras_seq.language_model_targets(inputs)
        np.testing.assert_array_equal(told["language_model"] * (counted > 0), following * (counted > 0))
        np.testing.assert_array_equal(weights["language_model"], counted)
        np.testing.assert_array_equal(weights["logits"], np.ones(len(examples)))
        if targets is not None:
            assert told["logits"].tolist() == [targets[i] for i in order]
        else:
            scores = [float(SCORED[i][2]) for i in order]
            np.testing.assert_allclose(told["logits"] @ np.arange(6), scores, atol=1e-5)


@pytest.mark.parametrize(("name", "examples"), [("gpt-classify", CLASSES), ("gpt-pairs", COUPLES)])
def test_a_label_without_an_example_to_train_on_is_named(name, examples, tokenizer):
    with pytest.raises(
        ValueError, match=r"The label '(good|yes)' has no example to train on: those that have are other"
    ):
        fed(name, examples, ["other"], tokenizer)


def test_what_is_too_long_keeps_its_special_tokens(tokenizer):
    size = tokenizer.vocabulary_size
    (text,) = by_row(fed("gpt-classify", [("why not " * 30, "bad")], ["bad"], tokenizer)[0])[0]
    assert (len(text), text[0], text[-1]) == (LIMIT, size, size + 2)
    (pair,) = by_row(fed("gpt-pairs", [("why not " * 30, "she", "no")], ["no"], tokenizer)[0])[0]
    assert (pair[0], pair[15], pair[-1]) == (size, size + 1, size + 2)


@pytest.fixture(scope="module")
def fitted(tiny_run, conftest, tmp_path_factory):
    """A classifier fit for a few steps from the tiny GPT."""
    old = tiny_run("gpt")
    recipe = dataclasses.replace(
        old.recipe, architecture="gpt-classify", corpus="grammar-labelled", start_from=str(old.folder), steps=3,
        steps_per_epoch=2, model={}, evaluate_examples=11,
    )  # fmt: skip
    return old, run.fit(recipe, tmp_path_factory.mktemp("runs") / "classify", progress=False)


def test_a_classifier_starts_from_a_gpts_tokens_and_weights_and_three_tokens_more(fitted, tiny_run):
    old, one = fitted
    assert isinstance(one.model, keras_seq.GPTClassifier)
    assert one.model.backbone.vocabulary_size == old.model.vocabulary_size + 3
    assert one.tokenizer.fingerprint == old.tokenizer.fingerprint
    fresh = run.build_model(one.recipe, one.tokenizer, None, one.labels)
    for new, before in zip(fresh.backbone.weights, old.model.weights, strict=True):
        np.testing.assert_array_equal(new[: before.shape[0]], before)
    # And from one that is fine-tuned already, with its head's tokens and no further ones.
    again = one.recipe.replace(start_from=str(one.folder))
    model = run.build_model(again, one.tokenizer, None, one.labels)
    np.testing.assert_array_equal(model.backbone.weights[0], one.model.backbone.weights[0])


def test_the_loss_in_its_history_is_the_heads_own(fitted):
    rows = (fitted[1].folder / "history.csv").read_text().splitlines()
    assert {"loss", "logits_loss", "val_loss", "val_logits_accuracy"} <= set(rows[0].split(","))
    assert all(math.isfinite(float(value)) for row in rows[1:] for value in row.split(",")[1:] if value)
    told = dict(zip(rows[0].split(","), rows[-1].split(",")))
    assert told["val_loss"] == told["val_logits_loss"]


def test_the_language_model_weighs_as_much_as_the_recipe_says(fitted):
    one = fitted[1]
    data = run.dataset(one.recipe, [("i am a student", one.labels[0])] * 3, one, None)
    ((inputs, labels, weights),) = data.take(1)
    told = one.model(inputs)
    alone = {name: keras_seq.TokenCrossentropy()(labels[name], told[name], weights[name]) for name in told}
    for weight in (0.0, 0.5, 0.7):
        run.compile_model(one.recipe.replace(language_model_weight=weight), one.model)
        one.model.run_eagerly = True
        loss = one.model.test_on_batch(inputs, labels, weights, return_dict=True)["loss"]
        assert float(loss) == pytest.approx(float(alone["logits"] + weight * alone["language_model"]), rel=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_is_the_same_in_process_and_from_an_export(name, tokenizer, tmp_path):
    from serving.answers import answers_for
    from serving.export import KINDS

    corpus = {"gpt-classify": "tsv-labelled", "gpt-pairs": "tsv-couples", "gpt-choices": "jsonl-choices"}
    recipe = Recipe(
        name, corpus.get(name, "tsv-scored"), files=dict.fromkeys(("train", "validation", "test"), "-"),
        model={"num_layers": 1, "num_heads": 2, "hidden_dim": 14, "intermediate_dim": 23}, max_sequence_length=LIMIT,
    )  # fmt: skip
    labels = None if name == "gpt-choices" else ["0", "1", "2"]
    keras.utils.set_random_seed(3)
    model = run.build_model(recipe, tokenizer, None, labels)
    for variable in model.trainable_variables:  # of a good spread: no ties
        variable.assign(keras.random.normal(variable.shape, stddev=0.5))
    here = InProcess(run.Run(tmp_path, recipe, model, tokenizer, None, labels))
    there = answers_for(model, tokenizer, labels=labels, kind=KINDS.get(name))
    firsts, seconds = [row[0] for row in COUPLES], [row[1] for row in COUPLES]
    if name == "gpt-classify":
        told = [label.decode() for label in there.classify(tf.constant(firsts))[0].numpy()]
        assert here.classify(firsts) == told
    elif name == "gpt-choices":
        rows = [one.choices[:2] for one in CHOICES]
        told = there.choose(tf.constant([one.prompt for one in CHOICES]), tf.constant(rows))[1].numpy()
        assert here.choose([one.prompt for one in CHOICES], rows) == told.argmax(axis=1).tolist()
    elif name == "gpt-pairs":
        told = there.classify(tf.constant(firsts), tf.constant(seconds))[0].numpy()
        assert here.classify_pairs(firsts, seconds) == [label.decode() for label in told]
    else:
        told = there.similarity(tf.constant(firsts), tf.constant(seconds))[0].numpy()
        np.testing.assert_allclose(here.similarity(firsts, seconds), told, atol=1e-5)


def test_only_a_gpt_is_a_start_for_a_gpts_task(fitted, tmp_path):
    write_json(
        tmp_path / "recipe.json", fitted[0].recipe.replace(architecture="seq2seq", corpus="grammar-pairs").to_dict()
    )
    (tmp_path / "model.keras").touch()
    recipe = fitted[1].recipe.replace(start_from=str(tmp_path))
    with pytest.raises(
        RecipeError, match=r"gpt-classify starts from a run of \('gpt', 'gpt-classify'\), got .*seq2seq"
    ):
        run.fit(recipe, tmp_path / "out", progress=False)


def test_the_language_model_is_learned_but_not_measured():
    losses, metrics = loss_and_metrics(TASKS["gpt-similarity"], 0.1)
    assert set(losses) == {"logits", "language_model"} and set(metrics) == {"logits"}
    assert isinstance(losses["logits"], keras.losses.CategoricalCrossentropy)
    assert losses["language_model"].label_smoothing == 0
