"""Which characters, words or pieces of words of a text become tokens. The same lines give the same ones."""

import json
from collections import Counter

from keras_seq.byte_pairs import byte_alphabet
from keras_seq.characters import lower
from keras_seq.tokenizer import SPECIAL_TOKENS


def most_frequent(lines, kind, vocabulary_size, min_frequency, lowercase):
    """Tokens of a "char" or "word" tokenizer."""
    counts = Counter()
    for line in lines:
        line = lower(line) if lowercase else line
        counts.update(line if kind == "char" else line.split())
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    # Nor is a word of the text a token if a vocabulary that has it takes it for one of these.
    taken = {name for names in SPECIAL_TOKENS.values() for name in names}
    tokens = [token for token in counts if counts[token] >= min_frequency and token not in taken]
    tokens.sort(key=lambda token: (-counts[token], token))
    return special + tokens[: vocabulary_size - len(special)]


def wordpiece(lines, vocabulary_size, min_frequency, lowercase):
    """Tokens of a WordPiece tokenizer."""
    from tokenizers import Tokenizer as Trained
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    special = [SPECIAL_TOKENS[role][0] for role in ("pad", "unknown", "start", "end", "mask")]
    trained = Trained(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    lines = list(lines)
    counts, inner = Counter(), set()
    for line in lines:
        for word, _ in trained.pre_tokenizer.pre_tokenize_str(trained.normalizer.normalize_str(line)):
            counts.update(word)
            inner.update(word[1:])
    # The trainer numbers the characters inside words in the order of a hash map, another in every process, and breaks
    # ties by number: naming them beforehand makes it repeatable. The rarest give way where not all would fit.
    frequent = [char for char in counts if counts[char] >= min_frequency]
    characters = sorted(frequent, key=lambda char: (-counts[char], char))[: (vocabulary_size - len(special)) // 2]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        min_frequency=min_frequency,
        special_tokens=special + ["##" + char for char in sorted(inner.intersection(characters))],
        initial_alphabet=sorted(characters),
        limit_alphabet=len(characters),
        show_progress=False,
    )
    trained.train_from_iterator(lines, trainer)
    vocabulary = trained.get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def byte_pairs(lines, vocabulary_size, min_frequency):
    """{token: id} and merges of a byte-pair tokenizer."""
    from tokenizers import Tokenizer as Trained
    from tokenizers import models, pre_tokenizers, trainers

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=min_frequency,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=byte_alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(lines, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], model["merges"]
