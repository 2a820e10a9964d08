"""tensorflow_model_server's flags, by name and meaning. One that is not honoured is refused, never ignored."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorflow_serving.config import model_server_config_pb2

from serving.model_server.batching import BatchingParameters, read_parameters
from serving.model_server.errors import StatusError
from serving.model_server.grpc_options import channel_arguments
from serving.model_server.model_config import ModelSettings, check_model, parse_text, read_models

_THREADS = 4 * (os.cpu_count() or 1)


class UsageError(Exception):
    """A command line or a configuration file that cannot be followed; the message is for the user."""


@dataclass(frozen=True)
class Flag:
    """A flag that is honoured: its type is its default's."""

    default: Any
    help: str


FLAGS = {
    "port": Flag(8500, "TCP port of the gRPC API; 0 for none"),
    "rest_api_port": Flag(0, "TCP port of the REST API; 0 for none"),
    "host": Flag("0.0.0.0", "address to listen on; tensorflow_model_server has no such flag and listens on all"),
    "grpc_socket_path": Flag("", "UNIX socket of the gRPC API, beside the port"),
    "grpc_max_threads": Flag(_THREADS, "gRPC calls worked on at a time; more are refused"),
    "grpc_channel_arguments": Flag("", "name=value,name=value for the gRPC server, as grpc.max_connection_age_ms=2000"),
    "ssl_config_file": Flag("", "SSLConfig as text protobuf: TLS on the gRPC port and socket"),
    "rest_api_num_threads": Flag(_THREADS, "REST calls worked on at a time; more wait"),
    "rest_api_timeout_in_ms": Flag(30000, "a REST call that takes longer is answered 504"),
    "rest_api_enable_cors_support": Flag(False, "REST answers name every origin in CORS headers"),
    "enable_grpc_healthcheck_service": Flag(False, "answer grpc.health.v1 on the gRPC port"),
    "model_name": Flag("default", "name of the only model"),
    "model_base_path": Flag("", "folder of its version folders, whose names are numbers"),
    "model_config_file": Flag("", "ModelServerConfig as text protobuf; model_name and model_base_path are then unused"),
    "allow_version_labels_for_unavailable_models": Flag(False, "a new label may name a version that is not available"),
    "force_allow_any_version_labels_for_unavailable_models": Flag(False, "so may a label that is moved"),
    "model_config_file_poll_wait_seconds": Flag(0, "pause between two looks at model_config_file; 0 reads it once"),
    "file_system_poll_wait_seconds": Flag(1, "pause between two looks for versions; 0 looks once, -1 never"),
    "num_load_threads": Flag(0, "models loaded at a time; 0 for one after another"),
    "num_unload_threads": Flag(0, "versions freed at a time; 0 for one after another"),
    "max_num_load_retries": Flag(5, "further attempts at a version that does not load"),
    "load_retry_interval_micros": Flag(60_000_000, "pause between two attempts; a negative one is none"),
    "enable_model_warmup": Flag(True, "run assets.extra/tf_serving_warmup_requests before a version is available"),
    "num_request_iterations_for_warmup": Flag(1, "how often each warm-up request is run"),
    "enable_batching": Flag(False, "merge the calls of several callers into one run"),
    "batching_parameters_file": Flag("", "BatchingParameters as text protobuf"),
    "enable_per_model_batching_parameters": Flag(False, "only versions with a batching_params.pbtxt, as that says"),
    "saved_model_tags": Flag("serve", "comma-separated tags of the MetaGraph"),
    "monitoring_config_file": Flag("", "MonitoringConfig as text protobuf: a page of metrics on the REST port"),
    "tensorflow_session_config_file": Flag("", "ConfigProto as text protobuf; the flags below go before it"),
    "tensorflow_session_parallelism": Flag(0, "threads of a session, both kinds; 0 leaves it to TensorFlow"),
    "tensorflow_intra_op_parallelism": Flag(0, "threads within an operation"),
    "tensorflow_inter_op_parallelism": Flag(0, "threads across operations"),
    "per_process_gpu_memory_fraction": Flag(0.0, "share of a GPU's memory; 0 leaves it to TensorFlow"),
    "xla_cpu_compilation_enabled": Flag(False, "run signatures that need XLA"),
    "xla_gpu_compilation_enabled": Flag(False, "likewise"),
    "enable_signature_method_name_check": Flag(False, "a signature answers the API of its method_name only"),
    "flush_filesystem_caches": Flag(True, "changes nothing: local file systems have no cache that TensorFlow keeps"),
    "remove_unused_fields_from_bundle_metagraph": Flag(
        True, "changes nothing: a MetaGraph is dropped once it is loaded"
    ),
    "version": Flag(False, "print the versions of this server and of TensorFlow"),
    "enable_serialization_as_tensor_content": Flag(False, "answer gRPC in tensor_content, not in typed fields"),
}


@dataclass(frozen=True)
class Refused:
    """A flag of tensorflow_model_server that is not honoured; what happens anyway may be asked for."""

    accepted: Any
    reason: str


_TFLITE = "this server runs SavedModels, not TensorFlow Lite models"
_CORES = "threads are those of the --tensorflow_..._parallelism flags"
NOT_HONOURED = {
    "enable_profiler": Refused(False, "this server has no profiler service"),
    "mixed_precision": Refused("", "a model runs in the precision it was exported in"),
    "num_tflite_interpreters_per_pool": Refused(1, _TFLITE),
    "num_tflite_pools": Refused(os.cpu_count() or 1, _TFLITE),
    "platform_config_file": Refused("", "there is one platform, and what it takes has flags"),
    "prefer_tflite_model": Refused(False, _TFLITE),
    "skip_initialize_tpu": Refused(True, "this server initializes no TPU"),
    "thread_pool_factory_config_file": Refused("", _CORES),
    "use_alts_credentials": Refused(False, "ALTS works within Google Cloud only"),
}


def parse_flags(arguments: list[str]) -> dict[str, Any]:
    """Flag name -> value, defaults filled in, from `--flag=value` and `--flag value`.

    Raises:
        UsageError: an unknown flag, one that is not honoured, or a value of the wrong type.
    """
    values = {name: flag.default for name, flag in FLAGS.items()}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word.strip("-") == "":
            raise UsageError(f"arguments are flags, --name=value, got {word!r}.")
        name, equals, text = word.lstrip("-").partition("=")
        if name not in FLAGS and name not in NOT_HONOURED:
            raise UsageError(f"unknown argument: --{name}; --help lists the flags.")
        default = FLAGS[name].default if name in FLAGS else NOT_HONOURED[name].accepted
        if not equals:
            text = _value_of_next(name, default, rest)
        value = _parse(name, text, default)
        if name in FLAGS:
            values[name] = value
        elif value != default:
            raise UsageError(f"--{name}={text} is not honoured: {NOT_HONOURED[name].reason}.")
    _check(values)
    return values


def models_from_flags(values: dict[str, Any]) -> list[ModelSettings]:
    """The models that the flags name. Raises: UsageError for a missing or wrong configuration."""
    if values["model_config_file"]:
        return read_model_config(Path(values["model_config_file"]))
    if not values["model_base_path"]:
        raise UsageError("a model is needed: --model_base_path=FOLDER, or --model_config_file=FILE.")
    try:
        return [check_model(ModelSettings(values["model_name"], Path(values["model_base_path"]).absolute()))]
    except StatusError as error:
        raise UsageError(error.message) from error


def read_model_config(path: Path) -> list[ModelSettings]:
    """The models of a ModelServerConfig in text form. Raises: UsageError."""
    config = model_server_config_pb2.ModelServerConfig()
    try:
        parse_text(path, config)
        return read_models(config)
    except StatusError as error:
        raise UsageError(f"--model_config_file={path}: {error.message}") from error


def _value_of_next(name: str, default: Any, rest: list[str]) -> str:
    if isinstance(default, bool):  # a bare --flag means true, and what follows it is the next flag
        return rest.pop(0) if rest and rest[0].lower() in ("true", "false") else "true"
    if not rest:
        raise UsageError(f"--{name} needs a value.")
    return rest.pop(0)


def _parse(name: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise UsageError(f"--{name} is true or false, got {text!r}.")
        return text.lower() in ("true", "1")
    try:
        return type(default)(text)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise UsageError(f"--{name} is {kind}, got {text!r}.") from None


def _check(values: dict[str, Any]) -> None:
    for name in ("port", "rest_api_port"):
        if not 0 <= values[name] <= 65535:
            raise UsageError(f"--{name} is between 0 and 65535, got {values[name]}.")
    if values["port"] and values["port"] == values["rest_api_port"]:
        raise UsageError(f"--port and --rest_api_port differ, got {values['port']} for both.")
    if not (values["port"] or values["rest_api_port"] or values["grpc_socket_path"]):
        raise UsageError("one of --port, --rest_api_port and --grpc_socket_path is needed.")
    if values["monitoring_config_file"] and not values["rest_api_port"]:
        raise UsageError("--monitoring_config_file needs --rest_api_port: the metrics are on its port.")
    parallelism = [f"tensorflow_{kind}_parallelism" for kind in ("session", "intra_op", "inter_op")]
    if all(values[name] for name in parallelism):
        raise UsageError(
            f"either the first or the other two are set, got all: {', '.join('--' + one for one in parallelism)}."
        )
    for name in parallelism:
        if not -(2**31) <= values[name] < 2**31:
            raise UsageError(f"--{name} is a whole number of 32 bits, got {values[name]}.")
    try:
        channel_arguments(values["grpc_channel_arguments"])
    except StatusError as error:
        raise UsageError(f"--grpc_channel_arguments: {error.message}") from error
    for name in ("grpc_max_threads", "rest_api_num_threads", "rest_api_timeout_in_ms"):
        if values[name] < 1:
            raise UsageError(f"--{name} is at least 1, got {values[name]}.")
    for name in ("max_num_load_retries", "num_load_threads", "num_unload_threads"):
        if values[name] < 0:
            raise UsageError(f"--{name} is at least 0, got {values[name]}.")


def batching_from_flags(values: dict[str, Any]) -> BatchingParameters | None:
    """The parameters of --batching_parameters_file, or the defaults; None without --enable_batching.

    Raises:
        UsageError: a file that cannot be followed, or that is given without --enable_batching.
    """
    path = values["batching_parameters_file"]
    if not values["enable_batching"]:
        for name in ("batching_parameters_file", "enable_per_model_batching_parameters"):
            if values[name]:
                raise UsageError(f"--{name} is set without setting --enable_batching to true.")
        return None
    try:
        return read_parameters(Path(path)) if path else BatchingParameters()
    except StatusError as error:
        raise UsageError(f"--batching_parameters_file={path}: {error.message}") from error


def version_text() -> str:
    """What --version prints."""
    import tensorflow as tf

    return (
        f"TensorFlow ModelServer: keras-seq {importlib.metadata.version('keras-seq')}, the embedded server\n"
        f"TensorFlow Library: {tf.__version__}"
    )


def help_text() -> str:
    """What --help prints."""
    width = max(map(len, [*FLAGS, *NOT_HONOURED])) + 4
    lines = [f"  {'--' + name:<{width}}{flag.help} (default: {flag.default!r})" for name, flag in FLAGS.items()]
    return "\n".join(
        ["usage: python -m serving.model_server --flag=value ...", "", "flags:", *lines, "", "not honoured:"]
        + [f"  {'--' + name:<{width}}{flag.reason}" for name, flag in NOT_HONOURED.items()]
    )
