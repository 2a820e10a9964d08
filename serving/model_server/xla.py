"""Which signatures need XLA, that stock TensorFlow Serving refuses to compile for.

Python's TensorFlow would run them, and a model tried out here would fail where it is deployed. So they are refused here
as well, unless `--xla_cpu_compilation_enabled` is given, on both servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tensorflow.core.framework import attr_value_pb2, function_pb2, graph_pb2, node_def_pb2


def xla_needed_by(graph_def: graph_pb2.GraphDef, tensors: Iterable[str]) -> str:
    """Why these tensors cannot be computed without XLA: the name of a function or operation; "" when they can.

    Args:
        graph_def: a MetaGraph's graph, with its function library.
        tensors: names such as "StatefulPartitionedCall:0".
    """
    functions = {function.signature.name: function for function in graph_def.library.function}
    nodes = {node.name: node for node in graph_def.node}
    wanted, seen = [_node_name(name) for name in tensors], set()
    while wanted:
        name = wanted.pop()
        if name not in nodes or name in seen:
            continue
        seen.add(name)
        wanted += map(_node_name, nodes[name].input)
        reason = _xla_of(nodes[name], functions)
        if reason:
            return reason
    return ""


def _xla_of(node: node_def_pb2.NodeDef, functions: dict[str, function_pb2.FunctionDef]) -> str:
    """The same for one node with all that it calls. `functions`: those not looked through yet; shrinks."""
    if node.op.startswith("Xla"):
        return f"operation {node.op}"
    if _must_compile(node.attr):
        return f"a call with jit_compile=True in {node.name}"
    for name in _functions_of(node):
        function = functions.pop(name, None)
        if function is None:  # an operation of TensorFlow's own
            continue
        if _must_compile(function.attr):
            return f"function {name} with jit_compile=True"
        for inner in function.node_def:
            reason = _xla_of(inner, functions)
            if reason:
                return reason
    return ""


def _must_compile(attr: Mapping[str, attr_value_pb2.AttrValue]) -> bool:
    # Not attr[...].b alone: a protobuf map makes an entry for whatever it is asked.
    return "_XlaMustCompile" in attr and attr["_XlaMustCompile"].b


def _functions_of(node: node_def_pb2.NodeDef) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        for function in value.list.func:
            yield function.name


def _node_name(tensor: str) -> str:
    return tensor.lstrip("^").partition(":")[0]
