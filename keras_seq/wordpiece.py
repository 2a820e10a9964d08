"""BERT's tokenizer: WordPiece."""

import functools

import numpy as np

from keras_seq import characters
from keras_seq.characters import ALONE, BOUNDARY, LETTER, SPACE
from keras_seq.tokenizer import Tokenizer, read_lines, static_table

MAX_WORD_CHARACTERS = 100  # BERT's: a longer word is unknown


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

    def _cut(self, codes):
        kind = characters.classes("wordpiece").lookup(codes)
        before = characters.shift(kind, 1, SPACE)
        return kind != SPACE, (kind != SPACE) & ((kind == ALONE) | (before != LETTER))

    def _whole_words(self):
        # As pieces go, only words of at most 100 characters are looked up.
        return {token: i for token, i in super()._whole_words().items() if len(token) <= MAX_WORD_CHARACTERS}

    @functools.cached_property
    def _tree(self):
        """The tokens as paths from two roots, 0 for the start of a word, 1 for ##: {(node, code): node}, {node: id}."""
        edges, ends = {}, {}
        for i, token in enumerate(self.vocabulary):
            if i in self._special_ids:
                continue
            inner = token.startswith("##") and len(token) > 2
            node, text = (1, token[2:]) if inner else (0, token)
            for char in text:
                node = edges.setdefault((node, ord(char)), len(edges) + 2)
            ends[node] = i
        return edges, ends

    def _further_tables(self):
        return {
            "tree": static_table({node * 2**21 + code: to for (node, code), to in self._tree[0].items()} or {-9: -1})
        }

    def _pieces(self, words):
        import tensorflow as tf

        last = tf.strings.length(words, unit="UTF8_CHAR") - 1
        too_long = last >= MAX_WORD_CHARACTERS
        codes, _, _, _ = characters.decode(tf.where(too_long, "", words))
        size, position = tf.size(codes), tf.range(tf.size(codes))
        word = tf.cumsum(tf.cast(codes == BOUNDARY, tf.int32), exclusive=True)
        first = tf.math.segment_min(position, word)
        place = position - tf.gather(first, word)
        edges, ends = self._tree
        token_of = np.full(len(edges) + 2, -1, "int32")
        token_of[list(ends)] = list(ends.values())

        # From every place in every word at once, the longest token that begins there, a character longer at each step.
        def lengthen(depth, at, node, token, after):
            key = node * 2**21 + tf.cast(tf.gather(codes, at + depth), tf.int64)
            node = self._tables["tree"].lookup(key)
            alive = node >= 0
            at, node = tf.boolean_mask(at, alive), tf.boolean_mask(node, alive)
            found = tf.gather(token_of, node)
            ended = found >= 0
            where = tf.boolean_mask(at, ended)
            token = tf.tensor_scatter_nd_update(token, where[:, None], tf.boolean_mask(found, ended))
            after = tf.tensor_scatter_nd_update(after, where[:, None], where + depth + 1)
            return depth + 1, at, node, token, after

        root = tf.cast(place > 0, tf.int64)
        loop = tf.constant(0), position, root, tf.fill([size], -1), position
        flat = tf.TensorShape([None])
        _, _, _, token, after = tf.while_loop(
            lambda depth, at, *_: tf.size(at) > 0, lengthen, loop, (tf.TensorShape([]), *[flat] * 4)
        )

        # From the start of each word, from token to token; `stuck` where none goes on.
        def follow(at, visited, stuck):
            at = tf.boolean_mask(at, tf.gather(codes, at) != BOUNDARY)
            goes = tf.gather(token, at) >= 0
            stuck = tf.tensor_scatter_nd_max(stuck, tf.gather(word, at)[:, None], tf.cast(~goes, tf.int32))
            at = tf.boolean_mask(at, goes)
            visited = tf.tensor_scatter_nd_update(visited, at[:, None], tf.fill([tf.size(at)], True))
            return tf.gather(after, at), visited, stuck

        start = first, tf.fill([size], False), tf.cast(too_long, tf.int32)
        _, visited, stuck = tf.while_loop(lambda at, *_: tf.size(at) > 0, follow, start, (flat,) * 3)

        unknown = tf.gather(stuck, word) > 0
        unknown_id = -1 if self.unknown_token_id is None else self.unknown_token_id
        kept = tf.where(unknown, (place == 0) & (unknown_id >= 0), visited)
        token = tf.where(unknown, unknown_id, token)
        end = tf.where(unknown, tf.gather(last, word), place + after - position - 1)
        ids, place, end, word = (tf.boolean_mask(values, kept) for values in (token, place, end, word))
        return ids, place, end, tf.math.unsorted_segment_sum(tf.ones_like(word), word, tf.size(words))

    def _joined(self, token):
        after = token[2:] if token.startswith("##") else " " + token
        for sign in ".?!,":
            after = after.replace(" " + sign, sign)
        return self._bytes(token), self._bytes(after)

    def _files(self):
        return {"vocab.txt": "\n".join(self.vocabulary)}
