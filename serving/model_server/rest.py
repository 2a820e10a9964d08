"""The REST edge: TensorFlow Serving's paths over a ModelManager."""

from __future__ import annotations

import asyncio
import logging
import re
from concurrent.futures import ThreadPoolExecutor

import orjson
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow_serving.apis import get_model_metadata_pb2

from serving.model_server import json_tensors, rpc
from serving.model_server.core import MAX_VERSION, ModelManager
from serving.model_server.errors import Code, StatusError, as_status, invalid
from serving.model_server.signature import DEFAULT_SIGNATURE

logger = logging.getLogger("serving.model_server")

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_CALL_PATH = re.compile(_MODEL + r":(?P<method>predict|classify|regress)", re.IGNORECASE | re.ASCII)
_INFO_PATH = re.compile(_MODEL + r"(?P<metadata>/metadata)?", re.IGNORECASE | re.ASCII)
_METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]


def create_app(manager: ModelManager, pool: ThreadPoolExecutor, timeout_seconds: float) -> Starlette:
    """The ASGI application.

    Args:
        manager: who holds the models.
        pool: the threads that work on the calls; more calls than threads wait.
        timeout_seconds: after this a call is answered DEADLINE_EXCEEDED.
    """

    async def handle(request: Request) -> Response:
        try:
            body = await request.body()
            path = request.scope["path"]  # percent-escapes resolved
            work = asyncio.get_running_loop().run_in_executor(pool, answer, manager, request.method, path, body)
            return Response(await asyncio.wait_for(work, timeout_seconds), media_type="application/json")
        except ClientDisconnect:
            return Response(status_code=400)
        except TimeoutError:
            error = StatusError(Code.DEADLINE_EXCEEDED, f"Timed out after {timeout_seconds:g} s")
        except StatusError as refused:
            error = refused
        return _error_response(error)

    # TensorFlow Serving answers 404 outside /v1/, and 400 to whatever it cannot read inside.
    return Starlette(
        routes=[Route("/v1/{rest:path}", handle, methods=_METHODS), Route("/{rest:path}", _not_found, methods=_METHODS)]
    )


def answer(manager: ModelManager, method: str, path: str, body: bytes) -> bytes:
    """The body of the answer to one request. Raises: StatusError."""
    try:
        call = _CALL_PATH.fullmatch(path)
        if method == "POST" and call:
            return _call(manager, call, body)
        info = _INFO_PATH.fullmatch(path)
        if method == "GET" and info:
            return _metadata(manager, info) if info["metadata"] else _status(manager, info)
        raise invalid(f"Malformed request: {method} {path}")
    except StatusError:
        raise
    except Exception as error:
        logger.exception("a REST call failed")
        raise as_status(error) from error


def _call(manager: ModelManager, path: re.Match, body: bytes) -> bytes:
    if path["method"].lower() != "predict":
        raise StatusError(Code.UNIMPLEMENTED, f"{path['method']} is not implemented by this server")
    with manager.use(**_model_key(path)) as loaded:
        request = json_tensors.parse_body(body)
        name = json_tensors.signature_name(request) or DEFAULT_SIGNATURE
        if name not in loaded.signatures:
            raise invalid(
                f'Serving signature name: "{name}" not found in signature def. '
                f"Model {loaded.name!r} has {', '.join(sorted(loaded.signatures))}."
            )
        signature = loaded.signatures[name]
        feeds, row_form = json_tensors.decode_request(request, signature)
        outputs = loaded.run(signature, feeds)
    return json_tensors.encode_response(outputs, row_form)


def _status(manager: ModelManager, path: re.Match) -> bytes:
    response = rpc.status_of(manager.status(**_model_key(path)))
    return orjson.dumps(_as_dict(response), option=orjson.OPT_INDENT_2)


def _metadata(manager: ModelManager, path: re.Match) -> bytes:
    with manager.use(**_model_key(path)) as loaded:
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
    if path["version"] is not None and int(path["version"]) > MAX_VERSION:
        raise invalid(f"Failed to convert version: {path['version']} to numeric.")
    version = None if path["version"] is None else int(path["version"])
    return {"name": path["name"], "version": version, "label": path["label"]}


def _error_response(error: StatusError) -> Response:
    body = orjson.dumps({"error": error.message.encode("utf-8", "replace").decode()})
    return Response(body, error.http_status, media_type="application/json")


async def _not_found(request: Request) -> Response:
    return _error_response(
        StatusError(Code.NOT_FOUND, f"Not found: {request.scope['path']}. Paths begin with /v1/models/.")
    )
