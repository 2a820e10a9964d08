import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.model_server import json_tensors
from serving.model_server.errors import Code, StatusError
from serving.model_server.signature import Signature, TensorSpec


def spec(dtype):
    return TensorSpec("t:0", np.dtype(object if dtype == "string" else dtype), None)


def signature(**inputs):
    return Signature("s", "", {name: spec(dtype) for name, dtype in inputs.items()}, {})


def encode(row_form=False, **outputs):
    return json_tensors.encode_response({name: np.asarray(value) for name, value in outputs.items()}, row_form)


def strings(*values):
    return np.array(values, object)


def test_row_form_and_column_form_give_the_same_arrays():
    kind = signature(first="string", second="float32")
    rows = {"instances": [{"first": "a", "second": [1, 2, 3]}, {"first": "b", "second": [4, 5, 6.5]}]}
    columns = {"inputs": {"first": ["a", "b"], "second": [[1, 2, 3], [4, 5, 6.5]]}}
    from_rows, is_row = json_tensors.decode_request(rows, kind)
    from_columns, is_column_row = json_tensors.decode_request(columns, kind)
    assert (is_row, is_column_row) == (True, False)
    for name in ("first", "second"):
        np.testing.assert_array_equal(from_rows[name], from_columns[name])
    assert from_rows["second"].shape == (2, 3)
    assert from_rows["second"].dtype == np.float32


@pytest.mark.parametrize(
    ("value", "shape"), [(1.0, ()), ([1.0, 2.0], (2,)), ([[1.0], [2.0], [3.0]], (3, 1)), ([[], []], (2, 0)), ([], (0,))]
)
def test_the_shape_is_that_of_the_lists(value, shape):
    assert json_tensors.decode_tensor("x", value, spec("float32")).shape == shape


@pytest.mark.parametrize("value", [[[1], 2], [1, [2]], [[1], [2, 3]], [[[1]], [[2], [3]]], [[], [1]]])
def test_ragged_lists_are_refused(value):
    with pytest.raises(StatusError, match="'x'") as refused:
        json_tensors.decode_tensor("x", value, spec("int32"))
    assert refused.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_integers_are_taken_to_the_edge_of_their_range_and_no_further(dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    assert json_tensors.decode_tensor("x", [low, high], spec(dtype)).tolist() == [low, high]
    for beyond in (low - 1, high + 1, 10**40):
        with pytest.raises(StatusError, match=f"takes {dtype}, a value is out of its range"):
            json_tensors.decode_tensor("x", [beyond], spec(dtype))


def test_a_float_is_no_integer_and_a_boolean_no_number():
    for dtype, value in (
        ("int32", 1.0),
        ("int32", True),
        ("float32", True),
        ("bool", 0),
        ("bool", "true"),
        ("float32", "1"),
    ):
        with pytest.raises(StatusError, match=f"takes {dtype}, got"):
            json_tensors.decode_tensor("x", [value], spec(dtype))


def test_a_number_too_large_for_its_float_is_refused_and_infinity_is_not():
    assert math.isinf(json_tensors.decode_tensor("x", math.inf, spec("float16")))
    for dtype, value in (("float32", 1e39), ("float16", 70000), ("float64", 10**400)):
        with pytest.raises(StatusError, match="out of its range"):
            json_tensors.decode_tensor("x", [1.0, value], spec(dtype))


def test_complex_numbers_are_refused():
    with pytest.raises(StatusError, match="no complex64"):
        json_tensors.decode_tensor("x", [1.0], spec("complex64"))


def test_a_bytes_object_stands_for_itself_wherever_a_string_may():
    body = {"instances": ["a", {"b64": "/wA="}]}
    assert json_tensors.decode_request(body, signature(x="string"))[0]["x"].tolist() == [b"a", b"\xff\x00"]
    body = {"inputs": {"b64": "/wA="}}
    assert json_tensors.decode_request(body, signature(x="string"))[0]["x"].item() == b"\xff\x00"
    with pytest.raises(StatusError, match="got an object"):
        json_tensors.decode_tensor("x", [{"b64": "/wA=", "more": 1}], spec("string"))


def test_an_input_named_b64_is_not_taken_for_bytes_among_others():
    body = {"instances": [{"b64": 1, "x": 2}]}
    arrays, _ = json_tensors.decode_request(body, signature(b64="int32", x="int32"))
    assert (arrays["b64"].tolist(), arrays["x"].tolist()) == ([1], [2])


def test_bodies_that_are_no_json_objects_are_refused():
    for body in (b"", b"nix", b"3", b"[]", b"null", b'{"a": 1', b"[" * 99_991, b'{"a":' * 99_991):
        with pytest.raises(StatusError, match="JSON Parse error"):
            json_tensors.parse_body(body)


def test_nan_infinity_and_stray_bytes_parse():
    body = json_tensors.parse_body(b'{"instances": [NaN, -Infinity, 1], "s": "caf\xe9"}')
    assert math.isnan(body["instances"][0])
    assert body["instances"][1] == -math.inf
    assert json_tensors.decode_tensor("x", body["s"], spec("string")).item() == b"caf\xe9"


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
    with pytest.raises(StatusError, match="'a': None"):
        encode(True, a=np.float32(1))


def test_floats_are_printed_in_their_shortest_form_beside_nan_too():
    assert encode(y=np.float32([0.1, 1e-7, 16777216])) == b'{"outputs":[0.1,1e-7,16777216.0]}'
    beside = json.loads(encode(y=np.float32([0.1, 1e-7, 16777216, np.nan])))["outputs"]
    assert beside[:3] == [0.1, 1e-7, 16777216.0]
    assert math.isnan(beside[3])
    assert encode(y=np.float64([0.1, np.inf, -np.inf])) == b'{"outputs": [0.1, Infinity, -Infinity]}'
    assert json.loads(encode(True, a=np.float32([np.nan, 0.1]), b=np.int32([2, 3])))["predictions"][1] == {
        "a": 0.1,
        "b": 3,
    }


def test_the_word_null_in_a_text_survives():
    assert json.loads(encode(y=strings(b"null", b"nan")))["outputs"] == ["null", "nan"]


def test_names_in_bytes_are_base64_and_stray_bytes_stay():
    assert encode(raw_bytes=strings(b"\xff")) == b'{"outputs":[{"b64":"/w=="}]}'
    assert encode(raw=strings(b"\xff", "é".encode())) == b'{"outputs": ["\xff", "\xc3\xa9"]}'


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), min_size=1, max_size=5))
def test_any_text_comes_back(rows):
    body = json.dumps({"inputs": rows}).encode()
    arrays, _ = json_tensors.decode_request(json_tensors.parse_body(body), signature(x="string"))
    assert json.loads(encode(x=arrays["x"]))["outputs"] == rows


@given(st.lists(st.floats(width=32), min_size=1, max_size=7))
def test_any_float32_comes_back(values):
    body = json.dumps({"inputs": values}).encode()
    arrays, _ = json_tensors.decode_request(json_tensors.parse_body(body), signature(x="float32"))
    np.testing.assert_array_equal(np.float32(json.loads(encode(x=arrays["x"]))["outputs"]), np.float32(values))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "z", "b64"]), inner, max_size=3),
    max_leaves=7,
)


@given(json_values, st.sampled_from(["instances", "inputs"]), st.sampled_from(["string", "float32", "int8", "bool"]))
def test_any_json_is_either_taken_or_refused_as_an_invalid_argument(value, key, dtype):
    try:
        arrays, _ = json_tensors.decode_request({key: value}, signature(x=dtype))
    except StatusError as refused:
        assert refused.code == Code.INVALID_ARGUMENT
    else:
        assert arrays["x"].dtype == spec(dtype).dtype
