import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving.model_server import tensors
from serving.model_server.errors import Code, StatusError

ARRAYS = [
    np.float32([[1.5, np.nan, np.inf]]),
    np.float64(3.5),
    np.float16([1.5, 2.5]),
    np.int8([-3, 5]),
    np.uint16([3, 65535]),
    np.int64([-(2**63), 2**63 - 1]),
    np.uint32([2**32 - 1]),
    np.uint64([2**64 - 1]),
    np.bool_([[True], [False]]),
    np.complex64([1 + 2j]),
    np.zeros((0, 3), np.float32),
    np.array([[b"", b"\xff\x00"], [b"a", b"bc"]], object),
    np.array([1.5, -2.0], tf.bfloat16.as_numpy_dtype),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
@pytest.mark.parametrize("as_content", [False, True])
def test_an_array_is_the_same_after_the_way_there_and_back(array, as_content):
    back = tensors.from_proto(tensors.to_proto(np.asarray(array), as_content))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_answers_fill_the_typed_field_unless_content_is_asked_for():
    array = np.float32([1, 2, 3])
    assert not tensors.to_proto(array).tensor_content
    assert list(tensors.to_proto(array).float_val) == [1, 2, 3]
    assert tensors.to_proto(array, as_content=True).tensor_content


def make(dtype, shape=(), **fields):
    proto = tensor_pb2.TensorProto(dtype=tf.as_dtype(dtype).as_datatype_enum, **fields)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize("count", [3, 17, 257])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bool"])
def test_a_field_written_as_bytes_is_the_one_written_by_value(count, dtype):
    array = (np.arange(count) % 5 - 2).astype(dtype)
    by_value = make(dtype, [count])
    field = {"float32": "float_val", "float64": "double_val", "bool": "bool_val"}[dtype]
    getattr(by_value, field).extend(array.tolist())
    assert tensors.to_proto(array) == by_value


@pytest.mark.parametrize(
    "proto",
    [
        make("float32", [2, 3], float_val=[1, 2, 3]),
        make("int64", [5], int64_val=[7]),
        make("bool", [3], bool_val=[True]),
        make("float16", [3], half_val=[0x3C00]),
        make("complex64", [2], scomplex_val=[1.5, 2.5]),
        make("uint64", [2, 0]),
        make("float64", [3]),
        make("string", [3], string_val=[b"a", b"b"]),
        make("qint8", [3], int_val=[1, 2, 3]),
    ],
    ids=lambda proto: f"{tf.as_dtype(proto.dtype).name}",
)
def test_short_fields_are_filled_up_as_tensorflow_does(proto):
    np.testing.assert_array_equal(tensors.from_proto(proto), tf.make_ndarray(proto))


def test_a_long_field_is_cut_an_empty_one_is_zeros_and_a_narrow_integer_keeps_its_low_bits():
    assert tensors.from_proto(make("float32", [2], float_val=[1, 2, 3])).tolist() == [1, 2]
    assert tensors.from_proto(make("string", [2])).tolist() == [b"", b""]
    assert tensors.from_proto(make("uint8", [3], int_val=[300, -1, 5])).tolist() == [44, 255, 5]
    assert tensors.from_proto(make("int8", [1], int_val=[200])).tolist() == [-56]


def test_a_shape_of_unknown_rank_is_a_scalar():
    proto = make("float32", float_val=[2.5])
    proto.tensor_shape.unknown_rank = True
    assert tensors.from_proto(proto).shape == ()


def test_strings_as_content_are_those_of_tensorflow():
    values = [b"", b"ab" * 150, b"\xff\x00"]
    serialized = tf.io.serialize_tensor(tf.constant(values)).numpy()
    theirs = tensor_pb2.TensorProto.FromString(serialized)
    ours = tensors.to_proto(np.array(values, object), as_content=True)
    assert tensors.from_proto(ours).tolist() == tensors.from_proto(theirs).tolist() == values
    assert tf.io.parse_tensor(ours.SerializeToString(), tf.string).numpy().tolist() == values


@pytest.mark.parametrize(
    "proto",
    [
        tensor_pb2.TensorProto(),
        make("resource", [1]),
        make("float32", [-1], float_val=[1]),
        make("float32", [2**62, 2**62], float_val=[1]),
        make("string", [2**40], string_val=[b"a"]),
        make("qint8", [2**40], int_val=[1]),
        make("float32", [1] * 70, float_val=[1]),
        make("float32", [2], tensor_content=b"abc"),
        make("bool", [2], tensor_content=b"abc"),
        make("string", [2], tensor_content=b"\x01\x02ab"),
        make("string", [1], tensor_content=b"\xff\xff\xff\xff\xff\xff"),
        make("string", [3], tensor_content=b"\x80"),
    ],
)
def test_a_tensor_that_does_not_parse_is_refused_by_its_inputs_name(proto):
    with pytest.raises(StatusError, match="tensor parsing error: x: ") as refused:
        tensors.from_proto(proto, "x")
    assert refused.value.code == Code.INVALID_ARGUMENT
