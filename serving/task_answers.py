"""What stands behind the signatures of a fine-tuned BERT: tags of tokens, spans of a context, choices, pairs of texts.

Content never raises. A text of which something is told by its bytes is told about as it came.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_seq import best_spans, characters
from keras_seq.packing import MAX_WINDOWS, pack_windows
from serving.task_text import BERTText, Rows

NUM_SPANS = 5
MAX_ANSWER = 30  # tokens of an answer
IMPOSSIBLE = -1e8  # scores below are those of hidden positions


def _cut(text: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
    """The bytes from start to end of each row's text (b, k), as UTF-8."""
    text_bk = tf.broadcast_to(text[:, None], tf.shape(starts))
    pieces = tf.strings.substr(text_bk, starts, ends - starts)
    return tf.reshape(characters.replace_invalid(tf.reshape(pieces, [-1])), tf.shape(pieces))


class TokenTagger(BERTText):
    """Answers of a BERT that labels tokens.

    A token is a word or a punctuation mark as the tokenizer has them, its label that of its first sub-word. Of a text
    that is longer than the model only the tokens that it reads are told.

    Args:
        model: a BERTTokenClassifier.
        tokenizer: of word pieces or of words.
        labels: names of the classes, as "O", "B-person", "I-person".

    Raises:
        ValueError: a tokenizer whose tokens do not say where a word begins.
    """

    kind = "token_classifier"
    labelled = True

    def __init__(self, model: Any, tokenizer: Any, labels: list[str]):
        if tokenizer.kind not in ("wordpiece", "word"):
            raise ValueError(f"BERTTokenClassifier needs a tokenizer of word pieces or words, got {tokenizer.kind!r}.")
        self.model, self.tokenizer, self.labels = model, tokenizer, labels
        self.limit = model.backbone.max_sequence_length
        tokens = (tokenizer.id_to_token(i) for i in range(tokenizer.vocabulary_size))
        self.begins_v = np.array([tokenizer.kind == "word" or not token.startswith("##") for token in tokens])

    def tag(self, text: tf.Tensor) -> tuple:
        """Tokens, their labels, and their first and next byte in the text, each (b, t)."""
        all_ids, all_starts, all_ends = self.tokenizer.tokenize_with_offsets(text)
        ids = all_ids[:, : self.limit - 2]
        inputs, _ = self._inputs(ids)
        best_bt = tf.argmax(self.model(inputs, training=False), axis=-1, output_type=tf.int32)[:, 1:-1]
        best = tf.RaggedTensor.from_tensor(best_bt, lengths=ids.row_lengths())
        # A row's first sub-word begins a word, whatever it is.
        places = tf.ragged.range(all_ids.row_lengths())
        begins = (places.values == 0) | tf.gather(tf.constant(self.begins_v), all_ids.values)
        last = tf.concat([begins, [True]], 0)[1:]  # before what begins, the next row's first too
        begins = all_ids.with_values(begins)
        labels = Rows(tf.ragged.boolean_mask(best, begins[:, : self.limit - 2]))
        # A word that the model reads the beginning of is told whole.
        read = begins.with_values(begins.values & (places.values < self.limit - 2))
        starts = Rows(tf.ragged.boolean_mask(all_starts, read))
        ends = tf.ragged.boolean_mask(all_ends, begins.with_values(last))
        words = tf.ragged.range(ends.row_lengths())
        told = words.values < tf.gather(tf.cast(labels.lengths, words.dtype), words.value_rowids())
        ends = Rows(tf.ragged.boolean_mask(ends, words.with_values(told)))
        tokens_bt = _cut(text, starts.ids, ends.ids)
        labels_bt = tf.where(labels.mask, tf.gather(tf.constant(self.labels), labels.ids), "")
        return tokens_bt, labels_bt, starts.ids, ends.ids


class SpanFinder(BERTText):
    """Answers of a BERT that finds the answer to a question in a context.

    A context that is longer than the model is read in up to 32 windows that overlap by half; a question is cut to half
    a window. A span's score is how much better it is than the null answer of its window, in nats (Devlin et al. 2019,
    section 4.3), so that scores of different windows can be compared.

    Args:
        model: a BERTSpanClassifier.
        tokenizer: the one it was trained with.
    """

    kind = "span_finder"

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self.limit = model.backbone.max_sequence_length

    def _spans(self, question: tf.Tensor, context: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """First and last byte and score of the best spans (b, 5), best first; without a span 0, 0, IMPOSSIBLE."""
        tokenizer = self.tokenizer
        ids, starts, ends = tokenizer.tokenize_with_offsets(context)
        asked = tokenizer.tokenize(question)[:, : (self.limit - 3) // 2]
        packed = pack_windows(
            asked, ids, tokenizer.start_token_id, tokenizer.end_token_id, self.limit, max_windows=MAX_WINDOWS
        )
        rows = Rows(packed["token_ids"])
        places = tf.range(tf.shape(rows.ids)[1])[None]
        begins_w1 = tf.cast(packed["starts"], tf.int32)[:, None]
        inputs = {
            "token_ids": rows.ids,
            "segment_ids": Rows(packed["segment_ids"]).ids,
            "padding_mask": rows.mask,
            "answer_mask": (places >= begins_w1) & (places < rows.lengths[:, None] - 1),
        }
        logits = self.model(inputs, training=False)
        found = best_spans(logits["start_logits"], logits["end_logits"], MAX_ANSWER, NUM_SPANS)
        shift_w1 = tf.cast(packed["firsts"], tf.int32)[:, None] - begins_w1
        scores_wn = found["scores"] - found["null_score"][:, None]
        there_wn = found["scores"] > IMPOSSIBLE
        firsts_wn, lasts_wn = (tf.where(there_wn, found[side] + shift_w1, 0) for side in ("starts", "ends"))
        scores_wn = tf.where(there_wn, scores_wn, IMPOSSIBLE)
        count = tf.shape(ids.row_lengths())[0]
        merged = _merged(packed["rows"], packed["numbers"], count, firsts_wn, lasts_wn, scores_wn)
        first_bn, last_bn, scores_bn = merged
        there_bn = scores_bn > IMPOSSIBLE
        starts_bt, ends_bt = Rows(starts).ids, Rows(ends).ids
        first_bn = tf.where(there_bn, tf.gather(starts_bt, first_bn, batch_dims=1), 0)
        return first_bn, tf.where(there_bn, tf.gather(ends_bt, last_bn, batch_dims=1), 0), scores_bn

    def answer(self, question: tf.Tensor, context: tf.Tensor) -> tuple:
        """The best answer, its first and next byte in the context and its score; "" where no answer scores more."""
        starts_bn, ends_bn, scores_bn = self._spans(question, context)
        none_b1 = scores_bn[:, :1] <= 0
        starts_b1, ends_b1 = (tf.where(none_b1, 0, one[:, :1]) for one in (starts_bn, ends_bn))
        scores_b = tf.where(scores_bn > IMPOSSIBLE, scores_bn, 0.0)[:, 0]
        return _cut(context, starts_b1, ends_b1)[:, 0], starts_b1[:, 0], ends_b1[:, 0], scores_b

    def spans(self, question: tf.Tensor, context: tf.Tensor) -> tuple:
        """The best spans (b, 5), best first, whether or not no answer scores more; where there are fewer, "" and 0."""
        starts_bn, ends_bn, scores_bn = self._spans(question, context)
        return _cut(context, starts_bn, ends_bn), starts_bn, ends_bn, tf.where(scores_bn > IMPOSSIBLE, scores_bn, 0.0)


def _merged(rows: tf.Tensor, numbers: tf.Tensor, count: tf.Tensor, *spans_wn: tf.Tensor) -> list[tf.Tensor]:
    """The best spans of all windows of each row: firsts, lasts, scores (b, 5); each span once."""
    width = tf.cast(tf.reduce_max(tf.concat([numbers, [0]], 0)) + 1, tf.int32)
    place = tf.stack([tf.cast(rows, tf.int32), tf.cast(numbers, tf.int32)], axis=1)

    def by_row(one_wn: tf.Tensor, empty: Any) -> tf.Tensor:
        all_bmn = tf.fill([count, width, NUM_SPANS], tf.cast(empty, one_wn.dtype))
        return tf.reshape(tf.tensor_scatter_nd_update(all_bmn, place, one_wn), [count, width * NUM_SPANS])

    firsts, lasts, scores = (by_row(one, empty) for one, empty in zip(spans_wn, (0, 0, IMPOSSIBLE)))
    scores, order = tf.math.top_k(scores, width * NUM_SPANS)
    firsts, lasts = (tf.gather(one, order, batch_dims=1) for one in (firsts, lasts))
    same = (firsts[:, :, None] == firsts[:, None, :]) & (lasts[:, :, None] == lasts[:, None, :])
    earlier = tf.range(tf.shape(scores)[1])[None, None, :] < tf.range(tf.shape(scores)[1])[None, :, None]
    scores, order = tf.math.top_k(tf.where(tf.reduce_any(same & earlier, axis=2), IMPOSSIBLE, scores), NUM_SPANS)
    return [*(tf.gather(one, order, batch_dims=1) for one in (firsts, lasts)), scores]


class ChoicePicker(BERTText):
    """Answers of a BERT that chooses among several continuations of a prompt; an empty string is no choice.

    Args:
        model: a BERTMultipleChoice.
        tokenizer: the one it was trained with.
    """

    kind = "choice_picker"

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self.limit = model.backbone.max_sequence_length

    def choose(self, prompt: tf.Tensor, choices: tf.Tensor) -> tuple:
        """The likeliest choice, and the probabilities (b, n) of all; without a choice "" and 0.0."""
        wanted = tf.shape(choices)[1]
        choices = tf.pad(choices, [[0, 0], [0, tf.maximum(1 - wanted, 0)]], constant_values="")
        shape = tf.shape(choices)
        inputs, _ = self._pair(tf.repeat(prompt, shape[1]), tf.reshape(choices, [-1]))
        real_bn = choices != ""
        inputs["padding_mask"] &= tf.reshape(real_bn, [-1, 1])
        nested = {name: tf.reshape(one, [shape[0], shape[1], tf.shape(one)[1]]) for name, one in inputs.items()}
        logits_bn = self._logits(nested)
        probabilities_bn = tf.where(real_bn, tf.nn.softmax(logits_bn), 0.0)
        chosen = tf.gather(choices, tf.argmax(logits_bn, axis=-1), batch_dims=1)
        return chosen, probabilities_bn[:, :wanted]


class PairClassifier(BERTText):
    """Answers of a BERT that classifies two texts together.

    Args:
        model: a BERTClassifier.
        tokenizer: the one it was trained with.
        labels: names of the classes.
    """

    kind = "pair_classifier"
    labelled = True

    def __init__(self, model: Any, tokenizer: Any, labels: list[str]):
        self.model, self.tokenizer, self.labels = model, tokenizer, labels
        self.limit = model.backbone.max_sequence_length

    def _probabilities(self, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(self._logits(self._pair(first, second)[0]))

    def classify(self, first: tf.Tensor, second: tf.Tensor) -> tuple:
        """The likeliest label."""
        return (tf.gather(tf.constant(self.labels), tf.argmax(self._probabilities(first, second), axis=-1)),)

    def probabilities(self, first: tf.Tensor, second: tf.Tensor) -> tuple:
        """All labels and their probabilities (b, classes)."""
        probabilities_bc = self._probabilities(first, second)
        return tf.tile(tf.constant(self.labels)[None], [tf.shape(probabilities_bc)[0], 1]), probabilities_bc


class PairScorer(PairClassifier):
    """Answers of a BERT whose classes are the whole numbers of a scale: the score is their expectation.

    Tai et al. 2015, section 4.2.

    Args:
        model: a BERTClassifier.
        tokenizer: the one it was trained with.
        labels: the scale's numbers.

    Raises:
        ValueError: a label that is no number.
    """

    kind = "pair_scorer"

    def __init__(self, model: Any, tokenizer: Any, labels: list[str]):
        super().__init__(model, tokenizer, labels)
        try:
            self.scale_c = np.array([float(label) for label in labels], "float32")
        except ValueError as error:
            raise ValueError(f"A pair_scorer needs labels that are numbers, got {labels!r}.") from error

    def similarity(self, first: tf.Tensor, second: tf.Tensor) -> tuple:
        """The expected number of the scale."""
        return (tf.linalg.matvec(self._probabilities(first, second), tf.constant(self.scale_c)),)
