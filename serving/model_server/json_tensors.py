"""TensorFlow Serving's JSON rules: a request's value and a signature -> arrays, and arrays -> an answer's value.

Pure functions: no HTTP and no TensorFlow. A wrong value raises `StatusError` INVALID_ARGUMENT, which names the input.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import orjson

from serving.model_server.errors import invalid
from serving.model_server.signature import Signature, TensorSpec

MAX_RANK = 64  # NumPy's
_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}}


def parse_body(body: bytes) -> dict[str, Any]:
    """A request's body as a JSON object. NaN, Infinity and -Infinity are numbers; raw bytes that are not UTF-8 pass."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as strict_error:
        try:
            value = json.loads(body.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError):
            raise invalid(f"JSON Parse error: {strict_error}") from None
    if not isinstance(value, dict):
        raise invalid(f"JSON Parse error: The request is a JSON object, got {_kind(value)}.")
    return value


def signature_name(request: Mapping[str, Any]) -> str:
    """The request's "signature_name", or "" when it has none."""
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(f"'signature_name' is a string, got {_kind(name)}.")
    return name


def decode_request(request: Mapping[str, Any], signature: Signature) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays of a predict request.

    Args:
        request: {"instances": [...]} (row form: one element per row) or {"inputs": ...} (column form: one value per
            input).
        signature: names and dtypes. Shapes are the request's own.

    Returns:
        Input name -> array, and whether the request was in row form.
    """
    if ("instances" in request) == ("inputs" in request):
        both = "both" if "inputs" in request else "neither"
        raise invalid(f"A predict request has either 'instances' or 'inputs', got {both}.")
    if "instances" in request:
        return _decode_rows(request["instances"], signature), True
    return _decode_columns(request["inputs"], signature), False


def encode_response(outputs: Mapping[str, np.ndarray], row_form: bool) -> bytes:
    """The answer's body: {"predictions": [...]} in row form, {"outputs": ...} in column form.

    A single output is unwrapped. Strings whose name ends in `_bytes` become {"b64": ...}. Floats are printed in the
    shortest form that is the same number at their own precision.
    """
    values = {name: _printable(name, array) for name, array in outputs.items()}
    if not row_form:
        return _dump({"outputs": next(iter(values.values())) if len(values) == 1 else values})
    sizes = {name: array.shape[0] if array.ndim else None for name, array in outputs.items()}
    if None in sizes.values() or len(set(sizes.values())) > 1:
        raise invalid(f"An answer in row form needs outputs with the same number of rows, got {sizes}.")
    if len(values) == 1:
        return _dump({"predictions": next(iter(values.values()))})
    count = next(iter(sizes.values()), 0) or 0
    return _dump({"predictions": [{name: value[row] for name, value in values.items()} for row in range(count)]})


def _decode_rows(instances: Any, signature: Signature) -> dict[str, np.ndarray]:
    if not isinstance(instances, list):
        raise invalid(f"'instances' is a list, got {_kind(instances)}.")
    if not instances:
        raise invalid("'instances' needs at least one element, got [].")
    if not _is_named(instances[0]):
        name = _only_input(signature, "each element of 'instances'")
        return {name: decode_tensor(name, instances, signature.inputs[name])}
    for row, instance in enumerate(instances):
        if not _is_named(instance):
            raise invalid(f"All elements of 'instances' are objects or none is; element {row} is {_kind(instance)}.")
        _check_names(instance, signature, f"element {row} of 'instances'")
    return {
        name: decode_tensor(name, [instance[name] for instance in instances], spec)
        for name, spec in signature.inputs.items()
    }


def _decode_columns(inputs: Any, signature: Signature) -> dict[str, np.ndarray]:
    if not _is_named(inputs):
        name = _only_input(signature, "'inputs'")
        return {name: decode_tensor(name, inputs, signature.inputs[name])}
    _check_names(inputs, signature, "'inputs'")
    return {name: decode_tensor(name, inputs[name], spec) for name, spec in signature.inputs.items()}


def _is_named(value: Any) -> bool:
    """An object of inputs, and not the object that stands for a bytes value."""
    return isinstance(value, dict) and value.keys() != {"b64"}


def _only_input(signature: Signature, what: str) -> str:
    if len(signature.inputs) != 1:
        names = ", ".join(signature.inputs)
        raise invalid(
            f"Signature {signature.name!r} has the inputs {{{names}}}: {what} must be an object with these keys."
        )
    return next(iter(signature.inputs))


def _check_names(given: dict[str, Any], signature: Signature, what: str) -> None:
    missing = sorted(signature.inputs.keys() - given.keys())
    if missing:
        raise invalid(f"Missing named input: {', '.join(missing)} in {what}.")
    extra = sorted(given.keys() - signature.inputs.keys())
    if extra:
        raise invalid(f"Unknown input: {', '.join(extra)} in {what}; the inputs are {', '.join(signature.inputs)}.")


def decode_tensor(name: str, value: Any, spec: TensorSpec) -> np.ndarray:
    """A JSON value, nested lists of leaves, as an array of the input's dtype and the lists' shape."""
    level: list = [value]
    shape: list[int] = []
    while level and isinstance(level[0], list):
        width = len(level[0])
        for item in level:
            if not isinstance(item, list) or len(item) != width:
                got = f"{len(item)} elements" if isinstance(item, list) else _kind(item)
                raise invalid(
                    f"Input {name!r} is ragged: at depth {len(shape) + 1} a list of {width} stands beside {got}."
                )
        shape.append(width)
        level = list(chain.from_iterable(level))
        if len(shape) > MAX_RANK:
            raise invalid(f"Input {name!r} is nested more than {MAX_RANK} deep.")
    if spec.dtype.kind == "O":
        array = np.empty(len(level), object)
        array[:] = [_bytes(name, leaf) for leaf in level]
    else:
        array = _numbers(name, level, spec.dtype)
    return array.reshape(shape)


def _numbers(name: str, leaves: list, dtype: np.dtype) -> np.ndarray:
    allowed = _JSON_TYPES.get(dtype.kind, {int, float})
    if dtype.kind == "c":
        raise invalid(f"Input {name!r}: JSON has no {dtype.name} numbers.")
    wrong = set(map(type, leaves)) - allowed
    if wrong:
        first = next(leaf for leaf in leaves if type(leaf) in wrong)
        raise invalid(f"Input {name!r} takes {dtype.name}, got {_kind(first)}: {_short(first)}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(leaves, dtype)
    except (OverflowError, ValueError):
        raise invalid(f"Input {name!r} takes {dtype.name}, a value is out of its range.") from None
    if dtype.kind not in "biu" and np.isinf(array).any():
        for leaf, number in zip(leaves, array):
            if np.isinf(number) and not np.isinf(float(leaf)):
                raise invalid(f"Input {name!r} takes {dtype.name}, {_short(leaf)} is out of its range.")
    return array


def _bytes(name: str, leaf: Any) -> bytes:
    try:
        if isinstance(leaf, str):
            return leaf.encode("utf-8", "surrogateescape")
        if isinstance(leaf, dict) and leaf.keys() == {"b64"}:
            return base64.b64decode(leaf["b64"], validate=True)
    except UnicodeEncodeError:
        raise invalid(f"Input {name!r}: half of a surrogate pair is not a character: {_short(leaf)}") from None
    except (binascii.Error, ValueError, TypeError):
        raise invalid(f"Input {name!r}: unable to base64 decode {_short(leaf)}") from None
    raise invalid(f"Input {name!r} takes string, got {_kind(leaf)}: {_short(leaf)}")


def _printable(name: str, array: np.ndarray) -> Any:
    if array.dtype.kind != "O":
        array = np.asarray(array, np.float32 if array.dtype.name == "bfloat16" else array.dtype, order="C")
        return array if array.ndim else array[()]
    if name.endswith("_bytes"):
        leaves = [{"b64": base64.b64encode(item).decode("ascii")} for item in array.ravel()]
    else:
        leaves = [item.decode("utf-8", "surrogateescape") for item in array.ravel()]
    return _nest(leaves, array.shape)


def _nest(leaves: list, shape: tuple[int, ...]) -> Any:
    if not shape:
        return leaves[0]
    boxed = np.empty(len(leaves), object)
    boxed[:] = leaves
    return boxed.reshape(shape).tolist()


def _dump(value: dict[str, Any]) -> bytes:
    # orjson prints float32 in its own shortest form, but knows neither NaN nor strings that are not UTF-8.
    try:
        body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
        if b"null" not in body:
            return body
    except TypeError:
        pass
    return json.dumps(value, default=_plain, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _plain(array: Any) -> Any:
    array = np.asarray(array)
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:
        array = array.astype(np.str_).astype(np.float64)  # 0.1, not 0.10000000149011612
    return array.tolist()


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
