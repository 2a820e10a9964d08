"""The encoder alone, what it is pre-trained with, and what it is fine-tuned with."""

import keras

from keras_seq import masks
from keras_seq.blocks import EncoderBlock
from keras_seq.embeddings import TokenEmbedding
from keras_seq.heads import ChoiceHead, ClassificationHead, FlattenTexts, MaskedLMHead, SpanHead
from keras_seq.positions import PositionEmbedding
from keras_seq.sequence_model import SequenceModel, TaskModel, backbone_of, check_layers, mean_over_heads, token_inputs

INPUTS = ("token_ids", "segment_ids", "padding_mask")


@keras.saving.register_keras_serializable("keras_seq")
class BERT(SequenceModel):
    """The Transformer's encoder alone: every position sees every real position.

    Devlin et al. 2019, section 3.

    Shapes:
        token_ids, segment_ids, padding_mask (b, t)
        -> dict: sequence_output (b, t, d); pooled_output (b, d), a dense tanh of the first position.

    Masks: 1 or True = real, padding on the right.

    Args:
        vocabulary_size: v.
        num_layers: blocks.
        num_heads: heads of each attention.
        hidden_dim: d, a multiple of num_heads.
        intermediate_dim: units of the feed-forward networks.
        dropout: on embeddings, attention weights and sublayer outputs.
        max_sequence_length: greatest number of positions.
        num_segments: kinds of segment ids.
        activation: of the feed-forward networks and of the masked LM head; "gelu" is the exact one.
        layer_norm_epsilon: added to the variance in every norm.

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
        max_sequence_length=512,
        num_segments=2,
        activation="gelu",
        layer_norm_epsilon=1e-12,
        **kwargs,
    ):
        check_layers("BERT", num_layers)
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.max_sequence_length = max_sequence_length
        self.num_segments = num_segments
        self.activation = activation
        self.layer_norm_epsilon = layer_norm_epsilon
        # === Layers ===
        dtype = keras.dtype_policies.get(kwargs.get("dtype"))

        def normal():
            return keras.initializers.RandomNormal(stddev=0.02)

        def table(size, name):
            return TokenEmbedding(size, hidden_dim, initializer=normal(), dtype=dtype, name=name)

        self.token_embedding = table(vocabulary_size, "token_embedding")
        self.segment_embedding = table(num_segments, "segment_embedding")
        self.position_embedding = PositionEmbedding(
            max_sequence_length, hidden_dim, initializer=normal(), dtype=dtype, name="position_embedding"
        )
        self.embedding_norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=dtype, name="embedding_norm"
        )
        self.embedding_dropout = keras.layers.Dropout(dropout, dtype=dtype, name="embedding_dropout")
        self.blocks = [
            EncoderBlock(
                num_heads,
                intermediate_dim,
                dropout=dropout,
                activation=activation,
                layer_norm_epsilon=layer_norm_epsilon,
                kernel_initializer=normal(),
                dtype=dtype,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]
        self.pooler = keras.layers.Dense(hidden_dim, "tanh", kernel_initializer=normal(), dtype=dtype, name="pooler")
        # === Graph ===
        inputs = token_inputs(*INPUTS)
        x = self.token_embedding(inputs["token_ids"]) + self.segment_embedding(inputs["segment_ids"])
        x = x + self.position_embedding(masks.places(inputs["token_ids"]))
        x = self.embedding_dropout(self.embedding_norm(x))
        for block in self.blocks:
            x, weights = block(x, allowed=masks.real(inputs["padding_mask"]))
        outputs = {"sequence_output": x, "pooled_output": self.pooler(x[:, 0])}
        super().__init__(inputs, outputs, x, mean_over_heads(weights), **kwargs)


@keras.saving.register_keras_serializable("keras_seq")
class BERTForPreTraining(TaskModel):
    """BERT with its two pre-training heads: masked LM and next sentence.

    Devlin et al. 2019, section 3.1.

    Shapes:
        token_ids, segment_ids, padding_mask (b, t), mask_positions (b, p) int32
        -> dict: masked_lm (b, p, v) logits float32; next_sentence (b, 2) logits float32, class 1: it follows.

    Masks: 1 or True = real, padding on the right; of (b, p) the loss counts what its sample weights tell.

    Args:
        backbone: a BERT; its weights are shared, not copied.

    Raises:
        ValueError: backbone is not a BERT.
    """

    def __init__(self, backbone, **kwargs):
        self.backbone = backbone_of(BERT, backbone, "BERTForPreTraining")
        dtype = self.backbone.dtype_policy
        self.masked_lm_head = MaskedLMHead(
            self.backbone.token_embedding,
            self.backbone.layer_norm_epsilon,
            self.backbone.activation,
            dtype=dtype,
            name="masked_lm",
        )
        self.next_sentence_head = ClassificationHead(2, dtype=dtype, name="next_sentence")
        inputs = token_inputs(*INPUTS, "mask_positions")
        encoded = self.backbone({name: inputs[name] for name in INPUTS})
        outputs = {
            "masked_lm": self.masked_lm_head(encoded["sequence_output"], inputs["mask_positions"]),
            "next_sentence": self.next_sentence_head(encoded["pooled_output"]),
        }
        super().__init__(inputs, outputs, **kwargs)


@keras.saving.register_keras_serializable("keras_seq")
class BERTClassifier(TaskModel):
    """BERT with a classification head, for fine-tuning.

    Devlin et al. 2019, section 4.1.

    Shapes:
        token_ids, segment_ids, padding_mask (b, t) -> logits (b, num_classes) float32.

    Masks: 1 or True = real, padding on the right.

    Args:
        backbone: a BERT; its weights are shared, not copied.
        num_classes: number of classes.
        dropout: share of the pooled output dropped in training.

    Raises:
        ValueError: backbone is not a BERT, or num_classes < 2.
    """

    def __init__(self, backbone, num_classes, dropout=0.1, **kwargs):
        self.backbone = backbone_of(BERT, backbone, "BERTClassifier")
        self.num_classes = num_classes
        self.dropout = dropout
        dtype = self.backbone.dtype_policy
        self.classification_head = ClassificationHead(num_classes, dropout, dtype=dtype, name="classes")
        inputs = token_inputs(*INPUTS)
        logits = self.classification_head(self.backbone(inputs)["pooled_output"])
        super().__init__(inputs, logits, **kwargs)


@keras.saving.register_keras_serializable("keras_seq")
class BERTTokenClassifier(TaskModel):
    """BERT with a classification head over every token, for tagging.

    Devlin et al. 2019, section 5.3.

    Shapes:
        token_ids, segment_ids, padding_mask (b, t) -> logits (b, t, num_classes) float32.

    Masks: 1 or True = real, padding on the right; the loss counts what its sample weights tell (of a word in several
    pieces the first).

    Args:
        backbone: a BERT; its weights are shared, not copied.
        num_classes: number of classes.
        dropout: share of the sequence output dropped in training.

    Raises:
        ValueError: backbone is not a BERT, or num_classes < 2.
    """

    def __init__(self, backbone, num_classes, dropout=0.1, **kwargs):
        # Not tracked as a layer: its pooler, which nothing here reads, would be a weight without a gradient.
        object.__setattr__(self, "backbone", backbone_of(BERT, backbone, "BERTTokenClassifier"))
        self.num_classes = num_classes
        self.dropout = dropout
        dtype = self.backbone.dtype_policy
        self.classification_head = ClassificationHead(num_classes, dropout, dtype=dtype, name="classes")
        inputs = token_inputs(*INPUTS)
        logits = self.classification_head(_without_pooler(self.backbone)(inputs))
        super().__init__(inputs, logits, **kwargs)


@keras.saving.register_keras_serializable("keras_seq")
class BERTSpanClassifier(TaskModel):
    """BERT with a span head: where in a passage the answer to a question starts and ends, if it is there.

    Devlin et al. 2019, section 4.2 and section 4.3. `keras_seq.best_spans` makes answers of the logits; the target of a
    question without an answer is 0 for both.

    Shapes:
        token_ids, segment_ids, padding_mask, answer_mask (b, t)
        -> dict: start_logits, end_logits (b, t) float32.

    Masks: 1 or True = real, padding on the right; answer_mask: 1 = an answer may start and end here (the passage's
    tokens); position 0 may always be chosen.

    Args:
        backbone: a BERT; its weights are shared, not copied.
        dropout: share of the sequence output dropped in training.

    Raises:
        ValueError: backbone is not a BERT.
    """

    def __init__(self, backbone, dropout=0.0, **kwargs):
        # Not tracked as a layer: its pooler, which nothing here reads, would be a weight without a gradient.
        object.__setattr__(self, "backbone", backbone_of(BERT, backbone, "BERTSpanClassifier"))
        self.dropout = dropout
        dtype = self.backbone.dtype_policy
        self.span_head = SpanHead(dropout, dtype=dtype, name="span")
        inputs = token_inputs(*INPUTS, "answer_mask")
        x = _without_pooler(self.backbone)({name: inputs[name] for name in INPUTS})
        start, end = self.span_head(x, inputs["answer_mask"])
        super().__init__(inputs, {"start_logits": start, "end_logits": end}, **kwargs)


@keras.saving.register_keras_serializable("keras_seq")
class BERTMultipleChoice(TaskModel):
    """BERT with a score for each of k texts: which of them is right.

    Devlin et al. 2019, section 4.4.

    Shapes:
        token_ids, segment_ids, padding_mask (b, k, t) -> logits (b, k) float32.

    Masks: 1 or True = real, padding on the right; a choice without a real token is hidden.

    Args:
        backbone: a BERT; its weights are shared, not copied.
        dropout: share of the pooled output dropped in training.

    Raises:
        ValueError: backbone is not a BERT.
    """

    def __init__(self, backbone, dropout=0.1, **kwargs):
        self.backbone = backbone_of(BERT, backbone, "BERTMultipleChoice")
        self.dropout = dropout
        dtype = self.backbone.dtype_policy
        self.choice_head = ChoiceHead(dropout, dtype=dtype, name="choice")
        inputs = token_inputs(*INPUTS, axes=2)
        encoded = self.backbone({name: FlattenTexts()(inputs[name]) for name in INPUTS})
        logits = self.choice_head(encoded["pooled_output"], inputs["padding_mask"])
        super().__init__(inputs, logits, **kwargs)


def _without_pooler(backbone):
    """The same graph up to the sequence output."""
    return keras.Model(backbone.input, backbone._views[0], name=f"{backbone.name}_encoder")
