"""What is in a SavedModel, and whether stock TensorFlow Serving can run it safely: read, nothing of it is run."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FORBIDDEN = (
    (r"Xla", "needs XLA, which the stock server has disabled"),
    (r"Mutable(Hash|Dense)", "is a table that grows with requests"),
    (r"(Eager)?PyFunc", "calls Python, which the server has not"),
    (r"(Read|Write)File$|MatchingFiles|WholeFileReader|SaveSlices|PrintV2|DeleteFile", "reads or writes files"),
)
# What the saver itself puts into every SavedModel, and what stays inside the version's folder.
SAVER = {"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename"}


@dataclasses.dataclass
class Contents:
    """What `check` found.

    Args:
        path: the version's folder.
        operations: how often each operation stands in the graph and its functions.
        signatures: name -> inputs and outputs, each name -> "dtype (shape)".
        problems: what keeps stock TensorFlow Serving from running it safely.
    """

    path: Path
    operations: Counter
    signatures: dict[str, tuple[dict[str, str], dict[str, str]]]
    problems: list[str]

    def report(self) -> str:
        """One screen of text."""
        lines = [f"{self.path}: {sum(self.operations.values()):,} operations of {len(self.operations)} kinds"]
        for name, (inputs, outputs) in sorted(self.signatures.items()):
            sides = (", ".join(f"{key} {what}" for key, what in side.items()) for side in (inputs, outputs))
            lines.append(f"  {name}: {' -> '.join(sides)}")
        verdict = "stock TensorFlow Serving can run it" if not self.problems else "not for stock TensorFlow Serving:"
        return "\n".join([*lines, verdict, *(f"  {problem}" for problem in self.problems)])


def check(path: str | Path) -> Contents:
    """Reads a version's folder.

    Raises:
        FileNotFoundError: there is no saved_model.pb.
        ValueError: it cannot be parsed.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    file = Path(path) / "saved_model.pb"
    if not file.is_file():
        raise FileNotFoundError(f"A version's folder has saved_model.pb, which is not in {path}.")
    try:
        saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{file} is not a SavedModel: {error}.") from error
    graphs = [graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags]
    if not graphs:
        raise ValueError(f"{file} holds no graph with the tag 'serve'.")
    (graph, *_) = graphs
    operations = Counter(node.op for node in _nodes(graph.graph_def))
    signatures = {
        name: (_specs(signature.inputs), _specs(signature.outputs))
        for name, signature in graph.signature_def.items()
        if not name.startswith("__saved_model")
    }
    problems = [*_operation_problems(graph.graph_def, operations), *_signature_problems(graph, signatures)]
    return Contents(Path(path), operations, signatures, problems)


def _nodes(graph_def: Any) -> Iterator[Any]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def _operation_problems(graph_def: Any, operations: Counter) -> Iterator[str]:
    from tensorflow.python.framework import op_def_registry

    functions = {function.signature.name for function in graph_def.library.function}
    for name in sorted(operations):
        for pattern, why in FORBIDDEN:
            if re.match(pattern, name) and name not in SAVER:
                yield f"operation {name} {why}"
        if op_def_registry.get(name) is None and name not in functions:
            yield f"operation {name} is not among TensorFlow's own"
    for function in graph_def.library.function:
        if function.attr["_XlaMustCompile"].b:
            yield f"function {function.signature.name} must be compiled by XLA, which the stock server has disabled"


def _specs(infos: Any) -> dict[str, str]:
    from tensorflow.dtypes import as_dtype

    return {name: f"{as_dtype(info.dtype).name} {_shape(info.tensor_shape)}" for name, info in sorted(infos.items())}


def _shape(shape: Any) -> str:
    if shape.unknown_rank:
        return "(...)"
    sizes = [str(dimension.size) if dimension.size >= 0 else "?" for dimension in shape.dim]
    return f"({', '.join(['b' if size == '?' else size for size in sizes[:1]] + sizes[1:])})"


def _signature_problems(graph: Any, signatures: dict) -> Iterator[str]:
    if "serving_default" not in signatures:
        yield "there is no signature serving_default"
    elif any(len(side) != 1 for side in signatures["serving_default"]):
        yield "serving_default has not exactly one input and one output, which REST's plain form needs"
    for name in signatures:
        definition = graph.signature_def[name]
        for side, infos in (("input", definition.inputs), ("output", definition.outputs)):
            for key, info in infos.items():
                dimensions = info.tensor_shape.dim
                if not info.tensor_shape.unknown_rank and (not dimensions or dimensions[0].size >= 0):
                    yield f"{side} {key} of {name} has no batch axis in front: {_shape(info.tensor_shape)}"
                if re.fullmatch(r"(output|input)_\d+|args_\d+", key):
                    yield f"{side} {key} of {name} has no name of its own"
