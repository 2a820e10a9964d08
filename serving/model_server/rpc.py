"""The gRPC edge: PredictionService and ModelService over a ModelManager."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.model_server import tensors
from serving.model_server.core import ModelManager, VersionRecord
from serving.model_server.errors import StatusError, as_status, invalid
from serving.model_server.loaded import LoadedVersion

logger = logging.getLogger("serving.model_server")
MAX_MESSAGE_BYTES = 2**31 - 1  # grpc's own limit of 4 MB would cut off what the real server takes


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the example-based calls answer UNIMPLEMENTED."""

    def __init__(self, manager: ModelManager, as_content: bool = False):
        self._manager, self._as_content = manager, as_content

    def Predict(self, request, context):
        return _answer(context, lambda: predict(self._manager, request, self._as_content))

    def GetModelMetadata(self, request, context):
        return _answer(context, lambda: get_model_metadata(self._manager, request))

    def Classify(self, request, context):
        return _unimplemented(context, "Classify")

    def Regress(self, request, context):
        return _unimplemented(context, "Regress")

    def MultiInference(self, request, context):
        return _unimplemented(context, "MultiInference")


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus; a change of configuration at run time answers UNIMPLEMENTED."""

    def __init__(self, manager: ModelManager):
        self._manager = manager

    def GetModelStatus(self, request, context):
        return _answer(context, lambda: get_model_status(self._manager, request))

    def HandleReloadConfigRequest(self, request, context):
        return _unimplemented(context, "HandleReloadConfigRequest")


def predict(manager: ModelManager, request, as_content: bool = False) -> predict_pb2.PredictResponse:
    """One Predict call. Raises: StatusError."""
    with manager.use(**model_key(request)) as loaded:
        signature = loaded.signature(request.model_spec.signature_name)
        feeds = {name: tensors.from_proto(proto) for name, proto in request.inputs.items()}
        outputs = loaded.run(signature, {**signature.defaults, **feeds}, tuple(request.output_filter))
        response = predict_pb2.PredictResponse(model_spec=_model_spec(loaded, signature.name))
    for name, array in outputs.items():
        response.outputs[name].CopyFrom(tensors.to_proto(array, as_content))
    return response


def get_model_metadata(manager: ModelManager, request) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """The signatures, the only kind of metadata there is. Raises: StatusError."""
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid(f"Metadata field {field} is not supported")
    with manager.use(**model_key(request)) as loaded:
        return metadata_of(loaded)


def metadata_of(loaded: LoadedVersion) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """The metadata of one version, which both edges answer."""
    response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=_model_spec(loaded, ""))
    response.metadata["signature_def"].Pack(get_model_metadata_pb2.SignatureDefMap(signature_def=loaded.signature_defs))
    return response


def get_model_status(manager: ModelManager, request) -> get_model_status_pb2.GetModelStatusResponse:
    """The states of a model's versions. Raises: StatusError."""
    return status_of(manager.status(**model_key(request)))


def status_of(records: list[VersionRecord]) -> get_model_status_pb2.GetModelStatusResponse:
    """The states as a message, which both edges answer."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for record in records:
        entry = response.model_version_status.add(version=record.version)
        entry.state = get_model_status_pb2.ModelVersionStatus.State.Value(record.state)
        if record.error is not None:
            entry.status.error_code, entry.status.error_message = int(record.error.code), record.error.message
        else:
            entry.status.error_code = 0
    return response


def model_key(request) -> dict:
    """The name, version and label of a request's model_spec. Raises: StatusError INVALID_ARGUMENT without a name."""
    spec = request.model_spec
    if not spec.name:
        raise invalid("Missing ModelSpec: model_spec.name is needed")
    choice = spec.WhichOneof("version_choice")
    return {
        "name": spec.name,
        "version": spec.version.value if choice == "version" else None,
        "label": spec.version_label if choice == "version_label" else None,
    }


def create_server(manager: ModelManager, max_threads: int, as_content: bool = False) -> grpc.Server:
    """A gRPC server without ports. Calls beyond `max_threads` wait for a thread."""
    server = grpc.server(
        ThreadPoolExecutor(max_threads, thread_name_prefix="grpc"),
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # Without this a second server could share the port and take half of the calls.
            ("grpc.so_reuseport", 0),
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(manager, as_content), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(manager), server)
    return server


def _model_spec(loaded: LoadedVersion, signature_name: str) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=loaded.name, signature_name=signature_name)
    spec.version.value = loaded.version
    return spec


def _answer(context: grpc.ServicerContext, call: Callable):
    try:
        return call()
    except Exception as error:
        status = as_status(error)
        if not isinstance(error, StatusError):
            logger.exception("a gRPC call failed")
        context.abort(grpc.StatusCode[status.code.name], status.message)


def _unimplemented(context: grpc.ServicerContext, method: str):
    context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not implemented by this server")
