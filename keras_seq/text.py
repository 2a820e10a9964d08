"""The tokenizers by name: characters and words, loading any that was saved, training the vocabulary of one."""

import json
import pathlib

from keras_seq import characters, vocabularies
from keras_seq.byte_pairs import BytePairTokenizer, OpenAIGPTTokenizer
from keras_seq.characters import BOUNDARY, SPACE
from keras_seq.wordpiece import WordPieceTokenizer
from keras_seq.words import WordByWordTokenizer

KINDS = ("wordpiece", "bpe", "char", "word")


class CharacterTokenizer(WordByWordTokenizer):
    """One token a character (code point), `<unk>` for one that is not in the vocabulary.

    Args:
        vocabulary: list of tokens in the order of their ids, or the path of a JSON file with one.
        lowercase: whether strings are lower-cased, each character by itself.
    Raises:
        ValueError: the vocabulary is empty or has a token twice.
    """

    kind = "char"

    def __init__(self, vocabulary, lowercase=False):
        if not isinstance(vocabulary, (list, tuple)):
            vocabulary = json.loads(pathlib.Path(vocabulary).read_text(encoding="utf-8"))
        super().__init__(vocabulary, lowercase=lowercase)
        self.lowercase = lowercase

    def _cut(self, codes):
        kept = codes != BOUNDARY
        return kept, kept


class WordTokenizer(CharacterTokenizer):
    """One token a word between white space (`str.split`'s), joined by one space; `<unk>` for one not in the vocabulary.

    Args, Raises: as `CharacterTokenizer`.
    """

    kind = "word"

    def _cut(self, codes):
        kept = characters.class_table("word").lookup(codes) != SPACE
        return kept, kept & ~characters.shift(kept, 1, False)

    def _joined(self, token):
        return self._bytes(token), self._bytes(" " + token)


def load_tokenizer(folder):
    """The tokenizer that `save` wrote into a folder.

    Raises:
        ValueError: the files are not those that were saved together, or of an unknown kind.
    """
    folder = pathlib.Path(folder)
    options = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    kind, fingerprint = options.pop("kind"), options.pop("fingerprint")
    kinds = [*KINDS, OpenAIGPTTokenizer.kind]
    if kind not in kinds:
        raise ValueError(f"load_tokenizer needs kind in {kinds}, got kind={kind!r} in {folder}.")
    if kind == "wordpiece":
        tokenizer = WordPieceTokenizer(folder / "vocab.txt", **options)
    elif kind in ("bpe", "openai-gpt"):
        make = BytePairTokenizer if kind == "bpe" else OpenAIGPTTokenizer
        tokenizer = make(folder / "vocab.json", folder / "merges.txt", **options)
    else:
        make = CharacterTokenizer if kind == "char" else WordTokenizer
        tokenizer = make(folder / "vocab.json", lowercase=options["lowercase"])
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(f"load_tokenizer needs the files with fingerprint {fingerprint}, got {tokenizer.fingerprint}.")
    return tokenizer


def train_tokenizer(lines, kind="wordpiece", vocabulary_size=8000, min_frequency=1, lowercase=False):
    """A tokenizer with a vocabulary made for these lines. The same lines give the same vocabulary.

    Special tokens come first: [PAD] 0, [UNK], [CLS], [SEP], [MASK] for "wordpiece"; <pad> 0, <s>, </s> for "bpe", then
    the 256 bytes; <pad> 0, <s>, </s>, <unk> for "char" and "word".

    Args:
        lines: iterable of str.
        kind: "wordpiece", "bpe", "char" or "word".
        vocabulary_size: most tokens, special ones included.
        min_frequency: how often a word, character or pair must occur to be a token.
        lowercase: whether strings are lower-cased first, here and by the tokenizer.
    Raises:
        ValueError: kind is unknown, vocabulary_size leaves no token beside the special ones (and the bytes of "bpe"),
            min_frequency < 1, lowercase with "bpe", which keeps strings as they are, lines is one str or has one that
            is none, or no character, word or piece occurs often enough to be a token.
    """
    if kind not in KINDS:
        raise ValueError(f"train_tokenizer needs kind in {KINDS}, got kind={kind!r}.")
    least = {"wordpiece": 7, "bpe": 259, "char": 5, "word": 5}[kind]
    if vocabulary_size < least:
        raise ValueError(
            f"train_tokenizer(kind={kind!r}) needs vocabulary_size >= {least}, got vocabulary_size={vocabulary_size!r}."
        )
    if min_frequency < 1:
        raise ValueError(f"train_tokenizer needs min_frequency >= 1, got min_frequency={min_frequency!r}.")
    if kind == "bpe" and lowercase:
        raise ValueError(f"train_tokenizer(kind='bpe') keeps strings as they are, got lowercase={lowercase!r}.")
    if isinstance(lines, str):
        raise ValueError(f"train_tokenizer needs an iterable of lines, got one str of {len(lines)} characters.")
    lines = _checked(lines)
    if kind == "bpe":
        return BytePairTokenizer(*vocabularies.byte_pairs(lines, vocabulary_size, min_frequency))
    if kind == "wordpiece":
        make, vocabulary = WordPieceTokenizer, vocabularies.wordpiece(lines, vocabulary_size, min_frequency, lowercase)
    else:
        make = CharacterTokenizer if kind == "char" else WordTokenizer
        vocabulary = vocabularies.most_frequent(lines, kind, vocabulary_size, min_frequency, lowercase)
    if len(vocabulary) == (5 if kind == "wordpiece" else 4):  # the special tokens
        raise ValueError(
            f"train_tokenizer needs lines in which something occurs min_frequency={min_frequency} times or more, "
            f"got a vocabulary of {vocabulary} alone."
        )
    return make(vocabulary, lowercase=lowercase)


def _checked(lines):
    for line in lines:
        if not isinstance(line, str):
            raise ValueError(f"train_tokenizer needs lines of str, got {line!r}.")
        yield line
