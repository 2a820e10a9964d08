"""Two recurrent networks: with one context vector for the whole sentence, and with attention."""

import keras
from keras import ops

from keras_seq.attention import AdditiveScore
from keras_seq.embeddings import TokenEmbedding
from keras_seq.recurrent import RecurrentDecoder, RecurrentEncoder
from keras_seq.sequence_model import GenerativeModel, token_inputs

CONTEXTS = ("initial_state", "every_step")


class _RecurrentTranslator(GenerativeModel):
    """Encoder, decoder and readout of both models, and their doors; abstract."""

    def _assemble(self, score, feed_context, input_feeding=False, go_backwards=False, **kwargs):
        # === Layers ===
        dtype = keras.dtype_policies.get(kwargs.get("dtype"))
        embedding_dim = self.embedding_dim or self.hidden_dim

        def embedding(size, name):
            # A narrow start (Keras' 0.05) costs the built-in corpus a third more steps to the same exact translations.
            initializer = keras.initializers.RandomNormal(stddev=0.3)
            return TokenEmbedding(size, embedding_dim, initializer=initializer, dtype=dtype, name=name)

        self.source_embedding = embedding(self.source_vocabulary_size, "source_embedding")
        self.target_embedding = embedding(self.target_vocabulary_size, "target_embedding")
        stack = {"num_layers": self.num_layers, "cell": self.cell, "dropout": self.dropout, "dtype": dtype}
        ways = {"bidirectional": self.bidirectional, "go_backwards": go_backwards}
        self.encoder = RecurrentEncoder(self.hidden_dim, name="encoder", **ways, **stack)
        feeding = {"feed_context": feed_context, "input_feeding": input_feeding, "go_backwards": go_backwards}
        self.decoder = RecurrentDecoder(self.hidden_dim, score=score, name="decoder", **feeding, **stack)
        self.feed_context = feed_context
        if feed_context:
            self.readout = keras.layers.Dense(self.hidden_dim, "tanh", dtype=dtype, name="readout")
        self.readout_dropout = keras.layers.Dropout(self.dropout, dtype=dtype, name="readout_dropout")
        self.logits = keras.layers.Dense(self.target_vocabulary_size, dtype=dtype, name="logits")
        # === Graph ===
        inputs = token_inputs("encoder_token_ids", "encoder_padding_mask", "decoder_token_ids", "decoder_padding_mask")
        padding = inputs["encoder_padding_mask"]
        outputs, states = self.encoder(self.source_embedding(inputs["encoder_token_ids"]), padding)
        embedded = self.target_embedding(inputs["decoder_token_ids"])
        decoded, contexts, attention = self.decoder(embedded, outputs, padding, states)
        hidden = self._read(decoded, contexts, embedded)
        logits = ops.cast(self.logits(hidden), "float32")
        GenerativeModel.__init__(self, inputs, logits, hidden, ops.cast(attention, "float32"), **kwargs)

    def _read(self, decoded, contexts, embedded):
        """What the logits are computed from: the decoder's output alone, or state, context and token (Bahdanau et al.
        2015, appendix A.2.2)."""
        if self.feed_context:
            decoded = self.readout(ops.concatenate([decoded, contexts, embedded], axis=-1))
        return self.readout_dropout(decoded)

    def start(self, inputs, length):
        """See GenerativeModel.start; a recurrent decoder keeps no positions, so any `length` will do."""
        padding = ops.cast(inputs["encoder_padding_mask"], "bool")
        outputs, states = self.encoder(self.source_embedding(inputs["encoder_token_ids"]), padding)
        memory, states = self.decoder.remember(outputs, padding, states)
        return {"memory": memory, "states": states}

    def step(self, token_ids, state):
        """See GenerativeModel.step."""
        embedded = self.target_embedding(token_ids)
        projected = self.decoder.project(embedded)
        states, (decoded, context, weights) = self.decoder.step(projected, state["states"], state["memory"])
        logits = ops.cast(self.logits(self._read(decoded, context, embedded)), "float32")
        return logits, {"memory": state["memory"], "states": states}, ops.cast(weights, "float32")


@keras.saving.register_keras_serializable("keras_seq")
class Seq2Seq(_RecurrentTranslator):
    """Two recurrent networks with one context vector between them.

    `context="initial_state"`: the encoder's last states start the decoder, and nothing else tells it of the source
    (Sutskever et al. 2014, section 2); `"every_step"`: its last output is also given to every step and to the readout
    (Cho et al. 2014, section 2.1).

    Shapes:
        encoder_token_ids, encoder_padding_mask (b, s), decoder_token_ids, decoder_padding_mask (b, t)
        -> logits (b, t, v) float32.

    Masks: 1 or True = real, padding on the right.

    Args:
        source_vocabulary_size: number of source tokens.
        target_vocabulary_size: v, number of target tokens.
        hidden_dim: units of each recurrent layer.
        embedding_dim: width of the token vectors; None: hidden_dim.
        num_layers: recurrent layers on top of each other, in encoder and decoder each.
        cell: "lstm" or "gru".
        context: "initial_state" or "every_step".
        bidirectional: let the encoder read from both ends.
        dropout: share dropped from the inputs of each layer and of the logits.
        go_backwards: let the encoder read from the last word to the first, so that the beginnings of source and target
            are close (Sutskever et al. 2014, section 3.3).

    Raises:
        ValueError: an unknown context or cell, a size < 1.
    """

    def __init__(
        self,
        source_vocabulary_size,
        target_vocabulary_size,
        hidden_dim,
        embedding_dim=None,
        num_layers=1,
        cell="lstm",
        context="initial_state",
        bidirectional=False,
        dropout=0.0,
        go_backwards=False,
        **kwargs,
    ):
        if context not in CONTEXTS:
            raise ValueError(f"Seq2Seq needs context in {CONTEXTS}, got context={context!r}.")
        self.source_vocabulary_size = source_vocabulary_size
        self.target_vocabulary_size = target_vocabulary_size
        self.hidden_dim = hidden_dim
        self.embedding_dim = embedding_dim
        self.num_layers = num_layers
        self.cell = cell
        self.context = context
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.go_backwards = go_backwards
        self._assemble(score=None, feed_context=context == "every_step", go_backwards=go_backwards, **kwargs)


@keras.saving.register_keras_serializable("keras_seq")
class AttentionSeq2Seq(_RecurrentTranslator):
    """Two recurrent networks; before each step the decoder asks every encoder output.

    Bahdanau et al. 2015, section 3, with any of the scores of Luong et al. 2015, section 3.1; with `input_feeding` the
    decoder of Luong et al. 2015, section 3.3: it asks after each step, and what it makes of state and context gives the
    logits and enters the next step.

    Shapes:
        encoder_token_ids, encoder_padding_mask (b, s), decoder_token_ids, decoder_padding_mask (b, t)
        -> logits (b, t, v) float32.

    Masks: 1 or True = real, padding on the right.

    Args:
        source_vocabulary_size: number of source tokens.
        target_vocabulary_size: v, number of target tokens.
        hidden_dim: units of each recurrent layer (and direction).
        embedding_dim: width of the token vectors; None: hidden_dim.
        num_layers: recurrent layers on top of each other, in encoder and decoder each.
        cell: "lstm" or "gru".
        score: DotScore(), GeneralScore() or AdditiveScore(width); None: AdditiveScore(hidden_dim).
        bidirectional: let the encoder read from both ends.
        dropout: share dropped from the inputs of each layer and of the logits.
        input_feeding: ask after the step and feed the answer to the next, instead of asking before the step.

    Raises:
        ValueError: an unknown cell, a size < 1, or DotScore between unequal widths.
    """

    def __init__(
        self,
        source_vocabulary_size,
        target_vocabulary_size,
        hidden_dim,
        embedding_dim=None,
        num_layers=1,
        cell="lstm",
        score=None,
        bidirectional=True,
        dropout=0.0,
        input_feeding=False,
        **kwargs,
    ):
        self.source_vocabulary_size = source_vocabulary_size
        self.target_vocabulary_size = target_vocabulary_size
        self.hidden_dim = hidden_dim
        self.embedding_dim = embedding_dim
        self.num_layers = num_layers
        self.cell = cell
        if isinstance(score, dict):
            score = keras.saving.deserialize_keras_object(score)
        # A score holds weights: each model gets one of its own, however often the caller passes the same object.
        self.score = AdditiveScore(hidden_dim) if score is None else type(score).from_config(score.get_config())
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.input_feeding = input_feeding
        self._assemble(score=self.score, feed_context=not input_feeding, input_feeding=input_feeding, **kwargs)
