"""Attention: someone asks, something is asked, the two are compared, what may not be seen is hidden, a softmax weighs,
the values are mixed. `attend` is that sentence; the score objects are the ways to compare; `MultiHeadAttention` does it
in several heads at once, with a cache for decoding step by step.
"""

import keras
from keras import ops

from keras_seq import backend

HIDDEN = -1e9  # added to a float32 score: exp(HIDDEN - max) is exactly 0.0


def fresh(initializer):
    """An initializer for one weight more: Keras' own give the same values when they are used again."""
    return initializer.clone() if isinstance(initializer, keras.initializers.Initializer) else initializer


def masked_softmax(scores, allowed):
    """Softmax over the last axis among the allowed positions, in float32 whatever the dtype of `scores`.

    A row with nothing to see gives zeros and finite gradients, in float32, bfloat16 and float16.

    Args:
        scores: (..., t, s) float.
        allowed: bool, broadcastable to `scores`, True = may look; None: everything may be seen.

    Returns:
        (..., t, s) in the dtype of `scores`.
    """
    scores32 = ops.cast(scores, "float32")
    # Keras warns of a softmax over one place, where there is nothing to weigh.
    softmax = ops.ones_like if scores.shape[-1] == 1 else ops.softmax
    if allowed is None:
        return ops.cast(softmax(scores32), scores.dtype)
    hidden = ops.cast(ops.logical_not(allowed), "float32") * HIDDEN
    sees_something = ops.cast(ops.any(allowed, axis=-1, keepdims=True), "float32")
    return ops.cast(softmax(scores32 + hidden) * sees_something, scores.dtype)


def attend(query, keys, values, score, allowed=None, dropout=None, training=None):
    """Mix `values` by how well `keys` answer `query`: softmax(score(query, keys)) values.

    Bahdanau et al. 2015, section 3.1; Vaswani et al. 2017, section 3.2.

    Shapes:
        query (..., t, d), keys (..., s, k), values (..., s, d'), allowed broadcastable to (..., t, s)
        -> context (..., t, d'), weights (..., t, s).

    Args:
        query: who asks.
        keys: who is asked, as `score.project` left it: projected once per source.
        values: what is mixed.
        score: an object with `compare(query, keys) -> (..., t, s)`.
        allowed: bool, True = may look; None: all.
        dropout: a `keras.layers.Dropout` over the weights, or None.
        training: bool or None.
    """
    weights = masked_softmax(score.compare(query, keys), allowed)
    kept = weights if dropout is None else dropout(weights, training=training)
    return ops.matmul(kept, values), weights


@keras.saving.register_keras_serializable("keras_seq")
class DotScore(keras.layers.Layer):
    """Compares by the dot product: query . key, divided by sqrt(d) if `scaled`.

    Luong et al. 2015, section 3.1 ("dot"); scaled: Vaswani et al. 2017, section 3.2.1.

    Shapes:
        query (..., t, d), memory (..., s, d) -> scores (..., t, s).

    Masks: none; `attend` hides.

    Args:
        scaled: divide by the square root of the number of channels.

    Raises:
        ValueError: query and memory have different widths.
    """

    def __init__(self, scaled=False, **kwargs):
        super().__init__(**kwargs)
        self.scaled = scaled

    def build(self, query_shape, memory_shape):
        if query_shape[-1] != memory_shape[-1]:
            raise ValueError(
                f"DotScore needs query and memory of one width, got {query_shape[-1]} and {memory_shape[-1]}; "
                "GeneralScore and AdditiveScore learn a projection between them."
            )

    def project(self, memory):
        return memory

    def compare(self, query, keys):
        if self.scaled:
            query = query * (query.shape[-1] ** -0.5)
        return ops.matmul(query, ops.swapaxes(keys, -1, -2))

    def call(self, query, memory):
        return self.compare(query, self.project(memory))

    def get_config(self):
        return {**super().get_config(), "scaled": self.scaled}


@keras.saving.register_keras_serializable("keras_seq")
class GeneralScore(keras.layers.Layer):
    """Compares by a bilinear form: query . (W memory).

    Luong et al. 2015, section 3.1 ("general").

    Shapes:
        query (..., t, d), memory (..., s, d') -> scores (..., t, s).

    Masks: none; `attend` hides.

    Args:
        kernel_initializer: of W (d', d).

    Raises:
        ValueError: the last axis of query or memory is not known.
    """

    def __init__(self, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, query_shape, memory_shape):
        if query_shape[-1] is None or memory_shape[-1] is None:
            raise ValueError(f"GeneralScore needs known widths, got query {query_shape} and memory {memory_shape}.")
        shape = (memory_shape[-1], query_shape[-1])
        self.kernel = self.add_weight(shape=shape, initializer=self.kernel_initializer, name="kernel")

    def project(self, memory):
        return ops.matmul(memory, ops.cast(self.kernel, memory.dtype))

    def compare(self, query, keys):
        return ops.matmul(query, ops.swapaxes(keys, -1, -2))

    def call(self, query, memory):
        return self.compare(query, self.project(memory))

    def get_config(self):
        initializer = keras.initializers.serialize(self.kernel_initializer)
        return {**super().get_config(), "kernel_initializer": initializer}


@keras.saving.register_keras_serializable("keras_seq")
class AdditiveScore(keras.layers.Layer):
    """Compares by a small network: v . tanh(W query + U memory).

    Bahdanau et al. 2015, section 3.1 and appendix A.1.2; Luong et al. 2015 ("concat").

    Shapes:
        query (..., t, d), memory (..., s, d') -> scores (..., t, s).

    Masks: none; `attend` hides.

    Args:
        width: number of hidden units, the length of v.
        kernel_initializer: of W (d, width), U (d', width) and v (width,).

    Raises:
        ValueError: width < 1.
    """

    def __init__(self, width, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        if width < 1:
            raise ValueError(f"AdditiveScore needs width >= 1, got width={width!r}.")
        self.width = width
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, query_shape, memory_shape):
        def weight(name, *shape):
            return self.add_weight(shape=shape, initializer=fresh(self.kernel_initializer), name=name)

        self.query_kernel = weight("query_kernel", query_shape[-1], self.width)
        self.memory_kernel = weight("memory_kernel", memory_shape[-1], self.width)
        self.vector = weight("vector", self.width, 1)

    def project(self, memory):
        return ops.matmul(memory, ops.cast(self.memory_kernel, memory.dtype))

    def compare(self, query, keys):
        asked = ops.expand_dims(backend.by_rows(query, ops.cast(self.query_kernel, query.dtype)), -2)
        hidden = ops.tanh(asked + ops.expand_dims(keys, -3))
        return ops.squeeze(backend.by_rows(hidden, ops.cast(self.vector, hidden.dtype)), -1)

    def call(self, query, memory):
        return self.compare(query, self.project(memory))

    def get_config(self):
        initializer = keras.initializers.serialize(self.kernel_initializer)
        return {**super().get_config(), "width": self.width, "kernel_initializer": initializer}


@keras.saving.register_keras_serializable("keras_seq")
class MultiHeadAttention(keras.layers.Layer):
    """Attends in several heads at once: concat(attend(Q W_q, K W_k, V W_v) for each head) W_o.

    Vaswani et al. 2017, section 3.2.2. Called with the query alone it is self-attention, with a memory cross-attention;
    which of the two it is, is settled by its first call. One path serves the whole sequence and one step of it: given a
    `cache` and a `position`, the new keys and values are written there and everything in the cache is asked; given a
    `cache` alone, the cache is asked as it is (cross-attention, whose memory is projected once per source).

    Shapes:
        query (b, t, d), memory (b, s, d') -> output (b, t, d), weights (b, h, t, s), cache: keys and values, each
        (b, h, s, c) with c = d / h.

    Masks: `allowed` (b, t, s) bool or broadcastable to it, True = may look; None: all.

    Args:
        num_heads: h.
        dropout: share of the weights dropped in training.
        kernel_initializer: of every projection.
        rotary: a RotaryEmbedding that turns queries and keys by their positions, or None; self-attention only. A cache
            holds turned keys.

    Raises:
        ValueError: num_heads < 1, the width of the query is no multiple of num_heads, or `rotary` with a memory.
    """

    def __init__(self, num_heads, dropout=0.0, kernel_initializer="glorot_uniform", rotary=None, **kwargs):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"MultiHeadAttention needs num_heads >= 1, got num_heads={num_heads!r}.")
        self.num_heads = num_heads
        self.dropout = dropout
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.rotary = keras.saving.deserialize_keras_object(rotary) if isinstance(rotary, dict) else rotary
        self.score = DotScore(scaled=True, dtype=self.dtype_policy)
        self.weights_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, query_shape, memory_shape=None):
        width = query_shape[-1]
        if width % self.num_heads:
            raise ValueError(f"MultiHeadAttention needs a width that {self.num_heads} heads divide, got width={width}.")
        if self.rotary is not None and memory_shape is not None:
            raise ValueError(f"MultiHeadAttention with rotary needs no memory, got one of shape {memory_shape}.")

        def dense(name, units, input_width):
            layer = keras.layers.Dense(
                units, kernel_initializer=fresh(self.kernel_initializer), dtype=self.dtype_policy, name=name
            )
            layer.build((None, None, input_width))
            return layer

        # One matrix each, so that their initial spread does not depend on what is asked.
        self.query_dense = dense("query", width, width)
        memory_width = width if memory_shape is None else memory_shape[-1]
        self.key_dense = dense("key", width, memory_width)
        self.value_dense = dense("value", width, memory_width)
        self.output_dense = dense("output", width, width)

    def _split(self, x_btd):
        batch, length = ops.shape(x_btd)[0], ops.shape(x_btd)[1]
        x_bthc = ops.reshape(x_btd, (batch, length, self.num_heads, x_btd.shape[-1] // self.num_heads))
        return ops.transpose(x_bthc, (0, 2, 1, 3))

    def project(self, memory):
        """Keys and values of a memory (b, s, d'): two tensors (b, h, s, c)."""
        return self._split(self.key_dense(memory)), self._split(self.value_dense(memory))

    def _turn(self, x_bhtc, position):
        """By where each row stands, or by 0, 1, 2, ..."""
        if self.rotary is None:
            return x_bhtc
        places = ops.arange(ops.shape(x_bhtc)[2])[None] if position is None else position[:, None]
        return self.rotary(x_bhtc, places)

    def call(self, query, memory=None, allowed=None, cache=None, position=None, training=None):
        if cache is None or position is not None:
            keys_bhtc, values_bhtc = self.project(query if memory is None else memory)
            new = self._turn(keys_bhtc, position), values_bhtc
            if cache is not None:
                new = tuple(backend.write_at(old, position, one) for old, one in zip(cache, new))
            cache = new
        keys_bhsc, values_bhsc = cache
        query_bhtc = self._turn(self._split(self.query_dense(query)), position)
        allowed_bhts = None if allowed is None else ops.expand_dims(allowed, -3)
        context_bhtc, weights_bhts = attend(
            query_bhtc, keys_bhsc, values_bhsc, self.score, allowed_bhts, self.weights_dropout, training
        )
        context_btd = ops.reshape(ops.transpose(context_bhtc, (0, 2, 1, 3)), ops.shape(query))
        return self.output_dense(context_btd), weights_bhts, cache

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "rotary": None if self.rotary is None else keras.saving.serialize_keras_object(self.rotary),
        }
