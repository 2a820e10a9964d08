"""Readers of a user's own files: tab-separated, plain text, JSON lines, CoNLL, SQuAD, and TensorFlow Datasets by name.

Each is a function of a path (read line by line, gzip if it ends in .gz) and the names or numbers of its columns, and
yields one example after another: nothing larger than an example is in memory.
"""

import contextlib
import glob
import gzip
import importlib.util
import itertools
import json
import math
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

OPEN_FILES = 4  # of the shards of a stream, read in turn


class Reader(NamedTuple):
    """What its examples are, how a file is read, and its columns where a recipe names none."""

    kind: str
    read: Callable[[str, list[str]], Iterator[Any]]
    columns: str | None = None


class Question(NamedTuple):
    """A question of SQuAD (Rajpurkar et al. 2016): the answers with their first character in the context."""

    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]


class Choice(NamedTuple):
    """A prompt and its possible continuations, of which the one at `label` is right."""

    prompt: str
    choices: list[str]
    label: int


def open_text(path: str) -> Any:
    """A text file, unpacked if it is gzip, without the byte order mark that some editors put first; what is no UTF-8
    becomes U+FFFD, as in the tokenizers."""
    opener = gzip.open if str(path).endswith(".gz") else open
    return opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="\n")


def lines(path: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without their ends."""
    with open_text(path) as file, _unpacking(path):
        for number, line in enumerate(file, start=1):
            yield number, line.rstrip("\r\n")


@contextlib.contextmanager
def _unpacking(path: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file: {error}") from error


def _blocks(path: str) -> Iterator[list[tuple[int, str]]]:
    """Lines between blank ones."""
    for full, block in itertools.groupby(lines(path), key=lambda numbered: bool(numbered[1].strip())):
        if full:
            yield list(block)


def _text_lines(path: str, columns: list[str]) -> Iterator[str]:
    return (line for _, line in lines(path) if line.strip())


def _text_documents(path: str, columns: list[str]) -> Iterator[list[str]]:
    return ([line for _, line in block] for block in _blocks(path))


def _text(path: str, columns: list[str]) -> Iterator[str]:
    with open_text(path) as file, _unpacking(path):
        yield file.read()


def _tsv(path: str, columns: list[str]) -> Iterator[tuple[str, ...]]:
    """Columns by number from 0, or by the names in the first line."""
    rows = lines(path)
    places = [int(column) for column in columns if column.isdigit()]
    if len(places) < len(columns):
        header = next(rows, (1, ""))[1].split("\t")
        for column in columns:
            if column not in header:
                raise ValueError(f"{path} has no column {column!r} in its first line: {header}.")
        places = [header.index(column) for column in columns]
    for number, line in rows:
        cells = line.split("\t")
        if line and len(cells) <= max(places):
            raise ValueError(
                f"{path}, line {number} needs column {max(places)}, got {len(cells)} columns: {line[:60]!r}"
            )
        if line:
            yield tuple(cells[place] for place in places)


def _scored(path: str, columns: list[str]) -> Iterator[tuple[str, ...]]:
    """Two texts and a number."""
    for first, second, score in _tsv(path, columns):
        with contextlib.suppress(ValueError):
            if math.isfinite(float(score)):
                yield first, second, score
                continue
        raise ValueError(f"{path} needs a number in column {columns[2]}, got {score!r} beside {first[:60]!r}")


def _jsonl(path: str, columns: list[str]) -> Iterator[Any]:
    for number, line in lines(path):
        if line.strip():
            try:
                row = json.loads(line)
                yield _fields(row, columns)
            except (ValueError, KeyError, TypeError) as error:
                raise _no_row(path, number, columns, line, error) from error


def _no_row(path: str, number: int, columns: list[str], line: str, error: Exception) -> ValueError:
    why = f"no {error}" if isinstance(error, KeyError) else error
    return ValueError(f"{path}, line {number} needs an object with {columns}, got {line[:60]!r}: {why}")


def _jsonl_choices(path: str, columns: list[str]) -> Iterator[Choice]:
    """Fields: the prompt, the list of its choices, the number of the right one from 0."""
    for number, line in lines(path):
        if line.strip():
            try:
                prompt, choices, label = (json.loads(line)[column] for column in columns)
                if not isinstance(choices, list):
                    raise TypeError(f"choices is {type(choices).__name__}")
                texts = [_as_text(columns[1], choice) for choice in choices]
                # As text: neither 1.9 nor true is the number of a choice.
                if str(label) not in map(str, range(len(texts))):
                    raise ValueError(
                        f"{columns[2]} {label!r} is not the number, from 0, of one of {len(texts)} choices"
                    )
                one = Choice(_as_text(columns[0], prompt), texts, int(label))
            except (ValueError, KeyError, TypeError) as error:
                raise _no_row(path, number, columns, line, error) from error
            yield one


def _fields(row: Any, columns: list[str]) -> Any:
    """The fields as text; a name such as translation.de goes into an object within."""
    values = []
    for column in columns:
        value = row
        for name in column.split("."):
            value = value[name]
        values.append(_as_text(column, value))
    return values[0] if len(values) == 1 else tuple(values)


def _as_text(column: str, value: Any) -> str:
    """A field as text. Raises: TypeError where it would become words that nobody wrote, such as "None"."""
    if value is None or isinstance(value, dict | list):
        raise TypeError(f"{column} is {type(value).__name__}")
    text = value.decode() if isinstance(value, bytes) else str(value)
    # Half of a character that JSON may hold, such as an emoji cut in two, is no text: U+FFFD.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _conll(path: str, columns: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Sentences: tokens and labels, one pair a line (Tjong Kim Sang and De Meulder 2003)."""
    try:
        token, label = (int(column) for column in columns)
    except ValueError as error:
        raise ValueError(f"conll needs the numbers of two columns, got {','.join(columns)!r}") from error
    for block in _blocks(path):
        rows = [(number, line, _cells(line)) for number, line in block]
        rows = [row for row in rows if row[2][0] != "-DOCSTART-"]
        for number, line, cells in rows:
            if not all(-len(cells) <= column < len(cells) for column in (token, label)) or len(cells) < 2:
                raise ValueError(
                    f"{path}, line {number} needs a token and a label in columns {token} and {label}, got {line[:60]!r}"
                )
        if rows:
            yield [cells[token] for *_, cells in rows], [cells[label] for *_, cells in rows]


def _cells(line: str) -> list[str]:
    """What tabs part, or else blanks: of those that Unicode has, a no-break space is part of a word."""
    return line.split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]


def squad_articles(path: str) -> Iterator[tuple[str, list[Question]]]:
    """The title of each article ("" where it has none) and its questions."""
    (text,) = _text(path, [])
    try:
        for article in json.loads(text)["data"]:
            questions = []
            for paragraph in article["paragraphs"]:
                for one in paragraph["qas"]:
                    answers = [(answer["text"], int(answer["answer_start"])) for answer in one["answers"]]
                    questions.append(Question(str(one["id"]), one["question"], paragraph["context"], answers))
            yield str(article.get("title", "")), questions
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not in SQuAD's form: {type(error).__name__} {error}") from error


def _squad(path: str, columns: list[str]) -> Iterator[Question]:
    return itertools.chain.from_iterable(questions for _, questions in squad_articles(path))


def _tfds(name: str, columns: list[str]) -> Iterator[Any]:
    """NAME:SPLIT, as `wmt14_translate/de-en:train[:1%]`; without a split "train"."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise ValueError(
            "A corpus of TensorFlow Datasets needs the package tensorflow-datasets, which is not installed: "
            "pip install tensorflow-datasets."
        )
    import tensorflow_datasets

    dataset, _, split = name.partition(":")
    for row in tensorflow_datasets.load(dataset, split=split or "train").as_numpy_iterator():
        try:
            yield _fields(row, columns)
        except KeyError as error:
            raise ValueError(f"The dataset {dataset} has no {error}; its fields are {sorted(row)}.") from error


READERS = {
    "text-lines": Reader("lines", _text_lines),
    "text-documents": Reader("documents", _text_documents),
    "text-running": Reader("text", _text),
    "tsv-pairs": Reader("pairs", _tsv, "0,1"),
    "tsv-labelled": Reader("labelled", _tsv, "0,1"),
    "tsv-couples": Reader("couples", _tsv, "0,1,2"),
    "tsv-scored": Reader("scored", _scored, "0,1,2"),
    "jsonl-lines": Reader("lines", _jsonl, "text"),
    "jsonl-pairs": Reader("pairs", _jsonl, "source,target"),
    "jsonl-labelled": Reader("labelled", _jsonl, "text,label"),
    "jsonl-choices": Reader("choices", _jsonl_choices, "prompt,choices,label"),
    "conll": Reader("tokens", _conll, "0,-1"),
    "squad": Reader("spans", _squad),
    "tfds-lines": Reader("lines", _tfds, "text"),
    "tfds-pairs": Reader("pairs", _tfds, "source,target"),
    "tfds-labelled": Reader("labelled", _tfds, "text,label"),
}


class Files:
    """The examples of some files, read anew whenever they are asked for.

    Args:
        reader: a name in READERS.
        where: a path, or a pattern such as `data/train-*.tsv.gz`; of TensorFlow Datasets NAME:SPLIT.
        columns: names or numbers, with commas between; None: the reader's own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: more or fewer columns than the reader takes.
    """

    def __init__(self, reader: str, where: str, columns: str | None = None):
        self.reader = READERS[reader]
        own = (self.reader.columns or "").split(",")
        self.columns = own if columns is None else [name.strip() for name in columns.split(",")]
        if len(self.columns) != len(own):
            raise ValueError(f"{reader} takes {len(own)} columns, as {self.reader.columns!r}, got columns={columns!r}.")
        self.paths = [where]
        if not reader.startswith("tfds") and not os.path.isfile(where):  # a path may hold a pattern's signs
            self.paths = [path for path in sorted(glob.glob(where, recursive=True)) if not os.path.isdir(path)]
        self.changes: list[Callable[[list], list]] = []
        if not self.paths:
            raise FileNotFoundError(f"The corpus {reader} needs the file {where}, which is not there.")

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(self.reader.read(path, self.columns) for path in self.paths)

    def map(self, change: Callable[[list], list]) -> "Files":
        """The same files, whose examples in memory are changed together."""
        other = object.__new__(Files)
        other.reader, other.columns, other.paths = self.reader, self.columns, self.paths
        other.changes = [*self.changes, change]
        return other

    def pools(self, size: int, seed: int | None) -> Iterator[list]:
        """`size` examples after another, in the last pool up to half as many more; with a seed the files in another
        order in each pass, for ever.

        Raises:
            ValueError: there is no example in the files.
        """
        for number in itertools.count() if seed is not None else [0]:
            order = (
                range(len(self.paths))
                if seed is None
                else np.random.default_rng((seed, number)).permutation(len(self.paths))
            )
            examples = in_turn(self.reader.read(self.paths[i], self.columns) for i in order)
            pool = list(itertools.islice(examples, size))
            if not pool:
                raise ValueError(f"There is no example in {', '.join(map(str, map(Path, self.paths)))}.")
            while pool:
                following = list(itertools.islice(examples, size))
                if 2 * len(following) < size:  # few at the end join those before: of one document no pairs are made
                    pool, following = pool + following, []
                for change in self.changes:
                    pool = change(pool)
                yield pool
                pool = following


def in_turn(sources: Iterable[Iterator[Any]]) -> Iterator[Any]:
    """An example of each of OPEN_FILES sources in turn; where one ends, the next is opened."""
    waiting = iter(sources)
    opened = deque(itertools.islice(waiting, OPEN_FILES))
    while opened:
        source = opened.popleft()
        try:
            yield next(source)
            opened.append(source)
        except StopIteration:
            opened.extend(itertools.islice(waiting, 1))
