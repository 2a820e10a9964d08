"""Lines -> batches with tf.data: bucketed pairs, packed text, masked text, sentence pairs.

Every dataset gives (inputs, labels, sample_weights) as `model.fit` takes them, is the same for the same seed, and can
start at any step, so that a resumed run sees what the interrupted one would have seen.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_seq.packing import pack_segments, pack_start_end

CHUNK = 4096  # lines tokenized at once


def token_rows(tokenizer: Any, lines: Iterable[str], limit: int) -> tf.RaggedTensor:
    """The ids of each line, at most `limit` of them: ragged (lines, None) int32."""
    lines = list(lines)
    if not lines:
        raise ValueError("token_rows needs one line or more, got 0.")
    chunks = [tokenizer.tokenize(tf.constant(lines[i : i + CHUNK])) for i in range(0, len(lines), CHUNK)]
    return tf.concat(chunks, axis=0)[:, :limit]


def _bucketed(
    rows: dict[str, Any], tokens_per_batch: int, bucket_width: int, seed: int | None, num_draws: int = 0
) -> tf.data.Dataset:
    """Batches of rows of about one length, each of about `tokens_per_batch` places; with a seed shuffled for ever.

    Each ragged part `x` comes padded with 0, beside `x_mask`, 1 where it is real. With `num_draws`, each place of the
    first part also has that many random numbers in [0, 1), `draws` (b, t, num_draws), which depend on the seed and on
    how many rows came before: new in each epoch, and the same whatever the batches and after a resumption.
    """
    ragged = [name for name, part in rows.items() if isinstance(part, tf.RaggedTensor)]
    longest = max(int(tf.reduce_max(rows[name].row_lengths())) for name in ragged)
    boundaries = list(range(bucket_width, longest + bucket_width + 1, bucket_width))  # each above its rows
    sizes = [max(1, tokens_per_batch // boundary) for boundary in boundaries]
    dataset = tf.data.Dataset.from_tensor_slices(rows)
    count = len(dataset)
    if seed is not None:
        dataset = dataset.shuffle(count, seed=seed, reshuffle_each_iteration=True).repeat()

    def with_masks(number: tf.Tensor, row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        row = {**row, **{f"{name}_mask": tf.ones_like(row[name]) for name in ragged}}
        if num_draws:
            key = tf.stack([tf.constant(seed or 0, tf.int64), number])
            row["draws"] = tf.random.stateless_uniform([tf.size(row[ragged[0]]), num_draws], key)
        return row

    padded_shapes = {
        **{name: [None] for name in ragged},
        **{f"{name}_mask": [None] for name in ragged},
        **{name: list(part.shape[1:]) for name, part in rows.items() if name not in ragged},
        **({"draws": [None, num_draws]} if num_draws else {}),
    }
    return (
        dataset.enumerate()
        .map(with_masks, num_parallel_calls=2)
        .bucket_by_sequence_length(
            lambda row: tf.reduce_max([tf.size(row[name]) for name in ragged]),
            boundaries,
            [*sizes, 1],
            padded_shapes=padded_shapes,
        )
    )


def counted(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The batches kept in memory, their number known: Keras warns of a dataset whose end it did not expect."""
    batches = batches.cache()
    return batches.apply(tf.data.experimental.assert_cardinality(sum(1 for _ in batches)))


def translation_pairs(
    pairs: Sequence[tuple[str, str]],
    tokenizer: Any,
    target_tokenizer: Any,
    limit: int,
    tokens_per_batch: int,
    bucket_width: int = 4,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Teacher-forced translation: the decoder is fed start + target and asked for target + end.

    The source ends with its end token, so that even an empty one has a position to look at.
    """
    source = token_rows(tokenizer, [a for a, _ in pairs], limit - 1)
    target = token_rows(target_tokenizer, [b for _, b in pairs], limit - 1)
    rows = {
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

    return _bucketed(rows, tokens_per_batch, bucket_width, seed).map(split)


def text_lines(
    lines: Sequence[str],
    tokenizer: Any,
    limit: int,
    tokens_per_batch: int,
    bucket_width: int = 4,
    seed: int | None = None,
) -> tf.data.Dataset:
    """A language model of lines: fed start + line, asked for line + end."""
    ids = token_rows(tokenizer, lines, limit - 1)
    rows = {"text": pack_start_end(ids, tokenizer.start_token_id, tokenizer.end_token_id)}

    def split(batch: dict[str, tf.Tensor]) -> tuple:
        inputs = {"token_ids": batch["text"][:, :-1], "padding_mask": tf.cast(batch["text_mask"][:, 1:], tf.bool)}
        return inputs, batch["text"][:, 1:], tf.cast(batch["text_mask"][:, 1:], tf.float32)

    return _bucketed(rows, tokens_per_batch, bucket_width, seed).map(split)


def packed_text(
    text: str, tokenizer: Any, block: int, batch_size: int, seed: int | None = None, start_step: int = 0
) -> tf.data.Dataset:
    """A language model of running text: windows of `block` tokens at random places, or, without a seed, all in order.

    In order, what is left at the end and fills no window is left out.
    """
    ids = tf.concat(list(token_rows(tokenizer, _pieces(text), len(text) + 1)), axis=0)
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


def _pieces(text: str) -> list[str]:
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
    pairs: Sequence[tuple[str, str, int]],
    tokenizer: Any,
    limit: int,
    tokens_per_batch: int,
    bucket_width: int = 4,
    seed: int | None = None,
    mask_rate: float = 0.15,
) -> tf.data.Dataset:
    """BERT's pre-training: 15 % of the tokens hidden anew in each epoch (80 % mask, 10 % random, 10 % as they are).

    KerasHub's MaskedLMMaskGenerator does the same from a stream shared by all rows, which no two passes meet in one
    order: not repeatable, so not resumable.

    Devlin et al. 2019, appendix A.1. Of two sentences each is cut to half of what `limit` leaves.
    """
    half = (limit - 3) // 2
    first = token_rows(tokenizer, [one for one, _, _ in pairs], half)
    second = token_rows(tokenizer, [two for _, two, _ in pairs], half)
    rows: dict[str, Any] = {
        **segments((first, second), tokenizer),
        "follows": np.array([pair[2] for pair in pairs], "int32"),
    }

    def split(batch: dict[str, tf.Tensor]) -> tuple:
        token_ids, positions, true_ids, weights = _hide(batch["token_ids"], batch["draws"], tokenizer, mask_rate)
        inputs = {
            "token_ids": token_ids,
            "segment_ids": batch["segment_ids"],
            "padding_mask": tf.cast(batch["token_ids_mask"], tf.bool),
            "mask_positions": positions,
        }
        labels = {"masked_lm": true_ids, "next_sentence": batch["follows"]}
        return inputs, labels, {"masked_lm": weights, "next_sentence": tf.ones_like(batch["follows"], tf.float32)}

    return _bucketed(rows, tokens_per_batch, bucket_width, seed, num_draws=3).map(split, num_parallel_calls=2)


def _hide(ids_bt: tf.Tensor, draws_bt3: tf.Tensor, tokenizer: Any, rate: float) -> tuple[tf.Tensor, ...]:
    """Hides `rate` of a row's tokens, at least one, specials never: ids (b, t); positions, true ids, weights (b, p)."""
    specials = (tokenizer.pad_token_id, tokenizer.start_token_id, tokenizer.end_token_id)
    free_bt = tf.reduce_all([ids_bt != special for special in specials if special is not None], axis=0)
    free_b = tf.reduce_sum(tf.cast(free_bt, tf.int32), axis=1)
    wanted_b = tf.cast(tf.round(rate * tf.cast(free_b, tf.float32)), tf.int32)
    count_b = tf.minimum(tf.maximum(wanted_b, 1), free_b)
    most = tf.maximum(tf.reduce_max(count_b), 1)
    weights_bp = tf.sequence_mask(count_b, most)
    positions_bp = tf.math.top_k(tf.where(free_bt, draws_bt3[..., 0], -1.0), most).indices
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


def labelled_text(
    texts: Sequence[tuple[str, str]],
    labels: Sequence[str],
    tokenizer: Any,
    limit: int,
    tokens_per_batch: int,
    bucket_width: int = 4,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Classification: [CLS] text [SEP], and the place of its label among `labels`."""
    place = {label: i for i, label in enumerate(labels)}
    rows: dict[str, Any] = {
        **segments((token_rows(tokenizer, [text for text, _ in texts], limit - 2),), tokenizer),
        "label": np.array([place[label] for _, label in texts], "int32"),
    }

    def split(batch: dict[str, tf.Tensor]) -> tuple:
        inputs = {
            "token_ids": batch["token_ids"],
            "segment_ids": batch["segment_ids"],
            "padding_mask": tf.cast(batch["token_ids_mask"], tf.bool),
        }
        return inputs, batch["label"], tf.ones_like(batch["label"], tf.float32)

    return _bucketed(rows, tokens_per_batch, bucket_width, seed).map(split)
