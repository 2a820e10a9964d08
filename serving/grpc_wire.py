"""What the client says over gRPC: calls as TensorFlow Serving's messages, and sending them by grpc or grpc.aio.

The stubs' messages bring TensorFlow along, so this module is imported when the first gRPC client is made.
"""

from __future__ import annotations

import re
import threading
from typing import Any, NoReturn

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import error_codes_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.retries import ServingError
from serving.wire import INIT_SIGNATURE, Address, Call, Features, Signatures, checked, plain, text

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_CLASSIFY = "/tensorflow.serving.PredictionService/Classify"
_REGRESS = "/tensorflow.serving.PredictionService/Regress"
_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
# grpc itself answers with the codes a server has too, when nobody is there or in time; only its words tell them apart.
_MADE_UP = re.compile(
    r"^Deadline Exceeded$|[Ff]ailed to connect|DNS resolution|Socket closed|Connection (reset|refused)|GOAWAY"
    r"|[Ee]ndpoint closing|Stream removed|recvmsg|[Hh]andshake|Broken pipe|errors resolving|hostname lookup"
)


class GrpcWire:
    """The gRPC API over one channel."""

    def __init__(self, address: Address):
        self.target, self.arrays = f"{address.host_part}:{address.port}", address.numpy
        self._metadata = [(name.lower(), value) for name, value in address.headers.items()]
        self._options = [
            ("grpc.max_send_message_length", address.max_send_bytes),
            ("grpc.max_receive_message_length", address.max_receive_bytes),
            ("grpc.enable_http_proxy", 0),
        ]
        self._credentials = None
        if address.tls:
            roots = None
            if isinstance(address.tls, str):
                with open(address.tls, "rb") as file:
                    roots = file.read()
            self._credentials = grpc.ssl_channel_credentials(roots)
        self._lock = threading.Lock()
        self._channel: Any = None
        self._async_channel: Any = None

    def predict(self, model, values, signature_name, version, signature) -> Call:
        request = _addressed(predict_pb2.PredictRequest(), model, version)
        request.model_spec.signature_name = signature_name
        for name, value in values.items():
            dtype = signature["inputs"][name]["dtype"]
            try:
                request.inputs[name].CopyFrom(_tensor(value, dtype))
            except (TypeError, ValueError, OverflowError) as error:
                raise ServingError("INVALID_ARGUMENT", f"input {name!r} takes {dtype}: {error}", "client") from error
        return Call("", _PREDICT, request.SerializeToString(), self._outputs)

    def infer(self, method, model, examples, context, signature_name, version) -> Call:
        of = classification_pb2.ClassificationRequest if method == "classify" else regression_pb2.RegressionRequest
        request = _addressed(of(), model, version)
        request.model_spec.signature_name = signature_name
        listed = request.input.example_list
        if context is not None:
            listed = request.input.example_list_with_context
            _fill(listed.context, context)
        # An empty list is a list too: it is the server that says what it thinks of it.
        listed.SetInParent()
        for example in examples:
            _fill(listed.examples.add(), example)
        if method == "classify":
            return Call("", _CLASSIFY, request.SerializeToString(), _classes)
        return Call("", _REGRESS, request.SerializeToString(), self._values)

    def metadata(self, model, version) -> Call:
        request = _addressed(get_model_metadata_pb2.GetModelMetadataRequest(), model, version)
        request.metadata_field.append("signature_def")
        return Call("", _METADATA, request.SerializeToString(), _signatures)

    def status(self, model) -> Call:
        request = _addressed(get_model_status_pb2.GetModelStatusRequest(), model, None)
        return Call("", _STATUS, request.SerializeToString(), _versions)

    def _outputs(self, reply: bytes) -> dict[str, Any]:
        response = predict_pb2.PredictResponse.FromString(reply)
        read = _as_array if self.arrays else _as_lists
        return {name: read(tf.make_ndarray(proto)) for name, proto in response.outputs.items()}

    def _values(self, reply: bytes) -> Any:
        response = regression_pb2.RegressionResponse.FromString(reply)
        values = np.array([one.value for one in response.result.regressions], "float32")
        return values if self.arrays else _as_lists(values)

    def send(self, call: Call, timeout: float) -> Any:
        with self._lock:  # threads share a client
            if self._channel is None:
                self._channel = self._open(grpc)
        try:
            reply = self._channel.unary_unary(call.target)(call.body, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            self._refuse(error)
        return _read(call, reply)

    async def send_async(self, call: Call, timeout: float) -> Any:
        if self._async_channel is None:
            self._async_channel = self._open(grpc.aio)
        try:
            reply = await self._async_channel.unary_unary(call.target)(
                call.body, timeout=timeout, metadata=self._metadata
            )
        except grpc.RpcError as error:
            self._refuse(error)
        return _read(call, reply)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    async def close_async(self) -> None:
        if self._async_channel is not None:
            await self._async_channel.close()

    def _open(self, kind: Any) -> Any:
        if self._credentials is None:
            return kind.insecure_channel(self.target, options=self._options)
        return kind.secure_channel(self.target, self._credentials, options=self._options)

    def _refuse(self, error: Any) -> NoReturn:
        code, details = error.code().name, error.details() or ""
        # No repeat makes a message smaller: nobody shall ask again.
        if "essage larger than max" in details:
            raise ServingError(code, details, "server" if details.startswith("SERVER") else "client", -1.0) from error
        if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED") and _MADE_UP.search(details):
            raise ServingError(code, f"cannot reach {self.target}: {details}", "transport") from error
        pushback = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
        raise ServingError(code, details, "server", _seconds(pushback)) from error


def _seconds(pushback: str | None) -> float | None:
    """gRPC's Retry-After, in milliseconds; a value that is no number of them means, by its rules, not again."""
    if pushback is None:
        return None
    return int(pushback) / 1000.0 if pushback.isascii() and pushback.isdigit() else -1.0


def _read(call: Call, reply: bytes) -> Any:
    try:
        return call.read(reply)
    except (DecodeError, TypeError, ValueError) as error:
        raise ServingError("INTERNAL", f"not an answer of a model server: {error}", "server") from error


def _addressed(request: Any, model: str, version: int | str | None) -> Any:
    request.model_spec.name = model
    if isinstance(version, str):
        request.model_spec.version_label = version
    elif version is not None:
        request.model_spec.version.value = version
    return request


def _tensor(value: Any, dtype: str) -> Any:
    # TensorFlow casts an array of another dtype, wraps numbers out of range and cuts ragged lists, all without a word.
    if not (isinstance(value, np.ndarray) and value.dtype.name == dtype):
        value = checked(plain(value), dtype)
    return tf.make_tensor_proto(value, dtype=dtype)


def _fill(example: Any, features: Features) -> None:
    for name, (field, values) in features.items():
        if field == "bytes_list":
            values = [value.encode("utf-8") if isinstance(value, str) else value for value in values]
        getattr(example.features.feature[name], field).value.extend(values)


def _classes(reply: bytes) -> list[list[tuple[str, float]]]:
    response = classification_pb2.ClassificationResponse.FromString(reply)
    rows = [one.classes for one in response.result.classifications]
    scores = [_as_lists(np.array([one.score for one in row], "float32")) for row in rows]
    return [[(one.label, score) for one, score in zip(row, told)] for row, told in zip(rows, scores)]


def _as_lists(array: Any) -> Any:
    """A NumPy array as nested lists: strings decoded where they can be, floats as their shortest decimals."""
    array = _as_array(array)
    if array.dtype.name in ("float32", "float16"):
        return array.astype(str).astype("float64").tolist()
    return array.tolist()


def _as_array(array: Any) -> Any:
    if array.dtype.kind == "O":
        decoded = np.empty(array.shape, "O")
        decoded.ravel()[:] = [text(item) for item in array.ravel()]
        return decoded
    # NumPy prints only its own types.
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def _signatures(reply: bytes) -> Signatures:
    response = get_model_metadata_pb2.GetModelMetadataResponse.FromString(reply)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return {
        name: {"inputs": _specs(proto.inputs), "outputs": _specs(proto.outputs)}
        for name, proto in sorted(signatures.signature_def.items())
        if name != INIT_SIGNATURE
    }


def _specs(infos: Any) -> dict[str, dict[str, Any]]:
    specs = {}
    for name, info in sorted(infos.items()):
        shape = None if info.tensor_shape.unknown_rank else [dim.size for dim in info.tensor_shape.dim]
        specs[name] = {"dtype": tf.as_dtype(info.dtype).name, "shape": shape}
    return specs


def _versions(reply: bytes) -> list[dict[str, Any]]:
    response = get_model_status_pb2.GetModelStatusResponse.FromString(reply)
    return [
        {
            "version": entry.version,
            "state": get_model_status_pb2.ModelVersionStatus.State.Name(entry.state),
            "error_code": error_codes_pb2.Code.Name(entry.status.error_code),
            "error_message": entry.status.error_message,
        }
        for entry in response.model_version_status
    ]
