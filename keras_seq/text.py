"""Strings to ids and back inside a TensorFlow graph, from core operations and immutable tables only.

A batch of strings becomes one flat line of code points (`_decode`), is rewritten character by character (`_rewrite`),
cut into words by comparing neighbours, and each *distinct* word is looked up or else split into pieces. No step loops
over strings: a thousand short lines cost what one long line does. Every character keeps the bytes it came from.

What a character is (letter, accent, punctuation) is Python's `unicodedata`. Another program may carry another version
of Unicode, and then differs on characters that are newer than the older of the two.
"""

import abc
import functools
import hashlib
import json
import os
import pathlib
import shutil
import unicodedata
from collections import Counter

import numpy as np

KINDS = ("wordpiece", "bpe", "char", "word")
SPECIAL_TOKENS = {
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "start": ("[CLS]", "<s>", "<|endoftext|>"),
    "end": ("[SEP]", "</s>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
}
# Past the last code point: special token k is SPECIAL + k, and every string ends with BOUNDARY, so that looking at a
# neighbour never looks into another string.
SPECIAL, BOUNDARY, NUM_CODES = 0x110000, 0x11007F, 0x110080
ENDS, SPACE, LETTER, NUMBER, OTHER, ALONE = range(6)
MAX_WORD_CHARACTERS = 100  # BERT's: a longer word is unknown
MAX_PAIRED_CHARACTERS = 512  # a power of two; a longer byte-pair word is cut, which bounds the rounds of merging
NO_RANK = np.int64(1) << 40


# --- characters


class _CodePointTable:
    """An int32 for every code point. Of the 1.1 million, most pages of 128 are equal and are kept once."""

    def __init__(self, values):
        pages, page_of = np.unique(values.reshape(-1, 128), axis=0, return_inverse=True)
        self.values, self.page_of = pages.reshape(-1).astype("int32"), page_of.reshape(-1).astype("int32") * 128

    def lookup(self, codes):
        import tensorflow as tf

        page = tf.gather(self.page_of, tf.bitwise.right_shift(codes, 7))
        return tf.gather(self.values, page + tf.bitwise.bitwise_and(codes, 127))


def _for_each_character(function):
    """function(character) for every code point, int32; one answer for planes 4 to 13, unassigned, and for 15 and 16."""
    values = np.full(NUM_CODES, function("\U00040000"), "int32")
    values[0xF0000:SPECIAL] = function("\U000f0000")
    for codes in (range(0x40000), range(0xE0000, 0xE1000), range(0xFFFFE, 0x100000), range(0x10FFFE, SPECIAL)):
        values[codes.start : codes.stop] = [function(chr(code)) for code in codes]
    return values


class _CharacterMap:
    """Character -> none, one or several characters.

    `steps` holds new code - code where one becomes one, else NUM_CODES + a row of (`flat`, `starts`, `lengths`).
    """

    def __init__(self, function):
        rows = {"\0": 0}  # row 0 stands for "one for one"

        def step(char):
            new = function(char)
            return ord(new) - ord(char) if len(new) == 1 else NUM_CODES + rows.setdefault(new, len(rows))

        steps = _for_each_character(step)
        steps[SPECIAL:] = 0
        self.steps = _CodePointTable(steps)
        self.lengths = np.array([len(row) for row in rows], "int32")
        self.starts = np.cumsum(self.lengths, dtype="int32") - self.lengths
        self.flat = np.array([ord(char) for row in rows for char in row], "int32")


def _lower(text):
    """Each character by itself, as the graph does; `str.lower` alone would look at the neighbours of a sigma."""
    return "".join(char.lower() for char in text)


def _bert_form(char, lowercase, strip_accents):
    """BERT's clean-up of a character, which needs no neighbour once accents are dropped."""
    category = unicodedata.category(char)
    if char in "\t\n\r" or category in ("Zs", "Zl", "Zp"):
        return " "
    if category in ("Cc", "Cf", "Co", "Cs") or char == "\ufffd":
        return ""
    if strip_accents:
        char = "".join(part for part in unicodedata.normalize("NFD", char) if unicodedata.category(part) != "Mn")
    return _lower(char) if lowercase else char


IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


def _bert_class(char):
    ascii_sign = char.isascii() and char.isprintable() and not char.isalnum()
    ideograph = any(first <= ord(char) <= last for first, last in IDEOGRAPHS)
    if char.isspace():
        return SPACE
    return ALONE if ascii_sign or ideograph or unicodedata.category(char)[0] == "P" else LETTER


def _pair_class(char):
    # The separators U+001C to U+001F are spaces to Python, not to Unicode.
    if char.isspace() and char not in "\x1c\x1d\x1e\x1f":
        return SPACE
    return {"L": LETTER, "N": NUMBER}.get(unicodedata.category(char)[0], OTHER)


@functools.cache
def _character_map(kind, lowercase, strip_accents=False):
    if kind == "wordpiece":
        return _CharacterMap(lambda char: _bert_form(char, lowercase, strip_accents))
    return _CharacterMap(_lower) if lowercase else None


@functools.cache
def _classes(kind):
    function, boundary, special = {
        "wordpiece": (_bert_class, SPACE, ALONE),
        "bpe": (_pair_class, ENDS, ENDS),
        "word": (lambda char: SPACE if char.isspace() else LETTER, SPACE, ALONE),
    }[kind]
    values = _for_each_character(function)
    values[SPECIAL:], values[BOUNDARY] = special, boundary
    return _CodePointTable(values)


# --- in the graph: flat lines of characters


def _shift(values, by, fill):
    """values moved `by` places to the right (left if negative), `fill` in the places that come free."""
    import tensorflow as tf

    size = tf.size(values)
    if by > 0:
        return tf.pad(values, [[by, 0]], constant_values=fill)[:size]
    return tf.pad(values, [[0, -by]], constant_values=fill)[-by : size - by]


def _expand(lengths):
    """Of rows with these lengths, laid end to end: for every element its row and its place in it, int32."""
    import tensorflow as tf

    # A mark at each row's start and a running sum: linear, where tf.repeat makes a (rows, longest row) mask.
    total = tf.reduce_sum(lengths)
    starts = tf.cumsum(lengths, exclusive=True)
    marks = tf.scatter_nd(starts[:, None], tf.ones_like(starts), [total + 1])
    row = tf.cumsum(marks[:total]) - 1
    return row, tf.range(total) - tf.gather(starts, row)


def _decode(strings):
    """strings (b,) -> codes, starts, ends, each (n,) int32, and row_starts (b + 1,).

    Every string's characters are followed by BOUNDARY. Starts and ends are bytes of all strings laid end to end, string
    i from row_starts[i] on. Invalid UTF-8 becomes U+FFFD where Python's bytes.decode("utf-8", "replace") puts it.
    """
    import tensorflow as tf

    joined = tf.strings.reduce_join(tf.strings.join([strings, tf.constant(b"\0")]))
    values = tf.cast(tf.io.decode_raw(joined, tf.uint8), tf.int32)
    row_starts = tf.concat([[0], tf.cumsum(tf.strings.length(strings) + 1)], 0)
    last = row_starts[1:, None] - 1
    codes = tf.tensor_scatter_nd_update(values, last, tf.fill([tf.size(strings)], BOUNDARY))

    def one_byte_each():
        return codes, tf.range(tf.size(codes)), tf.range(1, tf.size(codes) + 1)

    return *tf.cond(tf.reduce_any(values > 127), lambda: _decode_bytes(codes, values), one_byte_each), row_starts


@functools.cache
def _lead_bytes():
    """For each byte: how long its sequence is (0: cannot lead), and the lowest and highest second byte (RFC 3629)."""
    length, low, high = np.zeros(256, "int32"), np.full(256, 0x80, "int32"), np.full(256, 0xBF, "int32")
    length[:0x80], length[0xC2:0xE0], length[0xE0:0xF0], length[0xF0:0xF5] = 1, 2, 3, 4
    low[0xE0], low[0xF0], high[0xED], high[0xF4] = 0xA0, 0x90, 0x9F, 0x8F
    return length, low, high


def _decode_bytes(codes, values):
    import tensorflow as tf

    length, low, high = (tf.gather(table, values) for table in _lead_bytes())
    # The boundary after each string is no continuation byte, so a sequence never runs into the next string.
    second, third, fourth = (_shift(values, -by, 0) for by in (1, 2, 3))
    two = (length >= 2) & (second >= low) & (second <= high)
    three = two & (length >= 3) & (tf.bitwise.bitwise_and(third, 0xC0) == 0x80)
    four = three & (length >= 4) & (tf.bitwise.bitwise_and(fourth, 0xC0) == 0x80)
    valid = 1 + tf.cast(two, tf.int32) + tf.cast(three, tf.int32) + tf.cast(four, tf.int32)
    part = [tf.bitwise.bitwise_and(byte, 0x3F) for byte in (second, third, fourth)]
    codes = tf.where(length == 2, (values - 0xC0) * 64 + part[0], codes)
    codes = tf.where(length == 3, ((values - 0xE0) * 64 + part[0]) * 64 + part[1], codes)
    codes = tf.where(length == 4, (((values - 0xF0) * 64 + part[0]) * 64 + part[1]) * 64 + part[2], codes)
    codes = tf.where(valid == length, codes, 0xFFFD)
    inside = _shift(two, 1, False) | _shift(three, 2, False) | _shift(four, 3, False)
    first = tf.cast(tf.where(~inside)[:, 0], tf.int32)
    return tf.gather(codes, first), first, first + tf.gather(valid, first)


def _encode_words(codes, splits):
    import tensorflow as tf

    return tf.strings.unicode_encode(tf.RaggedTensor.from_row_splits(codes, splits, validate=False), "UTF-8")


def _replace_invalid(strings):
    import tensorflow as tf

    codes, _, _, _ = _decode(strings)
    ends = tf.cast(tf.where(codes == BOUNDARY)[:, 0], tf.int32)
    splits = tf.concat([[0], ends - tf.range(tf.size(ends))], 0)  # without the boundaries before it
    return _encode_words(tf.boolean_mask(codes, codes != BOUNDARY), splits)


def _rewrite(character_map, codes, starts, ends):
    """Each character as character_map has it, with the bytes of the character it came from."""
    import tensorflow as tf

    step = character_map.steps.lookup(codes)

    def several():
        row = tf.maximum(step - NUM_CODES, 0)
        source, place = _expand(tf.gather(character_map.lengths, row))
        row, moved, starts_, ends_ = (tf.gather(values, source) for values in (row, codes + step, starts, ends))
        new = tf.gather(character_map.flat, tf.gather(character_map.starts, row) + place)
        return tf.where(row == 0, moved, new), starts_, ends_

    return tf.cond(tf.reduce_any(step >= NUM_CODES), several, lambda: (codes + step, starts, ends))


def _mark_specials(patterns, codes, starts, ends):
    """Each occurrence of patterns[k] becomes the one code SPECIAL + k. Known special tokens cannot overlap."""
    import tensorflow as tf

    opens = functools.reduce(tf.logical_or, [codes == first for first in {ord(pattern[0]) for pattern in patterns}])

    def marked():
        lengths = [len(pattern) for pattern in patterns]
        at = tf.cast(tf.where(opens)[:, 0], tf.int32)
        window = tf.gather(tf.pad(codes, [[0, max(lengths)]]), at[:, None] + tf.range(max(lengths)))
        found = tf.fill(tf.shape(at), -1)
        for k, pattern in enumerate(patterns):
            equal = window[:, : len(pattern)] == tf.constant([ord(char) for char in pattern])
            found = tf.where(tf.reduce_all(equal, axis=1), k, found)
        at, k = tf.boolean_mask(at, found >= 0), tf.boolean_mask(found, found >= 0)
        after = at + tf.gather(lengths, k)
        new_codes = tf.tensor_scatter_nd_update(codes, at[:, None], SPECIAL + k)
        new_ends = tf.tensor_scatter_nd_update(ends, at[:, None], tf.gather(ends, after - 1))
        change = tf.concat([tf.ones_like(at), -tf.ones_like(at)], 0)
        inside = tf.cumsum(tf.scatter_nd(tf.concat([at + 1, after], 0)[:, None], change, [tf.size(codes) + 1])[:-1])
        return tuple(tf.boolean_mask(values, inside == 0) for values in (new_codes, starts, new_ends))

    return tf.cond(tf.reduce_any(opens), marked, lambda: (codes, starts, ends))


# --- tokenizers


def _read_lines(path):
    # Not splitlines(): U+2028 and its like are tokens of some vocabularies.
    text = pathlib.Path(path).read_bytes().decode("utf-8").removesuffix("\n")
    return [line.removesuffix("\r") for line in text.split("\n")]


class Tokenizer(abc.ABC):
    """What the four tokenizers share: strings (b,) <-> ragged int32 ids, eagerly and inside a `tf.function`.

    Content never raises: invalid UTF-8 is read as U+FFFD, ids outside the vocabulary are dropped and never made.

    Attributes:
        vocabulary: list of tokens, in the order of their ids.
        pad_token_id, start_token_id, end_token_id, unknown_token_id, mask_token_id: the ids of the first of
            SPECIAL_TOKENS that the vocabulary has; None where it has none.
    """

    kind: str

    def __init__(self, vocabulary, special_tokens_in_strings=False, **options):
        self.vocabulary = list(vocabulary)
        self._ids = {token: i for i, token in enumerate(self.vocabulary)}
        if not self.vocabulary or len(self._ids) < len(self.vocabulary):
            twice = [token for token, count in Counter(self.vocabulary).items() if count > 1]
            raise ValueError(
                f"{type(self).__name__} needs a vocabulary of different tokens, "
                f"got {len(self.vocabulary)} tokens, repeated: {twice[:5]!r}."
            )
        self.special_tokens_in_strings = special_tokens_in_strings
        self._options = options
        for role, names in SPECIAL_TOKENS.items():
            setattr(self, f"{role}_token_id", next((self._ids[name] for name in names if name in self._ids), None))
        ids = (getattr(self, f"{role}_token_id") for role in SPECIAL_TOKENS)
        self._special_ids = sorted({i for i in ids if i is not None})
        self._functions = {}

    # What a kind decides.

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

    def _bytes(self, token):
        return token.encode("utf-8")

    def _display(self, token):
        return token

    def _joined(self, token):
        """How the token is shown at the start of a string, and after another token."""
        return self._bytes(token), self._bytes(token)

    # Tables and functions, made once, outside any graph.

    @functools.cached_property
    def _tables(self):
        import tensorflow as tf

        with tf.init_scope():
            tables = self._further_tables()
            self.__dict__["_tables"] = tables  # _whole_words of byte pairs runs the merges, which look here
            tables["words"] = _static_table(self._whole_words())
        return tables

    @property
    def resources(self):
        """The immutable lookup tables, for an exporter to attach to its `tf.Module`."""
        return list(self._tables.values())

    def _function(self, name, *signature):
        import tensorflow as tf

        self._tables  # noqa: B018 - made before a graph is traced that would capture them
        if name not in self._functions:

            def on_cpu(*inputs):  # strings live there; without this the integers between them would go to and fro
                with tf.device("/CPU:0"):
                    return getattr(self, name)(*inputs)

            specs = [tf.TensorSpec([None] * rank, dtype) for rank, dtype in signature]
            # Concrete at once: TensorFlow counts the traces of all tokenizers together and would warn of the fifth.
            traced = tf.function(on_cpu, input_signature=specs, autograph=False)
            self._functions[name] = traced.get_concrete_function()
        return self._functions[name]

    # Strings to ids.

    def _characters(self, strings):
        *characters, row_starts = _decode(strings)
        if self.special_tokens_in_strings and self._special_ids:
            characters = _mark_specials([self.vocabulary[i] for i in self._special_ids], *characters)
        character_map = _character_map(self.kind, self._options.get("lowercase"), self._options.get("strip_accents"))
        return *(characters if character_map is None else _rewrite(character_map, *characters)), row_starts

    def _encode(self, strings):
        """strings (b,) -> ids, starts, ends, each (n,) int32, and the splits (b + 1,) int64 of their rows."""
        import tensorflow as tf

        codes, starts, ends, row_starts = self._characters(strings)
        kept, begins = self._cut(codes)
        at = tf.where(kept)[:, 0]
        codes = tf.gather(codes, at)
        first = tf.cast(tf.where(tf.gather(begins, at))[:, 0], tf.int32)
        words = _encode_words(codes, tf.concat([first, tf.size(codes)[None]], 0))
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

        word, offset = _expand(count)
        piece = tf.gather(place, word) + offset
        splits = tf.gather(tf.concat([[0], tf.cumsum(count)], 0), row_words)
        row, _ = _expand(splits[1:] - splits[:-1])
        row_start, word_first = tf.gather(row_starts, row), tf.gather(first, word)
        start = tf.gather(starts, tf.gather(at, word_first + tf.gather(begin, piece))) - row_start
        stop = tf.gather(ends, tf.gather(at, word_first + tf.gather(end, piece))) - row_start
        return tf.gather(ids, piece), start, stop, tf.cast(splits, tf.int64)

    def _encode_ids(self, strings):
        ids, _, _, splits = self._encode(strings)
        return ids, splits

    def _tokenize(self, strings, name):
        import tensorflow as tf

        strings = tf.convert_to_tensor(strings, tf.string)
        if strings.shape.rank not in (None, 0, 1):
            raise ValueError(f"tokenize needs one string or a batch (b,) of them, got shape={tuple(strings.shape)}.")
        batch = strings[None] if strings.shape.rank == 0 else strings
        *values, splits = self._function(name, (1, tf.string))(batch)
        if strings.shape.rank == 0:
            return values
        return [tf.RaggedTensor.from_row_splits(value, splits, validate=False) for value in values]

    def tokenize(self, strings):
        """Ids of strings, without start or end token.

        Args:
            strings: string (b,): a tensor, array or list; or one string.
        Returns:
            int32 `tf.RaggedTensor` (b, tokens); for one string an int32 tensor (tokens,).
        Raises:
            ValueError: strings has more than one axis.
        """
        return self._tokenize(strings, "_encode_ids")[0]

    def tokenize_with_offsets(self, strings):
        """As `tokenize`, with the bytes of the original string each token came from: string[start:end].

        Returns:
            ids, starts, ends: three of what `tokenize` returns. A token that is part of a character covers all of it.
        Raises:
            ValueError: strings has more than one axis.
        """
        return tuple(self._tokenize(strings, "_encode"))

    # Ids to strings.

    def _join(self, ids):
        import tensorflow as tf

        dropped = {self.pad_token_id, self.start_token_id, self.end_token_id}
        shown = [(b"", b"") if i in dropped else self._joined(token) for i, token in enumerate(self.vocabulary)]
        kept = (ids >= 0) & (ids < self.vocabulary_size)
        ids = tf.where(kept, ids, 0)
        kept &= tf.gather(np.array([i not in dropped for i in range(self.vocabulary_size)]), ids)
        first = kept & (tf.cumsum(tf.cast(kept, tf.int32), axis=-1) == 1)
        texts = tf.where(first, *(tf.gather(tf.constant(list(forms)), ids) for forms in zip(*shown)))
        return _replace_invalid(tf.strings.reduce_join(tf.where(kept, texts, ""), axis=-1))

    def _int32(self, ids):
        import tensorflow as tf

        # Clipped first: a 64-bit id would wrap around into the vocabulary.
        return tf.cast(tf.clip_by_value(tf.convert_to_tensor(ids), -1, self.vocabulary_size), tf.int32)

    def detokenize(self, ids):
        """Strings of ids. Padding, start, end and ids outside the vocabulary are dropped; unknown and mask are shown.

        Args:
            ids: int32 or int64 (b, tokens), ragged or padded; or (tokens,); or with further axes in front.
        Returns:
            string tensor of the axes in front: (b,), or () for (tokens,).
        Raises:
            ValueError: ids has no axis.
        """
        import tensorflow as tf

        if isinstance(ids, (list, tuple)):
            ids = tf.ragged.constant(ids, dtype=tf.int32)
        if isinstance(ids, tf.RaggedTensor):
            ids = ids.to_tensor(default_value=-1)
        ids = self._int32(ids)
        if ids.shape.rank == 0:
            raise ValueError(f"detokenize needs ids with at least one axis, got shape={tuple(ids.shape)}.")
        shape = tf.shape(ids)
        # Not -1 for the rows: of no tokens at all they could not be counted.
        flat = tf.reshape(ids, [tf.reduce_prod(shape[:-1]), shape[-1]])
        strings = tf.reshape(self._function("_join", (2, tf.int32))(flat), shape[:-1])
        strings.set_shape(ids.shape[:-1] if ids.shape.rank else None)
        return strings

    def ids_to_tokens(self, ids):
        """The token of each id as people read it: string, of the shape of ids; "" for ids outside the vocabulary."""
        import tensorflow as tf

        if isinstance(ids, tf.RaggedTensor):
            return ids.with_flat_values(self.ids_to_tokens(ids.flat_values))
        ids = self._int32(ids)
        tokens = self._function("_show", (1, tf.int32))(tf.reshape(ids, [-1]))
        return tf.reshape(tokens, tf.shape(ids))

    def _show(self, ids):
        import tensorflow as tf

        valid = (ids >= 0) & (ids < self.vocabulary_size)
        tokens = tf.constant([self._display(token) for token in self.vocabulary])
        return tf.where(valid, tf.gather(tokens, tf.where(valid, ids, 0)), "")

    # The vocabulary.

    @property
    def vocabulary_size(self):
        """Number of tokens; ids are 0 to vocabulary_size - 1."""
        return len(self.vocabulary)

    @functools.cached_property
    def max_token_bytes(self):
        """Bytes of the longest token, as it is in a string."""
        return max(len(self._bytes(token)) for token in self.vocabulary)

    def token_to_id(self, token):
        """Id of a token: int, or None for one that is not in the vocabulary."""
        return self._ids.get(token)

    def id_to_token(self, i):
        """Token of an id: str. Raises IndexError for an id outside the vocabulary."""
        if not 0 <= i < self.vocabulary_size:
            raise IndexError(f"id_to_token needs 0 <= id < {self.vocabulary_size}, got id={i!r}.")
        return self.vocabulary[i]

    # Files.

    def _configuration(self):
        return {"kind": self.kind, "special_tokens_in_strings": self.special_tokens_in_strings, **self._options}

    def _merges(self):
        return []

    @functools.cached_property
    def fingerprint(self):
        """SHA-256, in hex, of everything that decides the ids."""
        content = [self._configuration(), self.vocabulary, self._merges()]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _files(self):
        return {"vocab.json": json.dumps(self.vocabulary, indent=0)}

    def save(self, folder):
        """Writes the vocabulary and tokenizer_config.json, beside `folder` first, then renamed into its place."""
        folder = pathlib.Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside, old = (folder.with_name(f".{folder.name}.{word}-{os.getpid()}") for word in ("new", "old"))
        configuration = {**self._configuration(), "fingerprint": self.fingerprint}
        beside.mkdir()
        for name, text in {**self._files(), "tokenizer_config.json": json.dumps(configuration, indent=2)}.items():
            (beside / name).write_bytes((text + "\n").encode("utf-8"))
        if folder.exists():
            folder.rename(old)  # a folder that is not empty cannot be renamed over
        beside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def _static_table(entries, default=-1):
    import tensorflow as tf

    text = not entries or isinstance(next(iter(entries)), (str, bytes))
    keys = tf.constant(list(entries), tf.string if text else tf.int64)
    values = tf.constant(list(entries.values()), tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), default)


class CharacterTokenizer(Tokenizer):
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
        kept = _classes("word").lookup(codes) != SPACE
        return kept, kept & ~_shift(kept, 1, False)

    def _joined(self, token):
        return self._bytes(token), self._bytes(" " + token)


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
            vocabulary = _read_lines(vocabulary)
        broken = [token for token in vocabulary if "\n" in token or "\r" in token]
        if broken:
            raise ValueError(f"WordPieceTokenizer needs tokens without line breaks, got {broken[0]!r}.")
        self.lowercase, self.strip_accents = lowercase, lowercase if strip_accents is None else strip_accents
        super().__init__(
            vocabulary, special_tokens_in_strings, lowercase=lowercase, strip_accents=bool(self.strip_accents)
        )

    def _cut(self, codes):
        kind = _classes("wordpiece").lookup(codes)
        before = _shift(kind, 1, SPACE)
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
            "tree": _static_table({node * 2**21 + code: to for (node, code), to in self._tree[0].items()} or {-9: -1})
        }

    def _pieces(self, words):
        import tensorflow as tf

        last = tf.strings.length(words, unit="UTF8_CHAR") - 1
        too_long = last >= MAX_WORD_CHARACTERS
        codes, _, _, _ = _decode(tf.where(too_long, "", words))
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


@functools.cache
def _byte_alphabet():
    """GPT-2's visible character for each byte: itself where it has one, else the next from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 0x100 + hidden.index(byte)) for byte in range(256)]


class BytePairTokenizer(Tokenizer):
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
        if not isinstance(vocabulary, dict):
            vocabulary = json.loads(pathlib.Path(vocabulary).read_text(encoding="utf-8"))
        if not isinstance(merges, (list, tuple)):
            merges = [line for line in _read_lines(merges) if line and not line.startswith("#version")]
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise ValueError(
                f"BytePairTokenizer needs the ids 0 to {len(vocabulary) - 1}, each once, "
                f"got {len(vocabulary)} ids from {min(vocabulary.values())} to {max(vocabulary.values())}."
            )
        super().__init__(sorted(vocabulary, key=vocabulary.get), special_tokens_in_strings)
        self.merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
        for merge in self.merges:
            if len(merge) != 2 or not {*merge, "".join(merge)} <= self._ids.keys():
                raise ValueError(f"BytePairTokenizer needs merges of two tokens into a third, got {merge!r}.")
        byte_of = {char: byte for byte, char in enumerate(_byte_alphabet())}
        self._raw = {
            token: bytes(byte_of[char] for char in token) if byte_of.keys() >= set(token) else token.encode("utf-8")
            for token in self.vocabulary
        }

    def _bytes(self, token):
        return self._raw[token]

    def _display(self, token):
        try:
            return self._raw[token].decode("utf-8")
        except UnicodeDecodeError:
            return token

    def _cut(self, codes):
        # By neighbours, the words of 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
        import tensorflow as tf

        kind = _classes("bpe").lookup(codes)
        after = _shift(kind, -1, ENDS)
        # The look-ahead leaves the last white space before a word to that word, which takes it if it is a blank.
        last_space = (kind == SPACE) & (after != SPACE) & (after != ENDS)
        taken = _shift(last_space & (codes == ord(" ")), 1, False)
        begins = ((kind != _shift(kind, 1, ENDS)) & ~taken) | last_space | (kind == ENDS)
        # 's and its like are only tried where a word may begin.
        next_, second = _shift(codes, -1, BOUNDARY), _shift(codes, -2, BOUNDARY)
        may = begins & (codes == ord("'"))
        one = may & functools.reduce(tf.logical_or, [next_ == ord(char) for char in "stmd"])
        two = may & functools.reduce(
            tf.logical_or, [(next_ == ord(pair[0])) & (second == ord(pair[1])) for pair in ("re", "ve", "ll")]
        )
        begins = (begins | _shift(one, 2, False) | _shift(two, 3, False)) & ~_shift(one | two, 1, False)
        position = tf.range(tf.size(codes))
        word = tf.cumsum(tf.cast(begins, tf.int32)) - 1
        inside = position - tf.gather(tf.boolean_mask(position, begins), word)
        return codes != BOUNDARY, begins | (tf.bitwise.bitwise_and(inside, MAX_PAIRED_CHARACTERS - 1) == 0)

    def _further_tables(self):
        size = self.vocabulary_size
        ranks = {self._ids[a] * size + self._ids[b]: rank for rank, (a, b) in enumerate(self.merges)}
        return {"merges": _static_table(ranks or {-9: -1}, NO_RANK)}

    def _whole_words(self):
        """Not every token is what its own bytes are joined to, so all are tried once."""
        import tensorflow as tf

        tokens = [i for i in range(self.vocabulary_size) if i not in self._special_ids]
        words = tf.constant([self._bytes(self.vocabulary[i]) for i in tokens], tf.string)
        ids, _, _, counts = tf.function(self._pieces, autograph=False)(words)
        splits = np.cumsum(counts.numpy()) - counts.numpy()
        alone = np.flatnonzero(counts.numpy() == 1)
        ids = ids.numpy()[splits[alone]]
        return {self._bytes(self.vocabulary[i]): int(i) for i, j in zip(ids, alone) if i == tokens[j]}

    def _pieces(self, words):
        import tensorflow as tf

        size = self.vocabulary_size
        merged = np.array([self._ids[a + b] for a, b in self.merges] or [0], "int64")
        absent = -1 if self.unknown_token_id is None else self.unknown_token_id
        byte_ids = np.array([self._ids.get(char, absent) for char in _byte_alphabet()], "int64")
        values = tf.cast(tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8), tf.int32)
        word, _ = _expand(tf.strings.length(words))
        leads = tf.cast(tf.bitwise.bitwise_and(values, 0xC0) != 0x80, tf.int32)
        character = tf.cumsum(leads) - 1
        character -= tf.gather(tf.math.segment_min(character, word), word)
        symbol = tf.gather(byte_ids, values)
        symbol, word, begin = (tf.boolean_mask(line, symbol >= 0) for line in (symbol, word, character))

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
            run_begins = hit & ~_shift(hit, 1, False)
            run = tf.cumsum(tf.cast(run_begins, tf.int32)) - 1
            runs = tf.concat([tf.boolean_mask(position, run_begins), [0]], 0)
            place = position - tf.gather(runs, tf.maximum(run, 0))
            hit &= tf.bitwise.bitwise_and(place, 1) == 0
            kept = ~_shift(hit, 1, False)
            symbol = tf.where(hit, tf.gather(merged, tf.where(hit, rank, 0)), symbol)
            end = tf.where(hit, _shift(end, -1, 0), end)
            symbol, word, begin, end, rank, hit = (
                tf.boolean_mask(line, kept) for line in (symbol, word, begin, end, rank, hit)
            )
            # Only pairs with a new half need to be looked up again; the last symbol of all has no pair.
            at = tf.cast(tf.where((hit | _shift(hit, -1, False))[:-1])[:, 0], tf.int32)
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


def load_tokenizer(folder):
    """The tokenizer that `save` wrote into a folder.

    Raises:
        ValueError: the files are not those that were saved together, or of an unknown kind.
    """
    folder = pathlib.Path(folder)
    options = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    kind, fingerprint = options.pop("kind"), options.pop("fingerprint")
    if kind not in KINDS:
        raise ValueError(f"load_tokenizer needs kind in {KINDS}, got kind={kind!r} in {folder}.")
    if kind == "wordpiece":
        tokenizer = WordPieceTokenizer(folder / "vocab.txt", **options)
    elif kind == "bpe":
        tokenizer = BytePairTokenizer(folder / "vocab.json", folder / "merges.txt", **options)
    else:
        make = CharacterTokenizer if kind == "char" else WordTokenizer
        tokenizer = make(folder / "vocab.json", lowercase=options["lowercase"])
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(f"load_tokenizer needs the files with fingerprint {fingerprint}, got {tokenizer.fingerprint}.")
    return tokenizer


# --- training


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
            min_frequency < 1, or lowercase with "bpe", which keeps strings as they are.
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
    if kind == "wordpiece":
        return _train_wordpiece(lines, vocabulary_size, min_frequency, lowercase)
    if kind == "bpe":
        return _train_bpe(lines, vocabulary_size, min_frequency)
    counts = Counter()
    for line in lines:
        line = _lower(line) if lowercase else line
        counts.update(line if kind == "char" else line.split())
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    tokens = [token for token in counts if counts[token] >= min_frequency and token not in special]
    tokens.sort(key=lambda token: (-counts[token], token))
    make = CharacterTokenizer if kind == "char" else WordTokenizer
    return make(special + tokens[: vocabulary_size - len(special)], lowercase)


def _train_wordpiece(lines, vocabulary_size, min_frequency, lowercase):
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
    characters = sorted(counts, key=lambda char: (-counts[char], char))[: (vocabulary_size - len(special)) // 2]
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
    return WordPieceTokenizer(sorted(vocabulary, key=vocabulary.get), lowercase=lowercase)


def _train_bpe(lines, vocabulary_size, min_frequency):
    from tokenizers import Tokenizer as Trained
    from tokenizers import models, pre_tokenizers, trainers

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=min_frequency,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=_byte_alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(lines, trainer)
    model = json.loads(trained.to_str())["model"]
    return BytePairTokenizer(model["vocab"], model["merges"])
