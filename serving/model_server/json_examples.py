"""The JSON of a classify or regress request: its examples -> tf.Examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2

from serving.model_server import examples, json_tensors
from serving.model_server.errors import invalid

_FLOAT_MAX = float(np.finfo(np.float32).max)


def decode_request(request: Mapping[str, Any]) -> np.ndarray:
    """The examples of {"context": {...}, "examples": [{...}, ...]}, serialized; the context may lack.

    A feature is a value or a list of values of one kind: text or {"b64": ...}, numbers with a point, whole numbers or
    true and false.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    context = _example(request["context"], "'context'") if "context" in request else None
    listed = request.get("examples")
    if not isinstance(listed, list):
        got = "none" if "examples" not in request else json_tensors.kind_of(listed)
        raise invalid(f"A classify or regress request needs 'examples', a list/array, got {got}.")
    if not listed:
        raise invalid("'examples' value is an empty array: it needs at least one example.")
    made = [_example(item, f"element {row} of 'examples'") for row, item in enumerate(listed)]
    return examples.serialized(made, context)


def _example(value: Any, what: str) -> example_pb2.Example:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object, {what} is {json_tensors.kind_of(value)}.")
    example = example_pb2.Example()
    for name, content in value.items():
        feature = example.features.feature[_text(name)]
        for item in content if isinstance(content, list) else [content]:
            _add(feature, name, item)
    return example


def _add(feature: feature_pb2.Feature, name: str, value: Any) -> None:
    kind, item = _kind_and_value(name, value)
    if feature.WhichOneof("kind") not in (None, kind):
        had = str(feature.WhichOneof("kind")).removesuffix("_list")
        raise invalid(
            f"Unexpected element type in feature: {name} expecting type: {had}, got {json_tensors.short(value)}"
        )
    getattr(feature, kind).value.append(item)


def _kind_and_value(name: str, value: Any) -> tuple[str, Any]:
    if isinstance(value, str) or json_tensors.is_base64(value):
        return "bytes_list", json_tensors.to_bytes(name, value)
    if isinstance(value, bool):
        return "int64_list", int(value)
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        if value >= 2**63:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported: {value}")
        return "int64_list", value
    if isinstance(value, int | float):
        json_tensors.check_double(name, value)
        if _FLOAT_MAX < abs(value) < float("inf"):
            raise invalid(
                f"Feature: {name}: cannot convert {json_tensors.short(value)} to float without loss of precision."
            )
        return "float_list", float(value)
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {json_tensors.kind_of(value)}")


def _text(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise invalid(f"A feature's name is UTF-8, got {name!r}.") from None
    return name
