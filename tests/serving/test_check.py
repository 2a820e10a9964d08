"""Each thing the stock server cannot run, or cannot run safely, is seen in the file alone."""

import pytest
import tensorflow as tf

from serving.check import check

TEXT = [tf.TensorSpec([None], tf.string, name="text")]
FLOAT = [tf.TensorSpec([None], tf.float32, name="x")]


def problems(folder, function, signature=None, **more):
    module = tf.Module()
    for name, value in more.items():
        setattr(module, name, value)
    one = tf.function(function, input_signature=signature or FLOAT)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": one})
    return check(folder).problems


def test_a_plain_graph_has_no_problems(tmp_path):
    assert problems(tmp_path, lambda x: {"y": x + 1.0}) == []
    assert "stock TensorFlow Serving can run it" in check(tmp_path).report()
    assert "serving_default: x float32 (b) -> y float32 (b)" in check(tmp_path).report()


def test_a_table_that_grows_is_a_problem(tmp_path):
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)

    def function(text):
        table.insert(text, tf.zeros_like(text, tf.int64))
        return {"ids": table.lookup(text)}

    found = problems(tmp_path, function, TEXT, table=table)
    assert "operation MutableHashTableV2 is a table that grows with requests" in found
    assert "not for stock TensorFlow Serving:" in check(tmp_path).report()


def test_python_in_the_graph_is_a_problem(tmp_path):
    def function(x):
        return {"y": tf.ensure_shape(tf.numpy_function(lambda value: value, [x], tf.float32), [None])}

    assert problems(tmp_path, function) == ["operation PyFunc calls Python, which the server has not"]


def test_xla_is_a_problem_as_a_function_and_as_an_operation(tmp_path):
    from tensorflow.compiler.tf2xla.python import xla

    compiled = tf.function(lambda x: x * 2.0, jit_compile=True)
    assert any("must be compiled by XLA" in one for one in problems(tmp_path / "a", lambda x: {"y": compiled(x)}))

    def update(x):
        return {"y": xla.dynamic_update_slice(x, x[:1], tf.constant([0]))}

    found = problems(tmp_path / "b", update)
    assert "operation XlaDynamicUpdateSlice needs XLA, which the stock server has disabled" in found


def test_a_graph_that_reads_files_is_a_problem(tmp_path):
    found = problems(tmp_path, lambda text: {"content": tf.map_fn(tf.io.read_file, text)}, TEXT)
    assert found == ["operation ReadFile reads or writes files"]


def test_an_output_without_a_batch_axis_is_a_problem(tmp_path):
    found = problems(tmp_path, lambda x: {"y": tf.reduce_sum(x)})
    assert found == ["output y of serving_default has no batch axis in front: ()"]


def test_an_output_without_a_name_is_a_problem(tmp_path):
    assert problems(tmp_path, lambda x: x + 1.0) == ["output output_0 of serving_default has no name of its own"]


def test_a_default_signature_of_two_inputs_is_a_problem(tmp_path):
    specs = [tf.TensorSpec([None], tf.float32, name=name) for name in ("x", "z")]
    (found,) = problems(tmp_path, lambda x, z: {"y": x + z}, specs)
    assert "not exactly one input and one output" in found


def test_what_is_no_saved_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has saved_model.pb, which is not in"):
        check(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\xff not a protobuf")
    with pytest.raises(ValueError, match="is not a SavedModel"):
        check(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no graph with the tag 'serve'"):
        check(tmp_path)
