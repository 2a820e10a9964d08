"""What every request to the gateway passes first: its id, the log, who asks, how often, and how many at once."""

from __future__ import annotations

import hmac
import json
import logging
import math
import re
import time
import uuid
from collections import Counter
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from serving.gateway_config import GatewayConfig, digest

logger = logging.getLogger("serving.gateway")
OPEN_PATHS = ("/healthz", "/readyz")  # for probes, which have no key


class TokenBucket:
    """So many requests a second, and so many at once. `clock` gives seconds."""

    def __init__(self, per_second: float, burst: int, clock: Any = time.monotonic):
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._tokens, self._at = float(burst), clock()

    def take(self) -> float:
        """0.0 and a token is gone; or the seconds until there is one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self._per_second
        self._tokens -= 1.0
        return 0.0


class Guard:
    """An ASGI application around another.

    Writes into the scope's state: `request_id`, `client` (a key's name) and what the inner application adds to `log`.
    """

    def __init__(self, app: Any, config: GatewayConfig):
        self._app, self._config = app, config
        self._working: Counter[str] = Counter()  # the requests at work, by key
        # One key's slow requests leave places to the others.
        self._share = config.max_concurrent if len(config.keys) < 2 else max(1, config.max_concurrent * 3 // 4)
        self._digests = [(key.sha256.encode(), key.name) for key in config.keys]
        self._buckets = {key.name: TokenBucket(key.requests_per_second, key.burst) for key in config.keys}
        if config.anonymous:
            self._buckets["anonymous"] = TokenBucket(config.requests_per_second, config.burst)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        started, headers = time.perf_counter(), Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else uuid.uuid4().hex
        sent: dict[str, Any] = {"status": None, "bytes_out": 0}
        log: dict[str, Any] = {"client": None}
        scope["state"] = {"request_id": request_id, "log": log}

        async def send_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            else:
                sent["bytes_out"] += len(message.get("body", b""))
            await send(message)

        try:
            response = self._refusal(scope, headers, log)
            await (
                response(scope, receive, send_on) if response else self._work(scope, receive, send_on, log["client"])
            )
        except Exception as error:
            # The last resort: its type alone, for an exception's text may hold what was asked.
            log["error"] = type(error).__name__
            if sent["status"] is None:
                await refuse(500, "the gateway failed")(scope, receive, send_on)
        finally:
            milliseconds = round(1000 * (time.perf_counter() - started), 3)
            line = {"time": time.time(), "request_id": request_id, "method": scope["method"], **log, **sent}
            logger.info(json.dumps({**line, "ms": milliseconds}))

    async def _work(self, scope: Any, receive: Any, send: Any, client: str | None) -> None:
        if client is None:  # a probe takes no place: whoever has no key could take them all
            return await self._app(scope, receive, send)
        self._working[client] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._working[client] -= 1

    def _refusal(self, scope: Any, headers: Headers, log: dict) -> JSONResponse | None:
        """Why the request goes no further, in the order that gives away least."""
        if scope["path"] in OPEN_PATHS:
            return None
        client = "anonymous" if self._config.anonymous else self._who(headers)
        if client is None:
            message = "an API key is needed, as Authorization: Bearer KEY or X-API-Key: KEY"
            return refuse(401, message, {"www-authenticate": "Bearer"})
        log["client"] = client
        wait = self._buckets[client].take()
        if wait:
            message = "too many requests for this key"
            return refuse(429, message, {"retry-after": str(math.ceil(wait))})
        if self._working.total() >= self._config.max_concurrent or self._working[client] >= self._share:
            return refuse(503, "too many requests at once", {"retry-after": "1"})
        return None

    def _who(self, headers: Headers) -> str | None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            key = headers.get("x-api-key", "")
        told, found = digest(key.strip()).encode(), None
        # Every digest is compared, and each in constant time: the time tells nothing of how near a guess was.
        for known, name in self._digests:
            if hmac.compare_digest(known, told):
                found = name
        return found


def refuse(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as TensorFlow Serving writes one."""
    return JSONResponse({"error": message}, status, headers)
