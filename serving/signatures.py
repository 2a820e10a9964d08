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
}
