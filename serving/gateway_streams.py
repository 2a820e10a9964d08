"""Streamed completions over a server that streams nothing: the same question again, with more tokens each time.

TensorFlow Serving answers a call once and whole. A text of n tokens is therefore asked for as its first token, its
first two, four, eight, up to n: same prompt, same seed, so that each answer begins with the one before, and the whole
stream equals what one call of `sample` would have said, at any temperature. The price: the server computes fewer than
3 n tokens instead of n (2 n for a power of two), and reads the prompt about log2(n) times. With `chunk_tokens` c the
pieces have equal size instead, and the server computes about n * n / (2 c) tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from typing import Any

from serving.client import AsyncClient, ServingError
from serving.signatures import INPUT_DTYPES, OPTION_DEFAULTS

MAX_CALLS = 64
MAX_TOKENS = 4096
_LIMITS = {"int32": 2**31 - 1, "int64": 2**63 - 1}
OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")


def parse_request(body: bytes) -> dict[str, Any]:
    """A stream's request: text, the options of `sample`, chunk_tokens.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("the body is a JSON object") from error
    if not isinstance(given, dict):
        raise ValueError("the body is a JSON object")
    for name in given:
        if name not in ("text", "chunk_tokens", *OPTIONS):
            raise ValueError(f"a stream takes text, chunk_tokens, {', '.join(OPTIONS)}; got {name[:64]!r}")
    text = given.get("text")
    if not isinstance(text, str) or not _is_unicode(text):
        raise ValueError("text is a string")
    request: dict[str, Any] = {"text": text, "chunk_tokens": given.get("chunk_tokens")}
    for name in OPTIONS:
        request[name] = _number(name, given.get(name, OPTION_DEFAULTS[name]))
    if not 1 <= request["max_new_tokens"] <= MAX_TOKENS:
        raise ValueError(f"max_new_tokens is between 1 and {MAX_TOKENS}")
    if request["chunk_tokens"] is not None:
        chunk = request["chunk_tokens"]
        least = math.ceil(request["max_new_tokens"] / MAX_CALLS)
        if isinstance(chunk, bool) or not isinstance(chunk, int) or not least <= chunk <= MAX_TOKENS:
            raise ValueError(
                f"chunk_tokens is between {least} and {MAX_TOKENS} for {request['max_new_tokens']} new tokens"
            )
    return request


def _is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _number(name: str, value: Any) -> int | float:
    dtype = INPUT_DTYPES[name]
    kinds = (int, float) if dtype == "float32" else (int,)
    # Python's JSON reads NaN, and integers of any length.
    if isinstance(value, bool) or not isinstance(value, kinds) or not abs(value) <= _LIMITS.get(dtype, 3e38):
        raise ValueError(f"{name} is a number ({dtype})")
    return value


def lengths(max_new_tokens: int, chunk_tokens: int | None) -> list[int]:
    """How many tokens are asked for, call by call."""
    if chunk_tokens is not None:
        return [*range(chunk_tokens, max_new_tokens, chunk_tokens), max_new_tokens]
    return [*(2**i for i in range((max_new_tokens - 1).bit_length())), max_new_tokens]


async def completions(client: AsyncClient, model: str, version: Any, request: dict) -> AsyncIterator[dict[str, Any]]:
    """The answers of `sample`, each longer than the one before, until the text has ended. Raises: ServingError."""
    before = None
    for length in lengths(request["max_new_tokens"], request["chunk_tokens"]):
        inputs = {name: [request[name]] for name in ("text", *OPTIONS)} | {"max_new_tokens": [length]}
        outputs = await client.predict(model, inputs, "sample", version)
        if not {"completion", "log_probability"} <= outputs.keys():
            message = f"signature sample of {model!r} does not answer completion and log_probability"
            raise ServingError("INVALID_ARGUMENT", message, "client")
        now = {"completion": _as_text(outputs["completion"][0]), "log_probability": outputs["log_probability"][0]}
        # Another token would have changed the log-probability.
        if now == before:
            return
        yield now
        before = now


async def events(answers: AsyncIterator[dict[str, Any]], first: dict[str, Any]) -> AsyncIterator[bytes]:
    """Server-sent events: `data` with each new piece, then `done` with the whole, which counts."""
    sent, last = "", first
    piece, sent = _piece(sent, first["completion"])
    if piece:
        yield _event(None, {"text": piece})
    async for last in answers:
        piece, sent = _piece(sent, last["completion"])
        if piece:
            yield _event(None, {"text": piece})
    if len(last["completion"]) > len(sent) and last["completion"].startswith(sent):
        yield _event(None, {"text": last["completion"][len(sent) :]})
    yield _event("done", last)


def error_event(code: str, message: str) -> bytes:
    """The end of a stream that broke off."""
    return _event("error", {"code": code, "error": message})


def _piece(sent: str, now: str) -> tuple[str, str]:
    """What is new, and all that was sent. The end of a character cut in two stays back until it is whole."""
    whole = now.rstrip("\ufffd")
    return (whole[len(sent) :], whole) if whole.startswith(sent) else ("", sent)


def _as_text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _event(name: str | None, data: dict[str, Any]) -> bytes:
    # JSON text has no line breaks of its own, so one data line is enough.
    lines = [*([f"event: {name}"] if name else []), f"data: {json.dumps(data)}", "", ""]
    return "\n".join(lines).encode()
