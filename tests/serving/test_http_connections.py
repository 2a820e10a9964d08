import asyncio
import select
import socket
import threading
import time

import pytest
import uvicorn

from serving import http_connections

HOST = "127.0.0.1"
SECONDS = 0.3
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"


async def app(scope, receive, send):
    body, message = b"", {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
    if body == b"nap":
        await asyncio.sleep(3 * SECONDS)
    if body == b"dip":
        await asyncio.sleep(1.5 * SECONDS)
    answer = b"x" * 20_000_000 if body == b"big" else body
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})


@pytest.fixture(scope="module")
def running():
    """A server of `app` whose connections have SECONDS; `.port` is its port."""
    http_connections.SECONDS, before = SECONDS, http_connections.SECONDS
    listening = socket.create_server((HOST, 0))
    server = uvicorn.Server(
        uvicorn.Config(app, http=http_connections.ImpatientProtocol, log_config=None, lifespan="off", ws="none")
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    server.port = listening.getsockname()[1]
    yield server
    server.should_exit = True
    thread.join()
    http_connections.SECONDS = before


@pytest.fixture
def connection(running):
    with socket.create_connection((HOST, running.port), timeout=20) as connected:
        yield connected


def rest_of(connection):
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"\r\nna"])
def test_a_request_that_stops_on_its_way_is_closed(connection, sent):
    started = time.monotonic()
    connection.sendall(sent)
    assert rest_of(connection) == b""
    assert time.monotonic() - started >= SECONDS * 0.9


def test_headers_that_drip_are_closed(connection):
    connection.sendall(HEAD)
    connection.settimeout(SECONDS / 10)
    for number in range(1000):
        try:
            connection.sendall(b"X-%d: y\r\n" % number)
            if connection.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except OSError:  # sent after it was closed
            break
    else:
        pytest.fail("the connection is still open")


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /",
        HEAD,
        HEAD + b"X-Long: ",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Trailer: ",
    ],
    ids=["first line", "headers", "one header", "trailers"],
)
def test_a_head_without_end_is_refused_after_64_kib(connection, begun):
    piece = b"X-Y: z\r\n" * 128 if begun == HEAD else b"a" * 1024
    connection.sendall(begun)
    time.sleep(SECONDS / 6)  # so that what comes with a body's last piece is not taken for it
    connection.sendall(piece * 63)
    time.sleep(SECONDS / 6)
    assert not select.select([connection], [], [], 0)[0]
    connection.sendall(piece * 2)
    answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request") and b"at most 65536 bytes" in answer


def test_work_that_takes_longer_than_that_is_answered(connection):
    connection.sendall(HEAD + b"Connection: close\r\n\r\nnap")
    assert rest_of(connection).endswith(b"\r\n\r\nnap")


def test_a_connection_may_rest_as_long_after_its_answer(running, connection):
    connection.sendall(HEAD + b"\r\ndip")
    assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
    started = time.monotonic()
    assert {resting.timeout_keep_alive for resting in running.server_state.connections} == {SECONDS}
    assert rest_of(connection) in (b"", b"dip")
    assert time.monotonic() - started >= SECONDS * 0.9


def test_a_body_may_take_longer_than_that_in_pieces(connection):
    connection.sendall(HEAD.replace(b"3", b"8") + b"Connection: close\r\n\r\n")
    for _ in range(8):
        time.sleep(SECONDS / 4)
        connection.sendall(b"a")
    assert rest_of(connection).endswith(b"\r\n\r\naaaaaaaa")


def test_who_does_not_read_the_answer_is_cut_off(running, connection):
    connection.sendall(HEAD + b"\r\nbig")
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    deadline = time.monotonic() + 30
    while running.server_state.connections and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running.server_state.connections


OFFERS = [
    "Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA",
    "keep-alive, upgrade\r\nupgrade: websocket",
]


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("cut", [1, 40, len(HEAD) + 12, -5, -1])
def test_who_offers_another_protocol_is_answered_in_this_one(connection, offer, cut):
    first = HEAD + b"Connection: " + offer.encode() + b"\r\n\r\nabc"
    chunked = HEAD.replace(b"Content-Length: 3", b"Transfer-Encoding: chunked") + b"Connection: close\r\n"
    both = first + chunked + b"Upgrade: h2c\r\n\r\n2\r\nde\r\n0\r\n\r\n"
    for piece in (both[:cut], both[cut:]):
        connection.sendall(piece)
        time.sleep(SECONDS / 30)
    answers = rest_of(connection).split(b"HTTP/1.1 200 OK\r\n")
    assert [answer[-3:] for answer in answers[1:]] == [b"abc", b"\nde"]


@pytest.mark.parametrize("target", [b"example.com:80", b"/", b"example.com:99999"])
def test_a_tunnel_is_refused(connection, target):
    connection.sendall(b"CONNECT " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert rest_of(connection).startswith(b"HTTP/1.1 400 Bad Request")


@pytest.mark.parametrize(
    "broken",
    [b"GARBAGE\r\n\r\n", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nz\r\n"],
    ids=["first line", "chunk"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_what_cannot_be_read_is_refused_after_the_answers_to_what_came_before_it(connection, broken, count):
    connection.sendall((HEAD + b"\r\nabc") * count + broken)
    first, *answers, refusal = rest_of(connection).split(b"HTTP/1.1 ")
    assert first == b"" and [answer[-3:] for answer in answers] == [b"abc"] * count
    assert refusal.startswith(b"400 Bad Request")


def test_a_connection_of_http_1_0_is_kept_where_that_is_asked(connection):
    head = HEAD.replace(b"1.1", b"1.0")
    connection.sendall(head + b"Connection: Keep-Alive\r\n\r\nabc" + head + b"\r\ndef")
    kept, closed = rest_of(connection).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert kept.endswith(b"abc") and b"connection: keep-alive\r\n" in kept
    assert closed.endswith(b"def") and b"connection: close\r\n" in closed


@pytest.mark.parametrize(("version", "lines"), [(b"1.0", 1), (b"1.1", 2)])
def test_only_http_1_1_hears_that_its_body_is_awaited(connection, version, lines):
    head = HEAD.replace(b"1.1", version) + b"Expect: 100-continue\r\nConnection: close\r\n\r\n"
    connection.sendall(head + b"abc")
    assert rest_of(connection).count(b"HTTP/1.1 ") == lines
