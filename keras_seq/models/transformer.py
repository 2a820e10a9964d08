"""Self-attention in encoder and decoder; the decoder never looks ahead, the encoder reads all at once."""

import keras
from keras import ops

from keras_seq import backend, masks
from keras_seq.blocks import DecoderBlock, EncoderBlock
from keras_seq.embeddings import TokenEmbedding
from keras_seq.positions import (
    PositionEmbedding,
    RotaryEmbedding,
    SinePositionEncoding,
    check_encoding,
    check_length,
)
from keras_seq.sequence_model import GenerativeModel, GraphView, check_layers, mean_over_heads, token_inputs


@keras.saving.register_keras_serializable("keras_seq")
class Transformer(GenerativeModel):
    """The Transformer: an encoder and a decoder of attention and feed-forward blocks, without recurrence.

    Vaswani et al. 2017, section 3: post-norm, sines and cosines for positions, target embedding and logits tied
    (section 3.4; the source's too with `share_embeddings`).

    Shapes:
        encoder_token_ids, encoder_padding_mask (b, s), decoder_token_ids, decoder_padding_mask (b, t)
        -> logits (b, t, v) float32.

    Masks: 1 or True = real, padding on the right.

    Args:
        source_vocabulary_size: number of source tokens.
        target_vocabulary_size: v, number of target tokens.
        num_layers: blocks, in encoder and decoder each.
        num_heads: heads of each attention.
        hidden_dim: d, a multiple of num_heads.
        intermediate_dim: units of the feed-forward networks.
        dropout: on embeddings, attention weights and sublayer outputs.
        max_sequence_length: greatest number of source, and of target, positions.
        normalize_first: norm before each sublayer (and once at the end) instead of after.
        activation: of the feed-forward networks.
        share_embeddings: one table for source and target.
        scale_embedding: multiply the token vectors by sqrt(d).
        interleave_positions: sines in the even channels and cosines in the odd; else all sines before all cosines.
        logits_bias: add a learned bias to the logits.
        position_encoding: "learned" (a table each for source and target), "sine" or "rotary" (Su et al. 2021, section
            3.2).

    Raises:
        ValueError: sizes that do not fit; an unknown position_encoding; `share_embeddings` with two vocabularies of
            different size.
    """

    def __init__(
        self,
        source_vocabulary_size,
        target_vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim,
        dropout=0.1,
        max_sequence_length=512,
        normalize_first=False,
        activation="relu",
        share_embeddings=False,
        scale_embedding=True,
        interleave_positions=True,
        logits_bias=False,
        position_encoding="sine",
        **kwargs,
    ):
        if share_embeddings and source_vocabulary_size != target_vocabulary_size:
            got = f"{source_vocabulary_size} and {target_vocabulary_size}"
            raise ValueError(f"Transformer with share_embeddings needs equal vocabulary sizes, got {got}.")
        check_layers("Transformer", num_layers)
        check_encoding("Transformer", position_encoding, num_heads, hidden_dim)
        self.source_vocabulary_size = source_vocabulary_size
        self.target_vocabulary_size = target_vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.max_sequence_length = max_sequence_length
        self.normalize_first = normalize_first
        self.activation = activation
        self.share_embeddings = share_embeddings
        self.scale_embedding = scale_embedding
        self.interleave_positions = interleave_positions
        self.logits_bias = logits_bias
        self.position_encoding = position_encoding
        # === Layers ===
        dtype = keras.dtype_policies.get(kwargs.get("dtype"))

        def embedding(size, name, bias=False):
            # Scaled by sqrt(d) on the way in, so that as logits the rows start at a spread of 1.
            initializer = keras.initializers.RandomNormal(stddev=hidden_dim**-0.5)
            return TokenEmbedding(size, hidden_dim, scale_embedding, initializer, bias, dtype=dtype, name=name)

        self.target_embedding = embedding(target_vocabulary_size, "target_embedding", logits_bias)
        self.source_embedding = (
            self.target_embedding if share_embeddings else embedding(source_vocabulary_size, "source_embedding")
        )
        self.source_positions, self.target_positions = (
            self._positions_of(one, dtype) for one in ("source_positions", "target_positions")
        )
        self.embedding_dropout = keras.layers.Dropout(dropout, dtype=dtype, name="embedding_dropout")
        rotary = RotaryEmbedding(dtype=dtype) if position_encoding == "rotary" else None
        block = {
            "dropout": dropout, "activation": activation, "normalize_first": normalize_first, "rotary": rotary,
            "dtype": dtype,
        }  # fmt: skip
        sizes = (num_heads, intermediate_dim)
        self.encoder_blocks = [EncoderBlock(*sizes, name=f"encoder_{i}", **block) for i in range(num_layers)]
        self.decoder_blocks = [DecoderBlock(*sizes, name=f"decoder_{i}", **block) for i in range(num_layers)]
        names = ("encoder_norm", "decoder_norm") if normalize_first else ()
        self.final_norms = [keras.layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name=name) for name in names]
        # === Graph ===
        inputs = token_inputs("encoder_token_ids", "encoder_padding_mask", "decoder_token_ids", "decoder_padding_mask")
        encoded = self._encode(inputs["encoder_token_ids"], inputs["encoder_padding_mask"])
        hidden, weights = self._decode(inputs, encoded)
        logits = self.target_embedding(hidden, reverse=True)
        super().__init__(inputs, logits, hidden, mean_over_heads(weights), **kwargs)

    @property
    def backbone(self):
        """The same graph up to the decoder's hidden states (b, t, d)."""
        return GraphView.of(self, self.input, self._views[0], "backbone")

    def _positions_of(self, name, dtype):
        """What is added to the token vectors, or None."""
        if self.position_encoding == "rotary":
            return None
        if self.position_encoding == "sine":
            return SinePositionEncoding(self.hidden_dim, interleave=self.interleave_positions, dtype=dtype, name=name)
        initializer = keras.initializers.RandomNormal(stddev=0.02)
        return PositionEmbedding(self.max_sequence_length, self.hidden_dim, initializer, dtype=dtype, name=name)

    def _embed(self, embedding, added, token_ids, positions):
        x = embedding(token_ids)
        return self.embedding_dropout(x if added is None else x + added(positions))

    def _finish(self, x, which):
        return self.final_norms[which](x) if self.normalize_first else x

    def _encode(self, token_ids, padding_mask):
        x = self._embed(self.source_embedding, self.source_positions, token_ids, masks.places(token_ids))
        allowed = masks.real(padding_mask)
        for block in self.encoder_blocks:
            x, _ = block(x, allowed=allowed)
        return self._finish(x, 0)

    def _decode(self, inputs, encoded):
        """All target positions at once: hidden states and the last block's weights over the source."""
        token_ids = inputs["decoder_token_ids"]
        positions = masks.places(token_ids)
        allowed = masks.not_later(positions) & masks.real(inputs["decoder_padding_mask"])
        memory_allowed = masks.real(inputs["encoder_padding_mask"])
        x = self._embed(self.target_embedding, self.target_positions, token_ids, positions)
        for block in self.decoder_blocks:
            x, weights, _ = block(x, memory=encoded, allowed=allowed, memory_allowed=memory_allowed)
        return self._finish(x, 1), weights

    def start(self, inputs, length):
        """See GenerativeModel.start; the keys and values of the source are projected here, once."""
        check_length(self, length, self.max_sequence_length)
        padding_mask = ops.cast(inputs["encoder_padding_mask"], "bool")
        encoded = self._encode(inputs["encoder_token_ids"], padding_mask)
        batch = ops.shape(encoded)[0]
        shape = (batch, self.num_heads, length, self.hidden_dim // self.num_heads)
        return {
            "memory": {
                "padding_mask": padding_mask,
                "caches": tuple(block.cross_attention.project(encoded) for block in self.decoder_blocks),
            },
            "caches": tuple(
                (backend.empty_cache(shape, encoded.dtype), backend.empty_cache(shape, encoded.dtype))
                for _ in self.decoder_blocks
            ),
            "position": ops.zeros((batch,), "int32"),
        }

    def step(self, token_ids, state):
        """See GenerativeModel.step."""
        position, memory = state["position"], state["memory"]
        x = self._embed(self.target_embedding, self.target_positions, token_ids[:, None], position[:, None])
        allowed = masks.up_to(position, ops.shape(state["caches"][0][0])[2])
        memory_allowed = masks.real(memory["padding_mask"])
        caches = []
        for block, memory_cache, cache in zip(self.decoder_blocks, memory["caches"], state["caches"]):
            x, weights, cache = block(
                x, allowed=allowed, memory_allowed=memory_allowed, memory_cache=memory_cache, cache=cache,
                position=position,
            )  # fmt: skip
            caches.append(cache)
        logits = self.target_embedding(self._finish(x, 1), reverse=True)
        state = {"memory": memory, "caches": tuple(caches), "position": position + 1}
        return logits[:, 0], state, mean_over_heads(weights)[:, 0]
