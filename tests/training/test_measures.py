"""Each measure is what a second way of computing it gives."""

import math
import random
import re
from collections import Counter

import numpy as np
import pytest
import sacrebleu

from training import measures


def test_bleu_and_chrf_are_sacrebleus_with_the_signatures_that_name_them():
    answers, targets = ["a cat sat on the mat", "no"], ["the cat sat on the mat", "yes it is"]
    values = measures.translation(answers, targets)
    assert values["bleu"] == round(sacrebleu.corpus_bleu(answers, [targets]).score, 2)
    assert values["chrf"] == round(sacrebleu.corpus_chrf(answers, [targets]).score, 2)
    lower = sacrebleu.corpus_bleu(["A Cat sat on the mat", "no"], [targets], lowercase=True)
    assert measures.translation(["A Cat sat on the mat", "no"], targets)["bleu_lowercase"] == round(lower.score, 2)
    assert "tok:13a" in values["bleu_signature"] and "smooth:exp" in values["bleu_signature"]
    assert "nc:6" in values["chrf_signature"] and "nw:0" in values["chrf_signature"]


def test_nothing_is_not_measured():
    with pytest.raises(ValueError, match="What is measured needs one example or more, got 0"):
        measures.majority([])


def test_tokenized_bleu_counts_what_stands_between_blanks():
    tokens = ["a", "cat", "sat", "on", "the", "mat", "."]
    answer, target = " ".join([*tokens[:3], "in", *tokens[4:]]), " ".join(tokens)
    orders = [{" ".join(tokens[i : i + n]) for i in range(8 - n) if not i <= 3 < i + n} for n in (1, 2, 3, 4)]
    precisions = [len(kept) / (8 - n) for n, kept in zip((1, 2, 3), orders)] + [1 / 2 / 4]  # none of four: 1/2 ("exp")
    by_hand = 100 * math.prod(precisions) ** 0.25
    assert measures.tokenized_bleu([answer], [target]) == {"tokenized_bleu": round(by_hand, 2)}


def test_chrf_of_one_sentence_is_that_counted_by_hand():
    answer, target, orders = "abcd abx", "abcd aby", []
    for n in range(1, 7):
        told, true = (
            Counter(text[i : i + n] for i in range(len(text) - n + 1))
            for text in (one.replace(" ", "") for one in (answer, target))
        )
        hits = (told & true).total()
        orders.append((hits / told.total(), hits / true.total()))
    precision, recall = (sum(column) / 6 for column in zip(*orders))
    by_hand = 100 * 5 * precision * recall / (4 * precision + recall)
    assert measures.translation([answer], [target])["chrf"] == pytest.approx(by_hand, abs=0.01)


def test_perplexities_per_token_word_and_byte_give_the_text_the_same_probability():
    texts = ["één twee", "", "🙂"]
    values = measures.perplexities(23.0, 7, texts)
    assert values["perplexity"] ** 7 == pytest.approx(math.exp(23))
    assert values["perplexity_per_word"] ** (2 + 0 + 1 + 3) == pytest.approx(math.exp(23))
    assert values["perplexity_per_byte"] ** (10 + 0 + 4 + 3) == pytest.approx(math.exp(23))
    assert 2 ** (values["bits_per_byte"] * 17) == pytest.approx(math.exp(23))
    assert measures.perplexities(23.0, 7, texts, ends=False)["perplexity_per_byte"] == pytest.approx(math.exp(23 / 14))


def random_labels(count, names="abc", seed=5):
    draw = random.Random(seed)
    truths = [draw.choice(names) for _ in range(count)]
    return [truth if draw.random() < 0.6 else draw.choice(names + "d") for truth in truths], truths


def test_accuracy_macro_f1_and_mcc_are_those_counted_class_by_class():
    answers, truths = random_labels(97)
    scores = []
    for name in "abcd":
        hits = sum(answer == truth == name for answer, truth in zip(answers, truths))
        precision, recall = (hits / max(1, side.count(name)) for side in (answers, truths))
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    # The correlation of the two sides as indicators of the classes, covariances summed over the classes.
    told, true = (np.array([[one == name for name in "abcd"] for one in side], float) for side in (answers, truths))
    told, true = told - told.mean(0), true - true.mean(0)
    values = measures.classes(answers, truths)
    assert values["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(answers, truths)]))
    assert values["macro_f1"] == pytest.approx(np.mean(scores))
    assert values["mcc"] == pytest.approx((told * true).sum() / math.sqrt((told**2).sum() * (true**2).sum()))


def test_mcc_of_two_classes_is_pearsons_correlation_and_of_a_constant_answer_0():
    answers, truths = (np.array([1, 0, 1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 0, 1, 1]))
    assert measures.classes(answers, truths)["mcc"] == pytest.approx(np.corrcoef(answers, truths)[0, 1])
    constant = measures.majority(truths.tolist())
    assert constant == [1] * 7
    assert measures.classes(constant, truths.tolist()) == {
        "accuracy": pytest.approx(4 / 7),
        "macro_f1": pytest.approx(8 / 11 / 2),
        "mcc": 0.0,
    }


def entities_by_pattern(labels):
    """A second way: a regular expression over one letter a token, B or I, small where another type begins."""
    letters, types = "", [label[2:] for label in labels]
    for i, label in enumerate(labels):
        new = label[0] == "B" or (label[0] == "I" and (i == 0 or labels[i - 1] == "O" or types[i] != types[i - 1]))
        letters += "O" if label == "O" else "B" if new else "I"
    return {(types[found.start()], *found.span()) for found in re.finditer("BI*", letters)}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("O O", set()),
        ("B-x I-x O B-x", {("x", 0, 2), ("x", 3, 4)}),
        ("B-x B-x I-x", {("x", 0, 1), ("x", 1, 3)}),
        ("I-x I-x O I-y", {("x", 0, 2), ("y", 3, 4)}),
        ("B-x I-y I-y", {("x", 0, 1), ("y", 1, 3)}),
        ("B-creative-work I-creative-work", {("creative-work", 0, 2)}),
        ("B I O I B", {("", 0, 2), ("", 3, 4), ("", 4, 5)}),
    ],
)
def test_entities_begin_at_b_and_where_the_type_changes(labels, expected):
    assert measures.entities(labels.split()) == entities_by_pattern(labels.split()) == expected


@pytest.mark.parametrize("letters", ["BIES", "BILU"])
def test_entities_are_the_same_where_their_ends_and_single_tokens_have_letters_of_their_own(letters):
    """Each run of a type as B I, with the last token's and the only one's letters changed."""
    begin, inside, last, single = letters
    draw, expected, rows = random.Random(7), [], []
    for _ in range(101):
        plain, marked = [], []
        for _ in range(draw.randint(1, 5)):
            name, size = draw.choice(["x", "y", ""]), draw.randint(1, 3)
            plain += [f"{'I' if i else 'B'}-{name}" if name else "O" for i in range(size)]
            ends = [single] if size == 1 else [begin, *[inside] * (size - 2), last]
            marked += [f"{letter}-{name}" if name else "O" for letter in ends]
        expected.append(measures.entities(plain))
        rows.append(measures.entities(marked))
    assert rows == expected
    assert measures.entities([f"{last}-x", f"{inside}-x"]) == {("x", 0, 1), ("x", 1, 2)}


def test_entity_f1_is_that_of_another_way_of_finding_and_counting_them():
    draw = random.Random(7)
    labels = ["O", "O", "B-x", "I-x", "B-y", "I-y"]
    truths = [[draw.choice(labels) for _ in range(draw.randint(1, 13))] for _ in range(101)]
    answers = [[one if draw.random() < 0.8 else draw.choice(labels) for one in row] for row in truths]
    pairs = [(entities_by_pattern(a), entities_by_pattern(b)) for a, b in zip(answers, truths)]
    hits, told, true = (sum(map(len, sets)) for sets in ([a & b for a, b in pairs], *zip(*pairs)))
    values = measures.entity_f1(answers, truths)
    assert (values["entity_precision"], values["entity_recall"]) == (
        pytest.approx(hits / told),
        pytest.approx(hits / true),
    )
    assert values["entity_f1"] == pytest.approx(1 / (0.5 * told / hits + 0.5 * true / hits))
    assert measures.entity_f1([["O"]], [["B-x"]])["entity_f1"] == 0


def test_correlations_are_numpys_and_ties_share_their_rank():
    told, true = [1.0, 2.0, 2.0, 3.5, -1.0, 2.0], [0.5, 2.5, 2.0, 2.0, 0.0, 5.0]

    def ranks(values):  # the mean place among those sorted, found one by one
        return [sum(a < b for a in values) + (sum(a == b for a in values) + 1) / 2 for b in values]

    values = measures.correlations(told, true)
    assert values["pearson"] == pytest.approx(np.corrcoef(told, true)[0, 1])
    assert values["spearman"] == pytest.approx(np.corrcoef(ranks(told), ranks(true))[0, 1])
    assert values["mean_squared_error"] == pytest.approx(sum((a - b) ** 2 for a, b in zip(told, true)) / 6)
    assert measures.correlations([2.0, 2.0], [1.0, 2.0])["pearson"] == 0


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "f1"),
    [
        ("The  Broncos!", ["Denver Broncos", "broncos"], 1, 1),
        ("a Denver Bronco", ["Denver Broncos"], 0, 2 * 1 / (2 + 2)),
        ("one one two", ["one two two two"], 0, 2 * 2 / (3 + 4)),
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("", ["something"], 0, 0),
        ("the", ["an"], 1, 1),
        ("theatre anna", ["theatre"], 0, 2 * 1 / 3),
    ],
)
def test_exact_match_and_f1_are_those_counted_by_hand(answer, golds, exact, f1):
    assert measures.spans([answer], [golds]) == {"exact_match": exact, "f1": pytest.approx(f1)}


def test_word_f1_is_the_share_of_the_words_that_pair_off():
    draw = random.Random(3)
    for _ in range(53):
        told, true = ([draw.choice("xyz") for _ in range(draw.randint(1, 7))] for _ in range(2))
        left, hits = list(true), 0
        for word in told:
            if word in left:
                left.remove(word)
                hits += 1
        precision, recall = hits / len(told), hits / len(true)
        f1 = 2 * precision * recall / (precision + recall) if hits else 0
        assert measures.spans([" ".join(told)], [[" ".join(true)]])["f1"] == pytest.approx(f1)


def test_answers_that_do_not_match_their_truths_in_number_are_refused():
    for measure in (measures.classes, measures.entity_f1, measures.correlations, measures.spans):
        with pytest.raises(ValueError, match=r"needs as many answers as truths, and one, got 1 and 2\."):
            measure(["1"], ["1", "2"])
