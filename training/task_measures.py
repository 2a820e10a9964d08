"""What is measured of each kind of corpus: questions to whoever answers, the model in process or a served one."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from training import grammar, measures
from training.corpora import CORPORA, from_moses_words
from training.in_process import InProcess
from training.readers import Choice, Question
from training.run import Run

SHORT, LONG = 7, 12  # words of a short (at most) and of a long (at least) sentence


class Answers(Protocol):
    """Text in, text out: the model in process, or a served one."""

    def translate(self, texts: Sequence[str]) -> list[str]: ...

    def score(self, texts: Sequence[str]) -> tuple[float, int]: ...

    def classify(self, texts: Sequence[str]) -> list[str]: ...

    def follows(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[float]: ...

    def tag(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]: ...

    def find(self, questions: Sequence[str], contexts: Sequence[str], null: bool) -> list[str]: ...

    def choose(self, prompts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[int]: ...

    def classify_pairs(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[str]: ...

    def similarity(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[float]: ...


def _translation(run: Run, answers: Answers, examples: Sequence[tuple[str, str]], split: str) -> dict[str, Any]:
    given, targets = answers.translate([source for source, _ in examples]), [target for _, target in examples]
    right = np.array([answer == target for answer, target in zip(given, targets)])
    words = np.array([len(source.split()) for source, _ in examples])
    published = {}
    if run.recipe.corpus == "multi30k-words":  # beside what the published figures are of, what all can be compared by
        published = measures.tokenized_bleu(given, targets)
        plain = CORPORA["multi30k"].read(split, run.recipe.evaluate_examples, run.recipe.seed + 1)
        given, targets = from_moses_words("en", given), [target for _, target in plain]
    values = {
        "exact": float(right.mean()),
        f"exact_up_to_{SHORT}_words": float(right[words <= SHORT].mean()) if (words <= SHORT).any() else math.nan,
        f"exact_from_{LONG}_words": float(right[words >= LONG].mean()) if (words >= LONG).any() else math.nan,
        **published,
        **measures.translation(given, targets),
        "words_per_sentence": float(words.mean()),
        "examples": len(examples),
    }
    return {name: value for name, value in values.items() if value == value}


def _classes(run: Run, answers: Answers, examples: Sequence[tuple[str, str]], split: str) -> dict[str, Any]:
    truths = [label for _, label in examples]
    values = measures.classes(answers.classify([text for text, _ in examples]), truths)
    return {**values, **_beside(measures.classes(measures.majority(truths), truths)), "examples": len(truths)}


def _tokens(run: Run, answers: Answers, examples: Sequence, split: str) -> dict[str, Any]:
    truths = [list(labels) for _, labels in examples]
    told = answers.tag([words for words, _ in examples])

    def measured(rows: Sequence[Sequence[Any]]) -> dict[str, float]:
        flat, true = ([label for row in some for label in row] for some in (rows, truths))
        return {**measures.entity_f1(rows, truths), "token_accuracy": measures.classes(flat, true)["accuracy"]}

    common = measures.majority([label for row in truths for label in row])[0]
    majority = measured([[common] * len(row) for row in truths])
    kept = {name: majority[name] for name in ("entity_f1", "token_accuracy")}
    return {**measured(told), **_beside(kept), "examples": len(truths)}


def _spans(run: Run, answers: Answers, examples: Sequence[Question], split: str) -> dict[str, Any]:
    truths = [[text for text, _ in one.answers] for one in examples]
    null = not all(truths)  # in a set where each question has its answer, none is no answer
    told = answers.find([one.question for one in examples], [one.context for one in examples], null)
    # There is no majority among answers: as many words as most answers have, from the beginning of each context.
    count = int(np.median([len(text.split()) for golds in truths for text in golds] or [0]))
    first = measures.spans([" ".join(one.context.split()[:count]) for one in examples], truths)
    beside = {f"{name}_of_the_first_words": value for name, value in first.items()}
    return {**measures.spans(told, truths), **beside, "examples": len(examples)}


def _choices(run: Run, answers: Answers, examples: Sequence[Choice], split: str) -> dict[str, Any]:
    truths = [one.label for one in examples]
    told = answers.choose([one.prompt for one in examples], [one.choices for one in examples])
    accuracy, baseline = (measures.classes(given, truths)["accuracy"] for given in (told, measures.majority(truths)))
    return {"accuracy": accuracy, **_beside({"accuracy": baseline}), "examples": len(truths)}


def _couples(run: Run, answers: Answers, examples: Sequence[tuple[str, str, str]], split: str) -> dict[str, Any]:
    truths = [label for *_, label in examples]
    values = measures.classes(answers.classify_pairs(*_both(examples)), truths)
    return {**values, **_beside(measures.classes(measures.majority(truths), truths)), "examples": len(truths)}


def _scored(run: Run, answers: Answers, examples: Sequence[tuple[str, str, str]], split: str) -> dict[str, Any]:
    truths = [float(score) for *_, score in examples]
    values = measures.correlations(answers.similarity(*_both(examples)), truths)
    return {**values, "mean_squared_error_of_the_mean": float(np.var(truths)), "examples": len(truths)}


def _both(examples: Sequence[tuple[str, str, str]]) -> tuple[list[str], list[str]]:
    return [first for first, *_ in examples], [second for _, second, _ in examples]


def _beside(values: dict[str, float]) -> dict[str, float]:
    """The same measures of the majority baseline, less those that are 0 for every constant answer."""
    return {f"{name}_of_the_majority": value for name, value in values.items() if name != "mcc"}


def _lines(run: Run, answers: Answers, examples: Sequence[str], split: str) -> dict[str, Any]:
    total, count = answers.score(examples)
    read = as_read(run, examples)
    values: dict[str, Any] = {
        "nats_per_word": -total / sum(len(line.split()) + 1 for line in read),
        **measures.perplexities(-total, count, read),
        "examples": len(examples),
    }
    if run.recipe.corpus != "grammar-lines":  # it knows sentences, not documents
        return values
    # The grammar's own probability of the same sentences, and its entropy: what no model can beat but by chance.
    truth = -sum(grammar.log_probability(line) for line in examples) / sum(len(line.split()) + 1 for line in examples)
    return {**values, "nats_per_word_of_the_grammar": truth, "entropy_per_word": grammar.entropy_per_word()}


def as_read(run: Run, lines: Sequence[str]) -> list[str]:
    """Lines as far as the model reads them: a longer one is cut to its positions, the end token kept."""
    limit, read = run.recipe.max_sequence_length - 1, list(lines)
    for i, ends in enumerate(_ends(run, lines)):
        if len(ends) > limit:
            # By bytes of the line itself: a tokenizer that lowers case or parts words by blanks writes others back.
            read[i] = lines[i].encode()[: ends[limit - 1]].decode("utf-8", "replace")
    return read


def _ends(run: Run, texts: Sequence[str]) -> list[np.ndarray]:
    """The byte of each text where each of its tokens ends."""
    from training.fine_tuning import with_offsets

    ends = with_offsets(run.tokenizer, texts)[2]
    return np.split(ends.values.numpy(), ends.row_splits.numpy()[1:-1])


def _running_text(run: Run, answers: Answers, examples: str, split: str) -> dict[str, Any]:
    from training.pipelines import pieces_of
    from training.run import dataset

    if not isinstance(answers, InProcess):
        raise ValueError(f"{run.recipe.corpus} is one running text and is measured in process, got an endpoint.")
    batches = dataset(run.recipe, examples, run, None)
    total, count = answers.total(batches)
    pieces = pieces_of(examples)
    before = np.cumsum([0, *(len(piece.encode()) for piece in pieces)])
    ends = np.concatenate([start + one for start, one in zip(before, _ends(run, pieces))])
    # The first token is not asked for, nor what fills no window.
    text = examples.encode()[ends[0] : ends[count]].decode("utf-8", "replace")
    return {"loss": -total / count, **measures.perplexities(-total, count, [text], ends=False), "tokens": count}


def _pre_training(run: Run, answers: Answers, documents: Sequence[Sequence[str]], split: str) -> dict[str, Any]:
    from training.pipelines import counted, masked_pairs, next_sentence_pairs

    builtin = run.recipe.corpus.startswith("grammar")
    count = min(1000, sum(len(document) for document in documents))
    pairs = grammar.sentence_couples(split, count, seed=1) if builtin else next_sentence_pairs(documents, count, seed=1)
    told = answers.follows([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    right = [(probability > 0.5) == bool(pair[2]) for probability, pair in zip(told, pairs)]
    values = {"next_sentence_accuracy": float(np.mean(right)), "pairs": len(pairs)}
    if builtin:
        values["next_sentence_accuracy_best"] = grammar.next_sentence_best_accuracy(count, 1, split)
    if not isinstance(answers, InProcess):
        return values
    if not builtin:
        recipe = run.recipe
        batches = counted(masked_pairs(pairs, run.tokenizer, recipe.max_sequence_length, recipe.tokens_per_batch))
        measured = run.model.evaluate(batches, verbose=0, return_dict=True)
        return {**values, "masked_accuracy": measured["masked_lm_accuracy"]}
    hits = []
    for first, second, truth in grammar.masked_couples(split, 300, seed=1):
        hits += [guess == word for guess, word in zip(answers.fill(first, second), truth, strict=True)]
    best = grammar.masked_best_accuracy(300, seed=1, split=split)
    return {**values, "masked_accuracy": float(np.mean(hits)), "masked_accuracy_best": best}


MEASURED: dict[str, Callable[[Run, Any, Any, str], dict[str, Any]]] = {
    "pairs": _translation,
    "labelled": _classes,
    "lines": _lines,
    "text": _running_text,
    "documents": _pre_training,
    "tokens": _tokens,
    "spans": _spans,
    "choices": _choices,
    "couples": _couples,
    "scored": _scored,
}
