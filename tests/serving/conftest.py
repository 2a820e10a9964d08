"""Tiny SavedModels, and one server over them for the whole session."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

HOST = "127.0.0.1"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Finds a port that nobody listens on."""
    return _free_port


@pytest.fixture(scope="session")
def save_half_plus() -> Callable[[Path, float], Path]:
    """Saves y = x / 2 + addend, x float32 (-1, 1), into a version folder."""
    import tensorflow as tf

    def save(folder: Path, addend: float) -> Path:
        module = tf.Module()
        module.addend = tf.Variable(addend)
        spec = tf.TensorSpec([None, 1], tf.float32, name="x")
        function = tf.function(lambda x: {"y": x / 2.0 + module.addend}, input_signature=[spec])
        tf.saved_model.save(module, str(folder), signatures={"serving_default": function})
        return folder

    return save


@pytest.fixture(scope="session")
def save_text() -> Callable[[Path], Path]:
    """Saves string models: `serving_default` upper-cases, `join` takes two inputs, `echo_bytes` answers raw bytes,
    `number` fails on text that is not a number."""
    import tensorflow as tf

    def strings(name):
        return tf.TensorSpec([None], tf.string, name=name)

    def join(first, second):
        return {"joined": first + "|" + second, "length": tf.strings.length(first) + tf.strings.length(second)}

    def save(folder: Path) -> Path:
        module = tf.Module()
        signatures = {
            "serving_default": tf.function(
                lambda text: {"upper": tf.strings.upper(text, encoding="utf-8")}, input_signature=[strings("text")]
            ),
            "echo": tf.function(lambda text: {"echo": text}, input_signature=[strings("text")]),
            "echo_bytes": tf.function(lambda text: {"echo_bytes": text}, input_signature=[strings("text")]),
            "number": tf.function(
                lambda text: {"number": tf.strings.to_number(text)}, input_signature=[strings("text")]
            ),
            "join": tf.function(join, input_signature=[strings("first"), strings("second")]),
        }
        tf.saved_model.save(module, str(folder), signatures=signatures)
        return folder

    return save


@pytest.fixture(scope="session")
def save_typed() -> Callable[[Path], Path]:
    """Saves a model that answers what it is asked, in many dtypes; `spin` works for `rounds` rounds."""
    import tensorflow as tf

    dtypes = [
        tf.float32,
        tf.float64,
        tf.float16,
        tf.bfloat16,
        tf.int8,
        tf.int32,
        tf.int64,
        tf.uint8,
        tf.uint64,
        tf.bool,
    ]

    def spin(rounds):
        grid = tf.while_loop(
            lambda i, _: i < tf.reduce_max(rounds),
            lambda i, grid: (i + 1, tf.tanh(tf.matmul(grid, grid))),
            [tf.constant(0), tf.eye(211)],
        )[1]
        return {"done": rounds + tf.cast(grid[0, 0] * 0, tf.int32)}

    def save(folder: Path) -> Path:
        module = tf.Module()
        signatures = {
            dtype.name: tf.function(
                lambda value: {"value": tf.identity(value)},
                input_signature=[tf.TensorSpec(None, dtype, name="value")],
            )
            for dtype in dtypes
        }
        signatures["spin"] = tf.function(spin, input_signature=[tf.TensorSpec([None], tf.int32, name="rounds")])
        signatures["total"] = tf.function(
            lambda value: {"total": tf.reduce_sum(value)},
            input_signature=[tf.TensorSpec([None], tf.float32, name="value")],
        )
        tf.saved_model.save(module, str(folder), signatures=signatures)
        return folder

    return save


@pytest.fixture(scope="session")
def exports(tmp_path_factory, save_half_plus, save_text, save_typed) -> Path:
    """A folder with the models half, text and typed."""
    folder = tmp_path_factory.mktemp("exports")
    save_half_plus(folder / "half" / "3", 2.0)
    save_text(folder / "text" / "1")
    save_typed(folder / "typed" / "1")
    return folder


@pytest.fixture(scope="session")
def server(exports):
    """The embedded server in this process; `.port` and `.rest_api_port` are its ports."""
    from serving.model_server.model_config import ModelSettings
    from serving.model_server.server import ModelServer

    models = [ModelSettings(name, exports / name) for name in ("half", "text", "typed")]
    models[0].labels["stable"] = 3
    port, rest_api_port = _free_port(), _free_port()
    running = ModelServer(
        models,
        host=HOST,
        port=port,
        rest_api_port=rest_api_port,
        file_system_poll_wait_seconds=0,
        allow_version_labels_for_unavailable_models=True,
    )
    running.port, running.rest_api_port = port, rest_api_port
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def rest(server):
    """An httpx client of the server."""
    import httpx

    with httpx.Client(base_url=f"http://{HOST}:{server.rest_api_port}", timeout=30, trust_env=False) as http:
        yield http


@pytest.fixture(scope="session")
def channel(server):
    """A gRPC channel to the server, without a message limit."""
    import grpc

    options = [(f"grpc.max_{way}_message_length", 2**31 - 1) for way in ("send", "receive")]
    with grpc.insecure_channel(f"{HOST}:{server.port}", options=options) as channel:
        yield channel


@pytest.fixture(scope="session", params=["rest", "grpc"])
def client(request, server):
    """Our client, over each transport in turn."""
    from serving.client import Client

    with Client(HOST, server.port, server.rest_api_port, transport=request.param, timeout=30) as client:
        yield client
