"""Measures a run on held-out data, through its model in process or through the same model behind a server."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from keras_seq import BeamSampler
from training.corpora import corpus_of
from training.files import write_json
from training.in_process import SPANS, InProcess, answered, joined, labels_of_words
from training.run import Run, whole_documents
from training.task_measures import MEASURED


class Endpoint:
    """A served model, asked over gRPC or REST through the public client."""

    def __init__(
        self,
        host: str,
        port: int,
        name: str,
        transport: Literal["rest", "grpc"] = "grpc",
        beams: BeamSampler | None = None,
    ):
        from serving.client import Client

        self.beams = beams
        ports: dict[str, Any] = {"port": port} if transport == "grpc" else {"rest_api_port": port}
        self.client, self.name = Client(host, transport=transport, **ports), name

    def _ask(
        self,
        signature: str,
        outputs: Sequence[str],
        size: int | None = None,
        options: dict[str, Any] | None = None,
        **texts: Sequence[Any],
    ) -> list[list]:
        """The answers to all rows of texts, asked `size` (None: BATCH) at a time: one list an output."""
        from serving.client import ServingError

        def ask(*columns: Sequence[Any]) -> list[tuple]:
            inputs: dict[str, Sequence[Any]] = dict(zip(texts, columns))
            inputs |= {name: [value] * len(columns[0]) for name, value in (options or {}).items()}
            try:
                told = self.client.predict(self.name, inputs, signature)
            except ServingError as error:
                names = " and ".join(outputs)
                raise ValueError(f"The endpoint gave no {names} by {self.name}/{signature}: {error}") from error
            return list(zip(*(told[output] for output in outputs)))

        rows = answered(ask, *texts.values(), size=size)
        return [[row[i] for row in rows] for i in range(len(outputs))]

    def translate(self, texts: Sequence[str]) -> list[str]:
        """The best translations, greedy ones or of the beams."""
        if self.beams is None:
            return self._ask("translate", ["translation"], text=texts)[0]
        options = {"length_penalty": self.beams.length_penalty, "max_new_tokens": 2**31 - 1}  # as many as it exports
        told = self._ask("translate_beam", ["translations"], options=options, text=texts)[0]
        if (served := len(told[0])) != self.beams.num_beams:
            raise ValueError(f"The endpoint keeps {served} beams, got num_beams={self.beams.num_beams!r}.")
        return [row[0] for row in told]

    def score(self, texts: Sequence[str]) -> tuple[float, int]:
        """Summed log-probability in nats and number of tokens, the end counted."""
        logs, counts = self._ask("score", ["log_probability", "num_tokens"], text=texts)
        return sum(logs), sum(counts)

    def classify(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        return self._ask("classify", ["label"], text=texts)[0]

    def follows(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[float]:
        """The probability that each second sentence follows the first."""
        return self._ask("next_sentence", ["probability"], first=firsts, second=seconds)[0]

    def tag(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """The label of each word: that of the token that begins it."""
        told = zip(*self._ask("tag", ["starts", "ends", "labels"], text=joined(sentences)))
        answers = []
        for words, (starts, ends, labels) in zip(sentences, told):
            count = sum(label != "" for label in labels)  # the rest is padding
            answers.append(labels_of_words(words, starts[:count], ends[:count], labels[:count]))
        return answers

    def find(self, questions: Sequence[str], contexts: Sequence[str], null: bool) -> list[str]:
        """The best answer in each context; with `null` "" where no answer scores more."""
        signature, output = ("answer", "answer") if null else ("spans", "answers")
        told = self._ask(signature, [output], SPANS, question=questions, context=contexts)[0]
        return told if null else [row[0] for row in told]

    def choose(self, prompts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[int]:
        """The number of the likeliest choice of each prompt, from 0."""
        most = max(map(len, choices))
        filled = [[*row, *[""] * (most - len(row))] for row in choices]
        told = self._ask("choose", ["probabilities"], prompt=prompts, choices=filled)[0]
        return [max(range(len(row)), key=row.__getitem__) for row in told]

    def classify_pairs(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[str]:
        """The likeliest label of each pair."""
        return self._ask("classify", ["label"], first=firsts, second=seconds)[0]

    def similarity(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[float]:
        """The expected number of the scale for each pair."""
        return self._ask("similarity", ["similarity"], first=firsts, second=seconds)[0]


def endpoint(options: argparse.Namespace, beams: BeamSampler | None = None) -> Endpoint | None:
    """The served model that the command line names, or None; asked for the best of the beams, if there are any.

    Raises:
        ValueError: --endpoint is not HOST:PORT/NAME.
    """
    name = Path(options.run).name
    if options.endpoint:
        address, _, given = options.endpoint.partition("/")
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--endpoint needs HOST:PORT or HOST:PORT/NAME, got {options.endpoint!r}.")
        return Endpoint(host, int(port), given or name, beams=beams)
    if options.rest_api_port:
        return Endpoint(options.host, options.rest_api_port, name, "rest", beams)
    return Endpoint(options.host, options.port, name, beams=beams) if options.port else None


def beams_of(options: argparse.Namespace) -> BeamSampler | None:
    """The beams that the command line asks for, or None: greedy."""
    if options.num_beams is None:
        return None
    if options.num_beams < 1:
        raise ValueError(f"--num_beams needs 1 or more, got {options.num_beams!r}.")
    return BeamSampler(options.num_beams, options.length_penalty)


def evaluate_run(
    run: Run, split: str = "test", served: Endpoint | None = None, beams: BeamSampler | None = None
) -> dict[str, Any]:
    """The measures of a run on a split; those in process are also kept in its metrics.json.

    Args:
        run: a fitted run.
        split: "train", "validation" or "test".
        served: ask this endpoint instead of the model in process.
        beams: of a translator: its best translation among these instead of the greedy one.

    Returns:
        A dict of numbers; which ones depends on the task.

    Raises:
        ValueError: the measure of this corpus needs the model in process, or beams of a model that is no translator.
    """
    corpus = corpus_of(run.recipe.replace(stream=False))
    examples = corpus.read(split, run.recipe.evaluate_examples, run.recipe.seed + 1)
    kind = corpus.kind
    if kind == "documents" and run.recipe.architecture == "gpt":
        examples, kind = whole_documents(examples), "lines"
    if beams is not None and kind != "pairs":
        raise ValueError(f"Beams need a translator, got architecture={run.recipe.architecture!r}.")
    values = MEASURED[kind](run, served or InProcess(run, beams), examples, split)
    if beams is not None:
        values |= {"num_beams": beams.num_beams, "length_penalty": beams.length_penalty}
    if served is None:
        path = run.folder / "metrics.json"
        kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
        write_json(path, {**kept, split if beams is None else f"{split}_beam": values})
    return values


def show(values: dict[str, Any]) -> None:
    """The measures as a table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measure")
    table.add_column("value", overflow="fold")
    for name, value in values.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)
