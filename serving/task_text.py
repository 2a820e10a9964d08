"""Text as the models read it: rows of ids with their mask, and one or two texts between BERT's or GPT's tokens."""

from typing import Any

import tensorflow as tf

from keras_seq.packing import NUM_TASK_TOKENS, pack_segments, pack_task


class Rows:
    """Ragged ids as a dense (b, t) with a mask; t >= 1 even for a batch of nothing."""

    def __init__(self, rows: tf.RaggedTensor):
        self.lengths = tf.cast(rows.row_lengths(), tf.int32)
        width = tf.reduce_max(tf.concat([self.lengths, [1]], 0))
        self.ids = rows.to_tensor(0, shape=tf.stack([rows.nrows(), tf.cast(width, tf.int64)]))
        self.ids.set_shape([None, None])
        self.mask = tf.sequence_mask(self.lengths, width)


def pair_mask(attention_bts: tf.Tensor, asking_bt: tf.Tensor) -> tf.Tensor:
    """Zero attention where nobody asks: padding of floats is 0.0."""
    return attention_bts * tf.cast(asking_bt, attention_bts.dtype)[:, :, None]


class BERTText:
    """Text as BERT reads it: [CLS] text [SEP], or [CLS] first [SEP] second [SEP]; abstract."""

    needs: tuple[str, ...] = ("start", "end")  # tokens of the tokenizer
    added = 0  # tokens of the model that are none of the tokenizer's
    labelled = False  # whether its classes have names
    model: Any
    tokenizer: Any
    limit: int

    def _inputs(self, *parts: tf.RaggedTensor) -> tuple[dict[str, tf.Tensor], Rows]:
        ids, segments = pack_segments(parts, self.tokenizer.start_token_id, self.tokenizer.end_token_id)
        rows = Rows(ids)
        inputs = {"token_ids": rows.ids, "segment_ids": Rows(segments).ids, "padding_mask": rows.mask}
        return inputs, rows

    def _text(self, text: tf.Tensor) -> tuple[dict[str, tf.Tensor], Rows]:
        return self._inputs(self.tokenizer.tokenize(text)[:, : self.limit - 2])

    def _pair(self, first: tf.Tensor, second: tf.Tensor) -> tuple[dict[str, tf.Tensor], Rows]:
        """Each of two texts is cut to half of what the special tokens leave."""
        half = (self.limit - 3) // 2
        return self._inputs(*(self.tokenizer.tokenize(text)[:, :half] for text in (first, second)))

    def _logits(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Of the model's head."""
        return self.model(inputs, training=False)

    def _tokens(self, rows: Rows) -> tf.Tensor:
        """(b, t) strings; "" where there is no token."""
        return tf.where(rows.mask, self.tokenizer.ids_to_tokens(rows.ids), "")


class GPTText(BERTText):
    """Text as a fine-tuned GPT reads it: start text extract, or start first delimiter second extract; abstract."""

    needs = ()
    added = NUM_TASK_TOKENS

    def _inputs(self, *parts: tf.RaggedTensor) -> tuple[dict[str, tf.Tensor], Rows]:
        rows = Rows(pack_task(parts, self.tokenizer.vocabulary_size))
        return {"token_ids": rows.ids, "padding_mask": rows.mask}, rows

    def _logits(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        return self.model(inputs, training=False)["logits"]

    def _tokens(self, rows: Rows) -> tf.Tensor:
        size = self.tokenizer.vocabulary_size
        own = tf.gather(tf.constant(["<start>", "<delimiter>", "<extract>"]), tf.maximum(rows.ids - size, 0))
        tokens = self.tokenizer.ids_to_tokens(tf.minimum(rows.ids, size - 1))
        return tf.where(rows.mask, tf.where(rows.ids < size, tokens, own), "")


class GPTBothOrders(GPTText):
    """Two texts without an order, as a fine-tuned GPT reads them: in both; abstract."""

    def _pair(self, first: tf.Tensor, second: tf.Tensor) -> tuple[dict[str, tf.Tensor], Rows]:
        (one, rows), (other, _) = super()._pair(first, second), super()._pair(second, first)
        return {name: tf.stack([part, other[name]], axis=1) for name, part in one.items()}, rows
