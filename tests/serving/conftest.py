"""Tiny SavedModels, and one server over them for the whole session; tiny models of ours and what they answer."""

import functools
import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def frozen_heap():
    """The collector leaves alone what is there already, as in the program: it runs at every unloading of a version."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_answers() -> Callable:
    """tiny_answers(name): the arguments to export one of the tiny models with, and its answers of 11 new tokens."""
    from tiny_models import build

    from serving.answers import answers_for

    @functools.cache
    def made(name):
        given = build(name)
        return given, answers_for(**given, max_new_tokens=11)

    return made


@pytest.fixture(scope="session")
def traced() -> Callable:
    """traced(answers, signature): the function that an export has of it, made once for all tests that ask it."""
    from serving.export import _function

    return functools.cache(_function)


@pytest.fixture(scope="session")
def save_half_plus(tmp_path_factory) -> Callable[[Path, float], Path]:
    """Saves y = x / 2 + addend, x float32 (-1, 1), into a version folder."""
    import tensorflow as tf

    saved: dict[float, Path] = {}  # saving takes a hundred times as long as copying what was saved

    def save(folder: Path, addend: float) -> Path:
        if addend not in saved:
            module = tf.Module()
            module.addend = tf.Variable(addend)
            spec = tf.TensorSpec([None, 1], tf.float32, name="x")
            function = tf.function(lambda x: {"y": x / 2.0 + module.addend}, input_signature=[spec])
            saved[addend] = tmp_path_factory.mktemp("half") / "1"
            tf.saved_model.save(module, str(saved[addend]), signatures={"serving_default": function})
        return shutil.copytree(saved[addend], folder)

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
        tf.int16,
        tf.int32,
        tf.int64,
        tf.uint8,
        tf.uint16,
        tf.uint32,
        tf.uint64,
        tf.bool,
        tf.complex64,
        tf.complex128,
        tf.string,
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
def save_examples() -> Callable[[Path], Path]:
    """Saves signatures over one string input of tf.Examples: y = x / 2 + 2 of the float feature x.

    `regress_x_to_y` and `classify_x_to_y` (scores only) as in TensorFlow Serving's own test model, `classify_both`
    with the int64 feature k as label, others that answer what their method may not, and `with_default`, whose input
    `scale` has the default [3].
    """
    import tensorflow as tf

    def graph():
        examples = tf.compat.v1.placeholder(tf.string, [None], "tf_example")
        features = {"x": tf.io.FixedLenFeature([1], tf.float32), "k": tf.io.FixedLenFeature([1], tf.int64, [0])}
        parsed = tf.io.parse_example(examples, features)
        y = parsed["x"] / 2.0 + 2.0
        label = tf.strings.as_string(parsed["k"])
        x, scale = tf.compat.v1.placeholder(tf.float32, name="x"), tf.compat.v1.placeholder(tf.float32, name="scale")
        names = {"inputs": examples}
        return {
            "regress_x_to_y": ("regress", names, {"outputs": y}),
            "classify_x_to_y": ("classify", names, {"scores": y}),
            "classify_both": (
                "classify",
                names,
                {"classes": tf.concat([label, label + "!"], 1), "scores": y * [[1, 2]]},
            ),
            "classify_labels": ("classify", names, {"classes": label}),
            "classify_bytes": ("classify", names, {"classes": tf.fill([tf.size(examples), 1], b"caf\xe9")}),
            "classify_uneven": ("classify", names, {"classes": label, "scores": y * [[1, 2]]}),
            "classify_flat": ("classify", names, {"scores": y[:, 0]}),
            "classify_named_wrong": ("classify", names, {"points": y}),
            "regress_wide": ("regress", names, {"outputs": y * [[1, 2]]}),
            "regress_named_wrong": ("regress", names, {"scores": y}),
            "regress_double": ("regress", names, {"outputs": tf.cast(y, tf.float64)}),
            "regress_other_input": ("regress", {"inputs": x}, {"outputs": tf.add(x, 1.0, "more")}),
            "with_default": ("predict", {"x": x, "scale": scale}, {"y": x * scale}),
        }

    def save(folder: Path) -> Path:
        infos = tf.compat.v1.saved_model.utils.build_tensor_info
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            signatures = {}
            for key, (method, inputs, outputs) in graph().items():
                made = tf.compat.v1.saved_model.build_signature_def(
                    {name: infos(tensor) for name, tensor in inputs.items()},
                    {name: infos(tensor) for name, tensor in outputs.items()},
                    f"tensorflow/serving/{method}",
                )
                signatures[key] = made
            signatures["with_default"].defaults["scale"].CopyFrom(tf.make_tensor_proto([3.0]))
            builder = tf.compat.v1.saved_model.Builder(str(folder))
            builder.add_meta_graph_and_variables(session, ["serve"], signatures)
            builder.save()
        return folder

    return save


@pytest.fixture(scope="session")
def exports(tmp_path_factory, save_half_plus, save_text, save_typed, save_examples) -> Path:
    """A folder with the models half, text, typed and examples."""
    folder = tmp_path_factory.mktemp("exports")
    save_half_plus(folder / "half" / "3", 2.0)
    save_text(folder / "text" / "1")
    save_typed(folder / "typed" / "1")
    save_examples(folder / "examples" / "5")
    return folder


@pytest.fixture(scope="session")
def server(exports, free_port):
    """The embedded server in this process; `.port` and `.rest_api_port` are its ports."""
    from serving.model_server.model_config import ModelSettings
    from serving.model_server.server import ModelServer

    models = [ModelSettings(name, exports / name) for name in ("half", "text", "typed", "examples")]
    models[0].labels["stable"] = 3
    port, rest_api_port = free_port(), free_port()
    running = ModelServer(
        models,
        host=HOST,
        port=port,
        rest_api_port=rest_api_port,
        file_system_poll_wait_seconds=0,
        allow_version_labels_for_unavailable_models=True,
        grpc_max_threads=32,
    )
    running.port, running.rest_api_port = port, rest_api_port
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def flagged_server(tmp_path_factory, free_port, save_half_plus):
    """A second server, of the model half in two versions, with CORS and the health service; `.folder` has the model."""
    from serving.model_server.core import ModelSettings
    from serving.model_server.server import ModelServer

    folder = tmp_path_factory.mktemp("flagged")
    save_half_plus(folder / "half" / "2", 2.0)
    save_half_plus(folder / "half" / "3", 3.0)
    port, rest_api_port = free_port(), free_port()
    running = ModelServer(
        [ModelSettings("half", folder / "half")],
        host=HOST,
        port=port,
        rest_api_port=rest_api_port,
        file_system_poll_wait_seconds=0,
        rest_api_enable_cors_support=True,
        enable_grpc_healthcheck_service=True,
        enable_serialization_as_tensor_content=True,
    )
    running.port, running.rest_api_port, running.folder = port, rest_api_port, folder
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
