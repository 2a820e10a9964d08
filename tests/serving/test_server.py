import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.client import Client, ServingError
from serving.model_server.flags import UsageError
from serving.model_server.loaded import LoadedVersion
from serving.model_server.model_config import ModelSettings
from serving.model_server.server import ModelServer

HOST = "127.0.0.1"


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def answers(client, model="half"):
    try:
        return any(entry["state"] == "AVAILABLE" for entry in client.status(model))
    except ServingError:
        return False


@pytest.fixture
def start_program(free_port):
    """Starts `python -m serving.model_server` on free ports; (process, port, rest_api_port)."""
    started = []

    def start(*flags):
        ports = free_port(), free_port()
        command = [sys.executable, "-m", "serving.model_server", f"--host={HOST}"]
        command += [f"--port={ports[0]}", f"--rest_api_port={ports[1]}", *flags]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process, *ports

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def start_server(exports):
    """Starts a server of one model in this process, and stops it whatever happens."""
    started = []

    def start(model, base=exports, **flags):
        models = [ModelSettings(model, base / model)]
        server = ModelServer(models, **{"host": HOST, "port": 0, "file_system_poll_wait_seconds": 0, **flags})
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


def test_a_port_in_use_is_refused_by_its_number(start_server, free_port):
    for name in ("port", "rest_api_port"):
        with socket.create_server((HOST, 0)) as taken:
            number = taken.getsockname()[1]
            ports = {"port": 0, "rest_api_port": free_port(), name: number}
            with pytest.raises(UsageError, match=f"cannot listen on {HOST}:{number}: the port is in use"):
                start_server("half", **ports)


def test_grpc_answers_on_a_unix_socket(start_server, tmp_path):
    path = tmp_path / "grpc.sock"
    start_server("half", grpc_socket_path=str(path))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([2.0])))
    with grpc.insecure_channel(f"unix:{path}") as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)
    assert list(response.outputs["y"].float_val) == [3.0]


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_stop_finishes_the_accepted_calls(start_server, free_port, transport):
    ports = {"port": free_port(), "rest_api_port": free_port()}
    server = start_server("typed", **ports)
    outcome = []
    with Client(HOST, *ports.values(), transport=transport) as client:
        client.metadata("typed")
        caller = threading.Thread(target=lambda: outcome.append(client.predict("typed", [3001], "spin")))
        caller.start()
        assert wait_for(lambda: server.manager.status("typed")[0].users == 1)
        server.stop()
        caller.join()
        assert outcome == [{"done": [3001]}]
        with pytest.raises(ServingError):
            client.status("typed")


@pytest.mark.parametrize("per_model", [False, True])
def test_concurrent_calls_become_one_batch_in_which_one_bad_call_harms_no_other(
    start_server, exports, tmp_path, free_port, per_model, monkeypatch
):
    # Nothing runs before the third row is there; the third is one that the model refuses.
    parameters = "max_batch_size { value: 3 } batch_timeout_micros { value: 3600000000 }"
    flags = {"enable_batching": True, "rest_api_port": free_port()}
    if per_model:
        shutil.copytree(exports / "text" / "1", tmp_path / "text" / "1")
        (tmp_path / "text" / "1" / "batching_params.pbtxt").write_text(parameters)
        flags["enable_per_model_batching_parameters"] = True
    else:
        (tmp_path / "batching").write_text(parameters)
        flags["batching_parameters_file"] = str(tmp_path / "batching")
    start_server("text", base=tmp_path if per_model else exports, **flags)
    runs = []
    real = LoadedVersion._call
    monkeypatch.setattr(LoadedVersion, "_call", lambda *rest: runs.append(rest[-1][0].tolist()) or real(*rest))
    url = f"http://{HOST}:{flags['rest_api_port']}/v1/models/text:predict"

    def call(text):
        body = {"signature_name": "number", "instances": [text]}
        return httpx.post(url, json=body, trust_env=False, timeout=30)

    with ThreadPoolExecutor(3) as pool:
        two, seven, bad = pool.map(call, ["2", "7", "pi"])
    assert (two.json(), seven.json()) == ({"predictions": [2.0]}, {"predictions": [7.0]})
    assert bad.status_code == 400 and "pi" in bad.json()["error"]
    assert sorted(runs[0]) == [b"2", b"7", b"pi"] and len(runs) == 4


def test_a_call_that_takes_longer_than_the_rest_timeout_is_given_up(start_server, free_port):
    port = free_port()
    start_server("typed", rest_api_port=port, rest_api_timeout_in_ms=3)
    body = {"signature_name": "spin", "instances": [1009]}
    response = httpx.post(f"http://{HOST}:{port}/v1/models/typed:predict", json=body, trust_env=False, timeout=30)
    assert (response.status_code, response.json()) == (504, {"error": "Timed out after 0.003 s"})


def test_a_request_in_two_packets_is_not_held_back(server):
    connection = http.client.HTTPConnection(HOST, server.rest_api_port, timeout=30)
    seconds = []
    for _ in range(23):
        started = time.perf_counter()
        connection.request("POST", "/v1/models/half:predict", b'{"instances": [1.0]}')
        assert json.loads(connection.getresponse().read()) == {"predictions": [2.5]}
        seconds.append(time.perf_counter() - started)
    connection.close()
    assert min(seconds) < 0.035, "Nagle's algorithm and delayed acknowledgements make it 0.044 s"


@pytest.mark.slow
def test_the_program_serves_swaps_versions_and_stops_in_order(tmp_path, save_half_plus, start_program):
    save_half_plus(tmp_path / "half" / "2", 2.0)
    process, port, rest_api_port = start_program("--model_name=half", "--model_base_path", str(tmp_path / "half"))
    with Client(HOST, port, rest_api_port) as client:
        assert wait_for(lambda: answers(client))
        assert client.predict("half", [3.0]) == {"y": [3.5]}
        (tmp_path / "half" / "3").mkdir()
        (tmp_path / "half" / "3" / "saved_model.pb").write_bytes(b"\x99 no protobuf")
        assert wait_for(lambda: len(client.status("half")) == 2)
        assert client.predict("half", [3.0]) == {"y": [3.5]}
        save_half_plus(tmp_path / "staging", 5.0).rename(tmp_path / "half" / "5")
        assert wait_for(lambda: client.predict("half", [3.0]) == {"y": [6.5]})
        assert wait_for(lambda: {entry["version"]: entry["state"] for entry in client.status("half")}[2] == "END")
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in log


@pytest.mark.slow
def test_the_program_says_in_one_line_why_it_does_not_start(tmp_path, start_program):
    with socket.create_server((HOST, 0)) as taken:
        number = taken.getsockname()[1]
        cases = [
            ([f"--port={number}", f"--model_base_path={tmp_path}"], 1, f"error: cannot listen on {HOST}:{number}"),
            (["--use_alts_credentials"], 2, "error: --use_alts_credentials=true is a flag"),
        ]
        for flags, code, words in cases:
            process, *_ = start_program(*flags)
            _, log = process.communicate(timeout=60)
            assert process.returncode == code
            assert log.startswith(words)
            assert log.count("\n") == 1
