"""Characters inside a TensorFlow graph: decoding UTF-8, what each character is, and rewriting it.

A batch of strings is one flat line of code points (`decode`) with the bytes each came from. No step loops over strings.
What a character is (letter, accent, punctuation) is Python's `unicodedata`. Another program may carry another version
of Unicode, and then differs on characters that are newer than the older of the two.
"""

import functools
import unicodedata

import numpy as np

# Past the last code point: special token k is SPECIAL + k, and every string ends with BOUNDARY, so that looking at a
# neighbour never looks into another string.
SPECIAL, BOUNDARY, NUM_CODES = 0x110000, 0x11007F, 0x110080
ENDS, SPACE, LETTER, NUMBER, OTHER, ALONE = range(6)


class CodePointTable:
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


class CharacterMap:
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
        self.steps = CodePointTable(steps)
        self.lengths = np.array([len(row) for row in rows], "int32")
        self.starts = np.cumsum(self.lengths, dtype="int32") - self.lengths
        self.flat = np.array([ord(char) for row in rows for char in row], "int32")


def lower(text):
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
    return lower(char) if lowercase else char


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
def bert_forms(lowercase, strip_accents):
    """What BERT's clean-up makes of characters: the different forms, str, and of every code point the number of its."""
    numbers = {}
    form_of = _for_each_character(
        lambda char: numbers.setdefault(_bert_form(char, lowercase, strip_accents), len(numbers))
    )
    return list(numbers), form_of


@functools.cache
def bert_map(lowercase, strip_accents):
    return CharacterMap(lambda char: _bert_form(char, lowercase, strip_accents))


@functools.cache
def lowercase_map():
    return CharacterMap(lower)


@functools.cache
def classes(kind):
    function, boundary, special = {
        "bert": (_bert_class, SPACE, ALONE),
        "bpe": (_pair_class, ENDS, ENDS),
        "word": (lambda char: SPACE if char.isspace() else LETTER, SPACE, ALONE),
    }[kind]
    values = _for_each_character(function)
    values[SPECIAL:], values[BOUNDARY] = special, boundary
    return values


@functools.cache
def class_table(kind):
    return CodePointTable(classes(kind))


# --- in the graph: flat lines of characters


def shift(values, by, fill):
    """values moved `by` places to the right (left if negative), `fill` in the places that come free."""
    import tensorflow as tf

    size = tf.size(values)
    if by > 0:
        return tf.pad(values, [[by, 0]], constant_values=fill)[:size]
    return tf.pad(values, [[0, -by]], constant_values=fill)[-by : size - by]


def mark(places, shape, value):
    """`value`, a scalar or one a place, at these places of a vector of this shape (1,), zero elsewhere."""
    import tensorflow as tf

    # Thirty times as fast as tf.scatter_nd. Of a place named twice the last value counts.
    zero = tf.zeros([], tf.convert_to_tensor(value).dtype)
    return tf.raw_ops.SparseToDense(
        sparse_indices=places,
        output_shape=tf.cast(shape, places.dtype),
        sparse_values=value,
        default_value=zero,
        validate_indices=False,
    )


def row_of(splits, size):
    """Of each of `size` elements in rows with these splits its row."""
    import tensorflow as tf

    none = tf.zeros([0], splits.dtype)
    inner = tf.raw_ops.DenseBincount(input=splits[1:-1], size=tf.cast(size, splits.dtype) + 1, weights=none)
    return tf.cumsum(inner)[:-1]


def splits_of(rows, num_rows):
    """The splits of rows (num_rows + 1,) from the row of each element."""
    import tensorflow as tf

    none = tf.zeros([0], rows.dtype)
    counts = tf.raw_ops.DenseBincount(input=rows, size=tf.cast(num_rows, rows.dtype), weights=none)
    return tf.cumsum(tf.pad(counts, [[1, 0]]))


def gather_rows(splits, values, rows):
    """Of a ragged array, by its splits and flat values, the rows in this order: values and splits."""
    import tensorflow as tf

    gathered = tf.raw_ops.RaggedGather(
        params_nested_splits=[splits], params_dense_values=values, indices=rows, OUTPUT_RAGGED_RANK=1
    )
    return gathered.output_dense_values, gathered.output_nested_splits[0]


def expand(lengths):
    """Of rows with these lengths, laid end to end: for every element its row and its place in it, int32."""
    import tensorflow as tf

    # A mark at each row's start and a running sum: linear, where tf.repeat makes a (rows, longest row) mask.
    total = tf.reduce_sum(lengths)
    starts = tf.cumsum(lengths, exclusive=True)
    marks = tf.scatter_nd(starts[:, None], tf.ones_like(starts), [total + 1])
    row = tf.cumsum(marks[:total]) - 1
    return row, tf.range(total) - tf.gather(starts, row)


def decode(strings):
    """strings (b,) -> codes, starts, ends, each (n,) int32, and row_starts (b + 1,).

    Every string's characters are followed by BOUNDARY. Starts and ends are bytes of all strings laid end to end, string
    i from row_starts[i] on. Invalid UTF-8 becomes U+FFFD where Python's bytes.decode("utf-8", "replace") puts it.
    """
    import tensorflow as tf

    joined = tf.strings.reduce_join(tf.strings.join([strings, tf.constant(b"\0")]))
    codes, starts = decode_line(joined)
    row_starts = tf.concat([[0], tf.cumsum(tf.strings.length(strings) + 1)], 0)
    # A NUL may also be a character: the boundaries are those where a string ends.
    last = mark(row_starts[1:] - 1, tf.strings.length(joined)[None], True)
    return tf.where(tf.gather(last, starts), BOUNDARY, codes), starts, next_starts(starts, joined), row_starts


def decode_line(string):
    """One string () -> codes and first bytes of its characters, int32 (n,)."""
    import tensorflow as tf

    decoded = tf.raw_ops.UnicodeDecodeWithOffsets(input=string[None], input_encoding="UTF-8", errors="replace")
    return decoded.char_values, tf.cast(decoded.char_to_byte_starts, tf.int32)


def next_starts(starts, string):
    import tensorflow as tf

    return tf.concat([starts, [tf.strings.length(string)]], 0)[1:]


def encode(codes, splits):
    import tensorflow as tf

    return tf.strings.unicode_encode(tf.RaggedTensor.from_row_splits(codes, splits, validate=False), "UTF-8")


def replace_invalid(strings):
    import tensorflow as tf

    codes, _, _, _ = decode(strings)
    ends = tf.cast(tf.where(codes == BOUNDARY)[:, 0], tf.int32)
    splits = tf.concat([[0], ends - tf.range(tf.size(ends))], 0)  # without the boundaries before it
    return encode(tf.boolean_mask(codes, codes != BOUNDARY), splits)


def rewrite(character_map, codes, starts, ends):
    """Each character as character_map has it, with the bytes of the character it came from."""
    import tensorflow as tf

    step = character_map.steps.lookup(codes)

    def several():
        row = tf.maximum(step - NUM_CODES, 0)
        source, place = expand(tf.gather(character_map.lengths, row))
        row, moved, starts_, ends_ = (tf.gather(values, source) for values in (row, codes + step, starts, ends))
        new = tf.gather(character_map.flat, tf.gather(character_map.starts, row) + place)
        return tf.where(row == 0, moved, new), starts_, ends_

    return tf.cond(tf.reduce_any(step >= NUM_CODES), several, lambda: (codes + step, starts, ends))


def mark_specials(patterns, codes, starts, ends):
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
