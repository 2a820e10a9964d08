"""The gRPC edge: PredictionService, ModelService and the health service over a ModelManager."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.model_server import examples, monitoring, tensors
from serving.model_server.core import ModelManager, VersionRecord
from serving.model_server.errors import StatusError, as_status, invalid
from serving.model_server.loaded import LoadedVersion

logger = logging.getLogger("serving.model_server")
LONGEST_SECONDS = 30 * 86400.0
MAX_MESSAGE_BYTES = 2**31 - 1  # grpc's own limit of 4 MB would cut off what the real server takes


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata."""

    def __init__(self, manager: ModelManager, as_content: bool = False):
        self._manager, self._as_content = manager, as_content

    def Predict(self, request, context):
        return _answer(context, predict, self._manager, request, _deadline(context), self._as_content)

    def Classify(self, request, context):
        return _answer(context, classify, self._manager, request, _deadline(context))

    def Regress(self, request, context):
        return _answer(context, regress, self._manager, request, _deadline(context))

    def MultiInference(self, request, context):
        return _answer(context, multi_inference, self._manager, request, _deadline(context))

    def GetModelMetadata(self, request, context):
        return _answer(context, get_model_metadata, self._manager, request)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, manager: ModelManager):
        self._manager = manager

    def GetModelStatus(self, request, context):
        return _answer(context, get_model_status, self._manager, request)

    def HandleReloadConfigRequest(self, request, context):
        return _answer(context, reload_config, self._manager, request)


def predict(
    manager: ModelManager, request, deadline: float | None = None, as_content: bool = False
) -> predict_pb2.PredictResponse:
    """One Predict call. Raises: StatusError."""
    response = predict_pb2.PredictResponse()
    with manager.use(**model_key(request)) as loaded:
        signature = loaded.signature(request.model_spec.signature_name)
        feeds = {name: tensors.from_proto(proto, name) for name, proto in request.inputs.items()}
        if signature.defaults:
            feeds = {**signature.defaults, **feeds}
        outputs = loaded.run(signature, feeds, tuple(request.output_filter), deadline)
        _fill_spec(response.model_spec, loaded, signature.name)
    for name, array in outputs.items():
        tensors.to_proto(array, as_content, response.outputs[name])
    return response


def classify(
    manager: ModelManager, request, deadline: float | None = None
) -> classification_pb2.ClassificationResponse:
    """One Classify call. Raises: StatusError."""
    response = classification_pb2.ClassificationResponse()
    with manager.use(**model_key(request)) as loaded:
        name, method = request.model_spec.signature_name, examples.CLASSIFY_METHOD
        signature = examples.find_signature(loaded, name, method)
        classes = examples.classify(loaded, signature, examples.read_input(request.input), deadline)
        _fill_spec(response.model_spec, loaded, signature.name)
    response.result.CopyFrom(examples.classification_result(classes))
    return response


def regress(manager: ModelManager, request, deadline: float | None = None) -> regression_pb2.RegressionResponse:
    """One Regress call. Raises: StatusError."""
    response = regression_pb2.RegressionResponse()
    with manager.use(**model_key(request)) as loaded:
        name, method = request.model_spec.signature_name, examples.REGRESS_METHOD
        signature = examples.find_signature(loaded, name, method)
        values = examples.regress(loaded, signature, examples.read_input(request.input), deadline)
        _fill_spec(response.model_spec, loaded, signature.name)
    response.result.CopyFrom(examples.regression_result(values))
    return response


def multi_inference(
    manager: ModelManager, request, deadline: float | None = None
) -> inference_pb2.MultiInferenceResponse:
    """One MultiInference call; the first task says which version. Raises: StatusError."""
    response = inference_pb2.MultiInferenceResponse()
    first = request.tasks[0] if request.tasks else inference_pb2.InferenceTask()
    with manager.use(**model_key(first)) as loaded:
        for signature, result in examples.multi_inference(loaded, request, deadline):
            entry = response.results.add()
            _fill_spec(entry.model_spec, loaded, signature.name)
            is_classification = signature.method_name == examples.CLASSIFY_METHOD
            (entry.classification_result if is_classification else entry.regression_result).CopyFrom(result)
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
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    _fill_spec(response.model_spec, loaded, "")
    response.metadata["signature_def"].Pack(get_model_metadata_pb2.SignatureDefMap(signature_def=loaded.signature_defs))
    return response


def get_model_status(manager: ModelManager, request) -> get_model_status_pb2.GetModelStatusResponse:
    """The states of a model's versions. Raises: StatusError."""
    return status_of(manager.status(**model_key(request)))


def reload_config(manager: ModelManager, request) -> model_management_pb2.ReloadConfigResponse:
    """Serves what the request's config lists from now on; tells how the counters it names grew. Raises: StatusError."""
    if request.config.WhichOneof("config") != "model_config_list":
        raise invalid("HandleReloadConfigRequest takes a ModelServerConfig with a model_config_list only.")
    before = {name: monitoring.count(name) for name in request.metric_names}
    manager.reload(request.config)
    response = model_management_pb2.ReloadConfigResponse()
    response.status.error_code = 0
    for name, count in before.items():
        response.metric.add(name=name, int64_value_increase=monitoring.count(name) - count)
    return response


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
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")
    choice = spec.WhichOneof("version_choice")
    return {
        "name": spec.name,
        "version": spec.version.value if choice == "version" else None,
        "label": spec.version_label if choice == "version_label" else None,
    }


def create_server(
    manager: ModelManager,
    max_threads: int,
    as_content: bool = False,
    has_health: bool = False,
    channel_arguments: Mapping[str, int | str] | None = None,
    interceptors: Sequence[grpc.ServerInterceptor] = (),
) -> grpc.Server:
    """A gRPC server without ports.

    Args:
        manager: who holds the models.
        max_threads: calls worked on at a time; one more is refused, RESOURCE_EXHAUSTED.
        as_content: whether Predict answers in `tensor_content`.
        has_health: whether grpc.health.v1 is answered: SERVING for the server as a whole, as long as it runs.
        channel_arguments: of gRPC, before those that are set here.
        interceptors: of gRPC, the outermost first.
    """
    options: dict[str, int | str] = {
        "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
        "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
        # Without this a second server could share the port and take half of the calls.
        "grpc.so_reuseport": 0,
    }
    logging.getLogger("grpc._common").addFilter(_without_traceback)
    server = grpc.server(
        ThreadPoolExecutor(max_threads, thread_name_prefix="grpc"),
        options=list((options | dict(channel_arguments or {})).items()),
        interceptors=list(interceptors),
        maximum_concurrent_rpcs=max_threads,
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(manager, as_content), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(manager), server)
    if has_health:
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    return server


def _without_traceback(record: logging.LogRecord) -> bool:
    """For the lines of grpc about messages that do not parse: their callers are at fault, not the program."""
    record.exc_info = None
    return True


def _fill_spec(spec: model_pb2.ModelSpec, loaded: LoadedVersion, signature_name: str) -> None:
    spec.name, spec.signature_name = loaded.name, signature_name
    spec.version.value = loaded.version


def _deadline(context: grpc.ServicerContext) -> float | None:
    """When the caller gives up, on the clock of time.monotonic; None for who waits for ever, which gRPC calls long."""
    left = context.time_remaining()
    return None if left is None or left > LONGEST_SECONDS else time.monotonic() + left


def _answer(context: grpc.ServicerContext, call: Callable, *arguments):
    try:
        return call(*arguments)
    except Exception as error:
        status = as_status(error)
        if not isinstance(error, StatusError):
            logger.exception("a gRPC call failed")
        context.abort(grpc.StatusCode[status.code.name], status.message)
