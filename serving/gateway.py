"""A door in front of any TensorFlow Serving, for what it lacks: keys, TLS, limits, ids, logs, a description, streams.

It passes on TensorFlow Serving's REST paths of the models it was told, byte for byte, and adds
`/v1/models/NAME:stream`, `/openapi.json`, `/healthz` (the gateway runs) and `/readyz` (every model is AVAILABLE).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serving import gateway_openapi, gateway_streams
from serving.client import AsyncClient, Retries, ServingError
from serving.gateway_config import GatewayConfig, is_model_name
from serving.gateway_guard import Guard, refuse
from serving.http_connections import ImpatientProtocol
from serving.rest_wire import HTTP_CODES
from serving.wire import before_port

_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]{1,19})|/labels/(?P<label>[^/:]+))?"
    r"(?:(?P<metadata>/metadata)|:(?P<call>predict|classify|regress|stream))?"
)
_HTTP_STATUS = {code: status for status, code in HTTP_CODES.items()}
# A server's own refusal of the gateway, which is no refusal of whoever asked the gateway.
_HTTP_STATUS |= {"UNAUTHENTICATED": 502, "PERMISSION_DENIED": 502}


READY_SECONDS = 1.0


class Refusal(Exception):
    """A request that is answered by the gateway itself, with that response."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.response = refuse(status, message, headers)


class Gateway:
    """The paths behind the guard."""

    def __init__(self, config: GatewayConfig):
        self.config = config
        parts = urlsplit(config.upstream)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        # Whoever asks decides about asking again; the gateway tells them what the server said.
        self.client = AsyncClient(
            str(parts.hostname),
            rest_api_port=port,
            tls=parts.scheme == "https",
            timeout=config.timeout_seconds,
            retries=Retries(attempts=1),
            max_receive_bytes=config.max_answer_bytes,
        )
        limits = httpx.Limits(max_connections=config.max_concurrent)
        self._ready: tuple[float, Response] = (-READY_SECONDS, Response())
        self._asking_ready = asyncio.Lock()
        self.http = httpx.AsyncClient(
            base_url=config.upstream, timeout=config.timeout_seconds, limits=limits, trust_env=False
        )

    async def close(self) -> None:
        await self.client.close()
        await self.http.aclose()

    async def handle(self, request: Request) -> Response:
        """Everything below /v1/."""
        try:
            path = _PATH.fullmatch(request.scope["path"])  # percent-escapes resolved, so none hides a slash
            if not path or not all(is_model_name(path[one]) for one in ("name", "label") if path[one] is not None):
                raise Refusal(404, "there are /v1/models/NAME, its /metadata, :predict, :classify, :regress, :stream")
            if path["name"] not in self.config.models:
                raise Refusal(404, "this gateway has no model of that name")
            request.state.log |= {"model": path["name"], "call": path["call"] or path["metadata"] or "status"}
            method = "POST" if path["call"] else "GET"
            if request.method != method:
                raise Refusal(405, f"this path takes {method}", {"allow": method})
            body = await self._body(request) if path["call"] else b""
            request.state.log["bytes_in"] = len(body)
            return await (self._stream(path, body) if path["call"] == "stream" else self._pass(request, path, body))
        except Refusal as refusal:
            return refusal.response
        except ClientDisconnect:
            return Response(status_code=400)

    async def _body(self, request: Request) -> bytes:
        limit = self.config.max_body_bytes
        too_large = Refusal(413, f"a body has at most {limit} bytes")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "bodies are not compressed here: what they would grow to is not known")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.config.timeout_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise Refusal(408, "the body did not arrive in time", {"connection": "close"}) from None
        return bytes(body)

    async def _pass(self, request: Request, path: re.Match, body: bytes) -> Response:
        """The server's answer as it is."""
        target = "/".join(quote(step, safe=":") for step in request.scope["path"].split("/"))
        headers = {"x-request-id": request.state.request_id, "accept-encoding": "identity"}
        if path["call"]:
            headers["content-type"] = "application/json"
        try:
            async with (
                asyncio.timeout(self.config.timeout_seconds),
                self.http.stream(request.method, target, content=body or None, headers=headers) as answer,
            ):
                content = bytearray()
                async for chunk in answer.aiter_raw():
                    content += chunk
                    if len(content) > self.config.max_answer_bytes:
                        raise Refusal(502, f"the answer has more than {self.config.max_answer_bytes} bytes")
        except (TimeoutError, httpx.TimeoutException):
            raise Refusal(504, "the server did not answer in time") from None
        except httpx.HTTPError as error:
            message = f"the server cannot be reached: {type(error).__name__}"
            raise Refusal(503, message, {"retry-after": "1"}) from error
        kept = {name: answer.headers[name] for name in ("content-type", "retry-after") if name in answer.headers}
        return Response(bytes(content), answer.status_code, kept)

    async def _stream(self, path: re.Match, body: bytes) -> Response:
        try:
            asked = gateway_streams.parse_request(body)
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        version = path["label"] if path["label"] else int(path["version"]) if path["version"] else None
        answers = gateway_streams.completions(self.client, path["name"], version, asked)
        try:
            # Before the first answer an error still has a status of its own.
            first = await anext(answers)
        except ServingError as error:
            raise Refusal(_HTTP_STATUS.get(error.code, 502), error.message) from error

        async def told() -> AsyncIterator[bytes]:
            try:
                async for event in gateway_streams.events(answers, first):
                    yield event
            except ServingError as error:
                yield gateway_streams.error_event(error.code, error.message)

        return StreamingResponse(told(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def describe(self, request: Request) -> Response:
        """GET /openapi.json."""
        request.state.log["call"] = "openapi"

        async def signatures(name: str) -> Any:
            try:
                return await self.client.metadata(name)
            except ServingError:
                return {}  # described without them

        found = await asyncio.gather(*map(signatures, self.config.models))
        models = dict(zip(self.config.models, found))
        return JSONResponse(gateway_openapi.describe(models, self.config.anonymous))

    async def health(self, request: Request) -> Response:
        """GET /healthz."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /readyz: as it was at most READY_SECONDS ago, asked by one for all: whoever has no key may ask too."""
        async with self._asking_ready:
            if time.monotonic() - self._ready[0] >= READY_SECONDS:
                answer = await self._ask_ready()
                self._ready = (time.monotonic(), answer)
            return self._ready[1]

    async def _ask_ready(self) -> Response:
        async def available(name: str) -> bool:
            try:
                return any(entry["state"] == "AVAILABLE" for entry in await self.client.status(name))
            except ServingError:
                return False

        found = await asyncio.gather(*map(available, self.config.models))
        missing = [name for name, ready in zip(self.config.models, found) if not ready]
        return refuse(503, f"not available: {', '.join(missing)}") if missing else JSONResponse({"status": "ok"})


def create_app(config: GatewayConfig) -> Any:
    """The gateway as an ASGI application."""
    gateway = Gateway(config)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        await gateway.close()

    async def nothing(request: Request, _: Exception) -> Response:
        return refuse(404, "there is nothing at this path")

    async def other_method(request: Request, error: Any) -> Response:
        return refuse(405, "this path takes other methods", error.headers)

    routes = [
        Route("/healthz", gateway.health),
        Route("/readyz", gateway.ready),
        Route("/openapi.json", gateway.describe),
        Route("/v1/{rest:path}", gateway.handle, methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]),
    ]
    inner = Starlette(routes=routes, exception_handlers={404: nothing, 405: other_method}, lifespan=lifespan)
    inner.router.redirect_slashes = False
    guard = Guard(inner, config)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (inner if scope["type"] == "lifespan" else guard)(scope, receive, send)

    return app


def make_server(config: GatewayConfig) -> uvicorn.Server:
    """The application with its port and TLS, not started.

    Raises:
        FileNotFoundError, ssl.SSLError: a file of the certificate cannot be read.
    """
    server = uvicorn.Config(
        create_app(config),
        host=config.host,
        port=config.port,
        ssl_certfile=config.certificate,
        ssl_keyfile=config.private_key,
        log_config=None,
        access_log=False,
        server_header=False,
        http=ImpatientProtocol,
        ws="none",  # an upgrade is ignored, and the request answered as any other
        # Connections, idle ones too; requests at work have their own, lower limit.
        limit_concurrency=max(1024, 4 * config.max_concurrent),
        timeout_graceful_shutdown=int(config.timeout_seconds) + 1,
    )
    server.load()
    return uvicorn.Server(server)


def run(config: GatewayConfig) -> int:
    """Serves until SIGTERM or SIGINT, then finishes what was accepted. Logs a JSON line a request on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("serving.gateway")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    server = make_server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises again the signal that it has obeyed; an orderly end is exit code 0.
        signal.signal(number, lambda *_: sys.exit(0))
    scheme = "https" if config.certificate else "http"
    print(f"gateway on {scheme}://{before_port(config.host)}:{config.port} in front of {config.upstream}", flush=True)
    server.run()
    return 0 if server.started else 1
