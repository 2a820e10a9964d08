"""What stands on top of an encoder's hidden states: one small head a task."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_seq")
class MaskedLMHead(keras.layers.Layer):
    """Logits of the hidden tokens: norm(gelu(x W + b)) E^T + c, with E the encoder's own token embedding.

    Devlin et al. 2019, section 3.1, task 1.

    Shapes:
        sequence output (b, t, d), mask positions (b, p) int32 -> logits (b, p, v) float32.

    Masks: none; positions that pad (b, p) give logits that the loss must not count.

    Args:
        token_embedding: the encoder's TokenEmbedding; its table is used, not owned.
        layer_norm_epsilon: added to the variance.

    Raises:
        ValueError: the widths of table and sequence output differ.
    """

    def __init__(self, token_embedding, layer_norm_epsilon=1e-12, **kwargs):
        super().__init__(**kwargs)
        self.token_embedding = token_embedding
        self.layer_norm_epsilon = layer_norm_epsilon

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
        x_bpd = self.norm(ops.gelu(self.dense(x_bpd), approximate=False))
        return self.token_embedding(x_bpd, reverse=True) + ops.cast(self.bias, "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "token_embedding": keras.saving.serialize_keras_object(self.token_embedding),
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "token_embedding": keras.saving.deserialize_keras_object(config["token_embedding"])})


@keras.saving.register_keras_serializable("keras_seq")
class ClassificationHead(keras.layers.Layer):
    """Logits of the classes from one vector a text: dropout(x) W + b.

    Devlin et al. 2019, section 4.1; with two classes it is also the next-sentence head (section 3.1, task 2).

    Shapes:
        pooled output (b, d) -> logits (b, num_classes) float32.

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
