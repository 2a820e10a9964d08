"""The decoder alone."""

import keras
from keras import ops

from keras_seq import backend, masks
from keras_seq.blocks import DecoderBlock
from keras_seq.embeddings import TokenEmbedding
from keras_seq.positions import PositionEmbedding
from keras_seq.sequence_model import GenerativeModel, check_layers, check_length, mean_over_heads, token_inputs


@keras.saving.register_keras_serializable("keras_seq")
class GPT(GenerativeModel):
    """The Transformer's decoder alone, a language model: p(token | all tokens before it).

    Radford et al. 2018, section 3.1 (`normalize_first=False`); Radford et al. 2019, section 2.3 (the default). Logits
    are tied to the token embedding.

    Shapes:
        token_ids, padding_mask (b, t) -> logits (b, t, v) float32.

    Masks: 1 or True = real, padding on the right.

    Args:
        vocabulary_size: v.
        num_layers: blocks.
        num_heads: heads of each attention.
        hidden_dim: d, a multiple of num_heads.
        intermediate_dim: units of the feed-forward networks.
        dropout: on embeddings, attention weights and sublayer outputs.
        max_sequence_length: greatest number of positions.
        normalize_first: norm before each sublayer (and once at the end) instead of after.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim,
        dropout=0.1,
        max_sequence_length=1024,
        normalize_first=True,
        **kwargs,
    ):
        check_layers("GPT", num_layers)
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.max_sequence_length = max_sequence_length
        self.normalize_first = normalize_first
        # === Layers ===
        dtype = keras.dtype_policies.get(kwargs.get("dtype"))

        def normal():
            return keras.initializers.RandomNormal(stddev=0.02)

        self.token_embedding = TokenEmbedding(
            vocabulary_size, hidden_dim, initializer=normal(), dtype=dtype, name="token_embedding"
        )
        self.position_embedding = PositionEmbedding(
            max_sequence_length, hidden_dim, initializer=normal(), dtype=dtype, name="position_embedding"
        )
        self.embedding_dropout = keras.layers.Dropout(dropout, dtype=dtype, name="embedding_dropout")
        self.blocks = [
            DecoderBlock(
                num_heads,
                intermediate_dim,
                dropout=dropout,
                activation="gelu_approximate",
                normalize_first=normalize_first,
                kernel_initializer=normal(),
                dtype=dtype,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]
        self.final_norm = keras.layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name="final_norm")
        # === Graph ===
        inputs = token_inputs("token_ids", "padding_mask")
        hidden, weights, _ = self._forward(inputs)
        logits = self.token_embedding(hidden, reverse=True)
        super().__init__(inputs, logits, hidden, mean_over_heads(weights), **kwargs)

    @property
    def backbone(self):
        """The same graph up to the hidden states (b, t, d)."""
        return keras.Model(self.input, self._views[0], name=f"{self.name}_backbone")

    def _embed(self, token_ids, positions):
        return self.embedding_dropout(self.token_embedding(token_ids) + self.position_embedding(positions))

    def _finish(self, x):
        return self.final_norm(x) if self.normalize_first else x

    def _forward(self, inputs):
        """All positions at once: hidden states, the last block's weights, and each block's keys and values."""
        positions = masks.places(inputs["token_ids"])
        allowed = masks.not_later(positions) & masks.real(inputs["padding_mask"])
        x = self._embed(inputs["token_ids"], positions)
        caches = []
        for block in self.blocks:
            x, weights, cache = block(x, allowed=allowed)
            caches.append(cache)
        return self._finish(x), weights, caches

    def start(self, inputs, length):
        """See GenerativeModel.start; the prompt is read at once, its last token fed again by the first `step`."""
        check_length(self, length, self.max_sequence_length)
        _, _, caches = self._forward(inputs)
        count = ops.sum(ops.cast(inputs["padding_mask"], "int32"), axis=1)
        return {
            "caches": tuple(tuple(backend.fit_length(part, length) for part in cache) for cache in caches),
            "position": ops.maximum(count - 1, 0),
        }

    def step(self, token_ids, state):
        """See GenerativeModel.step."""
        position = state["position"]
        x = self._embed(token_ids[:, None], position[:, None])
        allowed = masks.up_to(position, ops.shape(state["caches"][0][0])[2])
        caches = []
        for block, cache in zip(self.blocks, state["caches"]):
            x, weights, cache = block(x, allowed=allowed, cache=cache, position=position)
            caches.append(cache)
        logits = self.token_embedding(self._finish(x), reverse=True)
        return logits[:, 0], {"caches": tuple(caches), "position": position + 1}, mean_over_heads(weights)[:, 0]
