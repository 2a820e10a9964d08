"""What other programs call our models and their arguments, read in both directions; their layers are in
`checkpoint_rows`. A further architecture of a family is one entry of `ARCHITECTURES`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from keras_seq.checkpoint_rows import (
    BERT_ROWS,
    BIAS_ROW,
    GPT1_ROWS,
    GPT2_ROWS,
    LINEAR,
    MASKED_LM_ROWS,
    NEXT_SENTENCE_ROWS,
    ONE_ROW,
    SAME,
    TRANSPOSED,
    marian_rows,
)
from keras_seq.models.bert import (
    BERT,
    BERTClassifier,
    BERTForPreTraining,
    BERTMultipleChoice,
    BERTSpanClassifier,
    BERTTokenClassifier,
)
from keras_seq.models.gpt import GPT
from keras_seq.models.transformer import Transformer

REQUIRED = object()


class Argument(NamedTuple):
    """One key of a config.json and the constructor's argument it becomes. Two keys may be one argument: they must then
    agree, but for dropout, where the first is taken."""

    key: str
    argument: str
    default: Any = REQUIRED  # for a key that is missing or null: a value, or a function of the config
    names: dict | None = None  # their value -> ours


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_approximate",
    "gelu_pytorch_tanh": "gelu_approximate",
    "gelu_fast": "gelu_approximate",
    "relu": "relu",
    "silu": "silu",
    "swish": "swish",
    "tanh": "tanh",
}
# In the code of GPT-1 "gelu" is the approximation, and the exact function is not to be had.
GPT1_ACTIVATIONS = {"gelu": "gelu_approximate", "relu": "relu", "silu": "silu", "swish": "swish"}

BERT_ARGUMENTS = (
    Argument("vocab_size", "vocabulary_size"),
    Argument("num_hidden_layers", "num_layers"),
    Argument("num_attention_heads", "num_heads"),
    Argument("hidden_size", "hidden_dim"),
    Argument("intermediate_size", "intermediate_dim"),
    Argument("hidden_dropout_prob", "dropout", 0.1),
    Argument("attention_probs_dropout_prob", "dropout", 0.1),
    Argument("max_position_embeddings", "max_sequence_length", 512),
    Argument("type_vocab_size", "num_segments", 2),
    Argument("hidden_act", "activation", "gelu", ACTIVATIONS),
    Argument("layer_norm_eps", "layer_norm_epsilon", 1e-12),
)
_GPT_ARGUMENTS = (
    Argument("vocab_size", "vocabulary_size"),
    Argument("n_layer", "num_layers"),
    Argument("n_head", "num_heads"),
    Argument("n_embd", "hidden_dim"),
    Argument("resid_pdrop", "dropout", 0.1),
    Argument("embd_pdrop", "dropout", 0.1),
    Argument("attn_pdrop", "dropout", 0.1),
    Argument("layer_norm_epsilon", "layer_norm_epsilon", 1e-5),
)
GPT2_ARGUMENTS = (
    *_GPT_ARGUMENTS,
    Argument("n_positions", "max_sequence_length", 1024),
    Argument("n_inner", "intermediate_dim", lambda config: 4 * config["n_embd"]),
    Argument("activation_function", "activation", "gelu_new", ACTIVATIONS),
)
GPT1_ARGUMENTS = (
    *_GPT_ARGUMENTS,
    Argument("n_positions", "max_sequence_length", 512),
    Argument("afn", "activation", "gelu", GPT1_ACTIVATIONS),
)
MARIAN_ARGUMENTS = (
    Argument("vocab_size", "source_vocabulary_size"),
    Argument("decoder_vocab_size", "target_vocabulary_size", lambda config: config["vocab_size"]),
    Argument("encoder_layers", "num_layers"),
    Argument("decoder_layers", "num_layers"),
    Argument("encoder_attention_heads", "num_heads"),
    Argument("decoder_attention_heads", "num_heads"),
    Argument("d_model", "hidden_dim"),
    Argument("encoder_ffn_dim", "intermediate_dim"),
    Argument("decoder_ffn_dim", "intermediate_dim"),
    Argument("dropout", "dropout", 0.1),
    Argument("attention_dropout", "dropout", 0.0),
    Argument("activation_dropout", "dropout", 0.0),
    Argument("max_position_embeddings", "max_sequence_length", 1024),
    Argument("activation_function", "activation", "gelu", ACTIVATIONS),
    Argument("scale_embedding", "scale_embedding", False),
    Argument("share_encoder_decoder_embeddings", "share_embeddings", True),
)


class Family(NamedTuple):
    """What the architectures of one `model_type` share.

    Args:
        prefix: what stands before the body's names where there is a head, and may stand there where there is none.
        body: rows of a model, without that prefix.
        arguments: of the constructor.
        constants: arguments that this family settles: values, or functions of the config.
        fixed: keys of a config that change the graph -> the one value that ours has (and their default).
        ignored: patterns of tensors that hold no weights: counters and masks.
        tied: tensor -> the tensors, one of which it must equal if both are in the file.
        defaults: further keys of a config that is written.
    """

    prefix: str
    body: Callable
    arguments: tuple
    constants: dict
    fixed: dict
    ignored: tuple
    tied: dict
    defaults: dict


FAMILIES = {
    "bert": Family(
        prefix="bert.",
        body=lambda model: BERT_ROWS,
        arguments=BERT_ARGUMENTS,
        constants={},
        fixed={
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
        ignored=(r"embeddings\.position_ids", r"embeddings\.token_type_ids"),
        tied={
            "cls.predictions.decoder.weight": ("embeddings.word_embeddings.weight",),
            "cls.predictions.decoder.bias": ("cls.predictions.bias",),
        },
        defaults={"pad_token_id": 0},
    ),
    "gpt2": Family(
        prefix="transformer.",
        body=lambda model: GPT2_ROWS,
        arguments=GPT2_ARGUMENTS,
        constants={"normalize_first": True, "position_encoding": "learned"},
        fixed={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
        ignored=(r"h\.\d+\.attn\.bias", r"h\.\d+\.attn\.masked_bias"),
        tied={"lm_head.weight": ("wte.weight",)},
        defaults={"bos_token_id": None, "eos_token_id": None},
    ),
    "openai-gpt": Family(
        prefix="transformer.",
        body=lambda model: GPT1_ROWS,
        arguments=GPT1_ARGUMENTS,
        constants={
            "normalize_first": False,
            "position_encoding": "learned",
            "intermediate_dim": lambda config: 4 * config["n_embd"],
        },
        fixed={"tie_word_embeddings": True},
        ignored=(r"h\.\d+\.attn\.bias", "position_ids"),
        tied={"lm_head.weight": ("tokens_embed.weight",)},
        defaults={},
    ),
    "marian": Family(
        prefix="model.",
        body=marian_rows,
        arguments=MARIAN_ARGUMENTS,
        constants={
            "normalize_first": False,
            "position_encoding": "sine",
            "interleave_positions": False,
            "logits_bias": True,
        },
        fixed={
            "tie_word_embeddings": True,
            "normalize_before": False,
            "normalize_embedding": False,
            "add_final_layer_norm": False,
            "static_position_embeddings": True,
        },
        # Sines and cosines, which we compute.
        ignored=(r"(encoder|decoder)\.embed_positions\.weight",),
        tied={
            "encoder.embed_tokens.weight": ("shared.weight",),
            "decoder.embed_tokens.weight": ("shared.weight",),
            "lm_head.weight": ("shared.weight", "decoder.embed_tokens.weight"),
        },
        defaults={"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": None, "forced_eos_token_id": None},
    ),
}


def _labels(config):
    count = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
    if count == 1:
        raise ValueError("load_checkpoint needs two labels or more in id2label, got 1: a head that tells a number.")
    return count


def _head_dropout(arguments, config):
    share = config.get("classifier_dropout")
    return arguments["dropout"] if share is None else share


def _label_names(model):
    names = [f"LABEL_{i}" for i in range(model.num_classes)]
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def _body(model):
    return lambda arguments, config: model(**arguments)


def _pre_training(arguments, config):
    return BERTForPreTraining(BERT(**arguments))


class Architecture(NamedTuple):
    """One class of transformers and what it is here.

    Args:
        model_type: a key of FAMILIES.
        model: our class.
        build: from the constructor's arguments and the config.
        heads: rows above the body, named in full.
        optional: beginnings of the names that its files need not have; without them those weights are 0.
        extra: keys of a written config that come from the head.
        bare: written without the family's prefix.
        unused: beginnings of the names of weights that our model has below it but does not use: neither written nor
            asked for.
    """

    model_type: str
    model: type
    build: Callable
    heads: tuple = ()
    optional: tuple = ()
    extra: Callable = lambda model: {}
    bare: bool = False
    unused: tuple = ()


# By model class the first is the one written; in a file without `architectures` the one that explains most tensors.
ARCHITECTURES = {
    "BertModel": Architecture("bert", BERT, _body(BERT), bare=True),
    "BertForPreTraining": Architecture(
        "bert",
        BERTForPreTraining,
        _pre_training,
        (*MASKED_LM_ROWS, *NEXT_SENTENCE_ROWS),
    ),
    "BertForMaskedLM": Architecture(
        "bert",
        BERTForPreTraining,
        _pre_training,
        (*MASKED_LM_ROWS, *NEXT_SENTENCE_ROWS),
        optional=("pooler.", "cls.seq_relationship."),
    ),
    "BertForNextSentencePrediction": Architecture(
        "bert",
        BERTForPreTraining,
        _pre_training,
        (*MASKED_LM_ROWS, *NEXT_SENTENCE_ROWS),
        optional=("cls.predictions.",),
    ),
    "BertForSequenceClassification": Architecture(
        "bert",
        BERTClassifier,
        lambda arguments, config: BERTClassifier(BERT(**arguments), _labels(config), _head_dropout(arguments, config)),
        (("classifier", "classification_head.dense", LINEAR),),
        extra=lambda model: {**_label_names(model), "classifier_dropout": model.dropout},
    ),
    "BertForTokenClassification": Architecture(
        "bert",
        BERTTokenClassifier,
        lambda arguments, config: BERTTokenClassifier(
            BERT(**arguments), _labels(config), _head_dropout(arguments, config)
        ),
        (("classifier", "classification_head.dense", LINEAR),),
        extra=lambda model: {**_label_names(model), "classifier_dropout": model.dropout},
        unused=("pooler.",),
    ),
    "BertForQuestionAnswering": Architecture(
        "bert",
        BERTSpanClassifier,
        # In transformers this head drops nothing, whatever the body does.
        lambda arguments, config: BERTSpanClassifier(BERT(**arguments), config.get("classifier_dropout") or 0.0),
        (("qa_outputs", "span_head.dense", LINEAR),),
        extra=lambda model: {"classifier_dropout": model.dropout},
        unused=("pooler.",),
    ),
    "BertForMultipleChoice": Architecture(
        "bert",
        BERTMultipleChoice,
        lambda arguments, config: BERTMultipleChoice(BERT(**arguments), _head_dropout(arguments, config)),
        (("classifier", "choice_head.dense", LINEAR),),
        extra=lambda model: {"classifier_dropout": model.dropout},
    ),
    "GPT2LMHeadModel": Architecture("gpt2", GPT, _body(GPT)),
    "GPT2Model": Architecture("gpt2", GPT, _body(GPT)),
    "OpenAIGPTLMHeadModel": Architecture("openai-gpt", GPT, _body(GPT)),
    "OpenAIGPTModel": Architecture("openai-gpt", GPT, _body(GPT)),
    "MarianMTModel": Architecture(
        "marian",
        Transformer,
        _body(Transformer),
        (("final_logits_bias", "target_embedding", BIAS_ROW),),
        optional=("final_logits_bias",),
    ),
}


class Row(NamedTuple):
    """One tensor of a file.

    Args:
        theirs: its name, without the family's prefix.
        ours: the variables it becomes; several are joined along the last axis.
        form: how it lies in the file.
        head: whether it belongs to the head, and so never has the prefix.
    """

    theirs: str
    ours: tuple
    form: str
    head: bool


def body_of(architecture, model):
    """The part of a model that has the sizes."""
    return getattr(model, "backbone", model) if architecture.model_type == "bert" else model


def rows_of(architecture, model):
    """All rows of a built model, with its own variables."""
    body = body_of(architecture, model)
    family = FAMILIES[architecture.model_type]
    rows = []
    for owner, layers, head in ((body, family.body(body), False), (model, architecture.heads, True)):
        for theirs, ours, kind in layers:
            ours = (ours,) if isinstance(ours, str) else ours
            for i in range(body.num_layers) if "{i}" in theirs else (0,):
                layers_i = [_attribute(owner, path.format(i=i)) for path in ours]
                rows.extend(
                    Row(theirs.format(i=i) + suffix, tuple(getattr(one, name[1:]) for one in layers_i), form, head)
                    for suffix, name, form in kind
                )
    return rows


def _attribute(owner, path):
    """blocks.0.pooler -> owner.blocks[0].pooler"""
    step = lambda one, name: one[int(name)] if name.isdigit() else getattr(one, name)  # noqa: E731
    return functools.reduce(step, path.split("."), owner)


def shape_of(row):
    """The shape of a row's tensor in the file."""
    width = sum(one.shape[-1] for one in row.ours)
    shape = (*row.ours[0].shape[:-1], width)
    return {SAME: shape, TRANSPOSED: shape[::-1], ONE_ROW: (1, *shape)}[row.form]
