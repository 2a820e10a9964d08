"""TensorFlow Serving's rules for the JSON of an answer: arrays -> its body.

Pure functions: no HTTP and no TensorFlow.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import orjson

from serving.model_server.errors import invalid
from serving.model_server.signature import type_name

# TensorFlow Serving prints no uint16, no half precision and no complex numbers.
_PRINTED = {np.dtype(kind) for kind in (np.float32, np.float64, np.bool_, object)}
_PRINTED |= {np.dtype(kind) for kind in ("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64")}
_WORDS = {"nan": b"NaN", "inf": b"Infinity", "-inf": b"-Infinity"}


def encode_response(outputs: Mapping[str, np.ndarray], row_form: bool) -> bytes:
    """The answer's body: {"predictions": [...]} in row form, {"outputs": ...} in column form.

    A single output is unwrapped. Strings whose name ends in `_bytes` become {"b64": ...}. Floats are printed in the
    shortest form that is the same number at their own precision.
    """
    for name, array in outputs.items():
        if array.dtype not in _PRINTED:
            raise invalid(f"Failed to write JSON value for tensor type: {type_name(array.dtype)}, of output {name!r}.")
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    if not row_form:
        return b'{"outputs":' + _columns(outputs) + b"}"
    count = _rows_of(outputs)
    if len(outputs) == 1:
        return b'{"predictions":' + _text(*next(iter(outputs.items()))) + b"}"
    return b'{"predictions":' + _rows(outputs, count) + b"}"


def encode_classes(rows: Iterable[tuple[list[bytes], list]]) -> bytes:
    """{"results": [[[label, score], ...], ...]}, of each example's labels and scores."""
    pairs = (
        b",".join(b"[%b,%b]" % (_text("", label), _text("", score)) for label, score in zip(labels, scores))
        for labels, scores in rows
    )
    return b'{"results":[' + b",".join(b"[%b]" % row for row in pairs) + b"]}"


def encode_values(values: np.ndarray) -> bytes:
    """{"results": [value, ...]}: a number for each example."""
    return b'{"results":' + _text("", values) + b"}"


def _rows_of(outputs: Mapping[str, np.ndarray]) -> int:
    sizes = {name: np.shape(array)[0] if np.ndim(array) else None for name, array in outputs.items()}
    scalars = [name for name, size in sizes.items() if size is None]
    if scalars:
        raise invalid(f"Tensor name: {', '.join(scalars)} has no shape information: row form needs rows, got {sizes}.")
    if len(set(sizes.values())) > 1:
        raise invalid(f"Outputs have inconsistent batch size: row form needs as many rows in each, got {sizes}.")
    return next(iter(sizes.values())) or 0


def _rows(outputs: Mapping[str, np.ndarray], count: int) -> bytes:
    columns = [list(_leaves(name, array) if array.dtype.kind == "O" else array) for name, array in outputs.items()]
    try:
        body = orjson.dumps([dict(zip(outputs, row)) for row in zip(*columns)], option=orjson.OPT_SERIALIZE_NUMPY)
        if b"null" not in body:
            return body
    except TypeError:  # text that is not UTF-8
        pass
    rows = (_columns({name: array[row] for name, array in outputs.items()}) for row in range(count))
    return b"[" + b",".join(rows) + b"]"


def _columns(outputs: Mapping[str, Any]) -> bytes:
    if len(outputs) == 1:
        return _text(*next(iter(outputs.items())))
    return b"{" + b",".join(orjson.dumps(name) + b":" + _text(name, value) for name, value in outputs.items()) + b"}"


def _text(name: str, array: Any) -> bytes:
    """The JSON of one output, or of a row of it."""
    if not isinstance(array, np.ndarray):
        array = np.asarray(array, object if isinstance(array, bytes) else None)
    if array.dtype.kind == "O":
        return _string_text(name, array)
    plain = np.ascontiguousarray(array) if array.ndim else array[()]
    body = orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY)
    if array.dtype.kind != "f" or b"null" not in body:
        return body
    # orjson writes null for each number that is not finite, in the order in which they lie.
    pieces = body.split(b"null")
    words = [_WORDS[str(number)] for number in array[~np.isfinite(array)].tolist()]
    return b"".join(chain.from_iterable(zip(pieces, [*words, b""])))


def _string_text(name: str, array: np.ndarray) -> bytes:
    nested = _leaves(name, array)
    try:
        return orjson.dumps(nested)
    except TypeError:
        return json.dumps(nested, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _leaves(name: str, array: np.ndarray) -> Any:
    """Strings as nested lists of text, or of {"b64": ...} by their name."""
    flat = array.reshape(-1).tolist()
    leaves: list
    if name.endswith("_bytes"):
        leaves = [{"b64": base64.b64encode(item).decode("ascii")} for item in flat]
    else:
        leaves = [item.decode("utf-8", "surrogateescape") for item in flat]
    return _nest(leaves, array.shape)


def _nest(leaves: list, shape: tuple[int, ...]) -> Any:
    if not shape:
        return leaves[0]
    if len(shape) == 1:
        return leaves
    boxed = np.empty(len(leaves), object)
    boxed[:] = leaves
    return boxed.reshape(shape).tolist()
