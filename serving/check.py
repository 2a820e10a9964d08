"""What is in a SavedModel, and whether stock TensorFlow Serving can run it safely: read, nothing of it is run."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from serving import op_releases
from serving.signatures import SIGNATURES

# (what it is called in the report, operations by the beginnings of their names, why it is refused)
FORBIDDEN = (
    ("XLA", r"_?Xla", "needs XLA, which the stock server has disabled"),
    (
        "mutable tables",
        r"(Anonymous)?Mutable(Hash|Dense)|LookupTable(Insert|Remove)",
        "is a table that grows with requests",
    ),
    ("Python", r"(Eager)?PyFunc", "calls Python, which the server has not"),
    (
        "files",
        r"(Read|Write)File$|MatchingFiles|PrintV2|DeleteFile|Save(Slices)?$|Restore(Slice)?$|(Save|Load|Snapshot)Dataset"
        r"|WholeFileReader|(TFRecord|TextLine|FixedLengthRecord|LMDB)(Reader|Dataset)|CacheDataset"
        r"|(Experimental)?((CSV|LMDB|MatchingFiles|Sql)Dataset|DatasetToTFRecord)|CreateSummary(File|Db)Writer"
        r"|(ListSnapshotChunks|SnapshotChunk)Dataset|SnapshotNestedDatasetReader|RecordInput|Skipgram$|ImmutableConst"
        r"|LoadAndRemapMatrix|GenerateVocabRemapping|FixedUnigramCandidateSampler|DTensorRestore|DistributedSave"
        r"|DumpTensor|CalibrationStatisticsSaver|Debug(Identity|NanCount|NumericSummary)",
        "reads or writes files",
    ),
)
# What the saver itself puts into every SavedModel, beside the signatures.
SAVER = {"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename"}
MAX_BYTES = 2**31 - 1  # protobuf's own limit


@dataclasses.dataclass
class Contents:
    """What `check` found.

    Args:
        path: the version's folder.
        operations: how often each operation stands in the graph and its functions.
        signatures: name -> inputs and outputs, each name -> "dtype (shape)".
        problems: what keeps stock TensorFlow Serving from running it safely.
        notes: what is there and harms nothing.
    """

    path: Path
    operations: Counter
    signatures: dict[str, tuple[dict[str, str], dict[str, str]]]
    problems: list[str]
    notes: list[str] = dataclasses.field(default_factory=list)

    def report(self) -> str:
        """A page of text."""
        lines = [f"{self.path}: {sum(self.operations.values()):,} operations of {len(self.operations)} kinds"]
        counted = ", ".join(f"{name}={count}" for name, count in sorted(self.operations.items()))
        lines += textwrap.wrap(counted, 118, initial_indent="  ", subsequent_indent="  ")
        for title, pattern, _ in FORBIDDEN:
            found = sorted(name for name in self.operations if re.match(pattern, name))
            lines.append(f"{title}: {', '.join(found) or 'none'}")
        lines.append("signatures:")
        for name, (inputs, outputs) in sorted(self.signatures.items()):
            sides = (", ".join(f"{key} {what}" for key, what in side.items()) for side in (inputs, outputs))
            lines.append(f"  {name}: {' -> '.join(sides)}")
        verdict = "stock TensorFlow Serving can run it" if not self.problems else "not for stock TensorFlow Serving:"
        return "\n".join([*lines, *self.notes, verdict, *(f"  {problem}" for problem in self.problems)])


def check(path: str | Path, server_version: str | None = None) -> Contents:
    """Reads a version's folder.

    Args:
        path: the folder, with saved_model.pb.
        server_version: of TensorFlow Serving, such as "2.19"; operations that came later are problems.

    Raises:
        FileNotFoundError: there is no saved_model.pb.
        ValueError: it cannot be parsed, or nothing is known of that server version.
    """
    server = None if server_version is None else op_releases.parse_version(server_version)
    graph = _read(Path(path) / "saved_model.pb")
    operations = Counter(node.op for node in _nodes(graph.graph_def))
    signatures = {
        name: (_specs(signature.inputs), _specs(signature.outputs))
        for name, signature in graph.signature_def.items()
        if not name.startswith("__saved_model")
    }
    problems = [
        *_operation_problems(graph, operations, server),
        *_xla_problems(graph.graph_def),
        *_file_problems(graph),
        *_signature_problems(graph, signatures),
    ]
    return Contents(Path(path), operations, signatures, problems, list(_notes(graph, operations)))


def _read(file: Path) -> Any:
    """The graph for serving."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    if not file.is_file():
        raise FileNotFoundError(f"A version's folder has saved_model.pb, which is not in {file.parent}.")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file} is not a SavedModel: a protobuf has at most {MAX_BYTES} bytes.")
    try:
        saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{file} is not a SavedModel: {error}.") from error
    graphs = [graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags]
    if not graphs:
        raise ValueError(f"{file} holds no graph with the tag 'serve'.")
    return graphs[0]


def _nodes(graph_def: Any) -> Iterator[Any]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def _operation_problems(graph: Any, operations: Counter, server: tuple[int, int] | None) -> Iterator[str]:
    from tensorflow.python.framework import op_def_registry

    functions = {function.signature.name for function in graph.graph_def.library.function}
    asked = _reached_by_signatures(graph)
    for name in sorted(operations):
        for _, pattern, why in FORBIDDEN:
            if re.match(pattern, name):
                yield f"operation {name} {why}"
        if name in SAVER and name in asked:
            yield f"operation {name} reads or writes files when a signature is asked"
        if name not in functions and name not in op_releases.TEXT and op_def_registry.get(name) is None:
            yield f"operation {name} is not among TensorFlow's own"
        since = op_releases.introduced(name)
        if server is not None and since is not None and since > server:
            versions = f"{since[0]}.{since[1]}, which a server {server[0]}.{server[1]} does not know"
            yield f"operation {name} came with TensorFlow {versions}"


def _reached_by_signatures(graph: Any) -> set[str]:
    """The operations that the signatures' tensors need, through functions too."""
    nodes = {node.name: node for node in graph.graph_def.node}
    functions = {function.signature.name: function for function in graph.graph_def.library.function}
    wanted = [
        _node_name(info.name)
        for signature in graph.signature_def.values()
        for side in (signature.inputs, signature.outputs)
        for info in side.values()
    ]
    found: set[str] = set()
    # Loops, not recursion: a graph may be as deep as its author likes.
    while wanted:
        node = nodes.pop(wanted.pop(), None)
        if node is not None:
            wanted += map(_node_name, node.input)
            found |= _called(node, functions)
    return found


def _called(node: Any, functions: dict[str, Any]) -> set[str]:
    """The operations of a node and of the functions it calls. `functions`: those not looked into yet; shrinks."""
    found, waiting = set(), [node]
    while waiting:
        one = waiting.pop()
        found.add(one.op)
        names = [one.op]
        for value in one.attr.values():
            names += [value.func.name, *(function.name for function in value.list.func)]
        for name in names:
            function = functions.pop(name, None)
            if function is not None:
                waiting += function.node_def
    return found


def _node_name(tensor: str) -> str:
    return tensor.lstrip("^").partition(":")[0]


def _xla_problems(graph_def: Any) -> Iterator[str]:
    for function in graph_def.library.function:
        if _must_compile(function.attr):
            yield f"function {function.signature.name} must be compiled by XLA, which the stock server has disabled"
    for node in _nodes(graph_def):
        if _must_compile(node.attr):
            yield f"call {node.name} must be compiled by XLA, which the stock server has disabled"


def _must_compile(attr: Any) -> bool:
    # Not attr[...].b alone: a protobuf map makes an entry for whatever it is asked.
    return "_XlaMustCompile" in attr and attr["_XlaMustCompile"].b


def _file_problems(graph: Any) -> Iterator[str]:
    """Assets are files of the version's folder, and nothing else."""
    for asset in graph.asset_file_def:
        steps = re.split(r"[/\\]", asset.filename)
        if not asset.filename or "" in steps or ".." in steps:
            yield f"asset {asset.filename!r} is not a file below the folder assets"
    if not graph.asset_file_def:
        for node in _nodes(graph.graph_def):
            if node.op.startswith("InitializeTableFromTextFile"):
                yield f"operation {node.op} ({node.name}) reads a file that is not among the assets"


def _notes(graph: Any, operations: Counter) -> Iterator[str]:
    if graph.asset_file_def:
        yield f"assets: {', '.join(sorted(asset.filename for asset in graph.asset_file_def))}"
    text = sorted(op_releases.TEXT & operations.keys())
    if text:
        yield f"of TF-Text, which the stock server has in its own version: {', '.join(text)}"


def _specs(infos: Any) -> dict[str, str]:
    return {name: f"{_dtype(info.dtype)} {_shape(info.tensor_shape)}" for name, info in sorted(infos.items())}


def _dtype(number: int) -> str:
    from tensorflow.dtypes import as_dtype

    try:
        return as_dtype(number).name
    except (TypeError, KeyError):
        return f"dtype {number}"


def _shape(shape: Any) -> str:
    if shape.unknown_rank:
        return "(...)"
    sizes = [str(dimension.size) if dimension.size >= 0 else "?" for dimension in shape.dim]
    return f"({', '.join(['b' if size == '?' else size for size in sizes[:1]] + sizes[1:])})"


# Tasks that ask for more than one text, or are answered by more than one tensor, say so in the table.
_DEFAULTS = [
    (set(rows["serving_default"].inputs), set(rows["serving_default"].outputs)) for rows in SIGNATURES.values()
]


def _signature_problems(graph: Any, signatures: dict) -> Iterator[str]:
    if "serving_default" not in signatures:
        yield "there is no signature serving_default"
    elif tuple(map(set, signatures["serving_default"])) not in _DEFAULTS and any(
        len(side) != 1 for side in signatures["serving_default"]
    ):
        yield "serving_default has not exactly one input and one output, which REST's plain form needs"
    for name in signatures:
        definition = graph.signature_def[name]
        for side, infos in (("input", definition.inputs), ("output", definition.outputs)):
            yield from _tensor_problems(name, side, infos.items())
        if definition.method_name == "tensorflow/serving/classify":
            for key, dtype in (("classes", "string"), ("scores", "float32")):
                if key in definition.outputs and (found := _dtype(definition.outputs[key].dtype)) != dtype:
                    yield f"output {key} of {name} is {found}, where Classify needs {dtype}"


def _tensor_problems(signature: str, side: str, infos: Iterable) -> Iterator[str]:
    for key, info in infos:
        dimensions = info.tensor_shape.dim
        if not info.tensor_shape.unknown_rank and (not dimensions or dimensions[0].size >= 0):
            yield f"{side} {key} of {signature} has no batch axis in front: {_shape(info.tensor_shape)}"
        if re.fullmatch(r"(output|input)_\d+|args_\d+", key):
            yield f"{side} {key} of {signature} has no name of its own"
        if _dtype(info.dtype).startswith("dtype"):
            yield f"{side} {key} of {signature} has a dtype that TensorFlow has not: {info.dtype}"
