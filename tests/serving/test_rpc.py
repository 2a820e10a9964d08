from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)


@pytest.fixture(scope="module")
def prediction(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


def make_request(model, inputs, signature="", version=None, label="", output_filter=()):
    request = predict_pb2.PredictRequest(output_filter=output_filter)
    request.model_spec.name, request.model_spec.signature_name = model, signature
    if version is not None:
        request.model_spec.version.value = version
    if label:
        request.model_spec.version_label = label
    for name, value in inputs.items():
        proto = value if isinstance(value, tensor_pb2.TensorProto) else tf.make_tensor_proto(value)
        request.inputs[name].CopyFrom(proto)
    return request


def refusal(call, request):
    with pytest.raises(grpc.RpcError) as refused:
        call(request, timeout=30)
    return refused.value.code().name, refused.value.details()


def test_predict_answers_in_typed_fields_with_the_model_spec_filled(prediction):
    response = prediction.Predict(make_request("half", {"x": np.float32([[1.0], [2.0], [5.0]])}), timeout=30)
    assert list(response.outputs["y"].float_val) == [2.5, 3.0, 4.5]
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == [3, 1]
    assert response.model_spec.name == "half"
    assert response.model_spec.version.value == 3
    assert response.model_spec.signature_name == "serving_default"


def test_typed_fields_and_tensor_content_are_read_alike(prediction):
    typed = tensor_pb2.TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[1.0, 2.0, 5.0])
    typed.tensor_shape.dim.add(size=3)
    repeated = tensor_pb2.TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[4.0])
    repeated.tensor_shape.dim.add(size=5)
    content = tf.make_tensor_proto(np.float32([1.0, 2.0, 5.0]))
    assert content.tensor_content

    def ask(proto):
        return list(prediction.Predict(make_request("half", {"x": proto}), timeout=30).outputs["y"].float_val)

    assert ask(typed) == ask(content) == [2.5, 3.0, 4.5]
    assert ask(repeated) == [4.0] * 5


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int8", "int32", "int64", "uint8", "uint64", "bool"]
)
def test_every_dtype_goes_in_and_comes_out(prediction, dtype):
    values = np.array([[0, 1, 3], [5, 7, 11]]).astype(tf.as_dtype(dtype).as_numpy_dtype)
    response = prediction.Predict(make_request("typed", {"value": values}, dtype), timeout=30)
    answer = tf.make_ndarray(response.outputs["value"])
    assert answer.dtype == values.dtype
    np.testing.assert_array_equal(answer, values)


def test_raw_bytes_and_a_megabyte_of_text_pass(prediction):
    values = [b"\xff\xfe\x00", "é".encode(), b"", b"ab" * 500_000]
    response = prediction.Predict(make_request("text", {"text": values}, "echo"), timeout=30)
    assert list(response.outputs["echo"].string_val) == values


def test_messages_above_the_default_limit_of_grpc_pass(prediction):
    values = np.zeros((3, 1_000_003), np.float32)
    response = prediction.Predict(make_request("typed", {"value": values}, "float32"), timeout=60)
    assert len(response.outputs["value"].float_val) == values.size


def test_an_output_filter_is_honoured(prediction):
    request = make_request("text", {"first": ["a"], "second": ["bc"]}, "join", output_filter=["length"])
    response = prediction.Predict(request, timeout=30)
    assert list(response.outputs) == ["length"]
    assert list(response.outputs["length"].int_val) == [3]


def test_a_version_is_named_by_number_or_label(prediction):
    for which in ({"version": 3}, {"label": "stable"}):
        response = prediction.Predict(make_request("half", {"x": np.float32([2.0])}, **which), timeout=30)
        assert list(response.outputs["y"].float_val) == [3.0]


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (make_request("", {}), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (make_request("nix", {"x": np.float32([1])}), "NOT_FOUND", "Latest(nix)"),
        (make_request("half", {"x": np.float32([1])}, version=7), "NOT_FOUND", "Specific(half, 7)"),
        (make_request("half", {"x": np.float32([1])}, label="nix"), "INVALID_ARGUMENT", "nix"),
        (make_request("half", {"x": np.float32([1])}, "nix"), "FAILED_PRECONDITION", '"nix" not found'),
        (make_request("half", {}), "INVALID_ARGUMENT", "Missing but required: {x}"),
        (make_request("half", {"x": np.float32([1]), "z": [1]}), "INVALID_ARGUMENT", "Sent extra: {z}"),
        (make_request("half", {"x": ["a"]}), "INVALID_ARGUMENT", "'x' takes float32, got string"),
        (make_request("half", {"x": np.float32([1])}, output_filter=["z"]), "INVALID_ARGUMENT", "{y}, not 'z'"),
        (make_request("half", {"x": tensor_pb2.TensorProto()}), "INVALID_ARGUMENT", "tensor parsing error: x"),
        (make_request("text", {"text": ["x"]}, "number"), "INVALID_ARGUMENT", "StringToNumber"),
    ],
)
def test_a_bad_call_gets_its_code_and_a_reason_and_harms_no_other(prediction, request_, code, words):
    got, message = refusal(prediction.Predict, request_)
    assert got == code
    assert words in message
    good = prediction.Predict(make_request("half", {"x": np.float32([2.0])}), timeout=30)
    assert list(good.outputs["y"].float_val) == [3.0]


def test_a_tensor_whose_values_do_not_fill_its_shape_is_refused(prediction):
    proto = tf.make_tensor_proto(np.float32([1.0, 2.0, 5.0]))
    proto.tensor_shape.dim[0].size = 7
    assert refusal(prediction.Predict, make_request("half", {"x": proto}))[0] == "INVALID_ARGUMENT"


def test_metadata_holds_the_signatures(prediction):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "text"
    response = prediction.GetModelMetadata(request, timeout=30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert response.model_spec.version.value == 1
    assert set(signatures.signature_def["join"].inputs) == {"first", "second"}


def test_metadata_needs_a_field_that_there_is(prediction):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "text"
    assert refusal(prediction.GetModelMetadata, request)[0] == "INVALID_ARGUMENT"
    request.metadata_field.append("weights")
    assert refusal(prediction.GetModelMetadata, request) == (
        "INVALID_ARGUMENT",
        "Metadata field weights is not supported",
    )


def test_status_names_the_state_of_each_version(models):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "half"
    (entry,) = models.GetModelStatus(request, timeout=30).model_version_status
    assert (entry.version, entry.state) == (3, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    assert (entry.status.error_code, entry.status.error_message) == (0, "")
    request.model_spec.name = "nix"
    assert refusal(models.GetModelStatus, request)[0] == "NOT_FOUND"


def test_calls_without_an_implementation_say_so(prediction, models):
    calls = [
        (prediction.Classify, classification_pb2.ClassificationRequest()),
        (prediction.Regress, regression_pb2.RegressionRequest()),
        (prediction.MultiInference, inference_pb2.MultiInferenceRequest()),
        (models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest()),
    ]
    for call, request in calls:
        code, message = refusal(call, request)
        assert code == "UNIMPLEMENTED"
        assert "not implemented" in message


def test_good_and_bad_calls_at_once_each_get_their_own_answer(prediction):
    def call(number):
        if number % 2:
            return refusal(prediction.Predict, make_request("half", {"x": ["a"]}))[0] == "INVALID_ARGUMENT"
        response = prediction.Predict(make_request("half", {"x": np.float32([number])}), timeout=30)
        return list(response.outputs["y"].float_val) == [number / 2 + 2]

    with ThreadPoolExecutor(13) as pool:
        assert all(pool.map(call, range(211)))
