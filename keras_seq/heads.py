"""What stands on top of an encoder's hidden states: one small head a task."""

import keras
from keras import ops

from keras_seq import masks
from keras_seq.attention import HIDDEN
from keras_seq.blocks import activated


@keras.saving.register_keras_serializable("keras_seq")
class MaskedLMHead(keras.layers.Layer):
    """Logits of the hidden tokens: norm(activation(x W + b)) E^T + c, with E the encoder's own token embedding.

    Devlin et al. 2019, section 3.1, task 1.

    Shapes:
        sequence output (b, t, d), mask positions (b, p) int32 -> logits (b, p, v) float32.

    Masks: none; positions that pad (b, p) give logits that the loss must not count.

    Args:
        token_embedding: the encoder's TokenEmbedding; its table is used, not owned.
        layer_norm_epsilon: added to the variance.
        activation: by FeedForward's names.

    Raises:
        ValueError: the widths of table and sequence output differ.
    """

    def __init__(self, token_embedding, layer_norm_epsilon=1e-12, activation="gelu", **kwargs):
        super().__init__(**kwargs)
        self.token_embedding = token_embedding
        self.layer_norm_epsilon = layer_norm_epsilon
        self.activation = activation

    def build(self, sequence_output_shape, mask_positions_shape=None):
        width = sequence_output_shape[-1]
        if width != self.token_embedding.hidden_dim:
            raise ValueError(f"MaskedLMHead needs width {self.token_embedding.hidden_dim}, got {width}.")
        initializer = keras.initializers.RandomNormal(stddev=0.02)
        self.dense = keras.layers.Dense(width, kernel_initializer=initializer, dtype=self.dtype_policy, name="dense")
        self.dense.build((None, None, width))
        self.norm = keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name="norm"
        )
        self.norm.build((None, None, width))
        self.bias = self.add_weight(
            shape=(self.token_embedding.vocabulary_size,), initializer="zeros", name="bias", dtype="float32"
        )

    def call(self, sequence_output, mask_positions):
        x_bpd = ops.take_along_axis(sequence_output, ops.expand_dims(mask_positions, -1), axis=1)
        x_bpd = self.norm(activated(self.dense(x_bpd), self.activation))
        return self.token_embedding(x_bpd, reverse=True) + ops.cast(self.bias, "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "token_embedding": keras.saving.serialize_keras_object(self.token_embedding),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "activation": self.activation,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "token_embedding": keras.saving.deserialize_keras_object(config["token_embedding"])})


@keras.saving.register_keras_serializable("keras_seq")
class ClassificationHead(keras.layers.Layer):
    """Logits of the classes from one vector a text, or a token: dropout(x) W + b.

    Devlin et al. 2019, section 4.1; with two classes it is also the next-sentence head (section 3.1, task 2), and over
    every token's vector the tagger of section 5.3.

    Shapes:
        pooled output (b, d) -> logits (b, num_classes) float32; sequence output (b, t, d) -> (b, t, num_classes).

    Masks: none.

    Args:
        num_classes: number of classes.
        dropout: share of x dropped in training.

    Raises:
        ValueError: num_classes < 2.
    """

    def __init__(self, num_classes, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"ClassificationHead needs num_classes >= 2, got num_classes={num_classes!r}.")
        self.num_classes = num_classes
        self.dropout = dropout
        self.input_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, pooled_output_shape):
        initializer = keras.initializers.RandomNormal(stddev=0.02)
        self.dense = keras.layers.Dense(
            self.num_classes, kernel_initializer=initializer, dtype=self.dtype_policy, name="dense"
        )
        self.dense.build(pooled_output_shape)

    def call(self, pooled_output, training=None):
        return ops.cast(self.dense(self.input_dropout(pooled_output, training=training)), "float32")

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes, "dropout": self.dropout}


@keras.saving.register_keras_serializable("keras_seq")
class SpanHead(keras.layers.Layer):
    """How well an answer starts, and ends, at each position: s_t = x_t . S + a, e_t = x_t . E + b.

    Devlin et al. 2019, section 4.2; position 0, the classification token, is the null answer (section 4.3).

    Shapes:
        sequence output (b, t, d), answer mask (b, t) -> start logits, end logits, each (b, t) float32.

    Masks: where the answer mask is 0 no answer may start or end, and the logit is hidden; position 0 is never hidden.

    Args:
        dropout: share of x dropped in training.

    Raises:
        ValueError: dropout outside [0, 1] (by keras.layers.Dropout).
    """

    def __init__(self, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.dropout = dropout
        self.input_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, sequence_output_shape, answer_mask_shape=None):
        initializer = keras.initializers.RandomNormal(stddev=0.02)
        self.dense = keras.layers.Dense(2, kernel_initializer=initializer, dtype=self.dtype_policy, name="dense")
        self.dense.build(sequence_output_shape)

    def call(self, sequence_output, answer_mask, training=None):
        logits_bt2 = ops.cast(self.dense(self.input_dropout(sequence_output, training=training)), "float32")
        allowed_bt = ops.cast(answer_mask, "bool") | (masks.places(answer_mask) == 0)
        hidden_bt = ops.cast(ops.logical_not(allowed_bt), "float32") * HIDDEN
        return logits_bt2[:, :, 0] + hidden_bt, logits_bt2[:, :, 1] + hidden_bt

    def get_config(self):
        return {**super().get_config(), "dropout": self.dropout}


@keras.saving.register_keras_serializable("keras_seq")
class ChoiceHead(keras.layers.Layer):
    """One score for each of a row's choices: dropout(x) . V + a; a softmax over them makes probabilities.

    Devlin et al. 2019, section 4.4; Radford et al. 2018, section 3.3.

    Shapes:
        one vector a choice (b * k, d), padding mask (b, k, t) -> scores (b, k) float32.

    Masks: a choice without a real token is hidden, so that a row may have fewer choices than its companions.

    Args:
        dropout: share of x dropped in training.

    Raises:
        ValueError: dropout outside [0, 1] (by keras.layers.Dropout).
    """

    def __init__(self, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.dropout = dropout
        self.input_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, vectors_shape, padding_mask_shape=None):
        initializer = keras.initializers.RandomNormal(stddev=0.02)
        self.dense = keras.layers.Dense(1, kernel_initializer=initializer, dtype=self.dtype_policy, name="dense")
        self.dense.build(vectors_shape)

    def call(self, vectors, padding_mask, training=None):
        scores = ops.cast(self.dense(self.input_dropout(vectors, training=training)), "float32")
        real_bk = ops.any(ops.cast(padding_mask, "bool"), axis=-1)
        hidden_bk = ops.cast(ops.logical_not(real_bk), "float32") * HIDDEN
        return ops.reshape(scores, ops.shape(hidden_bk)) + hidden_bk

    def get_config(self):
        return {**super().get_config(), "dropout": self.dropout}


@keras.saving.register_keras_serializable("keras_seq")
class FlattenTexts(keras.layers.Layer):
    """(b, k, t) -> (b * k, t): the texts of each row side by side, as a model of single texts reads them."""

    def call(self, x):
        return ops.reshape(x, (-1, ops.shape(x)[-1]))

    def compute_output_shape(self, x_shape):
        return None, x_shape[-1]


@keras.saving.register_keras_serializable("keras_seq")
class UnflattenTexts(keras.layers.Layer):
    """(b * k, ...) -> (b, k, ...), the way back, with b and k from any tensor (b, k, ...)."""

    def call(self, x, like):
        rows, texts = ops.shape(like)[0], ops.shape(like)[1]
        return ops.reshape(x, (rows, texts, *ops.shape(x)[1:]))

    def compute_output_shape(self, x_shape, like_shape):
        return (*like_shape[:2], *x_shape[1:])


def best_spans(start_logits, end_logits, max_answer_length=30, num_spans=1):
    """The likeliest answers: spans i <= j < i + max_answer_length, i >= 1, with the greatest start_i + end_j.

    Devlin et al. 2019, sections 4.2 and 4.3. Only the t * max_answer_length pairs that may be answers are looked at.

    Args:
        start_logits: (b, t) float, hidden where no answer may start, as BERTSpanClassifier gives them.
        end_logits: (b, t) float.
        max_answer_length: most tokens of an answer.
        num_spans: n, how many spans a row.

    Returns:
        dict: starts, ends (b, n) int32, both inclusive, and scores (b, n) float32, best first; null_score (b,) float32:
        start_0 + end_0; null_difference (b,) float32: null_score minus the best span's. A question has no answer when
        the difference exceeds a threshold (the paper's -tau) chosen on held-out questions. A span with a hidden end,
        which is all that a row without a possible answer has, scores about -1e9 or less.

    Raises:
        ValueError: max_answer_length < 1 or num_spans < 1, or num_spans exceeds the t * max_answer_length pairs.
    """
    if max_answer_length < 1 or num_spans < 1:
        got = f"max_answer_length={max_answer_length!r}, num_spans={num_spans!r}"
        raise ValueError(f"best_spans needs max_answer_length >= 1 and num_spans >= 1, got {got}.")
    start_bt, end_bt = (ops.cast(one, "float32") for one in (start_logits, end_logits))
    length = ops.shape(start_bt)[1]
    if isinstance(length, int) and num_spans > length * max_answer_length:
        pairs = f"{length} positions with max_answer_length={max_answer_length!r}"
        raise ValueError(f"best_spans needs num_spans <= {length * max_answer_length} for {pairs}, got {num_spans!r}.")
    # For each start the ends within reach; past the text stand ends that lose against every other.
    ends_bs = ops.pad(end_bt, ((0, 0), (0, max_answer_length - 1)), constant_values=8 * HIDDEN)
    reach_tl = ops.arange(length)[:, None] + ops.arange(max_answer_length)[None]
    starts_bt = ops.where(ops.arange(length)[None] == 0, 8 * HIDDEN, start_bt)
    scores_btl = starts_bt[:, :, None] + ops.take(ends_bs, reach_tl, axis=1)
    flat_bk = ops.reshape(scores_btl, (-1, length * max_answer_length))
    scores_bn, chosen_bn = ops.top_k(flat_bk, num_spans)
    chosen_bn = ops.cast(chosen_bn, "int32")
    starts_bn = chosen_bn // max_answer_length
    null_b = start_bt[:, 0] + end_bt[:, 0]
    return {
        "starts": starts_bn,
        "ends": starts_bn + chosen_bn % max_answer_length,
        "scores": scores_bn,
        "null_score": null_b,
        "null_difference": null_b - scores_bn[:, 0],
    }
