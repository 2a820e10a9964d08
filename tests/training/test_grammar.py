"""The built-in corpus: what is exact about it is compared two ways."""

import itertools
import math
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest

from training import grammar, lexicon

# English, French: one or more for each construction.
TRANSLATIONS = [
    ("i am a student", "je suis étudiant"),
    ("she is a student", "elle est étudiante"),
    ("anna is not an artist", "anna n'est pas artiste"),
    ("we are magicians", "nous sommes magiciens"),
    ("he likes the tree", "il aime l'arbre"),
    ("he does not like the tree", "il n'aime pas l'arbre"),
    ("the beautiful tree is green", "le bel arbre est vert"),
    ("the beautiful trees are green", "les beaux arbres sont verts"),
    ("the beautiful flower is green", "la belle fleur est verte"),
    ("my old opera was very simple", "mon vieil opéra était très simple"),
    ("the small red apple is bad", "la petite pomme rouge est mauvaise"),
    ("her story is not boring", "son histoire n'est pas ennuyeuse"),
    ("this artist eats an apple", "cet artiste mange une pomme"),
    ("this artist does not eat an apple", "cet artiste ne mange pas de pomme"),
    ("we never choose any apples", "nous ne choisissons jamais de pommes"),
    ("many artists speak to the nurse", "beaucoup d'artistes parlent à l'infirmière"),
    ("i speak to the teachers", "je parle aux professeurs"),
    ("julie answers the cook", "julie répond au cuisinier"),
    ("the nurses went to the hospital", "les infirmières sont allées à l'hôpital"),
    ("paul came from the harbour", "paul est venu du port"),
    ("anna and the nurse returned", "anna et l'infirmière sont rentrées"),
    ("anna and paul are happy", "anna et paul sont heureux"),
    ("i wait for emma", "j'attends emma"),
    ("you often play the melody", "vous jouez souvent la mélodie"),
    ("they did not count behind the school", "ils n'ont pas compté derrière l'école"),
    ("the aunt must not hide the rings near the castle", "la tante ne doit pas cacher les bagues près du château"),
    ("on sunday alice wants to sing in our studio", "dimanche alice veut chanter dans notre studio"),
    ("paul sings because he is happy", "paul chante parce qu'il est heureux"),
    ("claire said that the boat was heavy", "claire a dit que le bateau était lourd"),
    ("does he see the soup of the cook ?", "est-ce qu'il voit la soupe du cuisinier ?"),
    ("why did we lose the passports ?", "pourquoi est-ce que nous avons perdu les passeports ?"),
    ("what do i sell ?", "qu'est-ce que je vends ?"),
    ("who will carry the suitcase ?", "qui va porter la valise ?"),
    ("are the crowns wonderful ?", "est-ce que les couronnes sont merveilleuses ?"),
    ("the nurse who eats the soup that adam sells coughs", "l'infirmière qui mange la soupe qu'adam vend tousse"),
    ("the dancers that i know are not tired", "les danseuses que je connais ne sont pas fatiguées"),
]


def parses(sentence: str, max_depth: int = 1) -> int:
    words = sentence.split(" ")
    counts = grammar.inside(grammar.grammar(max_depth).parse(words), lambda rule: 1)
    return counts.get(("S", 0, len(words)), 0)


@pytest.mark.parametrize(("english", "french"), TRANSLATIONS)
def test_french_agrees_elides_and_contracts_as_french_does(english, french):
    assert grammar.translate(english) == french


def test_what_the_grammar_lacks_is_refused_by_name():
    for sentence in ("", "cat", "the nurse cough", "the nurse coughs ?", "he likes  the tree", "an student is sad"):
        with pytest.raises(ValueError, match=f"sentence of the built-in grammar, got {re.escape(repr(sentence))}"):
            grammar.translate(sentence)
        assert grammar.log_probability(sentence) == -math.inf


def test_another_split_or_a_negative_depth_is_refused():
    for draws in (grammar.sentence_pairs, grammar.documents, grammar.labelled):
        with pytest.raises(ValueError, match=r"split must be one of .*'train'.*, got 'dev'"):
            draws("dev", 3)
    with pytest.raises(ValueError, match="depth >= 0, got -1"):
        grammar.sentence_pairs("train", 3, max_depth=-1)


def test_no_rule_stands_twice_and_probabilities_of_a_symbol_sum_to_one():
    for source in (grammar.grammar(2), grammar.grammar(2, True)):
        rules = [rule for rules in source.rules.values() for rule in rules]
        assert len({(rule.left, rule.right) for rule in rules}) == len(rules)
        for left, siblings in source.rules.items():
            assert sum(rule.probability for rule in siblings) == pytest.approx(1), left


def test_drawn_sentences_have_one_derivation_and_it_translates_to_the_drawn_french():
    for max_depth in (0, 1, 3):
        for english, french in grammar.sentence_pairs("train", 503, seed=7, max_depth=max_depth):
            assert parses(english, max_depth) == 1, english
            assert grammar.translate(english) == french


def test_probability_by_the_parser_is_the_product_of_the_samplers_rules():
    source, draws = grammar.grammar(1), iter(np.random.default_rng(5).random(100_000))
    for _ in range(211):
        english, rules = source.sample(lambda: next(draws), source.tables)
        expected = sum(math.log(rule.probability) for rule in rules)
        assert grammar.log_probability(english) == pytest.approx(expected)


@pytest.mark.parametrize(("max_depth", "depth"), [(0, None), (1, None), (2, None), (1, 3)])
def test_entropy_and_length_by_recursion_are_those_of_drawn_sentences(max_depth, depth):
    count = 4001
    source = grammar.chosen(max_depth, depth)
    draw = np.random.default_rng(11).random
    drawn = [source.sample(draw, source.tables)[1] for _ in range(count)]
    surprises = np.array([-sum(math.log(rule.probability) for rule in rules) for rules in drawn])
    lengths = np.array([sum(len(rule.right) - rule.arity for rule in rules) for rules in drawn])
    assert abs(surprises.mean() - grammar.entropy(max_depth, depth)) < 4 * surprises.std() / count**0.5
    assert abs(lengths.mean() - grammar.expected_length(max_depth, depth)) < 4 * lengths.std() / count**0.5
    per_word = grammar.entropy(max_depth, depth) / (grammar.expected_length(max_depth, depth) + 1)
    assert grammar.entropy_per_word(max_depth, depth) == pytest.approx(per_word)


def every_sentence(source, symbol):
    """All (words, probability) of a symbol with few sentences."""
    if symbol not in source.rules:
        yield (symbol,), 1.0
        return
    for rule in source.rules[symbol]:
        for parts in itertools.product(*(list(every_sentence(source, part)) for part in rule.right)):
            yield sum((words for words, _ in parts), ()), rule.probability * math.prod(p for _, p in parts)


def test_all_sentences_of_a_small_part_have_probabilities_that_sum_to_one_and_are_the_parsers():
    source = grammar.grammar(0)
    sentences = list(every_sentence(source, "SIMPLE.T.s.music.-"))
    assert len(sentences) == len({words for words, _ in sentences}) > 1000
    assert sum(probability for _, probability in sentences) == pytest.approx(1)

    # In a sentence: two noun phrases in the same frame differ by the ratio of these probabilities.
    frame = "he does not look for {}"
    totals = [(grammar.log_probability(frame.format(" ".join(words)), 0), p) for words, p in sentences[::97]]
    offsets = [log_probability - math.log(p) for log_probability, p in totals]
    assert offsets == pytest.approx([offsets[0]] * len(offsets))


def test_a_sentence_with_one_word_hidden_has_the_summed_probability_of_its_fillings():
    words = ["the", "nurse", "that", "i", "know", "never", "eats", "an", "apple"]
    for at in range(len(words)):
        hidden = [*words[:at], None, *words[at + 1 :]]
        forest = grammar.grammar(1).parse(hidden)
        total = grammar.inside(forest, lambda rule: rule.probability)["S", 0, len(words)]
        filled = [" ".join([*words[:at], word, *words[at + 1 :]]) for word in grammar.english_words()]
        assert total == pytest.approx(sum(math.exp(grammar.log_probability(text)) for text in filled))


def test_there_are_more_than_300_words_a_side_and_they_are_those_of_the_sentences():
    english, french = set(), set()
    for seed, max_depth in ((2, 1), (3, 2)):
        for pair in grammar.sentence_pairs("train", 30_011, seed, max_depth):
            english.update(pair[0].split(" "))
            french.update(pair[1].split(" "))
    assert len(grammar.english_words()) >= 300
    assert english == set(grammar.english_words())
    assert french <= set(grammar.french_words())
    assert len(french) > 0.97 * len(grammar.french_words())
    for words in (grammar.english_words(), grammar.french_words()):
        assert words == sorted(words) and all(word == word.lower() and " " not in word and word for word in words)


def test_no_english_form_has_two_meanings_in_one_place():
    forms = [form for text in VERB_LISTS for *english, _ in lexicon.items(text) for form in english]
    assert [form for form, times in Counter(forms).items() if times > 1] == []
    nouns = [form for text in NOUN_LISTS for noun, _, _ in lexicon.items(text) for form in lexicon.inflect_noun(noun)]
    assert [form for form, times in Counter(nouns).items() if times > 1] == []
    assert not set(nouns) & set(forms)


VERB_LISTS = [entries[kind] for entries in lexicon.TOPICS.values() for kind in ("verbs", "alone")]
VERB_LISTS += [lexicon.SHARED_VERBS, lexicon.LIKING_VERBS, lexicon.HATING_VERBS, lexicon.PERSON_VERBS]
VERB_LISTS += [lexicon.PLACE_VERBS, lexicon.SAYING_VERBS]
NOUN_LISTS = [entries[kind] for entries in lexicon.TOPICS.values() for kind in ("persons", "things", "place")]


def test_held_out_sentences_have_eight_words_and_few_more_than_twenty():
    lengths = [len(english.split(" ")) for english, _ in grammar.sentence_pairs("test", 2003)]
    assert np.mean(lengths) >= 8
    assert np.mean(np.array(lengths) > 20) < 0.03


def test_each_level_of_exact_depth_nests_one_relative_clause_more_and_lengthens_the_sentence():
    means = []
    for depth in range(5):
        pairs = grammar.sentence_pairs("test", 53, depth=depth)
        means.append(np.mean([len(english.split(" ")) for english, _ in pairs]))
        for english, _ in pairs:
            words = english.split(" ")
            assert words.count("who") + words.count("that") == depth, english
            assert parses(english, depth) == 1
            assert depth == 0 or grammar.log_probability(english, depth - 1) == -math.inf
            assert grammar.log_probability(english, depth=depth) > grammar.log_probability(english, depth)
    assert np.all(np.diff(means) > 3)


def test_splits_share_no_sentence_and_are_as_large_as_said():
    parts = defaultdict(set)
    for split in grammar.SPLITS:
        parts[split].update(english for english, _ in grammar.sentence_pairs(split, 1009))
        parts[split].update(sentence for text in grammar.documents(split, 101) for sentence in text)
        parts[split].update(sentence for sentence, _ in grammar.labelled(split, 211))
        assert {grammar.split_of(sentence) for sentence in parts[split]} == {split}
    for one, other in itertools.combinations(grammar.SPLITS, 2):
        assert not parts[one] & parts[other]
    shares = Counter(grammar.split_of(str(number)) for number in range(20_011))
    assert shares["test"] / 20_011 == pytest.approx(0.05, abs=0.005)
    assert shares["validation"] / 20_011 == pytest.approx(0.05, abs=0.005)


def test_draws_depend_on_the_seed_alone_not_on_the_process():
    code = """
from training import grammar
print(grammar.sentence_pairs("test", 3, 5), grammar.documents("test", 2, 5), grammar.labelled("test", 3, 5))
print(grammar.masked_couples("test", 2, 5))
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert grammar.sentence_pairs("train", 7, 1) == grammar.sentence_pairs("train", 11, 1)[:7]
    assert grammar.sentence_pairs("train", 7, 1) != grammar.sentence_pairs("train", 7, 2)


def test_labels_are_those_of_the_main_clause_and_no_single_word_tells_them():
    lines = grammar.labelled("train", 4000, seed=3)
    counts: dict[str, Counter] = {"positive": Counter(), "negative": Counter()}
    for sentence, label in lines:
        counts[label].update(set(sentence.split(" ")))
    assert Counter(label for _, label in lines) == {"positive": 2000, "negative": 2000}
    for word in grammar.english_words():
        assert abs(counts["positive"][word] - counts["negative"][word]) < 200, word
    assert set().union(*counts.values()) <= set(grammar.english_words())


def test_opinions_occur_in_documents_and_translate():
    said = [sentence for text in grammar.documents("train", 503) for sentence in text]
    words = Counter(word for sentence in said for word in sentence.split(" "))
    for word in ("good", "excellent", "bad", "awful", "likes", "hates", "not"):
        assert words[word] > 10, word
    for sentence, _ in grammar.labelled("test", 31):
        assert grammar.translate(sentence)


def test_documents_keep_to_their_length_topic_and_protagonist():
    texts = grammar.documents("validation", 211, seed=13, sentences=(2, 5))
    assert {len(text) for text in texts} == {2, 3, 4, 5}
    names = {name for name, _ in grammar.NAMES}
    same = [Counter(word for word in " ".join(text).split(" ") if word in names).most_common(1) for text in texts]
    assert sum(bool(most) for most in same) > 100


def test_document_probabilities_sum_to_one_under_every_topic_and_protagonist():
    for rules in grammar.grammar(1).rules.values():
        total = sum(grammar.document_probability(rule) for rule in rules)
        assert np.allclose(total, 1)


def test_the_posterior_of_a_hidden_word_is_that_of_trying_every_word():
    first, second = ["paul", "eats", "the", "cake"], ["anna", "hates", "our", "cheese"]
    names = {name for name, _ in grammar.NAMES}  # nothing else at 0 shows one
    for at in (0, 1, 3):
        hidden = [*first[:at], None, *first[at + 1 :]]
        weights = {}
        other = grammar.Reading(second).likelihood
        for word in grammar.english_words():
            filled = [*first[:at], word, *first[at + 1 :]]
            if grammar.grammar(1).parse(filled) and (at or word in names):
                one = grammar.Reading(filled).likelihood
                weights[word] = float(np.mean(one * other) + np.mean(one) * np.mean(other))
        [posterior] = grammar.masked_posterior(hidden, second)
        assert sum(posterior.values()) == pytest.approx(1)
        for word, weight in weights.items():
            assert posterior[word] == pytest.approx(weight / sum(weights.values()), abs=1e-9), word
        assert {word for word, p in posterior.items() if p > 1e-12} == {word for word, w in weights.items() if w > 0}


def test_two_hidden_words_are_summed_over_each_other():
    first, second = ["paul", None, "the", None], ["anna", "hates", "our", "cheese"]
    joint: Counter = Counter()
    other = grammar.Reading(second).likelihood
    verbs = ["eats", "tastes", "sells", "chooses", "finds", "sees", "meets", "helps"]
    for verb, noun in itertools.product(verbs, ["cake", "soup", "cook", "book"]):
        words = ["paul", verb, "the", noun]
        if grammar.grammar(1).parse(words):
            one = grammar.Reading(words).likelihood
            joint[verb, noun] = float(np.mean(one * other) + np.mean(one) * np.mean(other))
    verb_posterior, noun_posterior = grammar.masked_posterior(first, second)
    eats = sum(weight for (verb, _), weight in joint.items() if verb == "eats")
    tastes = sum(weight for (verb, _), weight in joint.items() if verb == "tastes")
    assert verb_posterior["eats"] / verb_posterior["tastes"] == pytest.approx(eats / tastes)
    assert noun_posterior["cake"] / noun_posterior["soup"] == pytest.approx(1)
    assert noun_posterior["cake"] > noun_posterior["book"]


def test_a_hidden_word_no_sentence_could_have_is_refused():
    with pytest.raises(ValueError, match="must be one of the built-in grammar, got"):
        grammar.masked_posterior(["cat", None], ["anna", "sings"])
    with pytest.raises(ValueError, match="must show a topic and a name, got"):
        grammar.next_sentence_posterior("he sings", "anna sings")


def test_the_best_guesses_are_as_often_right_as_they_say():
    count = 307
    couples = grammar.sentence_couples("test", count, seed=3)
    right = [(grammar.next_sentence_posterior(one, other) > 0.5) == follows for one, other, follows in couples]
    assert np.mean(right) == pytest.approx(grammar.next_sentence_best_accuracy(count, 3), abs=0.06)
    assert grammar.next_sentence_best_accuracy(count, 3) > 0.9
    hits = []
    for first, second, truth in grammar.masked_couples("test", count, seed=3):
        posteriors = grammar.masked_posterior(first, second)
        assert len(posteriors) == len(truth) == (first + second).count(None)
        hits += [max(guess, key=guess.__getitem__) == word for guess, word in zip(posteriors, truth, strict=True)]
    assert np.mean(hits) == pytest.approx(grammar.masked_best_accuracy(count, 3), abs=0.06)


def test_the_screen_shows_pairs_a_document_labels_and_numbers(capsys):
    grammar.main()
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 40
    for expected in ("Pairs", "A document", "positive: ", "negative: ", "nats a word"):
        assert expected in shown
