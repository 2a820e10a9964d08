import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    predict_pb2,
    prediction_log_pb2,
    regression_pb2,
)

from serving.model_server.errors import Code, StatusError
from serving.model_server.loaded import LoadedVersion
from serving.model_server.warmup import WARMUP_FILE, warm_up


def write(folder, logs):
    (folder / WARMUP_FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / WARMUP_FILE)) as writer:
        for kind, request in logs:
            log = prediction_log_pb2.PredictionLog()
            getattr(log, kind).request.CopyFrom(request)
            writer.write(log.SerializeToString())


def predict(value, dtype="float32"):
    request = predict_pb2.PredictRequest()
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(value, dtype))
    return "predict_log", request


@pytest.fixture
def half(tmp_path, save_half_plus, monkeypatch):
    """A version whose runs are written down in `.ran`."""
    loaded = LoadedVersion(save_half_plus(tmp_path / "1", 2.0))
    loaded.ran, real = [], loaded.run

    def run(signature, feeds, output_filter=()):
        outputs = real(signature, feeds, output_filter)
        loaded.ran.append(feeds["x"].tolist())
        return outputs

    monkeypatch.setattr(loaded, "run", run)
    yield loaded
    loaded.close()


def test_each_request_is_run_as_often_as_asked(half):
    assert warm_up(half) == 0
    write(half.path, [predict([1.0]), predict([[1.0], [2.0]])])
    assert warm_up(half, 2) == 2
    assert half.ran == [[1.0], [1.0], [[1.0], [2.0]], [[1.0], [2.0]]]


def test_a_request_that_fails_fails_the_warm_up(half):
    write(half.path, [predict([1.0]), predict(["a"], "string")])
    with pytest.raises(StatusError, match="after 2 records: Input 'x' is expected to be float but string is provided"):
        warm_up(half)
    write(half.path, [predict([1.0])] * 1001)
    with pytest.raises(StatusError, match="at most 1000 records"):
        warm_up(half)


def test_a_cut_file_fails_the_warm_up(half):
    write(half.path, [predict([1.0])])
    (half.path / WARMUP_FILE).write_bytes((half.path / WARMUP_FILE).read_bytes()[:-3])
    with pytest.raises(StatusError, match="tf_serving_warmup_requests, after 0 records") as refused:
        warm_up(half)
    assert refused.value.code == Code.DATA_LOSS


def test_a_record_that_is_no_prediction_log_fails_the_warm_up(half):
    write(half.path, [])
    with tf.io.TFRecordWriter(str(half.path / WARMUP_FILE)) as writer:
        writer.write(b"malformed")
    with pytest.raises(StatusError, match="Failed to parse warmup record") as refused:
        warm_up(half)
    assert refused.value.code == Code.INVALID_ARGUMENT


def test_every_kind_of_inference_is_replayed_and_no_other(tmp_path, save_examples, monkeypatch):
    classify, regress = classification_pb2.ClassificationRequest(), regression_pb2.RegressionRequest()
    multi = inference_pb2.MultiInferenceRequest()
    classify.model_spec.signature_name, regress.model_spec.signature_name = "classify_x_to_y", "regress_x_to_y"
    for kind in ("classify", "regress"):
        task = multi.tasks.add(method_name=f"tensorflow/serving/{kind}")
        task.model_spec.signature_name = f"{kind}_x_to_y"
    for request in (classify, regress, multi):
        request.input.example_list.examples.add().features.feature["x"].float_list.value.append(2.0)
    logs = [("classify_log", classify), ("regress_log", regress), ("multi_inference_log", multi)]
    loaded = LoadedVersion(save_examples(tmp_path / "1"))
    write(loaded.path, logs)
    ran, real = [], loaded.run
    monkeypatch.setattr(loaded, "run", lambda signature, *rest: ran.append(signature.name) or real(signature, *rest))
    assert warm_up(loaded) == 3
    assert ran == ["classify_x_to_y", "regress_x_to_y"] * 2
    session_run = prediction_log_pb2.PredictionLog()
    session_run.session_run_log.SetInParent()
    with tf.io.TFRecordWriter(str(loaded.path / WARMUP_FILE)) as writer:
        writer.write(session_run.SerializeToString())
    with pytest.raises(StatusError, match="a session_run_log is not replayed") as refused:
        warm_up(loaded)
    assert refused.value.code == Code.UNIMPLEMENTED
    loaded.close()
