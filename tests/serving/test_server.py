import dataclasses
import http.client
import itertools
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
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.client import Client, Retries, ServingError
from serving.model_server import config_protos
from serving.model_server.errors import StatusError
from serving.model_server.flags import FLAGS, UsageError, read_model_config
from serving.model_server.loaded import LoadedVersion
from serving.model_server.model_config import ModelSettings
from serving.model_server.server import ModelServer, _session_config

pytestmark = pytest.mark.usefixtures("frozen_heap")

HOST = "127.0.0.1"


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def states(server, model):
    try:
        return [record.state for record in server.manager.status(model)]
    except StatusError:  # not looked for yet
        return []


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


def test_the_configuration_file_is_followed(exports, tmp_path):
    def entry(name):
        return f'config {{ name: "{name}" base_path: "{exports / "half"}" model_platform: "tensorflow" }}'

    config = tmp_path / "models.config"
    config.write_text(f"model_config_list {{ {entry('first')} }}")
    flags = {"model_config_file": str(config), "model_config_file_poll_wait_seconds": 0.01, "port": 0}
    server = ModelServer(read_model_config(config), host=HOST, grpc_socket_path=str(tmp_path / "socket"), **flags)
    server.start()
    try:
        assert server.manager.status("first")[0].state == "AVAILABLE"
        config.write_text(f"model_config_list {{ {entry('second')} }}")
        assert wait_for(lambda: states(server, "second") == ["AVAILABLE"])
        assert states(server, "first") == ["END"]
    finally:
        server.stop()


def test_a_port_in_use_is_refused_by_its_number(start_server, free_port):
    for name in ("port", "rest_api_port"):
        with socket.create_server((HOST, 0)) as taken:
            number = taken.getsockname()[1]
            ports = {"port": 0, "rest_api_port": free_port(), name: number}
            with pytest.raises(UsageError, match=f"cannot listen on {HOST}:{number}: the port is in use"):
                start_server("half", **ports)


@pytest.mark.parametrize(("host", "words"), [("..", "ame or service not known"), ("é" * 64, "no host's name")], ids=len)
def test_a_host_that_there_is_not_is_refused_by_its_name(start_server, free_port, host, words):
    with pytest.raises(UsageError, match=f"cannot listen on {host}:.*({words})"):
        start_server("half", host=host, rest_api_port=free_port())


@pytest.mark.parametrize(("host", "asked"), [("::1", ["::1"]), ("0.0.0.0", ["::1", HOST])])
def test_both_apis_answer_on_an_ipv6_address_as_on_all(start_server, free_port, host, asked):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    ports = free_port(), free_port()
    start_server("half", host=host, port=ports[0], rest_api_port=ports[1])
    for address, transport in itertools.product(asked, ("rest", "grpc")):
        with Client(address, *ports, transport=transport) as client:
            assert client.predict("half", [[2.0]]) == {"y": [[3.0]]}


def test_grpc_answers_on_a_unix_socket(start_server, tmp_path):
    path = tmp_path / "grpc.sock"
    start_server("half", grpc_socket_path=str(path))
    with grpc.insecure_channel(f"unix:{path}") as channel:
        assert half_of(channel) == [3.0]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """name -> PEM file: an authority, and a key and certificate that it signed for localhost."""
    folder = tmp_path_factory.mktemp("tls")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    signer = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    commands = [
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2"],
        ["req", *key, "-keyout", "own.key", "-out", "own.csr", "-subj", "/CN=localhost"],
        ["x509", "-req", "-in", "own.csr", *signer, "-out", "own.pem", "-days", "2", "-extfile", "names"],
    ]
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for command in commands:
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return {name: (folder / name).read_text() for name in ("ca.pem", "own.key", "own.pem")}


def half_of(channel, seconds=30):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([2.0])))
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=seconds)
    return list(response.outputs["y"].float_val)


@pytest.mark.parametrize("client_verify", [False, True])
def test_tls_is_spoken_on_the_port_and_clients_are_verified_where_that_is_asked(
    start_server, free_port, tmp_path, certificates, client_verify
):
    config = config_protos.SSLConfig(
        server_key=certificates["own.key"],
        server_cert=certificates["own.pem"],
        custom_ca=certificates["ca.pem"],
        client_verify=client_verify,
    )
    (tmp_path / "ssl").write_text(text_format.MessageToString(config))
    port = free_port()
    start_server("half", port=port, ssl_config_file=str(tmp_path / "ssl"))
    pems = {name: text.encode() for name, text in certificates.items()}
    stranger = grpc.ssl_channel_credentials(pems["ca.pem"])
    friend = grpc.ssl_channel_credentials(pems["ca.pem"], pems["own.key"], pems["own.pem"])
    for credentials, is_welcome in ((stranger, not client_verify), (friend, True)):
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            if is_welcome:
                assert half_of(channel) == [3.0]
            else:
                with pytest.raises(grpc.RpcError) as refused:
                    half_of(channel)
                assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(f"localhost:{port}") as channel, pytest.raises(grpc.RpcError):
        half_of(channel)


def test_a_call_beyond_grpc_max_threads_is_refused(start_server, free_port):
    port = free_port()
    server = start_server(
        "typed", port=port, grpc_max_threads=1, grpc_channel_arguments="grpc.max_connection_idle_ms=60000"
    )
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "typed", "spin"
    request.inputs["rounds"].CopyFrom(tf.make_tensor_proto(np.int32([2003])))
    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        first = stub.Predict.future(request, timeout=60)
        assert wait_for(lambda: server.manager.status("typed")[0].users == 1)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Predict(request, timeout=60)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert list(first.result().outputs["done"].int_val) == [2003]


def test_the_metrics_are_on_the_rest_port_at_the_configured_path(start_server, free_port, tmp_path):
    (tmp_path / "monitoring").write_text('prometheus_config { enable: true path: "/own/metrics" }')
    port = free_port()
    start_server("half", rest_api_port=port, monitoring_config_file=str(tmp_path / "monitoring"))
    with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=30, trust_env=False) as http:
        assert http.post("/v1/models/half:predict", json={"instances": [1.0]}).status_code == 200
        metrics = http.get("/own/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert ':tensorflow:serving:request_count{model_name="half",status="OK"} ' in metrics.text
        assert http.get("/monitoring/prometheus/metrics").status_code == 404


def test_a_method_name_that_is_no_api_of_tensorflow_serving_is_refused_where_that_is_asked(start_server):
    server = start_server("half", enable_signature_method_name_check=True, grpc_socket_path="")
    with server.manager.use("half") as loaded:
        signature = loaded.signature()
        assert loaded.run(signature, {"x": np.float32([2.0])})["y"].tolist() == [3.0]
        other = dataclasses.replace(signature, method_name="own/method")
        with pytest.raises(StatusError, match="Was: own/method"):
            loaded.run(other, {"x": np.float32([2.0])})


@pytest.mark.parametrize(
    "flag", ["ssl_config_file", "monitoring_config_file", "tensorflow_session_config_file", "batching_parameters_file"]
)
def test_a_configuration_file_that_is_missing_is_named_by_its_flag(exports, flag):
    with pytest.raises(UsageError, match=f"--{flag}=/nix: /nix cannot be read"):
        ModelServer([ModelSettings("half", exports / "half")], enable_batching=True, **{flag: "/nix"})


def test_a_session_is_configured_by_its_file_and_the_flags_go_before_it(tmp_path):
    (tmp_path / "session").write_text("intra_op_parallelism_threads: 3 inter_op_parallelism_threads: 5 gpu_options {}")
    flags = {name: flag.default for name, flag in FLAGS.items()}
    flags |= {"tensorflow_session_config_file": str(tmp_path / "session"), "tensorflow_inter_op_parallelism": 7}
    config = _session_config(flags | {"per_process_gpu_memory_fraction": 0.5})
    assert (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads) == (3, 7)
    assert config.gpu_options.per_process_gpu_memory_fraction == 0.5


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
    monkeypatch.setattr(LoadedVersion, "_call", lambda *rest: runs.append(rest[3][0].tolist()) or real(*rest))
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


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_call_that_is_given_up_makes_way_for_others(start_server, free_port, transport):
    ports = free_port(), free_port()
    flags = {"grpc_max_threads": 1, "rest_api_num_threads": 1, "rest_api_timeout_in_ms": 200}
    start_server("typed", port=ports[0], rest_api_port=ports[1], **flags)
    with Client(HOST, *ports, transport=transport, retries=Retries(attempts=1)) as client:
        client.metadata("typed")
        with pytest.raises(ServingError, match="DEADLINE_EXCEEDED"):
            client.predict("typed", [50_021], "spin", timeout=0.2 if transport == "grpc" else None)  # 10 s and more
        assert wait_for(lambda: answers(client, "typed"), 5.0)


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
            (["--use_alts_credentials"], 2, "error: --use_alts_credentials=true is not honoured"),
        ]
        for flags, code, words in cases:
            process, *_ = start_program(*flags)
            _, log = process.communicate(timeout=60)
            assert process.returncode == code
            assert log.startswith(words)
            assert log.count("\n") == 1
