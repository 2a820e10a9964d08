"""What each task is fed, against a second way of making it; learned, measured, and served as it is measured."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_seq
from serving.answers import answers_for
from serving.export import KINDS
from serving.signatures import SIGNATURES
from training import evaluate, fine_tuning, run
from training.fine_tuning import TASKS, batches, labels_of, texts_of
from training.in_process import InProcess
from training.readers import Choice, Question
from training.recipes import Recipe

CONTEXT = (
    "The old cook, who is from Orléans, sees a red boat. "
    "She sells three boats a day! Nobody knows why the cats like her."
)
CONLL = "The\tO\nold\tO\nOrl\u00e9ans-cook\tB-x\nsees\tO\n\nred\tB-y\nboats\tI-y\n\u200d\tO\n!\tO\n\n" * 3
SENTENCES = [
    (["The", "old", "Orl\u00e9ans-cook", "sees"], ["O", "O", "B-x", "O"]),
    (["red", "\u200d", "boats"], ["B-y", "O", "I-y"]),
]
QUESTIONS = [
    Question("1", "Where is the cook from?", CONTEXT, [("Orléans", CONTEXT.index("Orl"))]),
    Question("2", "How many boats does she sell?", CONTEXT, [("three", CONTEXT.index("three"))]),
    Question("3", "Who knows?", "The cats.", []),
    Question("4", "Who likes her?", CONTEXT, [("the cats", CONTEXT.index("the cats"))]),
]
CHOICES = [Choice("the cook sees", ["a boat", "why"], 0), Choice("she", ["is old", "a a a", "three boats a day"], 2)]
SCORED = [("the cook", "the old cook", "4.2"), ("a boat", "nobody", "0"), ("she sells", "she sells boats", "2.75")]
ALL = [CONTEXT, "Where is the cook from? How many does she sell? Who likes her?"]
LIMIT = 29


@pytest.fixture(scope="module")
def tokenizer():
    return keras_seq.train_tokenizer(ALL, "wordpiece", 90)


def one_batch(kind, examples, labels, tokenizer, size=10_000):
    made = batches(TASKS[kind], examples, labels, tokenizer, LIMIT, size, bucket_width=100)
    return next(made.as_numpy_iterator())


# ---- What is fed ---------------------------------------------------------------------------------------------------


def test_the_first_sub_word_of_each_word_has_its_label(tokenizer):
    labels = labels_of("tokens", SENTENCES)
    inputs, given, weights = one_batch("bert-tokens", SENTENCES, labels, tokenizer)
    rows = {tuple(ids[mask]): row for row, (ids, mask) in enumerate(zip(inputs["token_ids"], inputs["padding_mask"]))}
    for words, names in SENTENCES:  # each word cut on its own
        ids, expected = [tokenizer.start_token_id], [None]
        for word, name in zip(words, names):
            pieces = tokenizer.tokenize(word).numpy().tolist()
            ids += pieces
            expected += [name, *[None] * (len(pieces) - 1)][: len(pieces)]
        row = rows[(*ids, tokenizer.end_token_id)]
        told = [labels[label] if weight else None for label, weight in zip(given[row], weights[row])]
        assert told[: len(expected)] == expected and not any(told[len(expected) :])
    assert any(len(tokenizer.tokenize(word)) > 1 for word, _ in [*zip(*SENTENCES[0])])


def test_a_byte_pair_that_begins_with_the_blank_before_a_word_is_the_words_first():
    words = ["café", "naïve", "cat"]
    pairs = keras_seq.train_tokenizer(["café naïve"] * 3, "bpe", 275)
    _, starts, ends = (part[0].numpy() for part in fine_tuning.with_offsets(pairs, [" ".join(words)]))
    found = fine_tuning.first_pieces(words, starts, ends)
    assert min(starts[found[1:]] - [6, 13]) < 0  # a blank and letters in one
    for piece, begin in zip(found, (0, 6, 13)):
        assert starts[piece] <= begin < ends[piece] and all(ends[:piece] <= begin)


@pytest.mark.parametrize("place", [-1, 3, 6])
def test_an_answer_that_its_context_does_not_hold_where_it_should_be_is_named(place, tokenizer):
    question = Question("q7", "who ?", "the dog", [("dog", place)])
    with pytest.raises(
        ValueError, match=rf"context of 7 characters, got answer_start={place} for 'dog' of question 'q7', where '"
    ):
        list(batches(TASKS["bert-spans"], [question], (), tokenizer, 32, 100))


def test_scores_of_one_value_teach_nothing():
    with pytest.raises(ValueError, match=r"need two values or more, got 3\.0 alone"):
        labels_of("scored", [("a", "b", "3"), ("a", "c", "3")])


def test_a_window_asks_for_the_answer_it_holds_and_others_for_none(tokenizer):
    inputs, targets, _ = one_batch("bert-spans", QUESTIONS, (), tokenizer)
    asked = {tuple(tokenizer.tokenize(one.question).numpy()[:13]): one for one in QUESTIONS}
    found, none = [], 0
    for row, ids in enumerate(inputs["token_ids"]):
        here = np.flatnonzero(inputs["answer_mask"][row])
        question = asked[tuple(ids[1 : here[0] - 1])]
        assert (inputs["segment_ids"][row][here] == 1).all() and ids[here[-1] + 1] == tokenizer.end_token_id
        gold = tokenizer.tokenize(question.answers[0][0]).numpy().tolist() if question.answers else None
        start, end = targets["start_logits"][row], targets["end_logits"][row]
        if start:
            assert ids[start : end + 1].tolist() == gold and {start, end} <= set(here)
            found.append(question.id)
        else:
            none += 1
            piece = ids[here].tolist()
            assert end == 0 and not any(piece[i : i + len(gold)] == gold for i in range(len(piece)) if gold)
    assert set(found) == {"1", "2", "4"} and none > 1


def test_choices_stand_beside_their_prompt_one_by_one(tokenizer):
    inputs, label, _ = one_batch("bert-choices", CHOICES, (), tokenizer)
    assert inputs["token_ids"].shape[:2] == (2, 3) and sorted(label) == [0, 2]
    for row, right in enumerate(label):
        example = CHOICES[0] if right == 0 else CHOICES[1]
        for place in range(3):
            real = inputs["padding_mask"][row, place]
            if place >= len(example.choices):
                assert not real.any()
                continue
            one, two = (tokenizer.tokenize(text).numpy().tolist() for text in (example.prompt, example.choices[place]))
            start, end = tokenizer.start_token_id, tokenizer.end_token_id
            assert inputs["token_ids"][row, place][real].tolist() == [start, *one, end, *two, end]
            assert inputs["segment_ids"][row, place][real].tolist() == [0] * (len(one) + 2) + [1] * (len(two) + 1)


def test_a_score_is_the_expectation_of_the_numbers_it_is_shared_out_to(tokenizer):
    labels = labels_of("scored", SCORED)
    assert labels == ["0", "1", "2", "3", "4", "5"]
    _, shares, _ = one_batch("bert-similarity", SCORED, labels, tokenizer)
    np.testing.assert_allclose(sorted(shares @ np.arange(6)), [0, 2.75, 4.2], atol=1e-5)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
    assert ((shares > 1e-5).sum(-1) <= 2).all()


def test_couples_have_the_place_of_their_label(tokenizer):
    couples = [(first, second, str(float(score) > 2)) for first, second, score in SCORED]
    _, label, _ = one_batch("bert-pairs", couples, labels_of("couples", couples), tokenizer)
    assert sorted(label) == [0, 1, 1]


def test_the_texts_of_a_tokenizer_are_all_that_is_read():
    assert texts_of("tokens", SENTENCES)[1] == "red \u200d boats"
    assert texts_of("spans", QUESTIONS)[:2] == [CONTEXT, "The cats."] and "Who knows?" in texts_of("spans", QUESTIONS)
    assert set(texts_of("choices", CHOICES)) == {text for one in CHOICES for text in (one.prompt, *one.choices)}
    assert texts_of("scored", SCORED) == [text for *pair, _ in SCORED for text in pair]


# ---- Learned and measured ------------------------------------------------------------------------------------------

SQUAD = json.dumps({"data": [{"paragraphs": [{"context": one.context, "qas": [{
    "id": one.id, "question": one.question, "answers": [{"text": a, "answer_start": at} for a, at in one.answers],
}]} for one in QUESTIONS]}]})  # fmt: skip
FILES = {
    "bert-tokens": ("conll", CONLL),
    "bert-spans": ("squad", SQUAD),
    "bert-choices": ("jsonl-choices", "".join(json.dumps(one._asdict()) + "\n" for one in CHOICES)),
    "bert-pairs": ("tsv-couples", "".join(f"{a}\t{b}\t{float(c) > 2}\n" for a, b, c in SCORED)),
    "bert-similarity": ("tsv-scored", "".join(f"{a}\t{b}\t{c}\n" for a, b, c in SCORED)),
}


def recipe_of(architecture, folder, **changes):
    corpus, content = FILES[architecture]
    (folder / "data").write_text(content)
    files = {split: str(folder / "data") for split in ("train", "validation", "test")}
    small = {"num_layers": 1, "num_heads": 2, "hidden_dim": 26, "intermediate_dim": 29, "dropout": 0.0}
    values = {"tokenizer": "wordpiece", "vocabulary_size": 90, "max_sequence_length": LIMIT, "tokens_per_batch": 499,
              "learning_rate": 0.01, "warmup_steps": 2, "steps": 3, "steps_per_epoch": 2}  # fmt: skip
    return Recipe(architecture, corpus, model=small, files=files, **{**values, **changes})


@pytest.fixture(params=FILES)
def one(request, tmp_path, tokenizer):
    """A run of each task with fresh weights, not fit."""
    recipe = recipe_of(request.param, tmp_path)
    keras.utils.set_random_seed(7)
    labels = labels_of(run.corpus_of(recipe).kind, run.corpus_of(recipe).read("train", None, 0))
    model = run.build_model(recipe, tokenizer, None, labels)
    for variable in model.trainable_variables:  # of a good spread: answers that differ, no ties
        variable.assign(keras.random.normal(variable.shape, stddev=0.4))
    return run.Run(tmp_path, recipe, model, tokenizer, None, labels)


@pytest.mark.parametrize("one", [name for name in FILES if name != "bert-pairs"], indirect=True)  # as -similarity
def test_a_few_steps_lower_the_loss_of_what_they_see(one):
    run.compile_model(one.recipe, one.model)
    one.model.run_eagerly = True
    data = run.dataset(one.recipe, run.corpus_of(one.recipe).read("train", None, 0), one, None)
    (batch,) = data.take(1)
    losses = [float(one.model.train_on_batch(*batch, return_dict=True)["loss"]) for _ in range(4)]
    assert losses[-1] < losses[0] and all(map(math.isfinite, losses))


class LiveClient:
    """A client whose server is the answers that an export has."""

    def __init__(self, one):
        kind = KINDS.get(one.recipe.architecture)
        self.answers = answers_for(one.model, one.tokenizer, labels=one.labels, kind=kind)
        self.asked = []

    def predict(self, model, inputs, signature):
        row = SIGNATURES[self.answers.kind][signature]
        self.asked.append((signature, inputs))
        given = (tf.constant(inputs[name], tf.string) for name in row.inputs)
        told = getattr(self.answers, row.function)(*given)
        lists = [np.vectorize(lambda x: x.decode())(v) if v.dtype == object else v for v in (t.numpy() for t in told)]
        return {name: value.tolist() for name, value in zip(row.outputs, lists, strict=True)}


MEASURES = {
    "bert-tokens": {"entity_f1", "token_accuracy", "entity_f1_of_the_majority", "token_accuracy_of_the_majority"},
    "bert-spans": {"exact_match", "f1", "exact_match_of_the_first_words", "f1_of_the_first_words"},
    "bert-choices": {"accuracy", "accuracy_of_the_majority"},
    "bert-pairs": {"accuracy", "macro_f1", "mcc", "accuracy_of_the_majority"},
    "bert-similarity": {"pearson", "spearman", "mean_squared_error", "mean_squared_error_of_the_mean"},
}


def test_it_is_measured_beside_its_baseline_and_through_an_endpoint_alike(one):
    values = evaluate.evaluate_run(one)
    assert set(values) >= MEASURES[one.recipe.architecture]
    assert json.loads((one.folder / "metrics.json").read_text())["test"] == values
    served = evaluate.Endpoint("there", 8500, "x")
    served.client = LiveClient(one)
    assert evaluate.evaluate_run(one, served=served) == pytest.approx(values, rel=1e-4)
    # And each answer by itself, not only the measures.
    examples = run.corpus_of(one.recipe).read("test", None, 0)
    both = [x[0] for x in examples], [x[1] for x in examples]
    ask = {
        "bert-tokens": lambda who: who.tag(both[0]),
        "bert-spans": lambda who: [who.find([x.question for x in examples], [x.context for x in examples], null)
                                   for null in (False, True)],
        "bert-choices": lambda who: who.choose(*both),
        "bert-pairs": lambda who: who.classify_pairs(*both),
        "bert-similarity": lambda who: np.round(who.similarity(*both), 3).tolist(),
    }[one.recipe.architecture]  # fmt: skip
    assert ask(InProcess(one)) == ask(served)


def test_a_recipe_of_spans_is_fit_measured_and_exported_as_its_kind(tmp_path):
    from serving.export import load_run

    fitted = run.fit(recipe_of("bert-spans", tmp_path), tmp_path / "run", progress=False)
    rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert len(rows) == 3 and {"loss", "val_loss"} <= set(rows[0].split(","))
    loaded = load_run(tmp_path / "run")
    answers = answers_for(**loaded)
    told = answers.spans(tf.constant(["Who?"]), tf.constant([CONTEXT]))[0][0, 0].numpy().decode()
    assert InProcess(fitted).find(["Who?"], [CONTEXT], False) == [told] and told in CONTEXT
