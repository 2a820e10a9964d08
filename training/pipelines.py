"""Lines -> batches with tf.data: bucketed pairs, packed text, masked text, sentence pairs.

Every dataset gives (inputs, labels, sample_weights) as `model.fit` takes them, is the same for the same seed, and can
start at any step, so that a resumed run sees what the interrupted one would have seen.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf

from keras_seq.byte_pairs import byte_alphabet
from keras_seq.packing import pack_segments, pack_start_end
from training.batches import Stream, bucketed, without_tuner

CHUNK = 4096  # lines tokenized at once


def token_rows(tokenizer: Any, lines: Iterable[str], limit: int | None) -> tf.RaggedTensor:
    """The ids of each line, at most `limit` of them (None: all): ragged (lines, None) int32."""
    lines = list(lines)
    if not lines:
        raise ValueError("token_rows needs one line or more, got 0.")
    chunks = [tokenizer.tokenize(tf.constant(lines[i : i + CHUNK])) for i in range(0, len(lines), CHUNK)]
    return tf.concat(chunks, axis=0)[:, :limit]


def counted(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The batches kept in memory, their number known: Keras warns of a dataset whose end it did not expect."""
    batches = without_tuner(batches.cache())
    return batches.apply(tf.data.experimental.assert_cardinality(sum(1 for _ in batches)))


def translation_pairs(
    pairs: Sequence[tuple[str, str]] | Stream,
    tokenizer: Any,
    target_tokenizer: Any,
    limit: int,
    tokens_per_batch: int,
    bucket_width: int = 4,
    seed: int | None = None,
    start_step: int = 0,
) -> tf.data.Dataset:
    """Teacher-forced translation: the decoder is fed start + target and asked for target + end.

    The source ends with its end token, so that even an empty one has a position to look at.
    """

    def rows(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        source = token_rows(tokenizer, [a for a, _ in pairs], limit - 1)
        target = token_rows(target_tokenizer, [b for _, b in pairs], limit - 1)
        return {
            "source": pack_start_end(source, None, tokenizer.end_token_id),
            "target": pack_start_end(target, target_tokenizer.start_token_id, target_tokenizer.end_token_id),
        }

    def split(batch: dict[str, tf.Tensor]) -> tuple:
        inputs = {
            "encoder_token_ids": batch["source"],
            "encoder_padding_mask": tf.cast(batch["source_mask"], tf.bool),
            "decoder_token_ids": batch["target"][:, :-1],
            "decoder_padding_mask": tf.cast(batch["target_mask"][:, 1:], tf.bool),
        }
        return inputs, batch["target"][:, 1:], tf.cast(batch["target_mask"][:, 1:], tf.float32)

    names = (("source", "target"), ())
    batches = bucketed(pairs, rows, names, tokens_per_batch, bucket_width, seed, start_step=start_step)
    return batches.map(split)


def text_lines(
    lines: Sequence[str] | Stream,
    tokenizer: Any,
    limit: int,
    tokens_per_batch: int,
    bucket_width: int = 4,
    seed: int | None = None,
    start_step: int = 0,
) -> tf.data.Dataset:
    """A language model of lines: fed start + line, asked for line + end."""

    def rows(lines: Sequence[str]) -> dict[str, Any]:
        ids = token_rows(tokenizer, lines, limit - 1)
        return {"text": pack_start_end(ids, tokenizer.start_token_id, tokenizer.end_token_id)}

    def split(batch: dict[str, tf.Tensor]) -> tuple:
        inputs = {"token_ids": batch["text"][:, :-1], "padding_mask": tf.cast(batch["text_mask"][:, 1:], tf.bool)}
        return inputs, batch["text"][:, 1:], tf.cast(batch["text_mask"][:, 1:], tf.float32)

    names = (("text",), ())
    return bucketed(lines, rows, names, tokens_per_batch, bucket_width, seed, start_step=start_step).map(split)


def packed_documents(
    documents: Sequence[str] | Stream,
    tokenizer: Any,
    block: int,
    tokens_per_batch: int,
    seed: int | None = None,
    start_step: int = 0,
) -> tf.data.Dataset:
    """A language model of documents, several in a row of at most `block` places, none of which sees another.

    Each document is fed start + text and asked for text + end; one longer than `block` is cut into several. The inputs
    are those of `GPT.packed_model`: `segment_ids` number the documents of a row from 1, 0 is padding.
    """

    def rows(documents: Sequence[str]) -> dict[str, Any]:
        ids = token_rows(tokenizer, documents, None)
        ids = pack_start_end(ids, tokenizer.start_token_id, tokenizer.end_token_id)
        fed, asked = ids[:, :-1], ids[:, 1:]
        starts = fed.row_splits.numpy()
        pieces = [(a, min(a + block, z)) for one, z in pairwise(starts) for a in range(one, z, block)]
        together = pack([z - a for a, z in pieces], block)
        places = [np.concatenate([np.arange(*pieces[i]) for i in row]) for row in together]
        sizes = [[pieces[i][1] - pieces[i][0] for i in row] for row in together]
        numbers = [np.repeat(np.arange(1, len(row) + 1), row) for row in sizes]
        flat, lengths = np.concatenate(places), [sum(row) for row in sizes]
        parts = {"token_ids": fed.values.numpy()[flat], "labels": asked.values.numpy()[flat]}
        parts["segment_ids"] = np.concatenate(numbers).astype("int32")
        return {name: tf.RaggedTensor.from_row_lengths(part, lengths) for name, part in parts.items()}

    def split(batch: dict[str, tf.Tensor]) -> tuple:
        mask = batch["token_ids_mask"]
        inputs = {name: batch[name] for name in ("token_ids", "segment_ids")}
        return {**inputs, "padding_mask": tf.cast(mask, tf.bool)}, batch["labels"], tf.cast(mask, tf.float32)

    names = (("token_ids", "labels", "segment_ids"), ())
    return bucketed(documents, rows, names, tokens_per_batch, block, seed, start_step=start_step).map(split)


def packed_text(
    text: str, tokenizer: Any, block: int, batch_size: int, seed: int | None = None, start_step: int = 0
) -> tf.data.Dataset:
    """A language model of running text: windows of `block` tokens at random places, or, without a seed, all in order.

    In order, what is left at the end and fills no window is left out.
    """
    ids = token_rows(tokenizer, pieces_of(text), None).values
    count = int(ids.shape[0])
    if count <= block:
        raise ValueError(f"packed_text needs more than block={block} tokens, got {count}.")
    if seed is None:
        starts = tf.data.Dataset.range(0, count - block, block).batch(batch_size)
    else:

        def draw(step: tf.Tensor) -> tf.Tensor:
            key = tf.stack([tf.cast(seed, tf.int64), step])
            return tf.random.stateless_uniform([batch_size], key, 0, count - block, tf.int64)

        starts = tf.data.Dataset.range(start_step, 2**62).map(draw)

    def window(starts_b: tf.Tensor) -> tuple:
        window_bt = tf.gather(ids, starts_b[:, None] + tf.range(block + 1, dtype=tf.int64)[None])
        inputs = {"token_ids": window_bt[:, :-1], "padding_mask": tf.ones_like(window_bt[:, :-1], tf.bool)}
        return inputs, window_bt[:, 1:], tf.ones_like(window_bt[:, 1:], tf.float32)

    return starts.map(window)


def pack(lengths: Sequence[int], block: int) -> list[list[int]]:
    """Which pieces share a row of `block` places: the longest first, each where it leaves the least room (best fit).

    Args:
        lengths: of the pieces, each in [1, block].
        block: places of a row.
    """
    room: list[list[int]] = [[] for _ in range(block + 1)]  # rows by the places they have left
    rows: list[list[int]] = []
    for piece in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        left = next((left for left in range(lengths[piece], block + 1) if room[left]), None)
        row = len(rows) if left is None else room[left].pop()
        if left is None:
            rows.append([])
        rows[row].append(piece)
        room[(block if left is None else left) - lengths[piece]].append(row)
    return rows


def pieces_of(text: str) -> list[str]:
    """Text cut into pieces of some 2,000 characters, which tokenize as the whole would: behind a lone line end, since
    byte-pair encoding joins several."""
    pieces, start = [], 0
    while start < len(text):
        found = re.compile(r"(?<=\S)\n(?=\S)").search(text, start + 2000)
        cut = found.end() if found else len(text)
        pieces.append(text[start:cut])
        start = cut
    return pieces


def next_sentence_pairs(documents: Sequence[Sequence[str]], count: int, seed: int) -> list[tuple[str, str, int]]:
    """(first, second, follows): half the seconds truly follow, half come from another document (Devlin 2019, 3.1)."""
    rng = np.random.default_rng(seed)
    with_next = [i for i, document in enumerate(documents) if len(document) > 1]
    if not with_next or len(documents) < 2:
        raise ValueError(
            f"next_sentence_pairs needs two documents and one of two sentences, got {len(documents)} documents."
        )
    pairs = []
    for index in rng.choice(with_next, size=count):
        document = documents[index]
        place = int(rng.integers(len(document) - 1))
        if rng.random() < 0.5:
            pairs.append((document[place], document[place + 1], 1))
            continue
        other = int(rng.integers(len(documents) - 1))
        other += other >= index
        pairs.append((document[place], documents[other][int(rng.integers(len(documents[other])))], 0))
    return pairs


def segments(rows: Sequence[tf.RaggedTensor], tokenizer: Any) -> dict[str, tf.RaggedTensor]:
    """[CLS] first [SEP] (second [SEP]) with segment ids 0 and 1."""
    token_ids, segment_ids = pack_segments(rows, tokenizer.start_token_id, tokenizer.end_token_id)
    return {"token_ids": token_ids, "segment_ids": segment_ids}


def masked_pairs(
    pairs: Sequence[tuple[str, str, int]] | Stream,
    tokenizer: Any,
    limit: int,
    tokens_per_batch: int,
    bucket_width: int = 4,
    seed: int | None = None,
    start_step: int = 0,
    mask_rate: float = 0.15,
    whole_words: bool = False,
) -> tf.data.Dataset:
    """BERT's pre-training: 15 % of the tokens hidden anew in each epoch (80 % mask, 10 % random, 10 % as they are).

    KerasHub's MaskedLMMaskGenerator does the same from a stream shared by all rows, which no two passes meet in one
    order: not repeatable, so not resumable.

    Devlin et al. 2019, appendix A.1. Of two sentences each is cut to half of what `limit` leaves. With `whole_words`
    all tokens of a word are hidden or none, as in BERT's later models; each is still replaced on its own.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError("masked_pairs needs a tokenizer with a token to hide others, [MASK], got one without.")
    half = (limit - 3) // 2
    word_starts = tf.constant(starts_word(tokenizer)) if whole_words else None

    def rows(pairs: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
        first = token_rows(tokenizer, [one for one, _, _ in pairs], half)
        second = token_rows(tokenizer, [two for _, two, _ in pairs], half)
        follows = np.array([pair[2] for pair in pairs], "int32")
        return {**segments((first, second), tokenizer), "follows": follows}

    def split(batch: dict[str, tf.Tensor]) -> tuple:
        token_ids, positions, true_ids, weights = _hide(
            batch["token_ids"], batch["draws"], tokenizer, mask_rate, word_starts
        )
        inputs = {
            "token_ids": token_ids,
            "segment_ids": batch["segment_ids"],
            "padding_mask": tf.cast(batch["token_ids_mask"], tf.bool),
            "mask_positions": positions,
        }
        labels = {"masked_lm": true_ids, "next_sentence": batch["follows"]}
        return inputs, labels, {"masked_lm": weights, "next_sentence": tf.ones_like(batch["follows"], tf.float32)}

    names = (("token_ids", "segment_ids"), ("follows",))
    batches = bucketed(pairs, rows, names, tokens_per_batch, bucket_width, seed, num_draws=3, start_step=start_step)
    return batches.map(split, num_parallel_calls=2)


def starts_word(tokenizer: Any) -> np.ndarray:
    """(v,) bool: whether a token begins a word.

    Raises:
        ValueError: the tokenizer's tokens do not say.
    """
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.vocabulary_size)]
    if any(token.startswith("##") for token in tokens):  # WordPiece marks what goes on
        return np.array([not token.startswith("##") for token in tokens])
    if any(token.startswith("Ġ") for token in tokens):  # byte pairs mark the blank before
        byte_of = {char: byte for byte, char in enumerate(byte_alphabet())}
        texts = (bytes(byte_of.get(char, 0) for char in token).decode("utf-8", "replace") for token in tokens)
        # What begins in the middle of a character goes on with its word, and so does what ends in its first one.
        return np.array([not text or not (text[0].isalnum() or text[0] == "\ufffd") for text in texts])
    raise ValueError("Whole words need a tokenizer of word pieces or byte pairs, whose tokens say where a word begins.")


def _hide(
    ids_bt: tf.Tensor, draws_bt3: tf.Tensor, tokenizer: Any, rate: float, word_starts: tf.Tensor | None
) -> tuple[tf.Tensor, ...]:
    """Hides `rate` of a row's tokens, at least one, specials never: ids (b, t); positions, true ids, weights (b, p)."""
    specials = (tokenizer.pad_token_id, tokenizer.start_token_id, tokenizer.end_token_id)
    free_bt = tf.reduce_all([ids_bt != special for special in specials if special is not None], axis=0)
    free_b = tf.reduce_sum(tf.cast(free_bt, tf.int32), axis=1)
    wanted_b = tf.cast(tf.round(rate * tf.cast(free_b, tf.float32)), tf.int32)
    count_b = tf.minimum(tf.maximum(wanted_b, 1), free_b)
    ranks_bt = draws_bt3[..., 0]
    if word_starts is not None:
        ranks_bt, count_b = _words(ids_bt, free_bt, ranks_bt, count_b, word_starts)
    most = tf.maximum(tf.reduce_max(count_b), 1)
    weights_bp = tf.sequence_mask(count_b, most)
    positions_bp = tf.math.top_k(tf.where(free_bt, ranks_bt, -1.0), most).indices
    positions_bp = tf.where(weights_bp, positions_bp, 0)
    true_bp = tf.where(weights_bp, tf.gather(ids_bt, positions_bp, batch_dims=1), 0)
    draws_bp3 = tf.gather(draws_bt3, positions_bp, batch_dims=1)
    random_bp = tf.cast(draws_bp3[..., 2] * tokenizer.vocabulary_size, tf.int32)
    shown_bp = tf.where(draws_bp3[..., 1] < 0.9, random_bp, true_bp)
    shown_bp = tf.where(draws_bp3[..., 1] < 0.8, tokenizer.mask_token_id, shown_bp)
    hidden_bt = tf.tensor_scatter_nd_update(
        ids_bt,
        tf.stack([tf.where(weights_bp)[:, 0], tf.cast(tf.boolean_mask(positions_bp, weights_bp), tf.int64)], axis=1),
        tf.boolean_mask(shown_bp, weights_bp),
    )
    return hidden_bt, positions_bp, true_bp, tf.cast(weights_bp, tf.float32)


def _words(
    ids_bt: tf.Tensor, free_bt: tf.Tensor, ranks_bt: tf.Tensor, count_b: tf.Tensor, word_starts: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """One rank for all tokens of a word, and how many tokens the words of the highest ranks have: about `count_b`.

    The last word is taken if half of it or more is wanted, so that on the average as much is hidden as without words.
    """
    before_bt = tf.pad(free_bt, [[0, 0], [1, 0]])[:, :-1]
    first_bt = tf.gather(word_starts, ids_bt) | ~free_bt | ~before_bt
    word_bt = tf.cumsum(tf.cast(first_bt, tf.int32), axis=1)
    same_bts = word_bt[:, :, None] == word_bt[:, None, :]
    ranks_bt = tf.reduce_max(tf.where(same_bts & first_bt[:, None, :], ranks_bt[:, None, :], 0.0), axis=2)
    # Tokens of words with a higher rank, and of the word itself.
    higher_bts = free_bt[:, None, :] & (ranks_bt[:, None, :] > ranks_bt[:, :, None])
    higher_bt = tf.reduce_sum(tf.cast(higher_bts, tf.int32), axis=2)
    size_bt = tf.reduce_sum(tf.cast(same_bts, tf.int32), axis=2)
    taken_bt = free_bt & ((2 * higher_bt + size_bt <= 2 * count_b[:, None]) | (higher_bt == 0))
    return ranks_bt, tf.reduce_sum(tf.cast(taken_bt, tf.int32), axis=1)


def labelled_text(
    texts: Sequence[tuple[str, str]] | Stream,
    labels: Sequence[str],
    tokenizer: Any,
    limit: int,
    tokens_per_batch: int,
    bucket_width: int = 4,
    seed: int | None = None,
    start_step: int = 0,
) -> tf.data.Dataset:
    """Classification: [CLS] text [SEP], and the place of its label among `labels`."""

    def rows(texts: Sequence[tuple[str, str]]) -> dict[str, Any]:
        ids = token_rows(tokenizer, [text for text, _ in texts], limit - 2)
        return {**segments((ids,), tokenizer), "label": places_of([label for _, label in texts], labels)}

    def split(batch: dict[str, tf.Tensor]) -> tuple:
        inputs = {
            "token_ids": batch["token_ids"],
            "segment_ids": batch["segment_ids"],
            "padding_mask": tf.cast(batch["token_ids_mask"], tf.bool),
        }
        return inputs, batch["label"], tf.ones_like(batch["label"], tf.float32)

    names = (("token_ids", "segment_ids"), ("label",))
    return bucketed(texts, rows, names, tokens_per_batch, bucket_width, seed, start_step=start_step).map(split)


def places_of(given: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """(n,) int32, where each of some labels stands among those of the training examples.

    Raises:
        ValueError: one is not among them.
    """
    place = {label: i for i, label in enumerate(labels)}
    for label in given:
        if label not in place:
            raise ValueError(
                f"The label {label!r} has no example to train on: those that have are {', '.join(labels)}."
            )
    return np.array([place[label] for label in given], "int32")
