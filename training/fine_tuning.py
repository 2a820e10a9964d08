"""How a task is learned, and what BERT is fine-tuned on: tokens, spans, choices and pairs of texts."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import keras_seq
from keras_seq.packing import pack_start_end, pack_windows
from training.batches import Stream, bucketed
from training.pipelines import CHUNK, places_of, segments, token_rows
from training.readers import Choice, Question

OUTSIDE = "O"  # the label of a token that is in no entity
LANGUAGE_MODEL = "language_model"  # the output of GPT's second task
MILLI = 1000  # scores travel as whole thousandths


class Task(NamedTuple):
    """How one kind of corpus is learned.

    Args:
        model: (backbone, labels) -> the model.
        rows: (examples, labels, tokenizer, limit) -> the parts of their rows, see `batches.Rows`.
        names: of the ragged parts, and of those of one number a row.
        split: (batch, labels) -> inputs, labels, sample weights.
        outputs: names of the model's outputs; none: it has one.
        graded: the target of a row is a share for each class.
    """

    model: Callable[[Any, Sequence[str]], keras.Model]
    rows: Callable[[Sequence, Sequence[str], Any, int], dict[str, Any]]
    names: tuple[Sequence[str], Sequence[str]]
    split: Callable[[dict[str, tf.Tensor], Sequence[str]], tuple]
    outputs: tuple[str, ...] = ()
    graded: bool = False


def batches(
    task: Task,
    examples: Sequence | Stream,
    labels: Sequence[str],
    tokenizer: Any,
    limit: int,
    tokens_per_batch: int,
    bucket_width: int = 4,
    seed: int | None = None,
    start_step: int = 0,
) -> tf.data.Dataset:
    """(inputs, labels, sample_weights) of a task's examples, for `model.fit` of its model."""

    def rows(some: Sequence) -> dict[str, Any]:
        return task.rows(some, labels, tokenizer, limit)

    made = bucketed(examples, rows, task.names, tokens_per_batch, bucket_width, seed, start_step=start_step)
    return made.map(lambda batch: task.split(batch, labels))


def loss_and_metrics(task: Task, label_smoothing: float) -> tuple[Any, Any]:
    """The loss and the weighted measures of a task, for `model.compile`; a language model beside it is not measured."""
    options = {"from_logits": True, "label_smoothing": label_smoothing}

    def loss() -> Any:
        if task.graded:
            return keras.losses.CategoricalCrossentropy(reduction="mean_with_sample_weight", **options)
        return keras_seq.TokenCrossentropy(label_smoothing)

    def metrics() -> list:
        if task.graded:
            return [keras.metrics.CategoricalCrossentropy("token_loss", **options)]
        return [keras_seq.TokenLoss(label_smoothing), keras_seq.TokenAccuracy()]

    if not task.outputs:
        return loss(), metrics()
    losses = {name: keras_seq.TokenCrossentropy() if name == LANGUAGE_MODEL else loss() for name in task.outputs}
    return losses, {name: metrics() for name in task.outputs if name != LANGUAGE_MODEL}


KINDS = ("tokens", "spans", "choices", "couples", "scored")  # of a corpus whose texts `texts_of` finds


def labels_of(kind: str, examples: Iterable) -> list[str] | None:
    """The names of the classes in some examples, in the order of their ids; None where there are none."""
    if kind == "tokens":
        return sorted({label for _, labels in examples for label in labels})
    if kind == "labelled":
        return sorted({label for _, label in examples})
    if kind == "couples":
        return sorted({label for _, _, label in examples})
    if kind == "scored":
        scores = [float(score) for _, _, score in examples]
        if min(scores) == max(scores):
            raise ValueError(f"Scores to learn from need two values or more, got {scores[0]} alone.")
        return [str(i) for i in range(int(np.floor(min(scores))), int(np.ceil(max(scores))) + 1)]
    return None


def texts_of(kind: str, examples: Iterable) -> list[str]:
    """The texts that a tokenizer is trained on."""
    if kind == "tokens":
        return [" ".join(words) for words, _ in examples]
    if kind == "spans":
        examples = list(examples)
        return [*dict.fromkeys(one.context for one in examples), *(one.question for one in examples)]
    if kind == "choices":
        return [text for one in examples for text in (one.prompt, *one.choices)]
    return [text for first, second, _ in examples for text in (first, second)]


def _inputs(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    mask = tf.cast(batch["token_ids_mask"], tf.bool)
    return {"token_ids": batch["token_ids"], "segment_ids": batch["segment_ids"], "padding_mask": mask}


def _weights(labels: tf.Tensor) -> tf.Tensor:
    return tf.ones_like(labels, tf.float32)


# ---- Tokens --------------------------------------------------------------------------------------------------------


def with_offsets(tokenizer: Any, texts: Sequence[str]) -> list[tf.RaggedTensor]:
    """Ids, first and next bytes of the tokens of each text."""
    chunks = [
        tokenizer.tokenize_with_offsets(tf.constant(list(texts[i : i + CHUNK]))) for i in range(0, len(texts), CHUNK)
    ]
    return [tf.concat(parts, axis=0) for parts in zip(*chunks)]


def first_pieces(words: Sequence[str], starts: Sequence[int], ends: Sequence[int]) -> list[int | None]:
    """Which token is the first of each word in " ".join(words), by the tokens' first and next bytes; None: it has none.

    It is the first that shares a byte with the word: of byte pairs it may begin with the blank before.
    """
    sizes = np.array([len(word.encode()) for word in words], "int64")
    begins = np.concatenate([[0], np.cumsum(sizes + 1)[:-1]])
    places = np.searchsorted(ends, begins, side="right")
    return [
        int(place) if place < len(starts) and starts[place] < begin + size else None
        for place, begin, size in zip(places, begins, sizes)
    ]


def _token_rows(sentences: Sequence, labels: Sequence[str], tokenizer: Any, limit: int) -> dict[str, Any]:
    """The first sub-word of a word has its label; the others, and what is no text, count for nothing.

    Devlin et al. 2019, section 5.3.
    """
    place = {label: i for i, label in enumerate(labels)}
    cut = (part[:, : limit - 2] for part in with_offsets(tokenizer, [" ".join(words) for words, _ in sentences]))
    ids, starts, ends = cut
    given, counted = np.zeros(ids.values.shape, "int32"), np.zeros(ids.values.shape, "int32")
    splits, all_starts, all_ends = ids.row_splits.numpy(), starts.values.numpy(), ends.values.numpy()
    for row, (words, names) in enumerate(sentences):
        here = slice(splits[row], splits[row + 1])
        for name, piece in zip(names, first_pieces(words, all_starts[here], all_ends[here])):
            if piece is not None and name in place:
                given[splits[row] + piece], counted[splits[row] + piece] = place[name], 1
    parts = {"label": ids.with_values(tf.constant(given)), "counted": ids.with_values(tf.constant(counted))}
    packed = {name: pack_start_end(part, 0, 0) for name, part in parts.items()}
    return {**segments((ids,), tokenizer), **packed}


def _split_tokens(batch: dict[str, tf.Tensor], labels: Sequence[str]) -> tuple:
    return _inputs(batch), batch["label"], tf.cast(batch["counted"], tf.float32)


# ---- Spans ---------------------------------------------------------------------------------------------------------


def _span_rows(questions: Sequence[Question], labels: Sequence[str], tokenizer: Any, limit: int) -> dict[str, Any]:
    """A window of the context that holds the whole answer is asked for its first and last token, others for none.

    Devlin et al. 2019, sections 4.2 and 4.3: "none" is position 0.
    """
    asked = token_rows(tokenizer, [one.question for one in questions], (limit - 3) // 2)
    ids, starts, ends = with_offsets(tokenizer, [one.context for one in questions])
    packed = pack_windows(asked, ids, tokenizer.start_token_id, tokenizer.end_token_id, limit)
    wanted = np.array([_tokens_of(one, starts[i].numpy(), ends[i].numpy()) for i, one in enumerate(questions)])
    rows, firsts, begins = (packed[name].numpy() for name in ("rows", "firsts", "starts"))
    sizes = packed["token_ids"].row_lengths().numpy() - 1 - begins
    first, last = wanted[rows].T - firsts
    there = (first >= 0) & (last < sizes) & (wanted[rows, 0] >= 0)
    return {
        "token_ids": packed["token_ids"],
        "segment_ids": packed["segment_ids"],
        "begin": begins.astype("int32"),
        "start": np.where(there, begins + first, 0).astype("int32"),
        "end": np.where(there, begins + last, 0).astype("int32"),
    }


def _tokens_of(one: Question, starts: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    """First and last token that share a byte with the question's first answer; -1, -1 where it has none."""
    if not one.answers:
        return -1, -1
    text, character = one.answers[0]
    there = one.context[character:][: len(text)] if character >= 0 else ""
    if character < 0 or there != text:
        raise ValueError(
            f"An answer needs its place in the context of {len(one.context)} characters, got answer_start={character} "
            f"for {text[:60]!r} of question {one.id!r}, where {there[:60]!r} stands."
        )
    begin = len(one.context[:character].encode())
    inside = np.flatnonzero((ends > begin) & (starts < begin + len(text.encode())))
    return (int(inside[0]), int(inside[-1])) if len(inside) else (-1, -1)


def _split_spans(batch: dict[str, tf.Tensor], labels: Sequence[str]) -> tuple:
    places = tf.range(tf.shape(batch["token_ids"])[1])[None]
    length = tf.reduce_sum(batch["token_ids_mask"], axis=1)[:, None]
    inputs = {**_inputs(batch), "answer_mask": (places >= batch["begin"][:, None]) & (places < length - 1)}
    targets = {"start_logits": batch["start"], "end_logits": batch["end"]}
    return inputs, targets, {name: _weights(one) for name, one in targets.items()}


# ---- Choices and pairs ---------------------------------------------------------------------------------------------


def _pair_rows(firsts: Sequence[str], seconds: Sequence[str], tokenizer: Any, limit: int) -> dict[str, Any]:
    half = (limit - 3) // 2
    return segments([token_rows(tokenizer, texts, half) for texts in (firsts, seconds)], tokenizer)


def _choice_rows(examples: Sequence[Choice], labels: Sequence[str], tokenizer: Any, limit: int) -> dict[str, Any]:
    """Each choice with its prompt, those of an example one after the other, beside how long each is."""
    texts = [(one.prompt, choice) for one in examples for choice in one.choices]
    packed = _pair_rows([a for a, _ in texts], [b for _, b in texts], tokenizer, limit)
    lengths = tf.RaggedTensor.from_row_lengths(
        tf.cast(packed["token_ids"].row_lengths(), tf.int32), [len(one.choices) for one in examples]
    )
    sums = tf.cast(tf.reduce_sum(lengths, axis=1), tf.int64)
    joined = {name: tf.RaggedTensor.from_row_lengths(part.values, sums) for name, part in packed.items()}
    return {**joined, "lengths": lengths, "label": np.array([one.label for one in examples], "int32")}


def _split_choices(batch: dict[str, tf.Tensor], labels: Sequence[str]) -> tuple:
    names = ("token_ids", "segment_ids")
    parts, mask = nested(batch, names)
    return {**dict(zip(names, parts)), "padding_mask": mask}, batch["label"], _weights(batch["label"])


def nested(batch: dict[str, tf.Tensor], names: Sequence[str]) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Parts (b, k, t) and their mask of rows whose k texts, as long as `lengths` (b, k), follow one another."""
    lengths_bk = batch["lengths"]
    starts_bk1 = tf.cumsum(lengths_bk, axis=1, exclusive=True)[:, :, None]
    places_t = tf.range(tf.reduce_max(lengths_bk))
    mask_bkt = places_t < lengths_bk[:, :, None]
    from_bkt = tf.where(mask_bkt, starts_bk1 + places_t, 0)
    return [tf.where(mask_bkt, tf.gather(batch[name], from_bkt, batch_dims=1), 0) for name in names], mask_bkt


def _couple_rows(examples: Sequence, labels: Sequence[str], tokenizer: Any, limit: int) -> dict[str, Any]:
    packed = _pair_rows([a for a, _, _ in examples], [b for _, b, _ in examples], tokenizer, limit)
    return {**packed, "label": places_of([label for *_, label in examples], labels)}


def _scored_rows(examples: Sequence, labels: Sequence[str], tokenizer: Any, limit: int) -> dict[str, Any]:
    packed = _pair_rows([a for a, _, _ in examples], [b for _, b, _ in examples], tokenizer, limit)
    return {**packed, "score": np.array([round(float(score) * MILLI) for *_, score in examples], "int32")}


def _split_labelled(batch: dict[str, tf.Tensor], labels: Sequence[str]) -> tuple:
    return _inputs(batch), batch["label"], _weights(batch["label"])


def _split_scored(batch: dict[str, tf.Tensor], labels: Sequence[str]) -> tuple:
    return _inputs(batch), shared_out(batch["score"], labels), _weights(batch["score"])


def shared_out(score: tf.Tensor, labels: Sequence[str]) -> tf.Tensor:
    """Scores (b,) in thousandths, each shared out between the two whole numbers around it, whose expectation it is.

    Tai et al. 2015, section 4.2, equation 15.
    """
    scale_c = tf.constant([float(label) for label in labels])
    score_b1 = tf.clip_by_value(tf.cast(score, tf.float32)[:, None] / MILLI, scale_c[0], scale_c[-1])
    return tf.nn.relu(1.0 - tf.abs(score_b1 - scale_c))


def _classes(backbone: Any, labels: Sequence[str]) -> keras.Model:
    return keras_seq.BERTClassifier(backbone, len(labels), backbone.dropout)


_TEXT = ("token_ids", "segment_ids")
TASKS = {
    "bert-tokens": Task(
        lambda backbone, labels: keras_seq.BERTTokenClassifier(backbone, len(labels), backbone.dropout),
        _token_rows,
        ((*_TEXT, "label", "counted"), ()),
        _split_tokens,
    ),
    "bert-spans": Task(
        lambda backbone, labels: keras_seq.BERTSpanClassifier(backbone),
        _span_rows,
        (_TEXT, ("begin", "start", "end")),
        _split_spans,
        ("start_logits", "end_logits"),
    ),
    "bert-choices": Task(
        lambda backbone, labels: keras_seq.BERTMultipleChoice(backbone, backbone.dropout),
        _choice_rows,
        ((*_TEXT, "lengths"), ("label",)),
        _split_choices,
    ),
    "bert-pairs": Task(_classes, _couple_rows, (_TEXT, ("label",)), _split_labelled),
    "bert-similarity": Task(_classes, _scored_rows, (_TEXT, ("score",)), _split_scored, graded=True),
}
