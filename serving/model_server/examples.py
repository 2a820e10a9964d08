"""Classify, Regress and MultiInference: tf.Examples in, classes or values out, by either edge."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tensorflow_serving.apis import classification_pb2, inference_pb2, input_pb2, regression_pb2

from serving.model_server.errors import Code, StatusError, invalid
from serving.model_server.loaded import LoadedVersion
from serving.model_server.signature import DEFAULT_SIGNATURE, Signature, in_braces, type_name

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"


@dataclass(frozen=True)
class Classes:
    """What a classify signature answers for n examples: labels (n, c) bytes, scores (n, c) float32; either may lack."""

    labels: np.ndarray | None
    scores: np.ndarray | None


def serialized(examples: Sequence, context=None) -> np.ndarray:
    """Examples, each with the context's features laid under its own, as the strings that a graph parses.

    Two messages one after the other read as one, in which what comes later counts.

    Raises:
        StatusError: INVALID_ARGUMENT for no examples.
    """
    if not len(examples):
        raise invalid("Input is empty.")
    before = b"" if context is None else context.SerializeToString()
    strings = np.empty(len(examples), object)
    strings[:] = [before + example.SerializeToString() for example in examples]
    return strings


def read_input(proto: input_pb2.Input) -> np.ndarray:
    """The examples of a request's `input`, serialized. Raises: StatusError INVALID_ARGUMENT for none."""
    if proto.WhichOneof("kind") == "example_list_with_context":
        listed = proto.example_list_with_context
        return serialized(listed.examples, listed.context)
    return serialized(proto.example_list.examples)


def find_signature(loaded: LoadedVersion, name: str, method_name: str) -> Signature:
    """The version's signature of that name, taken for one of that kind.

    Exports of TensorFlow 2 call every signature a predict signature, so that its method_name is looked at only where
    the server was told to (--enable_signature_method_name_check); its inputs and outputs always are, later.

    Raises:
        StatusError: INVALID_ARGUMENT for an unknown name, or a method_name of another kind.
    """
    name = name or DEFAULT_SIGNATURE
    if name not in loaded.signatures:
        raise invalid(f"No signature was found with the name: {name}. There are {in_braces(loaded.signatures)}.")
    signature = loaded.signatures[name]
    if loaded.check_method_names and signature.method_name != method_name:
        raise invalid(
            f"Expected signature method_name to be {method_name} for signature {name!r}. Was: {signature.method_name}"
        )
    return dataclasses.replace(signature, method_name=method_name)


def check_classify(signature: Signature) -> None:
    """Raises StatusError unless the signature has the one input and the outputs that Classify needs."""
    if len(signature.inputs) != 1 or len(signature.outputs) not in (1, 2):
        raise invalid(f"Classify needs one input Tensor and one or two outputs, got {_ends(signature)}.")
    if "inputs" not in signature.inputs or not {"classes", "scores"} & signature.outputs.keys():
        raise StatusError(
            Code.FAILED_PRECONDITION,
            f'Classify needs an input "inputs" and an output "classes" or "scores", got {_ends(signature)}.',
        )


def check_regress(signature: Signature) -> None:
    """Raises StatusError unless the signature has the one input and the one output that Regress needs."""
    if len(signature.inputs) != 1 or len(signature.outputs) != 1:
        raise invalid(f"Regress needs one input Tensor and one output Tensor, got {_ends(signature)}.")
    if "inputs" not in signature.inputs or "outputs" not in signature.outputs:
        raise StatusError(
            Code.FAILED_PRECONDITION,
            f'Regress needs an input "inputs" and an output "outputs", got {_ends(signature)}.',
        )


def classify(
    loaded: LoadedVersion, signature: Signature, examples: np.ndarray, deadline: float | None = None
) -> Classes:
    """The classes of each example. Raises: StatusError, INVALID_ARGUMENT for outputs that are no classes."""
    check_classify(signature)
    wanted = tuple(name for name in ("classes", "scores") if name in signature.outputs)
    is_all = len(wanted) == len(signature.outputs)
    outputs = loaded.run(signature, {"inputs": examples}, () if is_all else wanted, deadline)
    for name in wanted:
        array, kind = outputs[name], "string" if name == "classes" else "float"
        if array.ndim != 2 or array.shape[0] != len(examples) or type_name(array.dtype) != kind:
            raise invalid(
                f"Expected {name} Tensor of type {kind} and shape [{len(examples)}, num_classes], "
                f"got {type_name(array.dtype)} {list(array.shape)}."
            )
    if len(wanted) == 2 and outputs["classes"].shape != outputs["scores"].shape:
        raise invalid(
            f"Tensors classes and scores need as many columns, got {outputs['classes'].shape[1]} and "
            f"{outputs['scores'].shape[1]}."
        )
    return Classes(outputs.get("classes"), outputs.get("scores"))


def regress(
    loaded: LoadedVersion, signature: Signature, examples: np.ndarray, deadline: float | None = None
) -> np.ndarray:
    """The value of each example, (n,) float32. Raises: StatusError, INVALID_ARGUMENT for outputs that are no values."""
    check_regress(signature)
    array = loaded.run(signature, {"inputs": examples}, (), deadline)["outputs"]
    if array.shape not in ((len(examples),), (len(examples), 1)) or type_name(array.dtype) != "float":
        raise invalid(
            f"Expected output Tensor of type float and shape [{len(examples)}] or [{len(examples)}, 1], "
            f"got {type_name(array.dtype)} {list(array.shape)}."
        )
    return array.reshape(-1)


def classification_result(classes: Classes) -> classification_pb2.ClassificationResult:
    """The message of `classes`. A label that is not UTF-8, which its field cannot hold, has U+FFFD in it."""
    result = classification_pb2.ClassificationResult()
    for labels, scores in rows(classes):
        add = result.classifications.add().classes.add
        for label, score in zip(labels, scores):
            add(label=label.decode("utf-8", "replace"), score=score)
    return result


def rows(classes: Classes) -> list[tuple[list[bytes], list]]:
    """Labels and scores of each example; b"" and 0 for what the signature does not answer."""
    some = classes.labels if classes.labels is not None else classes.scores
    assert some is not None
    labels = np.full(some.shape, b"", object) if classes.labels is None else classes.labels
    scores = np.zeros(some.shape, np.float32) if classes.scores is None else classes.scores
    return [(one.tolist(), list(other)) for one, other in zip(labels, scores)]


def regression_result(values: np.ndarray) -> regression_pb2.RegressionResult:
    """The message of `values`."""
    return regression_pb2.RegressionResult(
        regressions=[regression_pb2.Regression(value=value) for value in values.tolist()]
    )


def multi_inference(
    loaded: LoadedVersion, request: inference_pb2.MultiInferenceRequest, deadline: float | None = None
) -> list:
    """The results of a request's tasks over the same examples.

    Args:
        loaded: the version that the first task names.
        request: its tasks ask the same model for different signatures with the same input.
        deadline: as `LoadedVersion.run` has it.

    Returns:
        For each task its Signature and a ClassificationResult or a RegressionResult.

    Raises:
        StatusError: UNIMPLEMENTED for a method that is neither; INVALID_ARGUMENT for tasks that do not go together.
    """
    signatures = [_task_signature(loaded, request.tasks[0].model_spec.name, task) for task in request.tasks]
    names = [signature.name for signature in signatures]
    if len(set(names)) != len(names):
        raise invalid(f"Duplicate evaluation of signature: {', '.join(sorted(set(names), key=names.index))}")
    if len({signature.inputs["inputs"].tensor for signature in signatures}) > 1:
        raise invalid("Input tensor must be the same for all Signatures.")
    examples = read_input(request.input)
    return [
        (
            signature,
            classification_result(classify(loaded, signature, examples, deadline))
            if signature.method_name == CLASSIFY_METHOD
            else regression_result(regress(loaded, signature, examples, deadline)),
        )
        for signature in signatures
    ]


def _task_signature(loaded: LoadedVersion, model: str, task: inference_pb2.InferenceTask) -> Signature:
    if task.model_spec.name != model:
        raise invalid(f"All tasks must access the same model name, got {model!r} and {task.model_spec.name!r}.")
    if task.method_name not in (CLASSIFY_METHOD, REGRESS_METHOD):
        raise StatusError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
    name = task.model_spec.signature_name or DEFAULT_SIGNATURE
    if name not in loaded.signatures:
        raise invalid(f"Task's signature not found: {name}. There are {in_braces(loaded.signatures)}.")
    signature = find_signature(loaded, name, task.method_name)
    (check_classify if task.method_name == CLASSIFY_METHOD else check_regress)(signature)
    return signature


def _ends(signature: Signature) -> str:
    return f"{in_braces(signature.inputs)} -> {in_braces(signature.outputs)}"
