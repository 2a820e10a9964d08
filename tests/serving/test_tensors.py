import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving.model_server import tensors
from serving.model_server.errors import StatusError

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


def test_a_tensor_that_does_not_parse_is_refused():
    with pytest.raises(StatusError, match="does not parse"):
        tensors.from_proto(tensor_pb2.TensorProto())
