"""The OpenAPI 3.1 description of the gateway, made from what the served models say of their signatures."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from serving.client import Signatures
from serving.gateway_streams import MAX_TOKENS, OPTIONS
from serving.signatures import INPUT_DTYPES, OPTION_DEFAULTS

_STRING: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
            "required": ["b64"],
            "additionalProperties": False,
        },
    ]
}
_INTEGERS = {f"{sign}int{bits}": (sign, bits) for sign in ("", "u") for bits in (8, 16, 32, 64)}
_ERRORS = {
    "400": "the request is wrong",
    "401": "no valid API key",
    "404": "no such model or version",
    "405": "the path has other methods",
    "408": "the body did not arrive in time",
    "413": "the body is too large",
    "415": "the body is compressed",
    "429": "too many requests for this key; see Retry-After",
    "502": "the server's answer cannot be passed on",
    "503": "the server cannot be reached, or is busy",
    "504": "the server did not answer in time",
}


def describe(models: dict[str, Signatures], anonymous: bool) -> dict[str, Any]:
    """The description as JSON values. `models`: name -> its signatures; empty where they could not be asked for."""
    paths: dict[str, Any] = {
        "/healthz": {"get": _operation("healthz", "whether the gateway runs", {"type": "object"}, None, [])},
        "/readyz": {"get": _operation("readyz", "whether every model is AVAILABLE", {"type": "object"}, None, ["503"])},
        "/openapi.json": {"get": _operation("openapi", "this description", {"type": "object"}, None)},
    }
    for name, signatures in models.items():
        base = f"/v1/models/{quote(name, safe='')}"
        paths[base] = {
            "get": _operation(f"status of {name}", "its versions and their states", {"type": "object"}, None)
        }
        paths[f"{base}/metadata"] = {
            "get": _operation(f"metadata of {name}", "its signatures", {"type": "object"}, None)
        }
        paths[f"{base}:predict"] = {
            "post": _operation(
                f"predict by {name}",
                f"runs a signature of {name}: {', '.join(signatures)}",
                {"type": "object"},
                _predict_body(signatures),
            )
        }
        if "sample" in signatures:
            streamed = _operation(f"stream of {name}", "a completion, piece by piece", {}, _stream_body())
            streamed["responses"]["200"]["content"] = {"text/event-stream": {}}  # no schema says what events are
            paths[f"{base}:stream"] = {"post": streamed}
    description: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "keras_seq gateway",
            "version": "1",
            "description": "TensorFlow Serving's REST API with keys.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    if not anonymous:
        description["security"] = [{"key": []}]
    return description


def tensor_schema(spec: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a tensor: its values in as many lists as it has axes; anything where the rank is unknown."""
    if spec["shape"] is None:
        return {}
    schema = _value_schema(spec["dtype"])
    for size in reversed(spec["shape"]):
        schema = {"type": "array", "items": schema}
        if size >= 0:
            schema |= {"minItems": size, "maxItems": size}
    return schema


def _value_schema(dtype: str) -> dict[str, Any]:
    if dtype == "string":
        return _STRING
    if dtype == "bool":
        return {"type": "boolean"}
    if dtype in _INTEGERS:
        sign, bits = _INTEGERS[dtype]
        low, high = (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return {"type": "integer", "minimum": low, "maximum": high}
    return {"type": "number"}


def _predict_body(signatures: Signatures) -> dict[str, Any]:
    """One alternative a signature, in column form. A signature's single input is given by its value alone."""
    forms = []
    for name, signature in signatures.items():
        inputs = {key: tensor_schema(spec) for key, spec in signature["inputs"].items()}
        named = {"type": "object", "properties": inputs, "required": list(inputs), "additionalProperties": False}
        body: dict[str, Any] = {
            "type": "object",
            "title": name,
            "properties": {
                "signature_name": {"const": name},
                "inputs": next(iter(inputs.values())) if len(inputs) == 1 else named,
            },
            "required": ["inputs"] if name == "serving_default" else ["signature_name", "inputs"],
        }
        forms.append(body)
    return {"anyOf": forms} if forms else {"type": "object"}


def _stream_body() -> dict[str, Any]:
    properties: dict[str, Any] = {"text": {"type": "string"}}
    for name in OPTIONS:
        properties[name] = {**_value_schema(INPUT_DTYPES[name]), "default": OPTION_DEFAULTS[name]}
    properties["max_new_tokens"] |= {"minimum": 1, "maximum": MAX_TOKENS}
    properties["chunk_tokens"] = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_TOKENS}
    return {"type": "object", "properties": properties, "required": ["text"], "additionalProperties": False}


def _operation(
    name: str, summary: str, answer: dict[str, Any], body: dict[str, Any] | None, errors: list[str] | None = None
) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "operationId": name.replace(" ", "_"),
        "summary": summary,
        "responses": {
            "200": {"description": "the answer", "content": {"application/json": {"schema": answer}}},
            **{
                code: {"description": why, "content": error}
                for code, why in _ERRORS.items()
                if errors is None or code in errors
            },
        },
    }
    if errors is not None:
        operation["security"] = []
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation
