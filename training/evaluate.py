"""BLEU, exact match, perplexity, accuracy: of a run's model in process, or of the same model behind a server."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from training import grammar
from training.corpora import corpus_of
from training.files import write_json
from training.run import Run, load_run, whole_documents

BATCH = 100  # texts asked at once
SHORT, LONG = 7, 12  # words of a short (at most) and of a long (at least) sentence


class Answers(Protocol):
    """Text in, text out: the model in process, or a served one."""

    def translate(self, texts: Sequence[str]) -> list[str]: ...

    def score(self, texts: Sequence[str]) -> tuple[float, int]: ...

    def classify(self, texts: Sequence[str]) -> list[str]: ...

    def follows(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[float]: ...


class InProcess:
    """The run's own model; each method asks for texts sorted by length, and answers in the order they came in."""

    def __init__(self, run: Run):
        self.run = run

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Greedy translations."""
        import tensorflow as tf

        from keras_seq.packing import pack_start_end
        from training.pipelines import token_rows

        run, limit = self.run, self.run.recipe.max_sequence_length
        target = run.target_tokenizer
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        answers = [""] * len(texts)
        new_tokens = min(run.recipe.max_new_tokens, limit)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            rows = token_rows(run.tokenizer, [texts[i] for i in chosen], limit - 1)
            rows = pack_start_end(rows, None, run.tokenizer.end_token_id)
            ids = rows.to_tensor(0)
            inputs = {
                "encoder_token_ids": ids,
                "encoder_padding_mask": tf.sequence_mask(rows.row_lengths(), ids.shape[1]),
            }
            written = run.model.generate(inputs, new_tokens, target.end_token_id, target.start_token_id)
            for i, answer in zip(chosen, target.detokenize(tf.constant(written["token_ids"])).numpy()):
                answers[i] = answer.decode()
        return answers

    def score(self, texts: Sequence[str]) -> tuple[float, int]:
        """Summed log-probability in nats and number of tokens, the end counted."""
        from training.pipelines import counted, text_lines

        recipe = self.run.recipe
        batches = text_lines(texts, self.run.tokenizer, recipe.max_sequence_length, recipe.tokens_per_batch)
        return _total(self.run.model, counted(batches))

    def classify(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        from training.pipelines import segments, token_rows

        labels = self.run.labels or []
        answers = []
        for start in range(0, len(texts), BATCH):
            some = texts[start : start + BATCH]
            rows = token_rows(self.run.tokenizer, some, self.run.recipe.max_sequence_length - 2)
            logits = self.run.model(_dense(segments((rows,), self.run.tokenizer)), training=False)
            answers += [labels[i] for i in np.argmax(logits, axis=-1)]
        return answers

    def follows(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[float]:
        """The probability that each second sentence follows the first."""
        answers: list[float] = []
        for start in range(0, len(firsts), BATCH):
            inputs = self._pair(firsts[start : start + BATCH], seconds[start : start + BATCH])
            inputs["mask_positions"] = np.zeros((len(inputs["token_ids"]), 1), "int32")
            logits = np.asarray(self.run.model(inputs, training=False)["next_sentence"])
            answers += list(1 / (1 + np.exp(logits[:, 0] - logits[:, 1])))
        return answers

    def fill(self, first: Sequence[str | None], second: Sequence[str | None]) -> list[str]:
        """The likeliest word for each None in a pair of sentences."""
        tokenizer = self.run.tokenizer
        texts = (
            " ".join(word or tokenizer.id_to_token(tokenizer.mask_token_id) for word in half)
            for half in (first, second)
        )
        inputs = self._pair(*([text] for text in texts))
        places = np.flatnonzero(np.asarray(inputs["token_ids"])[0] == tokenizer.mask_token_id).astype("int32")
        logits = self.run.model({**inputs, "mask_positions": places[None]}, training=False)["masked_lm"]
        return [tokenizer.id_to_token(int(i)) for i in np.argmax(logits, axis=-1)[0]]

    def _pair(self, firsts: Sequence[str], seconds: Sequence[str]) -> dict[str, Any]:
        from training.pipelines import segments, token_rows

        half = (self.run.recipe.max_sequence_length - 3) // 2
        rows = [token_rows(self.run.tokenizer, texts, half) for texts in (firsts, seconds)]
        return _dense(segments(rows, self.run.tokenizer))


class Endpoint:
    """A served model, asked over gRPC or REST through the public client."""

    def __init__(self, host: str, port: int, name: str, transport: Literal["rest", "grpc"] = "grpc"):
        from serving.client import Client

        ports: dict[str, Any] = {"port": port} if transport == "grpc" else {"rest_api_port": port}
        self.client, self.name = Client(host, transport=transport, **ports), name

    def _ask(self, signature: str, output: str, **inputs: Sequence[Any]) -> list:
        from serving.client import ServingError

        count = len(next(iter(inputs.values())))
        answers: list = []
        for start in range(0, count, BATCH):
            some = {name: list(values[start : start + BATCH]) for name, values in inputs.items()}
            try:
                answers += list(self.client.predict(self.name, some, signature)[output])
            except ServingError as error:
                raise ValueError(f"The endpoint gave no {output} by {self.name}/{signature}: {error}") from error
        return answers

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Greedy translations."""
        return self._ask("translate", "translation", text=texts)

    def score(self, texts: Sequence[str]) -> tuple[float, int]:
        """Summed log-probability in nats and number of tokens, the end counted."""
        return sum(self._ask("score", "log_probability", text=texts)), sum(self._ask("score", "num_tokens", text=texts))

    def classify(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        return self._ask("classify", "label", text=texts)

    def follows(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[float]:
        """The probability that each second sentence follows the first."""
        return self._ask("next_sentence", "probability", first=firsts, second=seconds)


def _dense(rows: dict[str, Any]) -> dict[str, Any]:
    import tensorflow as tf

    lengths = rows["token_ids"].row_lengths()
    dense = {name: part.to_tensor(0) for name, part in rows.items()}
    return {**dense, "padding_mask": tf.sequence_mask(lengths, dense["token_ids"].shape[1])}


def _total(model: Any, batches: Any) -> tuple[float, int]:
    """Summed log-probability of the labels under the logits, and their number, over real tokens."""
    import keras

    total, count = 0.0, 0
    for inputs, labels, weights in batches:
        logits = model.predict_on_batch(inputs)
        nll = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        total -= float(np.sum(np.asarray(nll, "float64") * np.asarray(weights)))
        count += int(np.sum(np.asarray(weights) > 0))
    return total, count


def endpoint(options: argparse.Namespace) -> Endpoint | None:
    """The served model that the command line names, or None.

    Raises:
        ValueError: --endpoint is not HOST:PORT/NAME.
    """
    name = Path(options.run).name
    if options.endpoint:
        address, _, given = options.endpoint.partition("/")
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--endpoint needs HOST:PORT or HOST:PORT/NAME, got {options.endpoint!r}.")
        return Endpoint(host, int(port), given or name)
    if options.rest_api_port:
        return Endpoint(options.host, options.rest_api_port, name, "rest")
    return Endpoint(options.host, options.port, name) if options.port else None


def evaluate(folder: str | Path, split: str = "test", served: Endpoint | None = None) -> dict[str, Any]:
    """Measures a finished run on held-out data, in process or through a served endpoint."""
    return evaluate_run(load_run(folder), split, served)


def evaluate_run(run: Run, split: str = "test", served: Endpoint | None = None) -> dict[str, Any]:
    """The measures of a run on a split; those in process are also kept in its metrics.json.

    Args:
        run: a fitted run.
        split: "train", "validation" or "test".
        served: ask this endpoint instead of the model in process.

    Returns:
        A dict of numbers; which ones depends on the task.

    Raises:
        ValueError: the measure of this corpus needs the model in process.
    """
    corpus = corpus_of(run.recipe)
    examples = corpus.read(split, run.recipe.evaluate_examples, run.recipe.seed + 1)
    answers: Answers = served or InProcess(run)
    kind = corpus.kind
    builtin = run.recipe.corpus.startswith("grammar")
    if kind == "documents" and run.recipe.architecture == "gpt":
        examples, kind, builtin = whole_documents(examples), "lines", False  # the grammar knows sentences
    if kind == "pairs":
        values = _translation(examples, answers.translate([source for source, _ in examples]))
    elif kind == "labelled":
        given = answers.classify([text for text, _ in examples])
        right = [label == answer for (_, label), answer in zip(examples, given)]
        values = {"accuracy": float(np.mean(right)), "examples": len(right)}
    elif kind == "lines":
        values = _language_model(examples, *answers.score(examples), builtin)
    elif served is not None and kind == "text":
        raise ValueError(f"{run.recipe.corpus} is one running text and is measured in process, got an endpoint.")
    elif kind == "text":
        from training.run import dataset

        total, count = _total(run.model, dataset(run.recipe, examples, run, None))
        values = {"loss": -total / count, "perplexity": math.exp(-total / count), "tokens": count}
    else:
        values = _pre_training(run, answers, examples, split, builtin)
    if served is None:
        path = run.folder / "metrics.json"
        kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
        write_json(path, {**kept, split: values})
    return values


def _translation(examples: Sequence[tuple[str, str]], answers: Sequence[str]) -> dict[str, Any]:
    import sacrebleu

    metric = sacrebleu.metrics.BLEU()
    targets = [target for _, target in examples]
    bleu = metric.corpus_score(list(answers), [targets])
    right = np.array([answer == target for answer, target in zip(answers, targets)])
    words = np.array([len(source.split()) for source, _ in examples])
    values = {
        "exact": float(right.mean()),
        f"exact_up_to_{SHORT}_words": float(right[words <= SHORT].mean()) if (words <= SHORT).any() else math.nan,
        f"exact_from_{LONG}_words": float(right[words >= LONG].mean()) if (words >= LONG).any() else math.nan,
        "bleu": round(bleu.score, 2),
        "bleu_signature": str(metric.get_signature()),
        "words_per_sentence": float(words.mean()),
        "examples": len(examples),
    }
    return {name: value for name, value in values.items() if value == value}


def _language_model(examples: Sequence[str], total: float, count: int, builtin: bool) -> dict[str, Any]:
    words = sum(len(line.split()) + 1 for line in examples)
    values = {"nats_per_word": -total / words, "perplexity": math.exp(-total / count), "examples": len(examples)}
    if not builtin:
        return values
    # The grammar's own probability of the same sentences, and its entropy: what no model can beat but by chance.
    truth = -sum(grammar.log_probability(line) for line in examples) / words
    return {**values, "nats_per_word_of_the_grammar": truth, "entropy_per_word": grammar.entropy_per_word()}


def _pre_training(
    run: Run, answers: Answers, documents: Sequence[Sequence[str]], split: str, builtin: bool
) -> dict[str, Any]:
    from training.pipelines import counted, masked_pairs, next_sentence_pairs

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


def show(values: dict[str, Any]) -> None:
    """The measures as a table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measure")
    table.add_column("value", overflow="fold")
    for name, value in values.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)
