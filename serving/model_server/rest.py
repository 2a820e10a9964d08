"""The REST edge: TensorFlow Serving's paths over a ModelManager."""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote_to_bytes

import orjson
from google.protobuf import json_format
from starlette.responses import Response
from tensorflow_serving.apis import get_model_metadata_pb2

from serving.model_server import examples, json_answers, json_examples, json_tensors, rpc
from serving.model_server.core import MAX_VERSION, ModelManager
from serving.model_server.errors import Code, StatusError, as_status, invalid
from serving.model_server.signature import DEFAULT_SIGNATURE, in_braces

logger = logging.getLogger("serving.model_server")

_WHICH = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_CALL_PATH = re.compile(rf"/v1/models/(?P<name>[^/:]+){_WHICH}:(?P<method>predict|classify|regress)", re.I | re.A)
_INFO_PATH = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_WHICH}(?P<metadata>/metadata)?", re.I | re.A)
_CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}
MAX_REQUEST_BYTES = 2**31 - 1  # as gRPC: one upload without end must not take all memory
MAX_BODY_BYTES = 100 * 2**20  # of a gzip body once it is inflated: TensorFlow Serving's limit
GZIP_FROM_BYTES = 1024  # of an answer: a shorter one fits a packet as it is


class RestApp:
    """The ASGI application.

    Args:
        manager: who holds the models.
        pool: the threads that work on the calls; more calls than threads wait.
        timeout_seconds: after this a call is answered DEADLINE_EXCEEDED.
        has_cors: whether a page of any origin may read the answers.
    """

    def __init__(self, manager: ModelManager, pool: ThreadPoolExecutor, timeout_seconds: float, has_cors: bool = False):
        self.manager, self.pool, self.timeout_seconds, self.has_cors = manager, pool, timeout_seconds, has_cors

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        try:
            body = await _read(receive)
            if body is None:  # the caller has gone
                return
            status, content = 200, await self._work(scope, headers, body)
        except StatusError as refused:
            scope["code"] = refused.code  # for whoever counts: several codes share an HTTP status
            status, content = refused.http_status, _error_body(refused)
        extra = dict(_CORS) if self.has_cors else {}
        if len(content) >= GZIP_FROM_BYTES and b"gzip" in headers.get(b"accept-encoding", b""):
            content = await asyncio.get_running_loop().run_in_executor(self.pool, gzip.compress, content, 1)
            extra |= {"content-encoding": "gzip", "vary": "Accept-Encoding"}
        await Response(content, status, extra, "application/json")(scope, receive, send)

    async def _work(self, scope, headers: dict[bytes, bytes], body: bytes) -> bytes:
        path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
        if path[:4].lower() != "/v1/":
            raise StatusError(Code.NOT_FOUND, f"Not found: {path}. Paths begin with /v1/models/.")
        if self.has_cors and scope["method"] == "OPTIONS":
            return _preflight(headers)
        target = f"{path}?{query}" if query else path  # a query belongs to no path there is
        is_gzip = b"gzip" in headers.get(b"content-encoding", b"")
        arguments = (self.manager, scope["method"], target, body, is_gzip, time.monotonic() + self.timeout_seconds)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                return await asyncio.get_running_loop().run_in_executor(self.pool, answer, *arguments)
        except (TimeoutError, StatusError) as error:
            if isinstance(error, StatusError) and error.code != Code.DEADLINE_EXCEEDED:
                raise
            raise StatusError(Code.DEADLINE_EXCEEDED, f"Timed out after {self.timeout_seconds:g} s") from None


def answer(
    manager: ModelManager, method: str, path: str, body: bytes, is_gzip: bool = False, deadline: float | None = None
) -> bytes:
    """The body of the answer to one request; `path` with its percent-escapes. Raises: StatusError."""
    try:
        call = _CALL_PATH.fullmatch(path)
        if method == "POST" and call and call["method"].islower():
            content = _inflated(body) if is_gzip else body
            return _CALLS[call["method"]](manager, _model_key(call), content, deadline)
        info = _INFO_PATH.fullmatch(path)
        if method == "GET" and info:
            if info["name"] is None:
                raise invalid("Missing model name in request.")
            return (_metadata if info["metadata"] == "/metadata" else _status)(manager, _model_key(info))
        raise invalid(f"Malformed request: {method} {path}")
    except StatusError:
        raise
    except Exception as error:
        logger.exception("a REST call failed")
        raise as_status(error) from error


def _predict(manager: ModelManager, model_key: dict, body: bytes, deadline: float | None) -> bytes:
    request = json_tensors.parse_body(body)
    name = json_tensors.signature_name(request) or DEFAULT_SIGNATURE
    with manager.use(**model_key) as loaded:
        if name not in loaded.signatures:
            raise invalid(
                f'Serving signature name: "{name}" not found in signature def. '
                f"Model {loaded.name!r} has {in_braces(loaded.signatures)}."
            )
        signature = loaded.signatures[name]
        feeds, row_form = json_tensors.decode_request(request, signature)
        outputs = loaded.run(signature, feeds, deadline=deadline)
    return json_answers.encode_response(outputs, row_form)


def _classify(manager: ModelManager, model_key: dict, body: bytes, deadline: float | None) -> bytes:
    request = json_tensors.parse_body(body)
    name, rows = json_tensors.signature_name(request), json_examples.decode_request(request)
    with manager.use(**model_key) as loaded:
        signature = examples.find_signature(loaded, name, examples.CLASSIFY_METHOD)
        classes = examples.classify(loaded, signature, rows, deadline)
    return json_answers.encode_classes(examples.rows(classes))


def _regress(manager: ModelManager, model_key: dict, body: bytes, deadline: float | None) -> bytes:
    request = json_tensors.parse_body(body)
    name, rows = json_tensors.signature_name(request), json_examples.decode_request(request)
    with manager.use(**model_key) as loaded:
        signature = examples.find_signature(loaded, name, examples.REGRESS_METHOD)
        values = examples.regress(loaded, signature, rows, deadline)
    return json_answers.encode_values(values)


_CALLS = {"predict": _predict, "classify": _classify, "regress": _regress}


def _status(manager: ModelManager, model_key: dict) -> bytes:
    response = rpc.status_of(manager.status(**model_key))
    return orjson.dumps(_as_dict(response), option=orjson.OPT_INDENT_2)


def _metadata(manager: ModelManager, model_key: dict) -> bytes:
    with manager.use(**model_key) as loaded:
        response = rpc.metadata_of(loaded)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    answer = {"model_spec": _as_dict(response.model_spec), "metadata": {"signature_def": _as_dict(signatures)}}
    return orjson.dumps(answer, option=orjson.OPT_INDENT_2)


def _as_dict(message) -> dict:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _model_key(path: re.Match) -> dict:
    """Name, version and label of a path; the two words, not the path, may hold percent-escapes."""
    digits = (path["version"] or "").lstrip("0")
    if len(digits) > 19 or int(digits or 0) > MAX_VERSION:
        raise invalid(f"Failed to convert version: {path['version']} to numeric.")
    version = None if path["version"] is None else int(digits or 0)
    label = None if path["label"] is None else _unquoted(path["label"])
    return {"name": _unquoted(path["name"]), "version": version, "label": label}


def _unquoted(word: str) -> str:
    return unquote_to_bytes(word).decode("utf-8", "replace") if "%" in word else word


async def _read(receive) -> bytes | None:
    """The body; None when the caller has gone. Raises: StatusError INVALID_ARGUMENT for a body that is too long."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        return message.get("body", b"")
    chunks, size = [], 0
    while message["type"] == "http.request":
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MAX_REQUEST_BYTES:
            raise invalid(f"A body has at most {MAX_REQUEST_BYTES} bytes.")
        if not message.get("more_body"):
            return b"".join(chunks)
        message = await receive()
    return None


def _inflated(body: bytes) -> bytes:
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        content = inflate.decompress(body, MAX_BODY_BYTES)
    except zlib.error as error:
        raise invalid(f"JSON Parse error: the gzip body does not inflate: {error}") from None
    if not inflate.eof:
        raise invalid(f"JSON Parse error: the gzip body is cut off, or inflates to more than {MAX_BODY_BYTES} bytes.")
    return content


def _preflight(headers: dict[bytes, bytes]) -> bytes:
    if not re.search(rb"https?://", headers.get(b"origin", b"")):
        raise StatusError(Code.FAILED_PRECONDITION, "A CORS preflight needs an Origin header, http:// or https://.")
    return b""


def _error_body(error: StatusError) -> bytes:
    return orjson.dumps({"error": error.message.encode("utf-8", "replace").decode()})
