"""What both transports of the client share: where the server is, what a call is, and values in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from serving.retries import ServingError

Signatures = dict[str, dict[str, dict[str, dict[str, Any]]]]
INIT_SIGNATURE = "__saved_model_init_op"
# The features of an example: name -> (the field of tf.train.Feature that holds them, values).
Features = dict[str, tuple[str, list]]
_FLOAT_MAX = (2 - 2**-23) * 2.0**127
MAX_MESSAGE_BYTES = 2**31 - 1  # what a protobuf message can hold; grpc's own limit is 4 MB


@dataclass(frozen=True)
class Address:
    """Where a server is and how it is spoken to; the arguments are those of `Client`."""

    host: str
    port: int
    rest_api_port: int
    max_receive_bytes: int = MAX_MESSAGE_BYTES
    max_send_bytes: int = MAX_MESSAGE_BYTES
    tls: bool | str = False
    headers: Mapping[str, str] = field(default_factory=dict)
    numpy: bool = False

    @property
    def host_part(self) -> str:
        """The host as it stands in front of a port."""
        return before_port(self.host)


@dataclass(frozen=True)
class Call:
    """One message to be sent, and how its answer is read.

    Args:
        method: the HTTP method; "" for gRPC.
        target: the path.
        body: what is sent.
        read: from JSON (REST) or a serialized message (gRPC) to what the client returns.
    """

    method: str
    target: str
    body: bytes
    read: Callable[[Any], Any]


class StaleSignature(ServingError):
    """An answer that does not have the outputs of the signature it was asked by: the version is another by now."""

    def __init__(self, message: str):
        super().__init__("INTERNAL", message, "server")


class Wire(Protocol):
    """A transport: how calls are written, and the two ways of sending one."""

    def predict(
        self, model: str, values: Mapping[str, Any], signature_name: str, version: int | str | None, signature: dict
    ) -> Call: ...

    def infer(
        self,
        method: Literal["classify", "regress"],
        model: str,
        examples: list[Features],
        context: Features | None,
        signature_name: str,
        version: int | str | None,
    ) -> Call: ...

    def metadata(self, model: str, version: int | str | None) -> Call: ...

    def status(self, model: str) -> Call: ...

    def send(self, call: Call, timeout: float) -> Any: ...

    async def send_async(self, call: Call, timeout: float) -> Any: ...

    def close(self) -> None: ...

    async def close_async(self) -> None: ...


def before_port(host: str) -> str:
    """A name or an address as it stands in front of a port: one of IPv6 in brackets, which it may have already."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def plain(value: Any) -> Any:
    """NumPy arrays and scalars as nested lists, tuples as lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def features(example: Mapping[str, Any]) -> Features:
    """The features of an example by the types of their values, as TensorFlow Serving tells them apart in JSON.

    Raises:
        TypeError: the example is no mapping with str for names, or a value is neither text nor a number.
        ValueError: a feature's values are of several kinds, or beyond int64 or float32.
    """
    if not isinstance(example, Mapping):
        raise TypeError(f"an example is a dict of features, got {type(example).__name__}")
    found: Features = {}
    for name, value in example.items():
        if not isinstance(name, str):
            raise TypeError(f"a feature's name is a str, got {name!r}")
        values = plain(value)
        values = values if isinstance(values, list) else [values]
        fields = {_feature_field(name, one) for one in values}
        if len(fields) > 1:
            raise ValueError(f"feature {name!r} needs values of one kind, got {', '.join(sorted(fields))}")
        numbers = [int(one) if isinstance(one, bool) else one for one in values]
        found[name] = (fields.pop() if fields else "bytes_list", numbers)
    return found


def _feature_field(name: str, value: Any) -> str:
    if isinstance(value, str | bytes):
        return "bytes_list"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"feature {name!r} needs integers of 64 bits, got {value}")
        return "int64_list"
    if isinstance(value, float):
        if _FLOAT_MAX < abs(value) < float("inf"):
            raise ValueError(f"feature {name!r} needs floats of 32 bits, got {value!r}")
        return "float_list"
    raise TypeError(f"feature {name!r} needs str, bytes, int, bool or float, got {type(value).__name__}")


def checked(value: Any, dtype: str) -> Any:
    """Nested lists in which every level has one size, of numbers that the dtype can hold.

    Raises:
        ValueError: they are ragged, or a number is out of the dtype's range; anything else is left as it is.
    """
    import numpy as np

    leaves: list = [value]
    odd: list
    while any(isinstance(one, list) for one in leaves):
        sizes = {len(one) if isinstance(one, list) else -1 for one in leaves}
        if len(sizes) > 1:
            raise ValueError("it is ragged: the lists of one level need one length")
        leaves = [item for one in leaves for item in one]
    if dtype.startswith(("int", "uint")):
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        odd = [one for one in leaves if isinstance(one, int) and not low <= one <= high]
    else:
        most = {"float16": 65504.0, "float32": _FLOAT_MAX, "bfloat16": _FLOAT_MAX}.get(dtype, float("inf"))
        odd = [one for one in leaves if isinstance(one, int | float) and most < abs(one) < float("inf")]
    if odd:
        raise ValueError(f"{odd[0]!r} is out of its range")
    return value


def text(value: bytes) -> str | bytes:
    """str where the bytes are UTF-8."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def array_of(value: Any, dtype: str | None) -> Any:
    """Nested lists as a NumPy array: strings as objects, and bfloat16, which NumPy has not, as float32."""
    import numpy as np

    return np.array(value, {"string": "O", "bfloat16": "float32"}.get(dtype or "", dtype))
