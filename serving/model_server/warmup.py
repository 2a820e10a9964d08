"""Replays the requests that a version brings along, before it answers its first caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import message
from tensorflow_serving.apis import prediction_log_pb2

from serving.model_server import examples, tensors
from serving.model_server.errors import Code, StatusError, as_status, invalid
from serving.model_server.loaded import LoadedVersion

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_WARMUP_RECORDS = 1000  # the real server refuses a longer file, so that a mistake does not hold up a version


def warm_up(loaded: LoadedVersion, iterations: int = 1) -> int:
    """Replays the PredictionLogs in `assets.extra/tf_serving_warmup_requests`, each `iterations` times.

    Returns:
        How many there were.

    Raises:
        StatusError: the code of the first request that fails; INVALID_ARGUMENT for more than 1000, or for
            a record that is none, UNIMPLEMENTED for a kind that is not replayed, DATA_LOSS for a damaged file.
    """
    count = 0
    try:
        for count, log in enumerate(_logs(loaded.path / WARMUP_FILE), start=1):
            if count > MAX_WARMUP_RECORDS:
                raise invalid(f"a warm-up needs at most {MAX_WARMUP_RECORDS} records.")
            kind = log.WhichOneof("log_type")
            if kind not in _REPLAYS:
                raise StatusError(Code.UNIMPLEMENTED, f"a {kind} is not replayed, only {', '.join(_REPLAYS)} are.")
            for _ in range(iterations):
                _REPLAYS[kind](loaded, getattr(log, kind).request)
    except Exception as error:
        status = as_status(error)
        raise StatusError(status.code, f"{WARMUP_FILE}, after {count} records: {status.message}") from error
    return count


def _logs(path: Path) -> Iterator[prediction_log_pb2.PredictionLog]:
    if path.is_file():
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            try:
                yield prediction_log_pb2.PredictionLog.FromString(record)
            except message.DecodeError as error:
                raise invalid(f"Failed to parse warmup record, which is a PredictionLog: {record[:64]!r}") from error


def _predict(loaded: LoadedVersion, request) -> None:
    signature = loaded.signature(request.model_spec.signature_name)
    feeds = {name: tensors.from_proto(proto) for name, proto in request.inputs.items()}
    loaded.run(signature, {**signature.defaults, **feeds}, tuple(request.output_filter))


def _classify(loaded: LoadedVersion, request) -> None:
    signature = examples.find_signature(loaded, request.model_spec.signature_name, examples.CLASSIFY_METHOD)
    examples.classify(loaded, signature, examples.read_input(request.input))


def _regress(loaded: LoadedVersion, request) -> None:
    signature = examples.find_signature(loaded, request.model_spec.signature_name, examples.REGRESS_METHOD)
    examples.regress(loaded, signature, examples.read_input(request.input))


_REPLAYS: dict[str, Callable[[LoadedVersion, Any], object]] = {
    "predict_log": _predict,
    "classify_log": _classify,
    "regress_log": _regress,
    "multi_inference_log": examples.multi_inference,
}
