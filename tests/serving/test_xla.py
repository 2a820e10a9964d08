import numpy as np
import pytest
import tensorflow as tf

from serving.model_server.errors import Code, StatusError
from serving.model_server.loaded import LoadedVersion, read_meta_graph
from serving.model_server.xla import xla_needed_by


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with one plain signature, one compiled within a loop, and one with an XLA operation."""
    from tensorflow.compiler.tf2xla.python import xla as xla_ops

    spec = [tf.TensorSpec([None], tf.float32, name="x")]
    compiled = tf.function(lambda x: x * 2.0, jit_compile=True, input_signature=spec)

    def looped(x):
        steps = tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, compiled(x)), [tf.constant(0), x])
        return {"y": steps[1]}

    def operation(x):
        return {"y": xla_ops.dynamic_update_slice(x, tf.constant([5.0]), tf.constant([0]))}

    signatures = {
        "serving_default": tf.function(lambda x: {"y": x * 2.0}, input_signature=spec),
        "looped": tf.function(looped, input_signature=spec),
        "operation": tf.function(operation, input_signature=spec),
    }
    module = tf.Module()
    path = tmp_path_factory.mktemp("xla") / "1"
    tf.saved_model.save(module, str(path), signatures=signatures)
    return path


def test_what_needs_xla_is_found_through_calls_and_loops(folder):
    meta_graph = read_meta_graph(folder)
    needs = {
        name: xla_needed_by(meta_graph.graph_def, [info.name for info in signature.outputs.values()])
        for name, signature in meta_graph.signature_def.items()
    }
    assert needs["serving_default"] == ""
    assert "jit_compile=True" in needs["looped"]
    assert needs["operation"] == "operation XlaDynamicUpdateSlice"


def test_a_signature_that_needs_xla_loads_and_is_refused_while_the_others_answer(folder):
    loaded = LoadedVersion(folder)
    feeds = {"x": np.float32([1, 2, 3])}
    assert loaded.run(loaded.signature(), feeds)["y"].tolist() == [2, 4, 6]
    for name in ("looped", "operation"):
        with pytest.raises(StatusError, match="XLA compilation disabled") as refused:
            loaded.run(loaded.signature(name), feeds)
        assert refused.value.code == Code.INTERNAL
    loaded.close()


def test_xla_runs_where_it_is_allowed(folder):
    loaded = LoadedVersion(folder, allow_xla=True)
    assert loaded.run(loaded.signature("looped"), {"x": np.float32([1, 2, 3])})["y"].tolist() == [8, 16, 24]
    loaded.close()
