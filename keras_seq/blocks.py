"""The Transformer's blocks: attention and a feed-forward network, each within a residual connection and a norm."""

import keras

from keras_seq import backend
from keras_seq.attention import MultiHeadAttention, fresh


def activated(x, activation):
    """The activation of x, by Keras' names; "gelu" is the exact one of BERT, "gelu_approximate" GPT's."""
    if activation in ("gelu", "gelu_approximate"):
        return keras.ops.gelu(x, approximate=activation == "gelu_approximate")
    return keras.activations.get(activation)(x)


@keras.saving.register_keras_serializable("keras_seq")
class Residual(keras.layers.Layer):
    """Wires a sublayer f into its block: norm(x + dropout(f(x))), or x + dropout(f(norm(x))) if `normalize_first`.

    Vaswani et al. 2017, section 3.1 (norm last); Radford et al. 2019, section 2.3 (norm first).

    Shapes:
        x (b, t, d), f(x) (b, t, d) -> (b, t, d).

    Masks: none.

    Args:
        dropout: share dropped from f's output in training.
        normalize_first: where the norm stands.
        layer_norm_epsilon: added to the variance.

    Raises:
        ValueError: dropout outside [0, 1] (by keras.layers.Dropout).
    """

    def __init__(self, dropout=0.0, normalize_first=False, layer_norm_epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.dropout = dropout
        self.normalize_first = normalize_first
        self.layer_norm_epsilon = layer_norm_epsilon
        self.norm = keras.layers.LayerNormalization(epsilon=layer_norm_epsilon, dtype=self.dtype_policy)
        self.output_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, x_shape, output_shape=None):
        self.norm.build(x_shape)

    def enter(self, x_btd):
        """What the sublayer is given."""
        return self.norm(x_btd) if self.normalize_first else x_btd

    def call(self, x, output, training=None):
        summed_btd = x + self.output_dropout(output, training=training)
        return summed_btd if self.normalize_first else self.norm(summed_btd)

    def get_config(self):
        return {
            **super().get_config(),
            "dropout": self.dropout,
            "normalize_first": self.normalize_first,
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }


@keras.saving.register_keras_serializable("keras_seq")
class FeedForward(keras.layers.Layer):
    """Two dense layers at each position alone: activation(x W_1 + b_1) W_2 + b_2.

    Vaswani et al. 2017, section 3.3.

    Shapes:
        (b, t, d) -> (b, t, d).

    Masks: none; positions do not mix.

    Args:
        intermediate_dim: units between.
        activation: by Keras' names; "gelu" is the exact one of BERT, "gelu_approximate" GPT's.
        kernel_initializer: of both kernels.

    Raises:
        ValueError: intermediate_dim < 1.
    """

    def __init__(self, intermediate_dim, activation="relu", kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        if intermediate_dim < 1:
            raise ValueError(f"FeedForward needs intermediate_dim >= 1, got intermediate_dim={intermediate_dim!r}.")
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, x_shape):
        def dense(name, units, width):
            initializer = fresh(self.kernel_initializer)
            layer = keras.layers.Dense(units, kernel_initializer=initializer, dtype=self.dtype_policy, name=name)
            layer.build((None, None, width))
            return layer

        self.intermediate_dense = dense("intermediate", self.intermediate_dim, x_shape[-1])
        self.output_dense = dense("output", x_shape[-1], self.intermediate_dim)

    def call(self, x):
        return self.output_dense(activated(self.intermediate_dense(x), self.activation))

    def get_config(self):
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


class _Block(keras.layers.Layer):
    """The configuration that encoder and decoder blocks share; abstract."""

    rematerialize = False  # in training; set by keras_seq.enable_gradient_checkpointing

    def __init__(
        self,
        num_heads,
        intermediate_dim,
        dropout=0.0,
        activation="relu",
        normalize_first=False,
        layer_norm_epsilon=1e-5,
        kernel_initializer="glorot_uniform",
        rotary=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.activation = activation
        self.normalize_first = normalize_first
        self.layer_norm_epsilon = layer_norm_epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.rotary = keras.saving.deserialize_keras_object(rotary) if isinstance(rotary, dict) else rotary

    def _attention(self, name):
        rotary = self.rotary if name == "self_attention" else None
        arguments = (self.num_heads, self.dropout, fresh(self.kernel_initializer), rotary)
        return MultiHeadAttention(*arguments, dtype=self.dtype_policy, name=name)

    def _residual(self, name):
        arguments = (self.dropout, self.normalize_first, self.layer_norm_epsilon)
        return Residual(*arguments, dtype=self.dtype_policy, name=name)

    def _feed_forward(self):
        initializer = fresh(self.kernel_initializer)
        arguments = (self.intermediate_dim, self.activation, initializer)
        return FeedForward(*arguments, dtype=self.dtype_policy, name="feed_forward")

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout,
            "activation": self.activation,
            "normalize_first": self.normalize_first,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "rotary": None if self.rotary is None else keras.saving.serialize_keras_object(self.rotary),
        }


@keras.saving.register_keras_serializable("keras_seq")
class EncoderBlock(_Block):
    """Self-attention over all positions at once, then feed-forward: y = Residual(x, attend(x)), Residual(y, feed(y)).

    Vaswani et al. 2017, section 3.1.

    Shapes:
        x (b, t, d) -> output (b, t, d), weights (b, h, t, t).

    Masks: `allowed` (b or 1, t or 1, t) bool, True = may look.

    Args:
        num_heads: h.
        intermediate_dim: units of the feed-forward network.
        dropout: on weights and sublayer outputs, in training.
        activation: of the feed-forward network.
        normalize_first: norm before each sublayer instead of after.
        layer_norm_epsilon: added to the variance.
        kernel_initializer: of every projection.
        rotary: a RotaryEmbedding for the queries and keys of self-attention, or None.

    Raises:
        ValueError: as MultiHeadAttention and FeedForward.
    """

    def build(self, x_shape):
        self.self_attention = self._attention("self_attention")
        self.self_attention_residual = self._residual("self_attention_residual")
        self.feed_forward = self._feed_forward()
        self.feed_forward_residual = self._residual("feed_forward_residual")
        for layer in (self.self_attention, self.self_attention_residual, self.feed_forward, self.feed_forward_residual):
            layer.build(x_shape)

    def call(self, x, allowed=None, training=None):
        if training and self.rematerialize:
            return backend.rematerialized(self, lambda *tensors: self._forward(*tensors, training), x, allowed)
        return self._forward(x, allowed, training)

    def _forward(self, x, allowed, training):
        attended, weights_bhts, _ = self.self_attention(
            self.self_attention_residual.enter(x), allowed=allowed, training=training
        )
        x = self.self_attention_residual(x, attended, training=training)
        fed = self.feed_forward(self.feed_forward_residual.enter(x))
        return self.feed_forward_residual(x, fed, training=training), weights_bhts


@keras.saving.register_keras_serializable("keras_seq")
class DecoderBlock(_Block):
    """Self-attention that does not look ahead, attention over a memory if there is one, then feed-forward:
    y = Residual(x, attend(x)), z = Residual(y, attend(y, memory)), Residual(z, feed(z)).

    Vaswani et al. 2017, section 3.1; without a memory it is GPT's block (Radford et al. 2018, section 3.1). Whether
    there is a memory is settled by the first call. The same path decodes step by step: `cache` and `position` as in
    MultiHeadAttention.

    Shapes:
        x (b, t, d), memory: keys and values (b, h, s, c) from `project_memory`
        -> output (b, t, d), weights over the memory (b, h, t, s), or over itself without one (b, h, t, t), cache.

    Masks: `allowed` (b or 1, t, t) and `memory_allowed` (b, 1 or t, s) bool, True = may look.

    Args:
        num_heads: h.
        intermediate_dim: units of the feed-forward network.
        dropout: on weights and sublayer outputs, in training.
        activation: of the feed-forward network.
        normalize_first: norm before each sublayer instead of after.
        layer_norm_epsilon: added to the variance.
        kernel_initializer: of every projection.
        rotary: a RotaryEmbedding for the queries and keys of self-attention, or None.

    Raises:
        ValueError: as MultiHeadAttention and FeedForward.
    """

    def build(self, x_shape, memory_shape=None):
        names = ["self_attention", "cross_attention"] if memory_shape is not None else ["self_attention"]
        for name in names:
            setattr(self, name, self._attention(name))
            setattr(self, f"{name}_residual", self._residual(f"{name}_residual"))
            getattr(self, f"{name}_residual").build(x_shape)
        self.self_attention.build(x_shape)
        if memory_shape is not None:
            self.cross_attention.build(x_shape, memory_shape)
        self.feed_forward = self._feed_forward()
        self.feed_forward_residual = self._residual("feed_forward_residual")
        self.feed_forward.build(x_shape)
        self.feed_forward_residual.build(x_shape)

    def call(
        self, x, memory=None, allowed=None, memory_allowed=None, memory_cache=None, cache=None, position=None,
        training=None,
    ):  # fmt: skip
        arguments = (x, memory, allowed, memory_allowed)
        # A step over a cache keeps next to nothing that could be computed again.
        if training and self.rematerialize and cache is None and memory_cache is None and position is None:
            return backend.rematerialized(
                self, lambda *tensors: self._forward(*tensors, None, None, None, training), *arguments
            )
        return self._forward(*arguments, memory_cache, cache, position, training)

    def _forward(self, x, memory, allowed, memory_allowed, memory_cache, cache, position, training):
        attended, weights_bhts, cache = self.self_attention(
            self.self_attention_residual.enter(x), allowed=allowed, cache=cache, position=position, training=training
        )
        x = self.self_attention_residual(x, attended, training=training)
        if memory is not None or memory_cache is not None:
            attended, weights_bhts, _ = self.cross_attention(
                self.cross_attention_residual.enter(x),
                memory=memory,
                allowed=memory_allowed,
                cache=memory_cache,
                training=training,
            )
            x = self.cross_attention_residual(x, attended, training=training)
        fed = self.feed_forward(self.feed_forward_residual.enter(x))
        return self.feed_forward_residual(x, fed, training=training), weights_bhts, cache
