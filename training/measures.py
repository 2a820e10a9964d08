"""The measures themselves: of what was answered against what is right, and nothing else."""

import math
import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Entity = tuple[str, int, int]  # its type, its first token, the one after its last


def translation(answers: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
    """sacreBLEU's BLEU (Papineni et al. 2002), cased and not, and chrF2 (Popović 2015), 0 to 100, with signatures."""
    import sacrebleu

    values: dict[str, Any] = {}
    for name, metric in (
        ("bleu", sacrebleu.metrics.BLEU()),
        ("bleu_lowercase", sacrebleu.metrics.BLEU(lowercase=True)),
        ("chrf", sacrebleu.metrics.CHRF()),
    ):
        values[name] = round(metric.corpus_score(list(answers), [list(targets)]).score, 2)
        values[f"{name}_signature"] = str(metric.get_signature())
    return values


def tokenized_bleu(answers: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """BLEU (Papineni et al. 2002) of the tokens between blanks, 0 to 100: only for one and the same tokenizer."""
    import sacrebleu

    metric = sacrebleu.metrics.BLEU(tokenize="none", force=True)
    return {"tokenized_bleu": round(metric.corpus_score(list(answers), [list(targets)]).score, 2)}


def perplexities(nats: float, tokens: int, texts: Sequence[str], ends: bool = True) -> dict[str, float]:
    """exp of the nats a token, a word (between blanks) and a byte (UTF-8); tokenizers share the last two.

    Args:
        nats: summed negative log-probability of all the texts.
        tokens: how many they have.
        texts: what was predicted.
        ends: whether the end of each text was predicted too: it is a word and a byte.
    """
    end = len(texts) if ends else 0
    units = {"token": tokens, "word": sum(len(text.split()) for text in texts) + end}
    units["byte"] = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) + end
    return {
        "perplexity": _exp(nats / tokens),
        **{f"perplexity_per_{unit}": _exp(nats / units[unit]) for unit in ("word", "byte")},
        "bits_per_byte": nats / units["byte"] / math.log(2),
    }


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def classes(answers: Sequence[Hashable], truths: Sequence[Hashable]) -> dict[str, float]:
    """Accuracy, F1 averaged over the classes that occur, and Matthews' correlation for any number of classes.

    The last is R_K of Gorodkin 2004, 0 where either side has only one class.
    """
    _same_length("classes", answers, truths)
    names = {name: i for i, name in enumerate(dict.fromkeys([*truths, *answers]))}
    counts = np.zeros((len(names), len(names)))  # what is right, what was answered
    np.add.at(counts, ([names[one] for one in truths], [names[one] for one in answers]), 1)
    right, true, told, total = np.diag(counts), counts.sum(1), counts.sum(0), counts.sum()
    spread = (total**2 - (true**2).sum()) * (total**2 - (told**2).sum())
    return {
        "accuracy": float(right.sum() / total),
        "macro_f1": float((2 * right / (true + told)).mean()),
        "mcc": float((right.sum() * total - true @ told) / math.sqrt(spread)) if spread else 0.0,
    }


def majority(truths: Sequence[Hashable]) -> list[Hashable]:
    """The answers of one who always gives the commonest class of what is measured: no constant answer is better."""
    if not len(truths):
        raise ValueError("What is measured needs one example or more, got 0.")
    commonest = Counter(truths).most_common(1)[0][0]
    return [commonest] * len(truths)


def entities(labels: Sequence[str]) -> set[Entity]:
    """The entities of a sentence labelled B-TYPE, I-TYPE, O, read as the CoNLL-2003 shared task's scorer does.

    An entity begins at B, and at an I whose type is not that of the token before. Where the last token of an entity is
    labelled E- (or L-) and a single one S- (or U-), an entity also ends there. A letter alone is of the type "".
    """
    parts = [
        (label[:1], label[2:]) if label[:1] in {*"BIELSU"} and label[1:2] in "-" else ("O", "") for label in labels
    ]
    begins = [
        kind in "BSU" or (kind in "IEL" and (before[0] in "OELSU" or before[1] != name))
        for before, (kind, name) in pairwise([("O", ""), *parts])
    ]
    found, starts = set(), [i for i, begin in enumerate(begins) if begin]
    for start in starts:
        end = start + 1
        while end < len(parts) and parts[end][0] in "IEL" and not begins[end]:
            end += 1
        found.add((parts[start][1], start, end))
    return found


def entity_f1(answers: Sequence[Sequence[str]], truths: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities, type and both ends (Tjong Kim Sang and De Meulder 2003, 4)."""
    _same_length("entity_f1", answers, truths)
    told, true = ({(i, *one) for i, row in enumerate(rows) for one in entities(row)} for rows in (answers, truths))
    hits = len(told & true)
    return {
        "entity_precision": hits / len(told) if told else 0.0,
        "entity_recall": hits / len(true) if true else 0.0,
        "entity_f1": 2 * hits / (len(told) + len(true)) if told or true else 0.0,
    }


def correlations(answers: Sequence[float], truths: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation, 0 where either side is constant, and the mean squared error."""
    _same_length("correlations", answers, truths)
    told, true = np.asarray(answers, "float64"), np.asarray(truths, "float64")
    return {
        "pearson": _pearson(told, true),
        "spearman": _pearson(_ranks(told), _ranks(true)),
        "mean_squared_error": float(((told - true) ** 2).mean()),
    }


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    spread = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def normalized(answer: str) -> str:
    """An answer as SQuAD compares it (Rajpurkar et al. 2016, 6.1): small letters, no ASCII punctuation, no articles."""
    bare = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(?:an?|the)\b", " ", bare).split())


def spans(answers: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, float]:
    """SQuAD's exact match and F1 over words, each the best over a question's true answers; of none "" is right."""
    _same_length("spans", answers, truths)
    exact, overlap = [], []
    for answer, golds in zip(answers, truths):
        told = normalized(answer)
        true = [normalized(gold) for gold in golds] or [""]
        exact.append(max(told == gold for gold in true))
        overlap.append(max(_word_f1(told.split(), gold.split()) for gold in true))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def _word_f1(told: list[str], true: list[str]) -> float:
    if not told or not true:
        return float(told == true)
    return 2 * (Counter(told) & Counter(true)).total() / (len(told) + len(true))


def _same_length(name: str, answers: Sequence, truths: Sequence) -> None:
    if len(answers) != len(truths) or not len(truths):
        raise ValueError(f"{name} needs as many answers as truths, and one, got {len(answers)} and {len(truths)}.")
