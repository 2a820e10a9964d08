import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.model_server import json_answers, json_tensors
from serving.model_server.errors import StatusError
from serving.model_server.signature import TensorSpec


def encode(row_form=False, **outputs):
    return json_answers.encode_response({name: np.asarray(value) for name, value in outputs.items()}, row_form)


def strings(*values):
    return np.array(values, object)


def test_a_single_output_is_unwrapped_and_several_are_named():
    assert encode(y=np.float32([[1.5], [2.0]])) == b'{"outputs":[[1.5],[2.0]]}'
    assert encode(True, y=np.float32([1.5, 2.0])) == b'{"predictions":[1.5,2.0]}'
    assert encode(y=np.float32(0.1)) == b'{"outputs":0.1}'
    two = {"a": np.int64([1, 2]), "b": strings(b"x", b"y")}
    assert json.loads(encode(**two)) == {"outputs": {"a": [1, 2], "b": ["x", "y"]}}
    assert json.loads(encode(True, **two)) == {"predictions": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]}


def test_row_form_needs_as_many_rows_in_every_output():
    with pytest.raises(StatusError, match="'a': 2, 'b': 3"):
        encode(True, a=np.zeros(2), b=np.zeros(3))
    with pytest.raises(StatusError, match="Tensor name: a has no shape"):
        encode(True, a=np.float32(1))


def test_floats_are_printed_in_their_shortest_form_beside_nan_too():
    assert encode(y=np.float32([0.1, 1e-7, 16777216])) == b'{"outputs":[0.1,1e-7,16777216.0]}'
    beside = json.loads(encode(y=np.float32([0.1, 1e-7, 16777216, np.nan])))["outputs"]
    assert beside[:3] == [0.1, 1e-7, 16777216.0]
    assert math.isnan(beside[3])
    assert encode(y=np.float64([0.1, np.inf, -np.inf])) == b'{"outputs":[0.1,Infinity,-Infinity]}'
    assert json.loads(encode(True, a=np.float32([np.nan, 0.1]), b=np.int32([2, 3])))["predictions"][1] == {
        "a": 0.1,
        "b": 3,
    }


def test_the_word_null_in_a_text_survives():
    assert json.loads(encode(y=strings(b"null", b"nan")))["outputs"] == ["null", "nan"]


def test_names_in_bytes_are_base64_and_stray_bytes_stay():
    assert encode(raw_bytes=strings(b"\xff")) == b'{"outputs":[{"b64":"/w=="}]}'
    assert encode(raw=strings(b"\xff", "é".encode())) == b'{"outputs":["\xff", "\xc3\xa9"]}'


def test_several_outputs_with_numbers_that_are_not_finite_and_text_that_is_not_utf8_have_their_rows():
    rows = encode(True, a=np.float32([[np.nan, 0.1], [2, -np.inf]]), b=strings(b"\xff", b"y"))
    assert rows == b'{"predictions":[{"a":[NaN,0.1],"b":"\xff"},{"a":[2.0,-Infinity],"b":"y"}]}'
    assert encode(True, a=np.zeros(0), b=strings()) == b'{"predictions":[]}'


@pytest.mark.parametrize("dtype", ["float16", "uint16", "complex64"])
def test_a_dtype_that_is_not_printed_is_refused(dtype):
    with pytest.raises(StatusError, match="Failed to write JSON value for tensor type"):
        encode(y=np.zeros(3, dtype))


def test_an_answer_without_outputs_is_refused():
    with pytest.raises(StatusError, match="empty tensor map"):
        encode()


def test_classes_are_pairs_and_values_numbers():
    rows = [([b"a", b"\xe9"], list(np.float32([0.1, np.nan]))), ([], [])]
    assert json_answers.encode_classes(rows) == b'{"results":[[["a",0.1],["\xe9",NaN]],[]]}'
    assert json_answers.encode_values(np.float32([0.1, 2])) == b'{"results":[0.1,2.0]}'


def decode(body, dtype):
    value = json_tensors.parse_body(json.dumps(body).encode())["inputs"]
    return json_tensors.decode_tensor("x", value, TensorSpec("t:0", np.dtype(dtype), None))


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), min_size=1, max_size=5))
def test_any_text_comes_back(rows):
    assert json.loads(encode(x=decode({"inputs": rows}, object)))["outputs"] == rows


@given(st.lists(st.floats(width=32), min_size=1, max_size=7))
def test_any_float32_comes_back(values):
    answer = json.loads(encode(x=decode({"inputs": values}, np.float32)))["outputs"]
    np.testing.assert_array_equal(np.float32(answer), np.float32(values))
