"""Counters and histograms under TensorFlow Serving's names, and their page in Prometheus' text format.

A name is `/tensorflow/serving/request_count` in TensorFlow and `:tensorflow:serving:request_count` on the page.
prometheus-client cannot write these lines: it ends each counter's name in `_total`.
"""

from __future__ import annotations

import bisect
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from serving.model_server import config_protos
from serving.model_server.errors import HTTP_STATUS, Code
from serving.model_server.model_config import parse_text

DEFAULT_PATH = "/monitoring/prometheus/metrics"


class _Metric:
    """One value for each combination of label values; safe to change from many threads."""

    kind = ""

    def __init__(self, name: str, *labels: str):
        self.name, self.labels = re.sub("[^a-zA-Z0-9_]", ":", name), labels
        self._values: dict[tuple[str, ...], Any] = {}
        self._lock = threading.Lock()

    def lines(self) -> list[str]:
        """The metric's part of the page."""
        with self._lock:
            values = {labels: self._copy(value) for labels, value in self._values.items()}
        return [f"# TYPE {self.name} {self.kind}", *(line for one in values.items() for line in self._lines(*one))]

    def _copy(self, value):
        return value

    def _lines(self, values: tuple[str, ...], value) -> list[str]:
        raise NotImplementedError

    def _line(self, suffix: str, values: tuple[str, ...], value, limit: str = "") -> str:
        labels = [f'{name}="{_escaped(text)}"' for name, text in zip(self.labels, values)]
        labels += [f'le="{limit}"'] if limit else []
        return f"{self.name}{suffix}{{{','.join(labels)}}} {value}"


class Counter(_Metric):
    """A sum that only grows."""

    kind = "counter"

    def add(self, *labels: str, amount: int = 1) -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + amount

    def value(self, *labels: str) -> int:
        with self._lock:
            return self._values.get(labels, 0)

    def values(self) -> list[int]:
        """In the order of their labels."""
        with self._lock:
            return [value for _, value in sorted(self._values.items())]

    def _lines(self, values, value):
        return [self._line("", values, value)]


class Histogram(_Metric):
    """How many observations lay at or below each of `count` limits: `scale`, `scale * growth`, and so on."""

    kind = "histogram"

    def __init__(self, name: str, *labels: str, scale: float, growth: float, count: int):
        super().__init__(name, *labels)
        self.limits = [scale * growth**power for power in range(count)]

    def observe(self, value: float, *labels: str) -> None:
        with self._lock:
            found = self._values.setdefault(labels, [[0] * (len(self.limits) + 1), 0.0])
            found[0][bisect.bisect_left(self.limits, value)] += 1
            found[1] += value

    def value(self, *labels: str) -> tuple[int, float]:
        """Number and sum of the observations."""
        with self._lock:
            buckets, total = self._values.get(labels, ([], 0.0))
            return sum(buckets), total

    def _copy(self, value):
        return list(value[0]), value[1]

    def _lines(self, values, value):
        lines, so_far = [], 0
        for limit, number in zip([*(f"{limit:g}" for limit in self.limits), "+Inf"], value[0]):
            so_far += number
            lines.append(self._line("_bucket", values, so_far, limit))
        return [*lines, self._line("_sum", values, value[1]), self._line("_count", values, so_far)]


# Latencies are in microseconds. Names, labels and limits are those of TensorFlow Serving and TensorFlow.
_LATENCY: dict[str, Any] = {"scale": 10, "growth": 1.8, "count": 33}
_ROWS: dict[str, Any] = {"scale": 1, "growth": 2, "count": 14}
_BATCHING = "/tensorflow/serving/batching_session"
REQUEST_COUNT = Counter("/tensorflow/serving/request_count", "model_name", "status")
REQUEST_LATENCY = Histogram("/tensorflow/serving/request_latency", "model_name", "API", "entrypoint", **_LATENCY)
RUNTIME_LATENCY = Histogram("/tensorflow/serving/runtime_latency", "model_name", "API", "runtime", **_LATENCY)
WARMUP_LATENCY = Histogram("/tensorflow/serving/model_warmup_latency", "model_path", "status", **_LATENCY)
LOAD_COUNT = Counter("/tensorflow/cc/saved_model/load_attempt_count", "model_path", "status")
LOAD_LATENCY = Counter("/tensorflow/cc/saved_model/load_latency", "model_path")
GRAPH_RUNS = Counter("/tensorflow/core/graph_runs")
GRAPH_RUN_TIME = Counter("/tensorflow/core/graph_run_time_usecs")
QUEUING_LATENCY = Histogram(f"{_BATCHING}/queuing_latency", "thread_pool_name", scale=100, growth=1.2, count=52)
INPUT_BATCH_SIZE = Histogram(f"{_BATCHING}/input_batch_size", **_ROWS)
PROCESSED_BATCH_SIZE = Histogram(f"{_BATCHING}/processed_batch_size", **_ROWS)
PADDING_SIZE = Histogram(f"{_BATCHING}/padding_size", "execution_batch_size", **_ROWS)
METRICS = [value for value in list(globals().values()) if isinstance(value, _Metric)]


def page() -> bytes:
    """All metrics of this process in Prometheus' text format."""
    lines = [line for metric in sorted(METRICS, key=lambda one: one.name) for line in metric.lines()]
    return ("\n".join(lines) + "\n").encode()


def count(name: str) -> int:
    """A counter's value, its first one where it has labels; 0 for any other name, as TensorFlow Serving has it."""
    wanted = Counter(name).name
    values = (metric.values() for metric in METRICS if metric.name == wanted and isinstance(metric, Counter))
    return next(iter(next(values, [])), 0)


def microseconds_since(started: float) -> int:
    """On the clock of time.perf_counter."""
    return round((time.perf_counter() - started) * 1e6)


def read_path(path: Path) -> str:
    """Where a MonitoringConfig wants the page, "" for nowhere. Raises: StatusError NOT_FOUND, INVALID_ARGUMENT."""
    config = config_protos.MonitoringConfig()
    parse_text(path, config)
    return (config.prometheus_config.path or DEFAULT_PATH) if config.prometheus_config.enable else ""


class GrpcMonitor(grpc.ServerInterceptor):
    """Counts and times the inferences of a gRPC server.

    Args:
        is_known: whether there is a model of that name; a name made up by a caller gets no line of its own.
    """

    APIS = ("Predict", "Classify", "Regress", "MultiInference")

    def __init__(self, is_known: Callable[[str], bool]):
        self._is_known = is_known
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}

    def intercept_service(self, continuation, handler_call_details):
        method = handler_call_details.method
        if method.rpartition("/")[2] not in self.APIS:
            return continuation(handler_call_details)
        if method not in self._handlers:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            self._handlers[method] = grpc.unary_unary_rpc_method_handler(
                self._measured(method.rpartition("/")[2], handler.unary_unary),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return self._handlers[method]

    def _model_name(self, request) -> str:
        tasks = getattr(request, "tasks", None)
        if tasks is not None and not tasks:
            return ""
        name = (tasks[0] if tasks else request).model_spec.name
        return name if self._is_known(name) else ""

    def _measured(self, api: str, behaviour):
        def call(request, context):
            started = time.perf_counter()
            name = self._model_name(request)
            try:
                response = behaviour(request, context)
            except BaseException:
                code = context.code()
                REQUEST_COUNT.add(name, code.name if isinstance(code, grpc.StatusCode) else Code.UNKNOWN.name)
                raise
            REQUEST_COUNT.add(name, Code.OK.name)
            REQUEST_LATENCY.observe(microseconds_since(started), name, api, "GRPC")
            return response

        return call


class RestMonitor:
    """An ASGI application around another one: counts and times its inferences, and answers the page of metrics.

    The inner application may say in `scope["code"]` with which `Code` it refused; else the HTTP status tells.

    Args:
        app: the application that answers all but the page.
        path: where the page is; "" for nowhere.
        is_known: whether there is a model of that name.
    """

    # What follows the name begins with a slash: with any split of the two, a long path without a colon took a second.
    CALL = re.compile(r"/v1/models/([^/:]+)(?:/[^:]*)?:(predict|classify|regress)", re.IGNORECASE)

    def __init__(self, app, path: str, is_known: Callable[[str], bool]):
        self.app, self.path, self._is_known = app, path, is_known

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if self.path and scope["path"] == self.path:
            return await _send_page(send)
        call = self.CALL.fullmatch(scope["path"])
        if not call:
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        name = call[1] if self._is_known(call[1]) else ""

        async def watched(message) -> None:
            # Counted before it is sent: whoever has the answer finds it on the page.
            if message["type"] == "http.response.start":
                code = scope.get("code") or _CODES.get(message["status"], Code.UNKNOWN)
                REQUEST_COUNT.add(name, code.name)
                if code == Code.OK:
                    REQUEST_LATENCY.observe(microseconds_since(started), name, call[2].lower(), "REST")
            await send(message)

        return await self.app(scope, receive, watched)


# Of the codes with one HTTP status the first, which is the most frequent.
_CODES = {status: code for code, status in reversed(HTTP_STATUS.items())}


async def _send_page(send) -> None:
    content = page()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
