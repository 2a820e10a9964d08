"""The embedded server: a ModelManager between its two edges, with ports, start and stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import uvicorn
from tensorflow.core.protobuf import config_pb2

from serving.http_connections import ImpatientProtocol
from serving.model_server import monitoring, rest, rpc
from serving.model_server.batching import Batcher, BatchingParameters
from serving.model_server.config_poller import ConfigPoller
from serving.model_server.core import ModelManager
from serving.model_server.errors import StatusError
from serving.model_server.flags import FLAGS, UsageError, batching_from_flags
from serving.model_server.grpc_options import channel_arguments, read_credentials
from serving.model_server.model_config import ModelSettings, parse_text
from serving.model_server.versions import Loader
from serving.wire import before_port

logger = logging.getLogger("serving.model_server")
GRACE_SECONDS = 60.0  # a call accepted before the stop may run this long


class ModelServer:
    """Serves models over gRPC and REST until stopped.

    Args:
        models: what to serve.
        **flags: values of `flags.FLAGS`; the rest take their defaults.

    Raises:
        UsageError: for a configuration file that cannot be followed; from `start`, when a port or socket cannot be
            bound, or a label names what is not available.
    """

    def __init__(self, models: list[ModelSettings], **flags: Any):
        self._flags = {name: flag.default for name, flag in FLAGS.items()} | flags
        batching = batching_from_flags(self._flags)
        self._batcher = Batcher(batching.num_batch_threads) if batching else None
        self.manager = ModelManager(
            models,
            poll_seconds=self._flags["file_system_poll_wait_seconds"],
            loader=_loader(self._flags, self._batcher, batching),
            num_load_threads=self._flags["num_load_threads"],
            num_unload_threads=self._flags["num_unload_threads"],
            early_labels=_early_labels(self._flags),
        )
        self._config_poller = None
        if self._flags["model_config_file"] and self._flags["model_config_file_poll_wait_seconds"] > 0:
            self._config_poller = ConfigPoller(
                Path(self._flags["model_config_file"]),
                self._flags["model_config_file_poll_wait_seconds"],
                self.manager.reload,
            )
        self._credentials = self._read_file("ssl_config_file", read_credentials)
        self._metrics_path = self._read_file("monitoring_config_file", monitoring.read_path)
        self._grpc = rpc.create_server(
            self.manager,
            self._flags["grpc_max_threads"],
            self._flags["enable_serialization_as_tensor_content"],
            self._flags["enable_grpc_healthcheck_service"],
            channel_arguments(self._flags["grpc_channel_arguments"]),
            [monitoring.GrpcMonitor(self._is_known)],
        )
        self._rest_pool = ThreadPoolExecutor(self._flags["rest_api_num_threads"], thread_name_prefix="rest")
        self._rest: uvicorn.Server | None = None
        self._rest_thread: threading.Thread | None = None

    def start(self, stopping: threading.Event | None = None) -> None:
        """Takes the ports, loads the models, then listens: who gets a connection gets an answer.

        A model without a version is waited for, as long as its base path is looked at and `stopping` is not set.
        """
        flags = self._flags
        rest_socket = _bind(flags["host"], flags["rest_api_port"]) if flags["rest_api_port"] else None
        try:
            if flags["port"]:
                _bind(flags["host"], flags["port"]).close()  # a port in use is told at once, and in one line
            self.manager.start()
            self.manager.wait_for_versions(stopping or threading.Event())
            self._bind_grpc()
        except (UsageError, StatusError) as error:
            if rest_socket:
                rest_socket.close()
            raise UsageError(str(error)) from error
        self._grpc.start()
        if self._config_poller:
            self._config_poller.start()
        if rest_socket:
            self._start_rest(rest_socket)
        logger.info("serving gRPC on port %d, REST on port %d", flags["port"], flags["rest_api_port"])

    def stop(self) -> None:
        """Takes no new calls, finishes the accepted ones, frees the models. A second stop does nothing."""
        if self._config_poller:
            self._config_poller.stop()
        stopped = self._grpc.stop(GRACE_SECONDS)
        if self._rest is not None and self._rest_thread is not None:
            self._rest.should_exit = True
            self._rest_thread.join()
        self._rest_pool.shutdown()
        stopped.wait()
        self.manager.stop()
        if self._batcher:
            self._batcher.close()

    def _is_known(self, name: str) -> bool:
        return name in self.manager.models

    def _read_file(self, flag: str, read: Callable[[Path], Any]) -> Any:
        """What `read` makes of the file a flag names, None without one. Raises: UsageError."""
        if not self._flags[flag]:
            return None
        try:
            return read(Path(self._flags[flag]))
        except StatusError as error:
            raise UsageError(f"--{flag}={self._flags[flag]}: {error.message}") from error

    def _bind_grpc(self) -> None:
        flags = self._flags
        if flags["port"]:
            self._add_port(f"{before_port(flags['host'])}:{flags['port']}", f"{flags['host']}:{flags['port']}")
        if flags["grpc_socket_path"]:
            self._add_port(f"unix:{flags['grpc_socket_path']}", f"--grpc_socket_path={flags['grpc_socket_path']}")

    def _add_port(self, address: str, name: str) -> None:
        try:
            if self._credentials:
                self._grpc.add_secure_port(address, self._credentials)
            else:
                self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise UsageError(f"cannot listen on {name}: {error}") from error

    def _start_rest(self, listening: socket.socket) -> None:
        flags = self._flags
        listening.listen(1024)
        timeout_seconds = flags["rest_api_timeout_in_ms"] / 1000
        app = rest.RestApp(self.manager, self._rest_pool, timeout_seconds, flags["rest_api_enable_cors_support"])
        self._rest = uvicorn.Server(
            uvicorn.Config(
                monitoring.RestMonitor(app, self._metrics_path or "", self._is_known),
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                http=ImpatientProtocol,
                ws="none",
                timeout_graceful_shutdown=int(GRACE_SECONDS),
            )
        )
        serve = self._rest.serve
        self._rest_thread = threading.Thread(
            target=lambda: asyncio.run(serve(sockets=[listening])), name="rest", daemon=True
        )
        self._rest_thread.start()


def _loader(flags: dict[str, Any], batcher: Batcher | None, batching: BatchingParameters | None) -> Loader:
    options = {
        "session_config": _session_config(flags),
        "tags": tuple(flags["saved_model_tags"].split(",")),
        "allow_xla": flags["xla_cpu_compilation_enabled"] or flags["xla_gpu_compilation_enabled"],
        "check_method_names": flags["enable_signature_method_name_check"],
    }
    # As the real server has it: a number of iterations below 1 is not used, a negative interval does not wait.
    return Loader(
        warm_up=max(1, flags["num_request_iterations_for_warmup"]) if flags["enable_model_warmup"] else 0,
        max_retries=flags["max_num_load_retries"],
        retry_seconds=max(0.0, flags["load_retry_interval_micros"] / 1e6),
        options=options,
        batcher=batcher,
        batching=None if flags["enable_per_model_batching_parameters"] else batching,
    )


def _early_labels(flags: dict[str, Any]) -> Literal["never", "new", "any"]:
    if flags["force_allow_any_version_labels_for_unavailable_models"]:
        return "any"
    return "new" if flags["allow_version_labels_for_unavailable_models"] else "never"


def _session_config(flags: dict[str, Any]) -> config_pb2.ConfigProto:
    config = config_pb2.ConfigProto()
    if flags["tensorflow_session_config_file"]:
        path = Path(flags["tensorflow_session_config_file"])
        try:
            parse_text(path, config)
        except StatusError as error:
            raise UsageError(f"--tensorflow_session_config_file={path}: {error.message}") from error
    both = flags["tensorflow_session_parallelism"]
    threads = {
        "intra_op_parallelism_threads": flags["tensorflow_intra_op_parallelism"] or both,
        "inter_op_parallelism_threads": flags["tensorflow_inter_op_parallelism"] or both,
    }
    for name, number in threads.items():
        if number:
            setattr(config, name, number)
    if flags["per_process_gpu_memory_fraction"]:
        config.gpu_options.per_process_gpu_memory_fraction = flags["per_process_gpu_memory_fraction"]
    return config


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket, which does not listen yet. Raises: UsageError naming the address."""
    # As gRPC and the real server have it: all addresses are those of IPv6 too.
    is_all = host == FLAGS["host"].default and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if is_all or ":" in host else socket.AF_INET
    # asyncio turns off Nagle's algorithm only where the protocol is named; with it on, an answer takes 44 ms, not 0.5.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_all:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        listening.bind(("::" if is_all else host, port))
    except (OSError, TypeError) as error:  # the latter where a name cannot be encoded
        listening.close()
        reason = error.strerror if isinstance(error, OSError) else "that is no host's name"
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            reason = "the port is in use"
        raise UsageError(f"cannot listen on {host}:{port}: {reason}.") from error
    return listening
