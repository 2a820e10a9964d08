"""Requests per second and latencies of the embedded server, beside the same function in process and a bare endpoint.

python -m benchmarks.serving [--exports FOLDER] [--clients 1 8 32] [--rounds 5] [--requests 2000]

Every server is a process of its own around the same SavedModel in the same kind of session: ours, ours with
--enable_batching, and an endpoint of a few lines: of grpcio's server; of Starlette in uvicorn's loop, with the parser
that ours uses and with h11; of FastAPI, whose plain functions get a thread a call. The callers are threads with a
connection each, here; all servers are asked in turn, A B C A B C ..., so that a noisy minute strikes all alike.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import pathlib
import socket
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.turns import keep

HOST = "127.0.0.1"
MODEL = "model"
PATH = f"/v1/models/{MODEL}:predict"
TEXT = "the small cat that you see sleeps in the old house"
BATCHING = "max_batch_size { value: 32 } batch_timeout_micros { value: 1000 } num_batch_threads { value: 2 }"
THREADS = 64  # more calls at once than this are refused by TensorFlow Serving's gRPC, and by ours
SERVERS = {
    "rest": ["ours", "ours, batching", "Starlette", "Starlette on h11", "FastAPI"],
    "grpc": ["ours", "ours, batching", "grpcio"],
}


def save_half_plus_two(folder):
    """Saves y = x / 2 + 2 as version 1 of a model."""
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec([None], tf.float32, name="x")
    function = tf.function(lambda x: {"y": x / 2.0 + 2.0}, input_signature=[spec])
    tf.saved_model.save(module, str(folder / "1"), signatures={"serving_default": function})


def function_of(folder):
    """The default signature of the newest version in a model's folder: array -> dict of arrays; and its input."""
    from serving.model_server.core import find_versions
    from serving.model_server.loaded import LoadedVersion

    versions = find_versions(folder)
    loaded = LoadedVersion(versions[max(versions)])
    signature = loaded.signature()
    (name,) = signature.inputs
    return lambda array: loaded.run(signature, {name: array}), name, signature.inputs[name].dtype


def serve(kind, transport, folder, pipe):
    """Runs one server until the pipe says stop; the pipe gets its port once it answers."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    bare = {
        "grpcio": _serve_grpcio,
        "Starlette": functools.partial(_serve_http, _starlette, "httptools"),
        "Starlette on h11": functools.partial(_serve_http, _starlette, "h11"),
        "FastAPI": functools.partial(_serve_http, _fastapi, "httptools"),
    }
    start = bare.get(kind, _serve_ours)
    stop = start(folder, port, transport, "batching" in kind)
    pipe.send(port)
    pipe.recv()
    stop()


def _serve_ours(folder, port, transport, is_batching):
    from serving.model_server.model_config import ModelSettings
    from serving.model_server.server import ModelServer

    flags = {"port": 0, "rest_api_port": 0, "grpc_max_threads": THREADS, "rest_api_num_threads": THREADS}
    flags["rest_api_port" if transport == "rest" else "port"] = port
    if is_batching:
        file = pathlib.Path(tempfile.mkdtemp()) / "batching.txt"
        file.write_text(BATCHING)
        flags |= {"enable_batching": True, "batching_parameters_file": str(file)}
    server = ModelServer([ModelSettings(MODEL, folder)], host=HOST, file_system_poll_wait_seconds=0, **flags)
    server.start()
    return server.stop


def _serve_grpcio(folder, port, transport, is_batching):
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    function, name, _ = function_of(folder)

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            outputs = function(tf.make_ndarray(request.inputs[name]))
            response = predict_pb2.PredictResponse()
            for key, array in outputs.items():
                response.outputs[key].CopyFrom(tf.make_tensor_proto(array))
            return response

    server = grpc.server(ThreadPoolExecutor(THREADS))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    return lambda: server.stop(None).wait()


def _predict_of(folder):
    """The model as a plain function: the body of a request as JSON -> that of its answer."""
    import numpy as np

    function, _, dtype = function_of(folder)

    def plain(array):
        return [item.decode() for item in array] if array.dtype.kind == "O" else array.tolist()

    def predict(body):
        instances = body["instances"]
        outputs = function(np.array([item.encode() for item in instances] if dtype.kind == "O" else instances, dtype))
        columns = [plain(array) for array in outputs.values()]
        if len(columns) == 1:
            return {"predictions": columns[0]}
        return {"predictions": [dict(zip(outputs, row)) for row in zip(*columns)]}

    return predict


def _starlette(predict):
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    # An endpoint that lets a model run in the loop is the leanest there is, and holds up all other callers meanwhile.
    async def endpoint(request):
        return JSONResponse(predict(json.loads(await request.body())))

    return Starlette(routes=[Route(PATH, endpoint, methods=["POST"])])


def _fastapi(predict):
    import fastapi

    app = fastapi.FastAPI()

    @app.post(PATH)
    def endpoint(body: dict) -> dict:
        return predict(body)

    return app


def _serve_http(make_app, parser, folder, port, transport, is_batching):
    import uvicorn

    app = make_app(_predict_of(folder))
    options = {"log_config": None, "access_log": False, "lifespan": "off", "http": parser}
    server = uvicorn.Server(uvicorn.Config(app, HOST, port, **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)

    def stop():
        server.should_exit = True
        thread.join()

    return stop


def rest_caller(port, folder):
    """A function that sends one request over its own kept connection, and waits for the answer."""
    dtype = function_of(folder)[2]
    body = json.dumps({"instances": [TEXT] if dtype.kind == "O" else [1.0, 2.0, 5.0]}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def connect():
        connection = socket.create_connection((HOST, port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def call():
            connection.sendall(request)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += connection.recv(65536)
            headers, _, content = answer.partition(b"\r\n\r\n")
            assert headers.startswith(b"HTTP/1.1 200"), answer
            length = int(headers.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            while len(content) < length:
                content += connection.recv(65536)

        return call, connection.close

    return connect


def grpc_caller(port, folder):
    """As `rest_caller`, with a channel."""
    import grpc
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    _, name, dtype = function_of(folder)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = MODEL
    values = np.array([TEXT.encode()], object) if dtype.kind == "O" else np.array([1, 2, 5], dtype)
    request.inputs[name].CopyFrom(tf.make_tensor_proto(values))

    def connect():
        # Channels to one address share a connection unless each keeps its own.
        channel = grpc.insecure_channel(f"{HOST}:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return lambda: stub.Predict(request, timeout=60), channel.close

    return connect


def load(connect, clients, requests):
    """Sends `requests` from so many callers at once.

    Returns:
        The latency of each, seconds, and the seconds that all of them took.
    """
    ready = threading.Barrier(clients + 1)

    def work():
        try:
            call, close = connect()
            for _ in range(3):
                call()
        except BaseException:
            ready.abort()
            raise
        ready.wait()
        mine = []
        for _ in range(requests // clients):
            start = time.perf_counter()
            call()
            mine.append(time.perf_counter() - start)
        close()
        return mine

    with ThreadPoolExecutor(clients) as pool:
        working = [pool.submit(work) for _ in range(clients)]
        with contextlib.suppress(threading.BrokenBarrierError):  # whoever broke it says why, below
            ready.wait()
        start = time.perf_counter()
        latencies = sorted(one for mine in working for one in mine.result())
    return latencies, time.perf_counter() - start


def cpu_seconds(process):
    """User and system time of a process so far."""
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(title, folder, transport, clients, options):
    """Asks all servers of a transport in turn, and reports."""
    context = multiprocessing.get_context("spawn")
    servers = {}
    for kind in SERVERS[transport]:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(kind, transport, folder, theirs), daemon=True)
        process.start()
        theirs.close()
        caller = (rest_caller if transport == "rest" else grpc_caller)(ours.recv(), folder)
        servers[kind] = (process, ours, caller)
    for count in clients:
        readings = {kind: [] for kind in servers}
        for turn in range(options.rounds + 1):
            for kind, (process, _, caller) in servers.items():
                before = cpu_seconds(process)
                latencies, seconds = load(caller, count, options.requests)
                if turn:  # the first one warms up
                    spent = (cpu_seconds(process) - before) / (len(latencies) + 3 * count)
                    readings[kind].append((_at(latencies, 0.5), _at(latencies, 0.99), len(latencies) / seconds, spent))
        report(f"{title}, {transport.upper()}, {count} at once", readings)
    for process, pipe, _ in servers.values():
        pipe.send("stop")
        process.join()


def in_process(title, folder, options):
    """The function alone, one caller."""
    import numpy as np

    function, _, dtype = function_of(folder)
    values = np.array([TEXT.encode()], object) if dtype.kind == "O" else np.array([1, 2, 5], dtype)
    latencies, _ = load(lambda: (lambda: function(values), lambda: None), 1, options.requests)
    print(f"\n{title}, in process: p50 {_at(latencies, 0.5) * 1e3:.3f} ms, p99 {_at(latencies, 0.99) * 1e3:.3f} ms")


def _at(latencies, part):
    return latencies[min(len(latencies) - 1, int(part * len(latencies)))]


def report(title, readings):
    """Prints a table in Markdown, and keeps it where benchmarks.plot looks."""
    first = next(iter(readings.values()))
    lines = [
        "| server | p50 ms | p99 ms | requests/s | CPU us/request | its p50 over ours |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    kept = []
    for kind, rounds in readings.items():
        p50, p99, rate, spent = (statistics.median(column) for column in zip(*rounds))
        ratios = [theirs[0] / ours[0] for theirs, ours in zip(rounds, first)]
        ratio = statistics.median(ratios)
        told = "" if rounds is first else f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {kind} | {p50 * 1e3:.3f} | {p99 * 1e3:.3f} | {rate:,.0f} | {spent * 1e6:.0f} | {told} |")
        figures = {"p50 ms": p50 * 1e3, "p99 ms": p99 * 1e3, "requests/s": rate, "CPU us/request": spent * 1e6}
        kept.append({"program": kind, **figures, "ratio": ratio, "range": [min(ratios), max(ratios)]})
    print(f"\n### {title}\n\n" + "\n".join(lines), flush=True)
    keep(f"serving {title}", kept)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--exports", type=pathlib.Path, help="a folder of models beside half-plus-two")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="callers at once")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each server")
    parser.add_argument("--requests", type=int, default=2000, help="requests of a turn, all callers together")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as temporary:
        half = pathlib.Path(temporary) / "half_plus_two"
        save_half_plus_two(half)
        others = sorted(path for path in options.exports.iterdir() if path.is_dir()) if options.exports else []
        for folder in [half, *others]:
            in_process(folder.name, folder, options)
            for transport in SERVERS:
                measure(folder.name, folder, transport, options.clients, options)


if __name__ == "__main__":
    main()
