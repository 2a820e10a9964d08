"""The decoder alone, and what it is fine-tuned with."""

import keras
from keras import ops

from keras_seq import backend, masks
from keras_seq.blocks import DecoderBlock
from keras_seq.embeddings import TokenEmbedding
from keras_seq.heads import ChoiceHead, ClassificationHead, FlattenTexts, UnflattenTexts
from keras_seq.positions import (
    PositionEmbedding,
    RotaryEmbedding,
    SinePositionEncoding,
    check_encoding,
    check_length,
)
from keras_seq.sequence_model import (
    GenerativeModel,
    GraphView,
    TaskModel,
    backbone_of,
    check_layers,
    mean_over_heads,
    token_inputs,
)

INPUTS = ("token_ids", "padding_mask")


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
        activation: of the feed-forward networks.
        layer_norm_epsilon: added to the variance in every norm.
        position_encoding: "learned", "sine" or "rotary" (Su et al. 2021, section 3.2).

    Raises:
        ValueError: sizes that do not fit, or an unknown position_encoding.
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
        activation="gelu_approximate",
        layer_norm_epsilon=1e-5,
        position_encoding="learned",
        **kwargs,
    ):
        check_layers("GPT", num_layers)
        check_encoding("GPT", position_encoding, num_heads, hidden_dim)
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.max_sequence_length = max_sequence_length
        self.normalize_first = normalize_first
        self.activation = activation
        self.layer_norm_epsilon = layer_norm_epsilon
        self.position_encoding = position_encoding
        # === Layers ===
        dtype = keras.dtype_policies.get(kwargs.get("dtype"))

        def normal():
            return keras.initializers.RandomNormal(stddev=0.02)

        self.token_embedding = TokenEmbedding(
            vocabulary_size, hidden_dim, initializer=normal(), dtype=dtype, name="token_embedding"
        )
        if position_encoding == "learned":
            self.position_embedding = PositionEmbedding(
                max_sequence_length, hidden_dim, initializer=normal(), dtype=dtype, name="position_embedding"
            )
        elif position_encoding == "sine":
            self.position_embedding = SinePositionEncoding(hidden_dim, dtype=dtype, name="position_embedding")
        self.embedding_dropout = keras.layers.Dropout(dropout, dtype=dtype, name="embedding_dropout")
        self.blocks = [
            DecoderBlock(
                num_heads,
                intermediate_dim,
                dropout=dropout,
                activation=activation,
                normalize_first=normalize_first,
                layer_norm_epsilon=layer_norm_epsilon,
                kernel_initializer=normal(),
                rotary=RotaryEmbedding(dtype=dtype) if position_encoding == "rotary" else None,
                dtype=dtype,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]
        self.final_norm = keras.layers.LayerNormalization(epsilon=layer_norm_epsilon, dtype=dtype, name="final_norm")
        # === Graph ===
        inputs = token_inputs("token_ids", "padding_mask")
        hidden, weights, _ = self._forward(inputs)
        logits = self.token_embedding(hidden, reverse=True)
        super().__init__(inputs, logits, hidden, mean_over_heads(weights), **kwargs)

    @property
    def backbone(self):
        """The same graph up to the hidden states (b, t, d)."""
        return GraphView.of(self, self.input, self._views[0], "backbone")

    @property
    def packed_model(self):
        """The same layers for rows of several texts, none of which sees another; positions begin anew in each.

        One more input: segment_ids (b, t) int32, another number for each text of a row. To train; saved is the model.
        """
        inputs = token_inputs("token_ids", "padding_mask", "segment_ids")
        hidden, _, _ = self._forward(inputs)
        return GraphView.of(self, inputs, self.token_embedding(hidden, reverse=True), "packed")

    def with_vocabulary_size(self, vocabulary_size):
        """A copy with room for other tokens, such as the three of fine-tuning (Radford et al. 2018, section 3.3).

        Ids below both sizes keep their vectors, new ids get new ones; nothing else is changed. As in saving, updates of
        `keras_seq.enable_lora` are added into the copy's matrices.
        """
        copy = type(self).from_config({**self.get_config(), "vocabulary_size": vocabulary_size})
        for new, old in zip(copy._flatten_layers(), self._flatten_layers(), strict=True):
            values = {}
            old.save_own_variables(values)
            if new is copy.token_embedding:
                kept = min(vocabulary_size, self.vocabulary_size)
                both = (values["0"][:kept], new.embeddings[kept:])
                values["0"] = ops.concatenate([ops.convert_to_tensor(one) for one in both])
            new.load_own_variables(values)
        return copy

    def _embed(self, token_ids, positions):
        x = self.token_embedding(token_ids)
        if self.position_encoding != "rotary":
            x = x + self.position_embedding(positions)
        return self.embedding_dropout(x)

    def _finish(self, x):
        return self.final_norm(x) if self.normalize_first else x

    def _forward(self, inputs):
        """All positions at once: hidden states, the last block's weights, and each block's keys and values."""
        positions = masks.places(inputs["token_ids"])
        allowed = masks.not_later(positions)
        if "segment_ids" in inputs:
            allowed = allowed & masks.same_segment(inputs["segment_ids"])
            positions = ops.sum(ops.cast(allowed, "int32"), axis=2) - 1  # as many as went before in the segment
        allowed = allowed & masks.real(inputs["padding_mask"])
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


@keras.saving.register_keras_serializable("keras_seq")
class GPTClassifier(TaskModel):
    """GPT with a classification head on the last real token, for fine-tuning with the language model as a second task.

    Radford et al. 2018, section 3.2 and section 3.3: classification and entailment, whose inputs
    `keras_seq.classification_inputs` and `entailment_inputs` make of token ids. The loss is L2 + lambda L1, with
    lambda = 0.5 in the paper: `loss_weights={"logits": 1.0, "language_model": 0.5}`, with the targets of L1 by
    `keras_seq.language_model_targets`.

    Shapes:
        token_ids, padding_mask (b, t)
        -> dict: logits (b, num_classes) float32; language_model (b, t, v) logits float32.

    Masks: 1 or True = real, padding on the right; the last real token is the extract token.

    Args:
        backbone: a GPT; its weights are shared, not copied.
        num_classes: number of classes.
        dropout: share of the extract token's hidden state dropped in training.

    Raises:
        ValueError: backbone is not a GPT, or num_classes < 2.
    """

    def __init__(self, backbone, num_classes, dropout=0.1, **kwargs):
        self.backbone = backbone_of(GPT, backbone, "GPTClassifier")
        self.num_classes = num_classes
        self.dropout = dropout
        dtype = self.backbone.dtype_policy
        self.classification_head = ClassificationHead(num_classes, dropout, dtype=dtype, name="classes")
        inputs = token_inputs(*INPUTS)
        extracted, language_model = _read(self.backbone, inputs)
        outputs = {"logits": self.classification_head(extracted), "language_model": language_model}
        super().__init__(inputs, outputs, **kwargs)


@keras.saving.register_keras_serializable("keras_seq")
class GPTSimilarityClassifier(TaskModel):
    """GPT with a classification head on two texts in both orders: their extract tokens' hidden states are added.

    Radford et al. 2018, section 3.3, "Similarity". The loss is GPTClassifier's.

    Shapes:
        token_ids, padding_mask (b, 2, t)
        -> dict: logits (b, num_classes) float32; language_model (b, 2, t, v) logits float32.

    Masks: 1 or True = real, padding on the right; the last real token is the extract token.

    Args:
        backbone: a GPT; its weights are shared, not copied.
        num_classes: number of classes.
        dropout: share of the summed hidden states dropped in training.

    Raises:
        ValueError: backbone is not a GPT, or num_classes < 2.
    """

    def __init__(self, backbone, num_classes, dropout=0.1, **kwargs):
        self.backbone = backbone_of(GPT, backbone, "GPTSimilarityClassifier")
        self.num_classes = num_classes
        self.dropout = dropout
        dtype = self.backbone.dtype_policy
        self.classification_head = ClassificationHead(num_classes, dropout, dtype=dtype, name="classes")
        inputs = token_inputs(*INPUTS, axes=2)
        extracted, language_model = _read(self.backbone, {name: FlattenTexts()(inputs[name]) for name in INPUTS})
        unflatten = UnflattenTexts(dtype="float32")
        both = ops.sum(unflatten(extracted, inputs["token_ids"]), axis=1)
        outputs = {
            "logits": self.classification_head(both),
            "language_model": unflatten(language_model, inputs["token_ids"]),
        }
        super().__init__(inputs, outputs, **kwargs)


@keras.saving.register_keras_serializable("keras_seq")
class GPTMultipleChoice(TaskModel):
    """GPT with a score for each of k texts, one an answer: which of them is right.

    Radford et al. 2018, section 3.3, "Question Answering and Commonsense Reasoning". The loss is GPTClassifier's.

    Shapes:
        token_ids, padding_mask (b, k, t)
        -> dict: logits (b, k) float32; language_model (b, k, t, v) logits float32.

    Masks: 1 or True = real, padding on the right; a choice without a real token is hidden.

    Args:
        backbone: a GPT; its weights are shared, not copied.
        dropout: share of the extract tokens' hidden states dropped in training.

    Raises:
        ValueError: backbone is not a GPT.
    """

    def __init__(self, backbone, dropout=0.1, **kwargs):
        self.backbone = backbone_of(GPT, backbone, "GPTMultipleChoice")
        self.dropout = dropout
        dtype = self.backbone.dtype_policy
        self.choice_head = ChoiceHead(dropout, dtype=dtype, name="choice")
        inputs = token_inputs(*INPUTS, axes=2)
        extracted, language_model = _read(self.backbone, {name: FlattenTexts()(inputs[name]) for name in INPUTS})
        outputs = {
            "logits": self.choice_head(extracted, inputs["padding_mask"]),
            "language_model": UnflattenTexts(dtype="float32")(language_model, inputs["token_ids"]),
        }
        super().__init__(inputs, outputs, **kwargs)


def _read(backbone, inputs):
    """The hidden state of each text's last real token (b, d), and the language model's logits (b, t, v)."""
    hidden = backbone.backbone(inputs)
    last = ops.maximum(ops.sum(ops.cast(inputs["padding_mask"], "int32"), axis=1) - 1, 0)
    extracted = ops.take_along_axis(hidden, ops.expand_dims(ops.expand_dims(last, 1), 2), axis=1)
    return ops.squeeze(extracted, 1), backbone.token_embedding(hidden, reverse=True)
