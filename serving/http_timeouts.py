"""HTTP connections whose other side is too slow are closed: uvicorn waits for requests and readers without end."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 50.0  # libevent's default, and so TensorFlow Serving's


class ImpatientProtocol(H11Protocol):
    """A connection is closed `SECONDS` after it owed something: all headers of a request, more of its body, reading.

    While its request is worked on it owes nothing, however long that takes.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._owing_since, self._unsent = self.loop.time(), 0
        self._look_again = self.loop.call_later(SECONDS, self._look)

    def data_received(self, data: bytes) -> None:
        # Of a body every piece counts; headers must be complete in time, in whatever pieces they come.
        had = self.cycle
        super().data_received(data)
        if self.cycle is not had or (self.cycle and not self.cycle.response_complete):
            self._owing_since = self.loop.time()

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
