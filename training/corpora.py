"""Where the examples come from: the built-in grammar, and one reader for each file of the real data.

Each corpus is a function of a split ("train", "validation", "test"), a greatest number of examples (None: all there
are; of one long text: characters) and a seed, and gives a list: of pairs, of lines, of documents (lists of lines), of
(text, label), of (words, labels), of (first, second, label or score), of Question, of Choice, or one long text.
"""

import functools
import gzip
import hashlib
import itertools
import os
import random
import xml.etree.ElementTree
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from training import grammar
from training.readers import READERS, Choice, Files, Question, squad_articles

SPLITS = ("train", "validation", "test")
DATA = "KERAS_SEQ_DATA"
GRAMMAR_COUNT = {"train": 100_000, "validation": 500, "test": 1_000}


class Corpus(NamedTuple):
    """What a corpus holds and the function that reads it.

    Kinds: "pairs", "lines", "documents", "labelled", "tokens", "spans", "choices", "couples", "scored" or "text".
    """

    kind: str
    read: Callable[[str, int | None, int], Any]


def data_file(name: str) -> Path:
    """The path of a file of the real data, in the folder that KERAS_SEQ_DATA names (`data` if unset)."""
    folder = Path(os.environ.get(DATA) or "data")
    path = folder / name
    if not path.exists():
        raise FileNotFoundError(
            f"The corpus needs the file {name}, which is not in {folder}. README.md says where to get it; "
            f"{DATA} names the folder it is looked for in."
        )
    return path


def _lines(name: str) -> list[str]:
    path = data_file(name)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\r\n") for line in file]


def _some(examples: list, count: int | None, seed: int) -> list:
    if count is None or count >= len(examples):
        return examples
    return random.Random(seed).sample(examples, count)


def _grammar(kind: str, function: Callable[..., Any]) -> Corpus:
    def read(split: str, count: int | None, seed: int) -> Any:
        return function(split, GRAMMAR_COUNT[split] if count is None else count, seed=seed)

    return Corpus(kind, read)


def _grammar_lines(split: str, count: int, seed: int) -> list[str]:
    return [english for english, _ in grammar.sentence_pairs(split, count, seed=seed)]


def _multi30k(split: str, count: int | None, seed: int) -> list[tuple[str, str]]:
    name = {"train": "train", "validation": "val", "test": "test_2016_flickr"}[split]
    german, english = (_lines(f"multi30k/{name}.{language}.gz") for language in ("de", "en"))
    return _some(list(zip(german, english, strict=True)), count, seed)


def _multi30k_words(split: str, count: int | None, seed: int) -> list[tuple[str, str]]:
    """The pairs in lower case, with a blank between any two words: what the published figures are of."""
    german, english = zip(*_multi30k(split, count, seed))
    return list(zip(_moses_words("de", german), _moses_words("en", english)))


def _moses_words(language: str, lines: Iterable[str]) -> list[str]:
    moses = _sacremoses().MosesTokenizer(lang=language)
    return [moses.tokenize(line.lower(), return_str=True, escape=False) for line in lines]


def from_moses_words(language: str, lines: Iterable[str]) -> list[str]:
    """Lines with a blank between any two words, as one would write them."""
    moses = _sacremoses().MosesDetokenizer(lang=language)
    return [moses.detokenize(line.split(), unescape=False) for line in lines]


def _sacremoses() -> Any:
    try:
        import sacremoses
    except ModuleNotFoundError as error:
        raise ValueError("multi30k-words needs the package sacremoses: pip install 'keras-seq[words]'.") from error
    return sacremoses


def _tinyshakespeare(split: str, count: int | None, seed: int) -> str:
    text = data_file("tinyshakespeare/input.txt").read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)  # the split of the published figures: the last tenth is never trained on
    part = text[:cut] if split == "train" else text[cut:]
    return part[:count]


def _nsmc(split: str, count: int | None, seed: int) -> list[tuple[str, str]]:
    name = "nsmc/ratings_test_first25k.txt.gz" if split == "test" else "nsmc/ratings_train.txt.gz"
    rows = [line.split("\t") for line in _lines(name)[1:]]
    examples = [(text, {"0": "negative", "1": "positive"}[label]) for _, text, label in rows if text]
    if split != "test":  # the last 5,000 of the shuffled training file validate
        random.Random(0).shuffle(examples)
        examples = examples[-5000:] if split == "validation" else examples[:-5000]
    return _some(examples, count, seed)


@functools.lru_cache(maxsize=1)  # a run reads it for training and again for validation: 640,000 lines
def _blocks(path: Path) -> list[list[str]]:
    """Lines between blank lines."""
    blocks: list[list[str]] = [[]]
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            if text := line.rstrip("\r\n"):
                blocks[-1].append(text)
            elif blocks[-1]:
                blocks.append([])
    return blocks


def _nsmc_unlabelled(split: str, count: int | None, seed: int) -> list[list[str]]:
    """Reviews of one film are one document; every hundredth film validates, every hundredth tests."""
    documents = _blocks(data_file("nsmc/unlabelled.txt.gz"))
    place = {"validation": 0, "test": 1}
    kept = [
        document
        for i, document in enumerate(documents)
        if document and (i % 100 == place[split] if split in place else i % 100 > 1)
    ]
    return _some(kept, count, seed)


def _wnut17(split: str, count: int | None, seed: int) -> list[tuple[list[str], list[str]]]:
    """Derczynski et al. 2017, with the splits of the shared task."""
    name = {"train": "wnut17train.conll", "validation": "emerging.dev.conll", "test": "emerging.test.annotated"}[split]
    return _some(list(READERS["conll"].read(str(data_file(f"wnut17/{name}")), ["0", "-1"])), count, seed)


def own_split(name: str) -> str:
    """Of data that has no split: a fifth tests and a tenth validates, by a hash of the name, whatever the order."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % 10
    return "test" if bucket < 2 else "validation" if bucket == 2 else "train"


def _squad(file: str, split: str, count: int | None, seed: int) -> list[Question]:
    """All questions about an article are in one split."""
    articles = squad_articles(str(data_file(file)))
    return _some([one for title, ones in articles if own_split(title) == split for one in ones], count, seed)


# Roemmele et al. 2011: each item asks for the cause or for the effect of its premise.
_COPA_QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


def _copa(split: str, count: int | None, seed: int) -> list[Choice]:
    examples = []
    for item in xml.etree.ElementTree.parse(data_file("copa/copa-dev.xml")).iter("item"):
        if own_split(item.attrib["id"]) == split:
            prompt, *choices = (item.findtext(name) or "" for name in ("p", "a1", "a2"))
            prompt = f"{prompt} {_COPA_QUESTIONS[item.attrib['asks-for']]}"
            examples.append(Choice(prompt, choices, int(item.attrib["most-plausible-alternative"]) - 1))
    return _some(examples, count, seed)


def _korsts(split: str, count: int | None, seed: int) -> list[tuple[str, str, str]]:
    """Ham et al. 2020: two sentences and how alike they are, 0 to 5."""
    name = {"train": "train", "validation": "dev", "test": "test"}[split]
    rows = READERS["tsv-scored"].read(str(data_file(f"korsts/sts-{name}.tsv")), ["sentence1", "sentence2", "score"])
    return _some(list(rows), count, seed)


CORPORA = {
    "grammar-pairs": _grammar("pairs", grammar.sentence_pairs),
    "grammar-lines": _grammar("lines", _grammar_lines),
    "grammar-documents": _grammar("documents", grammar.documents),
    "grammar-labelled": _grammar("labelled", grammar.labelled),
    "multi30k": Corpus("pairs", _multi30k),
    "multi30k-words": Corpus("pairs", _multi30k_words),
    "tinyshakespeare": Corpus("text", _tinyshakespeare),
    "nsmc": Corpus("labelled", _nsmc),
    "nsmc-unlabelled": Corpus("documents", _nsmc_unlabelled),
    "wnut17": Corpus("tokens", _wnut17),
    "xquad": Corpus("spans", functools.partial(_squad, "xquad/xquad.en.json")),
    "korquad": Corpus("spans", functools.partial(_squad, "korquad/KorQuAD_v1.0_dev.json.gz")),
    "copa": Corpus("choices", _copa),
    "korsts": Corpus("scored", _korsts),
}


def kind_of(name: str) -> str:
    """What a built-in corpus or the files of a reader hold."""
    return CORPORA[name].kind if name in CORPORA else READERS[name].kind


def corpus_of(recipe: Any) -> Corpus:
    """The corpus that a recipe names: a built-in one, or the files it gives to a reader."""
    if recipe.corpus in CORPORA:
        return CORPORA[recipe.corpus]
    return Corpus(READERS[recipe.corpus].kind, functools.partial(_files, recipe))


def _files(recipe: Any, split: str, count: int | None, seed: int) -> Any:
    """The first `count` examples of a split, or for training with `stream` all of them as a stream."""
    files = Files(recipe.corpus, recipe.files[split], recipe.columns)
    if recipe.stream and split == "train":
        return files
    examples = list(itertools.islice(files, None if files.reader.kind == "text" else count))
    if not examples:
        raise ValueError(f"There is no example in {recipe.files[split]}, the files of {split}.")
    return "\n".join(examples)[:count] if files.reader.kind == "text" else examples
