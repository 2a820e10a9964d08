"""A SignatureDef in plain Python, and the checks of a request against it. No TensorFlow here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from serving.model_server.errors import invalid

DEFAULT_SIGNATURE = "serving_default"
_TYPE_NAMES = {"float16": "half", "float32": "float", "float64": "double"}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its tensor in the graph, its NumPy dtype (object for strings), its static shape or None."""

    tensor: str
    dtype: np.dtype
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs by name. `defaults` holds the inputs that a gRPC caller may leave out."""

    name: str
    method_name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    defaults: Mapping[str, np.ndarray] = field(default_factory=dict)


def check_feeds(signature: Signature, feeds: Mapping[str, np.ndarray]) -> None:
    """Raises StatusError INVALID_ARGUMENT unless the feeds have exactly the signature's names and dtypes."""
    if feeds.keys() != signature.inputs.keys():
        missing, extra = signature.inputs.keys() - feeds.keys(), feeds.keys() - signature.inputs.keys()
        raise invalid(
            f"Signature {signature.name!r} takes the inputs {in_braces(signature.inputs)}. "
            f"Missing but required: {in_braces(missing)}. Sent extra: {in_braces(extra)}."
        )
    for name, spec in signature.inputs.items():
        if feeds[name].dtype != spec.dtype:
            given = type_name(feeds[name].dtype)
            raise invalid(f"Input {name!r} is expected to be {type_name(spec.dtype)} but {given} is provided.")


def check_filter(signature: Signature, output_filter: tuple[str, ...]) -> None:
    """Raises StatusError INVALID_ARGUMENT unless the filter names outputs of the signature, each once."""
    for name in output_filter:
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                f"{in_braces(signature.outputs)}."
            )
    if len(set(output_filter)) != len(output_filter):
        twice = next(name for name in output_filter if output_filter.count(name) > 1)
        raise invalid(f"duplicate output tensor alias: {twice}. An output_filter names each output once.")


def type_name(dtype: np.dtype) -> str:
    """The dtype as TensorFlow's C++ calls it, for messages."""
    return "string" if dtype.kind == "O" else _TYPE_NAMES.get(dtype.name, dtype.name)


def in_braces(names: Iterable[str]) -> str:
    """{a,b}: a set of names in a message."""
    return "{" + ",".join(sorted(names)) + "}"
