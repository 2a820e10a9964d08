"""What GPT is fine-tuned on, the structure unchanged: each task's texts as one sequence between three new tokens.

Radford et al. 2018, section 3.3 and figure 1; the language model goes on learning as a second task (section 3.2).
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_seq
from keras_seq.packing import pack_task
from training.fine_tuning import LANGUAGE_MODEL, MILLI, Task, nested, shared_out
from training.pipelines import places_of, token_rows
from training.readers import Choice


def _packed(texts: Sequence[Sequence[str]], tokenizer: Any, limit: int) -> tf.RaggedTensor:
    """Texts side by side, each cut to its share of what the special tokens leave."""
    share = (limit - 1 - len(texts)) // len(texts)
    return pack_task([token_rows(tokenizer, some, share) for some in texts], tokenizer.vocabulary_size)


def _side_by_side(rows: Sequence[Sequence[tuple[str, str]]], tokenizer: Any, limit: int) -> dict[str, Any]:
    """Each row's pairs one after the other, beside how long each is."""
    pairs = [pair for row in rows for pair in row]
    packed = _packed(([a for a, _ in pairs], [b for _, b in pairs]), tokenizer, limit)
    lengths = tf.RaggedTensor.from_row_lengths(tf.cast(packed.row_lengths(), tf.int32), [len(row) for row in rows])
    sums = tf.cast(tf.reduce_sum(lengths, axis=1), tf.int64)
    return {"token_ids": tf.RaggedTensor.from_row_lengths(packed.values, sums), "lengths": lengths}


def _text_rows(examples: Sequence, labels: Sequence[str], tokenizer: Any, limit: int) -> dict[str, Any]:
    ids = _packed(([text for text, _ in examples],), tokenizer, limit)
    return {"token_ids": ids, "label": places_of([label for _, label in examples], labels)}


def _couple_rows(examples: Sequence, labels: Sequence[str], tokenizer: Any, limit: int) -> dict[str, Any]:
    ids = _packed(([a for a, _, _ in examples], [b for _, b, _ in examples]), tokenizer, limit)
    return {"token_ids": ids, "label": places_of([label for *_, label in examples], labels)}


def _choice_rows(examples: Sequence[Choice], labels: Sequence[str], tokenizer: Any, limit: int) -> dict[str, Any]:
    rows = [[(one.prompt, choice) for choice in one.choices] for one in examples]
    return {**_side_by_side(rows, tokenizer, limit), "label": np.array([one.label for one in examples], "int32")}


def _scored_rows(examples: Sequence, labels: Sequence[str], tokenizer: Any, limit: int) -> dict[str, Any]:
    """Two texts without an order are read in both."""
    rows = [[(first, second), (second, first)] for first, second, _ in examples]
    scores = np.array([round(float(score) * MILLI) for *_, score in examples], "int32")
    return {**_side_by_side(rows, tokenizer, limit), "score": scores}


def _asked(token_ids: tf.Tensor, mask: tf.Tensor, target: tf.Tensor) -> tuple:
    """Inputs, labels and weights of both tasks; the language model is asked for the next token of each real one."""
    following, weights = (
        tf.concat([one[..., 1:], tf.zeros_like(one[..., :1])], axis=-1) for one in (token_ids, tf.cast(mask, tf.int32))
    )
    weight = tf.ones(tf.shape(target)[:1])
    return (
        {"token_ids": token_ids, "padding_mask": mask},
        {"logits": target, LANGUAGE_MODEL: following},
        {"logits": weight, LANGUAGE_MODEL: tf.cast(weights, tf.float32)},
    )


def _split_flat(batch: dict[str, tf.Tensor], labels: Sequence[str]) -> tuple:
    return _asked(batch["token_ids"], tf.cast(batch["token_ids_mask"], tf.bool), batch["label"])


def _split_nested(batch: dict[str, tf.Tensor], labels: Sequence[str]) -> tuple:
    (token_ids,), mask = nested(batch, ("token_ids",))
    target = batch["label"] if "label" in batch else shared_out(batch["score"], labels)
    return _asked(token_ids, mask, target)


def _classes(backbone: Any, labels: Sequence[str]) -> keras.Model:
    return keras_seq.GPTClassifier(backbone, len(labels), backbone.dropout)


_FLAT, _NESTED = ("token_ids",), ("token_ids", "lengths")
_OUTPUTS = ("logits", LANGUAGE_MODEL)
TASKS = {
    "gpt-classify": Task(_classes, _text_rows, (_FLAT, ("label",)), _split_flat, _OUTPUTS),
    "gpt-pairs": Task(_classes, _couple_rows, (_FLAT, ("label",)), _split_flat, _OUTPUTS),
    "gpt-choices": Task(
        lambda backbone, labels: keras_seq.GPTMultipleChoice(backbone, backbone.dropout),
        _choice_rows,
        (_NESTED, ("label",)),
        _split_nested,
        _OUTPUTS,
    ),
    "gpt-similarity": Task(
        lambda backbone, labels: keras_seq.GPTSimilarityClassifier(backbone, len(labels), backbone.dropout),
        _scored_rows,
        (_NESTED, ("score",)),
        _split_nested,
        _OUTPUTS,
        graded=True,
    ),
}
