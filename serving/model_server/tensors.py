"""TensorProto <-> NumPy, by TensorFlow Serving's rules and with the fields that it fills."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.model_server.errors import StatusError, invalid

MAX_BYTES = 2**31 - 1  # as a message: a small request must not ask for more memory by its shape alone
MAX_RANK = 64  # NumPy's

# The field of each dtype, and what one element of that field is to NumPy.
_FIELDS = {
    "float32": ("float_val", np.float32),
    "float64": ("double_val", np.float64),
    "int32": ("int_val", np.int32),
    "int16": ("int_val", np.int32),
    "int8": ("int_val", np.int32),
    "uint16": ("int_val", np.int32),
    "uint8": ("int_val", np.int32),
    "int64": ("int64_val", np.int64),
    "uint32": ("uint32_val", np.uint32),
    "uint64": ("uint64_val", np.uint64),
    "bool": ("bool_val", np.bool_),
    "float16": ("half_val", np.int32),
    "bfloat16": ("half_val", np.int32),
    "complex64": ("scomplex_val", np.float32),
    "complex128": ("dcomplex_val", np.float64),
}
_NAMES = {np.dtype(tf.as_dtype(name).as_numpy_dtype): name for name in _FIELDS}  # dtype.name is slow to ask for
_ENUMS = {name: tf.as_dtype(name).as_datatype_enum for name in _FIELDS}
_DTYPES = {_ENUMS[name]: dtype for dtype, name in _NAMES.items()}
# Fields whose elements lie in the message as they lie in memory: key, then length, then the array's bytes.
_PACKED = {
    "float32": tensor_pb2.TensorProto.FLOAT_VAL_FIELD_NUMBER << 3 | 2,
    "float64": tensor_pb2.TensorProto.DOUBLE_VAL_FIELD_NUMBER << 3 | 2,
    "bool": tensor_pb2.TensorProto.BOOL_VAL_FIELD_NUMBER << 3 | 2,
}
_PACKED_FROM = 16  # elements; below it, Python's list is quicker


def from_proto(proto: tensor_pb2.TensorProto, name: str = "") -> np.ndarray:
    """A TensorProto as an array; strings become an object array of bytes.

    `tensor_content` goes before the typed field. A typed field that is too short repeats its last value, an empty one
    is zeros, one that is too long is cut; an integer beyond a narrow dtype keeps its low bits.

    Args:
        proto: any dtype that has a typed field.
        name: the input's, for the error.

    Raises:
        StatusError: INVALID_ARGUMENT for a dtype or shape that is none, or a `tensor_content` that does not fill it.
    """
    try:
        shape = _shape(proto.tensor_shape)
        if proto.dtype == types_pb2.DT_STRING:
            return _strings(proto, math.prod(shape)).reshape(shape)
        dtype = _DTYPES.get(proto.dtype)
        if dtype is None:  # quantised and 4- and 8-bit kinds
            _check_size(math.prod(shape), 1)
            return tf.make_ndarray(proto)
        if proto.tensor_content:
            return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
        return _typed(proto, dtype, math.prod(shape)).reshape(shape)
    except StatusError as error:
        raise invalid(f"tensor parsing error: {name}: {error.message}") from error
    except (TypeError, ValueError, KeyError) as error:
        raise invalid(f"tensor parsing error: {name}: {error}") from error


def to_proto(
    array: np.ndarray, as_content: bool = False, proto: tensor_pb2.TensorProto | None = None
) -> tensor_pb2.TensorProto:
    """An array as a TensorProto with its typed field filled, or with `tensor_content` where `as_content` is asked.

    TensorFlow Serving answers in typed fields, and callers read `outputs["y"].float_val`; `tf.make_tensor_proto` would
    give them `tensor_content`.

    Args:
        array: strings as an object array of bytes.
        as_content: the values as one string of bytes.
        proto: an empty one to fill, or None for a new one.
    """
    proto = tensor_pb2.TensorProto() if proto is None else proto
    name = _NAMES.get(array.dtype)
    if array.dtype.kind == "O":
        proto.dtype = types_pb2.DT_STRING
        values = array.ravel().tolist()
        if as_content:
            proto.tensor_content = b"".join([*(_varint(len(value)) for value in values), *values])
        else:
            proto.string_val.extend(values)
    elif name is None:
        proto.CopyFrom(tf.make_tensor_proto(array))
        return proto
    else:
        proto.dtype = _ENUMS[name]
        if as_content:
            proto.tensor_content = array.tobytes()
        elif name in _PACKED and array.size >= _PACKED_FROM:
            proto.MergeFromString(bytes([_PACKED[name]]) + _varint(array.nbytes) + array.tobytes())
        else:
            field, kind = _FIELDS[name]
            getattr(proto, field).extend(_elements(array, name, kind))
    dims = proto.tensor_shape  # set even for a scalar, whose shape is known to have no axes
    dims.SetInParent()
    for size in array.shape:
        dims.dim.add(size=size)
    return proto


def _elements(array: np.ndarray, name: str, kind: type) -> list:
    flat = np.ascontiguousarray(array).reshape(-1)
    if name in ("float16", "bfloat16"):
        return flat.view(np.uint16).tolist()
    return flat.view(kind).tolist() if name.startswith("complex") else flat.tolist()


def _shape(proto) -> tuple[int, ...]:
    shape = tuple([dim.size for dim in proto.dim])
    if (proto.unknown_rank and shape) or len(shape) > MAX_RANK or (shape and min(shape) < 0):
        raise invalid(f"a shape has at most {MAX_RANK} axes, each of 0 or more, got {list(shape)}.")
    return shape


def _typed(proto: tensor_pb2.TensorProto, dtype: np.dtype, count: int) -> np.ndarray:
    name = _NAMES[dtype]
    field, kind = _FIELDS[name]
    values = getattr(proto, field)
    given: np.ndarray = np.array(values, kind)
    if name in ("float16", "bfloat16"):
        given = given.astype(np.uint16).view(dtype)
    elif dtype.kind == "c":
        given = given[: len(given) // 2 * 2].view(dtype)
    elif given.dtype != dtype:
        given = given.astype(dtype)
    return given if len(given) == count else _filled(given, count, 0)


def _strings(proto: tensor_pb2.TensorProto, count: int) -> np.ndarray:
    values = _split(proto.tensor_content, count) if proto.tensor_content else list(proto.string_val)
    given: np.ndarray = np.empty(len(values), object)
    given[:] = values
    return given if len(given) == count else _filled(given, count, b"")


def _filled(given: np.ndarray, count: int, empty: int | bytes) -> np.ndarray:
    """The values cut to `count`, or the last of them repeated up to it."""
    if count <= len(given):
        return given[:count]
    _check_size(count, given.itemsize)
    array = np.empty(count, given.dtype)
    array[: len(given)] = given
    array[len(given) :] = given[-1] if len(given) else empty
    return array


def _check_size(count: int, itemsize: int) -> None:
    if count * itemsize > MAX_BYTES:
        raise invalid(f"a tensor holds at most {MAX_BYTES} bytes, its shape asks for {count} elements.")


def _split(content: bytes, count: int) -> list[bytes]:
    """The strings of a `tensor_content`: first all lengths, as varints, then all bytes."""
    if count > len(content):
        raise invalid(f"{len(content)} bytes are no {count} strings.")
    lengths, position = [], 0
    for _ in range(count):
        length, shift = 0, 0
        while True:
            byte = content[position] if position < len(content) else 0x80
            position += 1
            if shift > 28 or position > len(content):
                raise invalid("the lengths of the strings are cut off.")
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise invalid(f"strings of {sum(lengths)} bytes do not fill {len(content) - position}.")
    strings = []
    for length in lengths:
        strings.append(content[position : position + length])
        position += length
    return strings


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
