"""Inputs that an export is tried on: before it is kept, and by the server before a version becomes available."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from serving.signatures import INPUT_DTYPES, INPUT_RANKS, OPTION_DEFAULTS, Signature


def probe(signature: Signature, answers: Any, sizes: Sequence[int] = (3, 7)) -> dict[str, tf.Tensor]:
    """Inputs of a signature: an empty text, and texts of that many of the tokenizer's own tokens."""
    rng = np.random.default_rng(7)
    tokenizers = {"translation": getattr(answers, "target_tokenizer", None)}
    inputs = {}
    for key in signature.inputs:
        if key in OPTION_DEFAULTS:
            value = min(OPTION_DEFAULTS[key], 8) if key == "max_new_tokens" else OPTION_DEFAULTS[key]
            inputs[key] = tf.constant([value] * (1 + len(sizes)), INPUT_DTYPES[key])
            continue
        tokenizer = tokenizers.get(key) or answers.tokenizer
        ids = [rng.integers(tokenizer.vocabulary_size, size=size).tolist() for size in (0, *sizes)]
        texts = [b"", *tokenizer.detokenize(tf.ragged.constant(ids, tf.int32)).numpy()[1:]]
        if answers.kind == "masked_language_model":
            texts = [text + f" {answers.mask_token}".encode() for text in texts[:-1]] + texts[-1:]
        if key == "inputs":
            feature = [tf.train.Feature(bytes_list=tf.train.BytesList(value=[text])) for text in texts]
            texts = [
                tf.train.Example(features=tf.train.Features(feature={"text": one})).SerializeToString()
                for one in feature
            ]
        inputs[key] = tf.constant(texts, tf.string)
        if INPUT_RANKS.get(key) == 2:  # as many as there are rows, in another order for each
            inputs[key] = tf.stack([tf.roll(inputs[key], shift, axis=0) for shift in range(len(texts))])
    return inputs


def write_warm_up(
    file: Path, model: str, signatures: Mapping[str, Signature], probes: Mapping[str, Mapping[str, tf.Tensor]]
) -> None:
    """Writes a request for each signature as TensorFlow Serving's warm-up reads them."""
    from tensorflow_serving.apis import classification_pb2, model_pb2, predict_pb2, prediction_log_pb2

    with tf.io.TFRecordWriter(str(file)) as writer:
        for name, inputs in probes.items():
            spec = model_pb2.ModelSpec(name=model, signature_name=name)
            if signatures[name].function == "examples":
                request = classification_pb2.ClassificationRequest(model_spec=spec)
                for serialized in inputs["inputs"].numpy():
                    request.input.example_list.examples.add().ParseFromString(serialized)
                log = prediction_log_pb2.PredictionLog(classify_log=prediction_log_pb2.ClassifyLog(request=request))
            else:
                request = predict_pb2.PredictRequest(model_spec=spec)
                for key, value in inputs.items():
                    request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
