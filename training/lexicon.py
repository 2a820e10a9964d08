"""The words of the built-in corpus, and its French: inflection, agreement, spelling. `grammar.py` has the English.

No English form is both noun and verb, and no verb has a past equal to its base ("cut", "read"): so a sentence of the
grammar has exactly one derivation. The lines are "english french ..."; several words of one form are joined by "_".
"""

from collections.abc import Callable
from typing import NamedTuple

# Topic -> persons, things, verbs that take those things, verbs that take nothing, place.
# Nouns: english[/plural] french[/plural] gender. Verbs: base, third person, past, French infinitive.
TOPICS = {
    "kitchen": {
        "persons": "cook cuisinier m, waitress/waitresses serveuse f",
        "things": "soup soupe f, cake gâteau/gâteaux m, cheese fromage m, apple pomme f",
        "verbs": "eat eats ate manger, taste tastes tasted goûter",
        "alone": "dine dines dined dîner",
        "place": "kitchen cuisine f",
    },
    "school": {
        "persons": "teacher professeur m, student étudiant m",
        "things": "book livre m, poem poème m, letter lettre f, story/stories histoire f",
        "verbs": "write writes wrote écrire, correct corrects corrected corriger",
        "alone": "count counts counted compter",
        "place": "school école f",
    },
    "garden": {
        "persons": "gardener jardinier m, neighbour voisine f",
        "things": "tree arbre m, flower fleur f, rose rose f, bush/bushes buisson m",
        "verbs": "plant plants planted planter, trim trims trimmed tailler",
        "alone": "walk walks walked marcher",
        "place": "garden jardin m",
    },
    "hospital": {
        "persons": "doctor médecin m, nurse infirmière f",
        "things": "pill pilule f, bandage pansement m, syringe seringue f, mask masque m",
        "verbs": "prepare prepares prepared préparer, give gives gave donner",
        "alone": "cough coughs coughed tousser",
        "place": "hospital hôpital m",
    },
    "music": {
        "persons": "musician musicien m, singer chanteuse f",
        "things": "song chanson f, melody/melodies mélodie f, waltz/waltzes valse f, opera opéra m",
        "verbs": "play plays played jouer, compose composes composed composer",
        "alone": "sing sings sang chanter",
        "place": "studio studio m",
    },
    "sea": {
        "persons": "sailor marin m, captain capitaine m",
        "things": "boat bateau/bateaux m, rope corde f, net filet m, sail voile f",
        "verbs": "repair repairs repaired réparer, pull pulls pulled tirer",
        "alone": "swim swims swam nager",
        "place": "harbour port m",
    },
    "sport": {
        "persons": "player joueur m, goalkeeper gardien m",
        "things": "ball balle f, helmet casque m, glove gant m, medal médaille f",
        "verbs": "throw throws threw lancer, drop drops dropped lâcher",
        "alone": "jump jumps jumped sauter",
        "place": "stadium stade m",
    },
    "art": {
        "persons": "artist artiste m, dancer danseuse f",
        "things": "painting tableau/tableaux m, drawing dessin m, portrait portrait m, statue statue f",
        "verbs": "copy copies copied copier, draw draws drew dessiner",
        "alone": "smile smiles smiled sourire",
        "place": "museum musée m",
    },
    "tale": {
        "persons": "queen reine f, magician magicien m",
        "things": "crown couronne f, ring bague f, horse cheval/chevaux m, treasure trésor m",
        "verbs": "steal steals stole voler, hide hides hid cacher",
        "alone": "cry cries cried pleurer",
        "place": "castle château m",
    },
    "travel": {
        "persons": "tourist touriste m, aunt tante f",
        "things": "suitcase valise f, ticket billet m, map carte f, passport passeport m",
        "verbs": "carry carries carried porter, lose loses lost perdre",
        "alone": "return returns returned rentrer",
        "place": "station gare f",
    },
}

# Theme of a document -> its topics.
THEMES = {
    "home": ("kitchen", "garden"),
    "town": ("school", "hospital", "sport"),
    "stage": ("music", "art", "tale"),
    "journey": ("sea", "travel"),
}

# Verbs with any thing as object, with an opinion of it, with a person, with a place, with a statement.
SHARED_VERBS = (
    "find finds found trouver, see sees saw voir, choose chooses chose choisir, sell sells sold vendre, "
    "look_for looks_for looked_for chercher, look_at looks_at looked_at regarder"
)
LIKING_VERBS = "like likes liked aimer, love loves loved adorer, prefer prefers preferred préférer"
HATING_VERBS = "hate hates hated détester, despise despises despised mépriser, fear fears feared craindre"
PERSON_VERBS = (
    "know knows knew connaître, help helps helped aider, meet meets met rencontrer, thank thanks thanked remercier, "
    "wait_for waits_for waited_for attendre, listen_to listens_to listened_to écouter, "
    "speak_to speaks_to spoke_to parler:à, answer answers answered répondre:à"
)
PLACE_VERBS = (
    "go_to goes_to went_to aller:à, come_from comes_from came_from venir:de, "
    "work_in works_in worked_in travailler:dans, sleep_in sleeps_in slept_in dormir:dans"
)
SAYING_VERBS = "say says said dire, think thinks thought penser, believe believes believed croire"

# French verbs that do not go as "parler": the present for je, il, nous, vous, ils, then the participle.
IRREGULAR_VERBS = {
    "être": "suis est sommes êtes sont été",
    "avoir": "ai a avons avez ont eu",
    "aller": "vais va allons allez vont allé",
    "venir": "viens vient venons venez viennent venu",
    "pouvoir": "peux peut pouvons pouvez peuvent pu",
    "devoir": "dois doit devons devez doivent dû",
    "vouloir": "veux veut voulons voulez veulent voulu",
    "manger": "mange mange mangeons mangez mangent mangé",
    "nager": "nage nage nageons nagez nagent nagé",
    "lancer": "lance lance lançons lancez lancent lancé",
    "écrire": "écris écrit écrivons écrivez écrivent écrit",
    "corriger": "corrige corrige corrigeons corrigez corrigent corrigé",
    "sourire": "souris sourit sourions souriez sourient souri",
    "perdre": "perds perd perdons perdez perdent perdu",
    "voir": "vois voit voyons voyez voient vu",
    "choisir": "choisis choisit choisissons choisissez choisissent choisi",
    "préférer": "préfère préfère préférons préférez préfèrent préféré",
    "craindre": "crains craint craignons craignez craignent craint",
    "dormir": "dors dort dormons dormez dorment dormi",
    "vendre": "vends vend vendons vendez vendent vendu",
    "connaître": "connais connaît connaissons connaissez connaissent connu",
    "attendre": "attends attend attendons attendez attendent attendu",
    "répondre": "réponds répond répondons répondez répondent répondu",
    "dire": "dis dit disons dites disent dit",
    "croire": "crois croit croyons croyez croient cru",
}
IMPERFECT_OF_BE = ("étais", "était", "étions", "étiez", "étaient")
VERBS_WITH_BE = ("aller", "venir", "rentrer")  # je suis allé, elles sont allées

# Adjectives: english, French masculine[/feminine[/masculine plural]]; missing forms follow the rule (+e, +s).
# Those of the first two lines stand before the French noun, all others behind it.
NEUTRAL_BEFORE = (
    "small petit, big grand, old vieux/vieille/vieux, new nouveau/nouvelle/nouveaux, "
    "beautiful beau/belle/beaux, pretty joli"
)
OPINION_BEFORE = "good bon/bonne, bad mauvais/mauvaise/mauvais"
OF_PERSONS = (
    "tired fatigué, rich riche/riche, famous célèbre/célèbre, honest honnête/honnête, clever intelligent, "
    "happy heureux/heureuse/heureux, sad triste/triste, polite poli, calm calme/calme, "
    "curious curieux/curieuse/curieux, strong fort, brave courageux/courageuse/courageux"
)
OF_THINGS = (
    "red rouge/rouge, blue bleu, green vert, white blanc/blanche, black noir, heavy lourd, expensive cher/chère, "
    "strange étrange/étrange, simple simple/simple, round rond"
)
PRAISE = (
    "good bon/bonne, excellent excellent, wonderful merveilleux/merveilleuse/merveilleux, "
    "perfect parfait, charming charmant"
)
BLAME = (
    "bad mauvais/mauvaise/mauvais, terrible terrible/terrible, awful affreux/affreuse/affreux, "
    "boring ennuyeux/ennuyeuse/ennuyeux, horrible horrible/horrible"
)

# What one may be, without an article in French: english, masculine, feminine, topic.
PROFESSIONS = (
    "student étudiant étudiante school, nurse infirmier infirmière hospital, singer chanteur chanteuse music, "
    "cook cuisinier cuisinière kitchen, artist artiste artiste art, doctor médecin médecin hospital, "
    "sailor marin marin sea, gardener jardinier jardinière garden, player joueur joueuse sport, "
    "magician magicien magicienne tale, tourist touriste touriste travel"
)

NAMES = {"f": "anna alice marie claire julie emma", "m": "paul louis marc leo victor adam"}
PROTAGONISTS = "anna marie paul leo"  # whom documents are about

# Pronouns: English, French, person in the order je il nous vous ils, gender and number (0 m, 1 f, 2 m plural, 3 f
# plural). "you" is polite and one man, "they" are men or mixed, "i" is a man: so French is a function of English.
PRONOUNS = {
    "i": ("je", 0, 0),
    "he": ("il", 1, 0),
    "she": ("elle", 1, 1),
    "you": ("vous", 3, 0),
    "we": ("nous", 2, 2),
    "they": ("ils", 4, 2),
}

# Determiners: French for masculine, feminine, masculine plural, feminine plural; "-" where the number does not exist.
DETERMINERS = {
    "the": "le la les les",
    "this": "ce cette - -",
    "these": "- - ces ces",
    "my": "mon ma mes mes",
    "your": "votre votre vos vos",
    "his": "son sa ses ses",
    "her": "son sa ses ses",
    "our": "notre notre nos nos",
    "their": "leur leur leurs leurs",
    "every": "chaque chaque - -",
    "some": "- - quelques quelques",
    "many": "- - beaucoup_de beaucoup_de",
    "two": "- - deux deux",
    "three": "- - trois trois",
    "four": "- - quatre quatre",
    "any": "- - de de",
}
ONLY_AFFIRMED = ("every", "some", "many", "two", "three", "four")
ONLY_DENIED = ("any",)  # il n'achète pas de pommes

MODALS = {"will": "aller", "can": "pouvoir", "must": "devoir"}
ADVERBS = {"often": "souvent", "always": "toujours", "sometimes": "parfois", "rarely": "rarement"}
TIMES = {
    "today": "aujourd'hui",
    "tonight": "ce soir",
    "on monday": "lundi",
    "on friday": "vendredi",
    "on sunday": "dimanche",
    "at noon": "à midi",
    "in winter": "en hiver",
    "in summer": "en été",
}
PREPOSITIONS = {"in": "dans", "near": "près de", "behind": "derrière"}
CONJUNCTIONS = {"because": "parce que", "but": "mais", "when": "quand", "while": "pendant que"}
QUESTION_WORDS = {"why": "pourquoi", "when": "quand", "where": "où"}


class Verb(NamedTuple):
    """A French verb: present and auxiliary for je il nous vous ils, participle by gender and number, object's link."""

    present: tuple[str, ...]
    auxiliary: tuple[str, ...]
    participles: tuple[str, ...]
    infinitive: str
    link: list[str]


def items(text: str) -> list[list[str]]:
    """Entries of a list above, "_" read as a space: "go_to went_to, see saw" -> [["go to", "went to"], ...]."""
    return [[form.replace("_", " ") for form in entry.split()] for entry in text.split(", ")]


def inflect_adjective(forms: str) -> tuple[str, str, str, str]:
    """Masculine, feminine, masculine plural, feminine plural: "vert" -> ("vert", "verte", "verts", "vertes")."""
    masculine, feminine, plural = [*forms.split("/"), "", ""][:3]
    feminine = feminine or masculine + "e"
    return masculine, feminine, plural or masculine + "s", feminine + "s"


def inflect_noun(forms: str) -> tuple[str, str]:
    """Singular and plural of an English or French noun: "story/stories" -> both, "rose" -> ("rose", "roses")."""
    singular, _, plural = forms.partition("/")
    return singular, plural or singular + "s"


def inflect_verb(entry: str) -> Verb:
    """The forms of a French verb, named by its infinitive and, after ":", the preposition of its object: "parler:à"."""
    infinitive, _, link = entry.partition(":")
    stem = infinitive.removesuffix("er")
    regular = " ".join(stem + ending for ending in ("e", "e", "ons", "ez", "ent", "é"))
    *present, participle = IRREGULAR_VERBS.get(infinitive, regular).split()
    with_be = infinitive in VERBS_WITH_BE
    auxiliary = IRREGULAR_VERBS["être" if with_be else "avoir"].split()[:5]
    participles = inflect_adjective(participle) if with_be else (participle,) * 4
    return Verb(tuple(present), tuple(auxiliary), participles, infinitive, [link] if link else [])


VOWELS = frozenset("aeiouâàéèêîôûh")  # every French h of this lexicon is mute
BEFORE_VOWEL = {"le": "l'", "la": "l'", "je": "j'", "ne": "n'", "que": "qu'", "de": "d'"}
BEFORE_VOWEL |= {"ce": "cet ", "ma": "mon ", "sa": "son "}
ADJECTIVE_BEFORE_VOWEL = {"beau": "bel", "nouveau": "nouvel", "vieux": "vieil"}
CONTRACTIONS = {("à", "le"): "au", ("à", "les"): "aux", ("de", "le"): "du", ("de", "les"): "des"}


def contract(words: list[str]) -> str:
    """Joins French words as they are written: ["de", "le", "ami"] -> "de l'ami", ["à", "le", "port"] -> "au port"."""
    done: list[str] = []  # from the end, since whether "de le" becomes "du" depends on what stands behind
    after = ""
    for word in reversed(words):
        if after and word in BEFORE_VOWEL and after[0] in VOWELS:
            word = BEFORE_VOWEL[word]
            if word[-1] == "'":
                word += done.pop()
            else:
                word = word[:-1]
        elif (word, after) in CONTRACTIONS:
            word = CONTRACTIONS[word, done.pop()]
        done.append(word)
        after = word
    return " ".join(reversed(done))


FUNCTION_WORDS = (
    "? à de du au aux dans derrière près et ne pas jamais qui que est-ce qu'est-ce très un une qu'un qu'une cet"
)


def finite(forms: tuple[str, ...]) -> set[str]:
    """A tense of a verb as it is written, also behind "ne" and "je"."""
    denied = {"n'" + form for form in forms if form[0] in VOWELS}
    first = "j'" + forms[0] if forms[0][0] in VOWELS else forms[0]
    return {first, *forms[1:], *denied}


def written(symbol: str, value) -> set[str]:
    """All written forms of the French `value` that the grammar gives to one word of `symbol`."""
    kind, _, rest = symbol.partition(".")
    if kind == "MODAL" or rest.endswith("WANT"):
        return finite(value.present)
    if kind == "V":
        infinitive = set() if rest.endswith(("LIKE", "HATE", "SAY")) else {value.infinitive}
        return {*value.participles} if rest[0] == "p" else finite(value.present) | infinitive
    if kind == "NOUN":
        word, gender = value
        elided = {"d'" + word} | ({"l'" + word} if gender < 2 else set())
        return {word} | (elided if word[0] in VOWELS else set())
    if kind in ("NAME", "PRONOUN", "PLACE"):
        words = contract(value[0]).split()
        return {*words} | ({"qu'" + words[0]} if words[0][0] in VOWELS else set())
    if kind in ("TIME", "CONJUNCTION", "WHY"):
        return {*value}
    if kind == "DET":
        return {word for form in value for word in form} - {"-"}
    forms = {value} if isinstance(value, str) else {*(value[:3] if kind == "JOB" else value)}
    masculine = set() if isinstance(value, str) or kind == "TOLD" else {*value[:1]} & {*ADJECTIVE_BEFORE_VOWEL}
    return forms | {ADJECTIVE_BEFORE_VOWEL[form] for form in masculine}


# ---- What French a rule makes of its parts -----------------------------------------------------------------------
# A noun is (word, gender), an adjective or a determiner four forms, an English verb its French Verb. Larger parts:

Phrase = tuple[list[str], int, int]  # words; person: je il nous vous ils; gender: m, f, m plural, f plural
Predicate = tuple[tuple[str, ...], str, tuple[str, ...] | None, list[str]]
# finite verb; "", "pas" or "jamais"; forms of what agrees with the subject; the words behind

BE = inflect_verb("être")
THE = [[form] for form in DETERMINERS["the"].split()]
A = [["un"], ["une"]]
NONE = [["de"], ["de"]]


def fitting(adjective, gender: int, noun: str) -> str:
    form = adjective[gender]
    return ADJECTIVE_BEFORE_VOWEL.get(form, form) if gender == 0 and noun[0] in VOWELS else form


def bare(noun):
    return [noun[0]], noun[1]


def before(adjective, noun):
    return [fitting(adjective, noun[1], noun[0]), noun[0]], noun[1]


def behind(adjective, noun):
    return [noun[0], adjective[noun[1]]], noun[1]


def around(first, second, noun):
    return [fitting(first, noun[1], noun[0]), noun[0], second[noun[1]]], noun[1]


def determined(determiner, common) -> Phrase:
    words, gender = common
    return determiner[gender] + words, 4 if gender > 1 else 1, gender


def articled(shape, article) -> Callable[..., Phrase]:
    return lambda *parts: determined(article, shape(*parts))


def owned(noun, owner) -> Phrase:
    words, person, gender = determined(THE, bare(noun))
    return [*words, "de", *owner[0]], person, gender


def together(first, second) -> Phrase:
    return [*first[0], "et", *second[0]], 4, 3 if first[2] == second[2] == 1 else 2


def very(forms):
    return tuple(f"très {form}" for form in forms)


def conjugate(predicate: Predicate, person: int, gender: int) -> list[str]:
    verb, denied, agreeing, rest = predicate
    words = ["ne", verb[person], denied] if denied else [verb[person]]
    if agreeing:
        words.append(agreeing[gender])
    return words + rest


def clause(subject: Phrase, predicate: Predicate) -> list[str]:
    return subject[0] + conjugate(predicate, subject[1], subject[2])


def phrase(verb: Verb, *complements) -> tuple[Verb, list[str]]:
    words = list(verb.link)
    for complement in complements:
        words += complement[0]
    return verb, words


# Makers of predicates: from a phrase, or from a modal verb or an adverb and a phrase, or from an adjective.


def present(denied=""):
    return lambda part: (part[0].present, denied, None, part[1])


def past(denied=""):
    return lambda part: (part[0].auxiliary, denied, part[0].participles, part[1])


def with_modal(denied=""):
    return lambda modal, part: (modal.present, denied, None, [part[0].infinitive, *part[1]])


def with_adverb(adverb, part):
    return part[0].present, "", None, [adverb, *part[1]]


def being(forms, denied=""):
    return lambda adjective: (forms, denied, adjective, [])


def placed(place):
    return BE.present, "", None, place[0]


# Makers of clauses from a maker of predicates.


def stated(make):
    return lambda subject, *parts: clause(subject, make(*parts))


def asked(opening, make):
    """The French order of a question is that of a statement behind "est-ce que"."""
    return lambda subject, *parts: [*opening, *clause(subject, make(*parts)), "?"]


def qualified(make) -> Callable[..., Phrase]:
    """A noun phrase with a relative clause whose subject it is."""
    return lambda head, *parts: ([*head[0], "qui", *conjugate(make(*parts), head[1], head[2])], head[1], head[2])


def aimed(make) -> Callable[..., Phrase]:
    """A noun phrase with a relative clause whose object it is."""
    return lambda head, subject, verb: ([*head[0], "que", *clause(subject, make((verb, [])))], head[1], head[2])
