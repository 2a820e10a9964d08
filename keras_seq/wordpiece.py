"""BERT's tokenizer: WordPiece.

From every character of every different chunk at once, the longest token that begins there is found in a trie; then the
ends of tokens are followed from the start of each word. The number of operations does not grow with the text: starting
them is what a small batch costs (benchmarks/README.md).
"""

import functools
import re
from collections import Counter

import numpy as np

from keras_seq import characters
from keras_seq.characters import LETTER, NUM_CODES, SPACE, SPECIAL, CodePointTable
from keras_seq.tokenizer import Tokenizer, read_lines
from keras_seq.trie import DoubleArrayTrie

MAX_WORD_CHARACTERS = 100  # BERT's: a longer word is unknown
# A character is one number, its symbol in the trie (0: no token has it) times 4 + one of these.
CHUNK_END, APART, INSIDE, SINGLE = range(4)  # what ends a chunk, other white space, what makes words, a word of its own
FIRST_STEPS, FURTHER_STEPS = 3, 4  # of the walk: by all characters, then by those that are still on a path


class WordPieceTokenizer(Tokenizer):
    """BERT's: clean-up, words and single punctuation, then of a word the longest token, and so on with tokens in ##.

    Wu et al. 2016, 4.1; Devlin et al. 2019, 3. A word of more than 100 characters, or one that tokens cannot make up,
    is one [UNK]. `detokenize` joins with spaces, but . , ? ! to the word before.

    Args:
        vocabulary: list of tokens in the order of their ids, or the path of a vocab.txt with one a line.
        lowercase: whether strings are lower-cased.
        strip_accents: whether accents are dropped; None: when lower-casing.
        special_tokens_in_strings: whether "[MASK]" or another special token, written in a string, is that token.
    Raises:
        ValueError: the vocabulary is empty, has a token twice, or a line break in a token.
    """

    kind = "wordpiece"

    def __init__(self, vocabulary, lowercase=True, strip_accents=None, special_tokens_in_strings=True):
        if not isinstance(vocabulary, (list, tuple)):
            vocabulary = read_lines(vocabulary)
        broken = [token for token in vocabulary if "\n" in token or "\r" in token]
        if broken:
            raise ValueError(f"WordPieceTokenizer needs tokens without line breaks, got {broken[0]!r}.")
        self.lowercase, self.strip_accents = lowercase, lowercase if strip_accents is None else strip_accents
        super().__init__(
            vocabulary, special_tokens_in_strings, lowercase=lowercase, strip_accents=bool(self.strip_accents)
        )

    @functools.cached_property
    def _trie(self):
        """The tokens as paths of symbols from two roots, 0 for a word's start, 1 for ##; the symbol of each code."""
        tokens = {}
        for i, token in enumerate(self.vocabulary):
            inner = token.startswith("##") and len(token) > 2
            text = token[2:] if inner else token
            if i not in self._special_ids and text and len(text) <= MAX_WORD_CHARACTERS:
                tokens[int(inner), tuple(map(ord, text))] = i
        for k, i in enumerate(self._special_ids):
            tokens[0, (SPECIAL + k,)] = i
        # Frequent characters first, which packs the trie.
        counts = Counter(code for _, codes in tokens for code in codes)
        symbols = {code: i for i, (code, _) in enumerate(counts.most_common(), start=1)}
        paths = {(root, tuple(symbols[code] for code in codes)): i for (root, codes), i in tokens.items()}
        return DoubleArrayTrie(paths, num_roots=2), symbols

    @functools.cached_property
    def _characters_as_symbols(self):
        """Of every code point a row; the splits and values of the rows, each what BERT's clean-up makes of a character;
        and the values of the ASCII characters that stay one, in the order of their codes."""
        values = np.select([characters.classes("bert") == kind for kind in (SPACE, LETTER)], [APART, INSIDE], SINGLE)
        symbols = np.zeros(NUM_CODES, "int32")
        symbols[list(self._trie[1])] = list(self._trie[1].values())
        values = np.where(values == APART, values, values + 4 * symbols)
        forms, form_of = characters.bert_forms(self.lowercase, self._options["strip_accents"])
        rows = {}
        row_of_form = [rows.setdefault(tuple(values[[ord(c) for c in form]]), len(rows)) for form in forms]
        row_of = np.array(row_of_form, "int32")[form_of]
        row_of[ord(" ")] = rows.setdefault((CHUNK_END,), len(rows))
        for k in range(len(self._special_ids)):
            row_of[SPECIAL + k] = rows.setdefault((values[SPECIAL + k],), len(rows))
        splits = np.cumsum([0, *map(len, rows)], dtype="int32")
        flat = np.array([value for row in rows for value in row], "int32")
        return CodePointTable(row_of), splits, flat, flat[np.minimum(splits[row_of[:128]], len(flat) - 1)]

    @property
    def _plain(self):
        """Regular expression of strings in which every byte is a character that stays one."""
        read = [self.vocabulary[i] for i in self._special_ids] if self.special_tokens_in_strings else []
        kept = (char for char in map(chr, range(0x20, 0x7F)) if not any(token.startswith(char) for token in read))
        return "[" + "".join(map(re.escape, kept)) + "]*"

    def _read(self, line, with_bytes):
        """One string () -> its characters as numbers; and first and next byte of each, if asked for."""
        import tensorflow as tf

        table, splits, flat, ascii_values = self._characters_as_symbols

        def plain():
            values = tf.gather(ascii_values, tf.cast(tf.io.decode_raw(line, tf.uint8), tf.int32))
            places = tf.range(tf.size(values)) if with_bytes else None
            return (values, places, places + 1) if with_bytes else (values,)

        def general():
            codes, starts = characters.decode_line(line)
            codes_bytes = codes, starts, characters.next_starts(starts, line)
            if self.special_tokens_in_strings and self._special_ids:
                codes_bytes = characters.mark_specials([self.vocabulary[i] for i in self._special_ids], *codes_bytes)
            codes, starts, ends = codes_bytes
            values, value_splits = characters.gather_rows(splits, flat, table.lookup(codes))
            if not with_bytes:
                return (values,)
            source = characters.row_of(value_splits, tf.size(values))
            return values, tf.gather(starts, source), tf.gather(ends, source)

        return tf.cond(tf.strings.regex_full_match(line, self._plain), plain, general)

    def _longest_tokens(self, symbols, inside):
        """At every character the slot of the longest path that begins there and stays inside a word."""
        import tensorflow as tf

        trie, _ = self._trie
        # Beyond the first character, another word's symbols count as 0, which leads nowhere.
        later = tf.pad(tf.where(inside, symbols, 0), [[0, trie.depth + FIRST_STEPS + FURTHER_STEPS]])

        def step(base, slot, symbol):
            to = base + symbol
            there = tf.gather(trie.slots, to)  # a pair costs what a single number does
            goes = tf.equal(there[:, 0], symbol)
            return tf.where(goes, there[:, 1], 0), tf.where(goes, to, slot)

        base, slot = step(tf.where(inside, trie.roots[1], trie.roots[0]), 0, symbols)
        for depth in range(1, FIRST_STEPS):
            base, slot = step(base, slot, tf.slice(later, [depth], tf.shape(symbols)))

        def further(depth, base, slot):
            goes_on = base > 0
            at = tf.reshape(tf.where(goes_on), [-1])
            base_, slot_ = tf.gather(base, at), tf.gather(slot, at)
            for k in range(FURTHER_STEPS):
                base_, slot_ = step(base_, slot_, tf.gather(later, tf.cast(at, tf.int32) + depth + k))
            base_, slot_ = (characters.mark(at, tf.shape(symbols), values) for values in (base_, slot_))
            return depth + FURTHER_STEPS, base_, tf.where(goes_on, slot_, slot)

        state = tf.constant(FIRST_STEPS), base, slot
        return tf.while_loop(lambda depth, base, slot: tf.reduce_max(base) > 0, further, state)[-1]

    def _starts_of_tokens(self, lengths):
        """1 at every character where a token of its word begins, else 0: those to which the tokens before lead."""
        import tensorflow as tf

        size = tf.size(lengths)
        shape, place = size[None], tf.range(size)
        after = place + lengths
        # Where no token from before reaches beyond, whatever the tokens are, one begins. `reach` is the running maximum
        # over as many places as the longest token has, a power of two.
        reach = tf.slice(tf.pad(after, [[1, 0]]), [0], shape)
        for k in range((self._trie[0].depth - 1).bit_length()):
            reach = tf.maximum(reach, tf.slice(tf.pad(reach, [[2**k, 0]]), [0], shape))
        starts = tf.cast(reach <= place, tf.int32)
        # The others are found from there, token by token. The last place is the end of a chunk: it may be marked.
        last = size - 1
        step = after - last

        def follow(starts, _, count):
            starts = tf.maximum(starts, characters.mark(last + starts * step, shape, 1))
            return starts, count, tf.reduce_sum(starts)

        state = starts, tf.constant(-1), tf.reduce_sum(starts)
        # A word has at most so many tokens; a longer one is unknown and need not be followed to its end.
        return tf.while_loop(
            lambda starts, before, count: before < count, follow, state, maximum_iterations=MAX_WORD_CHARACTERS
        )[0]

    def _encode_chunks(self, chunks, with_bytes):
        """Strings without blanks (u,) -> splits (u + 1,) and values: ids, or rows of id, first and next byte."""
        import tensorflow as tf

        trie, _ = self._trie
        line = tf.strings.join([tf.strings.reduce_join(chunks, separator=" "), " "])
        values, *places = self._read(line, with_bytes)
        shape = tf.shape(values)
        # By floats: a shift or a remainder of integers takes four times as long.
        symbols = tf.cast(tf.cast(values, tf.float32) * 0.25, tf.int32)
        kind = values - 4 * symbols
        of_words = tf.equal(kind, INSIDE)
        inside = of_words & characters.shift(of_words, 1, False)
        slot = self._longest_tokens(symbols, inside)
        lengths = tf.gather(trie.lengths, slot)
        starts = self._starts_of_tokens(lengths)
        tokens = starts * tf.minimum(lengths, 1)
        needed = starts * tf.clip_by_value(kind - APART, 0, 1)  # 1 where a token of a word must begin
        word_starts = tf.reshape(tf.where(~inside), [-1])
        word_lengths = tf.concat([word_starts[1:], tf.size(values, tf.int64)[None]], 0) - word_starts

        def with_unknown():
            at = tf.reshape(tf.where(needed > tokens), [1, -1])
            of_word = tf.raw_ops.UpperBound(sorted_inputs=word_starts[None], values=at)[0] - 1
            unknown = characters.mark(of_word, tf.shape(word_starts), True) | (word_lengths > MAX_WORD_CHARACTERS)
            first, length = tf.boolean_mask(word_starts, unknown), tf.boolean_mask(word_lengths, unknown)
            one = tf.constant(1, tf.int64)
            everywhere = tf.raw_ops.RaggedRange(starts=first, limits=first + length, deltas=one).rt_dense_values
            known = tokens * (1 - characters.mark(everywhere, shape, 1))
            if self.unknown_token_id is None:
                return known, slot, lengths
            whole = characters.mark(first, shape, tf.cast(length, tf.int32))
            return known + tf.minimum(whole, 1), tf.where(whole > 0, 0, slot), tf.where(whole > 0, whole, lengths)

        any_unknown = tf.reduce_sum(needed) > tf.reduce_sum(tokens)
        any_unknown |= tf.reduce_max(word_lengths) > MAX_WORD_CHARACTERS
        tokens, slot, lengths = tf.cond(any_unknown, with_unknown, lambda: (tokens, slot, lengths))
        at = tf.reshape(tf.where(tokens), [-1])
        token_of = trie.values.copy()
        token_of[0] = -1 if self.unknown_token_id is None else self.unknown_token_id
        ids = tf.gather(token_of, tf.gather(slot, at))
        chunk_ends = tf.reshape(tf.where(tf.equal(kind, CHUNK_END)), [-1])
        splits = tf.pad(tf.gather(tf.cumsum(tokens), chunk_ends), [[1, 0]])
        if not with_bytes:
            return splits, ids
        begin = tf.gather(places[0], at)
        end = tf.gather(places[1], tf.cast(at, tf.int32) + tf.gather(lengths, at) - 1)
        chunk_starts = tf.pad(tf.gather(places[1], chunk_ends), [[1, 0]])
        chunk_start = tf.gather(chunk_starts, characters.row_of(splits, tf.size(ids)))
        return splits, tf.stack([ids, begin - chunk_start, end - chunk_start], 1)

    def _encode(self, strings):
        return self._encode_by_chunks(strings, lambda chunks: self._encode_chunks(chunks, True), True)

    def _encode_ids(self, strings):
        return self._encode_by_chunks(strings, lambda chunks: self._encode_chunks(chunks, False), False)

    def _joined(self, token):
        after = token[2:] if token.startswith("##") else " " + token
        for sign in ".?!,":
            after = after.replace(" " + sign, sign)
        return self._bytes(token), self._bytes(after)

    def _files(self):
        return {"vocab.txt": "\n".join(self.vocabulary)}
