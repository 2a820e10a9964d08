"""What all tokenizers share: strings to ids and back in a TensorFlow graph of core operations and immutable tables.

No step loops over strings: a thousand short lines cost what one long line does.
"""

import abc
import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections import Counter

import numpy as np

from keras_seq import characters

SPECIAL_TOKENS = {
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "start": ("[CLS]", "<s>", "<|endoftext|>"),
    "end": ("[SEP]", "</s>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
}


def read_lines(path):
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
    _edge = "first"

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
    def _encode(self, strings):
        """strings (b,) -> ids, starts, ends, each (n,) int32, and the splits (b + 1,) int64 of their rows."""

    def _bytes(self, token):
        return token.encode("utf-8")

    def _display(self, token):
        return token

    def _joined(self, token):
        """How the token is shown at the edge of a string, its start or end as _edge has it, and elsewhere."""
        return self._bytes(token), self._bytes(token)

    # Tables and functions, made once, outside any graph.

    @functools.cached_property
    def _tables(self):
        return {}

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

    def _encode_ids(self, strings):
        ids, _, _, splits = self._encode(strings)
        return ids, splits

    def _encode_by_chunks(self, strings, encode, with_offsets):
        """What `_encode` or `_encode_ids` returns, for tokenizers whose tokens never have a blank inside.

        Strings are cut at blanks into chunks and each different chunk is encoded once: encode(chunks (u,)) -> splits
        and values of a ragged (u, tokens), ids or rows of id, start, end.
        """
        import tensorflow as tf

        split = tf.raw_ops.StringSplitV2(input=strings, sep=" ", maxsplit=-1)
        chunks, which = tf.unique(split.values)
        row = tf.reshape(tf.slice(split.indices, [0, 0], [-1, 1]), [-1])
        row_splits = characters.splits_of(row, tf.size(strings))
        splits, values = encode(chunks)
        values, chunk_splits = characters.gather_rows(splits, values, which)
        splits = tf.cast(tf.gather(chunk_splits, row_splits), tf.int64)
        if not with_offsets:
            return values, splits
        ids, starts, ends = tf.unstack(values, axis=1)
        begins = tf.cumsum(tf.pad(tf.strings.length(split.values) + 1, [[1, 0]]))
        begins = begins[:-1] - tf.gather(tf.gather(begins, row_splits), row)
        begin = tf.gather(begins, characters.row_of(chunk_splits, tf.size(ids)))
        return ids, starts + begin, ends + begin, splits

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
        edge = kept & (tf.cumsum(tf.cast(kept, tf.int32), axis=-1, reverse=self._edge == "last") == 1)
        texts = tf.where(edge, *(tf.gather(tf.constant(list(forms)), ids) for forms in zip(*shown)))
        return characters.replace_invalid(tf.strings.reduce_join(tf.where(kept, texts, ""), axis=-1))

    def _int32(self, ids):
        import tensorflow as tf

        # Signed and wide, then clipped, then narrow: of a few bits, or none for the sign, neither -1 nor the size fits,
        # and a 64-bit id would wrap around into the vocabulary. What int64 does not hold of uint64 becomes negative.
        return tf.cast(tf.clip_by_value(tf.cast(ids, tf.int64), -1, self.vocabulary_size), tf.int32)

    def detokenize(self, ids):
        """Strings of ids. Padding, start, end and ids outside the vocabulary are dropped; unknown and mask are shown.

        Args:
            ids: integers (b, tokens), ragged or padded; or (tokens,); or with further axes in front.
        Returns:
            string tensor of the axes in front: (b,), or () for (tokens,).
        Raises:
            ValueError: ids has no axis.
        """
        import tensorflow as tf

        if isinstance(ids, (list, tuple)):
            ids = tf.ragged.constant(ids, dtype=tf.int64)
        if isinstance(ids, tf.RaggedTensor):
            ids = tf.cast(ids, tf.int64).to_tensor(default_value=-1)
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
