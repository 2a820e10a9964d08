"""Byte-pair encoding: GPT-2's, of bytes, and GPT-1's, of characters with a mark at the end of words."""

import abc
import functools
import json
import pathlib

import numpy as np

from keras_seq import characters
from keras_seq.characters import ALONE, BOUNDARY, ENDS, LETTER, NUM_CODES, SPACE
from keras_seq.tokenizer import read_lines
from keras_seq.words import WordByWordTokenizer, static_table

MAX_PAIRED_CHARACTERS = 512  # a power of two; a longer word is cut, which bounds the rounds of joining
NO_RANK = np.int64(1) << 40
END_OF_WORD = "</w>"


@functools.cache
def byte_alphabet():
    """GPT-2's visible character for each byte: itself where it has one, else the next from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 0x100 + hidden.index(byte)) for byte in range(256)]


def _every_512th(begins):
    """Of lines of characters cut at `begins` every place a multiple of MAX_PAIRED_CHARACTERS after a cut."""
    import tensorflow as tf

    position = tf.range(tf.size(begins))
    word = tf.maximum(tf.cumsum(tf.cast(begins, tf.int32)) - 1, 0)
    cuts = tf.concat([tf.boolean_mask(position, begins), [0]], 0)
    inside = position - tf.gather(cuts, word)
    return tf.bitwise.bitwise_and(inside, MAX_PAIRED_CHARACTERS - 1) == 0


class _PairTokenizer(WordByWordTokenizer):
    """Words whose symbols are joined pair by pair, one that is earlier in `merges` first; a kind says what symbols."""

    def __init__(self, vocabulary, merges, special_tokens_in_strings):
        name = type(self).__name__
        if not isinstance(vocabulary, dict):
            vocabulary = json.loads(pathlib.Path(vocabulary).read_text(encoding="utf-8"))
        if not isinstance(merges, (list, tuple)):
            merges = [line for line in read_lines(merges) if line and not line.startswith("#version")]
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise ValueError(
                f"{name} needs the ids 0 to {len(vocabulary) - 1}, each once, "
                f"got {len(vocabulary)} ids from {min(vocabulary.values())} to {max(vocabulary.values())}."
            )
        super().__init__(sorted(vocabulary, key=vocabulary.get), special_tokens_in_strings)
        self.merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
        for merge in self.merges:
            if len(merge) != 2 or not {*merge, "".join(merge)} <= self._ids.keys():
                raise ValueError(f"{name} needs merges of two tokens into a third, got {merge!r}.")

    @abc.abstractmethod
    def _symbols(self, words):
        """Words (u,) -> ids of their symbols, -1 for one without, their word and their character in it."""

    @abc.abstractmethod
    def _word_of(self, token):
        """The word, bytes, that may become this one token; None if none may."""

    def _further_tables(self):
        size = self.vocabulary_size
        ranks = {self._ids[a] * size + self._ids[b]: rank for rank, (a, b) in enumerate(self.merges)}
        return {"merges": static_table(ranks or {-9: -1}, NO_RANK)}

    def _whole_words(self):
        """Not every token is what the symbols of its word are joined to, so all are tried once."""
        import tensorflow as tf

        word_of = {i: self._word_of(token) for i, token in enumerate(self.vocabulary) if i not in self._special_ids}
        tokens = [i for i, word in word_of.items() if word]
        words = tf.constant([word_of[i] for i in tokens], tf.string)
        ids, _, _, counts = tf.function(self._pieces, autograph=False)(words)
        splits = np.cumsum(counts.numpy()) - counts.numpy()
        alone = np.flatnonzero(counts.numpy() == 1)
        ids = ids.numpy()[splits[alone]]
        return {word_of[i]: int(i) for i, j in zip(ids, alone) if i == tokens[j]}

    def _pieces(self, words):
        import tensorflow as tf

        size = self.vocabulary_size
        merged = np.array([self._ids[a + b] for a, b in self.merges] or [0], "int64")
        symbol, word, begin = self._symbols(words)
        symbol, word, begin = (tf.boolean_mask(line, symbol >= 0) for line in (symbol, word, begin))

        def ranks(symbol, word, at):
            left, right = tf.gather(symbol, at), tf.gather(symbol, at + 1)
            rank = self._tables["merges"].lookup(left * size + right)
            return tf.where(tf.gather(word, at) == tf.gather(word, at + 1), rank, NO_RANK)

        def first_ranks():
            last = tf.fill([1], tf.constant(NO_RANK))
            return tf.concat([ranks(symbol, word, tf.range(tf.size(symbol) - 1)), last], 0)

        def join(symbol, word, begin, end, rank):
            best = tf.math.unsorted_segment_min(rank, word, tf.size(words))
            hit = (rank < NO_RANK) & (rank == tf.gather(best, word))
            # Of hits in a row, which share symbols, every second one is joined, from the left.
            position = tf.range(tf.size(symbol))
            run_begins = hit & ~characters.shift(hit, 1, False)
            run = tf.cumsum(tf.cast(run_begins, tf.int32)) - 1
            runs = tf.concat([tf.boolean_mask(position, run_begins), [0]], 0)
            place = position - tf.gather(runs, tf.maximum(run, 0))
            hit &= tf.bitwise.bitwise_and(place, 1) == 0
            kept = ~characters.shift(hit, 1, False)
            symbol = tf.where(hit, tf.gather(merged, tf.where(hit, rank, 0)), symbol)
            end = tf.where(hit, characters.shift(end, -1, 0), end)
            symbol, word, begin, end, rank, hit = (
                tf.boolean_mask(line, kept) for line in (symbol, word, begin, end, rank, hit)
            )
            # Only pairs with a new half need to be looked up again; the last symbol of all has no pair.
            at = tf.cast(tf.where((hit | characters.shift(hit, -1, False))[:-1])[:, 0], tf.int32)
            rank = tf.where(hit, NO_RANK, rank)
            rank = tf.tensor_scatter_nd_update(rank, at[:, None], ranks(symbol, word, at))
            return symbol, word, begin, end, rank

        rank = tf.cond(tf.size(symbol) > 0, first_ranks, lambda: tf.zeros([0], tf.int64))
        symbol, word, begin, end, _ = tf.while_loop(
            lambda *lines: tf.reduce_any(lines[-1] < NO_RANK),
            join,
            (symbol, word, begin, begin, rank),
            (tf.TensorShape([None]),) * 5,
        )
        counts = tf.math.unsorted_segment_sum(tf.ones_like(word), word, tf.size(words))
        return tf.cast(symbol, tf.int32), begin, end, counts

    def _merges(self):
        return self.merges

    def _files(self):
        vocabulary = json.dumps({token: i for i, token in enumerate(self.vocabulary)})
        return {"vocab.json": vocabulary, "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, self.merges)])}


class BytePairTokenizer(_PairTokenizer):
    """GPT-2's: words by its pattern, then their bytes joined pair by pair, a pair that is earlier in `merges` first.

    Sennrich et al. 2016, 3.2; Radford et al. 2019, 2.2. Every string comes back from `detokenize` as it was, with
    U+FFFD for bytes that are not UTF-8. A word of more than 512 characters is cut every 512, so that a megabyte without
    a space takes seconds; only there do ids differ from GPT-2's.

    Args:
        vocabulary: dict token -> id in the visible byte alphabet, with the ids 0 to n - 1, or the path of a vocab.json.
        merges: list of "left right" or (left, right), first joined first, or the path of a merges.txt.
        special_tokens_in_strings: whether "<|endoftext|>" or another special token, written in a string, is that token.
    Raises:
        ValueError: the ids are not 0 to n - 1, or a merge has a token that is not in the vocabulary.
    """

    kind = "bpe"

    def __init__(self, vocabulary, merges, special_tokens_in_strings=False):
        super().__init__(vocabulary, merges, special_tokens_in_strings)
        byte_of = {char: byte for byte, char in enumerate(byte_alphabet())}
        self._raw = {
            token: bytes(byte_of[char] for char in token) if byte_of.keys() >= set(token) else token.encode("utf-8")
            for token in self.vocabulary
        }

    def _bytes(self, token):
        return self._raw[token]

    _word_of = _bytes

    def _display(self, token):
        try:
            return self._raw[token].decode("utf-8")
        except UnicodeDecodeError:
            return token

    def _cut(self, codes):
        # By neighbours, the words of 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
        import tensorflow as tf

        kind = characters.class_table("bpe").lookup(codes)
        after = characters.shift(kind, -1, ENDS)
        # The look-ahead leaves the last white space before a word to that word, which takes it if it is a blank.
        last_space = (kind == SPACE) & (after != SPACE) & (after != ENDS)
        taken = characters.shift(last_space & (codes == ord(" ")), 1, False)
        begins = ((kind != characters.shift(kind, 1, ENDS)) & ~taken) | last_space | (kind == ENDS)
        # 's and its like are only tried where a word may begin.
        next_, second = characters.shift(codes, -1, BOUNDARY), characters.shift(codes, -2, BOUNDARY)
        may = begins & (codes == ord("'"))
        one = may & functools.reduce(tf.logical_or, [next_ == ord(char) for char in "stmd"])
        two = may & functools.reduce(
            tf.logical_or, [(next_ == ord(pair[0])) & (second == ord(pair[1])) for pair in ("re", "ve", "ll")]
        )
        begins = (begins | characters.shift(one, 2, False) | characters.shift(two, 3, False)) & ~characters.shift(
            one | two, 1, False
        )
        return codes != BOUNDARY, begins | _every_512th(begins)

    def _symbols(self, words):
        import tensorflow as tf

        absent = -1 if self.unknown_token_id is None else self.unknown_token_id
        byte_ids = np.array([self._ids.get(char, absent) for char in byte_alphabet()], "int64")
        values = tf.cast(tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8), tf.int32)
        word, _ = characters.expand(tf.strings.length(words))
        leads = tf.cast(tf.bitwise.bitwise_and(values, 0xC0) != 0x80, tf.int32)
        character = tf.cumsum(leads) - 1
        character -= tf.gather(tf.math.segment_min(character, word), word)
        return tf.gather(byte_ids, values), word, character


class OpenAIGPTTokenizer(_PairTokenizer):
    """GPT-1's: BERT's clean-up and words, then their characters joined pair by pair, the last of them with "</w>".

    Sennrich et al. 2016, 3.2; Radford et al. 2018, 4.1. As the `tokenizers` library has it: lower case, no accents, a
    character that no token has is `<unk>`. `detokenize` ends every word with a blank but the last. A word of more than
    512 characters is cut every 512; only there do ids differ.

    Args:
        vocabulary: dict token -> id, with the ids 0 to n - 1, or the path of a vocab.json.
        merges: list of "left right" or (left, right), first joined first, or the path of a merges.txt.
        special_tokens_in_strings: whether "<unk>" or another special token, written in a string, is that token.
    Raises:
        ValueError: the ids are not 0 to n - 1, or a merge has a token that is not in the vocabulary.
    """

    kind = "openai-gpt"
    _edge = "last"

    def __init__(self, vocabulary, merges, special_tokens_in_strings=True):
        super().__init__(vocabulary, merges, special_tokens_in_strings)

    def _encode(self, strings):
        import tensorflow as tf

        def encode(chunks):
            ids, starts, ends, splits = super(OpenAIGPTTokenizer, self)._encode(chunks)
            return splits, tf.stack([ids, starts, ends], 1)

        return self._encode_by_chunks(strings, encode, True)

    def _rewritten(self, line):
        return characters.rewrite(characters.bert_map(True, True), *line)

    def _cut(self, codes):
        kind = characters.class_table("bert").lookup(codes)
        kept = kind != SPACE
        begins = kept & ((kind == ALONE) | (characters.shift(kind, 1, SPACE) != LETTER))
        return kept, begins | (kept & _every_512th(begins))

    @functools.cached_property
    def _character_ids(self):
        """Two tables: the id of each character inside a word, and at its end."""
        absent = -1 if self.unknown_token_id is None else self.unknown_token_id
        inside, last = np.full([2, NUM_CODES], absent, "int32")
        for i, token in enumerate(self.vocabulary):
            if len(token) == 1:
                inside[ord(token)] = i
            elif len(token) == 1 + len(END_OF_WORD) and token.endswith(END_OF_WORD):
                last[ord(token[0])] = i
        return characters.CodePointTable(inside), characters.CodePointTable(last)

    def _symbols(self, words):
        import tensorflow as tf

        codes, *_ = characters.decode(words)
        ends = codes == BOUNDARY
        inside, last = (table.lookup(codes) for table in self._character_ids)
        ids = tf.where(ends, -1, tf.where(characters.shift(ends, -1, False), last, inside))
        word = tf.cumsum(tf.cast(ends, tf.int32), exclusive=True)
        position = tf.range(tf.size(codes))
        first = tf.concat([[0], tf.cast(tf.where(ends)[:, 0], tf.int32) + 1], 0)
        return tf.cast(ids, tf.int64), word, position - tf.gather(first, word)

    def _word_of(self, token):
        return token.removesuffix(END_OF_WORD).encode("utf-8") if token.endswith(END_OF_WORD) else None

    def _bytes(self, token):
        return token.replace(END_OF_WORD, "").encode("utf-8")

    def _display(self, token):
        return token.replace(END_OF_WORD, " ")

    def _joined(self, token):
        return token.replace(END_OF_WORD, "").encode("utf-8"), token.replace(END_OF_WORD, " ").encode("utf-8")
