"""The built-in corpus: a bilingual grammar of our own, English to French, whose every question has an exact answer.

English is a probabilistic context-free grammar in which a sentence has exactly one derivation; French is computed from
that derivation. So there are true translations of any length, a true entropy (the floor of a language model's loss),
and true posteriors for a masked word or a next sentence. `python -m training.grammar` shows some of it.

A document draws a theme, some topics, and a protagonist, then its sentences independently: the same grammar with the
choices of topic and name reweighted, less the sentences that show no topic or no name. Train, validation and test are
disjoint in sentences, by a checksum of the sentence.
"""

import math
import random
import zlib
from bisect import bisect
from collections.abc import Callable
from functools import cache, partial
from itertools import accumulate, product
from typing import Any, NamedTuple

import numpy as np

from training import lexicon as fr
from training.lexicon import BE, asked, being, clause, past, present, stated, with_modal

SPLITS = ("train", "validation", "test")
TOPICS = tuple(fr.TOPICS)
NAMES = tuple((name, gender) for gender, names in fr.NAMES.items() for name in names.split())
# Few themes and protagonists: that two sentences agree in one of many kinds is more than a small model soon finds.
PROTAGONISTS = tuple((name, gender) for name, gender in NAMES if name in fr.PROTAGONISTS.split())
ABOUT = tuple((theme, *protagonist) for theme in fr.THEMES.values() for protagonist in PROTAGONISTS)  # of a document

RELATIVE, RELATIVE_OPINION = 0.35, 0.6  # share of noun phrases that carry a relative clause where the depth allows it
# Share of a document's choices of topic, and of those of a name or of he and she, that fall on its own.
ON_TOPIC, ON_PROTAGONIST = 0.97, 0.95
SHOWN = ("topic", "name")  # what each sentence of a document shows
AGREEMENTS = {"i": 0.12, "s": 0.55, "p": 0.33}  # subjects: i; he, she or one; you, we, they or several
NUMBERS = {"s": 0.65, "p": 0.35}
IS = {"i": "am", "s": "is", "p": "are"}
WAS = {"i": "was", "s": "was", "p": "were"}
DO = {"i": "do", "s": "does", "p": "do"}
FORM = {"i": "b", "s": "s", "p": "b"}  # English verb forms: b base, s third person, p past
COPULAS = ((IS, BE.present, 0.75), (WAS, fr.IMPERFECT_OF_BE, 0.25))
SHAPES = {"": (0.55, fr.bare), "PRE": (0.2, fr.before), "POST": (0.15, fr.behind), "PRE POST": (0.1, fr.around)}


class Rule(NamedTuple):
    """left -> right with a probability, and what French the rule makes of its symbols."""

    left: str
    right: tuple[str, ...]
    probability: float
    action: Callable[..., Any]
    tag: tuple[str, str] | None  # the topic, name or gender of a pronoun that the rule chooses
    arity: int  # number of symbols, not words, on the right


def same(value):
    return value


def join(*parts):
    return [word for part in parts for word in part]


def begins_with_vowel(english: str) -> bool:
    return english[0] in "aeiou" or english == "honest"


def adjectives(text: str) -> list[tuple[str, Any]]:
    return [(english, fr.inflect_adjective(forms)) for english, forms in fr.items(text)]


class Rules:
    """Collects the rules, unnormalised. Symbols are in capitals, words in lower case stand for themselves.

    Symbols carry their features: number s or p, agreement i, s or p, verb form b, s or p, topic, and the depth of
    relative clauses left to them. Noun phrases have a polarity: + anywhere, - as the object of a negated verb
    ("pas de pain"), = with a definite determiner only. In an exact grammar the subject nests to the very depth.
    """

    def __init__(self, max_depth: int, exact: bool):
        self.exact = exact
        self.raw: list[tuple[str, str, float, Callable, tuple[str, str] | None]] = []
        self.openings: dict[str, dict[str, int]] = {}
        self.words_of_nouns()
        self.words_of_verbs()
        for depth in range(max_depth + 1):
            self.noun_phrases(depth)
            self.subjects(depth)
            self.verb_phrases(depth)
        for depth in {0, max_depth}:
            self.clauses(depth)
        if exact:
            self.add("S", f"CLAUSE.{max_depth}", 1.0)
        else:
            self.sentences(max_depth)

    def add(self, left, right, weight, action=same, tag=None):
        self.raw.append((left, right, weight, action, tag))

    def words(self, left, entries):
        """One rule for each (English, French value)."""
        for english, value in entries:
            self.add(left, english, 1.0, lambda value=value: value)

    def opening(self, left, entries):
        """The same words three times: all of them, those behind "a" and those behind "an"."""
        self.words(left, entries)
        a, an = ([entry for entry in entries if begins_with_vowel(entry[0]) == vowel] for vowel in (False, True))
        self.words(f"{left}.a", a)
        self.words(f"{left}.an", an)
        self.openings[left] = {"a": len(a), "an": len(an)}

    def verbs(self, left, text):
        for *forms, french in fr.items(text):
            for form, english in zip("bsp", forms):
                self.words(f"V.{form}.{left}", [(english, fr.inflect_verb(french))])

    def words_of_nouns(self):
        for word, (pronoun, person, gender) in fr.PRONOUNS.items():
            self.words(f"PRONOUN.{word}", [(word, ([pronoun], person, gender))])
        for name, sex in NAMES:
            for left in ("NAME", f"NAME.{sex}"):
                value = ([name], 1, int(sex == "f"))
                self.add(left, name, 1.0, lambda value=value: value, ("name", name))
        for word, text in fr.DETERMINERS.items():
            forms = [form.split("_") for form in text.split()]
            polarities = "+" if word in fr.ONLY_AFFIRMED else "-" if word in fr.ONLY_DENIED else "+-="
            for polarity, (number, at) in product(polarities, (("s", 0), ("p", 2))):
                if forms[at] != ["-"]:
                    weight = {"the": 6.0, "any": 4.0}.get(word, 1.0)
                    self.add(f"DET.{number}.{polarity}", word, weight, lambda forms=forms: forms)
        preposed = adjectives(f"{fr.NEUTRAL_BEFORE}, {fr.OPINION_BEFORE}")
        opinions = [entry for entry in adjectives(f"{fr.PRAISE}, {fr.BLAME}") if entry not in preposed]
        self.opening("PRE", preposed)
        for kind, told, more in (("P", fr.OF_PERSONS, []), ("T", fr.OF_THINGS, opinions)):
            self.opening(f"POST.{kind}", adjectives(told) + more)
            self.words(f"TOLD.{kind}", adjectives(told))
            self.add(f"ADJ.{kind}", f"TOLD.{kind}", 0.8)
            self.add(f"ADJ.{kind}", f"very TOLD.{kind}", 0.2, fr.very)
        self.words("PRAISE", adjectives(fr.PRAISE))
        self.words("BLAME", adjectives(fr.BLAME))
        for topic, entries in fr.TOPICS.items():
            for kind, text in (("P", entries["persons"]), ("T", entries["things"])):
                nouns = [
                    (fr.inflect_noun(noun), fr.inflect_noun(nom), int(g == "f")) for noun, nom, g in fr.items(text)
                ]
                self.opening(f"NOUN.{kind}.s.{topic}", [(noun[0], (nom[0], gender)) for noun, nom, gender in nouns])
                self.words(f"NOUN.{kind}.p.{topic}", [(noun[1], (nom[1], gender + 2)) for noun, nom, gender in nouns])
            [[english, place, sex]] = fr.items(entries["place"])
            for word, weight in (("the", 0.8), ("our", 0.2)):
                determiner = [[form] for form in fr.DETERMINERS[word].split()]
                value = fr.determined(determiner, ([place], int(sex == "f")))
                self.add("PLACE", f"{word} {english}", weight, lambda value=value: value, ("topic", topic))
        for english, masculine, feminine, topic in fr.items(fr.PROFESSIONS):
            job = (masculine, feminine, masculine + "s", feminine + "s")
            self.add(
                "JOB.an" if begins_with_vowel(english) else "JOB.a", english, 1.0, lambda job=job: job, ("topic", topic)
            )
            self.add("JOB.p", english + "s", 1.0, lambda job=job: job, ("topic", topic))

    def words_of_verbs(self):
        for topic, entries in fr.TOPICS.items():
            self.verbs(f"TAKE.{topic}", entries["verbs"])
            self.verbs(f"ALONE.{topic}", entries["alone"])
        persons = fr.PERSON_VERBS.split(", ")
        self.verbs("KNOW", ", ".join(entry for entry in persons if ":" not in entry))
        self.verbs("SPEAK", ", ".join(entry for entry in persons if ":" in entry))
        for left, text in (("SHARED", fr.SHARED_VERBS), ("GO", fr.PLACE_VERBS), ("SAY", fr.SAYING_VERBS)):
            self.verbs(left, text)
        for left, text in (("LIKE", fr.LIKING_VERBS), ("HATE", fr.HATING_VERBS), ("WANT", "want_to wants_to vouloir")):
            self.verbs(left, text)
        for form, feeling in product("bs", ("LIKE", "HATE")):
            self.add(f"V.{form}.FEEL", f"V.{form}.{feeling}", 1.0)
        self.words("MODAL", [(english, fr.inflect_verb(french)) for english, french in fr.MODALS.items()])
        self.words("ADVERB", list(fr.ADVERBS.items()))
        for left, words in (("TIME", fr.TIMES), ("CONJUNCTION", fr.CONJUNCTIONS), ("WHY", fr.QUESTION_WORDS)):
            self.words(left, [(english, french.split()) for english, french in words.items()])
        for english, french in fr.PREPOSITIONS.items():
            self.add("IN", f"{english} PLACE", 1.0, lambda place, words=french.split(): ([*words, *place[0]],))  # noqa: B008

    def noun_phrases(self, depth):
        for kind, number, topic, polarity in product("PT", "sp", TOPICS, "+-="):
            family, tag, weight = f"{kind}.{number}.{topic}", ("topic", topic), NUMBERS[number]
            simple, full = f"SIMPLE.{family}.{polarity}", f"NP.{family}.{polarity}.{depth}"
            if depth == 0:
                self.simple_noun_phrase(simple, kind, number, topic, polarity)
            self.with_relatives(full, simple, kind, number, topic, depth, RELATIVE)
            self.add(f"{kind}.{polarity}.{depth}", full, weight, tag=tag)
            if kind == "T":
                self.add(f"T.{topic}.{polarity}.{depth}", full, weight)
            if kind == "T" and polarity == "=":
                heavy = f"HEAVY.{number}.{topic}.{depth}"
                self.with_relatives(heavy, simple, kind, number, topic, depth, RELATIVE_OPINION)
                self.add(f"HEAVY.{depth}", heavy, weight, tag=tag)
        for polarity in "+-=" * (not self.carries(depth)):
            self.add(f"P.{polarity}.{depth}", "NAME", 2.5)

    def carries(self, depth):
        """Whether whatever has this depth must hold a relative clause."""
        return self.exact and depth > 0

    def simple_noun_phrase(self, left, kind, number, topic, polarity):
        noun = f"NOUN.{kind}.{number}.{topic}"
        for slots, (share, shape) in SHAPES.items():
            right = [*slots.replace("POST", f"POST.{kind}").split(), noun]
            if polarity == "+":
                self.add(f"COMMON.{noun}", " ".join(right), share, shape)
            if number == "s" and polarity != "=":
                fitting = self.openings[right[0]]
                for article in (article for article in fitting if fitting[article]):
                    weight = 0.25 * share * fitting[article] / sum(fitting.values())
                    made = fr.articled(shape, fr.A if polarity == "+" else fr.NONE)
                    self.add(left, " ".join([article, f"{right[0]}.{article}", *right[1:]]), weight, made)
        self.add(left, f"DET.{number}.{polarity} COMMON.{noun}", 0.65, fr.determined)
        if polarity != "-" and kind == "T":
            self.add(left, f"the {noun} of OWNER", 0.1, fr.owned)

    def with_relatives(self, left, simple, kind, number, topic, depth, share):
        """A noun phrase, with probability `share` with a relative clause; always, in exact grammars, until depth 0."""
        if not self.carries(depth):
            self.add(left, simple, 1.0 - share if depth else 1.0)
        if depth == 0:
            return
        inner, is_, do, form = depth - 1, IS[number], DO[number], FORM[number]
        verbs: list[str]
        if kind == "P":
            verbs, rest = ["KNOW"], 0.3
            told = [("who", "ADJ.P", 0.1)]
            self.add(left, f"{simple} who RELATED.{form}.+.{inner}", 0.4 * share, fr.qualified(present()))
            self.add(left, f"{simple} who {do} not RELATED.b.-.{inner}", 0.2 * share, fr.qualified(present("pas")))
        else:
            verbs, rest = [f"TAKE.{topic}", "SHARED", "FEEL"], 0.76
            told = [("that", "ADJ.T", 0.12), ("that", "PRAISE", 0.06), ("that", "BLAME", 0.06)]
        for word, adjective, weight in told * (not self.carries(inner)):
            for denied, not_, part in (("", "", 0.6), ("pas", " not", 0.4)):
                right = f"{simple} {word} {is_}{not_} {adjective}"
                self.add(left, right, part * weight * share, fr.qualified(being(BE.present, denied)))
        for verb, (who, weight) in product(verbs, AGREEMENTS.items()):
            if not (self.carries(inner) and who == "i"):
                subject, weight = f"{simple} that SUBJECT.{who}.{inner}", weight * rest * share / len(verbs)
                self.add(left, f"{subject} V.{FORM[who]}.{verb}", 0.7 * weight, fr.aimed(present()))
                self.add(left, f"{subject} {DO[who]} not V.b.{verb}", 0.3 * weight, fr.aimed(present("pas")))

    def subjects(self, depth):
        for number, topic in product("sp", TOPICS):
            full = f"NP.P.{number}.{topic}.+.{depth}"
            self.add(f"SUBJECT.{number}.{depth}", full, 0.4 / len(TOPICS), tag=("topic", topic))
            if depth == 0 and number == "s":
                owner = fr.articled(fr.bare, fr.THE)
                self.add("OWNER", f"the NOUN.P.s.{topic}", 1.0, owner, ("topic", topic))
        if self.carries(depth):
            return
        self.add(f"SUBJECT.i.{depth}", "PRONOUN.i", 1.0)
        self.add(f"SUBJECT.s.{depth}", "PRONOUN.he", 0.12, tag=("gender", "m"))
        self.add(f"SUBJECT.s.{depth}", "PRONOUN.she", 0.12, tag=("gender", "f"))
        self.add(f"SUBJECT.s.{depth}", "NAME", 0.4)
        for word, weight in (("you", 0.22), ("we", 0.22), ("they", 0.14)):
            self.add(f"SUBJECT.p.{depth}", f"PRONOUN.{word}", weight)
        self.add(f"SUBJECT.p.{depth}", "NAME.f and NAME.m", 0.05, fr.together)
        self.add(f"SUBJECT.p.{depth}", "NAME and OWNER", 0.05, fr.together)

    def verb_phrases(self, depth):
        """RELATED: verb and objects in a relative clause; ACT: in a main clause; PREDICATE: ACT in a tense, negated."""
        for form, polarity, kind in product("bsp", "+-", ("RELATED", "ACT")):
            left = f"{kind}.{form}.{polarity}.{depth}"
            for topic in TOPICS:
                endings = [("", 0.35, 0.06)] + [(" IN", 0.08, 0.08)] * (kind == "ACT")
                for ending, take, alone in endings:
                    right = f"V.{form}.TAKE.{topic} T.{topic}.{polarity}.{depth}{ending}"
                    self.add(left, right, take / len(TOPICS), fr.phrase, ("topic", topic))
                    if not self.carries(depth):
                        right = f"V.{form}.ALONE.{topic}{ending}"
                        self.add(left, right, alone / len(TOPICS), fr.phrase, ("topic", topic))
            self.add(left, f"V.{form}.SHARED T.{polarity}.{depth}", 0.22, fr.phrase)
            self.add(left, f"V.{form}.KNOW P.{polarity}.{depth}", 0.12, fr.phrase)
            self.add(left, f"V.{form}.SPEAK P.+.{depth}", 0.06, fr.phrase)
            if kind == "ACT":
                self.add(left, f"V.{form}.GO PLACE", 0.09, fr.phrase)
            elif form != "p":
                self.add(left, f"V.{form}.FEEL T.=.{depth}", 0.2, fr.phrase)
        for who in AGREEMENTS:
            left, form, do = f"PREDICATE.{who}.{depth}", FORM[who], DO[who]
            self.add(left, f"ACT.{form}.+.{depth}", 0.26, present())
            self.add(left, f"ADVERB ACT.{form}.+.{depth}", 0.07, fr.with_adverb)
            self.add(left, f"never ACT.{form}.-.{depth}", 0.04, present("jamais"))
            self.add(left, f"{do} not ACT.b.-.{depth}", 0.12, present("pas"))
            self.add(left, f"ACT.p.+.{depth}", 0.14, past())
            self.add(left, f"did not ACT.b.-.{depth}", 0.06, past("pas"))
            self.add(left, f"MODAL ACT.b.+.{depth}", 0.12, with_modal())
            self.add(left, f"MODAL not ACT.b.-.{depth}", 0.04, with_modal("pas"))
            self.add(left, f"V.{form}.WANT ACT.b.+.{depth}", 0.04, with_modal())
            for words, verb, share in COPULAS:
                self.add(left, f"{words[who]} ADJ.P", 0.08 * share, being(verb))
                self.add(left, f"{words[who]} not ADJ.P", 0.04 * share, being(verb, "pas"))
            self.add(left, f"{IS[who]} IN", 0.03, fr.placed)

    def clauses(self, depth):
        left, inner = f"CLAUSE.{depth}", 0 if self.exact else depth
        for who, weight in AGREEMENTS.items():
            if not (self.carries(depth) and who == "i"):
                self.add(left, f"SUBJECT.{who}.{depth} PREDICATE.{who}.{inner}", 0.8 * weight, clause)
        for topic, (number, share), (words, verb, part) in product(TOPICS, NUMBERS.items(), COPULAS):
            thing, weight = f"NP.T.{number}.{topic}.+.{depth} {words[number]}", 0.12 * share * part / len(TOPICS)
            self.add(left, f"{thing} ADJ.T", 0.7 * weight, stated(being(verb)), ("topic", topic))
            self.add(left, f"{thing} not ADJ.T", 0.3 * weight, stated(being(verb, "pas")), ("topic", topic))
        if self.carries(depth):
            return
        singular = (("PRONOUN.i", "am", ""), ("PRONOUN.he", "is", "m"), ("PRONOUN.she", "is", "f"), ("NAME", "is", ""))
        for subject, is_, gender in (*singular, ("PRONOUN.you", "are", "")):
            tag = ("gender", gender) if gender else None
            for article, weight in (("a", 0.006), ("an", 0.001)):
                self.add(left, f"{subject} {is_} {article} JOB.{article}", weight, stated(being(BE.present)), tag)
                denied = f"{subject} {is_} not {article} JOB.{article}"
                self.add(left, denied, weight / 4, stated(being(BE.present, "pas")), tag)
        for subject in ("PRONOUN.we", "PRONOUN.they"):
            self.add(left, f"{subject} are JOB.p", 0.008, stated(being(BE.present)))

    def sentences(self, depth):
        self.add("S", f"CLAUSE.{depth}", 0.48)
        self.add("S", f"TIME CLAUSE.{depth}", 0.1, join)
        self.add("S", f"CLAUSE.{depth} CONJUNCTION CLAUSE.0", 0.1, join)
        self.add("S", f"REPORT CLAUSE.{depth}", 0.06, join)
        self.add("S", "QUESTION", 0.12)
        for who, weight in AGREEMENTS.items():
            subject = f"SUBJECT.{who}.0"
            for verb, make, share in ((f"V.{FORM[who]}.SAY", present(), 0.7), ("V.p.SAY", past(), 0.3)):
                report = partial(lambda make, subject, verb: [*clause(subject, make((verb, []))), "que"], make)
                self.add("REPORT", f"{subject} {verb} that", weight * share, report)
        for opinion, feeling in (("PRAISE", "LIKE"), ("BLAME", "HATE")):
            self.opinions(f"{opinion}.+", opinion, feeling, depth, "", "", 0.036)
            self.opinions(f"{opinion}.-", opinion, feeling, depth, "pas", " not", 0.034)
        self.questions(depth)

    def opinions(self, left, opinion, feeling, depth, denied, not_, share):
        """What `labelled` draws from: praise or blame, affirmed or denied, of a thing often with a relative clause."""
        self.add("S", left, share)
        told = being(BE.present, denied)
        for topic, number in product(TOPICS, "sp"):
            heavy, tag, weight = f"HEAVY.{number}.{topic}.{depth}", ("topic", topic), NUMBERS[number] / len(TOPICS)
            for be, verb, part in COPULAS:
                right = f"{heavy} {be[number]}{not_} {opinion}"
                self.add(left, right, 0.5 * part * weight, stated(being(verb, denied)), tag)
            right = f"REPORT {heavy} {IS[number]}{not_} {opinion}"
            self.add(left, right, 0.13 * weight, lambda report, *parts: report + stated(told)(*parts), tag)
        for who, weight in AGREEMENTS.items():
            today, before = (f"{DO[who]} not V.b", "did not V.b") if denied else (f"V.{FORM[who]}", "V.p")
            for words, make, part in ((today, present(denied), 0.25), (before, past(denied), 0.1)):
                action = partial(lambda make, subject, *parts: clause(subject, make(fr.phrase(*parts))), make)
                self.add(left, f"SUBJECT.{who}.0 {words}.{feeling} HEAVY.{depth}", part * weight, action)

    def questions(self, depth):
        est_ce_que, qu_est_ce_que = ["est-ce", "que"], ["qu'est-ce", "que"]
        for who, weight in AGREEMENTS.items():
            subject, act = f"SUBJECT.{who}.{depth}", f"ACT.b.+.{depth}"
            for do, make, share in ((DO[who], present(), 0.24), ("did", past(), 0.12)):
                ask = asked(est_ce_que, make)
                self.add("QUESTION", f"{do} {subject} {act} ?", weight * share, ask)
                self.add("QUESTION", f"WHY {do} {subject} {act} ?", 0.7 * weight * share, self.opened(ask))
            feel = asked(est_ce_que, lambda verb, thing: present()(fr.phrase(verb, thing)))
            self.add("QUESTION", f"{DO[who]} {subject} V.b.FEEL T.=.{depth} ?", 0.08 * weight, feel)
            can = asked(est_ce_que, with_modal())
            can = partial(lambda can, modal, subject, part: can(subject, modal, part), can)
            self.add("QUESTION", f"MODAL {subject} {act} ?", 0.12 * weight, can)
            self.add("QUESTION", f"{IS[who]} {subject} ADJ.P ?", 0.1 * weight, asked(est_ce_que, being(BE.present)))
            what = asked(qu_est_ce_que, lambda verb: present()((verb, [])))
            for topic in TOPICS:
                right = f"what {DO[who]} {subject} V.b.TAKE.{topic} ?"
                self.add("QUESTION", right, 0.06 * weight / len(TOPICS), what, ("topic", topic))
            for verb in ("SHARED", "FEEL"):
                self.add("QUESTION", f"what {DO[who]} {subject} V.b.{verb} ?", 0.03 * weight, what)
        for topic, (number, weight), told in product(TOPICS, NUMBERS.items(), ("ADJ.T", "PRAISE", "BLAME")):
            right, share = f"{IS[number]} NP.T.{number}.{topic}.+.{depth} {told} ?", 0.02 * weight / len(TOPICS)
            self.add("QUESTION", right, share, asked(est_ce_que, being(BE.present)), ("topic", topic))
        qui = (["qui"], 1, 0)
        self.add("QUESTION", f"who PREDICATE.s.{depth} ?", 0.1, lambda predicate: [*clause(qui, predicate), "?"])

    def opened(self, ask):
        return lambda opening, *parts: [*opening, *ask(*parts)]


class Grammar:
    """Normalised rules with what is computed from them. Made by `grammar(max_depth, exact)`; never changed."""

    def __init__(self, max_depth: int, exact: bool):
        raw = Rules(max_depth, exact).raw
        totals: dict[str, float] = {}
        for left, _, weight, _, _ in raw:
            totals[left] = totals.get(left, 0.0) + weight
        self.rules: dict[str, list[Rule]] = {left: [] for left in totals}
        for left, right, weight, action, tag in raw:
            parts = tuple(right.split())
            arity = sum(part in totals for part in parts)
            self.rules[left].append(Rule(left, parts, weight / totals[left], action, tag, arity))
        self.tables = {left: table([(rule, rule.probability) for rule in rules]) for left, rules in self.rules.items()}
        self.beginning: dict[str, dict[str, list[Rule]]] = {}  # symbol -> first word -> rules worth trying
        for left in self.rules:
            self.first_words(left)

    def first_words(self, symbol: str) -> dict[str, list[Rule]] | list[str]:
        if symbol not in self.rules:
            return [symbol]
        if symbol not in self.beginning:
            found: dict[str, list[Rule]] = {}
            for rule in self.rules[symbol]:
                for word in self.first_words(rule.right[0]):
                    found.setdefault(word, []).append(rule)
            self.beginning[symbol] = found
        return self.beginning[symbol]

    def sample(self, draw: Callable[[], float], tables: dict, start: str = "S") -> tuple[str, list[Rule]]:
        """An English sentence and its leftmost derivation, by numbers in [0, 1) from `draw`."""
        words, rules, stack = [], [], [start]
        while stack:
            symbol = stack.pop()
            if symbol in tables:
                cumulative, choices = tables[symbol]
                rule, reversed_right = choices[bisect(cumulative, draw())]
                rules.append(rule)
                stack += reversed_right
            else:
                words.append(symbol)
        return " ".join(words), rules

    def parse(self, words: list[str | None]) -> dict[tuple, list]:
        """All derivations of a sentence, packed; None stands for any word.

        Returns: node (symbol, begin, end) -> list of (rule, child nodes), children before parents and the root last;
            empty where the grammar has no such sentence.
        """
        length = len(words)
        memo: dict[tuple[str, int], dict[int, list]] = {}

        def spans(symbol: str, begin: int) -> dict[int, list]:
            """end -> ways to derive words[begin:end]."""
            if (symbol, begin) in memo:
                return memo[symbol, begin]
            found: dict[int, list] = {}
            word = words[begin]
            for rule in self.rules[symbol] if word is None else self.beginning[symbol].get(word, ()):
                partial_: list[tuple[int, tuple]] = [(begin, ())]
                for part in rule.right:
                    partial_ = [(at, nodes) for at, nodes in partial_ if at < length]
                    if part in self.rules:
                        partial_ = [(to, (*nodes, (part, at, to))) for at, nodes in partial_ for to in spans(part, at)]
                    else:
                        partial_ = [(at + 1, nodes) for at, nodes in partial_ if words[at] in (part, None)]
                    if not partial_:
                        break
                for end, nodes in partial_:
                    found.setdefault(end, []).append((rule, nodes))
            memo[symbol, begin] = found
            return found

        forest: dict[tuple, list] = {}

        def collect(node):
            symbol, begin, end = node
            for _, nodes in memo[symbol, begin][end]:
                for child in nodes:
                    if child not in forest:
                        collect(child)
            forest[node] = memo[symbol, begin][end]

        if length and length in spans("S", 0):
            collect(("S", 0, length))
        return forest


def table(weighted: list[tuple[Rule, float]]) -> tuple[list[float], list[tuple[Rule, tuple[str, ...]]]]:
    """Cumulative probabilities without the last, and rules with their right sides reversed for a stack."""
    cumulative = list(accumulate(probability for _, probability in weighted))
    return cumulative[:-1], [(rule, rule.right[::-1]) for rule, _ in weighted]


@cache
def grammar(max_depth: int = 1, exact: bool = False) -> Grammar:
    """The grammar with relative clauses nested at most, or in the subject exactly, `max_depth` deep."""
    if max_depth < 0:
        raise ValueError(f"The grammar needs a depth >= 0, got {max_depth!r}.")
    return Grammar(max_depth, exact)


def chosen(max_depth: int, depth: int | None) -> Grammar:
    return grammar(max_depth) if depth is None else grammar(depth, True)


def inside(forest: dict, weigh: Callable[[Rule], Any]) -> dict[tuple, Any]:
    """Summed weight of the derivations below each node; arrays where `weigh` gives arrays."""
    sums: dict[tuple, Any] = {}
    for node, edges in forest.items():
        total = 0.0
        for rule, nodes in edges:
            weight = weigh(rule)
            for child in nodes:
                weight = weight * sums[child]
            total = total + weight
        sums[node] = total
    return sums


def french(rules: list[Rule]) -> str:
    """The translation, from a leftmost derivation."""
    remaining = iter(rules)

    def value():
        rule = next(remaining)
        return rule.action(*[value() for _ in range(rule.arity)])

    return fr.contract(value())


def split_of(sentence: str) -> str:
    """By a checksum, so the same everywhere: one sentence in twenty is test, one validation, the others train."""
    remainder = zlib.crc32(sentence.encode()) % 20
    return ("test", "validation")[remainder] if remainder < 2 else "train"


def check_split(split: str):
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}.")


def sentence_pairs(
    split: str, count: int, seed: int = 0, max_depth: int = 1, depth: int | None = None
) -> list[tuple[str, str]]:
    """Draws (English, French) pairs, with replacement, the same on every machine.

    Args:
        split: "train", "validation" or "test"; they share no English sentence.
        count: number of pairs.
        seed: any int; each split draws its own stream.
        max_depth: how deep relative clauses may nest.
        depth: instead, how deep they nest in every subject: each level lengthens the way from subject to verb.
    Raises:
        ValueError: for another split, or a negative depth.
    """
    check_split(split)
    source, draw = chosen(max_depth, depth), random.Random(f"pairs {split} {seed}").random
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        english, rules = source.sample(draw, source.tables)
        if split_of(english) == split:
            pairs.append((english, french(rules)))
    return pairs


def translate(english: str) -> str:
    """The French of an English sentence, nested however deep. Raises: ValueError if the grammar does not have it."""
    words: list[str | None] = [*english.split(" ")]
    forest = grammar(words.count("who") + words.count("that")).parse(words)
    if not forest:
        raise ValueError(f"translate needs an English sentence of the built-in grammar, got {english!r}.")
    rules, stack = [], [("S", 0, len(words))]
    while stack:
        rule, nodes = forest[stack.pop()][0]
        rules.append(rule)
        stack += reversed(nodes)
    return french(rules)


def log_probability(sentence: str, max_depth: int = 1, depth: int | None = None) -> float:
    """Natural log-probability of a whole English sentence, its end included; -inf where the grammar does not have it.

    Computed by the parser, not by the sampler. It is the probability before the split into train and test.
    """
    words: list[str | None] = [*sentence.split(" ")]
    sums = inside(chosen(max_depth, depth).parse(words), lambda rule: rule.probability)
    return math.log(sums["S", 0, len(words)]) if sums else -math.inf


def expectation(source: Grammar, of_rule: Callable[[Rule], float]) -> float:
    """Expected sum of a number over the rules of a derivation: exact, by recursion over symbols, which never recur."""

    @cache
    def expected(symbol):
        return sum(
            rule.probability * (of_rule(rule) + sum(expected(part) for part in rule.right if part in source.rules))
            for rule in source.rules[symbol]
        )

    return expected("S")


def entropy(max_depth: int = 1, depth: int | None = None) -> float:
    """Exact entropy of an English sentence in nats: one derivation a sentence makes it that of the derivation."""
    return expectation(chosen(max_depth, depth), lambda rule: -math.log(rule.probability))


def expected_length(max_depth: int = 1, depth: int | None = None) -> float:
    """Exact mean number of English words of a sentence, "?" counted, the end not."""
    return expectation(chosen(max_depth, depth), lambda rule: len(rule.right) - rule.arity)


def entropy_per_word(max_depth: int = 1, depth: int | None = None) -> float:
    """Nats per word, the end of a sentence counted as a word: the least loss a language model can reach."""
    return entropy(max_depth, depth) / (expected_length(max_depth, depth) + 1)


@cache
def reached() -> frozenset[str]:
    """Symbols and words of the sentences with at most one level of relative clauses: deeper ones add none."""
    found, stack = {"S"}, ["S"]
    while stack:
        for part in {part for rule in grammar(1).rules.get(stack.pop(), ()) for part in rule.right} - found:
            found.add(part)
            stack.append(part)
    return frozenset(found)


@cache
def english_words() -> list[str]:
    """All English words, sorted, "?" among them."""
    return sorted(reached() - set(grammar(1).rules))


@cache
def french_words() -> list[str]:
    """All French words that a translation can have, sorted, "?" among them."""
    found = set(fr.FUNCTION_WORDS.split())
    for forms in (BE.present, fr.inflect_verb("avoir").present, fr.IMPERFECT_OF_BE):
        found |= fr.finite(forms)
    for symbol in reached() & set(grammar(1).rules):
        for rule in grammar(1).rules[symbol]:
            if rule.arity == 0:
                found |= fr.written(symbol, rule.action())
    return sorted(found)


def labelled(split: str, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Draws (English sentence, "positive" or "negative"), in turns.

    The label composes: praise or blame, turned round by a negation of the main clause but not by one in a relative
    clause. Praise, blame and negation are each as frequent under either label, so counting words does not tell it.
    """
    check_split(split)
    source, draw = grammar(1), random.Random(f"labelled {split} {seed}").random
    starts = (("PRAISE.+", "positive"), ("PRAISE.-", "negative"), ("BLAME.-", "positive"), ("BLAME.+", "negative"))
    lines: list[tuple[str, str]] = []
    while len(lines) < count:
        start, label = starts[len(lines) % 4]
        english, _ = source.sample(draw, source.tables, start)
        if split_of(english) == split:
            lines.append((english, label))
    return lines


# ---- Documents: the same grammar under a topic and a protagonist -------------------------------------------------


def affinity(tag: tuple[str, str] | None, theme: tuple[str, ...], name: str, gender: str) -> float:
    kind, value = tag or ("", "")
    own = {"topic": theme, "name": (name,), "gender": (gender,)}[kind]
    share = ON_TOPIC if kind == "topic" else ON_PROTAGONIST
    if value in own:
        return share / len(own)
    return (1 - share) / ({"topic": len(TOPICS), "name": len(NAMES), "gender": 2}[kind] - len(own))


@cache
def document_probabilities() -> dict[tuple[str, tuple[str, ...]], np.ndarray]:
    """The probability under each of ABOUT, (about,), of each rule that chooses a topic, a name, or he or she.

    Among the rules of a symbol, those that choose the same kind of thing keep their summed probability.
    """
    found: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}
    for left, rules in grammar(1).rules.items():
        for kind in {rule.tag[0] for rule in rules if rule.tag}:
            tagged = [rule for rule in rules if rule.tag and rule.tag[0] == kind]
            weights = np.array([[rule.probability * affinity(rule.tag, *about) for about in ABOUT] for rule in tagged])
            weights *= sum(rule.probability for rule in tagged) / weights.sum(axis=0)
            found |= {(left, rule.right): weight for rule, weight in zip(tagged, weights)}
    return found


def document_probability(rule: Rule):
    return document_probabilities()[rule.left, rule.right] if rule.tag else rule.probability


def chooses(rule: Rule, kinds: tuple[str, ...]) -> bool:
    return rule.tag is not None and rule.tag[0] in kinds


def probability_without(kinds: tuple[str, ...], rule: Rule):
    """Of derivations that choose nothing of these kinds."""
    return 0.0 if chooses(rule, kinds) else document_probability(rule)


@cache
def document_tables(about: int) -> dict[str, tuple]:
    """The sampler's tables under ABOUT[about]."""
    changed = {left: grammar(1).rules[left] for left, _ in document_probabilities()}
    weighed = {
        left: [(rule, float(document_probability(rule)[about]) if rule.tag else rule.probability) for rule in rules]
        for left, rules in changed.items()
    }
    return grammar(1).tables | {left: table(rules) for left, rules in weighed.items()}


def documents(split: str, count: int, seed: int = 0, sentences: tuple[int, int] = (3, 6)) -> list[list[str]]:
    """Draws short English documents, each of a theme and a protagonist: every sentence shows a topic and a name.

    Args:
        split: "train", "validation" or "test"; they share no sentence.
        count: number of documents.
        seed: any int; each split draws its own stream.
        sentences: least and most sentences of a document.
    Raises:
        ValueError: for another split.
    """
    check_split(split)
    source, generator = grammar(1), random.Random(f"documents {split} {seed}")
    texts = []
    for _ in range(count):
        tables = document_tables(generator.randrange(len(ABOUT)))
        size = generator.randint(*sentences)
        text: list[str] = []
        while len(text) < size:
            english, rules = source.sample(generator.random, tables)
            if split_of(english) == split and all(any(chooses(rule, (kind,)) for rule in rules) for kind in SHOWN):
                text.append(english)
        texts.append(text)
    return texts


def shown(all_, without_topic, without_name, without_both):
    """The part that has both; the differences are exactly 0 where one is nowhere or the other."""
    return (all_ - without_topic) - (without_name - without_both)


class Reading:
    """What a sentence of a document, None where a word is hidden, says of the document and of the hidden words."""

    def __init__(self, words: list[str | None]):
        self.words, self.root = words, ("S", 0, len(words))
        self.forest = grammar(1).parse(words)
        if not self.forest:
            raise ValueError(f"A document's sentence must be one of the built-in grammar, got {words!r}.")
        # By inclusion and exclusion, since documents leave out sentences that lack one or the other of SHOWN.
        self.weights = [partial(probability_without, kinds) for kinds in ((), *((kind,) for kind in SHOWN), SHOWN)]
        self.sums = [inside(self.forest, weigh) for weigh in self.weights]
        self.likelihood = shown(*(sums[self.root] for sums in self.sums)) + np.zeros(len(ABOUT))  # (about,)
        if not np.any(self.likelihood):
            raise ValueError(f"A document's sentence must show a topic and a name, got {words!r}.")

    def hidden(self, belief: np.ndarray) -> list[dict[str, float]]:
        """For each None, word -> probability, where belief (about,) weighs what the document may be about."""
        found = [self.outside(weigh, sums, belief) for weigh, sums in zip(self.weights, self.sums, strict=True)]
        posteriors = []
        for at in found[0]:
            masses = {word: max(0.0, shown(*(part[at][word] for part in found))) for word in found[0][at]}
            total = sum(masses.values())
            posteriors.append({word: mass / total for word, mass in masses.items()})
        return posteriors

    def outside(self, weigh: Callable[[Rule], Any], sums: dict, belief: np.ndarray) -> dict[int, dict[str, float]]:
        """Position -> word -> summed weight of the derivations with that word there."""
        found: dict[int, dict[str, float]] = {at: {} for at, word in enumerate(self.words) if word is None}
        above: dict[tuple, Any] = {self.root: belief}
        for node in reversed(self.forest):
            for rule, nodes in self.forest[node]:
                weight = above[node] * weigh(rule)
                for child in nodes:
                    share = weight
                    for other in nodes:
                        if other is not child:
                            share = share * sums[other]
                    above[child] = above.get(child, 0.0) + share
                if rule.arity < len(rule.right):
                    for child in nodes:
                        weight = weight * sums[child]
                    tell(found, rule, nodes, node[1], weight)
        return found


def tell(found, rule, nodes, at, weight):
    """Adds a rule's weight to the words that it puts where one is hidden."""
    ends = iter(nodes)
    for part in rule.right:
        if part in grammar(1).rules:
            at = next(ends)[2]
        else:
            if at in found:
                found[at][part] = found[at].get(part, 0.0) + float(np.sum(weight))
            at += 1


def masked_posterior(first: list[str | None], second: list[str | None]) -> list[dict[str, float]]:
    """What each hidden word can be, given all the rest of a pair of sentences: exact, the most that can be known.

    The pair is as BERT sees it: two sentences of one document or, as likely, of two; what they are about is unknown.
    Only the split by checksum is left out, which nobody could learn.

    Args:
        first, second: the words of each sentence, None for a hidden one.
    Returns:
        for each None, in order, word -> probability.
    Raises:
        ValueError: where no sentence of the grammar fits.
    """
    one, other = Reading(first), Reading(second)
    return [
        *one.hidden(other.likelihood + np.mean(other.likelihood)),
        *other.hidden(one.likelihood + np.mean(one.likelihood)),
    ]


def next_sentence_posterior(first: str, second: str) -> float:
    """Probability that `second` is of the same document as `first`, where one half of all pairs are: exact."""
    one, other = Reading([*first.split(" ")]).likelihood, Reading([*second.split(" ")]).likelihood
    joint = float(np.mean(one * other))
    return joint / (joint + float(np.mean(one) * np.mean(other)))


def sentence_couples(split: str, count: int, seed: int = 0) -> list[tuple[str, str, bool]]:
    """Draws (first, second, whether both are of one document), true and false in turns."""
    texts, others = documents(split, count, seed, (2, 2)), documents(split, count, seed + 1_000_003, (1, 1))
    return [
        (text[0], other[0] if at % 2 else text[1], at % 2 == 0) for at, (text, other) in enumerate(zip(texts, others))
    ]


def masked_couples(split: str, count: int, seed: int = 0, rate: float = 0.15) -> list[tuple[list, list, list[str]]]:
    """Draws pairs of sentences with `rate` of their words, at least one, hidden as None; and these words in order."""
    generator = random.Random(f"masks {split} {seed}")
    couples = []
    for first, second, _ in sentence_couples(split, count, seed):
        words = first.split(" ") + second.split(" ")
        hidden = sorted(generator.sample(range(len(words)), max(1, round(rate * len(words)))))
        seen = [None if at in hidden else word for at, word in enumerate(words)]
        size = first.count(" ") + 1
        couples.append((seen[:size], seen[size:], [words[at] for at in hidden]))
    return couples


@cache
def next_sentence_best_accuracy(count: int = 1000, seed: int = 0, split: str = "test") -> float:
    """Accuracy of the best possible decision whether a sentence is of the same document, half of the pairs being so.

    The mean of max(p, 1 - p), p the exact posterior, over `count` drawn pairs: standard error about 0.15 / sqrt(count).
    """
    posteriors = [next_sentence_posterior(*couple[:2]) for couple in sentence_couples(split, count, seed)]
    return sum(max(p, 1 - p) for p in posteriors) / count


@cache
def masked_best_accuracy(count: int = 300, seed: int = 0, rate: float = 0.15, split: str = "test") -> float:
    """Share of hidden words that the best possible guess gets right: the mean largest posterior over `count` pairs."""
    best = [
        max(posterior.values())
        for first, second, _ in masked_couples(split, count, seed, rate)
        for posterior in masked_posterior(first, second)
    ]
    return sum(best) / len(best)


def main():
    """One screen of the corpus."""
    print("Pairs")
    for pair in sentence_pairs("train", 10, 1):
        print("  {}\n    {}".format(*pair))
    print("A document", *documents("train", 1, 1)[0], sep="\n  ")
    print("Opinions", *(f"{label}: {sentence}" for sentence, label in labelled("train", 4, 1)), sep="\n  ")
    print(
        f"{len(english_words())} English and {len(french_words())} French words; {expected_length():.2f} English words"
    )
    print(f"a sentence; {entropy():.2f} nats a sentence, {entropy_per_word():.3f} nats a word, its end counted.")


if __name__ == "__main__":
    main()
