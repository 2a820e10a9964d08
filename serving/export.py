"""From a model and its tokenizers to a version folder that TensorFlow Serving can load.

Written beside (outside the folder that is served), reloaded in a fresh process, compared with the live model, only then
renamed into place: a server that polls the folder never sees half a version.
"""

import errno
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
from serving.probes import probe, write_warm_up
from serving.signatures import INPUT_DTYPES, INPUT_RANKS, OPTION_DEFAULTS, SIGNATURES, Signature
from serving.weights import StoredWeights, loss

MAX_VERSION = 2**63 - 1  # a version is an int64

TOLERANCE = 1e-4  # between the live model and the reloaded one, of every float
# What a run's classifier reads, by its recipe's architecture: one text unless named here.
KINDS = {
    "bert-pairs": "pair_classifier",
    "bert-similarity": "pair_scorer",
    "gpt-pairs": "pair_classifier",
    "gpt-similarity": "pair_scorer",
}
LOSS_SIZES = range(2, 19)  # tokens of the texts on which weights of fewer bits are measured
LIBRARIES = ("tensorflow", "keras", "keras-seq")


class ExportError(RuntimeError):
    """The export did not give the live model's answers, or holds what the stock server refuses."""


def export_run(run: str | Path, folder: str | Path, version: int | None = None, weights_dtype: str = "float32") -> Path:
    """Exports a finished run of `python -m training fit`.

    Args:
        run: the run's folder.
        folder: where versions are kept, exports/NAME.
        version: its number; None: the highest present plus 1.
        weights_dtype: as `export_model` has it.

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
    return export_model(**loaded, folder=folder, version=version, training=training, weights_dtype=weights_dtype)


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
    weights_dtype: str = "float32",
) -> Path:
    """Exports any of the five models, however it was trained.

    Args:
        model: Seq2Seq, AttentionSeq2Seq, Transformer, GPT, BERTForPreTraining, BERTClassifier, BERTTokenClassifier,
            BERTSpanClassifier, BERTMultipleChoice, GPTClassifier, GPTSimilarityClassifier or GPTMultipleChoice; those
            of GPT with three tokens behind the tokenizer's, as `keras_seq.packing.pack_task` has them.
        folder: where versions are kept, exports/NAME.
        tokenizer: of the text (of the source).
        target_tokenizer: of the target; None: the source's.
        labels: names of the classes; None: their numbers.
        version: its number; None: the highest present plus 1.
        max_new_tokens: the most tokens of an answer.
        training: what the manifest tells of the training.
        kind: which signatures, by a name in SIGNATURES; None: those of the model's class. A BERTClassifier, which
            reads one text, may also be a "pair_classifier" or, with numbers as labels, a "pair_scorer"; a GPTClassifier
            may also be a "pair_classifier", a GPTSimilarityClassifier, which is one, also a "pair_scorer".
        weights_dtype: "float32"; or "bfloat16" or "float16": float32 weights are stored in half the bytes, on disk and
            in the server, and cast where they are used. The manifest tells how far the answers are from float32's.

    Returns:
        The version's folder.

    Raises:
        ValueError: model, tokenizers, labels and kind do not fit, the version is no positive integer, or a weight is
            not finite in the dtype.
        FileExistsError: the version is there already.
        ExportError: the export failed its comparison.
    """
    folder = Path(folder).absolute()
    place = folder / str(_version(folder, version))
    answers = answers_for(model, tokenizer, target_tokenizer, labels, max_new_tokens, kind)
    stored, table = StoredWeights(model, weights_dtype), SIGNATURES[answers.kind]
    # Outside exports/; where that cannot be written, under a name that no server takes for a version.
    outside = next(path for path in (folder.parent.parent, *folder.parent.parent.parents) if path.exists())
    beside = folder.parent.parent if os.access(outside, os.W_OK) else folder
    staging = beside / f".staging-{folder.name}-{place.name}-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        functions = _save(answers, staging, stored)
        probes = {name: probe(signature, answers) for name, signature in table.items()}
        _set_methods(staging, table)
        weights = {**stored.described(), "loss": _loss(answers, functions) if stored.copies else {}}
        _write_extras(staging, answers, probes, place, {"weights": weights, "training": training or {}})
        _compare(staging, {name: (probes[name], functions[name](**probes[name])) for name in _distinct(table)})
        folder.mkdir(parents=True, exist_ok=True)
        if place.exists():  # of another export meanwhile
            raise FileExistsError(f"Version {place.name} is in {folder} already.")
        _move(staging, place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return place


def _move(staging: Path, place: Path) -> None:
    """Renames; onto another file system, as a mounted volume is, it copies beside the place and renames there."""
    try:
        os.rename(staging, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = place.parent / staging.name
        try:
            shutil.copytree(staging, beside)
            os.rename(beside, place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _version(folder: Path, version: int | None) -> int:
    numbers = [path.name for path in folder.glob("*")] if folder.is_dir() else []
    present = [int(name) for name in numbers if name.isascii() and name.isdigit() and int(name) <= MAX_VERSION]
    if version is None:
        version = max(present, default=0) + 1
    if not 1 <= version <= MAX_VERSION:
        raise ValueError(f"export needs a version from 1 to {MAX_VERSION}, got version={version!r}.")
    if version in present:
        raise FileExistsError(f"Version {version} is in {folder} already.")
    return version


def _save(answers: Any, staging: Path, stored: StoredWeights) -> dict[str, Any]:
    """Writes the SavedModel; the functions of its signatures, over the weights as they are stored."""
    module = tf.Module()
    # The variables themselves: of a Keras layer the saver would make a second copy, which a Session never fills.
    module.variables_ = stored.variables
    tokenizers = {id(one): one for one in (answers.tokenizer, getattr(answers, "target_tokenizer", answers.tokenizer))}
    module.resources = [resource for one in tokenizers.values() for resource in one.resources]
    with stored:
        functions = _functions(answers)
    tf.saved_model.save(module, str(staging), signatures=functions)
    return functions


def _functions(answers: Any) -> dict[str, Any]:
    """A function for each signature; an alias is the same function."""
    table = SIGNATURES[answers.kind]
    traced = {signature: _function(answers, signature) for signature in dict.fromkeys(table.values())}
    return {name: traced[signature] for name, signature in table.items()}


def _distinct(table: dict[str, Signature]) -> list[str]:
    """The signatures' names, of several names for one function the first."""
    return list({signature: name for name, signature in reversed(table.items())}.values())[::-1]


def _function(answers: Any, signature: Signature) -> Any:
    """The signature's function with its inputs by name and its outputs by name."""
    specs = [
        tf.TensorSpec([None] * INPUT_RANKS.get(name, 1), INPUT_DTYPES.get(name, "string"), name)
        for name in signature.inputs
    ]

    def call(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies(_same_rows(signature.inputs, inputs)):
            inputs = tuple(map(tf.identity, inputs))
        values = getattr(answers, signature.function)(*inputs)
        return {name: tf.identity(value, name) for name, value in zip(signature.outputs, values, strict=True)}

    return tf.function(call, autograph=False).get_concrete_function(*specs)


def _same_rows(names: tuple[str, ...], inputs: tuple[tf.Tensor, ...]) -> list[tf.Operation]:
    """Checks in the graph that all inputs have as many rows as the first: one row would be spread over the others'."""
    rows = [tf.shape(one)[0] for one in inputs]
    return [
        tf.debugging.assert_equal(count, rows[0], f"{name} needs a row for each of {names[0]}")
        for name, count in zip(names[1:], rows[1:])
    ]


def _set_methods(staging: Path, signatures: dict[str, Signature]) -> None:
    """tf.saved_model.save calls every signature a Predict; Classify looks for a method name of its own."""
    from tensorflow.core.protobuf import saved_model_pb2

    file = staging / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for graph in saved.meta_graphs:
        for name, signature in signatures.items():
            graph.signature_def[name].method_name = signature.method
    file.write_bytes(saved.SerializeToString())


def _write_extras(staging: Path, answers: Any, probes: dict, place: Path, told: dict[str, Any]) -> None:
    """The warm-up requests and the manifest, which ends with what it is told."""
    extra = staging / "assets.extra"
    extra.mkdir()
    signatures = SIGNATURES[answers.kind]
    write_warm_up(extra / "tf_serving_warmup_requests", place.parent.name, signatures, probes)
    fingerprints = {"tokenizer": answers.tokenizer.fingerprint}
    if hasattr(answers, "target_tokenizer"):
        fingerprints["target_tokenizer"] = answers.target_tokenizer.fingerprint
    contents = check(staging)
    if contents.problems:
        raise ExportError(f"The export holds what the stock server refuses: {'; '.join(contents.problems)}.")
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
        **told,
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (extra / "keras_seq.json").write_text(text, encoding="utf-8")


def read_manifest(place: Path) -> dict[str, Any]:
    """The manifest of a version's folder."""
    return json.loads((place / "assets.extra" / "keras_seq.json").read_text("utf-8"))


def _loss(answers: Any, functions: dict[str, Any]) -> dict[str, dict]:
    """For each signature, how far the functions' answers are from those of the model as it is."""
    table = SIGNATURES[answers.kind]
    asked = {name: probe(table[name], answers, LOSS_SIZES) for name in _distinct(table)}
    plain = _functions(answers)
    return {name: loss(plain[name](**inputs), functions[name](**inputs)) for name, inputs in asked.items()}


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
