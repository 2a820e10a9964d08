import re
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.model_server import monitoring
from serving.model_server.errors import Code, StatusError
from serving.model_server.monitoring import Counter, Histogram, RestMonitor

pytestmark = pytest.mark.usefixtures("frozen_heap")


def test_a_counter_is_written_under_tensorflow_servings_name():
    counter = Counter("/tensorflow/serving/request_count", "model_name", "status")
    counter.add("m", "OK")
    counter.add("m", "OK", amount=2)
    counter.add('a"\\\n', "OK")
    assert counter.lines() == [
        "# TYPE :tensorflow:serving:request_count counter",
        ':tensorflow:serving:request_count{model_name="m",status="OK"} 3',
        ':tensorflow:serving:request_count{model_name="a\\"\\\\\\n",status="OK"} 1',
    ]
    assert counter.value("m", "OK") == 3
    without_labels = Counter("/tensorflow/core/graph_runs")
    without_labels.add()
    assert without_labels.lines()[1] == ":tensorflow:core:graph_runs{} 1"


def test_a_histogram_counts_what_lies_at_or_below_each_limit():
    histogram = Histogram("/x/latency", "model_name", scale=10, growth=1.8, count=3)
    for value in (2, 10, 18.5, 7000):
        histogram.observe(value, "m")
    assert histogram.lines() == [
        "# TYPE :x:latency histogram",
        ':x:latency_bucket{model_name="m",le="10"} 2',
        ':x:latency_bucket{model_name="m",le="18"} 2',
        ':x:latency_bucket{model_name="m",le="32.4"} 3',
        ':x:latency_bucket{model_name="m",le="+Inf"} 4',
        ':x:latency_sum{model_name="m"} 7030.5',
        ':x:latency_count{model_name="m"} 4',
    ]
    assert histogram.value("m") == (4, 7030.5)
    assert histogram.value("other") == (0, 0.0)


LINE = r'(# TYPE [a-zA-Z_:][a-zA-Z0-9_:]* (counter|histogram)|[a-zA-Z_:][a-zA-Z0-9_:]*{(\w+="[^"]*",?)*} [0-9.e+]+)'


def test_every_line_of_the_page_has_prometheus_form():
    monitoring.GRAPH_RUNS.add()
    lines = monitoring.page().decode().splitlines()
    assert "# TYPE :tensorflow:serving:request_latency histogram" in lines
    assert [line for line in lines if not re.fullmatch(LINE, line)] == []


def test_a_configuration_says_where_the_page_is(tmp_path):
    file = tmp_path / "monitoring"
    for text, path in [
        ('prometheus_config { enable: true path: "/metrics" }', "/metrics"),
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ('prometheus_config { path: "/metrics" }', ""),
        ("", ""),
    ]:
        file.write_text(text)
        assert monitoring.read_path(file) == path
    file.write_text("prometheus { }")
    with pytest.raises(StatusError, match="Error parsing text-format"):
        monitoring.read_path(file)


def rest_changes(call):
    before = {status: monitoring.REQUEST_COUNT.value("half", status) for status in ("OK", "INVALID_ARGUMENT")}
    times = monitoring.REQUEST_LATENCY.value("half", "predict", "REST")[0]
    call()
    after = {status: monitoring.REQUEST_COUNT.value("half", status) for status in before}
    return {key: after[key] - before[key] for key in after} | {
        "timed": monitoring.REQUEST_LATENCY.value("half", "predict", "REST")[0] - times
    }


def test_rest_calls_are_counted_by_model_and_status_and_answers_are_timed(rest):
    good = rest_changes(lambda: rest.post("/v1/models/half:predict", json={"instances": [1.0]}))
    assert good == {"OK": 1, "INVALID_ARGUMENT": 0, "timed": 1}
    bad = rest_changes(lambda: rest.post("/v1/models/half/versions/3:predict", content=b"{"))
    missing = monitoring.REQUEST_COUNT.value("half", "NOT_FOUND")
    rest.post("/v1/models/half/versions/7:predict", json={"instances": [1.0]})
    assert monitoring.REQUEST_COUNT.value("half", "NOT_FOUND") == missing + 1
    assert bad == {"OK": 0, "INVALID_ARGUMENT": 1, "timed": 0}
    assert rest_changes(lambda: rest.get("/v1/models/half")) == {"OK": 0, "INVALID_ARGUMENT": 0, "timed": 0}


def test_grpc_calls_are_counted_by_model_and_status_and_made_up_names_share_a_line(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([2.0])))
    count, timed = (
        monitoring.REQUEST_COUNT.value("half", "OK"),
        monitoring.REQUEST_LATENCY.value("half", "Predict", "GRPC"),
    )
    runs, graph_runs = monitoring.RUNTIME_LATENCY.value("half", "Predict", "TF1"), monitoring.GRAPH_RUNS.value()
    stub.Predict(request, timeout=30)
    assert monitoring.REQUEST_COUNT.value("half", "OK") == count + 1
    assert monitoring.REQUEST_LATENCY.value("half", "Predict", "GRPC")[0] == timed[0] + 1
    assert monitoring.RUNTIME_LATENCY.value("half", "Predict", "TF1")[0] == runs[0] + 1
    assert monitoring.GRAPH_RUNS.value() == graph_runs + 1
    unknown = monitoring.REQUEST_COUNT.value("", "NOT_FOUND")
    for name in ("made", "up"):
        request.model_spec.name = name
        with pytest.raises(grpc.RpcError):
            stub.Predict(request, timeout=30)
    assert monitoring.REQUEST_COUNT.value("", "NOT_FOUND") == unknown + 2
    assert b'"made"' not in monitoring.page()


def test_loading_and_warming_up_are_counted_by_path(server, exports):
    path = str(exports / "half" / "3")
    assert monitoring.LOAD_COUNT.value(path, "success") >= 1
    assert monitoring.LOAD_LATENCY.value(path) > 0
    assert monitoring.WARMUP_LATENCY.value(path, "OK")[0] >= 1


def test_a_counter_is_found_by_its_name_in_tensorflow(monkeypatch):
    counter = monitoring.Counter("/own/count", "label")
    monkeypatch.setattr(monitoring, "METRICS", [*monitoring.METRICS, counter])
    assert monitoring.count("/own/count") == 0
    counter.add("b", amount=3)
    counter.add("a", amount=2)
    assert monitoring.count("/own/count") == 2
    assert monitoring.count("/own/nothing") == monitoring.count("/tensorflow/serving/request_latency") == 0


def run_asgi(app, scope):
    sent = []

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        sent.append(message)

    call = app({"type": "http", "method": "GET", **scope}, receive, send)
    with pytest.raises(StopIteration):
        call.send(None)
    return sent


def test_a_long_path_is_no_call_at_once():
    before = time.process_time()
    assert not RestMonitor.CALL.fullmatch("/v1/models/" + "a" * 60_000)
    assert RestMonitor.CALL.fullmatch("/v1/models/m/versions/3:Predict").groups() == ("m", "Predict")
    assert time.process_time() - before < 0.3  # every split of the path in two took 1.1 s


def test_the_page_is_answered_at_its_path_and_nowhere_without_one():
    async def inner(scope, receive, send):
        scope["code"] = Code.DATA_LOSS
        await send({"type": "http.response.start", "status": 500})

    def known(name):
        return name == "m"

    start, body = run_asgi(RestMonitor(inner, "/metrics", known), {"path": "/metrics"})
    assert start["status"] == 200 and body["body"].startswith(b"# TYPE :")
    assert run_asgi(RestMonitor(inner, "/metrics", known), {"path": "/metrics", "method": "POST"})[0]["status"] == 200
    (start,) = run_asgi(RestMonitor(inner, "", known), {"path": "/metrics"})
    assert start["status"] == 500
    lost = monitoring.REQUEST_COUNT.value("m", "DATA_LOSS")
    run_asgi(RestMonitor(inner, "", known), {"path": "/v1/models/m/labels/l:classify"})
    assert monitoring.REQUEST_COUNT.value("m", "DATA_LOSS") == lost + 1
