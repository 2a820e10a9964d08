"""TensorFlow Serving's rules for the JSON of a request: its value and a signature -> arrays.

Pure functions: no HTTP and no TensorFlow. A wrong value raises `StatusError` INVALID_ARGUMENT, which names the input.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import orjson

from serving.model_server.errors import Code, StatusError, invalid
from serving.model_server.signature import Signature, TensorSpec, in_braces, type_name

MAX_RANK = 64  # NumPy's
# What the JSON reader holds an integer to; a narrower dtype then keeps its low bits, as TensorFlow's field does.
_INTEGERS: dict[np.dtype, Any] = {
    np.dtype(name): np.iinfo(np.int32 if name in ("int8", "int16", "uint8") else name)
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64")
}
# Up to here every whole number has its own float; beyond, a whole number is refused rather than rounded.
_WHOLE = {np.dtype(np.float32): 2**24 - 1, np.dtype(np.float64): 2**53 - 1}
_KEYS = (b'"instances"', b'"inputs"', b'"signature_name"', b'"examples"', b'"context"')
# The very objects that a written infinity becomes: any other infinite number is one too large for a double.
_CONSTANTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# Possessive, and content without its closing quote: a body read once from end to end, whatever it holds. The matcher
# holds the interpreter, so one that went back would let every other caller wait.
_LENIENT = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|\bInf\b|-NaN\b', re.DOTALL)

# An escape: a pair of surrogates, half of one (the group), or any other.
_ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def parse_body(body: bytes) -> dict[str, Any]:
    """A request's body as a JSON object.

    NaN, Inf and Infinity are numbers; bytes that are not UTF-8 pass; of a key given twice the first counts.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        value = orjson.loads(body)
        # Where each key has its two quotes and there are no more, none is there twice: true of most arrays of numbers.
        if isinstance(value, dict) and body.count(b'"') > 2 * len(value) and any(body.count(key) > 1 for key in _KEYS):
            value = _parse_slowly(body)
    except orjson.JSONDecodeError as strict_error:
        try:
            value = _parse_slowly(body)
        except (ValueError, RecursionError):
            raise invalid(f"JSON Parse error: Invalid value or structure: {strict_error}") from None
    if not isinstance(value, dict):
        raise invalid(f"JSON Parse error: the request Is not object, got {kind_of(value)}.")
    return value


def _parse_slowly(body: bytes) -> Any:
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    # Python would take a half for a byte that is no UTF-8, as such a byte stands in `text`.
    if any(escape[1] for escape in _ESCAPES.finditer(text)):
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.")
    options: dict[str, Any] = {"object_pairs_hook": _first_of_each, "parse_constant": _CONSTANTS.__getitem__}
    try:
        return json.loads(text, **options)
    except ValueError:  # Python knows NaN and Infinity, but not their short and signed forms
        return json.loads(_LENIENT.sub(_spelled_out, text), **options)


def _first_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _spelled_out(token: re.Match) -> str:
    return {"Inf": "Infinity", "-NaN": "NaN"}.get(token[0], token[0])


def signature_name(request: Mapping[str, Any]) -> str:
    """The request's "signature_name", or "" when it has none."""
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(f"'signature_name' key must be a string value. It is {kind_of(name)}.")
    return name


def decode_request(request: Mapping[str, Any], signature: Signature) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays of a predict request.

    Args:
        request: {"instances": [...]} (row form: one element per row) or {"inputs": ...} (column form: one value per
            input).
        signature: names and dtypes. Shapes are the request's own.

    Returns:
        Input name -> array, and whether the request was in row form.

    Raises:
        StatusError: UNIMPLEMENTED for an input of a dtype that JSON has no numbers for, else INVALID_ARGUMENT.
    """
    if not signature.inputs:
        raise invalid(f"Failed to get input map for signature: {signature.name}, which has no inputs.")
    if "instances" in request and "inputs" in request:
        raise invalid(
            "Not formatted correctly: a predict request has only one of the keys 'inputs' and 'instances', got both."
        )
    if "instances" in request:
        return _decode_rows(request["instances"], signature), True
    if "inputs" in request:
        return _decode_columns(request["inputs"], signature), False
    raise invalid("Missing 'inputs' or 'instances' key: a predict request has one of them, got neither.")


def _decode_rows(instances: Any, signature: Signature) -> dict[str, np.ndarray]:
    if not isinstance(instances, list):
        raise invalid(f"'instances' is a list/array, got {kind_of(instances)}.")
    if not instances:
        raise invalid("No values in 'instances' array: it needs at least one element, got [].")
    if not _is_named(instances[0]):
        name = _only_input(signature, "instances", "a list of objects")
        for row, instance in enumerate(instances):
            if _is_named(instance):
                raise invalid(f"Expecting value/list but got object at item {row} of 'instances'.")
        return {name: decode_tensor(name, instances, signature.inputs[name])}
    for row, instance in enumerate(instances):
        if not _is_named(instance):
            got = "list" if isinstance(instance, list) else kind_of(instance)
            raise invalid(f"Expecting object but got {got} at item {row} of 'instances'.")
        if instance.keys() != signature.inputs.keys():
            _refuse_names(instance, row, signature)
    return {
        name: decode_tensor(name, [instance[name] for instance in instances], spec)
        for name, spec in signature.inputs.items()
    }


def _decode_columns(inputs: Any, signature: Signature) -> dict[str, np.ndarray]:
    if not _is_named(inputs):
        name = _only_input(signature, "inputs", "an object")
        return {name: decode_tensor(name, inputs, signature.inputs[name])}
    missing = [name for name in signature.inputs if name not in inputs]
    if missing:
        raise invalid(f"Missing named input: {', '.join(missing)} in 'inputs' object.")
    return {name: decode_tensor(name, inputs[name], spec) for name, spec in signature.inputs.items()}


def _is_named(value: Any) -> bool:
    """An object of inputs, and not the object that stands for a bytes value."""
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: Any) -> bool:
    """Whether the value is {"b64": "..."}, which stands for bytes."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _only_input(signature: Signature, key: str, needed: str) -> str:
    if len(signature.inputs) != 1:
        raise invalid(
            f"'{key}' is a plain value/list, but signature {signature.name!r} takes multiple inputs "
            f"{in_braces(signature.inputs)}: {needed} with these keys is expected."
        )
    return next(iter(signature.inputs))


def _refuse_names(given: dict[str, Any], row: int, signature: Signature) -> None:
    missing, extra = signature.inputs.keys() - given.keys(), given.keys() - signature.inputs.keys()
    told = [f"it does not have named input: {', '.join(sorted(missing))}"] if missing else []
    told += [f"there is no named input: {', '.join(sorted(extra))}"] if extra else []
    raise invalid(
        f"Failed to process element: {row} of 'instances' list: {', '.join(told)}; "
        f"keys must be equal to: {','.join(sorted(signature.inputs))}"
    )


def decode_tensor(name: str, value: Any, spec: TensorSpec) -> np.ndarray:
    """A JSON value, nested lists of leaves, as an array of the input's dtype and the lists' shape."""
    level: list = [value]
    shape: list[int] = []
    while level and isinstance(level[0], list):
        width = len(level[0])
        for item in level:
            if not isinstance(item, list) or len(item) != width:
                _refuse_ragged(name, value, item, len(shape), width)
        shape.append(width)
        level = list(chain.from_iterable(level))
        if len(shape) > MAX_RANK:
            raise invalid(f"Input {name!r} is nested more than {MAX_RANK} deep.")
    if spec.dtype.kind == "O":
        array = np.empty(len(level), object)
        array[:] = [to_bytes(name, leaf) for leaf in level]
    else:
        array = _numbers(name, level, spec.dtype)
    return array.reshape(shape)


def _refuse_ragged(name: str, value: list, item: Any, depth: int, width: int) -> NoReturn:
    """Tells of both: the list of another size, and the first row that is not like row 0."""
    if isinstance(item, list):
        told = f"Encountered list at unexpected size: {len(item)} at level: {depth} expected size: {width}."
    else:
        told = f"JSON Value: {short(item)} found at incorrect level: {depth + 1}."
    shape, size = _extent(value[0])
    for other_shape, other_size in map(_extent, value[1:]):
        if other_size != size:
            told += f" Expecting tensor size: {size} but got: {other_size}"
            break
        if other_shape != shape:
            told += f" Expecting shape {shape} but got: {other_shape}"
            break
    raise invalid(f"Input {name!r} is ragged: {told}")


def _extent(value: Any) -> tuple[list[int], int]:
    """The sizes along the first elements, and the number of leaves."""
    shape, size, level = [], 0, [value]
    while level:
        lists = [item for item in level if isinstance(item, list)]
        size += len(level) - len(lists)
        if isinstance(level[0], list):
            shape.append(len(level[0]))
        level = list(chain.from_iterable(lists))
    return shape, size


def _numbers(name: str, leaves: list, dtype: np.dtype) -> np.ndarray:
    types = set(map(type, leaves))
    if dtype in _WHOLE:
        if not types <= {int, float}:
            _refuse(name, leaves, dtype, {int, float})
        return _floats(name, leaves, dtype, int in types)
    if dtype.kind == "b":
        if not types <= {bool}:
            _refuse(name, leaves, dtype, {bool})
        return np.array(leaves, dtype)
    if dtype not in _INTEGERS:
        if leaves:
            given = short(leaves[0])
            raise StatusError(
                Code.UNIMPLEMENTED, f"Conversion of JSON Value: {given} to type: {type_name(dtype)}, of input {name!r}."
            )
        return np.array(leaves, dtype)
    if not types <= {int}:
        _refuse(name, leaves, dtype, {int})
    held = _INTEGERS[dtype]
    try:
        array = np.array(leaves, held.dtype)
    except OverflowError:
        leaf = next(leaf for leaf in leaves if not held.min <= leaf <= held.max)
        raise invalid(
            f"Input {name!r}: JSON value {short(leaf)} is out of range, not of expected type: {type_name(dtype)}"
        ) from None
    return array.astype(dtype, copy=False)


def _floats(name: str, leaves: list, dtype: np.dtype, has_whole: bool) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):
            array = np.array(leaves, dtype)
    except OverflowError:
        raise invalid(f"JSON Parse error: Input {name!r}: a number is too big to be stored in double.") from None
    suspects: list = []
    if has_whole:
        limit = _WHOLE[dtype]
        suspects = [leaf for leaf in leaves if type(leaf) is int and limit < abs(leaf) and -(2**63) <= leaf < 2**64]
    if not suspects and np.isinf(array).any():
        infinite = [leaf for leaf, number in zip(leaves, array) if np.isinf(number)]
        for leaf in infinite:
            check_double(name, leaf)
        suspects = [leaf for leaf in infinite if not np.isinf(float(leaf))]
    if suspects:
        raise invalid(
            f"Input {name!r}: Cannot convert JSON value: {short(suspects[0])} to {type_name(dtype)} "
            "without loss of precision."
        )
    return array


def check_double(name: str, number: float) -> None:
    """Raises StatusError INVALID_ARGUMENT for a number that is infinite without having been written so."""
    if np.isinf(float(number)) and not any(number is constant for constant in _CONSTANTS.values()):
        raise invalid(f"JSON Parse error: Number too big to be stored in double, in {name!r}.")


def _refuse(name: str, leaves: list, dtype: np.dtype, allowed: set[type]) -> None:
    leaf = next(leaf for leaf in leaves if type(leaf) not in allowed)
    if isinstance(leaf, list):
        raise _deeper(name, leaf)
    raise invalid(
        f"Input {name!r}: JSON Value: {short(leaf)} Type: {kind_of(leaf)} is not of expected type: {type_name(dtype)}"
    )


def to_bytes(name: str, leaf: Any) -> bytes:
    """The bytes of a JSON string, or of {"b64": ...}: padded or not, with white space or without."""
    try:
        if isinstance(leaf, str):
            return leaf.encode("utf-8", "surrogateescape")
        if is_base64(leaf):
            text = "".join(leaf["b64"].split())
            bare = text.rstrip("=")
            return base64.b64decode(text if text != bare else bare + "=" * (-len(bare) % 4), validate=True)
    except UnicodeEncodeError:
        raise invalid(f"JSON Parse error: Input {name!r}: half of a surrogate pair is no character.") from None
    except (binascii.Error, ValueError):
        raise invalid(f"Input {name!r}: Unable to base64 decode {short(leaf)}") from None
    if isinstance(leaf, list):
        raise _deeper(name, leaf)
    if isinstance(leaf, dict):
        raise invalid(f"Input {name!r}: {short(leaf)} is an Object not formatted correctly for base64 data")
    raise invalid(f"Input {name!r}: JSON Value: {short(leaf)} Type: {kind_of(leaf)} is not of expected type: string")


def _deeper(name: str, leaf: list) -> StatusError:
    return invalid(
        f"Input {name!r} is ragged: Encountered list at unexpected level: {short(leaf)}. "
        f"Expecting shape [] but got: {_extent(leaf)[0]}"
    )


def kind_of(value: Any) -> str:
    """What a JSON value is, as TensorFlow Serving calls it in messages."""
    if isinstance(value, bool):
        return str(value)
    return {dict: "Object", list: "Array", str: "String", type(None): "Null"}.get(type(value), "Number")


def short(value: Any) -> str:
    """The JSON of a value, cut to fit a message; what is cut off is not written first, however large and deep it is."""
    text = ""
    for piece in json.JSONEncoder().iterencode(value):
        text += piece
        if len(text) > 80:
            return f"{text[:77]}..."
    return text
