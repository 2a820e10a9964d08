"""What the client says over REST: calls as paths and JSON, answers as plain values; and sending them by httpx."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx

from serving.retries import ServingError, seconds_of
from serving.wire import (
    INIT_SIGNATURE,
    Address,
    Call,
    Features,
    Signatures,
    StaleSignature,
    array_of,
    checked,
    plain,
    text,
)

HTTP_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_DTYPES = {"float": "float32", "double": "float64", "half": "float16"}


class RestWire:
    """The REST API over one pool of kept connections."""

    def __init__(self, address: Address):
        self._limit, self.arrays = address.max_receive_bytes, address.numpy
        verify: bool | ssl.SSLContext = True
        if isinstance(address.tls, str):
            verify = ssl.create_default_context(cafile=address.tls)
        self.url = f"{'https' if address.tls else 'http'}://{address.host_part}:{address.rest_api_port}"
        # Proxies of the environment are for the world outside, not for a model server.
        self._settings: dict[str, Any] = {
            "base_url": self.url,
            "headers": dict(address.headers),
            "verify": verify,
            "trust_env": False,
        }
        self._lock = threading.Lock()
        self._http: httpx.Client | None = None
        self._async_http: httpx.AsyncClient | None = None

    def predict(self, model, values, signature_name, version, signature) -> Call:
        inputs = {}
        for name, value in values.items():
            dtype = signature["inputs"][name]["dtype"]
            try:
                inputs[name] = _jsonable(checked(plain(value), dtype))
            except ValueError as error:
                raise ServingError("INVALID_ARGUMENT", f"input {name!r} takes {dtype}: {error}", "client") from error
        try:
            content = _json({"signature_name": signature_name, "inputs": inputs})
        except (TypeError, ValueError, RecursionError) as error:
            raise ServingError("INVALID_ARGUMENT", f"the inputs are not plain values: {error}", "client") from error
        return Call(
            "POST", _path(model, version) + ":predict", content, lambda answer: self._outputs(answer, signature)
        )

    def infer(self, method, model, examples, context, signature_name, version) -> Call:
        body = {"signature_name": signature_name, "examples": [_example(one) for one in examples]}
        if context is not None:
            body["context"] = _example(context)
        read = _classes if method == "classify" else self._values
        return Call("POST", f"{_path(model, version)}:{method}", _json(body), read)

    def metadata(self, model, version) -> Call:
        return Call("GET", _path(model, version) + "/metadata", b"", _signatures)

    def status(self, model) -> Call:
        return Call("GET", _path(model, None), b"", _versions)

    def _outputs(self, answer: Any, signature: dict) -> dict[str, Any]:
        # The server unwraps a single output, whose name only the signature knows.
        specs, told = signature["outputs"], answer["outputs"]
        names = set(told) if isinstance(told, dict) and told.keys() != {"b64"} else None
        if names != (None if len(specs) == 1 else set(specs)):
            raise StaleSignature(f"the outputs are {sorted(specs)} no longer: {str(told)[:200]}")
        outputs = {next(iter(specs)): told} if len(specs) == 1 else told
        found = {name: _from_json(value) for name, value in outputs.items()}
        if self.arrays:
            return {name: array_of(value, specs.get(name, {}).get("dtype")) for name, value in found.items()}
        return found

    def _values(self, answer: Any) -> Any:
        values = [float(value) for value in answer["results"]]
        return array_of(values, "float32") if self.arrays else values

    def send(self, call: Call, timeout: float) -> Any:
        until = time.monotonic() + timeout
        with self._translated(timeout):
            with self._lock:  # threads share a client
                if self._http is None:
                    self._http = httpx.Client(**self._settings)
            request = self._http.build_request(call.method, call.target, content=call.body or None, timeout=timeout)
            response, chunks, size = self._http.send(request, stream=True), [], 0
            try:
                for chunk in response.iter_bytes():
                    size += len(chunk)
                    self._check_size(size)
                    # httpx counts its timeout anew with every packet; a server that drips shall not hold us.
                    if time.monotonic() > until:
                        raise httpx.ReadTimeout("the answer is not complete")
                    chunks.append(chunk)
            finally:
                response.close()
        return self._read(call, response, b"".join(chunks))

    async def send_async(self, call: Call, timeout: float) -> Any:
        with self._translated(timeout):
            if self._async_http is None:
                self._async_http = httpx.AsyncClient(**self._settings)
            http, content = self._async_http, call.body or None
            request = http.build_request(call.method, call.target, content=content, timeout=timeout)
            async with asyncio.timeout(timeout):
                response, chunks, size = await http.send(request, stream=True), [], 0
                try:
                    async for chunk in response.aiter_bytes():
                        size += len(chunk)
                        self._check_size(size)
                        chunks.append(chunk)
                finally:
                    await response.aclose()
        return self._read(call, response, b"".join(chunks))

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    async def close_async(self) -> None:
        if self._async_http is not None:
            await self._async_http.aclose()

    @contextmanager
    def _translated(self, timeout: float) -> Iterator[None]:
        try:
            yield
        except (httpx.TimeoutException, TimeoutError) as error:
            message = f"no answer from {self.url} in {timeout:.3g} s: {error}"
            raise ServingError("DEADLINE_EXCEEDED", message, "transport") from error
        except httpx.InvalidURL as error:
            raise ServingError("INVALID_ARGUMENT", f"no address: {error}", "client") from error
        except httpx.HTTPError as error:
            message = f"cannot reach {self.url}: {error or type(error).__name__}"
            raise ServingError("UNAVAILABLE", message, "transport") from error

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            message = f"the answer is larger than max_receive_bytes={self._limit}"
            raise ServingError("RESOURCE_EXHAUSTED", message, "client")

    def _read(self, call: Call, response: httpx.Response, content: bytes) -> Any:
        try:
            # Strings that are not UTF-8 arrive as raw bytes in the JSON text.
            answer = json.loads(content.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError):
            answer = {"error": content[:200].decode("utf-8", "replace")}
        if response.status_code != 200:
            code = HTTP_CODES.get(response.status_code, "UNKNOWN")
            message = answer.get("error", "") if isinstance(answer, dict) else str(answer)[:200]
            wait = seconds_of(response.headers.get("retry-after"))
            raise ServingError(code, message or f"HTTP status {response.status_code}", "server", wait)
        try:
            return call.read(answer)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            message = f"not an answer of a model server: {str(answer)[:200]}"
            raise ServingError("INTERNAL", message, "server") from error


def _path(model: str, version: int | str | None) -> str:
    if version is None:
        of = ""
    elif isinstance(version, str):
        of = f"/labels/{quote(version, safe='')}"
    else:
        of = f"/versions/{version}"
    return f"/v1/models/{quote(model, safe='')}{of}"


def _json(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8")


def _example(features: Features) -> dict[str, list]:
    return {name: _jsonable(values) for name, (_, values) in features.items()}


def _classes(answer: Any) -> list[list[tuple[str | bytes, float]]]:
    return [[(_from_json(label), float(score)) for label, score in row] for row in answer["results"]]


def _jsonable(value: Any) -> Any:
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return {"b64": base64.b64encode(value).decode("ascii")} if isinstance(value, bytes) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict) and value.keys() == {"b64"}:
        return text(base64.b64decode(value["b64"]))
    return text(value.encode("utf-8", "surrogateescape")) if isinstance(value, str) else value


def _signatures(answer: Any) -> Signatures:
    return {
        name: {side: _specs(signature.get(side, {})) for side in ("inputs", "outputs")}
        for name, signature in sorted(answer["metadata"]["signature_def"]["signature_def"].items())
        if name != INIT_SIGNATURE
    }


def _specs(infos: dict[str, Any]) -> dict[str, dict[str, Any]]:
    specs = {}
    for name, info in sorted(infos.items()):
        dtype, shape = info["dtype"].removeprefix("DT_").lower(), info.get("tensor_shape", {})
        sizes = None if shape.get("unknown_rank") else [int(dim["size"]) for dim in shape.get("dim", [])]
        specs[name] = {"dtype": _DTYPES.get(dtype, dtype), "shape": sizes}
    return specs


def _versions(answer: Any) -> list[dict[str, Any]]:
    entries = answer["model_version_status"]
    return [{"version": int(entry["version"]), "state": entry["state"], **entry.get("status", {})} for entry in entries]
