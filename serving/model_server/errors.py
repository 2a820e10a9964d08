"""The canonical status codes, the one exception that carries them, and their HTTP counterparts."""

from enum import IntEnum


class Code(IntEnum):
    """Canonical codes, numbered as gRPC, TensorFlow and absl number them."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# TensorFlow Serving's own table: a failed precondition is the caller's fault (400), not the server's (412 or 500).
HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


MAX_MESSAGE_BYTES = 2000  # a third of what gRPC surely sends: three bytes stand for each that is not ASCII


class StatusError(Exception):
    """A refusal or a failure, with the canonical code that both edges translate.

    Args:
        code: a `Code`.
        message: what rule was broken and what came, cut to `MAX_MESSAGE_BYTES`: what came may be without end.
    """

    def __init__(self, code: Code, message: str):
        encoded = message.encode("utf-8", "replace")
        if len(encoded) > MAX_MESSAGE_BYTES:
            message = encoded[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + "..."
        super().__init__(message)
        self.code = Code(code)
        self.message = message

    @property
    def http_status(self) -> int:
        return HTTP_STATUS[self.code]


def invalid(message: str) -> StatusError:
    """The refusal that nearly every bad request gets."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def as_status(error: BaseException) -> StatusError:
    """Any exception as a `StatusError`: TensorFlow's keep their code, the rest become the code that fits them."""
    if isinstance(error, StatusError):
        return error
    code, message = getattr(error, "error_code", None), getattr(error, "message", None)
    if isinstance(code, int) and code in HTTP_STATUS and isinstance(message, str):
        return StatusError(Code(code), message)
    if isinstance(error, MemoryError):
        return StatusError(Code.RESOURCE_EXHAUSTED, f"Out of memory: {error}")
    return StatusError(Code.INTERNAL, f"{type(error).__name__}: {error}")
