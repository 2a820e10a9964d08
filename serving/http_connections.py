"""HTTP connections as the two servers here keep them: whoever is too slow, or sends headers without end, is let go.

What is no HTTP/1, and what offers another protocol, is answered as well.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SECONDS = 50.0  # libevent's default, and so TensorFlow Serving's
MAX_HEAD_BYTES = 65536  # of a request's first line and headers, as uvicorn has it with its other parser


class _Parser(httptools.HttpRequestParser):
    """Leaves a head that offers another protocol, and what came after it, to `protocol.read_on`."""

    def __init__(self, protocol: ImpatientProtocol):
        super().__init__(protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn: what follows a last request is left
        self._protocol = protocol

    def feed_data(self, data: Any) -> None:
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._protocol.read_on(data[offer.args[0] :])


class ImpatientProtocol(HttpToolsProtocol):
    """A connection is closed `SECONDS` after it owed something: all headers of a request, more of its body, reading.

    While its request is worked on it owes nothing, however long that takes, and after the answer it may rest as long:
    who keeps connections finds them open, as balancers of load expect, longer than uvicorn's 5 seconds. More than
    `MAX_HEAD_BYTES` that are not a body's, trailers too, are answered 400. So is what cannot be read, once the requests
    before it are answered. An offer to upgrade, as Java's client makes one with its first request, is left: the request
    is one of HTTP/1.1.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.parser, self.timeout_keep_alive = _Parser(self), SECONDS  # type: ignore[assignment]
        self._owing_since, self._unsent = self.loop.time(), 0
        self._look_again = self.loop.call_later(SECONDS, self._look)
        self._head_bytes, self._has_more = 0, False
        self._refusal = ""  # for what comes after the requests that are not answered yet

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # its body is not read: `read_on` has it begin anew
        if self.expect_100_continue and self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # it knows no answer before the answer
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0" and self.parser.should_keep_alive():  # as `ab -k` asks for it
            self.cycle.keep_alive = True
            self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"keep-alive")]

    def on_body(self, body: bytes) -> None:
        self._has_more = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def read_on(self, rest: bytes) -> None:
        """Reads the head that was read last once more, now without its offer, and then `rest`."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise httptools.HttpParserError("what follows is not for this server")
        headers = [b"%b: %b\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser = _Parser(self)
        self.parser.feed_data(b"".join([b"%b %b HTTP/%b\r\n" % (method, self.url, version), *headers, b"\r\n", rest]))

    def data_received(self, data: bytes) -> None:
        # Of a body every piece counts; headers must be complete in time, in whatever pieces they come.
        had, self._has_more = self.cycle, False
        super().data_received(data)
        if self.cycle is not had or (self.cycle and not self.cycle.response_complete):
            self._owing_since = self.loop.time()
        is_head = self.cycle is had and not self._has_more
        self._head_bytes = self._head_bytes + len(data) if is_head else 0
        if self._head_bytes > MAX_HEAD_BYTES and not self._refusal and not self.transport.is_closing():
            self.send_400_response(f"The first line and headers have at most {MAX_HEAD_BYTES} bytes.")

    def send_400_response(self, msg: str) -> None:
        if self.pipeline and self.cycle.more_body:
            self.pipeline.popleft()  # the newest, and the one that cannot be read
            self._refusal = msg
        elif self.cycle is None or self.cycle.response_complete:
            super().send_400_response(msg)
        elif not self.cycle.more_body:
            self._refusal = msg
        elif self.cycle.response_started:
            self.transport.close()  # in the middle of an answer there is no place for another
        else:
            super().send_400_response(msg)
        if self._refusal:
            self.flow.pause_reading()

    def on_response_complete(self) -> None:
        is_last, self._owing_since = not self.pipeline, self.loop.time()
        super().on_response_complete()
        if is_last and self._refusal and not self.transport.is_closing():
            super().send_400_response(self._refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_again.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        now, before, self._unsent = self.loop.time(), self._unsent, self.transport.get_write_buffer_size()
        is_working = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if self._unsent and self._unsent == before:
            self.transport.abort()  # it reads nothing, so it would not read the rest either
            return
        if self._unsent or is_working:
            self._owing_since = now
        left = self._owing_since + SECONDS - now
        if left <= 0:
            self.transport.close()
        else:
            self._look_again = self.loop.call_later(SECONDS if self._unsent else left, self._look)
