"""The gateway over real sockets, in front of the embedded server."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import hypothesis
import pytest
import schemathesis
import tensorflow as tf

from serving.client import Client, Retries, ServingError
from serving.gateway import create_app, make_server
from serving.gateway_config import GatewayConfig, Key, digest

HOST = "127.0.0.1"
TLS = Path(__file__).parents[1] / "fixtures" / "tls"
KEY = "open-sesame"
HEADERS = {"authorization": f"Bearer {KEY}"}
WRITTEN = "déjà vu"


@contextlib.contextmanager
def running(port, **named):
    """A gateway with the key KEY on a port of this machine."""
    keys = (Key("alice", digest(KEY), 1e6, 10**6),)
    server = make_server(GatewayConfig(**{"keys": keys, "port": port, "timeout_seconds": 20.0, **named}))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"{'https' if server.config.is_ssl else 'http'}://{HOST}:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def upstream(exports, tmp_path_factory, free_port):
    """A server of half, text, and writer, whose `sample` writes as many bytes of WRITTEN as it is given tokens."""
    from serving.model_server.model_config import ModelSettings
    from serving.model_server.server import ModelServer

    spec = [tf.TensorSpec([None], dtype, name=name) for name, dtype in (
        ("text", tf.string), ("max_new_tokens", tf.int32), ("temperature", tf.float32),
        ("top_k", tf.int32), ("top_p", tf.float32), ("seed", tf.int64),
    )]  # fmt: skip

    def sample(text, max_new_tokens, temperature, top_k, top_p, seed):
        whole = tf.fill(tf.shape(text), WRITTEN)
        count = tf.minimum(max_new_tokens, len(WRITTEN.encode()))
        # What `number` does in the text model: a text that is no number breaks the call off.
        broken = tf.where(text == "break", tf.where(max_new_tokens > 2, "x", "0"), "0")
        probability = -tf.cast(count, tf.float32) + tf.strings.to_number(broken)
        return {
            "completion": tf.strings.substr(whole, tf.zeros_like(count), count),
            "log_probability": probability + 0.0 * temperature * top_p * tf.cast(top_k, tf.float32),
        }

    folder = tmp_path_factory.mktemp("gateway")
    tf.saved_model.save(
        tf.Module(), str(folder / "1"), signatures={"sample": tf.function(sample, input_signature=spec)}
    )
    models = [ModelSettings(name, exports / name) for name in ("half", "text")] + [ModelSettings("writer", folder)]
    port = free_port()
    server = ModelServer(models, host=HOST, port=0, rest_api_port=port, file_system_poll_wait_seconds=0)
    server.start()
    yield f"http://{HOST}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def gateway(upstream, free_port):
    with running(free_port(), upstream=upstream, models=("half", "text", "writer"), max_body_bytes=5003) as url:
        yield url


@pytest.fixture(scope="module")
def http(gateway):
    with httpx.Client(base_url=gateway, headers=HEADERS, trust_env=False, timeout=30) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models/half", None),
        ("GET", "/v1/models/half/versions/3", None),
        ("GET", "/v1/models/half/metadata", None),
        ("POST", "/v1/models/half:predict", b'{"instances": [1.0, NaN]}'),
        ("POST", "/v1/models/half/versions/3:predict", b'{"instances": [1.0]}'),
        ("POST", "/v1/models/text:predict", b'{"signature_name": "echo_bytes", "instances": [{"b64": "/w=="}]}'),
        ("POST", "/v1/models/half:predict", b"nonsense"),
        ("POST", "/v1/models/half/versions/7:predict", b'{"instances": [1.0]}'),
    ],
)
def test_an_answer_is_the_servers_own_byte_for_byte(http, upstream, method, path, body):
    ours, its = http.request(method, path, content=body), httpx.request(method, upstream + path, content=body)
    assert (ours.status_code, ours.content) == (its.status_code, its.content)
    assert ours.headers["content-type"] == its.headers["content-type"]


def test_our_client_asks_through_it_with_a_key_and_not_without(gateway):
    port = int(gateway.rpartition(":")[2])
    with Client(HOST, rest_api_port=port, headers=HEADERS) as client:
        assert client.predict("half", [[1.0], [3.0]]) == {"y": [[2.5], [3.5]]}
    with Client(HOST, rest_api_port=port) as client, pytest.raises(ServingError, match="UNAUTHENTICATED"):
        client.predict("half", [1.0])


def test_the_request_id_is_sent_on_and_echoed(free_port):
    heard = []

    def answer():
        connection, _ = listening.accept()
        with connection:
            heard.append(connection.recv(65536).decode().lower())
            connection.sendall(b"HTTP/1.1 418 X\r\nContent-Length: 2\r\nConnection: close\r\nX-Other: 1\r\n\r\n{}")

    with socket.create_server((HOST, 0)) as listening:
        thread = threading.Thread(target=answer)
        thread.start()
        upstream = f"http://{HOST}:{listening.getsockname()[1]}"
        with running(free_port(), upstream=upstream, models=("half",)) as url:
            given = {**HEADERS, "x-request-id": "seven", "cookie": "a=b"}
            answered = httpx.get(f"{url}/v1/models/half", headers=given, trust_env=False)
        thread.join(10)
    assert (answered.status_code, answered.headers["x-request-id"]) == (418, "seven")
    assert "x-other" not in answered.headers
    assert "x-request-id: seven" in heard[0]
    assert KEY not in heard[0] and "cookie" not in heard[0]


HOSTILE = [
    "/v1/models/..:predict",
    "/v1/models/%2e%2e:predict",
    "/v1/models/half%2F..%2Ftext:predict",
    "/v1/models/half/../text:predict",
    "/v1/models/%2Fetc%2Fpasswd:predict",
    "/v1/models/half%00:predict",
    "/v1/models/%ff%fe:predict",
    "/v1/models/half/labels/..:predict",
    "/v1/models/half/labels/%2e%2e%2fmetadata",
    "/v1/models/half/versions/-1:predict",
    "/v1/models/half/versions/" + "9" * 20 + ":predict",
    "/v1/models/half:predict/../../secret",
    "/v1/models/half\\..\\text:predict",
    "/v1/models/typed:predict",
    "/v1//models/half:predict",
    "//v1/models/half:predict",
    "/v1/../metadata",
    "/monitoring/prometheus/metrics",
    "/v1/models/" + "x" * 5003,
]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_path_that_leaves_the_models_is_not_found(gateway, path):
    port = int(gateway.rpartition(":")[2])
    # httpx would tidy the path up.
    with socket.create_connection((HOST, port), 30) as line:
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 0\r\n"
        line.sendall(f"{head}Connection: close\r\n\r\n".encode("latin-1"))
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.split(b"\r\n")[0].split()[1] == b"404", answer[:300]


def test_bodies_are_limited_and_never_compressed(http):
    assert http.post("/v1/models/half:predict", content=b" " * 5004).status_code == 413
    assert http.post("/v1/models/half:predict", content=iter([b" " * 5000, b" " * 5000])).status_code == 413
    assert http.post("/v1/models/half:predict", content=b"x", headers={"content-encoding": "gzip"}).status_code == 415


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "HEAD"])
def test_other_methods_are_told_which_are_there(http, method):
    answer = http.request(method, "/v1/models/half:predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert http.get("/v1/models/half:predict").headers["allow"] == "POST"
    assert http.post("/healthz").status_code == 405


def test_a_large_answer_a_silent_server_and_a_slow_body_have_their_codes(upstream, free_port):
    named = {"models": ("half",), "max_answer_bytes": 23, "timeout_seconds": 0.3}
    with running(free_port(), upstream=upstream, **named) as url:
        assert httpx.get(f"{url}/v1/models/half", headers=HEADERS).status_code == 502
        with socket.create_connection((HOST, int(url.rpartition(":")[2])), 30) as line:
            head = f"POST /v1/models/half:predict HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nContent-Length: 7\r\n\r\n"
            line.sendall(head.encode())
            assert line.recv(65536).startswith(b"HTTP/1.1 408")
    with socket.create_server((HOST, 0)) as silent:
        upstream = f"http://{HOST}:{silent.getsockname()[1]}"
        with running(free_port(), upstream=upstream, **named) as url:
            assert httpx.get(f"{url}/v1/models/half", headers=HEADERS).status_code == 504
            assert httpx.get(f"{url}/readyz").status_code == 503
    with running(free_port(), upstream=f"http://{HOST}:{free_port()}", **named) as url:
        gone = httpx.get(f"{url}/v1/models/half", headers=HEADERS)
        assert (gone.status_code, gone.headers["retry-after"]) == (503, "1")
        assert httpx.get(f"{url}/readyz").json() == {"error": "not available: half"}
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_it_is_ready_when_every_model_is(gateway):
    assert httpx.get(f"{gateway}/readyz").json() == {"status": "ok"}


def test_probes_at_once_ask_the_server_once(free_port):
    asked, url = [], f"http://{HOST}:{free_port()}"

    async def probed():
        async def count(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            asked.append(1)
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(count, HOST, int(url.rpartition(":")[2])):
            app = create_app(GatewayConfig(upstream=url, models=("half",), anonymous=True))
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
                return await asyncio.gather(*(http.get("/readyz") for _ in range(7)))

    assert {one.status_code for one in asyncio.run(probed())} == {503}
    assert len(asked) == 1


def test_a_completion_comes_piece_by_piece(http):
    with http.stream("POST", "/v1/models/writer:stream", json={"text": "a", "chunk_tokens": 2}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    *pieces, name, done = lines
    assert "".join(json.loads(line.removeprefix("data: "))["text"] for line in pieces) == WRITTEN
    assert (name, json.loads(done.removeprefix("data: "))["completion"]) == ("event: done", WRITTEN)
    assert len(pieces) > 2


def test_a_stream_that_breaks_off_says_so_and_one_that_cannot_begin_has_a_code(http):
    broken = http.post("/v1/models/writer/versions/1:stream", json={"text": "break"})
    assert broken.status_code == 200
    assert 'event: error\ndata: {"code": "INVALID_ARGUMENT"' in broken.text
    for path, body, status, words in (
        ("half:stream", {"text": "a"}, 400, "has no signature 'sample'"),
        ("writer:stream", {"text": 7}, 400, "text is a string"),
        ("writer/versions/7:stream", {"text": "a"}, 404, ""),
    ):
        refused = http.post(f"/v1/models/{path}", json=body)
        assert refused.status_code == status
        assert words in refused.json()["error"]


def test_tls_is_spoken_where_there_is_a_certificate(upstream, free_port):
    files = {"certificate": str(TLS / "localhost.pem"), "private_key": str(TLS / "localhost.key")}
    port = free_port()
    with running(port, upstream=upstream, models=("half",), **files):
        with Client(HOST, rest_api_port=port, headers=HEADERS, tls=files["certificate"]) as client:
            assert client.predict("half", [1.0]) == {"y": [2.5]}
        once = {"headers": HEADERS, "retries": Retries(attempts=1)}
        for named in ({"tls": True}, {"tls": False}):  # nobody vouches for it; no TLS
            with Client(HOST, rest_api_port=port, **named, **once) as client, pytest.raises(ServingError) as refused:
                client.status("half")
            assert (refused.value.code, refused.value.side) == ("UNAVAILABLE", "transport")
    with pytest.raises(FileNotFoundError):
        make_server(GatewayConfig(models=("half",), anonymous=True, certificate="nix", private_key="nix"))


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_schemathesis_finds_no_answer_that_the_description_does_not_have(http, gateway, mode):
    schema = schemathesis.openapi.from_dict(http.get("/openapi.json").json())
    schema.config.update(base_url=gateway)
    checks = [schemathesis.checks.not_a_server_error]
    for name in ("status_code_conformance", "content_type_conformance", "response_schema_conformance"):
        checks.append(getattr(schemathesis.specs.openapi.checks, name))
    settings = hypothesis.settings(
        max_examples=5,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode == "NEGATIVE" and not operation.body:
            continue

        @settings
        @hypothesis.given(operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
        def fits(case):
            nonlocal asked
            asked += 1
            case.call_and_validate(headers=HEADERS, checks=checks, timeout=20)

        fits()
    assert asked >= 20


def test_hostile_bytes_harm_nobody(gateway, http):
    port = int(gateway.rpartition(":")[2])

    async def throw(data):
        reader, writer = await asyncio.open_connection(HOST, port)
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 20)
            assert not answer.startswith(b"HTTP/1.1 5"), answer
        writer.close()

    head = f"POST /v1/models/half:predict HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\n".encode()
    thrown = [
        b"\x16\x03\x01\x00\xa5",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET " + b"/a" * 50_000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
        head + b"Content-Length: 99999999999999999999999999\r\n\r\n",
        head + b"Content-Length: -1\r\n\r\n{}",
        head + b"Content-Length: 10\r\n\r\n{}",
        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        head + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ]

    async def all_of_them():
        await asyncio.gather(*map(throw, thrown))

    asyncio.run(all_of_them())
    assert http.post("/v1/models/half:predict", json={"instances": [1.0]}).json() == {"predictions": [2.5]}


def test_as_a_program_it_logs_json_and_ends_in_order(upstream, free_port, tmp_path):
    port = free_port()
    file = tmp_path / "gateway.yaml"
    file.write_text(f"upstream: {upstream}\nkeys:\n  - {{name: alice, sha256: {digest(KEY)}}}\n")
    command = [
        sys.executable,
        "-m",
        "serving",
        "gateway",
        "--config",
        str(file),
        "--model",
        "half",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stdout.readline() == f"gateway on http://{HOST}:{port} in front of {upstream}\n"
        with Client(HOST, rest_api_port=port, headers=HEADERS, retries=Retries(20, 0.05)) as client:
            assert client.predict("half", [1.0]) == {"y": [2.5]}
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    lines = [json.loads(line) for line in log.splitlines()]
    assert process.returncode == 0
    assert [(line["client"], line["model"], line["call"], line["status"]) for line in lines] == [
        ("alice", "half", "/metadata", 200),
        ("alice", "half", "predict", 200),
    ]
    assert KEY not in log
