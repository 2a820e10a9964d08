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
def character_map(kind, lowercase, strip_accents=False):
    if kind == "wordpiece":
        return CharacterMap(lambda char: _bert_form(char, lowercase, strip_accents))
    return CharacterMap(lower) if lowercase else None


@functools.cache
def classes(kind):
    function, boundary, special = {
        "wordpiece": (_bert_class, SPACE, ALONE),
        "bpe": (_pair_class, ENDS, ENDS),
        "word": (lambda char: SPACE if char.isspace() else LETTER, SPACE, ALONE),
    }[kind]
    values = _for_each_character(function)
    values[SPECIAL:], values[BOUNDARY] = special, boundary
    return CodePointTable(values)


# --- in the graph: flat lines of characters


def shift(values, by, fill):
    """values moved `by` places to the right (left if negative), `fill` in the places that come free."""
    import tensorflow as tf

    size = tf.size(values)
    if by > 0:
        return tf.pad(values, [[by, 0]], constant_values=fill)[:size]
    return tf.pad(values, [[0, -by]], constant_values=fill)[-by : size - by]


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
    second, third, fourth = (shift(values, -by, 0) for by in (1, 2, 3))
    two = (length >= 2) & (second >= low) & (second <= high)
    three = two & (length >= 3) & (tf.bitwise.bitwise_and(third, 0xC0) == 0x80)
    four = three & (length >= 4) & (tf.bitwise.bitwise_and(fourth, 0xC0) == 0x80)
    valid = 1 + tf.cast(two, tf.int32) + tf.cast(three, tf.int32) + tf.cast(four, tf.int32)
    part = [tf.bitwise.bitwise_and(byte, 0x3F) for byte in (second, third, fourth)]
    codes = tf.where(length == 2, (values - 0xC0) * 64 + part[0], codes)
    codes = tf.where(length == 3, ((values - 0xE0) * 64 + part[0]) * 64 + part[1], codes)
    codes = tf.where(length == 4, (((values - 0xF0) * 64 + part[0]) * 64 + part[1]) * 64 + part[2], codes)
    codes = tf.where(valid == length, codes, 0xFFFD)
    inside = shift(two, 1, False) | shift(three, 2, False) | shift(four, 3, False)
    first = tf.cast(tf.where(~inside)[:, 0], tf.int32)
    return tf.gather(codes, first), first, first + tf.gather(valid, first)


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
