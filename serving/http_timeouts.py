"""HTTP connections whose other side is too slow or whose headers have no end are closed: uvicorn waits without end."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SECONDS = 50.0  # libevent's default, and so TensorFlow Serving's
MAX_HEAD_BYTES = 65536  # of a request's first line and headers, as uvicorn has it with its other parser


class ImpatientProtocol(HttpToolsProtocol):
    """A connection is closed `SECONDS` after it owed something: all headers of a request, more of its body, reading.

    While its request is worked on it owes nothing, however long that takes. More than `MAX_HEAD_BYTES` that are not a
    body's, trailers too, are answered 400.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._owing_since, self._unsent = self.loop.time(), 0
        self._look_again = self.loop.call_later(SECONDS, self._look)
        self._head_bytes, self._has_more = 0, False

    def on_body(self, body: bytes) -> None:
        self._has_more = True
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        # Of a body every piece counts; headers must be complete in time, in whatever pieces they come.
        had, self._has_more = self.cycle, False
        super().data_received(data)
        if self.cycle is not had or (self.cycle and not self.cycle.response_complete):
            self._owing_since = self.loop.time()
        is_head = self.cycle is had and not self._has_more
        self._head_bytes = self._head_bytes + len(data) if is_head else 0
        if self._head_bytes <= MAX_HEAD_BYTES or self.transport.is_closing():
            return
        if self.cycle and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # in the middle of an answer there is no place for another
        else:
            self.send_400_response(f"The first line and headers have at most {MAX_HEAD_BYTES} bytes.")

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
