"""TensorProto <-> NumPy, with the fields that TensorFlow Serving fills."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving.model_server.errors import invalid

_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint16": "int_val",
    "uint8": "int_val",
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "bool": "bool_val",
}


def from_proto(proto: tensor_pb2.TensorProto) -> np.ndarray:
    """A TensorProto as an array; strings become an object array of bytes.

    `tensor_content` and the typed fields are both read, and a short typed field repeats its last value.

    Raises:
        StatusError: INVALID_ARGUMENT for a dtype that has no value, or values that do not fill the shape.
    """
    try:
        return tf.make_ndarray(proto)
    except (TypeError, ValueError, KeyError) as error:
        raise invalid(f"A tensor does not parse: {error}") from error


def to_proto(array: np.ndarray, as_content: bool = False) -> tensor_pb2.TensorProto:
    """An array as a TensorProto with its typed field filled, or with `tensor_content` where `as_content` is asked.

    TensorFlow Serving answers in typed fields, and callers read `outputs["y"].float_val`; `tf.make_tensor_proto` would
    give them `tensor_content`.
    """
    if as_content and array.dtype.kind != "O":
        proto = tensor_pb2.TensorProto(dtype=tf.as_dtype(array.dtype).as_datatype_enum, tensor_content=array.tobytes())
    elif array.dtype.kind == "O":
        proto = tensor_pb2.TensorProto(dtype=tf.string.as_datatype_enum, string_val=array.ravel().tolist())
    elif array.dtype.name in _FIELDS:
        proto = tensor_pb2.TensorProto(dtype=tf.as_dtype(array.dtype).as_datatype_enum)
        getattr(proto, _FIELDS[array.dtype.name]).extend(array.ravel().tolist())
    else:  # half precision and complex numbers, whose fields hold parts or bit patterns
        return tf.make_tensor_proto(array)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    return proto
