"""From a model and its tokenizers to a version folder that TensorFlow Serving can load.

Written beside (outside the folder that is served), reloaded in a fresh process, compared with the live model, only then
renamed into place: a server that polls the folder never sees half a version.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_seq.text import load_tokenizer
from serving.answers import answers_for
from serving.check import check
from serving.signatures import INPUT_DTYPES, INPUT_RANKS, OPTION_DEFAULTS, SIGNATURES, Signature

TOLERANCE = 1e-4  # between the live model and the reloaded one, of every float
# What a run's BERTClassifier reads, by its recipe's architecture: one text unless named here.
KINDS = {"bert-pairs": "pair_classifier", "bert-similarity": "pair_scorer"}
LIBRARIES = ("tensorflow", "keras", "keras-seq")


class ExportError(RuntimeError):
    """The export did not give the live model's answers, or holds what the stock server refuses."""


def export_run(run: str | Path, folder: str | Path, version: int | None = None) -> Path:
    """Exports a finished run of `python -m training fit`.

    Args:
        run: the run's folder.
        folder: where versions are kept, exports/NAME.
        version: its number; None: the highest present plus 1.

    Returns:
        The version's folder.

    Raises:
        FileNotFoundError: the run's folder or a file of it is missing.
        FileExistsError: the version is there already.
        ExportError: the export failed its comparison.
    """
    run, metrics = Path(run), Path(run) / "metrics.json"
    loaded = load_run(run)
    training = {
        "recipe": json.loads((run / "recipe.json").read_text("utf-8")),
        "metrics": json.loads(metrics.read_text("utf-8")) if metrics.exists() else {},
    }
    return export_model(**loaded, folder=folder, version=version, training=training)


def load_run(run: str | Path) -> dict[str, Any]:
    """What `export_model` and `answers_for` need of a finished run, by the names of their arguments.

    Raises:
        FileNotFoundError: the run's folder or a file of it is missing.
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"There is no run folder {run}.")
    for name in ("recipe.json", "tokenizer", "model.keras"):
        if not (run / name).exists():
            raise FileNotFoundError(f"A finished run has {name}, which is not in {run}.")
    target, labels = run / "target_tokenizer", run / "labels.txt"
    recipe = json.loads((run / "recipe.json").read_text("utf-8"))
    return {
        "model": keras.saving.load_model(run / "model.keras", compile=False),
        "tokenizer": load_tokenizer(run / "tokenizer"),
        "target_tokenizer": load_tokenizer(target) if target.is_dir() else None,
        "labels": labels.read_text("utf-8").split("\n")[:-1] if labels.exists() else None,
        "max_new_tokens": recipe["max_new_tokens"],
        "kind": KINDS.get(recipe["architecture"]),
    }


def export_model(
    model: Any,
    folder: str | Path,
    tokenizer: Any,
    target_tokenizer: Any = None,
    labels: list[str] | None = None,
    version: int | None = None,
    max_new_tokens: int = 64,
    training: dict[str, Any] | None = None,
    kind: str | None = None,
) -> Path:
    """Exports any of the five models, however it was trained.

    Args:
        model: Seq2Seq, AttentionSeq2Seq, Transformer, GPT, BERTForPreTraining, BERTClassifier, BERTTokenClassifier,
            BERTSpanClassifier or BERTMultipleChoice.
        folder: where versions are kept, exports/NAME.
        tokenizer: of the text (of the source).
        target_tokenizer: of the target; None: the source's.
        labels: names of the classes; None: their numbers.
        version: its number; None: the highest present plus 1.
        max_new_tokens: the most tokens of an answer.
        training: what the manifest tells of the training.
        kind: which signatures, by a name in SIGNATURES; None: those of the model's class. A BERTClassifier, which
            reads one text, may also be a "pair_classifier" or, with numbers as labels, a "pair_scorer".

    Returns:
        The version's folder.

    Raises:
        ValueError: model, tokenizers, labels and kind do not fit, or the version is no positive integer.
        FileExistsError: the version is there already.
        ExportError: the export failed its comparison.
    """
    folder = Path(folder).absolute()
    place = folder / str(_version(folder, version))
    answers = answers_for(model, tokenizer, target_tokenizer, labels, max_new_tokens, kind)
    staging = folder.parent.parent / f".staging-{folder.name}-{place.name}-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        functions = _save(answers, staging)
        probes = {name: _probe(name, signature, answers) for name, signature in SIGNATURES[answers.kind].items()}
        _set_methods(staging, SIGNATURES[answers.kind])
        _write_extras(staging, answers, probes, place, training or {})
        contents = check(staging)
        if contents.problems:
            raise ExportError(f"The export holds what the stock server refuses: {'; '.join(contents.problems)}.")
        _compare(staging, {name: (probes[name], functions[name](**probes[name])) for name in functions})
        folder.mkdir(parents=True, exist_ok=True)
        if place.exists():  # of another export meanwhile
            raise FileExistsError(f"Version {place.name} is in {folder} already.")
        os.rename(staging, place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return place


def _version(folder: Path, version: int | None) -> int:
    present = [int(path.name) for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []
    if version is None:
        return max(present, default=0) + 1
    if version < 1:
        raise ValueError(f"export needs a version >= 1, got version={version!r}.")
    if version in present:
        raise FileExistsError(f"Version {version} is in {folder} already.")
    return version


def _save(answers: Any, staging: Path) -> dict[str, Any]:
    """Writes the SavedModel; the functions of its signatures, over the live weights."""
    module = tf.Module()
    # The variables themselves: of a Keras layer the saver would make a second copy, which a Session never fills.
    module.variables_ = [variable.value for variable in answers.model.variables]
    tokenizers = {id(one): one for one in (answers.tokenizer, getattr(answers, "target_tokenizer", answers.tokenizer))}
    module.resources = [resource for one in tokenizers.values() for resource in one.resources]
    traced: dict[Signature, Any] = {}  # an alias is the same function
    functions = {}
    for name, signature in SIGNATURES[answers.kind].items():
        if signature not in traced:
            traced[signature] = _function(answers, signature)
        functions[name] = traced[signature]
    tf.saved_model.save(module, str(staging), signatures=functions)
    return functions


def _function(answers: Any, signature: Signature) -> Any:
    """The signature's function with its inputs by name and its outputs by name."""
    specs = [
        tf.TensorSpec([None] * INPUT_RANKS.get(name, 1), INPUT_DTYPES.get(name, "string"), name)
        for name in signature.inputs
    ]

    def call(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        values = getattr(answers, signature.function)(*inputs)
        return {name: tf.identity(value, name) for name, value in zip(signature.outputs, values, strict=True)}

    return tf.function(call, autograph=False).get_concrete_function(*specs)


def _set_methods(staging: Path, signatures: dict[str, Signature]) -> None:
    """tf.saved_model.save calls every signature a Predict; Classify looks for a method name of its own."""
    from tensorflow.core.protobuf import saved_model_pb2

    file = staging / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for graph in saved.meta_graphs:
        for name, signature in signatures.items():
            graph.signature_def[name].method_name = signature.method
    file.write_bytes(saved.SerializeToString())


def _probe(name: str, signature: Signature, answers: Any) -> dict[str, tf.Tensor]:
    """Inputs to compare answers on: an empty text and two of the tokenizer's own tokens, of different lengths."""
    rng = np.random.default_rng(7)
    tokenizers = {"translation": getattr(answers, "target_tokenizer", None)}
    inputs = {}
    for key in signature.inputs:
        if key in OPTION_DEFAULTS:
            value = min(OPTION_DEFAULTS[key], 8) if key == "max_new_tokens" else OPTION_DEFAULTS[key]
            inputs[key] = tf.constant([value] * 3, INPUT_DTYPES[key])
            continue
        tokenizer = tokenizers.get(key) or answers.tokenizer
        ids = [rng.integers(tokenizer.vocabulary_size, size=size).tolist() for size in (0, 3, 7)]
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


def _write_extras(staging: Path, answers: Any, probes: dict, place: Path, training: dict[str, Any]) -> None:
    """The warm-up requests and the manifest."""
    from tensorflow_serving.apis import classification_pb2, model_pb2, predict_pb2, prediction_log_pb2

    extra = staging / "assets.extra"
    extra.mkdir()
    signatures = SIGNATURES[answers.kind]
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for name, inputs in probes.items():
            spec = model_pb2.ModelSpec(name=place.parent.name, signature_name=name)
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
    fingerprints = {"tokenizer": answers.tokenizer.fingerprint}
    if hasattr(answers, "target_tokenizer"):
        fingerprints["target_tokenizer"] = answers.target_tokenizer.fingerprint
    contents = check(staging)
    manifest = {
        "model": type(answers.model).__name__,
        "name": place.parent.name,
        "version": int(place.name),
        "parameters": answers.model.count_params(),
        "signatures": {
            name: {"inputs": inputs, "outputs": outputs, "method": signatures[name].method}
            for name, (inputs, outputs) in sorted(contents.signatures.items())
        },
        "option_defaults": OPTION_DEFAULTS,
        "max_new_tokens": getattr(answers, "max_new_tokens", None),
        "labels": getattr(answers, "labels", None),
        "fingerprints": fingerprints,
        "training": training,
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (extra / "keras_seq.json").write_text(text, encoding="utf-8")


def _compare(staging: Path, live: dict[str, tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]]) -> None:
    """Runs the probes on the export in a fresh process, in a Session as TensorFlow Serving does, and compares."""
    questions, answers = staging.with_name(f"{staging.name}.npz"), staging.with_name(f"{staging.name}.answers.npz")
    try:
        flat = {f"{name}|{key}": value.numpy() for name, (inputs, _) in live.items() for key, value in inputs.items()}
        arrays: dict[str, Any] = {key: _plain(value) for key, value in flat.items()}
        np.savez(questions, **arrays)
        command = [sys.executable, "-m", "serving.reload", str(staging), str(questions), str(answers)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            # The rule is above the node's name, with which TensorFlow ends.
            told = " ".join(" ".join(finished.stderr.splitlines()[-4:]).split())
            raise ExportError(f"The export could not be reloaded: {told}")
        with np.load(answers) as reloaded:
            for name, (_, outputs) in live.items():
                for key, value in outputs.items():
                    _same(f"{key} of {name}", _plain(value.numpy()), reloaded[f"{name}|{key}"])
    finally:
        questions.unlink(missing_ok=True)
        answers.unlink(missing_ok=True)


def _plain(array: np.ndarray) -> np.ndarray:
    """Strings as fixed-width bytes with a mark behind them, so that a file without pickles holds them as they are."""
    if array.dtype != object:
        return array
    marked = [bytes(value) + b"|" for value in array.ravel()]
    return np.array(marked, dtype="S" if marked else "S1").reshape(array.shape)


def _same(what: str, live: np.ndarray, reloaded: np.ndarray) -> None:
    if live.shape != reloaded.shape:
        raise ExportError(f"The reloaded export gives {what} of shape {reloaded.shape}, the live model {live.shape}.")
    if live.dtype.kind == "f":
        if not np.allclose(live, reloaded, rtol=TOLERANCE, atol=TOLERANCE):
            difference = np.abs(live - reloaded).max()
            raise ExportError(f"The reloaded export differs from the live model in {what}, by up to {difference}.")
    elif not np.array_equal(live, reloaded):
        raise ExportError(f"The reloaded export differs from the live model in {what}: {reloaded} against {live}.")
