"""One set of methods over TensorFlow Serving's public API, with two transports: REST (httpx) and gRPC.

Works against stock TensorFlow Serving and the embedded server alike. Importing this module imports neither TensorFlow
nor grpc nor the library; the gRPC transport imports its stubs, and with them TensorFlow, when it is first used.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Literal, Protocol

Signatures = dict[str, dict[str, dict[str, dict[str, Any]]]]

_CODES = {
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
_MAX_MESSAGE_BYTES = 2**31 - 1
_INIT_SIGNATURE = "__saved_model_init_op"


class ServingError(Exception):
    """A call that got no answer.

    Attributes:
        code: the canonical name, such as "INVALID_ARGUMENT" or "UNAVAILABLE".
        message: what was refused, and why.
        side: who refused: "client" (before anything was sent), "transport" (no server, no answer in time) or "server".
    """

    def __init__(self, code: str, message: str, side: Literal["client", "transport", "server"]):
        super().__init__(f"{code} ({side}): {message}")
        self.code, self.message, self.side = code, message, side


class Transport(Protocol):
    """What the two transports share. `values` are plain Python; names and dtypes come from `signature`."""

    def predict(self, model: str, values: Any, signature_name: str, version: int | None, signature: dict) -> dict: ...

    def metadata(self, model: str, version: int | None) -> Signatures: ...

    def status(self, model: str) -> list[dict[str, Any]]: ...

    def close(self) -> None: ...


class Client:
    """Asks a model server.

    Args:
        host: name or address.
        port: the gRPC port.
        rest_api_port: the REST port.
        transport: "rest" or "grpc".
        timeout: seconds until a call is given up.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8500,
        rest_api_port: int = 8501,
        transport: Literal["rest", "grpc"] = "rest",
        timeout: float = 60.0,
    ):
        if transport not in ("rest", "grpc"):
            raise ValueError(f'Client needs transport "rest" or "grpc", got transport={transport!r}.')
        address = f"[{host}]" if ":" in host else host
        self._transport: Transport = (
            RestTransport(f"http://{address}:{rest_api_port}", timeout)
            if transport == "rest"
            else GrpcTransport(f"{address}:{port}", timeout)
        )
        self._signatures: dict[tuple[str, int | None], Signatures] = {}

    def predict(
        self,
        model: str,
        inputs: Mapping[str, Any] | Any,
        signature: str = "serving_default",
        version: int | None = None,
    ) -> dict[str, Any]:
        """Runs a signature.

        Args:
            model: the model's name.
            inputs: input name -> nested lists or NumPy array, the batch first; str and bytes for strings. A signature
                with one input takes the value alone.
            signature: the signature's name.
            version: the version's number, the newest when None.

        Returns:
            Output name -> nested lists. Strings are str where they are UTF-8, bytes where not. A float32 is the
            shortest decimal that stands for it (0.1), over both transports.

        Raises:
            ServingError: with the side that refused.
        """
        known = self._signature(model, version, signature)
        if not isinstance(inputs, Mapping):
            names = list(known["inputs"])
            if len(names) != 1:
                raise ServingError(
                    "INVALID_ARGUMENT", f"signature {signature!r} takes a dict with the inputs {names}.", "client"
                )
            inputs = {names[0]: inputs}
        values = {name: _plain(value) for name, value in inputs.items()}
        try:
            return self._transport.predict(model, values, signature, version, known)
        except ServingError as error:
            # A new version may have other signatures than the ones remembered.
            if error.code in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"):
                self._signatures.pop((model, version), None)
            raise

    def metadata(self, model: str, version: int | None = None) -> Signatures:
        """Signature name -> {"inputs": ..., "outputs": ...}, each name -> {"dtype": "float32", "shape": [-1, 3]}.

        A shape is None where the rank is unknown. Raises: ServingError.
        """
        return self._transport.metadata(model, version)

    def status(self, model: str) -> list[dict[str, Any]]:
        """A dict for each version: version (int), state, error_code and error_message. Raises: ServingError."""
        return self._transport.status(model)

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _signature(self, model: str, version: int | None, name: str) -> dict:
        key = (model, version)
        if key not in self._signatures or name not in self._signatures[key]:
            self._signatures[key] = self.metadata(model, version)
        if name not in self._signatures[key]:
            raise ServingError(
                "INVALID_ARGUMENT",
                f"model {model!r} has no signature {name!r}, only {', '.join(sorted(self._signatures[key]))}.",
                "client",
            )
        return self._signatures[key][name]


class RestTransport:
    """The REST API over one keep-alive connection pool."""

    def __init__(self, url: str, timeout: float):
        import httpx

        self._httpx = httpx
        # Proxies of the environment are for the world outside, not for a model server.
        self._http = httpx.Client(base_url=url, timeout=timeout, trust_env=False)

    def predict(self, model, values, signature_name, version, signature):
        body = {"signature_name": signature_name, "inputs": {name: _jsonable(value) for name, value in values.items()}}
        try:
            text = json.dumps(body, ensure_ascii=False).encode("utf-8")
        except (TypeError, ValueError) as error:
            raise ServingError("INVALID_ARGUMENT", f"the inputs are not plain values: {error}", "client") from error
        answer = self._call("POST", _path(model, version) + ":predict", text)["outputs"]
        # The server unwraps a single output, whose name only the signature knows.
        names = list(signature["outputs"])
        outputs = {names[0]: answer} if len(names) == 1 else answer
        return {name: _from_json(value) for name, value in outputs.items()}

    def metadata(self, model, version):
        answer = self._call("GET", _path(model, version) + "/metadata")
        return {
            name: {side: _specs_from_json(signature.get(side, {})) for side in ("inputs", "outputs")}
            for name, signature in sorted(answer["metadata"]["signature_def"]["signature_def"].items())
            if name != _INIT_SIGNATURE
        }

    def status(self, model):
        entries = self._call("GET", _path(model, None))["model_version_status"]
        return [
            {"version": int(entry["version"]), "state": entry["state"], **entry.get("status", {})} for entry in entries
        ]

    def close(self) -> None:
        self._http.close()

    def _call(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, content=body)
        except self._httpx.TimeoutException as error:
            message = f"no answer from {self._http.base_url} in time: {error}"
            raise ServingError("DEADLINE_EXCEEDED", message, "transport") from error
        except (self._httpx.HTTPError, self._httpx.InvalidURL) as error:
            raise ServingError("UNAVAILABLE", f"cannot reach {self._http.base_url}: {error}", "transport") from error
        try:
            # Strings that are not UTF-8 arrive as raw bytes in the JSON text.
            answer = json.loads(response.content.decode("utf-8", "surrogateescape"))
        except ValueError:
            answer = {"error": response.text[:200]}
        if response.status_code != 200:
            code = _CODES.get(response.status_code, "UNKNOWN")
            message = answer.get("error", "") if isinstance(answer, dict) else str(answer)
            raise ServingError(code, message or f"HTTP status {response.status_code}", "server")
        if not isinstance(answer, dict) or "error" in answer:
            raise ServingError("INTERNAL", f"not an answer of a model server: {str(answer)[:200]}", "server")
        return answer


class GrpcTransport:
    """The gRPC API over one channel."""

    def __init__(self, address: str, timeout: float):
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        self._grpc, self._tf, self._timeout, self._address = grpc, tf, timeout, address
        options = [(f"grpc.max_{way}_message_length", _MAX_MESSAGE_BYTES) for way in ("send", "receive")]
        self._channel = grpc.insecure_channel(address, options=[*options, ("grpc.enable_http_proxy", 0)])
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(self, model, values, signature_name, version, signature):
        from tensorflow_serving.apis import predict_pb2

        request = self._request(predict_pb2.PredictRequest, model, version)
        request.model_spec.signature_name = signature_name
        for name, value in values.items():
            if name not in signature["inputs"]:
                names = ", ".join(signature["inputs"])
                raise ServingError("INVALID_ARGUMENT", f"unknown input {name!r}; the inputs are {names}.", "client")
            request.inputs[name].CopyFrom(self._tensor(name, value, signature["inputs"][name]["dtype"]))
        response = self._call(self._prediction.Predict, request)
        return {name: _from_array(self._tf.make_ndarray(proto)) for name, proto in response.outputs.items()}

    def metadata(self, model, version):
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = self._request(get_model_metadata_pb2.GetModelMetadataRequest, model, version)
        request.metadata_field.append("signature_def")
        response = self._call(self._prediction.GetModelMetadata, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return {
            name: {"inputs": self._specs(proto.inputs), "outputs": self._specs(proto.outputs)}
            for name, proto in sorted(signatures.signature_def.items())
            if name != _INIT_SIGNATURE
        }

    def status(self, model):
        from tensorflow.core.protobuf import error_codes_pb2
        from tensorflow_serving.apis import get_model_status_pb2

        response = self._call(
            self._models.GetModelStatus, self._request(get_model_status_pb2.GetModelStatusRequest, model, None)
        )
        return [
            {
                "version": entry.version,
                "state": get_model_status_pb2.ModelVersionStatus.State.Name(entry.state),
                "error_code": error_codes_pb2.Code.Name(entry.status.error_code),
                "error_message": entry.status.error_message,
            }
            for entry in response.model_version_status
        ]

    def close(self) -> None:
        self._channel.close()

    def _request(self, kind, model: str, version: int | None):
        request = kind()
        request.model_spec.name = model
        if version is not None:
            request.model_spec.version.value = version
        return request

    def _call(self, method, request):
        try:
            return method(request, timeout=self._timeout)
        except self._grpc.RpcError as error:
            code = error.code().name
            # grpc makes up these two by itself when nobody is there; a server that refuses says something else.
            lost = code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            message = f"cannot reach {self._address}: {error.details()}" if lost else error.details()
            raise ServingError(code, message, "transport" if lost else "server") from error

    def _tensor(self, name: str, value: Any, dtype: str):
        try:
            return self._tf.make_tensor_proto(value, dtype=dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise ServingError("INVALID_ARGUMENT", f"input {name!r} takes {dtype}: {error}", "client") from error

    def _specs(self, infos) -> dict[str, dict[str, Any]]:
        specs = {}
        for name, info in sorted(infos.items()):
            shape = None if info.tensor_shape.unknown_rank else [dim.size for dim in info.tensor_shape.dim]
            specs[name] = {"dtype": self._tf.as_dtype(info.dtype).name, "shape": shape}
        return specs


def _path(model: str, version: int | None) -> str:
    from urllib.parse import quote

    return f"/v1/models/{quote(model, safe='')}" + ("" if version is None else f"/versions/{version}")


def _plain(value: Any) -> Any:
    """NumPy arrays and scalars as nested lists, tuples as lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _jsonable(value: Any) -> Any:
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return {"b64": base64.b64encode(value).decode("ascii")} if isinstance(value, bytes) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict) and value.keys() == {"b64"}:
        return _text(base64.b64decode(value["b64"]))
    return _text(value.encode("utf-8", "surrogateescape")) if isinstance(value, str) else value


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _from_array(array) -> Any:
    """A NumPy array as nested lists: strings decoded where they can be, floats as their shortest decimals."""
    if array.dtype.kind == "O":
        boxed = array.copy()
        boxed.ravel()[:] = [_text(item) for item in array.ravel()]
        return boxed.tolist()
    if array.dtype.name == "bfloat16":  # NumPy prints only its own types
        array = array.astype("float32")
    if array.dtype.name in ("float32", "float16"):
        return array.astype(str).astype("float64").tolist()
    return array.tolist()


def _specs_from_json(infos: dict[str, Any]) -> dict[str, dict[str, Any]]:
    specs = {}
    for name, info in sorted(infos.items()):
        dtype, shape = info["dtype"].removeprefix("DT_").lower(), info.get("tensor_shape", {})
        sizes = None if shape.get("unknown_rank") else [int(dim["size"]) for dim in shape.get("dim", [])]
        specs[name] = {"dtype": _DTYPES.get(dtype, dtype), "shape": sizes}
    return specs
