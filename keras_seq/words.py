"""Tokenizers that cut strings into words and look each different word up, or else cut it into pieces.

A batch of strings becomes one flat line of characters, each with the bytes it came from, and is cut into words by
comparing neighbours.
"""

import abc
import functools

from keras_seq import characters
from keras_seq.characters import SPECIAL
from keras_seq.tokenizer import Tokenizer


class WordByWordTokenizer(Tokenizer):
    """The way from strings to ids by words; a kind says what a word is and what its pieces are."""

    @abc.abstractmethod
    def _cut(self, codes):
        """codes (n,) -> which are part of a word, and which of them begin one: two bool (n,)."""

    def _pieces(self, words):
        """Words (u,) that are no token -> ids, first and last character, each flat by word, and counts (u,)."""
        import tensorflow as tf

        if self.unknown_token_id is None:
            nothing = tf.zeros([0], tf.int32)
            return nothing, nothing, nothing, tf.zeros_like(words, tf.int32)
        ones = tf.ones_like(words, tf.int32)
        last = tf.strings.length(words, unit="UTF8_CHAR") - 1
        return ones * self.unknown_token_id, tf.zeros_like(ones), last, ones

    def _whole_words(self):
        """Words that are one token -> id."""
        return {token: i for i, token in enumerate(self.vocabulary) if i not in self._special_ids}

    def _further_tables(self):
        return {}

    @functools.cached_property
    def _tables(self):
        import tensorflow as tf

        with tf.init_scope():
            tables = self._further_tables()
            self.__dict__["_tables"] = tables  # _whole_words of byte pairs runs the merges, which look here
            tables["words"] = static_table(self._whole_words())
        return tables

    def _characters(self, strings):
        *line, row_starts = characters.decode(strings)
        if self.special_tokens_in_strings and self._special_ids:
            line = characters.mark_specials([self.vocabulary[i] for i in self._special_ids], *line)
        return *self._rewritten(line), row_starts

    def _rewritten(self, line):
        """codes, starts, ends (n,) of the characters as they are looked up."""
        if self._options.get("lowercase"):
            return characters.rewrite(characters.lowercase_map(), *line)
        return line

    def _encode(self, strings):
        """strings (b,) -> ids, starts, ends, each (n,) int32, and the splits (b + 1,) int64 of their rows."""
        import tensorflow as tf

        codes, starts, ends, row_starts = self._characters(strings)
        kept, begins = self._cut(codes)
        at = tf.where(kept)[:, 0]
        codes = tf.gather(codes, at)
        first = tf.cast(tf.where(tf.gather(begins, at))[:, 0], tf.int32)
        words = characters.encode(codes, tf.concat([first, tf.size(codes)[None]], 0))
        special = tf.gather(codes, first) - SPECIAL
        row_words = tf.searchsorted(tf.gather(starts, tf.gather(at, first)), row_starts)

        unique, which = tf.unique(words)
        whole = tf.cast(self._tables["words"].lookup(unique), tf.int32)
        missing = tf.where(whole < 0)
        ids, begin, end, counts = self._pieces(tf.gather_nd(unique, missing))
        # In one line: whole words at their own place, then the pieces of the other words, then the special tokens.
        specials = tf.constant(self._special_ids, tf.int32)
        num_whole, num_pieces = tf.size(whole), tf.size(ids)
        ids = tf.concat([whole, ids, specials], 0)
        begin = tf.concat([tf.zeros_like(whole), begin, tf.zeros_like(specials)], 0)
        whole_end = tf.strings.length(unique, unit="UTF8_CHAR") - 1
        end = tf.concat([whole_end, end, tf.zeros_like(specials)], 0)
        place = num_whole + tf.cumsum(counts, exclusive=True)
        place = tf.gather(tf.tensor_scatter_nd_update(tf.range(num_whole), missing, place), which)
        count = tf.gather(tf.tensor_scatter_nd_update(tf.ones_like(whole), missing, counts), which)
        place = tf.where(special >= 0, num_whole + num_pieces + special, place)
        count = tf.where(special >= 0, 1, count)

        word, offset = characters.expand(count)
        piece = tf.gather(place, word) + offset
        splits = tf.gather(tf.concat([[0], tf.cumsum(count)], 0), row_words)
        row, _ = characters.expand(splits[1:] - splits[:-1])
        row_start, word_first = tf.gather(row_starts, row), tf.gather(first, word)
        start = tf.gather(starts, tf.gather(at, word_first + tf.gather(begin, piece))) - row_start
        stop = tf.gather(ends, tf.gather(at, word_first + tf.gather(end, piece))) - row_start
        return tf.gather(ids, piece), start, stop, tf.cast(splits, tf.int64)


def static_table(entries, default=-1):
    import tensorflow as tf

    entries = entries or {"": default}  # of none at all there is no table; no word is empty
    text = isinstance(next(iter(entries)), (str, bytes))
    keys = tf.constant(list(entries), tf.string if text else tf.int64)
    values = tf.constant(list(entries.values()), tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), default)
