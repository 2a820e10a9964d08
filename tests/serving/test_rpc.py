from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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

from serving.model_server import monitoring, rpc, tensors


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


DTYPES = "float32 float64 float16 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool complex64 complex128"


@pytest.mark.parametrize("dtype", [*DTYPES.split(), "string"])
@pytest.mark.parametrize("as_content", [False, True])
def test_every_dtype_goes_in_either_way_and_comes_out(prediction, dtype, as_content):
    values = np.array([[0, 1, 3], [5, 7, 11]]).astype(tf.as_dtype(dtype).as_numpy_dtype)
    if dtype == "string":
        values = np.array([[b"a", b""], [b"\xff\x00", b"bc"]], object)
    proto = tensors.to_proto(values, as_content)
    assert bool(proto.tensor_content) == as_content
    response = prediction.Predict(make_request("typed", {"value": proto}, dtype), timeout=30)
    answer = tf.make_ndarray(response.outputs["value"])
    assert not response.outputs["value"].tensor_content
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
        (make_request("", {}), "INVALID_ARGUMENT", "ModelSpec has no name"),
        (make_request("nix", {"x": np.float32([1])}), "NOT_FOUND", "Latest(nix)"),
        (make_request("half", {"x": np.float32([1])}, version=7), "NOT_FOUND", "Specific(half, 7)"),
        (make_request("half", {"x": np.float32([1])}, label="nix"), "INVALID_ARGUMENT", "nix"),
        (make_request("half", {"x": np.float32([1])}, "nix"), "FAILED_PRECONDITION", '"nix" not found'),
        (make_request("half", {}), "INVALID_ARGUMENT", "Missing but required: {x}"),
        (make_request("half", {"x": np.float32([1]), "z": [1]}), "INVALID_ARGUMENT", "Sent extra: {z}"),
        (make_request("half", {"x": ["a"]}), "INVALID_ARGUMENT", "'x' is expected to be float but string is provided"),
        (predict_pb2.PredictRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (
            make_request("half", {"x": np.float32([1])}, output_filter=["y", "y"]),
            "INVALID_ARGUMENT",
            "duplicate output tensor alias: y",
        ),
        (make_request("examples", {"scale": np.float32([1])}, "with_default"), "INVALID_ARGUMENT", "required: {x}"),
        (
            make_request("half", {"x": np.float32([1])}, output_filter=["z"]),
            "INVALID_ARGUMENT",
            "not found in signature: z",
        ),
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


def test_content_that_does_not_fill_its_shape_is_refused(prediction):
    proto = tf.make_tensor_proto(np.float32([1.0, 2.0, 5.0]))
    proto.tensor_shape.dim[0].size = 7
    code, message = refusal(prediction.Predict, make_request("half", {"x": proto}))
    assert (code, "tensor parsing error: x" in message) == ("INVALID_ARGUMENT", True)


def test_an_input_left_out_has_its_default(prediction):
    def ask(**inputs):
        response = prediction.Predict(make_request("examples", inputs, "with_default"), timeout=30)
        return list(response.outputs["y"].float_val)

    x = np.float32([2.0, 5.0])
    assert ask(x=x) == ask(x=x, scale=np.float32([3.0])) == [6.0, 15.0]
    assert ask(x=x, scale=np.float32(7.0)) == [14.0, 35.0]


def test_the_flag_for_tensor_content_has_the_same_values_in_another_field(flagged_server):
    with grpc.insecure_channel(f"127.0.0.1:{flagged_server.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        output = stub.Predict(make_request("half", {"x": np.float32([2.0])}), timeout=30).outputs["y"]
    assert np.frombuffer(output.tensor_content, np.float32).tolist() == [4.0]
    assert not output.float_val


def example(**features):
    made = tf.train.Example()
    for name, value in features.items():
        feature = made.features.feature[name]
        (feature.int64_list if isinstance(value, int) else feature.float_list).value.append(value)
    return made


def make_examples(kind, signature, *examples, context=None, model="examples"):
    request = kind()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    if context is None:
        request.input.example_list.examples.extend(examples)
    else:
        request.input.example_list_with_context.context.CopyFrom(context)
        request.input.example_list_with_context.examples.extend(examples)
    return request


def classification(signature, *examples, **options):
    return make_examples(classification_pb2.ClassificationRequest, signature, *examples, **options)


def regression(signature, *examples, **options):
    return make_examples(regression_pb2.RegressionRequest, signature, *examples, **options)


def pairs(result):
    return [[(one.label, one.score) for one in row.classes] for row in result.classifications]


def spec_of(response):
    return response.model_spec.name, response.model_spec.version.value, response.model_spec.signature_name


def test_classify_answers_labels_and_scores(prediction):
    request = classification("classify_both", example(x=2.0, k=7), example(x=6.0))
    response = prediction.Classify(request, timeout=30)
    assert pairs(response.result) == [[("7", 3.0), ("7!", 6.0)], [("0", 5.0), ("0!", 10.0)]]
    assert spec_of(response) == ("examples", 5, "classify_both")
    scores = prediction.Classify(classification("classify_x_to_y", example(x=2.0)), timeout=30)
    assert pairs(scores.result) == [[("", 3.0)]]
    labels = prediction.Classify(classification("classify_labels", example(x=2.0, k=3)), timeout=30)
    assert pairs(labels.result) == [[("3", 0.0)]]


def test_regress_answers_a_value_for_each_example(prediction):
    response = prediction.Regress(regression("regress_x_to_y", example(x=2.0), example(x=80.0)), timeout=30)
    assert [one.value for one in response.result.regressions] == [3.0, 42.0]
    assert spec_of(response) == ("examples", 5, "regress_x_to_y")


def test_a_context_stands_in_for_the_features_an_example_lacks(prediction):
    request = classification("classify_both", example(x=2.0), example(x=2.0, k=5), context=example(x=90.0, k=7))
    rows = pairs(prediction.Classify(request, timeout=30).result)
    assert [row[0] for row in rows] == [("7", 3.0), ("5", 3.0)]


def test_a_label_that_is_not_utf8_is_marked_in_a_message(prediction):
    response = prediction.Classify(classification("classify_bytes", example(x=2.0)), timeout=30)
    assert pairs(response.result) == [[("caf\ufffd", 0.0)]]


@pytest.mark.parametrize(
    ("signature", "code", "words"),
    [
        ("nix", "INVALID_ARGUMENT", "No signature was found with the name: nix"),
        ("", "INVALID_ARGUMENT", "name: serving_default"),
        (
            "regress_x_to_y",
            "FAILED_PRECONDITION",
            "Classify needs an input",
        ),
        ("classify_named_wrong", "FAILED_PRECONDITION", 'an output "classes" or "scores"'),
        ("classify_uneven", "INVALID_ARGUMENT", "as many columns, got 1 and 2"),
        ("classify_flat", "INVALID_ARGUMENT", "shape [1, num_classes], got float [1]"),
    ],
)
def test_a_signature_that_does_not_classify_is_refused(prediction, signature, code, words):
    got, message = refusal(prediction.Classify, classification(signature, example(x=2.0)))
    assert (got, words in message) == (code, True), message


@pytest.mark.parametrize(
    ("signature", "code", "words"),
    [
        ("classify_x_to_y", "FAILED_PRECONDITION", "Regress needs an input"),
        ("regress_named_wrong", "FAILED_PRECONDITION", 'an output "outputs"'),
        ("regress_wide", "INVALID_ARGUMENT", "got float [1, 2]"),
        ("regress_double", "INVALID_ARGUMENT", "got double [1, 1]"),
        ("regress_other_input", "INVALID_ARGUMENT", "'inputs' is expected to be float but string is provided"),
    ],
)
def test_a_signature_that_does_not_regress_is_refused(prediction, signature, code, words):
    got, message = refusal(prediction.Regress, regression(signature, example(x=2.0)))
    assert (got, words in message) == (code, True), message


def test_an_input_without_examples_is_empty(prediction):
    for request in (regression("regress_x_to_y"), regression("regress_x_to_y", context=example(x=2.0))):
        assert refusal(prediction.Regress, request) == ("INVALID_ARGUMENT", "Input is empty.")
    assert refusal(prediction.Regress, regression("regress_x_to_y", example(y=2.0)))[0] == "INVALID_ARGUMENT"
    assert refusal(prediction.Regress, regression("", example(x=2.0), model="nix"))[0] == "NOT_FOUND"


def tasks(*which, model="examples"):
    request = inference_pb2.MultiInferenceRequest()
    for signature, method in which:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = model, signature
    request.input.example_list.examples.extend([example(x=2.0), example(x=6.0)])
    return request


def test_multi_inference_answers_each_task_as_its_own_call_does(prediction):
    request = tasks(("regress_x_to_y", "regress"), ("classify_both", "classify"))
    regressed, classified = prediction.MultiInference(request, timeout=30).results
    examples = example(x=2.0), example(x=6.0)
    alone = prediction.Regress(regression("regress_x_to_y", *examples), timeout=30)
    assert regressed.regression_result == alone.result
    assert spec_of(regressed) == spec_of(alone)
    alone = prediction.Classify(classification("classify_both", *examples), timeout=30)
    assert classified.classification_result == alone.result
    assert spec_of(classified) == spec_of(alone)


def test_tasks_that_do_not_go_together_are_refused(prediction):
    regress, classify = ("regress_x_to_y", "regress"), ("classify_x_to_y", "classify")
    mixed = tasks(regress, classify)
    mixed.tasks[1].model_spec.name = "half"
    for request, code, words in (
        (tasks(), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (tasks(regress, regress), "INVALID_ARGUMENT", "Duplicate evaluation of signature: regress_x_to_y"),
        (mixed, "INVALID_ARGUMENT", "same model name, got 'examples' and 'half'"),
        (tasks(("regress_x_to_y", "rank")), "UNIMPLEMENTED", "Unsupported signature method_name"),
        (tasks(("regress_x_to_y", "classify")), "FAILED_PRECONDITION", "Classify needs an input"),
        (tasks(regress, ("regress_other_input", "regress")), "INVALID_ARGUMENT", "Input tensor must be the same"),
        (tasks(("nix", "regress")), "INVALID_ARGUMENT", "signature not found: nix"),
        (tasks(regress, model="nix"), "NOT_FOUND", "Latest(nix)"),
    ):
        got, message = refusal(prediction.MultiInference, request)
        assert (got, words in message) == (code, True), message


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


def test_status_is_of_all_versions_or_of_the_one_named(models, flagged_server):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "half"
    request.model_spec.version_label = "stable"
    assert [entry.version for entry in models.GetModelStatus(request, timeout=30).model_version_status] == [3]
    request.model_spec.version.value = 7
    assert refusal(models.GetModelStatus, request) == ("NOT_FOUND", "Could not find version 7 of model half")
    assert refusal(models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest())[1] == "Missing ModelSpec"


def test_a_configuration_sent_is_served_from_then_on(flagged_server):
    config = model_management_pb2.ReloadConfigRequest()
    entry = config.config.model_config_list.config.add(name="half", base_path=str(flagged_server.folder / "half"))
    entry.model_platform = "tensorflow"
    entry.model_version_policy.all.SetInParent()
    with grpc.insecure_channel(f"127.0.0.1:{flagged_server.port}") as channel:
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        old = make_request("half", {"x": np.float32([2.0])}, version=2)
        assert refusal(prediction.Predict, old)[0] == "NOT_FOUND"
        config.metric_names.extend(["/tensorflow/core/graph_runs", "/own/nothing"])
        answer = models.HandleReloadConfigRequest(config, timeout=60)
        assert answer.status.error_code == 0
        assert [(one.name, one.int64_value_increase) for one in answer.metric] == [
            ("/tensorflow/core/graph_runs", 0),
            ("/own/nothing", 0),
        ]
        assert prediction.Predict(old, timeout=30).model_spec.version.value == 2
        entry.version_labels["canary"] = 3
        assert models.HandleReloadConfigRequest(config, timeout=60).status.error_code == 0
        canary = make_request("half", {"x": np.float32([2.0])}, label="canary")
        assert prediction.Predict(canary, timeout=30).model_spec.version.value == 3
        entry.version_labels["canary"] = 7
        assert refusal(models.HandleReloadConfigRequest, config)[0] == "FAILED_PRECONDITION"
        empty = model_management_pb2.ReloadConfigRequest()
        assert refusal(models.HandleReloadConfigRequest, empty)[0] == "INVALID_ARGUMENT"
        assert prediction.Predict(canary, timeout=30).model_spec.version.value == 3


def test_a_reload_tells_how_the_counters_it_names_grew(monkeypatch):
    counter = monitoring.Counter("/own/reloads")
    counter.add(amount=2)
    monkeypatch.setattr(monitoring, "METRICS", [counter])
    manager = SimpleNamespace(reload=lambda config: counter.add(amount=3))
    request = model_management_pb2.ReloadConfigRequest(metric_names=["/own/reloads", "/own/nothing"])
    request.config.model_config_list.SetInParent()
    grown = {one.name: one.int64_value_increase for one in rpc.reload_config(manager, request).metric}
    assert grown == {"/own/reloads": 3, "/own/nothing": 0}


def test_health_is_answered_under_its_flag_only(channel, flagged_server):
    with grpc.insecure_channel(f"127.0.0.1:{flagged_server.port}") as flagged:
        health = health_pb2_grpc.HealthStub(flagged)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert refusal(health.Check, health_pb2.HealthCheckRequest(service="nix"))[0] == "NOT_FOUND"
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    unflagged = health_pb2_grpc.HealthStub(channel)
    assert refusal(unflagged.Check, health_pb2.HealthCheckRequest())[0] == "UNIMPLEMENTED"


FIELDS = ["half_val", "float_val", "double_val", "int_val", "string_val", "int64_val", "bool_val", "uint32_val"]
tensor_protos = st.builds(
    lambda dtype, sizes, unknown, content, values: tensor_pb2.TensorProto(
        dtype=dtype,
        tensor_shape={"dim": [{"size": size} for size in sizes], "unknown_rank": unknown},
        tensor_content=content,
        **{field: [value.encode() if field == "string_val" else int(value)] for field, value in values.items()},
    ),
    st.integers(0, 30) | st.just(1),
    st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**40, 2**63 - 1]), max_size=3),
    st.booleans(),
    st.just(b"") | st.binary(max_size=9),
    st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(["0", "1"])),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensor_protos,
    st.sampled_from(["float32", "int8", "bool", "float16", "uint64", "total"]),
    st.lists(st.sampled_from(["value", "total", "nix", "\0"]), max_size=2),
)
def test_no_tensor_makes_the_server_fail(prediction, proto, signature, output_filter):
    request = make_request("typed", {"value": proto}, signature, output_filter=output_filter)
    try:
        prediction.Predict(request, timeout=30)
    except grpc.RpcError as refused:
        assert refused.code().name == "INVALID_ARGUMENT", refused.details()


def test_bytes_that_are_no_message_are_refused_in_a_line_of_the_log(channel, caplog):
    predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    assert refusal(predict, b"\xff\xff")[0] == "INTERNAL"
    assert [(line.name, line.exc_info) for line in caplog.records] == [("grpc._common", None)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=50), st.sampled_from(["regress_x_to_y", "classify_both"]))
def test_no_example_makes_the_server_fail(prediction, raw, signature):
    request = make_request("examples", {"inputs": [raw]}, signature)
    try:
        prediction.Predict(request, timeout=30)
    except grpc.RpcError as refused:
        assert refused.code().name == "INVALID_ARGUMENT", refused.details()


def test_good_and_bad_calls_at_once_each_get_their_own_answer(prediction):
    def call(number):
        if number % 2:
            return refusal(prediction.Predict, make_request("half", {"x": ["a"]}))[0] == "INVALID_ARGUMENT"
        response = prediction.Predict(make_request("half", {"x": np.float32([number])}), timeout=30)
        return list(response.outputs["y"].float_val) == [number / 2 + 2]

    with ThreadPoolExecutor(13) as pool:
        assert all(pool.map(call, range(211)))
