"""Text in, text out, inside a graph: what stands behind each signature, for the five models.

Content never raises: text that is too long is cut to the model's length, an empty one has a start or end token to see.
Nor does an option: a NaN as a length penalty is the default, as a temperature or a top_p the likeliest token each time.
"""

from typing import Any

import numpy as np
import tensorflow as tf

import keras_seq
from keras_seq import generation
from keras_seq.packing import MAX_SOURCE, pack_start_end
from serving.signatures import OPTION_DEFAULTS
from serving.task_answers import ChoicePicker, PairClassifier, PairScorer, SpanFinder, TokenTagger
from serving.task_text import BERTText, GPTBothOrders, GPTText, Rows, pair_mask

NUM_BEAMS = 4
NUM_CANDIDATES = 5


def _detokenize(tokenizer: Any, written: dict[str, tf.Tensor]) -> tf.Tensor:
    """Strings of what was written; where nothing was, -1: 0 is a token in a vocabulary without padding, as GPT-2's."""
    ids = written["token_ids"]
    mask = tf.sequence_mask(written["lengths"], tf.shape(ids)[-1])
    return tokenizer.detokenize(tf.where(mask, ids, -1))


class Translator:
    """Answers of Seq2Seq, AttentionSeq2Seq and Transformer.

    Args:
        model: one of the three.
        tokenizer: of the source.
        target_tokenizer: of the target.
        max_new_tokens: the most tokens of a translation, the end counted.
    """

    kind = "translator"

    def __init__(self, model: Any, tokenizer: Any, target_tokenizer: Any, max_new_tokens: int):
        self.model, self.tokenizer, self.target_tokenizer = model, tokenizer, target_tokenizer
        self.limit = getattr(model, "max_sequence_length", MAX_SOURCE)
        self.max_new_tokens = min(max_new_tokens, self.limit)
        self.attention_model = model.attention_model

    def _source(self, text: tf.Tensor) -> tuple[dict[str, tf.Tensor], Rows]:
        rows = Rows(
            pack_start_end(self.tokenizer.tokenize(text)[:, : self.limit - 1], None, self.tokenizer.end_token_id)
        )
        return {"encoder_token_ids": rows.ids, "encoder_padding_mask": rows.mask}, rows

    def _write(self, inputs: dict[str, tf.Tensor], sampler: Any = None, limits: tf.Tensor | None = None) -> dict:
        target = self.target_tokenizer
        return generation.decode(
            self.model, inputs, self.max_new_tokens, target.end_token_id, target.start_token_id, sampler, limits
        )

    def translate(self, text: tf.Tensor) -> tuple:
        """Greedy translations."""
        return (_detokenize(self.target_tokenizer, self._write(self._source(text)[0])),)

    def translate_beam(self, text: tf.Tensor, length_penalty: tf.Tensor, max_new_tokens: tf.Tensor) -> tuple:
        """The best translations (b, beams) and their summed log-probabilities, best first."""
        usual = OPTION_DEFAULTS["length_penalty"]
        sampler = keras_seq.BeamSampler(NUM_BEAMS, tf.where(tf.math.is_nan(length_penalty), usual, length_penalty))
        written = self._write(self._source(text)[0], sampler, max_new_tokens)
        return _detokenize(self.target_tokenizer, written), written["scores"]

    def score(self, text: tf.Tensor, translation: tf.Tensor) -> tuple:
        """Summed log-probability of a given translation, and its number of tokens, the end counted."""
        target = self.target_tokenizer
        rows = Rows(pack_start_end(target.tokenize(translation)[:, : self.limit - 1], None, target.end_token_id))
        inputs, _ = self._source(text)
        scored = generation.score_of(self.model, inputs, rows.ids, rows.mask, target.start_token_id)
        return scored["scores"], scored["lengths"]

    def explain(self, text: tf.Tensor) -> tuple:
        """Greedy translations with the tokens and, for each target token, what it looked at in the source."""
        inputs, source = self._source(text)
        written = self._write(inputs)
        longest = tf.reduce_max(tf.concat([written["lengths"], [1]], 0))
        ids_bt = written["token_ids"][:, :longest]
        mask_bt = tf.sequence_mask(written["lengths"], longest)
        started_bt = tf.concat([tf.fill([tf.shape(ids_bt)[0], 1], self.target_tokenizer.start_token_id), ids_bt], 1)
        # The same weights as step by step, once more all at once.
        attention_bts = self.attention_model(
            {**inputs, "decoder_token_ids": started_bt[:, :-1], "decoder_padding_mask": mask_bt}, training=False
        )
        source_tokens = tf.where(source.mask, self.tokenizer.ids_to_tokens(source.ids), "")
        target_tokens = tf.where(mask_bt, self.target_tokenizer.ids_to_tokens(ids_bt), "")
        translation = _detokenize(self.target_tokenizer, written)
        return translation, source_tokens, target_tokens, pair_mask(attention_bts, mask_bt)


class LanguageModel:
    """Answers of GPT. A prompt that leaves no room is cut at its beginning: a completion goes on from its end.

    Args:
        model: a GPT.
        tokenizer: with a start and an end token.
        max_new_tokens: the most tokens of a completion, the end counted; at most half the model's positions.
    """

    kind = "language_model"

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int):
        self.model, self.tokenizer = model, tokenizer
        self.limit = model.max_sequence_length
        self.max_new_tokens = max(1, min(max_new_tokens, self.limit // 2))
        self.attention_model = model.attention_model

    def _write(self, text: tf.Tensor, sampler: Any = None, limits: tf.Tensor | None = None) -> dict:
        rows = self.tokenizer.tokenize(text)[:, -(self.limit - self.max_new_tokens - 1) :]
        prompt = Rows(pack_start_end(rows, self.tokenizer.start_token_id, None))
        inputs = {"token_ids": prompt.ids, "padding_mask": prompt.mask}
        end = self.tokenizer.end_token_id
        return generation.decode(self.model, inputs, self.max_new_tokens, end, None, sampler, limits)

    def complete(self, text: tf.Tensor) -> tuple:
        """Greedy completions, without the prompt."""
        return (_detokenize(self.tokenizer, self._write(text)),)

    def sample(self, text, max_new_tokens, temperature, top_k, top_p, seed) -> tuple:
        """Drawn completions and their summed log-probability under the untempered model."""
        written = self._write(text, keras_seq.RandomSampler(temperature, top_k, top_p, seed), max_new_tokens)
        return _detokenize(self.tokenizer, written), written["scores"]

    def score(self, text: tf.Tensor) -> tuple:
        """Summed log-probability of a text, and its number of tokens, the end counted."""
        ids = self.tokenizer.tokenize(text)[:, : self.limit - 1]
        rows = Rows(pack_start_end(ids, None, self.tokenizer.end_token_id))
        # The prompt is the start token alone.
        nothing = {"token_ids": rows.ids[:, :0], "padding_mask": rows.mask[:, :0]}
        start = self.tokenizer.start_token_id
        scored = generation.score_of(self.model, nothing, rows.ids, rows.mask, start)
        return scored["scores"], scored["lengths"]

    def explain(self, text: tf.Tensor) -> tuple:
        """The tokens, start included, and what each looked at."""
        rows = Rows(
            pack_start_end(self.tokenizer.tokenize(text)[:, : self.limit - 1], self.tokenizer.start_token_id, None)
        )
        attention = self.attention_model({"token_ids": rows.ids, "padding_mask": rows.mask}, training=False)
        return tf.where(rows.mask, self.tokenizer.ids_to_tokens(rows.ids), ""), pair_mask(attention, rows.mask)


class MaskedLanguageModel(BERTText):
    """Answers of a pre-trained BERT.

    Args:
        model: a BERTForPreTraining.
        tokenizer: with a mask token.
    """

    kind = "masked_language_model"
    needs = ("start", "end", "mask")

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self.limit = model.backbone.max_sequence_length
        self.mask_token = tokenizer.id_to_token(tokenizer.mask_token_id)
        ids = ("pad", "start", "end", "unknown", "mask")
        special = {getattr(tokenizer, f"{name}_token_id") for name in ids}
        # A blank is filled with a word, never with a token that stands for none.
        self.wordless_v = np.array([i in special for i in range(tokenizer.vocabulary_size)])
        shown = (tokenizer.id_to_token(i) for i in range(tokenizer.vocabulary_size))
        self.words_v = np.array([token.removeprefix("##").encode() for token in shown], dtype=object)

    def _guesses(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Probabilities (b, p, v) at the blanks of each row, and how many there are (b,)."""
        inputs, rows = self._text(text)
        blank_bt = rows.ids == self.tokenizer.mask_token_id
        places = tf.RaggedTensor.from_row_lengths(
            tf.cast(tf.where(blank_bt)[:, 1], tf.int32), tf.reduce_sum(tf.cast(blank_bt, tf.int64), axis=1)
        )
        places_bp = Rows(places)
        logits = self.model({**inputs, "mask_positions": places_bp.ids}, training=False)["masked_lm"]
        return tf.where(tf.constant(self.wordless_v), 0.0, tf.nn.softmax(logits)), places_bp.lengths

    def fill_mask(self, text: tf.Tensor) -> tuple:
        """The text with every blank filled with its likeliest word; without a blank, the text as it came."""
        probabilities_bpv, counts_b = self._guesses(text)
        words_bp = tf.gather(tf.constant(self.words_v), tf.argmax(probabilities_bpv, axis=-1))
        pieces = tf.strings.split(text, self.mask_token)
        between_b1 = tf.cast(pieces.row_lengths(), tf.int32)[:, None] - 1
        pieces_bm = pieces.to_tensor("")
        place_m = tf.range(tf.shape(pieces_bm)[1])[None]
        # A blank beyond the model's length stays.
        known_bm = place_m < tf.minimum(counts_b[:, None], between_b1)
        width = tf.minimum(tf.shape(words_bp)[1] - 1, place_m)
        words_bm = tf.gather(words_bp, tf.tile(width, [tf.shape(words_bp)[0], 1]), batch_dims=1)
        fillers_bm = tf.where(known_bm, words_bm, tf.where(place_m < between_b1, self.mask_token, ""))
        return (tf.strings.reduce_join(pieces_bm + fillers_bm, axis=1),)

    def candidates(self, text: tf.Tensor) -> tuple:
        """The likeliest words (b, 5) for the first blank and their probabilities; without one "" and 0.0."""
        probabilities_bpv, counts_b = self._guesses(text)
        best_bk, ids_bk = tf.math.top_k(probabilities_bpv[:, 0], NUM_CANDIDATES)
        there_b1 = counts_b[:, None] > 0
        return tf.where(there_b1, tf.gather(tf.constant(self.words_v), ids_bk), ""), tf.where(there_b1, best_bk, 0.0)

    def embed(self, text: tf.Tensor) -> tuple:
        """The mean of the sequence output over real positions (b, d)."""
        inputs, rows = self._text(text)
        output_btd = tf.cast(self.model.backbone(inputs, training=False)["sequence_output"], tf.float32)
        weights_bt1 = tf.cast(rows.mask, tf.float32)[:, :, None]
        return (tf.reduce_sum(output_btd * weights_bt1, axis=1) / tf.reduce_sum(weights_bt1, axis=1),)

    def next_sentence(self, first: tf.Tensor, second: tf.Tensor) -> tuple:
        """The probability that the second text follows the first."""
        inputs, rows = self._pair(first, second)
        inputs["mask_positions"] = tf.zeros_like(rows.ids[:, :1])
        return (tf.nn.softmax(self.model(inputs, training=False)["next_sentence"])[:, 1],)


class Classifier(BERTText):
    """Answers of a fine-tuned BERT or, by GPTClassification, GPT.

    Args:
        model: a BERTClassifier or a GPTClassifier.
        tokenizer: the one it was trained with.
        labels: names of the classes.
    """

    kind = "classifier"
    labelled = True

    def __init__(self, model: Any, tokenizer: Any, labels: list[str]):
        self.model, self.tokenizer, self.labels = model, tokenizer, labels
        self.limit = model.backbone.max_sequence_length
        self.attention_model = model.attention_model

    def classify(self, text: tf.Tensor) -> tuple:
        """The likeliest label."""
        return (tf.gather(tf.constant(self.labels), tf.argmax(self._logits(self._text(text)[0]), axis=-1)),)

    def probabilities(self, text: tf.Tensor) -> tuple:
        """All labels and their probabilities (b, classes)."""
        probabilities_bc = tf.nn.softmax(self._logits(self._text(text)[0]))
        return tf.tile(tf.constant(self.labels)[None], [tf.shape(probabilities_bc)[0], 1]), probabilities_bc

    def examples(self, inputs: tf.Tensor) -> tuple:
        """`probabilities` of serialized tf.Examples with a bytes feature "text"; without it the text is empty."""
        feature = {"text": tf.io.FixedLenFeature([], tf.string, default_value="")}
        return self.probabilities(tf.io.parse_example(inputs, feature)["text"])

    def explain(self, text: tf.Tensor) -> tuple:
        """The tokens, and what each looked at."""
        inputs, rows = self._text(text)
        return self._tokens(rows), pair_mask(self.attention_model(inputs, training=False), rows.mask)


class GPTClassification(GPTText, Classifier):
    """Classifier of a GPTClassifier."""


class GPTPairClassification(GPTText, PairClassifier):
    """PairClassifier of a GPTClassifier, which reads the two in their order."""


class GPTSymmetricClassification(GPTBothOrders, PairClassifier):
    """PairClassifier of a GPTSimilarityClassifier."""


class GPTSymmetricScore(GPTBothOrders, PairScorer):
    """PairScorer of a GPTSimilarityClassifier."""


class GPTChoice(GPTText, ChoicePicker):
    """ChoicePicker of a GPTMultipleChoice."""


def answers_for(
    model: Any,
    tokenizer: Any,
    target_tokenizer: Any = None,
    labels: list[str] | None = None,
    max_new_tokens: int = 64,
    kind: str | None = None,
) -> Any:
    """The answers of a model of ours.

    Raises:
        ValueError: a model that is not ours, a kind that it is not, a tokenizer that lacks a token the model needs or
            has another number of tokens, labels that are not one a class, max_new_tokens < 1.
    """
    if max_new_tokens < 1:
        raise ValueError(f"export_model needs max_new_tokens >= 1, got max_new_tokens={max_new_tokens!r}.")
    # Each model's kinds, the first of which it is where none is named.
    kinds: dict[type, list[type]] = {
        keras_seq.Seq2Seq: [Translator],
        keras_seq.AttentionSeq2Seq: [Translator],
        keras_seq.Transformer: [Translator],
        keras_seq.GPT: [LanguageModel],
        keras_seq.BERTForPreTraining: [MaskedLanguageModel],
        keras_seq.BERTClassifier: [Classifier, PairClassifier, PairScorer],
        keras_seq.BERTTokenClassifier: [TokenTagger],
        keras_seq.BERTSpanClassifier: [SpanFinder],
        keras_seq.BERTMultipleChoice: [ChoicePicker],
        keras_seq.GPTClassifier: [GPTClassification, GPTPairClassification],
        keras_seq.GPTSimilarityClassifier: [GPTSymmetricClassification, GPTSymmetricScore],
        keras_seq.GPTMultipleChoice: [GPTChoice],
    }
    if type(model) not in kinds:
        known = ", ".join(cls.__name__ for cls in kinds)
        raise ValueError(f"export_model needs one of {known}, got {type(model).__name__}.")
    named: dict[str, Any] = {cls.kind: cls for cls in kinds[type(model)]}  # type: ignore[attr-defined]
    if kind is not None and kind not in named:
        raise ValueError(f"A {type(model).__name__} is exported as kind {' or '.join(named)}, got kind={kind!r}.")
    cls = named[kind or next(iter(named))]
    if cls is Translator:
        return _translator(model, tokenizer, target_tokenizer, max_new_tokens)
    if cls is LanguageModel:
        return _language_model(model, tokenizer, max_new_tokens)
    _fits(tokenizer, model.backbone.vocabulary_size, "tokenizer", *cls.needs, added=cls.added)
    return cls(model, tokenizer, _labels(model, labels)) if cls.labelled else cls(model, tokenizer)


def _labels(model: Any, labels: list[str] | None) -> list[str]:
    # As text: of classes that are numbers a tensor of numbers is made, which Classify refuses.
    given = range(model.num_classes) if labels is None else labels
    names = [label.decode() if isinstance(label, bytes) else str(label) for label in given]
    if len(names) != model.num_classes:
        raise ValueError(f"export_model needs {model.num_classes} labels, one a class, got {len(names)}: {names!r}.")
    return names


def _fits(tokenizer: Any, size: int, which: str, *tokens: str, added: int = 0) -> None:
    if tokenizer is None:
        raise ValueError(f"export_model needs a {which} for this model, got None.")
    if tokenizer.vocabulary_size + added != size:
        behind = f", and {added} for fine-tuning stand behind them" if added else ""
        raise ValueError(f"The model has {size} tokens where its {which} has {tokenizer.vocabulary_size}{behind}.")
    for token in tokens:
        if getattr(tokenizer, f"{token}_token_id") is None:
            raise ValueError(f"The model needs a {which} with a {token} token, which this one lacks.")


def _translator(model, tokenizer, target_tokenizer, max_new_tokens):
    target_tokenizer = tokenizer if target_tokenizer is None else target_tokenizer
    _fits(tokenizer, model.source_vocabulary_size, "tokenizer", "end")
    _fits(target_tokenizer, model.target_vocabulary_size, "target_tokenizer", "start", "end")
    return Translator(model, tokenizer, target_tokenizer, max_new_tokens)


def _language_model(model, tokenizer, max_new_tokens):
    _fits(tokenizer, model.vocabulary_size, "tokenizer", "start", "end")
    if model.max_sequence_length < 4:
        raise ValueError(f"export_model needs a GPT of 4 positions or more, got {model.max_sequence_length}.")
    return LanguageModel(model, tokenizer, max_new_tokens)
