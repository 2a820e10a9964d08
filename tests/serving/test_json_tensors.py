import math
import time

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


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([[1], 2], "2 found at incorrect level: 2. Expecting shape [1] but got: []"),
        ([1, [2]], "list at unexpected level: [2]. Expecting shape [] but got: [1]"),
        (["a", ["b"]], 'list at unexpected level: ["b"]. Expecting shape [] but got: [1]'),
        ([[1], [2, 3]], "at unexpected size: 2 at level: 1 expected size: 1. Expecting tensor size: 1 but got: 2"),
        ([[1, 2], [[3, 4]]], "at level: 1 expected size: 2. Expecting shape [2] but got: [1, 2]"),
        ([[[1]], [[2], [3]]], "Expecting tensor size: 1 but got: 2"),
        ([[], [1]], "Expecting tensor size: 0 but got: 1"),
        ([[[1], [2, 3]]], "at unexpected size: 2 at level: 2 expected size: 1."),
    ],
)
def test_ragged_lists_are_refused_with_the_sizes_that_differ(value, words):
    dtype = "string" if value[0] == "a" else "int32"
    with pytest.raises(StatusError, match="Input 'x' is ragged") as refused:
        json_tensors.decode_tensor("x", value, spec(dtype))
    assert refused.value.code == Code.INVALID_ARGUMENT
    assert words in refused.value.message


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32", "uint64"])
def test_integers_are_taken_to_the_edge_of_their_range_and_no_further(dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    assert json_tensors.decode_tensor("x", [low, high], spec(dtype)).tolist() == [low, high]
    for beyond in (low - 1, high + 1, 10**40):
        with pytest.raises(StatusError, match=f"out of range, not of expected type: {dtype}"):
            json_tensors.decode_tensor("x", [beyond], spec(dtype))


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8"])
def test_a_narrow_integer_is_held_to_the_range_of_int32_and_keeps_its_low_bits(dtype):
    values = [np.iinfo(dtype).min, np.iinfo(dtype).max, 300, -1, 2**31 - 1]
    with np.errstate(over="ignore"):
        wrapped = np.array(values, np.int64).astype(dtype)
    np.testing.assert_array_equal(json_tensors.decode_tensor("x", values, spec(dtype)), wrapped)
    with pytest.raises(StatusError, match=f"not of expected type: {dtype}"):
        json_tensors.decode_tensor("x", [2**31], spec(dtype))


@pytest.mark.parametrize("dtype", ["float16", "uint16", "complex64"])
def test_a_dtype_that_json_numbers_do_not_convert_to_is_unimplemented(dtype):
    with pytest.raises(StatusError, match=r"Conversion of JSON Value: 1\.5") as refused:
        json_tensors.decode_tensor("x", [1.5], spec(dtype))
    assert refused.value.code == Code.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("dtype", "value", "called"),
    [
        ("int32", 1.0, "int32"),
        ("int32", True, "int32"),
        ("float32", True, "float"),
        ("float64", None, "double"),
        ("bool", 0, "bool"),
        ("bool", "true", "bool"),
        ("float32", "1", "float"),
        ("float32", {"b64": "AA=="}, "float"),
        ("string", 1, "string"),
        ("string", False, "string"),
    ],
)
def test_a_value_of_another_kind_is_refused(dtype, value, called):
    with pytest.raises(StatusError, match=f"is not of expected type: {called}"):
        json_tensors.decode_tensor("x", [value], spec(dtype))


@pytest.mark.parametrize(
    ("dtype", "taken", "refused"),
    [("float32", 2**24 - 1, 2**24), ("float32", -(2**24) + 1, -(2**24)), ("float64", 2**53 - 1, 2**53)],
)
def test_a_whole_number_is_taken_as_a_float_while_every_one_has_its_own(dtype, taken, refused):
    assert json_tensors.decode_tensor("x", [taken, 0.5], spec(dtype)).tolist() == [taken, 0.5]
    assert json_tensors.decode_tensor("x", float(refused), spec(dtype)) == refused
    with pytest.raises(StatusError, match="without loss of precision"):
        json_tensors.decode_tensor("x", [0.5, refused], spec(dtype))


def test_a_number_too_large_for_its_float_is_refused_and_infinity_is_not():
    assert math.isinf(json_tensors.decode_tensor("x", math.inf, spec("float32")))
    assert json_tensors.decode_tensor("x", 2**70, spec("float32")) == 2.0**70  # no 64-bit integer: a decimal
    for dtype, value, words in (("float32", 1e39, "loss of precision"), ("float64", 10**400, "too big")):
        with pytest.raises(StatusError, match=words):
            json_tensors.decode_tensor("x", [1.0, value], spec(dtype))


def test_a_bytes_object_stands_for_itself_wherever_a_string_may():
    body = {"instances": ["a", {"b64": "/wA="}]}
    assert json_tensors.decode_request(body, signature(x="string"))[0]["x"].tolist() == [b"a", b"\xff\x00"]
    body = {"inputs": {"b64": "/wA="}}
    assert json_tensors.decode_request(body, signature(x="string"))[0]["x"].item() == b"\xff\x00"
    with pytest.raises(StatusError, match="is an Object"):
        json_tensors.decode_tensor("x", [{"b64": "/wA=", "more": 1}], spec("string"))


@pytest.mark.parametrize("text", ["/wA=", "/wA", " /w\nA= "])
def test_base64_may_be_padded_and_spaced(text):
    assert json_tensors.to_bytes("x", {"b64": text}) == b"\xff\x00"


@pytest.mark.parametrize("text", ["/wA==", "=", "/", "_wA=", "/w=A"])
def test_what_is_no_base64_is_refused(text):
    with pytest.raises(StatusError, match="Unable to base64 decode"):
        json_tensors.to_bytes("x", {"b64": text})


def test_column_form_leaves_inputs_that_there_are_not_and_row_form_refuses_them():
    kind = signature(x="int32")
    assert json_tensors.decode_request({"inputs": {"x": [2], "z": [3]}}, kind)[0]["x"].tolist() == [2]
    with pytest.raises(StatusError, match="no named input: z; keys must be equal to: x"):
        json_tensors.decode_request({"instances": [{"x": 2, "z": 3}]}, kind)


def test_a_signature_without_inputs_is_refused():
    with pytest.raises(StatusError, match="Failed to get input map"):
        json_tensors.decode_request({"inputs": {}}, signature())


def test_of_a_key_given_twice_the_first_counts():
    body = json_tensors.parse_body(b'{"inputs": [1], "inputs": [2], "signature_name": "a", "signature_name": "b"}')
    assert body == {"inputs": [1], "signature_name": "a"}


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"1" + b"0" * 400])
@pytest.mark.parametrize("beside", [b"0.5", b"Infinity"])
def test_a_number_beyond_a_double_is_not_taken_for_infinity(number, beside):
    body = json_tensors.parse_body(b'{"inputs": [' + beside + b", " + number + b"]}")
    for dtype in ("float32", "float64"):
        with pytest.raises(StatusError, match="too big to be stored in double"):
            json_tensors.decode_tensor("x", body["inputs"], spec(dtype))


def test_short_names_of_infinity_and_a_byte_order_mark_are_read_but_not_inside_a_text():
    body = json_tensors.parse_body(b'\xef\xbb\xbf{"inputs": [Inf, -Inf, -NaN, "Inf \\" -NaN"]}')["inputs"]
    assert body[:2] == [math.inf, -math.inf]
    assert math.isnan(body[2])
    assert body[3] == 'Inf " -NaN'


@pytest.mark.parametrize("text", [b'\\"' * 30_000, b'\\"' * 30_000 + b"\\"], ids=len)
def test_a_body_that_breaks_off_is_refused_at_once_however_long_it_is(text):
    before = time.process_time()
    with pytest.raises(StatusError, match="JSON Parse error"):
        json_tensors.parse_body(b'{"inputs": ["' + text)
    assert time.process_time() - before < 1.0  # going back at each quote took 7 s of one thread that lets no other run


def test_a_list_as_deep_as_json_may_be_is_refused_like_any_other():
    body = b'{"inputs": [0, ' + b"[" * 1000 + b"]" * 1000 + b"]}"
    with pytest.raises(StatusError, match="unexpected level"):
        json_tensors.decode_request(json_tensors.parse_body(body), signature(x="float32"))


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
