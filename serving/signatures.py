"""The one table: signature -> the function that answers it, its inputs, its outputs.

Export builds the SavedModel from it; server, client and pages read what was exported. It imports nothing heavy.
Every input and every output has the batch as its first axis, options too: each row has its own.
"""

import dataclasses

# What an option is where the asker does not say; a cap that exceeds the exported one means the exported one.
OPTION_DEFAULTS = {
    "max_new_tokens": 64,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "seed": 0,
    "length_penalty": 1.0,
}

# The dtype of each input; what is not listed is a string.
INPUT_DTYPES = {
    "max_new_tokens": "int32",
    "temperature": "float32",
    "top_k": "int32",
    "top_p": "float32",
    "seed": "int64",
    "length_penalty": "float32",
}

# Axes of each input; what is not listed has the batch alone.
INPUT_RANKS = {"choices": 2}

# What an export may store its float32 weights as.
WEIGHTS_DTYPES = ("float32", "bfloat16", "float16")

CLASSIFY_METHOD = "tensorflow/serving/classify"
PREDICT_METHOD = "tensorflow/serving/predict"


@dataclasses.dataclass(frozen=True)
class Signature:
    """One row of the table.

    Args:
        function: the method of the kind's answers (answers.py) that computes it.
        inputs: names, in the order of the method's arguments.
        outputs: names, in the order of what the method returns.
        method: TensorFlow Serving's method name.
    """

    function: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    method: str = PREDICT_METHOD


_TEXT = ("text",)
_TRANSLATE = Signature("translate", _TEXT, ("translation",))
_COMPLETE = Signature("complete", _TEXT, ("completion",))
_FILL = Signature("fill_mask", _TEXT, ("filled",))
_CLASSIFY = Signature("classify", _TEXT, ("label",))
_TAG = Signature("tag", _TEXT, ("tokens", "labels", "starts", "ends"))
_ASKED = ("question", "context")
_ANSWER = Signature("answer", _ASKED, ("answer", "start", "end", "score"))
_CHOOSE = Signature("choose", ("prompt", "choices"), ("choice", "probabilities"))
_PAIR = ("first", "second")
_CLASSIFY_PAIR = Signature("classify", _PAIR, ("label",))
_PAIR_PROBABILITIES = Signature("probabilities", _PAIR, ("labels", "probabilities"))
_SIMILARITY = Signature("similarity", _PAIR, ("similarity",))
_SAMPLING = ("text", "max_new_tokens", "temperature", "top_k", "top_p", "seed")

SIGNATURES: dict[str, dict[str, Signature]] = {
    "translator": {
        "serving_default": _TRANSLATE,
        "translate": _TRANSLATE,
        "translate_beam": Signature(
            "translate_beam", ("text", "length_penalty", "max_new_tokens"), ("translations", "scores")
        ),
        "score": Signature("score", ("text", "translation"), ("log_probability", "num_tokens")),
        "explain": Signature("explain", _TEXT, ("translation", "source_tokens", "target_tokens", "attention")),
    },
    "language_model": {
        "serving_default": _COMPLETE,
        "complete": _COMPLETE,
        "sample": Signature("sample", _SAMPLING, ("completion", "log_probability")),
        "score": Signature("score", _TEXT, ("log_probability", "num_tokens")),
        "explain": Signature("explain", _TEXT, ("tokens", "attention")),
    },
    "masked_language_model": {
        "serving_default": _FILL,
        "fill_mask": _FILL,
        "candidates": Signature("candidates", _TEXT, ("tokens", "probabilities")),
        "embed": Signature("embed", _TEXT, ("embedding",)),
        "next_sentence": Signature("next_sentence", ("first", "second"), ("probability",)),
    },
    "classifier": {
        "serving_default": _CLASSIFY,
        "classify": _CLASSIFY,
        "probabilities": Signature("probabilities", _TEXT, ("labels", "probabilities")),
        "explain": Signature("explain", _TEXT, ("tokens", "attention")),
        # TensorFlow Serving's Classify call: serialized tf.Examples with a bytes feature "text".
        "examples": Signature("examples", ("inputs",), ("classes", "scores"), CLASSIFY_METHOD),
    },
    # These tasks ask for more than one text, or are answered by more than one tensor: their defaults too.
    "token_classifier": {
        "serving_default": _TAG,
        "tag": _TAG,
    },
    "span_finder": {
        "serving_default": _ANSWER,
        "answer": _ANSWER,
        "spans": Signature("spans", _ASKED, ("answers", "starts", "ends", "scores")),
    },
    "choice_picker": {
        "serving_default": _CHOOSE,
        "choose": _CHOOSE,
    },
    "pair_classifier": {
        "serving_default": _CLASSIFY_PAIR,
        "classify": _CLASSIFY_PAIR,
        "probabilities": _PAIR_PROBABILITIES,
    },
    "pair_scorer": {
        "serving_default": _SIMILARITY,
        "similarity": _SIMILARITY,
        "probabilities": _PAIR_PROBABILITIES,
    },
}
